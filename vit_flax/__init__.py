"""The Vision Transformer in JAX, on Flax Linen, with the names that users of transformers import."""

from functools import partial

from vit_core.app.pipeline import pipeline as _pipeline
from vit_core.config import ViTConfig
from vit_core.pictures.processing import (
    AutoImageProcessor,
    ViTFeatureExtractor,
    ViTImageProcessor,
    ViTImageProcessorFast,
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
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from vit_flax.weights import FlaxViTPreTrainedModel

pipeline = partial(_pipeline, backend="flax")
ViTModel = FlaxViTModel
ViTForImageClassification = FlaxViTForImageClassification
ViTForMaskedImageModeling = FlaxViTForMaskedImageModeling
ViTPreTrainedModel = FlaxViTPreTrainedModel

# This package has one family: what is chosen automatically is always it.
AutoConfig, AutoFeatureExtractor = ViTConfig, AutoImageProcessor
AutoModel = FlaxAutoModel = FlaxViTModel
AutoModelForImageClassification = FlaxAutoModelForImageClassification = FlaxViTForImageClassification
AutoModelForMaskedImageModeling = FlaxAutoModelForMaskedImageModeling = FlaxViTForMaskedImageModeling

__all__ = [
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedImageModeling",
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "FlaxAutoModel",
    "FlaxAutoModelForImageClassification",
    "FlaxAutoModelForMaskedImageModeling",
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
