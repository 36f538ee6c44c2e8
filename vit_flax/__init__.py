"""The Vision Transformer and its family in JAX, on Flax Linen, with the names that users of transformers import."""

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
from vit_flax.backbone import FlaxViTBackbone, FlaxViTBackboneModule
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.beit import (
    FlaxBeitBackbone,
    FlaxBeitBackboneModule,
    FlaxBeitForImageClassification,
    FlaxBeitForImageClassificationModule,
    FlaxBeitForMaskedImageModeling,
    FlaxBeitForMaskedImageModelingModule,
    FlaxBeitModel,
    FlaxBeitModule,
    FlaxBeitPreTrainedModel,
)
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
from vit_flax.dinov2 import (
    FlaxDinov2Backbone,
    FlaxDinov2BackboneModule,
    FlaxDinov2ForImageClassification,
    FlaxDinov2ForImageClassificationModule,
    FlaxDinov2Model,
    FlaxDinov2Module,
    FlaxDinov2PreTrainedModel,
    FlaxDinov2WithRegistersBackbone,
    FlaxDinov2WithRegistersBackboneModule,
    FlaxDinov2WithRegistersForImageClassification,
    FlaxDinov2WithRegistersForImageClassificationModule,
    FlaxDinov2WithRegistersModel,
    FlaxDinov2WithRegistersModule,
    FlaxDinov2WithRegistersPreTrainedModel,
)
from vit_flax.gradients import class_gradients
from vit_flax.ijepa import (
    FlaxIJepaForImageClassification,
    FlaxIJepaForImageClassificationModule,
    FlaxIJepaModel,
    FlaxIJepaModule,
    FlaxIJepaPreTrainedModel,
)
from vit_flax.mae import (
    FlaxViTMAEForPreTraining,
    FlaxViTMAEForPreTrainingModule,
    FlaxViTMAEModel,
    FlaxViTMAEModule,
    FlaxViTMAEPreTrainedModel,
)
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTForMaskedImageModeling,
    FlaxViTForMaskedImageModelingModule,
    FlaxViTModel,
    FlaxViTModule,
)
from vit_flax.msn import (
    FlaxViTMSNForImageClassification,
    FlaxViTMSNForImageClassificationModule,
    FlaxViTMSNModel,
    FlaxViTMSNModule,
    FlaxViTMSNPreTrainedModel,
)
from vit_flax.outputs import (
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

pipeline = of_backend("flax", _pipeline)
ViTModel = FlaxViTModel
ViTForImageClassification = FlaxViTForImageClassification
ViTForMaskedImageModeling = FlaxViTForMaskedImageModeling
ViTBackbone = FlaxViTBackbone
ViTPreTrainedModel = FlaxViTPreTrainedModel
BeitModel = FlaxBeitModel
BeitForImageClassification = FlaxBeitForImageClassification
BeitForMaskedImageModeling = FlaxBeitForMaskedImageModeling
BeitBackbone = FlaxBeitBackbone
BeitPreTrainedModel = FlaxBeitPreTrainedModel
DeiTModel = FlaxDeiTModel
DeiTForImageClassification = FlaxDeiTForImageClassification
DeiTForImageClassificationWithTeacher = FlaxDeiTForImageClassificationWithTeacher
DeiTForMaskedImageModeling = FlaxDeiTForMaskedImageModeling
DeiTPreTrainedModel = FlaxDeiTPreTrainedModel
Dinov2Model = FlaxDinov2Model
Dinov2ForImageClassification = FlaxDinov2ForImageClassification
Dinov2Backbone = FlaxDinov2Backbone
Dinov2PreTrainedModel = FlaxDinov2PreTrainedModel
Dinov2WithRegistersModel = FlaxDinov2WithRegistersModel
Dinov2WithRegistersForImageClassification = FlaxDinov2WithRegistersForImageClassification
Dinov2WithRegistersBackbone = FlaxDinov2WithRegistersBackbone
Dinov2WithRegistersPreTrainedModel = FlaxDinov2WithRegistersPreTrainedModel
IJepaModel = FlaxIJepaModel
IJepaForImageClassification = FlaxIJepaForImageClassification
IJepaPreTrainedModel = FlaxIJepaPreTrainedModel
ViTMAEModel = FlaxViTMAEModel
ViTMAEForPreTraining = FlaxViTMAEForPreTraining
ViTMAEPreTrainedModel = FlaxViTMAEPreTrainedModel
ViTMSNModel = FlaxViTMSNModel
ViTMSNForImageClassification = FlaxViTMSNForImageClassification
ViTMSNPreTrainedModel = FlaxViTMSNPreTrainedModel

AutoFeatureExtractor = AutoImageProcessor
AutoBackbone: type[Auto[FlaxViTBackbone]] = auto("flax", "Backbone", "Flax")
AutoModel: type[Auto[FlaxViTModel]] = auto("flax", "Model", "Flax")
AutoModelForImageClassification: type[Auto[FlaxViTForImageClassification]] = auto(
    "flax", "ForImageClassification", "Flax"
)
AutoModelForMaskedImageModeling: type[Auto[FlaxViTPreTrainedModel]] = auto("flax", "ForMaskedImageModeling", "Flax")
AutoModelForPreTraining: type[Auto[FlaxViTMAEForPreTraining]] = auto("flax", "ForPreTraining", "Flax")
FlaxAutoBackbone = AutoBackbone
FlaxAutoModel = AutoModel
FlaxAutoModelForImageClassification = AutoModelForImageClassification
FlaxAutoModelForMaskedImageModeling = AutoModelForMaskedImageModeling
FlaxAutoModelForPreTraining = AutoModelForPreTraining

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
    "FlaxAutoBackbone",
    "FlaxAutoModel",
    "FlaxAutoModelForImageClassification",
    "FlaxAutoModelForMaskedImageModeling",
    "FlaxAutoModelForPreTraining",
    "FlaxBeitBackbone",
    "FlaxBeitBackboneModule",
    "FlaxBeitForImageClassification",
    "FlaxBeitForImageClassificationModule",
    "FlaxBeitForMaskedImageModeling",
    "FlaxBeitForMaskedImageModelingModule",
    "FlaxBeitModel",
    "FlaxBeitModule",
    "FlaxBeitPreTrainedModel",
    "FlaxDeiTForImageClassification",
    "FlaxDeiTForImageClassificationModule",
    "FlaxDeiTForImageClassificationWithTeacher",
    "FlaxDeiTForImageClassificationWithTeacherModule",
    "FlaxDeiTForMaskedImageModeling",
    "FlaxDeiTForMaskedImageModelingModule",
    "FlaxDeiTModel",
    "FlaxDeiTModule",
    "FlaxDeiTPreTrainedModel",
    "FlaxDinov2Backbone",
    "FlaxDinov2BackboneModule",
    "FlaxDinov2ForImageClassification",
    "FlaxDinov2ForImageClassificationModule",
    "FlaxDinov2Model",
    "FlaxDinov2Module",
    "FlaxDinov2PreTrainedModel",
    "FlaxDinov2WithRegistersBackbone",
    "FlaxDinov2WithRegistersBackboneModule",
    "FlaxDinov2WithRegistersForImageClassification",
    "FlaxDinov2WithRegistersForImageClassificationModule",
    "FlaxDinov2WithRegistersModel",
    "FlaxDinov2WithRegistersModule",
    "FlaxDinov2WithRegistersPreTrainedModel",
    "FlaxIJepaForImageClassification",
    "FlaxIJepaForImageClassificationModule",
    "FlaxIJepaModel",
    "FlaxIJepaModule",
    "FlaxIJepaPreTrainedModel",
    "FlaxViTBackbone",
    "FlaxViTBackboneModule",
    "FlaxViTForImageClassification",
    "FlaxViTForImageClassificationModule",
    "FlaxViTForMaskedImageModeling",
    "FlaxViTForMaskedImageModelingModule",
    "FlaxViTMAEForPreTraining",
    "FlaxViTMAEForPreTrainingModule",
    "FlaxViTMAEModel",
    "FlaxViTMAEModule",
    "FlaxViTMAEPreTrainedModel",
    "FlaxViTMSNForImageClassification",
    "FlaxViTMSNForImageClassificationModule",
    "FlaxViTMSNModel",
    "FlaxViTMSNModule",
    "FlaxViTMSNPreTrainedModel",
    "FlaxViTModel",
    "FlaxViTModule",
    "FlaxViTPreTrainedModel",
    "IJepaConfig",
    "IJepaForImageClassification",
    "IJepaModel",
    "IJepaPreTrainedModel",
    "ImageClassificationPipeline",
    "ImageClassifierOutput",
    "ImageFeatureExtractionPipeline",
    "MaskedImageModelingOutput",
    "MaskedLMOutput",
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
