"""Pictures resized as torchvision resizes them on a CPU, antialiased, bit for bit and without it.

PyTorch resizes uint8 in whole numbers (`UpSampleKernelAVXAntialias.h`, after Pillow-SIMD; the same on ARM): columns,
then rows, each rounded to 8 bits, by weights of 16 bits, as many of them after the point as the largest weight of an
axis leaves. Their sums are exact in floats, so a product of matrices computes them, in whatever order it adds. On a GPU
torchvision resizes floats instead, and rounds once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL.Image import Resampling

from vit_core.pictures.filters import FILTERS
from vit_core.pictures.images import Array

RESAMPLING = (Resampling.NEAREST, Resampling.LANCZOS, Resampling.BILINEAR, Resampling.BICUBIC)  # that PyTorch has
_MOST_BITS = 22
_BLOCK = 16  # neighbouring places that are made of one stretch of the picture, as one product
_ALONE = 1 << 18  # multiplications, up to which OpenBLAS computes in the thread that asks


class Block(NamedTuple):
    """Neighbouring places of an axis, and the stretch that they are made of."""

    places: slice
    stretch: slice
    weights: Array  # (places, stretch), floats


def resized(planes: Array, height: int, width: int, resample: int) -> Array:
    """Planes (C, H, W) resized to (C, height, width), of the same type.

    uint8 to torchvision's last bit; other types are computed in float64, and integers then rounded.
    """
    dtype, whole = planes.dtype, planes.dtype == np.uint8
    channels, rows, columns = planes.shape
    if resample == Resampling.NEAREST:
        return planes[:, _nearest(rows, height)[:, None], _nearest(columns, width)]
    if width != columns:
        planes = _columns(planes.reshape(-1, columns), _blocks(columns, width, resample, whole), width, whole)
        planes = planes.reshape(channels, rows, width)
    if height != rows:
        planes = _rows(planes, _blocks(rows, height, resample, whole), height, whole)
    return (planes if dtype.kind == "f" or whole else np.rint(planes)).astype(dtype)


def _nearest(length: int, wanted: int) -> Array:
    """Of each wanted place, the one that is taken, by a product in float32."""
    places = np.arange(wanted, dtype=np.float32) * (np.float32(length) / np.float32(wanted))
    return np.minimum(places.astype(np.int64), length - 1)


def _columns(x: Array, blocks: tuple[Block, ...], width: int, whole: bool) -> Array:
    dtype = blocks[0].weights.dtype
    found = np.empty((len(x), width), dtype)
    step = max(1, _ALONE // max(weights.size for *_, weights in blocks))
    for top in range(0, len(x), step):
        few = x[top : top + step].astype(dtype)
        made = found[top : top + step]
        for places, stretch, weights in blocks:
            np.matmul(few[:, stretch], weights.T, out=made[:, places])
        if whole:
            _round(made)
    return found


def _rows(x: Array, blocks: tuple[Block, ...], height: int, whole: bool) -> Array:
    x = x.astype(blocks[0].weights.dtype, copy=False)
    found = np.empty((len(x), height, x.shape[2]), x.dtype)
    for places, stretch, weights in blocks:
        step = max(1, _ALONE // weights.size)
        for left in range(0, x.shape[2], step):
            few = slice(left, left + step)
            np.matmul(weights, x[:, stretch, few], out=found[:, places, few])
    if whole:
        _round(found)
    return found


def _round(x: Array) -> None:
    x += 0.5
    np.floor(x, out=x)
    np.clip(x, 0, 255, out=x)


@lru_cache(maxsize=64)
def _blocks(length: int, wanted: int, resample: int, whole: bool) -> tuple[Block, ...]:
    """An axis of this length resized to the wanted one: weights of 16 bits for whole numbers, else as they are.

    In float32 where that holds every sum, which is below 256 with so many bits after the point.
    """
    first, weights = _weights(length, wanted, resample)
    dtype: Any = np.float64
    if whole:
        bits = 0
        while bits < _MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 1 << 15:
            bits += 1
        weights = np.trunc(weights * 2.0**bits + np.copysign(0.5, weights)) / 2.0**bits
        dtype = np.float32 if 256 * abs(weights).sum(1).max() * 2**bits < 1 << 24 else np.float64
    blocks = []
    for start in range(0, wanted, _BLOCK):
        places = slice(start, min(start + _BLOCK, wanted))
        low = first[places][0]
        band = np.zeros((places.stop - start, min(first[places][-1] + weights.shape[1], length) - low), dtype)
        for row, (begin, few) in enumerate(zip(first[places] - low, weights[places], strict=True)):
            band[row, begin : begin + len(few)] = few[: band.shape[1] - begin]
        blocks.append(Block(places, slice(low, low + band.shape[1]), band))
    return tuple(blocks)


def _weights(length: int, wanted: int, resample: int) -> tuple[Array, Array]:
    """Of each wanted place, where its stretch begins (wanted,), and its weights (wanted, taps), 0 beyond an end."""
    support, function = FILTERS[Resampling(resample)]
    assert function is not None
    scale = length / wanted
    wide = max(scale, 1.0)
    centres, reach = scale * (np.arange(wanted) + 0.5), support / 2 * wide
    first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    last = np.minimum((centres + reach + 0.5).astype(np.int64), length)
    taps = first[:, None] + np.arange((last - first).max())
    weights = np.where(taps < last[:, None], function(np, (taps - centres[:, None] + 0.5) * (1.0 / wide)), 0.0)
    return first, weights / weights.sum(1, keepdims=True)
