"""The Vision Transformer and its family in TensorFlow, on Keras 3, with the names that users of transformers import."""

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"vit_tf needs Keras on TensorFlow, but Keras runs on {keras.config.backend()!r}: set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is first imported, or use vit_torch or vit_flax."
    )

from vit_core import __version__
from vit_core.app.auto import Auto, auto
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.app.pipeline import of_backend
from vit_core.app.pipeline import pipeline as _pipeline
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import (
    BeitConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    IJepaConfig,
    ViTMAEConfig,
    ViTMSNConfig,
)
from vit_core.pictures.processing import (
    AutoImageProcessor,
    BatchFeature,
    BeitFeatureExtractor,
    BeitImageProcessor,
    BeitImageProcessorFast,
    BitImageProcessor,
    BitImageProcessorFast,
    DeiTFeatureExtractor,
    DeiTImageProcessor,
    DeiTImageProcessorFast,
    ViTFeatureExtractor,
    ViTImageProcessor,
    ViTImageProcessorFast,
)
from vit_tf.backbone import TFViTBackbone
from vit_tf.base import TFViTPreTrainedModel
from vit_tf.beit import (
    TFBeitBackbone,
    TFBeitForImageClassification,
    TFBeitForMaskedImageModeling,
    TFBeitModel,
    TFBeitPreTrainedModel,
)
from vit_tf.deit import (
    TFDeiTForImageClassification,
    TFDeiTForImageClassificationWithTeacher,
    TFDeiTForMaskedImageModeling,
    TFDeiTModel,
    TFDeiTPreTrainedModel,
)
from vit_tf.dinov2 import (
    TFDinov2Backbone,
    TFDinov2ForImageClassification,
    TFDinov2Model,
    TFDinov2PreTrainedModel,
    TFDinov2WithRegistersBackbone,
    TFDinov2WithRegistersForImageClassification,
    TFDinov2WithRegistersModel,
    TFDinov2WithRegistersPreTrainedModel,
)
from vit_tf.gradients import class_gradients
from vit_tf.ijepa import TFIJepaForImageClassification, TFIJepaModel, TFIJepaPreTrainedModel
from vit_tf.mae import TFViTMAEForPreTraining, TFViTMAEModel, TFViTMAEPreTrainedModel
from vit_tf.modeling import TFViTForImageClassification, TFViTForMaskedImageModeling, TFViTModel
from vit_tf.msn import TFViTMSNForImageClassification, TFViTMSNModel, TFViTMSNPreTrainedModel
from vit_tf.outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    BeitModelOutputWithPooling,
    DeiTForImageClassificationWithTeacherOutput,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    MaskedLMOutput,
    ViTMAEForPreTrainingOutput,
    ViTMAEModelOutput,
)

pipeline = of_backend("tf", _pipeline)
ViTModel = TFViTModel
ViTForImageClassification = TFViTForImageClassification
ViTForMaskedImageModeling = TFViTForMaskedImageModeling
ViTBackbone = TFViTBackbone
ViTPreTrainedModel = TFViTPreTrainedModel
BeitBackbone = TFBeitBackbone
BeitForImageClassification = TFBeitForImageClassification
BeitForMaskedImageModeling = TFBeitForMaskedImageModeling
BeitModel = TFBeitModel
BeitPreTrainedModel = TFBeitPreTrainedModel
DeiTModel = TFDeiTModel
DeiTForImageClassification = TFDeiTForImageClassification
DeiTForImageClassificationWithTeacher = TFDeiTForImageClassificationWithTeacher
DeiTForMaskedImageModeling = TFDeiTForMaskedImageModeling
DeiTPreTrainedModel = TFDeiTPreTrainedModel
Dinov2Backbone = TFDinov2Backbone
Dinov2ForImageClassification = TFDinov2ForImageClassification
Dinov2Model = TFDinov2Model
Dinov2PreTrainedModel = TFDinov2PreTrainedModel
Dinov2WithRegistersBackbone = TFDinov2WithRegistersBackbone
Dinov2WithRegistersForImageClassification = TFDinov2WithRegistersForImageClassification
Dinov2WithRegistersModel = TFDinov2WithRegistersModel
Dinov2WithRegistersPreTrainedModel = TFDinov2WithRegistersPreTrainedModel
IJepaForImageClassification = TFIJepaForImageClassification
IJepaModel = TFIJepaModel
IJepaPreTrainedModel = TFIJepaPreTrainedModel
ViTMAEForPreTraining = TFViTMAEForPreTraining
ViTMAEModel = TFViTMAEModel
ViTMAEPreTrainedModel = TFViTMAEPreTrainedModel
ViTMSNForImageClassification = TFViTMSNForImageClassification
ViTMSNModel = TFViTMSNModel
ViTMSNPreTrainedModel = TFViTMSNPreTrainedModel

