"""The Vision Transformer in PyTorch, with the names that users of transformers import."""

from functools import partial

from vit_core.app.pipeline import pipeline as _pipeline
from vit_core.config import ViTConfig
from vit_core.pictures.processing import (
    AutoImageProcessor,
    ViTFeatureExtractor,
    ViTImageProcessor,
    ViTImageProcessorFast,
)
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from vit_torch.weights import ViTPreTrainedModel

pipeline = partial(_pipeline, backend="torch")

# This package has one family: what is chosen automatically is always it.
AutoConfig, AutoFeatureExtractor = ViTConfig, AutoImageProcessor
AutoModel = ViTModel
AutoModelForImageClassification = ViTForImageClassification
AutoModelForMaskedImageModeling = ViTForMaskedImageModeling

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedImageModeling",
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "ImageClassifierOutput",
    "MaskedImageModelingOutput",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTModel",
    "ViTPreTrainedModel",
    "pipeline",
]
