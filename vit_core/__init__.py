"""The framework-neutral half of vit-trio: configuration, parameter table, preprocessing, checkpoints, hub."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

if TYPE_CHECKING:
    from vit_core.app.export.exporting import export
    from vit_core.app.pipeline import pipeline

__version__ = "0.1.0"

__all__ = ["ViTConfig", "ViTImageProcessor", "__version__", "export", "pipeline"]

_ROOMS = {"export": "vit_core.app.export.exporting", "pipeline": "vit_core.app.pipeline"}


def __getattr__(name: str) -> Any:
    """What reaches a backend is imported when it is asked for: every module below starts with this one."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
