"""From pixels to tokens in PyTorch: patches, the tokens before them, position embeddings for pictures of any size.

Paper: Dosovitskiy et al. 2021, section 3.1 and equation 1; section 3.2 for positions of another grid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import MASK_TOKEN, POSITIONS, has_mask_token, has_positions
from vit_core.params import spec_of
from vit_core.position import kernel_matrix


class ViTPatchEmbeddings(nn.Module):
    """Non-overlapping patches, each projected to D."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = pair(config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)


class ViTEmbeddings(nn.Module):
    """The configuration's tokens, the CLS token first, and patches, plus position embeddings (equation 1).

    Masked patches give way to the mask token. Registers, which have no positions, come in between (Darcet et al. 2023,
    "Vision Transformers Need Registers", section 2.2).
    """

    looked = False  # whether the range of pixels has been looked at

    def __init__(self, config: ViTConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        for name in config.tokens:
            setattr(self, name, weight(config, f"embeddings.{name}"))
        self.mask_token = weight(config, MASK_TOKEN) if has_mask_token(config, use_mask_token) else None
        registers = config.num_register_tokens
        self.register_tokens = weight(config, "embeddings.register_tokens") if registers else None
        self.position_embeddings = weight(config, POSITIONS) if has_positions(config) else None
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.embeddings_dropout_prob)

    def forward(
        self,
        pixel_values: Tensor,
        bool_masked_pos: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Tensor:
        if not (torch.compiler.is_compiling() or self.looked or torch.jit.is_tracing()):
            self._look(pixel_values)
        x = self.patch_embeddings(pixel_values.to(self.patch_embeddings.projection.weight.dtype))
        if bool_masked_pos is not None:
            assert self.mask_token is not None
            x = torch.where(bool_masked_pos[..., None] != 0, self.mask_token, x)
        tokens = [getattr(self, name).expand(x.shape[0], -1, -1) for name in self.config.tokens]
        x = torch.cat([*tokens, x], dim=1)  # (B, S, D)
        if (table := self.position_embeddings) is not None:
            size, interpolate = pixel_values.shape[2:], calls.interpolates(self.config, interpolate_pos_encoding)
            x = x + (resized_positions(table, size, self.config) if interpolate else table)
        if self.register_tokens is not None:
            first = self.config.position_prefix
            x = torch.cat([x[:, :first], self.register_tokens.expand(x.shape[0], -1, -1), x[:, first:]], dim=1)
        return self.dropout(x)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, and hashed: a call changes nothing of it."""
        return {name: value for name, value in vars(self).items() if name != "looked"}

    def _look(self, pixel_values: Tensor) -> None:
        """Warn of pixels that nothing has normalised, at the first eager call: later ones wait for no device."""
        if pixel_values.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        with contextlib.suppress(RuntimeError):  # where values can't be seen, as inside of vmap
            lowest, highest = map(float, pixel_values.detach().aminmax())
            self.looked = True
            calls.check_range(lowest, highest)


def resized_positions(table: Tensor, size: Sequence[int], config: ViTConfig) -> Tensor:
    """Position embeddings (1, S, D) for an image of `size`, height x width; rows before the patches' are untouched."""
    if has_own_grid(size, config):
        return table
    source, target, first = config.grid, calls.grid(size, config), config.position_prefix
    wide = torch.promote_types(table.dtype, torch.float32)
    rows, columns = (
        kernel_matrix(
            config.position_kernel,
            torch.arange(t, dtype=torch.float64, device=table.device),
            torch.arange(s, dtype=torch.float64, device=table.device),
            t,
            torch,
        ).to(wide)
        for s, t in zip(source, target, strict=True)
    )
    grid = (rows @ table[0, first:].to(wide).reshape(source[0], -1)).reshape(-1, source[1], table.shape[2])
    patches = (columns @ grid).flatten(0, 1)[None].to(table.dtype)
    return torch.cat([table[:, :first], patches], dim=1)


def has_own_grid(size: Sequence[int], config: ViTConfig) -> bool:
    """`calls.has_own_grid`; of a size that torch.compile leaves open it is not known, and asking would fix it."""
    if not torch.compiler.is_dynamo_compiling():
        return calls.has_own_grid(size, config)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(n == own) for n, own in zip(calls.grid(size, config), config.grid, strict=True))


def weight(config: ViTConfig, name: str) -> nn.Parameter:
    """The raw array of this canonical name, of zeros until the model draws it."""
    spec = spec_of(config, name)
    return nn.Parameter(torch.zeros(spec.shape), requires_grad=not spec.row.fixed)
