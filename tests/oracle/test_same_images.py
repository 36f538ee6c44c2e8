"""The image processor gives what transformers' slow one gives, bit for bit; their files cross in both directions."""

from __future__ import annotations

import json
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import transformers
from hypothesis import given
from PIL import Image

from vit_core.pictures.processing import ViTImageProcessor

EDGES = st.integers(1, 40)
PER_CHANNEL = st.floats(0.01, 2) | st.lists(st.floats(0.01, 2), min_size=3, max_size=3)
ARGUMENTS: dict[str, Any] = {
    "do_resize": st.booleans(),
    "size": st.fixed_dictionaries({"height": EDGES, "width": EDGES}),
    "resample": st.sampled_from(Image.Resampling).map(int),
    "do_rescale": st.booleans(),
    "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 0.3]),
    "do_normalize": st.booleans(),
    "image_mean": PER_CHANNEL,
    "image_std": PER_CHANNEL,
    "do_convert_rgb": st.booleans(),
}
CROP = {"do_center_crop": st.booleans(), "crop_size": st.fixed_dictionaries({"height": EDGES, "width": EDGES})}
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16")

# Ours says by a warning what theirs writes to its log, and that 16 bits are cut to 8.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The image is rescaled", "ignore:The channel axis of an image", "ignore:.*what lies outside 0 to 255"
)


@st.composite
def pictures(draw: st.DrawFn, mode: str | None = None) -> Image.Image:
    """A picture of noise."""
    mode = mode or draw(st.sampled_from(MODES))
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    height, width = draw(EDGES), draw(EDGES)
    if mode == "I;16":
        return Image.fromarray(generator.integers(0, 2**16, (height, width), dtype=np.uint16))
    if mode == "P":
        return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).quantize(16)
    source = "RGB" if mode in ("1", "YCbCr") else mode
    bands = len(Image.new(source, (1, 1)).getbands())
    pixels = generator.integers(0, 256, (height, width, bands), dtype=np.uint8)
    image = Image.frombytes(source, (width, height), pixels.tobytes())
    return image if source == mode else image.convert(mode)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """Noise of 3 channels, first or last: bytes, whole numbers, or floats from 0 to 1; maybe a batch."""
    shape = (3, draw(st.integers(4, 40)), draw(st.integers(4, 40)))
    shape = shape if draw(st.booleans()) else (*shape[1:], 3)
    shape = (2, *shape) if draw(st.booleans()) else shape
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    dtype = draw(st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.float16]))
    if np.issubdtype(dtype, np.integer) or draw(st.booleans()):
        return generator.integers(0, 256, shape).astype(dtype)
    return generator.random(shape).astype(dtype)


def options(*required: str, without: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the processor's arguments; the required ones always."""
    some = {name: value for name, value in ARGUMENTS.items() if name not in (*required, *without)}
    return st.fixed_dictionaries({name: ARGUMENTS[name] for name in required}, optional=some)


def assert_same(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours["pixel_values"], theirs["pixel_values"], strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@given(pictures(), options(without=("do_convert_rgb",)), st.sampled_from(["channels_first", "channels_last"]))
def test_pictures_of_every_mode(picture: Image.Image, arguments: dict[str, Any], data_format: str) -> None:
    ours, theirs = (
        kind(do_convert_rgb=True, **arguments) for kind in (ViTImageProcessor, transformers.ViTImageProcessor)
    )
    call = {"data_format": data_format, "input_data_format": "channels_last"}  # theirs guesses, even for a picture
    assert_same(ours(picture, **call), theirs(picture, **call))


@given(arrays(), options())
def test_arrays(array: np.ndarray, arguments: dict[str, Any]) -> None:
    assert_same(ViTImageProcessor(**arguments)(array), transformers.ViTImageProcessor(**arguments)(array))


@given(st.lists(pictures("RGB"), min_size=1, max_size=4), options("size", without=("do_resize",)), options())
def test_batches_and_arguments_of_a_call(
    batch: list[Image.Image], arguments: dict[str, Any], call: dict[str, Any]
) -> None:
    call = {**call, "do_resize": True, "input_data_format": "channels_last"}
    ours, theirs = (
        kind(**arguments)(batch, return_tensors="pt", **call)
        for kind in (ViTImageProcessor, transformers.ViTImageProcessor)
    )
    assert ours["pixel_values"].dtype == theirs["pixel_values"].dtype
    np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"])


@given(pictures("RGB"), options(without=("do_convert_rgb",)), st.fixed_dictionaries(CROP))
def test_centre_crop(picture: Image.Image, arguments: dict[str, Any], crop: dict[str, Any]) -> None:
    """Theirs crops in its DeiT processor."""
    given = {"size": {"height": 20, "width": 20}, **arguments, **crop}
    call = {"input_data_format": "channels_last"}
    ours, theirs = ViTImageProcessor(**given), transformers.DeiTImageProcessor(**{"resample": 2, **given})
    assert_same(ours(picture, **call), theirs(picture, **call))


@pytest.mark.parametrize("writer", ["ours", "theirs"])
@given(options(), pictures("RGB"))
def test_file_crosses(writer: str, arguments: dict[str, Any], picture: Image.Image) -> None:
    kinds = (ViTImageProcessor, transformers.ViTImageProcessor)
    source, target = kinds if writer == "ours" else kinds[::-1]
    written = source(**arguments)
    with TemporaryDirectory() as folder:
        written.save_pretrained(folder)
        read = target.from_pretrained(folder)
        if writer == "ours":
            automatic = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
            assert type(automatic) is transformers.ViTImageProcessor
    a, b = (json.loads(processor.to_json_string()) for processor in (written, read))
    for name in ARGUMENTS:
        assert a[name] == b[name], name
    call = {"input_data_format": "channels_last"}
    assert_same(read(picture, **call), written(picture, **call))
