"""I-JEPA in Keras: a ViT without a CLS token.

Paper: Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".
Agrees with `modeling_ijepa` of transformers 4.57.6.
"""

from __future__ import annotations

from typing import Any

import keras

from vit_core.config import ViTConfig
from vit_core.family import IJEPA
from vit_tf.base import TFViTPreTrainedModel
from vit_tf.modeling import TFViTForImageClassification, TFViTModel


class TFIJepaPreTrainedModel(TFViTPreTrainedModel):
    """Base of I-JEPA's models."""

    config_class = IJEPA.config
    base_model_prefix = IJEPA.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFIJepaModel(TFIJepaPreTrainedModel, TFViTModel):
    """The bare I-JEPA: a ViT without a CLS token; returns `BaseModelOutputWithPooling`."""

    architecture = "IJepaModel"

    def __init__(
        self, config: ViTConfig, add_pooling_layer: bool = False, use_mask_token: bool = False, **options: Any
    ) -> None:
        super().__init__(config, add_pooling_layer, use_mask_token, **options)


@keras.saving.register_keras_serializable("vit_tf")
class TFIJepaForImageClassification(TFIJepaPreTrainedModel, TFViTForImageClassification):
    """A linear classifier on the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "IJepaForImageClassification"
    trunk_class = TFIJepaModel
