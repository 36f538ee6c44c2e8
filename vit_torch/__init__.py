"""The Vision Transformer and its family in PyTorch, with the names that users of transformers import."""

from functools import partial

from vit_core.app.auto import auto
from vit_core.app.pipeline import pipeline as _pipeline
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import DeiTConfig
from vit_core.pictures.processing import (
    AutoImageProcessor,
    DeiTFeatureExtractor,
    DeiTImageProcessor,
    DeiTImageProcessorFast,
    ViTFeatureExtractor,
    ViTImageProcessor,
    ViTImageProcessorFast,
)
from vit_torch.base import ViTPreTrainedModel
from vit_torch.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    DeiTPreTrainedModel,
)
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)

pipeline = partial(_pipeline, backend="torch")

AutoFeatureExtractor = AutoImageProcessor
AutoModel = auto("torch", "Model")
AutoModelForImageClassification = auto("torch", "ForImageClassification")
AutoModelForMaskedImageModeling = auto("torch", "ForMaskedImageModeling")

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedImageModeling",
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "DeiTConfig",
    "DeiTFeatureExtractor",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "DeiTForImageClassificationWithTeacherOutput",
    "DeiTForMaskedImageModeling",
    "DeiTImageProcessor",
    "DeiTImageProcessorFast",
    "DeiTModel",
    "DeiTPreTrainedModel",
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
