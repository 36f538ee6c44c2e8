"""DINOv2 in Keras, with registers and without: a ViT of another layer, and a head on all that it has seen.

Papers: Oquab et al. 2023, "DINOv2", section 4; Darcet et al. 2023, "Vision Transformers Need Registers", section 2.
Agrees with `modeling_dinov2` and `modeling_dinov2_with_registers` of transformers 4.57.6; variables have the paths of
its `modeling_flax_dinov2`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import ATTENTION_SCALE, DINOV2, DINOV2_WITH_REGISTERS, MLP_SCALE
from vit_tf.activations import activation
from vit_tf.backbone import TFViTBackbone
from vit_tf.base import TFViTPreTrainedModel
from vit_tf.encoder import ViTAttention, ViTDropPath
from vit_tf.modeling import TFViTForImageClassification, TFViTModel
from vit_tf.module import ViTModule


class Dinov2LayerScale(ViTModule):
    """A factor for each channel of a branch (CaiT, Touvron et al. 2021, section 2)."""

    def __init__(self, row: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row = row

    def build(self, input_shape: Any = None) -> None:
        self.lambda1 = self.weight(self.row.format(0))

    def call(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * tf.cast(self.lambda1, hidden_states.dtype)


class Dinov2MLP(ViTModule):
    """Two linear layers, and the activation between them."""

    def build(self, input_shape: Any = None) -> None:
        width, inner = self.config.hidden_size, self.config.intermediate_size
        self.fc1 = self.linear(width, inner, "fc1", act=activation(self.config.hidden_act))
        self.fc2 = self.linear(inner, width, "fc2")

    def call(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.fc1(hidden_states))


class Dinov2SwiGLUFFN(ViTModule):
    """A gated MLP: one half of the first layer, after SiLU, times the other (Shazeer 2020, equation 6)."""

    def build(self, input_shape: Any = None) -> None:
        width, inner = self.config.hidden_size, self.config.intermediate_size
        self.weights_in = self.linear(width, 2 * inner, "weights_in")
        self.weights_out = self.linear(inner, width, "weights_out")

    def call(self, hidden_states: Tensor) -> Tensor:
        gate, x = tf.split(self.weights_in(hidden_states), 2, axis=-1)
        return self.weights_out(tf.nn.silu(gate) * x)


class Dinov2Layer(ViTModule):
    """One pre-norm block, whose branches are scaled."""

    def __init__(self, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One for each branch, whose masks are of the same call: a layer that recomputes counts each once a call.
        self.drop_path1 = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path1")
        self.drop_path2 = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path2")

    def build(self, input_shape: Any = None) -> None:
        self.norm1 = self.layer_norm("norm1")
        self.attention = self.child(ViTAttention, "attention")
        self.layer_scale1 = self.child(Dinov2LayerScale, "layer_scale1", row=ATTENTION_SCALE)
        self.norm2 = self.layer_norm("norm2")
        self.mlp = self.child(Dinov2SwiGLUFFN if self.config.use_swiglu_ffn else Dinov2MLP, "mlp")
        self.layer_scale2 = self.child(Dinov2LayerScale, "layer_scale2", row=MLP_SCALE)

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> Any:
        x = self.norm1(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options=options, training=training))
        x = options.wanted(hidden_states) + self.drop_path1(self.layer_scale1(attended), training=training)
        scaled = self.layer_scale2(self.mlp(self.norm2(x)))
        return options.joined(x + self.drop_path2(scaled, training=training), probs)


class TFDinov2PreTrainedModel(TFViTPreTrainedModel):
    """Base of DINOv2's models."""

    config_class = DINOV2.config
    base_model_prefix = DINOV2.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2Model(TFDinov2PreTrainedModel, TFViTModel):
    """The bare DINOv2; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2Model"
    layer_class = Dinov2Layer

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        super().__init__(config, False, False, **options)

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2ForImageClassification(TFDinov2PreTrainedModel, TFViTForImageClassification):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2ForImageClassification"
    trunk_class = TFDinov2Model
    tokens = None

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        patches = tf.reduce_mean(x[:, self.config.num_prefix_tokens :], axis=1)
        return {"logits": self.classifier(tf.concat([x[:, 0], patches], axis=1))}


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2Backbone(TFDinov2PreTrainedModel, TFViTBackbone):
    """The bare DINOv2 as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2Backbone"
    layer_class = Dinov2Layer


class TFDinov2WithRegistersPreTrainedModel(TFViTPreTrainedModel):
    """Base of the models of DINOv2 with registers."""

    config_class = DINOV2_WITH_REGISTERS.config
    base_model_prefix = DINOV2_WITH_REGISTERS.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2WithRegistersModel(TFDinov2WithRegistersPreTrainedModel, TFDinov2Model):
    """The bare DINOv2 with registers; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2WithRegistersModel"


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2WithRegistersForImageClassification(TFDinov2WithRegistersPreTrainedModel, TFDinov2ForImageClassification):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2WithRegistersForImageClassification"
    trunk_class = TFDinov2WithRegistersModel


@keras.saving.register_keras_serializable("vit_tf")
class TFDinov2WithRegistersBackbone(TFDinov2WithRegistersPreTrainedModel, TFDinov2Backbone):
    """The bare DINOv2 with registers as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2WithRegistersBackbone"
