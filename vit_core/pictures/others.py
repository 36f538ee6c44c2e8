"""How timm and keras-hub say that pictures are prepared, in the terms of a preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_core.config import pair
from vit_core.files.documents import Document, read_json_object
from vit_core.files.names import CONFIG_NAME, PRESET_CONVERTER

SMALLEST = 1e-30  # scale of pixel values, which has an inverse in float32
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}  # PIL's numbers
_LARGEST = 4096  # pixels of an edge that is cropped
_NEUTRAL = {"scale": 1.0, "offset": 0.0, "norm_mean": 0.0, "norm_std": 1.0}


def stated_by_others(fetch: Callable[[str], Path]) -> dict[str, Any] | None:
    """What the documents of a folder of timm or keras-hub say; None where there are none, or they do not say.

    `fetch` gives the path of a file by its name, or raises FileNotFoundError. Raises ValueError for a document that
    can't be right.
    """
    try:
        config = read_json_object(fetch(CONFIG_NAME))
        if "architecture" in config:
            return of_timm(config)[0]
        if "registered_name" not in config:  # which Keras gives its objects
            return None
        converter = read_json_object(fetch(PRESET_CONVERTER)).object("config")
    except FileNotFoundError:
        return None
    shape = config.object("config").lengths("image_shape", [3])
    size, channels = (shape[:2], shape[2]) if isinstance(shape, list) else (None, 3)
    return of_keras_hub(converter, size, channels)


def preprocessor(
    image_size: int | list[int] | None,
    mean: float | list[float] | None,
    std: float | list[float] | None,
    interpolation: str,
    resized: dict[str, int] | None = None,
) -> dict[str, Any] | None:
    """What preprocessor_config.json says of pictures resized to `image_size` (int or (height, width), pixels).

    They are resized whole, or to the size `resized`, of which the middle is taken.
    """
    if image_size is None or mean is None or std is None:
        return None
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    size = {"height": height, "width": width}
    crop = {"do_center_crop": True, "crop_size": size} if resized else {}
    return {
        "image_processor_type": _cropping(resized) if resized else "ViTImageProcessor",
        "do_resize": True,
        "size": resized or size,
        "resample": RESAMPLE.get(interpolation, RESAMPLE["bicubic"]),
        **crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }


def _cropping(resized: dict[str, int]) -> str:
    """The class of transformers that crops what is resized so: Bit's alone keeps the ratio."""
    return "BitImageProcessor" if "shortest_edge" in resized else "DeiTImageProcessor"


def spread(values: Any, channels: int = 3) -> list[float]:
    """One value for each channel; a single one counts for all of them."""
    return list(values) if isinstance(values, list | tuple) else [values] * channels


# ---- timm --------------------------------------------------------------------------------------------------------


def of_timm(stored: Document) -> tuple[dict[str, Any] | None, str]:
    """What timm's config.json says, if it does, and a remark on a crop that can't be stated, "" where there is none."""
    pretrained, size = stored.object("pretrained_cfg") or stored, size_of_timm(stored)
    mean, std = pretrained.numbers("mean"), pretrained.numbers("std")
    share, mode = pretrained.number("crop_pct"), pretrained.text("crop_mode", "center")
    resized = resized_by_timm(size, share, mode) if size and share else None
    lost = share and not resized and (share != 1 or mode != "squash")
    remark = f"timm crops pictures ({mode}, crop_pct {share}); the preprocessor resizes the whole picture"
    interpolation = pretrained.text("interpolation", "bicubic")
    return preprocessor(size, mean, std, interpolation, resized), remark if lost else ""


def size_of_timm(stored: Document) -> int | list[int] | None:
    """The size of the pictures that timm's config.json says, an edge or (height, width)."""
    size = stored.object("model_args").lengths("img_size")
    if not size:
        size = (stored.object("pretrained_cfg") or stored).lengths("input_size", [3])
        size = size[1:] if isinstance(size, list) else size
    return size


def resized_by_timm(size: int | list[int], share: float, mode: str) -> dict[str, int] | None:
    """The size of which timm takes the middle of `size`, as a processor states it; None for what it can't state."""
    edges = [edge / share if share else 0 for edge in (pair(size) if isinstance(size, int) else size)]
    if not all(1 <= edge <= _LARGEST for edge in edges):
        return None
    height, width = map(math.floor, edges)
    if mode == "center" and height == width:
        return {"shortest_edge": height}
    return {"height": height, "width": width} if mode == "squash" and share != 1 else None


# ---- keras-hub ---------------------------------------------------------------------------------------------------


def of_keras_hub(converter: Document, size: list[int] | None, channels: int) -> dict[str, Any] | None:
    """The mean and the deviation that a converter's arithmetic on pixel values of 0 to 255 stands for.

    It multiplies by `scale`, adds `offset`, and in keras-hub 0.21 subtracts `norm_mean` and divides by `norm_std`.
    """
    values = {name: converter.numbers(name) for name in _NEUTRAL}
    scale, offset, mean, std = (spread(_NEUTRAL[n] if v is None else v, channels) for n, v in values.items())
    lengths = {len(each) for each in (scale, offset, mean, std)}
    if lengths != {channels} or not all(SMALLEST < factor < 1 / SMALLEST for factor in (*scale, *std)):
        shown = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        raise ValueError(
            f"{converter.source}: scale must be positive, one a channel as offset, norm_mean and norm_std, got {shown}."
        )
    return preprocessor(
        converter.lengths("image_size") or size,
        [(m - o) / (255 * s) for m, o, s in zip(mean, offset, scale, strict=True)],
        [d / (255 * s) for d, s in zip(std, scale, strict=True)],
        converter.text("interpolation", "bilinear"),
    )
