"""The members of the family, for tests that are written once for all of them."""

from __future__ import annotations

from typing import Any

from vit_core.config import ViTConfig
from vit_core.family import ARCHITECTURES

MODELS = tuple(ARCHITECTURES)  # every model class, by its PyTorch name
MASKED = tuple(name for name in MODELS if name.endswith("ForMaskedImageModeling"))
CLASSIFIERS = tuple(name for name in MODELS if "ForImageClassification" in name)


def config_for(architecture: str, **values: Any) -> ViTConfig:
    """A configuration of the member that a model class is of."""
    return ARCHITECTURES[architecture].config(**values)
