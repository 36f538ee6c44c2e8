"""The Vision Transformer and its family in JAX, on Flax Linen, with the names that users of transformers import."""

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
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.deit import (
    FlaxDeiTForImageClassification,
    FlaxDeiTForImageClassificationModule,
    FlaxDeiTForImageClassificationWithTeacher,
    FlaxDeiTForImageClassificationWithTeacherModule,
    FlaxDeiTForMaskedImageModeling,
    FlaxDeiTForMaskedImageModelingModule,
    FlaxDeiTModel,
    FlaxDeiTModule,
    FlaxDeiTPreTrainedModel,
)
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTForMaskedImageModeling,
    FlaxViTForMaskedImageModelingModule,
    FlaxViTModel,
    FlaxViTModule,
)
from vit_flax.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)

pipeline = partial(_pipeline, backend="flax")
ViTModel = FlaxViTModel
ViTForImageClassification = FlaxViTForImageClassification
ViTForMaskedImageModeling = FlaxViTForMaskedImageModeling
ViTPreTrainedModel = FlaxViTPreTrainedModel
DeiTModel = FlaxDeiTModel
DeiTForImageClassification = FlaxDeiTForImageClassification
DeiTForImageClassificationWithTeacher = FlaxDeiTForImageClassificationWithTeacher
DeiTForMaskedImageModeling = FlaxDeiTForMaskedImageModeling
DeiTPreTrainedModel = FlaxDeiTPreTrainedModel

AutoFeatureExtractor = AutoImageProcessor
AutoModel = FlaxAutoModel = auto("flax", "Model", "Flax")
AutoModelForImageClassification = FlaxAutoModelForImageClassification = auto("flax", "ForImageClassification", "Flax")
AutoModelForMaskedImageModeling = FlaxAutoModelForMaskedImageModeling = auto("flax", "ForMaskedImageModeling", "Flax")

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
    "FlaxAutoModel",
    "FlaxAutoModelForImageClassification",
    "FlaxAutoModelForMaskedImageModeling",
    "FlaxDeiTForImageClassification",
    "FlaxDeiTForImageClassificationModule",
    "FlaxDeiTForImageClassificationWithTeacher",
    "FlaxDeiTForImageClassificationWithTeacherModule",
    "FlaxDeiTForMaskedImageModeling",
    "FlaxDeiTForMaskedImageModelingModule",
    "FlaxDeiTModel",
    "FlaxDeiTModule",
    "FlaxDeiTPreTrainedModel",
    "FlaxViTForImageClassification",
    "FlaxViTForImageClassificationModule",
    "FlaxViTForMaskedImageModeling",
    "FlaxViTForMaskedImageModelingModule",
    "FlaxViTModel",
    "FlaxViTModule",
    "FlaxViTPreTrainedModel",
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