AutoFeatureExtractor = AutoImageProcessor
AutoBackbone: type[Auto[TFViTBackbone]] = auto("tf", "Backbone", "TF")
AutoModel: type[Auto[TFViTModel]] = auto("tf", "Model", "TF")
AutoModelForImageClassification: type[Auto[TFViTForImageClassification]] = auto("tf", "ForImageClassification", "TF")
AutoModelForMaskedImageModeling: type[Auto[TFViTPreTrainedModel]] = auto("tf", "ForMaskedImageModeling", "TF")
AutoModelForPreTraining: type[Auto[TFViTMAEForPreTraining]] = auto("tf", "ForPreTraining", "TF")
TFAutoBackbone = AutoBackbone
TFAutoModel = AutoModel
TFAutoModelForImageClassification = AutoModelForImageClassification
TFAutoModelForMaskedImageModeling = AutoModelForMaskedImageModeling
TFAutoModelForPreTraining = AutoModelForPreTraining

__all__ = [
    "AutoBackbone",
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedImageModeling",
    "AutoModelForPreTraining",
    "BackboneOutput",
    "BaseModelOutput",
    "BaseModelOutputWithPooling",
    "BatchFeature",
    "BeitBackbone",
    "BeitConfig",
    "BeitFeatureExtractor",
    "BeitForImageClassification",
    "BeitForMaskedImageModeling",
    "BeitImageProcessor",
    "BeitImageProcessorFast",
    "BeitModel",
    "BeitModelOutputWithPooling",
    "BeitPreTrainedModel",
    "BitImageProcessor",
    "BitImageProcessorFast",
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
    "Dinov2Backbone",
    "Dinov2Config",
    "Dinov2ForImageClassification",
    "Dinov2Model",
    "Dinov2PreTrainedModel",
    "Dinov2WithRegistersBackbone",
    "Dinov2WithRegistersConfig",
    "Dinov2WithRegistersForImageClassification",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersPreTrainedModel",
    "IJepaConfig",
    "IJepaForImageClassification",
    "IJepaModel",
    "IJepaPreTrainedModel",
    "ImageClassificationPipeline",
    "ImageClassifierOutput",
    "ImageFeatureExtractionPipeline",
    "MaskedImageModelingOutput",
    "MaskedLMOutput",
    "TFAutoBackbone",
    "TFAutoModel",
    "TFAutoModelForImageClassification",
    "TFAutoModelForMaskedImageModeling",
    "TFAutoModelForPreTraining",
    "TFBeitBackbone",
    "TFBeitForImageClassification",
    "TFBeitForMaskedImageModeling",
    "TFBeitModel",
    "TFBeitPreTrainedModel",
    "TFDeiTForImageClassification",
    "TFDeiTForImageClassificationWithTeacher",
    "TFDeiTForMaskedImageModeling",
    "TFDeiTModel",
    "TFDeiTPreTrainedModel",
    "TFDinov2Backbone",
    "TFDinov2ForImageClassification",
    "TFDinov2Model",
    "TFDinov2PreTrainedModel",
    "TFDinov2WithRegistersBackbone",
    "TFDinov2WithRegistersForImageClassification",
    "TFDinov2WithRegistersModel",
    "TFDinov2WithRegistersPreTrainedModel",
    "TFIJepaForImageClassification",
    "TFIJepaModel",
    "TFIJepaPreTrainedModel",
    "TFViTBackbone",
    "TFViTForImageClassification",
    "TFViTForMaskedImageModeling",
    "TFViTMAEForPreTraining",
    "TFViTMAEModel",
    "TFViTMAEPreTrainedModel",
    "TFViTMSNForImageClassification",
    "TFViTMSNModel",
    "TFViTMSNPreTrainedModel",
    "TFViTModel",
    "TFViTPreTrainedModel",
    "ViTBackbone",
    "ViTConfig",
    "ViTFeatureExtractor",
    "ViTForImageClassification",
    "ViTForMaskedImageModeling",
    "ViTImageProcessor",
    "ViTImageProcessorFast",
    "ViTMAEConfig",
    "ViTMAEForPreTraining",
    "ViTMAEForPreTrainingOutput",
    "ViTMAEModel",
    "ViTMAEModelOutput",
    "ViTMAEPreTrainedModel",
    "ViTMSNConfig",
    "ViTMSNForImageClassification",
    "ViTMSNModel",
    "ViTMSNPreTrainedModel",
    "ViTModel",
    "ViTPreTrainedModel",
    "__version__",
    "class_gradients",
    "pipeline",
]
