"""DINOv2 in JAX, with registers and without: a ViT of another layer, and a head on all that it has seen.

Papers: Oquab et al. 2023, "DINOv2", section 4; Darcet et al. 2023, "Vision Transformers Need Registers", section 2.
Agrees with `modeling_dinov2` and `modeling_dinov2_with_registers` of transformers 4.57.6; parameters stand in the tree
of its `modeling_flax_dinov2`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.family import ATTENTION_SCALE, DINOV2, DINOV2_WITH_REGISTERS
from vit_flax.activations import activation
from vit_flax.backbone import FlaxViTBackbone, FlaxViTBackboneModule
from vit_flax.base import FlaxViTPreTrainedModel
from vit_flax.encoder import ViTAttention, ViTDropPath, scaled
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTModel,
    FlaxViTModule,
)
from vit_flax.module import ViTModule


class Dinov2LayerScale(ViTModule):
    """A factor for each channel of a branch (CaiT, Touvron et al. 2021, section 2)."""

    def setup(self) -> None:
        self.lambda1 = self.weight(ATTENTION_SCALE)  # of either branch: the MLP's has the same shape and start

    def __call__(self, hidden_states: Array) -> Array:
        return scaled(hidden_states, self.lambda1)


class Dinov2MLP(ViTModule):
    """Two linear layers, and the activation between them."""

    def setup(self) -> None:
        self.fc1 = self.linear(self.config.intermediate_size)
        self.fc2 = self.linear(self.config.hidden_size)

    def __call__(self, hidden_states: Array) -> Array:
        return self.fc2(activation(self.config.hidden_act)(self.fc1(hidden_states)))


class Dinov2SwiGLUFFN(ViTModule):
    """A gated MLP: one half of the first layer, after SiLU, times the other (Shazeer 2020, equation 6)."""

    def setup(self) -> None:
        self.weights_in = self.linear(2 * self.config.intermediate_size)
        self.weights_out = self.linear(self.config.hidden_size)

    def __call__(self, hidden_states: Array) -> Array:
        gate, x = jnp.split(self.weights_in(hidden_states), 2, axis=-1)
        return self.weights_out(nn.silu(gate) * x)


class Dinov2Layer(ViTModule):
    """One pre-norm block, whose branches are scaled; `drop_path` is their rate."""

    def setup(self) -> None:
        self.norm1 = self.layer_norm()
        self.attention = ViTAttention(**self.common)
        self.layer_scale1 = Dinov2LayerScale(**self.common)
        self.drop_path = ViTDropPath(**self.common)
        self.norm2 = self.layer_norm()
        self.mlp = Dinov2SwiGLUFFN(**self.common) if self.config.use_swiglu_ffn else Dinov2MLP(**self.common)
        self.layer_scale2 = Dinov2LayerScale(**self.common)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
        drop_path: Array | None = None,
    ) -> Any:
        x = self.norm1(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options, train))
        x = options.wanted(hidden_states) + self.drop_path(self.layer_scale1(attended), drop_path)
        return options.joined(x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))), drop_path), probs)


class FlaxDinov2Module(FlaxViTModule):
    """The bare DINOv2 as a Linen module; see `FlaxDinov2Model`."""

    layer_class = Dinov2Layer
    add_pooling_layer: ClassVar[bool] = False  # type: ignore[misc]
    use_mask_token: ClassVar[bool] = False  # type: ignore[misc]

    def pool(self, x: Array) -> Array:
        return x[:, 0]


class FlaxDinov2ForImageClassificationModule(FlaxViTForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxDinov2ForImageClassification`."""

    trunk_class = FlaxDinov2Module
    tokens = None

    def logits(self, x: Array) -> dict[str, Array]:
        patches = x[:, self.config.num_prefix_tokens :].mean(1)
        return {"logits": self.classifier(jnp.concatenate([x[:, 0], patches], axis=1))}


class FlaxDinov2BackboneModule(FlaxViTBackboneModule):
    """The backbone as a Linen module; see `FlaxDinov2Backbone`."""

    layer_class = Dinov2Layer


class FlaxDinov2WithRegistersModule(FlaxDinov2Module):
    """The bare DINOv2 with registers as a Linen module; see `FlaxDinov2WithRegistersModel`."""


class FlaxDinov2WithRegistersForImageClassificationModule(FlaxDinov2ForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxDinov2WithRegistersForImageClassification`."""

    trunk_class = FlaxDinov2WithRegistersModule


class FlaxDinov2WithRegistersBackboneModule(FlaxDinov2BackboneModule):
    """The backbone as a Linen module; see `FlaxDinov2WithRegistersBackbone`."""


class FlaxDinov2PreTrainedModel(FlaxViTPreTrainedModel):
    """Base of DINOv2's models."""

    config_class = DINOV2.config
    base_model_prefix = DINOV2.trunk


class FlaxDinov2Model(FlaxDinov2PreTrainedModel, FlaxViTModel):
    """The bare DINOv2; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2Model"
    module_class = FlaxDinov2Module


class FlaxDinov2ForImageClassification(FlaxDinov2PreTrainedModel, FlaxViTForImageClassification):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2ForImageClassification"
    module_class = FlaxDinov2ForImageClassificationModule


class FlaxDinov2Backbone(FlaxDinov2PreTrainedModel, FlaxViTBackbone):
    """The bare DINOv2 as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2Backbone"
    module_class = FlaxDinov2BackboneModule


class FlaxDinov2WithRegistersPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of the models of DINOv2 with registers."""

    config_class = DINOV2_WITH_REGISTERS.config
    base_model_prefix = DINOV2_WITH_REGISTERS.trunk


class FlaxDinov2WithRegistersModel(FlaxDinov2WithRegistersPreTrainedModel, FlaxDinov2Model):
    """The bare DINOv2 with registers; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2WithRegistersModel"
    module_class = FlaxDinov2WithRegistersModule


class FlaxDinov2WithRegistersForImageClassification(
    FlaxDinov2WithRegistersPreTrainedModel, FlaxDinov2ForImageClassification
):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2WithRegistersForImageClassification"
    module_class = FlaxDinov2WithRegistersForImageClassificationModule


class FlaxDinov2WithRegistersBackbone(FlaxDinov2WithRegistersPreTrainedModel, FlaxDinov2Backbone):
    """The bare DINOv2 with registers as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2WithRegistersBackbone"
    module_class = FlaxDinov2WithRegistersBackboneModule
