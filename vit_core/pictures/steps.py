"""What is done to one image: RGB, resize, centre crop, rescale, normalise, layout.

Agrees bit for bit with the image processors of transformers 4.57.6. With the slow ones: the resize is Pillow's on 8
bits (antialiased), the product of rescaling is taken in float64 and rounded to float32, normalising is float32. With
the fast ones, and those of version 5: the resize is torchvision's, rescaling and normalising are one step in float32.
An 8-bit value has but 256 results a channel, so rescaling and normalising a picture is one look-up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from numbers import Integral, Real
from typing import Any, TypeGuard

import numpy as np
from PIL import Image

from vit_core.pictures import torchvision
from vit_core.pictures.images import FIRST, LAST, NONE, Array, as_rgb, channels_last, pixels, scratch, to_picture
from vit_core.validation import is_series

FLAGS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")

BACKENDS = ("pil", "torchvision")  # whose numbers are made

_MOST_PIXELS = 1 << 24  # of what an image becomes: 200 MB of float32

PerChannel = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Steps:
    """What is done to every image of a call, checked; a step that is off is None."""

    size: dict[str, int] | None
    resample: int | None
    crop: tuple[int, int] | None
    scale: float | None
    mean: PerChannel
    std: PerChannel
    convert_rgb: bool | None
    backend: str

    @classmethod
    def checked(cls, options: Mapping[str, Any]) -> Steps:
        """Raises ValueError that names the argument which is missing or wrong."""
        for flag in FLAGS:
            if options[flag] not in (True, False, None):
                raise ValueError(f"{flag} must be True or False, got {options[flag]!r}.")

        def value(flag: str, name: str) -> Any:
            if options[flag] and options[name] is None:
                raise ValueError(f"`{name}` must be specified if `{flag}` is `True`: pass {name}, or {flag}=False.")
            return options[name] if options[flag] else None

        crop = size_dict("crop_size", value("do_center_crop", "crop_size"))
        if crop and "height" not in crop:
            raise ValueError(f"crop_size must be an int, (height, width) or a dict of these, got {crop}.")
        backend, resample = options["backend"], _resample(value("do_resize", "resample"))
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}.")
        if backend == "torchvision" and resample not in (None, *torchvision.RESAMPLING):
            known = ", ".join(f"{filter.value} {filter.name.lower()}" for filter in torchvision.RESAMPLING)
            raise ValueError(f"resample must be one of {known} with backend='torchvision', got {resample}.")
        scale = value("do_rescale", "rescale_factor")
        scale = None if scale is None else _number("rescale_factor", scale)
        mean, std = (_per_channel(name, value("do_normalize", name)) for name in ("image_mean", "image_std"))
        if std is not None and not np.all(np.array(std, np.float32)):
            raise ValueError(f"image_std must not be zero in float32, got {options['image_std']}.")
        if not _stays_finite(scale, mean, std, backend == "torchvision"):
            given = ", ".join(f"{name}={options[name]!r}" for name in ("rescale_factor", "image_mean", "image_std"))
            raise ValueError(f"Values of 0 to 255 must become numbers that float32 holds, but do not with {given}.")
        return cls(
            size=size_dict("size", value("do_resize", "size")),
            resample=resample,
            crop=(crop["height"], crop["width"]) if crop else None,
            scale=scale,
            mean=mean,
            std=std,
            convert_rgb=options["do_convert_rgb"],
            backend=backend,
        )

    @property
    def fused(self) -> bool:
        """Whether rescaling and normalising are one step."""
        return self.backend == "torchvision"

    @property
    def made(self) -> tuple[int, int] | None:
        """Height and width of the pixels, None where they follow the picture's."""
        if self.crop is None and self.size is not None and "height" in self.size:
            return self.size["height"], self.size["width"]
        return self.crop

    def apply(self, image: Image.Image | Array, layout: str, data_format: str | None, out: Array | None) -> Array:
        """One image preprocessed, in `out` if that has its shape and dtype, else in a new array."""
        pixels, was_unit = self._resized(image, layout)  # (H, W, C), 8 bits if from Pillow
        if self.crop:
            pixels = _center_crop(pixels, *self.crop, outwards=not self.fused)
        if self.fused and pixels.shape[2] == 1 and isinstance(self.mean, tuple):  # a mean for each of what it becomes
            pixels = np.broadcast_to(pixels, (*pixels.shape[:2], len(self.mean)))
        height, width, channels = pixels.shape
        layout = data_format or (LAST if isinstance(image, Image.Image) else layout)
        shape = pixels.shape if layout == LAST else (channels, height, width)
        if pixels.dtype == np.uint8:
            values = table(self.scale, self.mean, self.std, channels, was_unit, self.fused)
            out = out if _fits(out, shape, values.dtype) else np.empty(shape, values.dtype)
            _look_up(values, pixels, out.transpose(2, 0, 1) if layout == LAST else out)
        else:
            pixels = (_fused if self.fused else _arithmetic)(pixels, self.scale, self.mean, self.std)
            out = out if _fits(out, shape, pixels.dtype) else np.empty(shape, pixels.dtype)
            out[...] = pixels if layout == LAST else pixels.transpose(2, 0, 1)
        return out[0] if layout == NONE else out

    def _resized(self, image: Image.Image | Array, layout: str) -> tuple[Array, bool]:
        """The pixels (H, W, C), and whether they were in [0, 1] and have been multiplied by 255 for Pillow."""
        size = image.size if isinstance(image, Image.Image) else image.shape
        if 0 in size:
            raise ValueError(f"An image of size {size} has no pixels.")
        was_unit = False
        if isinstance(image, Image.Image):
            picture = as_rgb(image, self.convert_rgb)
        elif self.size is None:
            return channels_last(image, layout), False
        elif self.backend == "torchvision":
            return self._resized_by_torchvision(channels_last(image, layout).transpose(2, 0, 1)), False
        else:
            picture, was_unit = to_picture(channels_last(image, layout))
        if self.size is None or self.resample is None:
            found = pixels(picture)
        elif self.backend == "torchvision":
            found = self._resized_by_torchvision(torchvision.channels(picture, self.resample))
        else:
            found = pixels(picture.resize(_target(self.size, *picture.size), self.resample))
        return found[..., : len(picture.getbands())], was_unit

    def _resized_by_torchvision(self, channels: Array) -> Array:
        assert self.size is not None and self.resample is not None
        width, height = _target(self.size, channels.shape[2], channels.shape[1])
        return torchvision.resized(channels, height, width, self.resample).transpose(1, 2, 0)

    def room(self, images: int, data_format: str | None) -> Array | None:
        """A buffer for so many RGB images, if their size is known beforehand."""
        if self.made is None or data_format is None:
            return None
        shape = (3, *self.made) if data_format == FIRST else (*self.made, 3)
        return np.empty((images, *shape), np.uint8 if self.scale is None and self.mean is None else np.float32)


