"""What stands beside weights in every format: labels, and how pictures are prepared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_core.files.documents import Document, read_json_object
from vit_core.files.saving import beside
from vit_core.pictures.others import RESAMPLE, SMALLEST, spread
from vit_core.pictures.processing import ViTImageProcessor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_STATISTICS = ("image_mean", "image_std", "resample", "rescale_factor")


def json_beside(path: Path, name: str) -> Document:
    """The JSON object in a file beside another; an empty one where there is none."""
    found = beside(path, name)
    return read_json_object(found) if found.is_file() else Document({}, str(found))


def one_name(activation: Any) -> Any:
    """One name for each activation function: GELU by tanh has several."""
    return "gelu_new" if activation in ("gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh") else activation


def labels(names: Sequence[str]) -> dict[str, Any]:
    """Fields of a configuration for the names of the labels, none where there are none."""
    return {"id2label": dict(enumerate(names))} if names else {}


def stated(stored: dict[str, Any] | None) -> ViTImageProcessor:
    """A processor of the statistics that a preprocessor's document states. Raises ValueError for what they can't be."""
    return ViTImageProcessor(**{name: value for name in _STATISTICS if (value := (stored or {}).get(name)) is not None})


def statistics(stored: dict[str, Any] | None, channels: int) -> tuple[list[float], list[float], str]:
    """Mean and deviation of each channel, and the interpolation, of a preprocessor; ViT's own where it has none.

    They are of pixels of 0 to 1: what the document multiplies by, or does not do, is in them. Raises ValueError where
    it multiplies by 0.
    """
    processor = stated(stored)
    rescales, normalises = ((stored or {}).get(flag, True) for flag in ("do_rescale", "do_normalize"))
    scale = 255 * processor.rescale_factor if rescales else 255
    if abs(scale) < SMALLEST:
        raise ValueError(
            f"rescale_factor={processor.rescale_factor} makes all pictures the same: mend the preprocessor."
        )
    mean, std = (spread(values, channels) for values in (processor.image_mean, processor.image_std))
    if not normalises:
        mean, std = [0.0] * channels, [1.0] * channels
    elif len(mean) != channels or len(std) != channels:
        if set(mean) | set(std) != {0.5}:
            warnings.warn(
                f"image_mean {mean} and image_std {std} are not those of a model of {channels} channels: 0.5 is taken "
                "for each. Name the right ones in the target.",
                stacklevel=2,
            )
        mean, std = [0.5] * channels, [0.5] * channels
    mean, std = ([value / scale for value in values] for values in (mean, std))
    return mean, std, interpolation(processor.resample) or "bicubic"


def interpolation(resample: int | None) -> str | None:
    """What other formats call one of PIL's filters, bilinear where none is named; None for one they do not have."""
    names = {number: name for name, number in RESAMPLE.items()}
    return names.get(RESAMPLE["bilinear"] if resample is None else resample)
