"""Pictures resized as torchvision resizes them on a CPU, antialiased, bit for bit and without it.

PyTorch resizes uint8 in whole numbers (`UpSampleKernelAVXAntialias.h`, after Pillow-SIMD; the same on ARM): columns,
then rows, each rounded to 8 bits, by weights of 16 bits, as many of them after the point as the largest weight of an
axis leaves. Their sums are exact in floats, so a product of matrices computes them, in whatever order it adds. Where a
program has imported PyTorch, PyTorch itself resizes them, in a fifth of the time. On a GPU torchvision resizes floats
instead, and rounds once.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from vit_core.pictures.filters import FILTERS
from vit_core.pictures.images import Array, pixels, scratch

RESAMPLING = (Resampling.NEAREST, Resampling.LANCZOS, Resampling.BILINEAR, Resampling.BICUBIC)  # that PyTorch has
_MODES = {Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}  # of every release of PyTorch
_MOST_BITS = 22
_BLOCK = 16  # neighbouring places that are made of one stretch of the picture, as one product
_ALONE = 1 << 18  # multiplications, up to which OpenBLAS computes in the thread that asks
_STRIP = 1 << 20  # pixels that are made floats at a time


class Block(NamedTuple):
    """Neighbouring places of an axis, and the stretch that they are made of."""

    places: slice
    stretch: slice
    weights: Array  # (stretch, places), floats


class Axis(NamedTuple):
    """How an axis is resized; levels are counted from -128 to 127."""

    blocks: tuple[Block, ...]
    offset: Array | None  # (wanted,), by which a sum of levels, rounded down, becomes the nearest one


def channels(picture: Image.Image, resample: int) -> Array:
    """The channels (C, H, W) of an RGB picture as what resizes them reads them best: four for PyTorch, else three."""
    if _torch() is not None and resample in _MODES:
        return pixels(picture).transpose(2, 0, 1)
    planes = scratch("planes", (3, picture.height, picture.width), np.uint8)
    for plane, band in zip(planes, "RGB", strict=True):  # in half of the time that splitting takes
        plane[...] = np.frombuffer(picture.tobytes("raw", band), np.uint8).reshape(plane.shape)
    return planes


def resized(channels: Array, height: int, width: int, resample: int) -> Array:
    """Channels (C, H, W) resized to (C, height, width), of the same type.

    uint8 to torchvision's last bit; other types are computed in float64, and integers then rounded.
    """
    _, rows, columns = channels.shape
    if (height, width) == (rows, columns):
        return channels
    if resample == Resampling.NEAREST:
        return channels[:, _nearest(rows, height)[:, None], _nearest(columns, width)]
    mode, torch = _MODES.get(Resampling(resample)), _torch()
    if torch is not None and mode is not None and channels.dtype == np.uint8:
        try:
            return _by_torch(torch, channels, height, width, mode)
        except RuntimeError:  # where tensors hold nothing, as in FakeTensorMode
            pass
    return _by_products(channels, height, width, resample)


def _torch() -> Any:
    """PyTorch, where this program has imported it and it resizes uint8 by the instructions whose numbers these are."""
    try:
        torch: Any = sys.modules.get("torch")
        return torch if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else None
    except AttributeError:  # it has not, or not to the end
        return None


def _by_torch(torch: Any, channels: Array, height: int, width: int, mode: str) -> Array:
    if not channels.flags.writeable or min(channels.strides) < 0:  # what a tensor is not made of
        pixels = channels.transpose(1, 2, 0)
        kept = scratch("pixels", pixels.shape, np.uint8)
        kept[...] = pixels
        channels = kept.transpose(2, 0, 1)
    x = torch.from_numpy(channels)[None]
    found: Array = torch.nn.functional.interpolate(x, (height, width), mode=mode, antialias=True)[0].numpy()
    return found


def _by_products(x: Array, height: int, width: int, resample: int) -> Array:
    dtype, whole = x.dtype, x.dtype == np.uint8
    _, rows, columns = x.shape
    if width != columns:
        x = _along(2, x, _axis(columns, width, resample, whole))
    if height != rows:
        x = _along(1, x, _axis(rows, height, resample, whole))
    if whole:
        x += 128
    return (x if dtype.kind == "f" or whole else np.rint(x)).astype(dtype)


def _nearest(length: int, wanted: int) -> Array:
    """Of each wanted place, the one at its centre, by a product in float32: PyTorch's "nearest-exact".

    Enlarged 20.5 times and more, PyTorch may round otherwise where a centre is between two places.
    """
    places = (np.arange(wanted, dtype=np.float32) + 0.5) * (np.float32(length) / np.float32(wanted))
    return np.minimum(places.astype(np.int64), length - 1)


def _along(way: int, x: Array, axis: Axis) -> Array:
    """Planes (C, H, W) resized along their axis 1 or 2, in floats; uint8 as levels from -128 to 127."""
    dtype, shape = axis.blocks[0].weights.dtype, list(x.shape)
    shape[way] = axis.blocks[-1].places.stop
    found = scratch(f"found {way}", shape, dtype)
    x, made = (x, found) if way == 2 else (x.swapaxes(1, 2), found.swapaxes(1, 2))  # along the last one
    lines, step = x.shape[1], max(1, _STRIP // (x.shape[0] * x.shape[2]))
    for few in (slice(top, top + step) for top in range(0, lines, step)):
        strip = x[:, few]
        if strip.dtype != dtype:
            floats = scratch("strip", strip.shape, dtype)
            np.copyto(floats, strip, casting="same_kind")
            if strip.dtype == np.uint8:
                floats -= 128
            strip = floats
        for places, stretch, weights in axis.blocks:
            _multiply(strip[..., stretch], weights, made[:, few, places])
    if axis.offset is not None:
        made += axis.offset
        np.floor(found, out=found)
        np.clip(found, -128, 127, out=found)
    return found


def _multiply(x: Array, weights: Array, out: Array) -> None:
    """out = x @ weights, in equal parts that OpenBLAS computes in this thread, and what is left of them."""
    channels, lines, length = x.shape
    parts = -(-lines * weights.size // _ALONE)
    each = max(1, lines // parts)
    for few in (slice(0, lines // each * each), slice(lines // each * each, lines)):
        if few.start < few.stop:
            size = min(each, few.stop - few.start)
            np.matmul(
                x[:, few].reshape(channels, -1, size, length),
                weights,
                out=out[:, few].reshape(channels, -1, size, weights.shape[1]),
            )


@lru_cache(maxsize=64)
def _axis(length: int, wanted: int, resample: int, whole: bool) -> Axis:
    """An axis of this length resized to the wanted one: weights of 16 bits for whole numbers, else as they are.

    In float32 where that holds every sum of levels. One of extreme levels may lose its last bit, by weights that add up
    to a little more than 1, and is half a level away from where that shows.
    """
    first, weights = _weights(length, wanted, resample)
    dtype: Any = np.float64
    offset = None
    if whole:
        bits = 0
        while bits < _MOST_BITS and int(0.5 + weights.max() * 2 ** (bits + 1)) < 1 << 15:
            bits += 1
        weights = np.trunc(weights * 2.0**bits + np.copysign(0.5, weights)) / 2.0**bits
        dtype = np.float32 if 128 * abs(weights).sum(1).max() * 2**bits < (1 << 24) * 1.0005 else np.float64
        offset = (128 * (weights.sum(1) - 1) + 0.5).astype(dtype)
    blocks = []
    for start in range(0, wanted, _BLOCK):
        places = slice(start, min(start + _BLOCK, wanted))
        low = first[places][0]
        band = np.zeros((min(first[places][-1] + weights.shape[1], length) - low, places.stop - start), dtype)
        for column, begin, few in zip(band.T, first[places] - low, weights[places], strict=True):
            column[begin : begin + len(few)] = few[: len(column) - begin]
        blocks.append(Block(places, slice(low, low + len(band)), band))
    return Axis(tuple(blocks), offset)


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
