"""The Vision Transformer in PyTorch."""

from vit_core.config import ViTConfig
from vit_core.image_processing import AutoImageProcessor, ViTFeatureExtractor, ViTImageProcessor, ViTImageProcessorFast
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.outputs import BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput
from vit_torch.weights import ViTPreTrainedModel

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
]
