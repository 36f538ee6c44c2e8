"""The encoder in JAX: attention, MLP, the pre-norm block, and L of them.

Paper: Dosovitskiy et al. 2021, equations 2 and 3 and appendix A. The modules, and what they are called with, are
those of `modeling_vit` of transformers 4.57.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.family import ATTENTION_SCALE, MLP_SCALE
from vit_flax.activations import activation
from vit_flax.attention import additive_bias, choose
from vit_flax.layers import spread, wider
from vit_flax.module import ViTModule
from vit_flax.outputs import BaseModelOutput

OfLayers = tuple[Array | None, Array | None]  # head masks (L, h) and rates of drop path (L,), or a layer's own


class ViTSelfAttention(ViTModule):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def setup(self) -> None:
        self.query = self.linear(self.config.hidden_size, self.config.qkv_bias)
        self.key = self.linear(self.config.hidden_size, self.config.key_bias)
        self.value = self.linear(self.config.hidden_size, self.config.qkv_bias)
        self.dropout = nn.Dropout(self.config.attention_probs_dropout_prob)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> tuple[Array, Array | None]:
        return self.attended(hidden_states, head_mask, bias, options, train)

    @nn.nowrap  # no call of its own: of a member's attention, interceptors and captures see one
    def attended(
        self, hidden_states: Array, head_mask: Array | None, bias: Array | None, options: calls.Options, train: bool
    ) -> tuple[Array, Array | None]:
        """The context (B, S, D), with the probabilities (B, h, S, S) where they are asked for."""
        x, (batch, tokens, width) = hidden_states, hidden_states.shape
        heads = (batch, tokens, self.config.num_attention_heads, width // self.config.num_attention_heads)
        q, k, v = (f(x).reshape(heads).swapaxes(1, 2) for f in (self.query, self.key, self.value))  # (B, h, S, d)
        attend = choose(self.config.attn_implementation, options.output_attentions)
        dropout = partial(self.dropout, deterministic=False) if train and self.dropout.rate else None
        context, probs = attend(q, k, v, bias, head_mask, dropout)
        return context.swapaxes(1, 2).reshape(x.shape), probs  # (B, S, D)


class ViTSelfOutput(ViTModule):
    """The output projection of an attention (equation 8), and its scale; the residual is its layer's."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.scale = layer_scale(self, ATTENTION_SCALE)

    def __call__(self, hidden_states: Array, train: bool = False) -> Array:
        return scaled(self.dropout(self.dense(hidden_states), deterministic=not train), self.scale)


class ViTAttention(ViTModule):
    """Self-attention and its output projection."""

    attention_class: ClassVar[type[nn.Module]] = ViTSelfAttention

    def setup(self) -> None:
        self.attention = self.attention_class(**self.common)
        self.output = ViTSelfOutput(**self.common)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> Any:
        context, probs = self.attention(hidden_states, head_mask, bias, options, train)
        return options.joined(self.output(options.wanted(context), train), probs)


class ViTIntermediate(ViTModule):
    """The first linear layer of the MLP, and its activation."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.intermediate_size)

    def __call__(self, hidden_states: Array) -> Array:
        return activation(self.config.hidden_act)(self.dense(hidden_states))


class ViTDropPath(ViTModule):
    """Leaves a branch out for a picture, with probability `rate` (Huang et al. 2016, section 3).

    What stays is divided by the probability to stay. A rate of None leaves out nothing.
    """

    def __call__(self, x: Array, rate: Array | None) -> Array:
        if rate is None:
            return x
        stays = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (x.shape[0], 1, 1))
        return x * (stays.astype(rate.dtype) / (1 - rate)).astype(x.dtype)


class ViTOutput(ViTModule):
    """The second linear layer of the MLP, its scale, and the residual."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)
        self.scale = layer_scale(self, MLP_SCALE)
        self.drop_path = ViTDropPath(**self.common)

    def __call__(
        self, hidden_states: Array, input_tensor: Array, train: bool = False, drop_path: Array | None = None
    ) -> Array:
        x = scaled(self.dropout(self.dense(hidden_states), deterministic=not train), self.scale)
        return input_tensor + self.drop_path(x, drop_path)


