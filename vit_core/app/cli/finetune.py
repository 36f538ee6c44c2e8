"""`vit finetune`: a checkpoint, trained on pictures of one's own."""

from __future__ import annotations

from typing import Any

from vit_core.app.cli.common import AsJson, Backend
from vit_core.app.cli.training import train, with_flags_of
from vit_core.app.training.finetuning import FineTuner, FineTuning


@with_flags_of(FineTuning)
def finetune(backend: Backend = None, as_json: AsJson = False, **flags: Any) -> None:
    """Train a classifier on pictures of your own."""
    train(FineTuner, FineTuning(**flags), backend, as_json)
