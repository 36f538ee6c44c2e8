"""Pictures as they come (paths, bytes, files, PIL images, arrays and tensors of any framework) to PIL and NumPy.

No framework is imported: a tensor is known by `__array__`, which NumPy, TensorFlow and JAX have, and by torch's
`detach`. Layouts are inferred, and floats turned to bytes, as in transformers 4.57.6.
"""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vit_core.pictures.memory import Memory
from vit_core.validation import is_series

Array = NDArray[Any]

FIRST, LAST, NONE = "channels_first", "channels_last", "none"
_MOST_KEPT = 1 << 23  # bytes of an array that a thread keeps
_memory = threading.local()
_LONGEST_NAME = 1000  # characters
_ENCODED = (str, os.PathLike, bytes, bytearray, memoryview)
_MODES = {1: "L", 4: "RGBA"}  # Pillow's modes by number of channels, where that is not RGB

# The formats that are opened, and their names' endings: whatever a file is called, none of Pillow's other decoders sees
# it, of which some (EPS) run a program on what it holds.
FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),  # which not every Pillow has
}
HEIF = (".heic", ".heif")
if find_spec("pillow_heif") is not None:
    FORMATS["HEIF"] = HEIF
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def load_image(source: Any) -> Image.Image:
    """The decoded picture in a path, bytes or a binary file object, turned upright as its EXIF orientation says.

    The mode stays as stored. A PIL image is decoded and handed back as it is. Raises FileNotFoundError or
    IsADirectoryError for a path, ValueError that names the source for whatever Pillow cannot read.
    """
    name = name_of(source)
    if isinstance(source, str | os.PathLike):
        _check_is_file(os.fspath(source))
    try:
        if isinstance(source, Image.Image):
            source.load()
            return source
        encoded = isinstance(source, bytes | bytearray | memoryview)
        with Image.open(BytesIO(source) if encoded else source, formats=_formats()) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # from twice Pillow's limit
        advice = "Shrink the picture, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        raise ValueError(f"{name} is too large to decode: {error} {advice}") from error
    except PermissionError:
        raise
    except Exception as error:  # Pillow's decoders raise anything, from OSError to SyntaxError
        fits = not isinstance(error, UnidentifiedImageError)
        why = error if fits else f"it is none of {', '.join(FORMATS)}{heif_hint(name)}"
        raise ValueError(f"{name} is no picture that Pillow can read ({why}): expected a whole image file.") from error


@cache
def _formats() -> list[str]:
    if "HEIF" in FORMATS:
        import_module("pillow_heif").register_heif_opener()
    return [name for name in FORMATS if name != "AVIF" or find_spec("PIL.AvifImagePlugin")]  # of Pillow 11.3


def heif_hint(*names: str) -> str:
    """What reads HEIF, where one of the names is of such a file and nothing does."""
    missing = "HEIF" not in FORMATS and any(name.lower().endswith(HEIF) for name in names)
    return "; pip install pillow-heif reads HEIF" if missing else ""


def name_of(source: Any) -> str:
    """What an error calls an image, whatever it comes in; of a long text, which may hold it itself, the beginning."""
    if isinstance(source, str | os.PathLike):
        text = str(source)
        return text if len(text) <= _LONGEST_NAME else f"{text[:40]}... ({len(text)} characters)"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image in {len(source)} bytes"
    return str(getattr(source, "filename", "") or getattr(source, "name", "") or "the image")


def _check_is_file(path: str) -> None:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a directory: pass the path of a picture, or a list of such paths.")
    if not os.path.exists(path):
        advice = "download it and pass the file or its bytes" if "://" in path else "check the path"
        raise FileNotFoundError(f"There is no image file {name_of(path)}: {advice}.")


def load_rgb(source: Any, convert: bool | None = None) -> Image.Image:
    """`load_image`, converted to mode RGB; if `convert` is false, but not if None, ValueError for another mode."""
    return as_rgb(load_image(source), convert is None or convert)


def as_rgb(image: Image.Image, convert: bool | None) -> Image.Image:
    """The image in mode RGB, as Pillow converts it. Raises ValueError if it is in another mode and convert is false."""
    if image.mode == "RGB":
        return image
    if not convert:
        raise ValueError(
            f"{name_of(image)} has mode {image.mode!r}, expected 'RGB': set do_convert_rgb=True to convert it, "
            "or pass numpy.asarray(image) to use its channels as they are."
        )
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours; straight to RGB, Pillow warns
    return as_bytes(image, "RGB")


def as_bytes(image: Image.Image, mode: str) -> Image.Image:
    """The image in a mode of 8 bits, as Pillow converts it. Warns of values that it cuts, outside 0 to 255."""
    if image.mode.startswith(("I", "F")):
        extrema: Any = image.getextrema()
        low, high = extrema
        if low < 0 or high > 255:
            warnings.warn(
                f"{name_of(image)} has mode {image.mode!r} and values from {low:g} to {high:g}: what lies outside 0 to "
                "255 is cut off. Scale it to 0 to 255 before, for 16 bits by dividing by 257.",
                stacklevel=3,
            )
    return image.convert(mode)


def in_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image in Pillow's mode of so many channels of 8 bits, or in RGB where it has none."""
    mode = _MODES.get(channels)
    return as_rgb(image, convert=True) if mode is None else as_bytes(image, mode)


def in_channels(image: Image.Image, channels: int) -> Image.Image | Array:
    """The same as processors take it: an array (H, W, C), but of RGB the image."""
    found = in_mode(image, channels)
    return found if found.mode == "RGB" else np.atleast_3d(np.asarray(found))


