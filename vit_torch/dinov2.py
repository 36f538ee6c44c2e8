"""DINOv2 in PyTorch, with registers and without: a ViT of another layer, and a head on all that it has seen.

Papers: Oquab et al. 2023, "DINOv2", section 4; Darcet et al. 2023, "Vision Transformers Need Registers", section 2.
Agrees with `modeling_dinov2` and `modeling_dinov2_with_registers` of transformers 4.57.6, whose modules it has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import DINOV2, DINOV2_WITH_REGISTERS, Dinov2Config
from vit_torch.activations import ViTActivation
from vit_torch.backbone import ViTBackbone
from vit_torch.base import ViTPreTrainedModel
from vit_torch.encoder import ViTAttention, ViTDropPath, asked, layer_norm, wanted
from vit_torch.layers import linear
from vit_torch.modeling import ViTForImageClassification, ViTModel


class Dinov2LayerScale(nn.Module):
    """A factor for each channel of a branch (CaiT, Touvron et al. 2021, section 2)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), config.layerscale_value))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.lambda1


class Dinov2MLP(nn.Module):
    """Two linear layers, and the activation between them."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ViTActivation(config.hidden_act)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.fc2, linear(self.fc1, hidden_states, self.activation))


class Dinov2SwiGLUFFN(nn.Module):
    """A gated MLP: one half of the first layer, after SiLU, times the other (Shazeer 2020, equation 6)."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.weights_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, x = linear(self.weights_in, hidden_states).chunk(2, dim=-1)
        return linear(self.weights_out, nn.functional.silu(gate) * x)


class Dinov2Layer(nn.Module):
    """One pre-norm block, whose branches are scaled."""

    def __init__(self, config: Dinov2Config, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = layer_norm(config)
        self.attention = ViTAttention(config)
        self.layer_scale1 = Dinov2LayerScale(config)
        self.drop_path = ViTDropPath(drop_path)
        self.norm2 = layer_norm(config)
        self.mlp = Dinov2SwiGLUFFN(config) if config.use_swiglu_ffn else Dinov2MLP(config)
        self.layer_scale2 = Dinov2LayerScale(config)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        attended, probs = options.parted(self.attention(*asked(self.norm1(hidden_states), head_mask, bias, options)))
        x = wanted(hidden_states, options) + self.drop_path(self.layer_scale1(attended))
        return options.joined(x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x)))), probs)


class Dinov2PreTrainedModel(ViTPreTrainedModel):
    """Base of DINOv2's models."""

    config_class = DINOV2.config
    base_model_prefix = DINOV2.trunk


class Dinov2Model(Dinov2PreTrainedModel, ViTModel):
    """The bare DINOv2; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2Model"
    layer_class = Dinov2Layer

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, False, False, seed=seed)

    def pool(self, x: Tensor) -> Tensor:
        return x[:, 0]


class Dinov2ForImageClassification(Dinov2PreTrainedModel, ViTForImageClassification):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2ForImageClassification"
    trunk_class = Dinov2Model
    tokens = None

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        patches = x[:, self.config.num_prefix_tokens :].mean(1)
        return {"logits": self.classifier(torch.cat([x[:, 0], patches], dim=1))}


class Dinov2Backbone(Dinov2PreTrainedModel, ViTBackbone):
    """The bare DINOv2 as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2Backbone"
    layer_class = Dinov2Layer


class Dinov2WithRegistersPreTrainedModel(ViTPreTrainedModel):
    """Base of the models of DINOv2 with registers."""

    config_class = DINOV2_WITH_REGISTERS.config
    base_model_prefix = DINOV2_WITH_REGISTERS.trunk


class Dinov2WithRegistersModel(Dinov2WithRegistersPreTrainedModel, Dinov2Model):
    """The bare DINOv2 with registers; returns `BaseModelOutputWithPooling`, whose pooled output is the CLS token."""

    architecture = "Dinov2WithRegistersModel"


class Dinov2WithRegistersForImageClassification(Dinov2WithRegistersPreTrainedModel, Dinov2ForImageClassification):
    """A linear classifier on the CLS token beside the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "Dinov2WithRegistersForImageClassification"
    trunk_class = Dinov2WithRegistersModel


class Dinov2WithRegistersBackbone(Dinov2WithRegistersPreTrainedModel, Dinov2Backbone):
    """The bare DINOv2 with registers as a backbone; returns `BackboneOutput`."""

    architecture = "Dinov2WithRegistersBackbone"
