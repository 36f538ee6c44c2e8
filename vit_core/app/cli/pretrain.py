"""`vit pretrain`: a model, trained on pictures without labels."""

from __future__ import annotations

from typing import Any

from vit_core.app.cli.common import AsJson, Backend
from vit_core.app.cli.training import train, with_flags_of
from vit_core.app.training.pretraining import PreTrainer, PreTraining


@with_flags_of(PreTraining)
def pretrain(backend: Backend = None, as_json: AsJson = False, **flags: Any) -> None:
    """Train a model to complete pictures, without labels: SimMIM, MAE or BEiT."""
    train(PreTrainer, PreTraining(**flags), backend, as_json)