class ViTLayer(ViTModule):
    """One pre-norm block: attention, then the MLP (equations 2 and 3); `drop_path` is the rate of its branches."""

    def setup(self) -> None:
        self.attention = ViTAttention(**self.common)
        self.intermediate = ViTIntermediate(**self.common)
        self.output = ViTOutput(**self.common)
        self.drop_path = ViTDropPath(**self.common)
        self.layernorm_before = self.layer_norm()
        self.layernorm_after = self.layer_norm()

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
        drop_path: Array | None = None,
    ) -> Any:
        x = self.layernorm_before(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options, train))
        x = options.wanted(hidden_states) + self.drop_path(attended, drop_path)
        return options.joined(self.output(self.intermediate(self.layernorm_after(x)), x, train, drop_path), probs)


class ViTLayers(ViTModule):
    """L layers in a row, named by their numbers."""

    block: type[nn.Module] = ViTLayer

    def setup(self) -> None:
        self.layers = [self.block(**self.common, name=str(i)) for i in range(self.config.num_hidden_layers)]

    def __call__(
        self, x: Array, of_layers: OfLayers, bias: Array | None, options: calls.Options, train: bool
    ) -> tuple[Array, tuple[Any, Any]]:
        states, attentions = [], []
        for i, layer in enumerate(self.layers[: options.depth]):
            mask, rate = (each if each is None else each[i] for each in of_layers)
            x, probs = options.parted(layer(x, mask, bias, options.of_layer(i, len(self.layers)), train, rate))
            states.append(x)
            attentions.append(probs)
        return x, (states, attentions)


class ViTEncoder(ViTModule):
    """L layers, rematerialised or scanned over where the module says so."""

    layer_class: type[nn.Module] = ViTLayer

    def setup(self) -> None:
        self.layer = layers_of(self.layer_class, **self.common)

    def score_bias(self, attention_mask: Array | None, dtype: Any, size: Sequence[int], interpolate: bool) -> Any:
        """What the layers add to their scores, for a mask and pictures of a `size`, height x width."""
        return additive_bias(attention_mask, dtype)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> BaseModelOutput:
        if head_mask is not None:
            head_mask = jnp.broadcast_to(head_mask, (self.config.num_hidden_layers, self.config.num_attention_heads))
        if self.is_initializing():  # which makes all layers
            options = replace(options, depth=None)
        rates = None
        if train and any(self.config.drop_path_rates):
            rates = jnp.asarray(self.config.drop_path_rates, wider(self.dtype))
        x, (states, probs) = computed(self.layer, hidden_states, (head_mask, rates), bias, options, train)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(hidden_states, *states) if options.output_hidden_states else None,
            attentions=tuple(probs) if options.output_attentions else None,
        )


def layers_of(block: type[nn.Module], **common: Any) -> nn.Module:
    """L layers, rematerialised where the module they are for is; one that is scanned over where it says so."""
    if common["remat"]:
        block = nn.remat(block, prevent_cse=not common["scan_layers"], static_argnums=(4, 5))
    return block(**common) if common["scan_layers"] else ViTLayers(**common, block=block)


def computed(
    layers: Any,
    x: Array,
    of_layers: OfLayers = (None, None),
    bias: Array | None = None,
    options: calls.Options = calls.DEFAULT,
    train: bool = False,
) -> tuple[Array, tuple[Any, Any]]:
    """The tokens (B, S, D) after all layers, and the states and attentions of each."""
    run = partial(scanned, layers) if layers.scan_layers else layers
    return run(x, of_layers, bias, options, train)


def scanned(
    layer: Any, x: Array, of_layers: OfLayers, bias: Array | None, options: calls.Options, train: bool
) -> tuple[Array, tuple[Any, Any]]:
    """As `ViTLayers`, by one layer whose parameters are stacked; the options ask it for all tokens."""
    depth = options.depth

    def step(layer: Any, x: Array, of_layer: OfLayers) -> tuple[Array, tuple[Array, Array | None]]:
        mask, rate = of_layer
        x, probs = options.parted(layer(x, mask, bias, options, train, rate))
        return x, (x, probs)

    def first(stacked: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[:depth], stacked)

    scan: Any = nn.scan(
        step,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=layer.config.num_hidden_layers if depth is None else depth,
        check_constancy_invariants=False,  # there are none to check: it would trace the layer a second time
    )
    scan = scan if depth is None else nn.map_variables(scan, "params", first)
    return scan(layer, x, first(of_layers))


def layer_scale(module: ViTModule, name: str) -> Array | None:
    """The scale of a layer's branch (Touvron et al. 2021, "CaiT", section 2), where the configuration has any."""
    return module.weight(name) if module.config.layer_scale else None


def scaled(x: Array, scale: Array | None) -> Array:
    """A branch of a layer times its scale, where it has one."""
    return x if scale is None else x * spread(scale.astype(x.dtype), x)
