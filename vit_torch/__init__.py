"""The Vision Transformer in PyTorch, with the names that users of transformers import."""

from functools import partial

from vit_core.config import ViTConfig
from vit_core.image_processing import AutoImageProcessor, ViTFeatureExtractor, ViTImageProcessor, ViTImageProcessorFast
from vit_core.pipeline import pipeline as _pipeline
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput
from vit_torch.weights import ViTPreTrainedModel

pipeline = partial(_pipeline, backend="torch")

__all__ = [
    "AutoImageProcessor",
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
