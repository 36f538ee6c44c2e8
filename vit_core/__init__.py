"""The framework-neutral half of vit-trio: configuration, parameter table, preprocessing, checkpoints, hub."""

from vit_core.app.pipeline import pipeline
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

__version__ = "0.1.0"

__all__ = ["ViTConfig", "ViTImageProcessor", "__version__", "pipeline"]
