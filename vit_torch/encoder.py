"""The encoder in PyTorch: attention, MLP, the pre-norm block, and L of them.

Paper: Dosovitskiy et al. 2021, equations 2 and 3 and appendix A. The modules, and what they are called with, are
those of `modeling_vit` of transformers 4.57.6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_core import calls
from vit_core.config import ViTConfig
from vit_torch.activations import ViTActivation
from vit_torch.attention import additive_bias, choose
from vit_torch.layers import linear
from vit_torch.outputs import BaseModelOutput


class ViTSelfAttention(nn.Module):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads  # which pruners read and set
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.key_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> tuple[Tensor, Tensor | None]:
        x, heads = hidden_states, (self.num_attention_heads, self.attention_head_size)
        projections = (self.query, self.key, self.value)
        q, k, v = (torch.unflatten(linear(f, x), 2, heads).transpose(1, 2) for f in projections)  # (B, h, S, d)
        attend = choose(self.config.attn_implementation, options.output_attentions)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        context, probs = attend(q, k, v, bias, head_mask, dropout)
        return context.transpose(1, 2).flatten(2), probs  # (B, S, D)


class ViTSelfOutput(nn.Module):
    """The output projection of an attention (equation 8), and its scale; the residual is its layer's."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = layer_scale(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return scaled(self.dropout(linear(self.dense, hidden_states)), self.scale)


class ViTAttention(nn.Module):
    """Self-attention and its output projection."""

    attention_class: type[nn.Module] = ViTSelfAttention

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = self.attention_class(config)
        self.output = ViTSelfOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        context, probs = self.attention(*asked(hidden_states, head_mask, bias, options))
        return options.joined(self.output(wanted(context, options)), probs)


class ViTIntermediate(nn.Module):
    """The first linear layer of the MLP, and its activation."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ViTActivation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return linear(self.dense, hidden_states, self.intermediate_act_fn)


class ViTDropPath(nn.Module):
    """Leaves a branch out for a picture, in training, with probability `rate` (Huang et al. 2016, section 3).

    What stays is divided by the probability to stay.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        return x * nn.functional.dropout(x.new_ones(x.shape[0], 1, 1), self.rate)

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"rate={self.rate:.3g}"


class ViTOutput(nn.Module):
    """The second linear layer of the MLP, its scale, and the residual."""

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.scale = layer_scale(config)
        self.drop_path = ViTDropPath(drop_path)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return input_tensor + self.drop_path(scaled(self.dropout(linear(self.dense, hidden_states)), self.scale))


class ViTLayer(nn.Module):
    """One pre-norm block: attention, then the MLP (equations 2 and 3); `drop_path` is the rate of its branches."""

    def __init__(self, config: ViTConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention = ViTAttention(config)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config, drop_path)
        self.drop_path = ViTDropPath(drop_path)
        self.layernorm_before = layer_norm(config)
        self.layernorm_after = layer_norm(config)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        args = asked(self.layernorm_before(hidden_states), head_mask, bias, options)
        attended, probs = options.parted(self.attention(*args))
        x = wanted(hidden_states, options) + self.drop_path(attended)
        return options.joined(self.output(self.intermediate(self.layernorm_after(x)), x), probs)


class ViTEncoder(nn.Module):
    """L layers; with `checkpointing`, training recomputes each of them in the backward pass."""

    def __init__(self, config: ViTConfig, layer_class: type[nn.Module] = ViTLayer) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layer_class(config, rate) for rate in config.drop_path_rates)
        self.checkpointing: dict[str, Any] | None = None

    def score_bias(
        self, attention_mask: Tensor | None, dtype: torch.dtype, pixel_values: Tensor, interpolate: bool
    ) -> Any:
        """What the layers add to their scores, for a mask and pictures."""
        return additive_bias(attention_mask, dtype)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> BaseModelOutput:
        x, states, attentions = hidden_states, [hidden_states], []
        for i, layer in enumerate(self.layer):
            if i == options.depth:
                break
            mask = head_mask[i] if head_mask is not None and head_mask.dim() == 2 else head_mask
            args = asked(x, mask, bias, options.of_layer(i, len(self.layer)))
            x, probs = options.parted(computed(layer, self.checkpointing, *args))
            if options.output_hidden_states:
                states.append(x)
            if options.output_attentions:
                attentions.append(probs)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if options.output_hidden_states else None,
            attentions=tuple(attentions) if options.output_attentions else None,
        )


def asked(x: Tensor, head_mask: Any, bias: Any, options: calls.Options) -> tuple[Any, ...]:
    """What a layer or an attention is called with: what transformers' take, and more only where it is needed."""
    if options.output_attentions or options.tokens is not None:
        return x, head_mask, bias, options
    return (x, head_mask) if bias is None else (x, head_mask, bias)


def computed(layer: nn.Module, checkpointing: dict[str, Any] | None, *args: Any) -> Any:
    """What a layer returns; with the keywords of `checkpoint`, training recomputes it in the backward pass."""
    if checkpointing is None or not layer.training:
        return layer(*args)
    return checkpoint(layer, *args, **checkpointing)


def layer_norm(config: ViTConfig) -> nn.LayerNorm:
    """A LayerNorm with the configuration's epsilon."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def layer_scale(config: ViTConfig) -> nn.Parameter | None:
    """The scale of a layer's branch (Touvron et al. 2021, "CaiT", section 2), where the configuration has any."""
    return nn.Parameter(torch.full((config.hidden_size,), config.layer_scale)) if config.layer_scale else None


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    """A branch of a layer times its scale, where it has one."""
    return x if scale is None else x * scale


def wanted(x: Tensor, options: calls.Options) -> Tensor:
    """`options.wanted`, in memory of its own."""
    first = options.wanted(x)
    return x if first is x else packed(first)


def packed(view: Tensor) -> Tensor:
    """A copy without strides, which exporters and quantised kernels misread: `contiguous` is none for a batch of 1."""
    return view.clone(memory_format=torch.contiguous_format)
