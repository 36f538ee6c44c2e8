"""MSN in JAX: a ViT without a pooler.

Paper: Assran et al. 2022, "Masked Siamese Networks for Label-Efficient Learning". Agrees with `modeling_vit_msn` of
transformers 4.57.6.
"""

from __future__ import annotations

from typing import ClassVar

from vit_core.family import MSN
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTModel,
    FlaxViTModule,
)


class FlaxViTMSNModule(FlaxViTModule):
    """The bare MSN as a Linen module; see `FlaxViTMSNModel`."""

    add_pooling_layer: ClassVar[bool] = False  # type: ignore[misc]


class FlaxViTMSNForImageClassificationModule(FlaxViTForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxViTMSNForImageClassification`."""

    trunk_class = FlaxViTMSNModule


class FlaxViTMSNPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of MSN's models."""

    config_class = MSN.config
    base_model_prefix = MSN.trunk


class FlaxViTMSNModel(FlaxViTMSNPreTrainedModel, FlaxViTModel):
    """The bare MSN; returns `BaseModelOutputWithPooling` without a pooled output."""

    architecture = "ViTMSNModel"
    module_class = FlaxViTMSNModule


class FlaxViTMSNForImageClassification(FlaxViTMSNPreTrainedModel, FlaxViTForImageClassification):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`."""

    architecture = "ViTMSNForImageClassification"
    module_class = FlaxViTMSNForImageClassificationModule
