"""The Vision Transformer in TensorFlow: Keras 3 layers for embeddings and encoder, and the three models.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6; variables have the paths of its
`modeling_tf_vit`.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N + 1), D hidden, F mlp, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.position import bicubic_matrix
from vit_tf.activations import activation
from vit_tf.attention import additive_bias, choose
from vit_tf.losses import classification_loss, masked_reconstruction_loss, wide
from vit_tf.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from vit_tf.remat import rematerialized
from vit_tf.weights import Builder, TFViTPreTrainedModel, compiled


class ViTModule(Builder, layers.Layer):
    """What every layer knows, handed down by `Builder.child`; `channels_axis` is 1 or 3, where pixels have theirs."""

    def __init__(self, config: ViTConfig, channels_axis: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.channels_axis = config, channels_axis

    def build(self, input_shape: Any = None) -> None:
        """Of a layer that has variables, or others inside."""


class ViTPatchEmbeddings(ViTModule):
    """Non-overlapping patches, each projected to D."""

    def build(self, input_shape: Any = None) -> None:
        patch = pair(self.config.patch_size)
        self.projection = self.conv(self.config.num_channels, self.config.hidden_size, patch, "projection")

    def call(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values if self.channels_axis == 3 else tf.transpose(pixel_values, (0, 2, 3, 1))  # (B, H, W, C)
        x = self.projection(x)  # (B, H / ph, W / pw, D)
        _, rows, columns, width = ops.shape(x)
        return tf.reshape(x, (-1, rows * columns, width))  # (B, N, D)


class ViTEmbeddings(ViTModule):
    """CLS token and patches plus position embeddings (equation 1); masked patches give way to the mask token."""

    def __init__(self, use_mask_token: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_mask_token = use_mask_token

    def build(self, input_shape: Any = None) -> None:
        width, init = self.config.hidden_size, self.normal()
        self.cls_token = self.add_weight((1, 1, width), init, name="cls_token")
        if self.use_mask_token:
            self.mask_token = self.add_weight((1, 1, width), "zeros", name="mask_token")
        positions = (1, self.config.num_patches + 1, width)
        self.position_embeddings = self.add_weight(positions, init, name="position_embeddings", autocast=False)
        self.patch_embeddings = self.child(ViTPatchEmbeddings, "patch_embeddings")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)

    def call(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        training: bool = False,
    ) -> Tensor:
        size = self.size_of(pixel_values)
        if not interpolate_pos_encoding:
            pixel_values = checked_size(pixel_values, size, self.config)
        x = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            x = tf.where(tf.cast(bool_masked_pos, bool)[..., None], tf.cast(self.mask_token, x.dtype), x)
        cls_token = tf.repeat(tf.cast(self.cls_token, x.dtype), ops.shape(x)[0], axis=0)
        x = tf.concat([cls_token, x], axis=1)  # (B, S, D)
        positions = self.resized_positions(size) if interpolate_pos_encoding else self.position_embeddings
        return self.dropout(x + tf.cast(positions, x.dtype), training=training)

    def resized_positions(self, size: Sequence[Any]) -> Tensor:
        """The position embeddings for an image of `size`, height x width in pixels; the CLS row is untouched."""
        table, source, target = self.position_embeddings.value, self.config.grid, calls.grid(size, self.config)
        rows, columns = (
            tf.cast(
                bicubic_matrix(
                    tf.range(tf.cast(t, tf.float64), dtype=tf.float64),
                    tf.range(s, dtype=tf.float64),
                    s / tf.cast(t, tf.float64),
                    ops,
                ),
                wide(table.dtype),
            )
            for s, t in zip(source, target, strict=True)
        )
        width = table.shape[2]
        grid = rows @ tf.reshape(tf.cast(table[0, 1:], rows.dtype), (source[0], -1))
        patches = columns @ tf.reshape(grid, (-1, source[1], width))
        patches = tf.cast(tf.reshape(patches, (1, target[0] * target[1], width)), table.dtype)
        return tf.concat([table[:, :1], patches], axis=1)


class ViTSelfAttention(ViTModule):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def build(self, input_shape: Any = None) -> None:
        width, use_bias = self.config.hidden_size, self.config.qkv_bias
        self.query = self.linear(width, width, "query", use_bias)
        self.key = self.linear(width, width, "key", use_bias)
        self.value = self.linear(width, width, "value", use_bias)
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
    """The output projection of an attention (equation 8); the residual is its layer's."""

    def build(self, input_shape: Any = None) -> None:
        self.dense = self.linear(self.config.hidden_size, self.config.hidden_size, "dense")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)

    def call(self, hidden_states: Tensor, training: bool = False) -> Tensor:
        return self.dropout(self.dense(hidden_states), training=training)


