"""The Vision Transformer and its family in TensorFlow, on Keras 3, with the names that users of transformers import."""

from functools import partial

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"vit_tf needs Keras on TensorFlow, but Keras runs on {keras.config.backend()!r}: set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is first imported, or use vit_torch or vit_flax."
    )

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
from vit_tf.base import TFViTPreTrainedModel
from vit_tf.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling,
    TFDeiTModel,
    TFDeiTPreTrainedModel,
)
from vit_tf.modeling import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel
from vit_tf.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)

pipeline = partial(_pipeline, backend="tf")
ViTModel = TFViTModel
ViTForImageClassification = TFViTForImageClassification
ViTForMaskedImageModeling = TFViTForMaskedImageModeling
ViTPreTrainedModel = TFViTPreTrainedModel
DeiTModel = TFDeiTModel
DeiTForImageClassification = TFDeiTForImageClassification
DeiTForImageClassificationWithTeacher = TFDeiTForImageClassificationWithTeacher
DeiTForMaskedImageModeling = TFDeiTForMaskedImageModeling
DeiTPreTrainedModel = TFDeiTPreTrainedModel

AutoFeatureExtractor = AutoImageProcessor
AutoModel = TFAutoModel = auto("tf", "Model", "TF")
AutoModelForImageClassification = TFAutoModelForImageClassification = auto("tf", "ForImageClassification", "TF")
AutoModelForMaskedImageModeling = TFAutoModelForMaskedImageModeling = auto("tf", "ForMaskedImageModeling", "TF")

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
    "TFAutoModel",
    "TFAutoModelForImageClassification",
    "TFAutoModelForMaskedImageModeling",
    "TFDeiTForImageClassification",
    "TFDeiTForImageClassificationWithTeacher",
    "TFDeiTForMaskedImageModeling",
    "TFDeiTModel",
    "TFDeiTPreTrainedModel",
    "TFViTForImageClassification",
    "TFViTForMaskedImageModeling",
    "TFViTModel",
    "TFViTPreTrainedModel",
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
