"""The encoder in Keras: attention, MLP, the pre-norm block, and L of them.

Paper: Dosovitskiy et al. 2021, equations 2 and 3 and appendix A. The layers, and what they are called with, are
those of `modeling_vit` of transformers 4.57.6; variables have the paths of its `modeling_tf_vit`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.family import LAYER
from vit_tf.activations import activation
from vit_tf.attention import additive_bias, choose
from vit_tf.module import ViTModule
from vit_tf.outputs import BaseModelOutput
from vit_tf.remat import rematerialized


class ViTSelfAttention(ViTModule):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def build(self, input_shape: Any = None) -> None:
        width = self.config.hidden_size
        self.query = self.linear(width, width, "query", self.config.qkv_bias)
        self.key = self.linear(width, width, "key", self.config.key_bias)
        self.value = self.linear(width, width, "value", self.config.qkv_bias)
        self.dropout = self.dropout_layer(self.config.attention_probs_dropout_prob)

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        x, (_, tokens, width) = hidden_states, ops.shape(hidden_states)
        heads = (-1, tokens, self.config.num_attention_heads, width // self.config.num_attention_heads)
        q, k, v = (tf.reshape(f(x), heads) for f in (self.query, self.key, self.value))  # (B, S, h, d)
        q, k, v = (tf.transpose(y, (0, 2, 1, 3)) for y in (q, k, v))  # (B, h, S, d)
        attend = choose(self.config.attn_implementation, options.output_attentions)
        dropout = self.dropout if training and self.config.attention_probs_dropout_prob else None
        context, probs = attend(q, k, v, bias, head_mask, dropout)
        return tf.reshape(tf.transpose(context, (0, 2, 1, 3)), (-1, tokens, width)), probs  # (B, S, D)


class ViTSelfOutput(ViTModule):
    """The output projection of an attention (equation 8), and its scale; the residual is its layer's."""

    def build(self, input_shape: Any = None) -> None:
        self.dense = self.linear(self.config.hidden_size, self.config.hidden_size, "dense")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)
        self.scale = layer_scale(self, "attention.output.scale")

    def call(self, hidden_states: Tensor, training: bool = False) -> Tensor:
        return scaled(self.dropout(self.dense(hidden_states), training=training), self.scale)


class ViTAttention(ViTModule):
    """Self-attention and its output projection."""

    attention_class: type[ViTModule] = ViTSelfAttention

    def build(self, input_shape: Any = None) -> None:
        self.attention = self.child(self.attention_class, "attention")
        self.output_ = self.child(ViTSelfOutput, "output")

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> Any:
        context, probs = self.attention(hidden_states, head_mask, bias, options=options, training=training)
        return options.joined(self.output_(options.wanted(context), training=training), probs)


class ViTIntermediate(ViTModule):
    """The first linear layer of the MLP, and its activation."""

    def build(self, input_shape: Any = None) -> None:
        act = activation(self.config.hidden_act)
        self.dense = self.linear(self.config.hidden_size, self.config.intermediate_size, "dense", act=act)

    def call(self, hidden_states: Tensor) -> Tensor:
        return self.dense(hidden_states)


class ViTDropPath(layers.Dropout):
    """Leaves a branch out for a picture, in training, with probability `rate` (Huang et al. 2016, section 3).

    What stays is divided by the probability to stay.
    """

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(rate, noise_shape=(None, 1, 1), **kwargs)


class ViTOutput(ViTModule):
    """The second linear layer of the MLP, its scale, and the residual."""

    def __init__(self, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop_path = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path")

    def build(self, input_shape: Any = None) -> None:
        self.dense = self.linear(self.config.intermediate_size, self.config.hidden_size, "dense")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)
        self.scale = layer_scale(self, "output.scale")

    def call(self, hidden_states: Tensor, input_tensor: Tensor, training: bool = False) -> Tensor:
        x = scaled(self.dropout(self.dense(hidden_states), training=training), self.scale)
        return input_tensor + self.drop_path(x, training=training)


class ViTLayer(ViTModule):
    """One pre-norm block: attention, then the MLP (equations 2 and 3); `drop_path` is the rate of its branches."""

    def __init__(self, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.drop_path = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path")

    def build(self, input_shape: Any = None) -> None:
        self.attention = self.child(ViTAttention, "attention")
        self.intermediate = self.child(ViTIntermediate, "intermediate")
        self.output_ = self.child(ViTOutput, "output", drop_path=self.drop_path.rate)
        self.layernorm_before = self.layer_norm("layernorm_before")
        self.layernorm_after = self.layer_norm("layernorm_after")

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> Any:
        x = self.layernorm_before(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options=options, training=training))
        x = options.wanted(hidden_states) + self.drop_path(attended, training=training)
        return options.joined(self.output_(self.intermediate(self.layernorm_after(x)), x, training=training), probs)


class ViTEncoder(ViTModule):
    """L layers; with `checkpointing`, training recomputes each of them in the backward pass."""

    checkpointing = False

    def __init__(self, layer_class: type[ViTModule] = ViTLayer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.layer_class = layer_class

    def build(self, input_shape: Any = None) -> None:
        rates = enumerate(self.config.drop_path_rates)
        made = [self.child(self.layer_class, f"layer_._{i}", drop_path=rate) for i, rate in rates]
        self.numbered("layer", made)

    def score_bias(
        self, attention_mask: Tensor | None, dtype: tf.DType, pixel_values: Tensor, interpolate: bool
    ) -> Any:
        """What the layers add to their scores, for a mask and pictures."""
        return additive_bias(attention_mask, dtype)

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> BaseModelOutput:
        x, states, attentions = hidden_states, [hidden_states], []
        for i, layer in enumerate(self.layer):
            if i == options.depth:
                break
            mask = head_mask[i] if head_mask is not None and head_mask.shape.rank == 2 else head_mask
            of_layer = options.of_layer(i, len(self.layer))
            x, probs = options.parted(computed(layer, self.checkpointing, x, mask, bias, of_layer, training))
            if options.output_hidden_states:
                states.append(x)
            if options.output_attentions:
                attentions.append(probs)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if options.output_hidden_states else None,
            attentions=tuple(attentions) if options.output_attentions else None,
        )


def computed(
    layer: ViTModule,
    checkpointing: bool,
    hidden_states: Tensor,
    head_mask: Tensor | None = None,
    bias: Tensor | None = None,
    options: calls.Options = calls.DEFAULT,
    training: bool = False,
) -> Any:
    """What a layer returns; with `checkpointing`, training recomputes it in the backward pass."""
    run = rematerialized(layer) if checkpointing and training else layer
    return run(hidden_states, head_mask, bias, options=options, training=training)


def layer_scale(module: ViTModule, name: str) -> keras.Variable | None:
    """The scale of a layer's branch (Touvron et al. 2021, "CaiT", section 2), where the configuration has any."""
    return module.weight(LAYER.format(0) + name) if module.config.layer_scale else None


def scaled(x: Tensor, scale: keras.Variable | None) -> Tensor:
    """A branch of a layer times its scale, where it has one."""
    return x if scale is None else x * tf.cast(scale, x.dtype)
