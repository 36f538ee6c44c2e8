"""From pixels to tokens in Keras: patches, the tokens before them, position embeddings for pictures of any size.

Paper: Dosovitskiy et al. 2021, section 3.1 and equation 1; section 3.2 for positions of another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from keras import ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import MASK_TOKEN, PATCHES, POSITIONS, has_mask_token, has_positions
from vit_core.params import spec_of
from vit_core.position import kernel_matrix
from vit_tf.losses import wide
from vit_tf.module import ViTModule, drawn


class ViTPatchEmbeddings(ViTModule):
    """Non-overlapping patches, each projected to D."""

    def build(self, input_shape: Any = None) -> None:
        patch = pair(self.config.patch_size)
        init = drawn(spec_of(self.config, f"{PATCHES}.weight"), self.config)
        self.projection = self.conv(self.config.num_channels, self.config.hidden_size, patch, "projection", init)

    def call(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values if self.channels_axis == 3 else tf.transpose(pixel_values, (0, 2, 3, 1))  # (B, H, W, C)
        x = self.projection(x)  # (B, H / ph, W / pw, D)
        _, rows, columns, width = ops.shape(x)
        return tf.reshape(x, (-1, rows * columns, width))  # (B, N, D)


class ViTEmbeddings(ViTModule):
    """The configuration's tokens, the CLS token first, and patches, plus position embeddings (equation 1).

    Masked patches give way to the mask token. Registers, which have no positions, come in between (Darcet et al. 2023,
    "Vision Transformers Need Registers", section 2.2).
    """

    def __init__(self, use_mask_token: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.use_mask_token = use_mask_token

    def build(self, input_shape: Any = None) -> None:
        for name in self.config.tokens:
            setattr(self, name, self.weight(f"embeddings.{name}"))
        self.mask_token = self.weight(MASK_TOKEN) if has_mask_token(self.config, self.use_mask_token) else None
        registers = self.config.num_register_tokens
        self.register_tokens = self.weight("embeddings.register_tokens") if registers else None
        self.position_embeddings = self.weight(POSITIONS, autocast=False) if has_positions(self.config) else None
        self.patch_embeddings = self.child(ViTPatchEmbeddings, "patch_embeddings")
        self.dropout = self.dropout_layer(self.config.embeddings_dropout_prob)

    def call(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        training: bool = False,
    ) -> Tensor:
        size, interpolate = self.size_of(pixel_values), calls.interpolates(self.config, interpolate_pos_encoding)
        if not interpolate:
            pixel_values = checked_size(pixel_values, size, self.config)
        x = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            x = tf.where(tf.cast(bool_masked_pos, bool)[..., None], tf.cast(self.mask_token, x.dtype), x)
        batch = ops.shape(x)[0]
        tokens = [repeated(getattr(self, name), batch, x.dtype) for name in self.config.tokens]
        x = tf.concat([*tokens, x], axis=1)  # (B, S, D)
        if self.position_embeddings is not None:
            table = self.position_embeddings.value
            x = x + tf.cast(resized_positions(table, size, self.config) if interpolate else table, x.dtype)
        if self.register_tokens is not None:
            first = self.config.position_prefix
            x = tf.concat([x[:, :first], repeated(self.register_tokens, batch, x.dtype), x[:, first:]], axis=1)
        return self.dropout(x, training=training)


def resized_positions(table: Tensor, size: Sequence[Any], config: ViTConfig) -> Tensor:
    """Position embeddings (1, S, D) for an image of `size`, height x width; rows before the patches' are untouched."""
    if calls.has_own_grid(size, config):
        return table
    source, target, first = config.grid, calls.grid(size, config), config.position_prefix
    width = table.shape[2]
    rows, columns = (
        tf.cast(
            kernel_matrix(
                config.position_kernel,
                tf.range(tf.cast(t, tf.float64), dtype=tf.float64),
                tf.range(s, dtype=tf.float64),
                tf.cast(t, tf.float64),
                ops,
            ),
            wide(table.dtype),
        )
        for s, t in zip(source, target, strict=True)
    )
    grid = rows @ tf.reshape(tf.cast(table[0, first:], rows.dtype), (source[0], -1))
    patches = columns @ tf.reshape(grid, (-1, source[1], width))
    patches = tf.cast(tf.reshape(patches, (1, target[0] * target[1], width)), table.dtype)
    return tf.concat([table[:, :first], patches], axis=1)


def repeated(tokens: Tensor, batch: Any, dtype: tf.DType) -> Tensor:
    """Tokens (1, n, D) for every picture of a batch, (B, n, D)."""
    return tf.repeat(tf.cast(tokens, dtype), batch, axis=0)


def checked_size(pixel_values: Tensor, size: Sequence[Any], config: ViTConfig) -> Tensor:
    """The pixels, after an assertion in the graph that a size unknown while tracing is the model's."""
    expected = pair(config.image_size)
    if all(type(given) is int for given in size):
        return pixel_values
    message = tf.strings.format(calls.wrong_size("{}", "{}", config), tuple(size))
    fits = tf.reduce_all([given == wanted for given, wanted in zip(size, expected, strict=True)])
    with tf.control_dependencies([tf.debugging.Assert(fits, [message])]):
        return tf.identity(pixel_values)