class ViTAttention(ViTModule):
    """Self-attention and its output projection."""

    def build(self, input_shape: Any = None) -> None:
        self.attention = self.child(ViTSelfAttention, "attention")
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


class ViTOutput(ViTModule):
    """The second linear layer of the MLP, and the residual."""

    def build(self, input_shape: Any = None) -> None:
        self.dense = self.linear(self.config.intermediate_size, self.config.hidden_size, "dense")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)

    def call(self, hidden_states: Tensor, input_tensor: Tensor, training: bool = False) -> Tensor:
        return input_tensor + self.dropout(self.dense(hidden_states), training=training)


class ViTLayer(ViTModule):
    """One pre-norm block: attention, then the MLP (equations 2 and 3)."""

    def build(self, input_shape: Any = None) -> None:
        self.attention = self.child(ViTAttention, "attention")
        self.intermediate = self.child(ViTIntermediate, "intermediate")
        self.output_ = self.child(ViTOutput, "output")
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
        x = options.wanted(hidden_states) + attended
        return options.joined(self.output_(self.intermediate(self.layernorm_after(x)), x, training=training), probs)


class ViTEncoder(ViTModule):
    """L layers; with `checkpointing`, training recomputes each of them in the backward pass."""

    checkpointing = False

    def build(self, input_shape: Any = None) -> None:
        self.layer = [self.child(ViTLayer, f"layer_._{i}") for i in range(self.config.num_hidden_layers)]

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
            mask = head_mask[i] if head_mask is not None and head_mask.shape.rank == 2 else head_mask
            run = rematerialized(layer) if self.checkpointing and training else layer
            returned = run(x, mask, bias, options=options.of_layer(i, len(self.layer)), training=training)
            x, probs = options.parted(returned)
            if options.output_hidden_states:
                states.append(x)
            if options.output_attentions:
                attentions.append(probs)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if options.output_hidden_states else None,
            attentions=tuple(attentions) if options.output_attentions else None,
        )


class ViTPooler(ViTModule):
    """A dense layer and an activation, of the CLS token."""

    def build(self, input_shape: Any = None) -> None:
        act = activation(self.config.pooler_act)
        self.dense = self.linear(self.config.hidden_size, self.config.pooler_size, "dense", act=act)

    def call(self, hidden_states: Tensor) -> Tensor:
        return self.dense(hidden_states[:, 0])


