"""I-JEPA in JAX: a ViT without a CLS token.

Paper: Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".
Agrees with `modeling_ijepa` of transformers 4.57.6.
"""

from __future__ import annotations

from vit_core.family import IJEPA
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTModel,
    FlaxViTModule,
)


class FlaxIJepaModule(FlaxViTModule):
    """The bare I-JEPA as a Linen module; see `FlaxIJepaModel`."""

    add_pooling_layer: bool = False


class FlaxIJepaForImageClassificationModule(FlaxViTForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxIJepaForImageClassification`."""

    trunk_class = FlaxIJepaModule


class FlaxIJepaPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of I-JEPA's models."""

    config_class = IJEPA.config
    base_model_prefix = IJEPA.trunk


class FlaxIJepaModel(FlaxIJepaPreTrainedModel, FlaxViTModel):
    """The bare I-JEPA: a ViT without a CLS token; returns `BaseModelOutputWithPooling`."""

    architecture = "IJepaModel"
    module_class = FlaxIJepaModule


class FlaxIJepaForImageClassification(FlaxIJepaPreTrainedModel, FlaxViTForImageClassification):
    """A linear classifier on the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "IJepaForImageClassification"
    module_class = FlaxIJepaForImageClassificationModule
