"""What a processor does to 8-bit pictures of any size, stated once over the operations of whatever computes it.

Pillow's resize bit for bit: the weights of a row in float64, rounded to 22 bits after the point; the sum over the taps,
which is exact here in float64, rounded to 8 bits; one axis after the other, columns first (Pillow's Resample.c).
torchvision's is the same but for `fused` steps: fewer bits, columns always first, a nearest row of its own and a crop.
Rescaling and normalising is the look-up that the processor itself does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import PIL
from PIL.Image import Resampling

from vit_core.pictures.filters import FILTERS, box
from vit_core.pictures.images import Array
from vit_core.pictures.steps import Steps, table

# Pillow resizes columns first; from 13 on rows first where the height shrinks by more than twice what the width does.
PILLOW_ORDERS = int(PIL.__version__.partition(".")[0]) >= 13
_BITS = 22  # of a weight, after the point: Pillow's, and the most of torchvision's
_LIMIT = 2.0**15  # which no whole weight of torchvision's reaches
_POWERS = 2.0 ** np.arange(1, _BITS + 1)
_BLOCK = 16  # neighbouring rows, at most, that are made of one stretch of the picture, as one product


@dataclass(frozen=True, kw_only=True)
class PictureOperations:
    """What a framework prepares pictures with. Tensors are float64 where nothing else is said.

    A length is what the framework has for one that is known when the graph runs: whole numbers of Python's operators.
    """

    lengths: Callable[[Any], Sequence[Any]]  # of the axes of a tensor
    larger: Callable[[Any, Any], Any]  # of two lengths
    scalar: Callable[[Any], Any]  # a length as a tensor ()
    count: Callable[[Any], Any]  # 0, 1, 2 and so on, (length,)
    floor: Callable[[Any], Any]
    sin: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    total: Callable[[Any], Any]  # over the last axis, which stays, of length 1
    largest: Callable[[Any], Any]  # of all numbers, of which one is 0 or more, ()
    running: Callable[[Any], Any]  # sums (n,) of x[:1], x[:2] and so on, added one after the other
    either: Callable[..., Any]  # of two functions of tensors, by a condition (), and those tensors
    reshape: Callable[[Any, Sequence[Any]], Any]
    transpose: Callable[[Any, Sequence[int]], Any]
    take: Callable[[Any, Any], Any]  # the rows of a tensor of any type whose numbers, float64 (n,), are given
    wide: Callable[[Any], Any]  # 8 bits or float32 to float64
    narrow: Callable[[Any], Any]  # float64 to 8 bits
    single: Callable[[Any], Any]  # float64 to float32
    constant: Callable[[Array], Any]  # a tensor of the array's own type


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The steps of a processor for pictures (B, H, W, C) in 8 bits, of which it makes pixels of one size."""

    steps: Steps
    channels: int
    size: tuple[int, int]  # height and width of what is made
    values: Array = field(compare=False)  # (channels * 256,) float32: each of the levels rescaled and normalised

    @classmethod
    def of(cls, processor: Any, channels: int | None) -> Preparation:
        """Of None channels: as many as have a mean of their own, or 3.

        Raises ValueError for a processor that makes pixels of many sizes, or has a mean or a standard deviation of
        other channels, and for 2 channels or more than 3.
        """
        steps = Steps.checked(vars(processor))
        if steps.made is None:
            raise ValueError(
                "The processor makes pixels of many sizes, which no graph prepares: give it a size with height and "
                "width, or do_center_crop=True and a crop_size."
            )
        if channels is None:
            channels = len(steps.mean) if isinstance(steps.mean, tuple) else 3
        if channels not in (1, 3):
            raise ValueError(f"Pictures of 1 or 3 channels are prepared in a graph, got {channels}: ask for pixels.")
        values = table(steps.scale, steps.mean, steps.std, channels, fused=steps.fused).astype(np.float32)
        return cls(steps=steps, channels=channels, size=steps.made, values=values.reshape(-1))

    def __call__(self, operations: PictureOperations, pictures: Any) -> Any:
        """Pixels (B, C, h, w) in float32 of pictures (B, H, W, C) in 8 bits."""
        o = operations
        _, height, width, _ = o.lengths(pictures)
        rows, columns = self._target(o, height, width)
        kernels = (*self._kernel(o, height, rows, self.size[0]), *self._kernel(o, width, columns, self.size[1]))
        columns_first, rows_first = (partial(self._resized, o, axes) for axes in ((2, 1), (1, 2)))
        if not PILLOW_ORDERS or self.steps.size is None or self.steps.fused:
            return self._looked_up(o, columns_first(pictures, *kernels))
        fewer, narrower = o.scalar(height) - o.scalar(rows), o.scalar(width) - o.scalar(columns)
        tall = (fewer > 0) & (fewer > 2 * narrower)
        return self._looked_up(o, o.either(tall, rows_first, columns_first, pictures, *kernels))

    def _target(self, o: PictureOperations, height: Any, width: Any) -> tuple[Any, Any]:
        """The height and width that a picture is resized to, before the crop."""
        size = self.steps.size
        if size is None:
            return height, width
        if "height" in size:
            return size["height"], size["width"]
        short = size["shortest_edge"]
        return o.larger(short, short * height // width), o.larger(short, short * width // height)

    def _resized(self, o: PictureOperations, axes: tuple[int, int], pictures: Any, *kernels: Any) -> Any:
        """Pictures (B, H, W, C) resized and cut to (B, C, h, w) by the kernel of each, one axis before the other."""
        first, second = axes
        found = o.transpose(pictures, (second, first, 0, 3))
        for axis in axes:
            found = o.transpose(found, (1, 0, 2, 3))
            length, *others = o.lengths(found)
            found = self._rows(o, o.reshape(found, (length, -1)), *kernels[2 * axis - 2 : 2 * axis])
            found = o.reshape(found, (self.size[axis - 1], *others))
        return o.transpose(found, (2, 3, 0, 1) if second == 1 else (2, 3, 1, 0))

    def _rows(self, o: PictureOperations, pixels: Any, places: Any, weights: Any) -> Any:
        """The rows that a kernel makes of pixels (length, R), those of its blocks after each other, in 8 bits."""
        blocks, _, band = o.lengths(weights)
        found = weights @ o.wide(o.reshape(o.take(pixels, places), (blocks, band, o.lengths(pixels)[1])))
        found = o.floor(found + 0.5)
        found = o.where(found < 0, 0.0, o.where(found > 255, 255.0, found))
        return o.reshape(o.narrow(found), (-1, o.lengths(pixels)[1]))

    def _kernel(self, o: PictureOperations, length: Any, resized: Any, wanted: int) -> tuple[Any, Any]:
        """Of the `wanted` rows in the middle when rows are resized to so many, in blocks of neighbours: the rows that
        each block is made of (blocks * band,), and their rounded weights (blocks, block, band), 0 beyond a picture."""
        before = (o.scalar(resized) - wanted) / 2
        before = o.where(before < 0, -o.floor(-before), o.floor(before)) if self.steps.fused else o.floor(before)
        block = max(rows for rows in range(1, _BLOCK + 1) if wanted % rows == 0)
        places, weights = self._taps(o, length, resized, o.count(wanted) + before, block)
        one: Any = 2.0**_BITS
        if self.steps.fused:  # of all rows, those beyond the crop too
            every = self._taps(o, length, resized, o.count(resized), 1)[1] if self.steps.crop else weights
            one = self._one(o, o.largest(every))
        whole = o.where(weights < 0, -o.floor(0.5 - weights * one), o.floor(0.5 + weights * one))
        return _within(o, o.reshape(places, (-1,)), o.scalar(length)), whole / one

    def _taps(self, o: PictureOperations, length: Any, resized: Any, rows: Any, block: int) -> tuple[Any, Any]:
        """Of each block of rows (n,), those that it is made of (blocks, 1, band), and their weights in each of its rows
        (blocks, block, band)."""
        resample = self.steps.resample
        support, function = FILTERS[Resampling.BOX if resample is None else Resampling(resample)]
        end, last = o.scalar(length), o.scalar(resized)
        scale = end / (last + 0.0 * end)  # no constant, by whose reciprocal XLA would multiply, which rounds otherwise
        if function is None:
            if self.steps.fused:
                low = o.floor(o.wide(o.single(rows + 0.5) * o.single(scale)))
            else:
                steps = o.where(o.count(resized) > 0, scale, scale / 2)
                low = o.floor(o.take(o.running(steps), _within(o, rows, last)))
            high, centres, stretch = low + 1, low + 0.5, 1.0
        else:
            stretch = o.where(scale < 1, 1.0, scale)
            # A choice, lest a compiler make one operation, which rounds once, of the product and what is added to it.
            centres, reach = o.where(rows < last, (rows + 0.5) * scale, end), support / 2 * stretch
            low, high = o.floor(centres - reach + 0.5), o.floor(centres + reach + 0.5)
        low = o.where(low < 0, 0.0, low)
        high = o.where((rows < 0) | (rows >= last), 0.0, o.where(high > end, end, high))
        # Where a block begins, by whole numbers: rows are taken by it, and weights made, which compilers round apart.
        first = o.floor(((2 * rows + 1) * end - support * o.where(end < last, last, end)) / (2 * last))
        first, low, high, centres = (o.reshape(each, (-1, block, 1)) for each in (first, low, high, centres))
        band = (block - 1 + support) * length // resized + support + 3
        places = o.where(first < 0, 0.0, first)[:, :1] + o.count(band)
        weights = (function or box)(o, (places - centres + 0.5) * (1.0 / stretch))
        weights = o.where((places >= low) & (places < high), weights, 0.0)
        sums = o.total(weights)
        return places, weights / o.where(sums == 0, 1.0, sums)

    def _one(self, o: PictureOperations, largest: Any) -> Any:
        """A weight of 1 as torchvision's whole number (1,): the power of 2 that leaves the largest weight 16 bits."""
        powers = o.constant(_POWERS)
        return 1.0 + o.total(o.where(largest * powers + 0.5 < _LIMIT, powers / 2, 0.0))

    def _looked_up(self, o: PictureOperations, pixels: Any) -> Any:
        """Rescaled and normalised pixels (B, C, h, w) of 8 bits."""
        first = 256.0 * o.reshape(o.count(self.channels), (-1, 1, 1))
        places = o.reshape(o.wide(pixels) + first, (-1,))
        return o.reshape(o.take(o.constant(self.values), places), (-1, self.channels, *self.size))


def _within(o: PictureOperations, places: Any, end: Any) -> Any:
    """Numbers of rows, those beyond an end at it."""
    return o.where(places < 0, 0.0, o.where(places < end, places, end - 1))
