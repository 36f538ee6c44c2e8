"""MSN in Keras: a ViT without a pooler.

Paper: Assran et al. 2022, "Masked Siamese Networks for Label-Efficient Learning". Agrees with `modeling_vit_msn` of
transformers 4.57.6.
"""

from __future__ import annotations

from typing import Any

import keras

from vit_core.config import ViTConfig
from vit_core.family import MSN
from vit_tf.base import TFViTPreTrainedModel
from vit_tf.modeling import TFViTForImageClassification, TFViTModel


class TFViTMSNPreTrainedModel(TFViTPreTrainedModel):
    """Base of MSN's models."""

    config_class = MSN.config
    base_model_prefix = MSN.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFViTMSNModel(TFViTMSNPreTrainedModel, TFViTModel):
    """The bare MSN; returns `BaseModelOutputWithPooling` without a pooled output."""

    architecture = "ViTMSNModel"

    def __init__(self, config: ViTConfig, use_mask_token: bool = False, **options: Any) -> None:
        super().__init__(config, False, use_mask_token, **options)


@keras.saving.register_keras_serializable("vit_tf")
class TFViTMSNForImageClassification(TFViTMSNPreTrainedModel, TFViTForImageClassification):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`."""

    architecture = "ViTMSNForImageClassification"
    trunk_class = TFViTMSNModel
