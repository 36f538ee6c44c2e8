"""The Vision Transformer and its family in PyTorch, with the names that users of transformers import."""

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
from vit_torch.backbone import ViTBackbone
from vit_torch.base import ViTPreTrainedModel
from vit_torch.beit import (
    BeitBackbone,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    BeitPreTrainedModel,
)
from vit_torch.deit import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
    DeiTPreTrainedModel,
)
from vit_torch.dinov2 import (
    Dinov2Backbone,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2PreTrainedModel,
    Dinov2WithRegistersBackbone,
    Dinov2WithRegistersForImageClassification,
    Dinov2WithRegistersModel,
    Dinov2WithRegistersPreTrainedModel,
)
from vit_torch.gradients import class_gradients
from vit_torch.ijepa import IJepaForImageClassification, IJepaModel, IJepaPreTrainedModel
from vit_torch.mae import ViTMAEForPreTraining, ViTMAEModel, ViTMAEPreTrainedModel
from vit_torch.modeling import ViTForImageClassification, ViTForMaskedImageModeling, ViTModel
from vit_torch.msn import ViTMSNForImageClassification, ViTMSNModel, ViTMSNPreTrainedModel
from vit_torch.outputs import (
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

pipeline = of_backend("torch", _pipeline)

AutoFeatureExtractor = AutoImageProcessor
AutoBackbone: type[Auto[ViTBackbone]] = auto("torch", "Backbone")
AutoModel: type[Auto[ViTModel]] = auto("torch", "Model")
AutoModelForImageClassification: type[Auto[ViTForImageClassification]] = auto("torch", "ForImageClassification")
AutoModelForMaskedImageModeling: type[Auto[ViTPreTrainedModel]] = auto("torch", "ForMaskedImageModeling")
AutoModelForPreTraining: type[Auto[ViTMAEForPreTraining]] = auto("torch", "ForPreTraining")

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
