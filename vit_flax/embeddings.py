"""From pixels to tokens in JAX: patches, the tokens before them, position embeddings for pictures of any size.

Paper: Dosovitskiy et al. 2021, section 3.1 and equation 1; section 3.2 for positions of another grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import MASK_TOKEN, PATCHES, POSITIONS, has_mask_token, has_positions
from vit_core.params import spec_of
from vit_core.position import kernel_matrix, resize_matrix
from vit_flax.layers import wider
from vit_flax.module import ViTModule, start


class ViTPatchProjection(ViTModule):
    """The convolution whose kernel and stride are the patch, as one matrix product."""

    @nn.compact
    def __call__(self, pixel_values: Array) -> Array:
        (ph, pw), channels, width = pair(self.config.patch_size), self.config.num_channels, self.config.hidden_size
        init = start(spec_of(self.config, f"{PATCHES}.weight"), self.config)
        kernel = self.param("kernel", init, (ph, pw, channels, width), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        x, kernel, bias = promote_dtype(pixel_values, kernel, bias, dtype=self.dtype)
        return patches(x, self.config, self.channels_axis) @ kernel.reshape(-1, width) + bias[None, None]  # (B, N, D)


class ViTPatchEmbeddings(ViTModule):
    """Non-overlapping patches, each projected to D."""

    def setup(self) -> None:
        self.projection = ViTPatchProjection(**self.common)

    def __call__(self, pixel_values: Array) -> Array:
        return self.projection(pixel_values)  # (B, N, D)


class ViTEmbeddings(ViTModule):
    """The configuration's tokens, the CLS token first, and patches, plus position embeddings (equation 1).

    Masked patches give way to the mask token. Registers, which have no positions, come in between (Darcet et al. 2023,
    "Vision Transformers Need Registers", section 2.2).
    """

    use_mask_token: bool = False

    def setup(self) -> None:
        for name in self.config.tokens:
            setattr(self, name, self.weight(f"embeddings.{name}"))
        self.mask_token = self.weight(MASK_TOKEN) if has_mask_token(self.config, self.use_mask_token) else None
        registers = self.config.num_register_tokens
        self.register_tokens = self.weight("embeddings.register_tokens") if registers else None
        self.position_embeddings = self.weight(POSITIONS) if has_positions(self.config) else None
        self.patch_embeddings = ViTPatchEmbeddings(**self.common)
        self.dropout = nn.Dropout(self.config.embeddings_dropout_prob)

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        train: bool = False,
    ) -> Array:
        x = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            assert self.mask_token is not None
            x = jnp.where(bool_masked_pos[..., None].astype(bool), self.mask_token.astype(x.dtype), x)
        tokens = [expanded(getattr(self, name), x) for name in self.config.tokens]
        x = jnp.concatenate([*tokens, x], axis=1)  # (B, S, D)
        if (table := self.position_embeddings) is not None:
            if calls.interpolates(self.config, interpolate_pos_encoding):
                table = resized_positions(table, self.size_of(pixel_values), self.config)
            x = x + table.astype(x.dtype)
        if self.register_tokens is not None:
            first = self.config.position_prefix
            x = jnp.concatenate([x[:, :first], expanded(self.register_tokens, x), x[:, first:]], axis=1)
        return self.dropout(x, deterministic=not train)


def patches(pixel_values: Array, config: ViTConfig, channels_axis: int) -> Array:
    """Pixels, in the model's layout, patch by patch, (B, N, P Q C): its rows, their columns; what is left is cut off.

    One axis is parted or joined at a time, which a mesh of explicit axes asks for.
    """
    (ph, pw), channels, batch = pair(config.patch_size), config.num_channels, pixel_values.shape[0]
    if channels_axis == 1:
        rows, columns = calls.grid(pixel_values.shape[2:], config)
        x = pixel_values[:, :, : rows * ph, : columns * pw].reshape(batch, channels, rows, ph, columns * pw)
        x = x.reshape(batch, channels, rows, ph, columns, pw).transpose(0, 2, 4, 3, 5, 1)
    else:
        rows, columns = calls.grid(pixel_values.shape[1:3], config)
        x = pixel_values[:, : rows * ph, : columns * pw].reshape(batch, rows, ph, columns * pw, channels)
        x = x.reshape(batch, rows, ph, columns, pw, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, ph, pw, channels).reshape(batch, rows * columns, ph * pw * channels)


def resized_positions(table: Array, size: Sequence[int], config: ViTConfig) -> Array:
    """Position embeddings (1, S, D) for an image of `size`, height x width; rows before the patches' are untouched."""
    if calls.has_own_grid(size, config):
        return table
    source, target, first = config.grid, calls.grid(size, config), config.position_prefix
    wide, kernel, width = wider(table.dtype), config.position_kernel, table.shape[2]
    rows, columns = (resizing(s, t, kernel, wide) for s, t in zip(source, target, strict=True))
    grid = (rows @ table[0, first:].astype(wide).reshape(source[0], -1)).reshape(target[0], source[1], width)
    resized = (columns @ grid).reshape(1, target[0] * target[1], width).astype(table.dtype)
    return jnp.concatenate([table[:, :first], resized], axis=1)


def resizing(source: int, target: Any, kernel: str, dtype: Any) -> Array:
    """`resize_matrix`, (target, source); computed by the program for a `target` that is symbolic, in `jax.export`."""
    if isinstance(target, int):
        return jnp.asarray(resize_matrix(source, target, kernel), dtype)
    rows, columns = jnp.arange(target, dtype=dtype), jnp.arange(source, dtype=dtype)
    return kernel_matrix(kernel, rows, columns, jnp.asarray(target, dtype), jnp)


def expanded(tokens: Array, x: Array) -> Array:
    """Tokens (1, n, D) for each of the pictures of `x`, (B, S, D), in its dtype, and divided among devices as it is."""
    return tokens.astype(x.dtype) + jnp.zeros_like(x[:, :1])