def _fits(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> TypeGuard[Array]:
    return out is not None and out.shape == shape and out.dtype == dtype


def _arithmetic(pixels: Array, scale: float | None, mean: PerChannel, std: PerChannel) -> Array:
    """(pixels * scale - mean) / std, channels last: the product in float64, the rest in float32 or the given float."""
    if scale is not None:
        pixels = (pixels.astype(np.float64) * scale).astype(np.float32)
    if mean is not None and std is not None:
        dtype = pixels.dtype if pixels.dtype.kind == "f" else np.dtype(np.float32)
        channels = pixels.shape[-1]
        means, stds = _spread("mean", mean, channels, dtype), _spread("std", std, channels, dtype)
        pixels = (pixels.astype(dtype) - means) / stds
    return pixels


def _fused(pixels: Array, scale: float | None, mean: PerChannel, std: PerChannel) -> Array:
    """The same in one step, in float32: (pixels - mean / scale) / (std / scale)."""
    if mean is not None and std is not None:
        channels, factor = pixels.shape[-1], np.float32(1 if scale is None else np.divide(1, scale))
        means, stds = (_spread(*each, channels, np.dtype(np.float32)) for each in (("mean", mean), ("std", std)))
        return (pixels.astype(np.float32) - means * factor) / (stds * factor)
    if scale is not None:
        dtype = pixels.dtype if pixels.dtype.kind == "f" else np.dtype(np.float32)
        pixels = pixels.astype(dtype) * dtype.type(scale)
    return pixels


@lru_cache(maxsize=64)
def _stays_finite(scale: float | None, mean: PerChannel, std: PerChannel, fused: bool) -> bool:
    """Whether all that 8-bit values become is finite: that of their ends, with the ends of the statistics."""
    values = np.array([[0], [255]], np.uint8)
    given = [np.ravel([] if each is None else each) for each in (mean, () if std is None else np.abs(std))]
    ends = [(float(each.min()), float(each.max())) if len(each) else (None,) for each in given]
    with np.errstate(all="ignore"):
        found = [(_fused if fused else _arithmetic)(values, scale, *each) for each in product(*ends)]
    return bool(np.isfinite(found).all())


@lru_cache(maxsize=64)
def table(
    scale: float | None,
    mean: PerChannel,
    std: PerChannel,
    channels: int,
    was_unit: bool = False,
    fused: bool = False,
) -> Array:
    """The result of every 8-bit value, (C, 256)."""
    values: Array = np.repeat(np.arange(256, dtype=np.uint8)[:, None], channels, axis=1)
    if was_unit:
        values = _arithmetic(values, 1 / 255, None, None)
    return np.ascontiguousarray((_fused if fused else _arithmetic)(values, scale, mean, std).T)


def _look_up(table: Array, pixels: Array, out: Array) -> None:
    """out[c, y, x] = table[c, pixels[y, x, c]], some rows at a time, whose 8-byte indices stay in the cache."""
    rows = max(1, 65_536 // pixels.shape[1])
    for top in range(0, pixels.shape[0], rows):
        block = slice(top, top + rows)
        index = scratch("index", pixels[block].shape[:2], np.intp)
        for channel, plane in enumerate(out):  # "wrap" skips the check of the indices, which fit
            np.copyto(index, pixels[block, :, channel])
            np.take(table[channel], index, out=plane[block], mode="wrap")


def _spread(name: str, values: PerChannel, channels: int, dtype: np.dtype[Any]) -> Array:
    """One value a channel. Raises ValueError if there is another number of them."""
    if isinstance(values, tuple) and len(values) != channels:
        raise ValueError(
            f"{name} must have {channels} elements if it is an iterable, got {len(values)}: "
            f"pass image_{name} as one number, or one for each channel of the image."
        )
    return np.broadcast_to(np.array(values, dtype), channels)


def _target(size: Mapping[str, int], width: int, height: int) -> tuple[int, int]:
    """(width, height) to resize to; the longer edge follows the shorter one, rounded down."""
    if "height" in size:
        return size["width"], size["height"]
    short, long = size["shortest_edge"], size["shortest_edge"] * max(width, height) // min(width, height)
    if short * long > _MOST_PIXELS:
        raise ValueError(
            f"A picture of {width} x {height} pixels whose shortest edge becomes {short} has {short * long} pixels "
            f"then, more than {_MOST_PIXELS}: cut it, or give size a height and a width."
        )
    return (short, long) if width <= height else (long, short)


def _center_crop(pixels: Array, height: int, width: int, outwards: bool) -> Array:
    """The middle of an image (H, W, C), with a border of zeros where it is too small: of an odd one, more before it
    if `outwards`, else less."""
    round_ = math.floor if outwards else int
    top, left = round_((pixels.shape[0] - height) / 2), round_((pixels.shape[1] - width) / 2)
    inside = pixels[max(top, 0) : top + height, max(left, 0) : left + width]
    if inside.shape[:2] == (height, width):
        return inside
    framed = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    top, left = max(-top, 0), max(-left, 0)
    framed[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return framed


def size_dict(name: str, value: Any) -> dict[str, int] | None:
    """An int, (height, width) or a dict, as a dict of height and width, or of shortest_edge."""
    if value is None:
        return None
    size = value
    if isinstance(value, Integral):
        size = {"height": value, "width": value}
    elif is_series(value) and len(value) == 2:
        size = {"height": value[0], "width": value[1]}
    size = {key: edge for key, edge in size.items() if edge is not None} if isinstance(size, Mapping) else {}
    whole = all(isinstance(edge, Integral) and not isinstance(edge, bool) and int(edge) > 0 for edge in size.values())
    if set(size) not in ({"height", "width"}, {"shortest_edge"}) or not whole:
        raise ValueError(
            f"{name} must be a positive int, (height, width), or a dict with height and width or with shortest_edge, "
            f"got {value!r}."
        )
    if math.prod(size.values()) ** (2 // len(size)) > _MOST_PIXELS:
        raise ValueError(f"{name} must be at most {_MOST_PIXELS} pixels, 4096 x 4096, got {value!r}.")
    return {key: int(edge) for key, edge in size.items()}


def _resample(value: Any) -> int | None:
    if value is not None and (not isinstance(value, Integral) or value not in set(Image.Resampling)):
        known = ", ".join(f"{filter.value} {filter.name.lower()}" for filter in sorted(Image.Resampling))
        raise ValueError(f"resample must be a PIL.Image.Resampling or its number ({known}), got {value!r}.")
    return None if value is None else int(value)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}.")
    return float(value)


def _per_channel(name: str, value: Any) -> PerChannel:
    if value is None:
        return None
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(_number(name, each) for each in value) if is_series(value) else _number(name, value)
