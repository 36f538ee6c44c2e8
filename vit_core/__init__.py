"""The framework-neutral half of vit-trio: configuration, parameter table, preprocessing, checkpoints, hub."""

from typing import TYPE_CHECKING, Any

from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

if TYPE_CHECKING:
    from vit_core.app.pipeline import pipeline

__version__ = "0.1.0"

__all__ = ["ViTConfig", "ViTImageProcessor", "__version__", "pipeline"]


def __getattr__(name: str) -> Any:
    """The pipeline is imported when it is asked for: every module below starts with this one."""
    if name != "pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vit_core.app.pipeline import pipeline

    return pipeline