def flatten(images: Any, ndim: int, convert: bool | None = None) -> list[Any]:
    """All images in `images`, in order, each a PIL image, an array of `ndim` axes, or a path or bytes still to open.

    Takes one image, an array or tensor with a batch axis more, or lists of these, nested or not. PIL images and
    file objects, these as `load_rgb` does it, are decoded here, because those are not safe to share between threads.
    Raises ValueError.
    """
    if is_series(images):
        return [image for item in images for image in flatten(item, ndim, convert)]
    if isinstance(images, _ENCODED):
        return [images]
    if isinstance(images, Image.Image):
        return [load_image(images)]
    if hasattr(images, "read"):
        return [load_rgb(images, convert)]
    array = _as_array(images)
    if array.ndim == ndim:
        return [array]
    if array.ndim == ndim + 1:
        return list(array)
    hint = ' (for a grayscale image without a channel axis, pass input_data_format="none")' * (array.ndim == 2)
    raise ValueError(
        f"Could not make a flat list of images from an array of shape {array.shape}: "
        f"expected {ndim} axes, or {ndim + 1} for a batch{hint}."
    )


def _as_array(value: Any) -> Array:
    """An array or a tensor of any framework as NumPy, without a copy where possible; bfloat16 becomes float32."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    if not hasattr(value, "__array__"):
        raise ValueError(
            f"Could not make a flat list of images from {type(value).__name__}: expected a PIL image, a path, bytes, "
            "a binary file object, a NumPy array, a torch, TensorFlow or JAX tensor, or a list of these."
        )
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind not in "buif":
        raise ValueError(f"Images of dtype {array.dtype} are not supported: pass uint8, another integer or a float.")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def infer_layout(shape: tuple[int, ...]) -> str:
    """The layout of a three-axis image: the end of length 1 or 3 is the channels. Ambiguous: warns, channels first.

    Raises ValueError if neither end is 1 or 3.
    """
    first, last = shape[0] in (1, 3), shape[-1] in (1, 3)
    if first and last:
        warnings.warn(
            f"The channel axis of an image of shape {shape} is ambiguous: the first axis is assumed. "
            "Pass input_data_format to say which it is.",
            UserWarning,
            stacklevel=3,
        )
    if not first and not last:
        raise ValueError(
            f"Unable to infer channel dimension format of an image of shape {shape}, whose first or last axis should "
            f'be 1 or 3: pass input_data_format="{FIRST}" or "{LAST}".'
        )
    return FIRST if first else LAST


def channels_last(array: Array, layout: str) -> Array:
    """A view (H, W, C) of an image in the given layout; C is 1 for (H, W)."""
    if layout == NONE:
        return array[..., None]
    return array.transpose(1, 2, 0) if layout == FIRST else array


def pixels(picture: Image.Image) -> Array:
    """The pixels (H, W, C) of a picture of 8 bits, to be read alone: of RGB Pillow's own, of which it has four, where
    it hands them out; else a copy."""
    if picture.mode == "RGB" and hasattr(picture, "__arrow_c_array__"):
        with suppress(ValueError):
            return np.asarray(Memory(picture))
    return np.atleast_3d(np.asarray(picture))


def scratch(name: str, shape: Sequence[int], dtype: Any) -> Array:
    """An array for what is made of a picture on its way, valid until this thread asks for that name again.

    A thread keeps its memory for the next picture: fresh pages can take longer than what is computed in them.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory: Array | None = getattr(_memory, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        if size <= _MOST_KEPT:
            setattr(_memory, name, memory)
    found: Array = memory[:size].view(dtype)
    return found.reshape(shape)


def is_scaled(array: Array) -> bool:
    """Whether the values look as if they had been divided by 255 before."""
    return array.dtype != np.uint8 and bool(array.min() >= 0 and array.max() <= 1)


def to_picture(array: Array) -> tuple[Image.Image, bool]:
    """An image (H, W, C) as an 8-bit picture, and whether it was in [0, 1] and has been multiplied by 255.

    Whole numbers are taken as 0..255; other floats as 0..1, cut to the next lower level. Raises ValueError for values
    outside those ranges, and for more than four channels.
    """
    if not 1 <= array.shape[-1] <= 4:
        raise ValueError(f"Only images of 1 to 4 channels can be resized, got {array.shape[-1]}: set do_resize=False.")
    array = array[..., 0] if array.shape[-1] == 1 else array
    if array.dtype == np.uint8:
        return Image.fromarray(array), False
    with np.errstate(invalid="ignore"):
        whole = np.allclose(array, array.astype(int))
    limit = 255 if whole else 1
    if not np.all((array >= 0) & (array <= limit)):
        raise ValueError(
            f"The image to be converted to a PIL image contains values outside the range [0, {limit}], got "
            f"[{array.min()}, {array.max()}] which cannot be converted to uint8. Resizing takes whole numbers in "
            "[0, 255] or floats in [0, 1]; set do_resize=False to keep other values."
        )
    array = array if whole else (array.astype(np.float64) * 255).astype(np.float32)
    return Image.fromarray(array.astype(np.uint8)), not whole


def shown(value: Any) -> str:
    """A tensor as its dtype and shape, several as their number and what they are; anything else as it is."""
    if isinstance(value, list | tuple) and value and hasattr(value[0], "shape"):
        return f"{len(value)} of {' and '.join(dict.fromkeys(map(shown, value)))}"
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return repr(value)
    dtype = getattr(value.dtype, "name", str(value.dtype)).removeprefix("torch.")
    return f"{dtype} {tuple(value.shape)}"