@keras.saving.register_keras_serializable("vit_tf")
class TFViTModel(TFViTPreTrainedModel):
    """The bare Vision Transformer; returns `BaseModelOutputWithPooling`.

    `add_pooling_layer` adds a dense layer on the CLS token; `use_mask_token` adds the token that takes the place of the
    patches in `bool_masked_pos`. `seed` draws the initial weights that every framework draws from it.
    """

    architecture = "ViTModel"
    main_output_name = "last_hidden_state"

    def __init__(
        self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **options: Any
    ) -> None:
        super().__init__(config, self.parts_of(config, add_pooling_layer, use_mask_token), **options)

    def get_config(self) -> dict[str, Any]:
        parts = {"add_pooling_layer": "pooler" in self.parts, "use_mask_token": "mask_token" in self.parts}
        return {**super().get_config(), **parts}

    def build_parts(self) -> None:
        self.embeddings = self.child(ViTEmbeddings, "embeddings", use_mask_token="mask_token" in self.parts)
        self.encoder = self.child(ViTEncoder, "encoder")
        self.layernorm = self.layer_norm("layernorm")
        if "pooler" in self.parts:
            self.pooler = self.child(ViTPooler, "pooler")

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        tokens: int | None = None,
        training: bool = False,
    ) -> Any:
        """Pixels (B, C, H, W); `bool_masked_pos` (B, N), 1 where masked; `head_mask` (h,) or (L, h), 1 keeps.

        `attention_mask` is (B, S), 1 to attend, or (B, 1, S, S), added to the scores; the options left at None are the
        configuration's. `tokens` asks for the first so many tokens alone, which is faster: 1 is the CLS token, that the
        pooler reads. Raises ValueError for what does not fit, TypeError for what is no tensor of floats.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict, tokens)
        x = self.embeddings(
            pixel_values,
            bool_masked_pos,
            interpolate_pos_encoding=bool(interpolate_pos_encoding),
            training=training,
        )
        bias = additive_bias(attention_mask, x.dtype)
        encoded = self.encoder(x, head_mask, bias, options=options, training=training)
        x = self.layernorm(encoded.last_hidden_state)[:, :tokens]
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if "pooler" in self.parts else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


@keras.saving.register_keras_serializable("vit_tf")
class TFViTForImageClassification(TFViTPreTrainedModel):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `num_labels=0` the logits are that token's features.
    """

    architecture = "ViTForImageClassification"
    main_output_name = "logits"

    def build_parts(self) -> None:
        options = {"data_format": self.data_format, "dtype": self.dtype_policy, "name": "vit"}
        self.vit = TFViTModel(self.config, add_pooling_layer=False, **options)
        if self.config.num_labels:
            self.classifier = self.linear(self.config.hidden_size, self.config.num_labels, "classifier")

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """As `TFViTModel`; `labels` (B,) of classes, or (B, K) of numbers, give the loss of `config.problem_type`."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict, 1)
        trunk = self.vit(
            pixel_values,
            head_mask=head_mask,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
            tokens=options.tokens,
            training=training,
        )
        features = trunk.last_hidden_state[:, 0]
        logits = self.classifier(features) if self.config.num_labels else features
        output = ImageClassifierOutput(
            loss=classification_loss(logits, labels, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTPixelShuffle(ViTModule):
    """Channels to pixels: (B, H / ph, W / pw, C rh rw) to the model's layout of (B, C, H, W)."""

    def call(self, x: Tensor) -> Tensor:
        (rh, rw), channels = pair(self.config.encoder_stride), self.config.num_channels
        _, rows, columns, _ = ops.shape(x)
        x = tf.reshape(x, (-1, rows, columns, channels, rh, rw))
        if self.channels_axis == 1:
            return tf.reshape(tf.transpose(x, (0, 3, 1, 4, 2, 5)), (-1, channels, rows * rh, columns * rw))
        return tf.reshape(tf.transpose(x, (0, 1, 4, 2, 5, 3)), (-1, rows * rh, columns * rw, channels))


class ViTDecoder(ViTModule):
    """The 1x1 convolution of masked image modelling and the shuffle, under the names that a sequence gives them."""

    def build(self, input_shape: Any = None) -> None:
        rh, rw = pair(self.config.encoder_stride)
        self.conv_ = self.conv(self.config.hidden_size, rh * rw * self.config.num_channels, (1, 1), "0")
        self.shuffle = self.child(ViTPixelShuffle, "1")

    def call(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv_(x))


@keras.saving.register_keras_serializable("vit_tf")
class TFViTForMaskedImageModeling(TFViTPreTrainedModel):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"
    main_output_name = "reconstruction"

    def build_parts(self) -> None:
        options = {"data_format": self.data_format, "dtype": self.dtype_policy, "name": "vit"}
        self.vit = TFViTModel(self.config, add_pooling_layer=False, use_mask_token=True, **options)
        self.decoder = self.child(ViTDecoder, "decoder")

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """As `TFViTModel`; with `bool_masked_pos` (B, N) the output has the loss of the masked pixels."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        trunk = self.vit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
            training=training,
        )
        reconstruction = self.reconstruct(trunk.last_hidden_state[:, 1:], self.size_of(pixel_values))
        loss = None
        if bool_masked_pos is not None:
            args = (pixel_values, reconstruction, bool_masked_pos, self.config, self.channels_axis)
            loss = masked_reconstruction_loss(*args)
        output = MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def reconstruct(self, patches: Tensor, size: Sequence[Any]) -> Tensor:
        """Pixels, in the model's layout, of the encoded patches (B, N, D) of an image of `size`, height x width."""
        rows, columns = calls.grid(size, self.config)
        return self.decoder(tf.reshape(patches, (-1, rows, columns, patches.shape[2])))


def checked_size(pixel_values: Tensor, size: Sequence[Any], config: ViTConfig) -> Tensor:
    """The pixels, after an assertion in the graph that a size unknown while tracing is the model's."""
    expected = pair(config.image_size)
    if all(type(given) is int for given in size):
        return pixel_values
    message = tf.strings.format(calls.wrong_size("{}", "{}", config), tuple(size))
    fits = tf.reduce_all([given == wanted for given, wanted in zip(size, expected, strict=True)])
    with tf.control_dependencies([tf.debugging.Assert(fits, [message])]):
        return tf.identity(pixel_values)
