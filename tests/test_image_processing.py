"""ViTImageProcessor against what transformers 4.57.6 gave, bit for bit, and against the documented arithmetic."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections import UserDict, UserList
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vit_core.channels import with_statistics
from vit_core.files.documents import Document
from vit_core.pictures import processing, torchvision
from vit_core.pictures.images import FORMATS, pixels
from vit_core.pictures.processing import (
    AutoImageProcessor,
    BatchFeature,
    BeitImageProcessor,
    BeitImageProcessorFast,
    BitImageProcessor,
    DeiTFeatureExtractor,
    DeiTImageProcessor,
    DeiTImageProcessorFast,
    ViTFeatureExtractor,
    ViTImageProcessor,
    ViTImageProcessorFast,
    for_size,
    load_image,
)

GOLDEN = Path(__file__).parent / "golden" / "processor"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())["cases"]
INPUTS, OUTPUTS = np.load(GOLDEN / "inputs.npz"), np.load(GOLDEN / "outputs.npz")
SMALL = {"height": 16, "width": 24}

# Where the specification asks for more than transformers give: a clearer error (the words it has), or a result (None).
BETTER: dict[str, str | None] = {
    "filter0_one_pixel": None,
    "filter2_one_pixel": None,
    "filter3_one_pixel": None,
    "size_shortest_edge": None,
    "gray_2d": 'Could not make a flat list of images from an array of shape .41, 29.: .*input_data_format="none"',
    "mixed_sizes_no_resize": r"Unable to create tensor of images of different shapes \[\(3, 37, 53\), \(3, 97, 131\)\]",
    **{
        f"no_convert_{name}": f"{name}.png has mode '{mode}', expected 'RGB': set do_convert_rgb=True"
        for name, mode in {
            "gray": "L", "gray_alpha": "LA", "rgba": "RGBA", "palette": "P", "bilevel": "1", "gray16": "I;16",
        }.items()
    },
}  # fmt: skip
WARNINGS = {
    "ambiguous": "ambiguous",
    "float01_rescaled_again": "do_rescale=False",
    "convert_gray16": "values from 0 to 65280: what lies outside 0 to 255 is cut off",
}
# Golden numbers of pictures whose rows are resized before their columns, as Pillow does from 13 on.
ROWS_FIRST = {
    "ambiguous", "convert_bilevel", "convert_gray", "filter2_tall", "filter3_tall", "float01_any", "gray_1hw",
    "gray_hw1", "BeitImageProcessor.0/im300x260", "DeiTImageProcessor.0/im300x260",
}  # fmt: skip


def golden_input(spec: list[Any]) -> Any:
    if isinstance(spec[0], list):
        return [golden_input(each) for each in spec]
    kind, name = spec
    if kind == "pil":
        return Image.open(GOLDEN / "images" / f"{name}.png")
    if kind == "pil_cmyk":
        array = INPUTS[name]
        return Image.frombytes("CMYK", (array.shape[1], array.shape[0]), array.tobytes())
    return pytest.importorskip("torch").from_numpy(INPUTS[name]) if kind == "torch" else INPUTS[name]


def run_golden(case: dict[str, Any]) -> np.ndarray:
    images = golden_input(case["images"])
    return ViTImageProcessor(**case["init"])(images, return_tensors="np", **case["call"])["pixel_values"]


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return (got.dtype, got.shape, got.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("case", [c for c in CASES if "error" not in c], ids=lambda c: c["case"])
def test_golden(case: dict[str, Any]) -> None:
    if case["case"] in ROWS_FIRST:
        pytest.importorskip("PIL", "13")
    if case["case"] in WARNINGS:
        with pytest.warns(UserWarning, match=WARNINGS[case["case"]]) as caught:
            got = run_golden(case)
        if case["case"] != "convert_gray16":  # which is seen in a thread that opens pictures
            assert [warning.filename for warning in caught] == [__file__]  # it points at the caller
    else:
        got = run_golden(case)
    assert list(got.shape) == case["shape"]
    assert str(got.dtype) == case["dtype"]
    if "output_is" in case:
        assert case["output_is"] == "pixel_values[..., ::16, ::16]"
        assert hashlib.sha256(got.tobytes()).hexdigest() == case["sha256_of_c_order_bytes"]
        got = np.ascontiguousarray(got[..., ::16, ::16])
    assert same(got, OUTPUTS[case["output"]])


@pytest.mark.parametrize("case", [c for c in CASES if "error" in c], ids=lambda c: c["case"])
def test_golden_errors(case: dict[str, Any]) -> None:
    if case["case"] not in BETTER:  # the same words first, then what to do
        with pytest.raises(ValueError) as raised:  # noqa: PT011
            run_golden(case)
        assert case["error"]["type"] == "ValueError"
        assert str(raised.value).startswith(case["error"]["message"].rstrip("."))
        assert len(str(raised.value)) > len(case["error"]["message"])
    elif (words := BETTER[case["case"]]) is not None:
        with pytest.raises(ValueError, match=words):
            run_golden(case)
    else:
        got = run_golden(case)
        array = np.asarray(golden_input(case["images"]))
        processor = ViTImageProcessor(**{**case["init"], "size": got.shape[2:]})
        assert same(got, processor(array, return_tensors="np", input_data_format="channels_last").pixel_values)


def test_golden_covers_every_exception() -> None:
    assert set(BETTER) <= {case["case"] for case in CASES if "error" in case}


# ---- against the documented arithmetic, without the table


def resized(picture: Image.Image, steps: dict[str, Any]) -> np.ndarray:
    height, width = steps["size"]
    return np.array(picture.resize((width, height), steps["resample"]) if steps["do_resize"] else picture)


def cropped(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle (height, width) of zeros, then the image, then zeros."""
    border = ((height, height), (width, width), (0, 0))
    top, left = height + (pixels.shape[0] - height) // 2, width + (pixels.shape[1] - width) // 2
    return np.pad(pixels, border)[top : top + height, left : left + width]


def documented(picture: Image.Image, steps: dict[str, Any]) -> np.ndarray:
    pixels = resized(picture.convert("RGB"), steps)
    if steps["do_center_crop"]:
        pixels = cropped(pixels, *steps["crop_size"])
    if steps["do_rescale"]:
        pixels = (pixels.astype(np.float64) * steps["rescale_factor"]).astype(np.float32)
    if steps["do_normalize"]:
        pixels = (pixels.astype(np.float32) - np.float32(steps["image_mean"])) / np.float32(steps["image_std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


SIDES = st.integers(1, 40)
STEPS = st.fixed_dictionaries(
    {
        "do_resize": st.booleans(),
        "size": st.tuples(SIDES, SIDES),
        "resample": st.integers(0, 5),
        "do_center_crop": st.booleans(),
        "crop_size": st.tuples(SIDES, SIDES),
        "do_rescale": st.booleans(),
        "rescale_factor": st.sampled_from([1 / 255, 1 / 127.5, 1, 0.1, 1e-3]),
        "do_normalize": st.booleans(),
        "image_mean": st.lists(st.floats(-2, 2), min_size=3, max_size=3),
        "image_std": st.lists(st.floats(0.01, 4), min_size=3, max_size=3),
    }
)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, st.sampled_from(["RGB", "L", "RGBA", "CMYK", "1", "HSV"]), STEPS)
def test_documented_arithmetic(seed: int, height: int, width: int, mode: str, steps: dict[str, Any]) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    got = ViTImageProcessor(**steps, do_convert_rgb=True)(picture, return_tensors="np")
    assert same(got.pixel_values, documented(picture, steps))


@pytest.mark.parametrize(("height", "width", "expected"), [(37, 53, (20, 28)), (53, 37, (28, 20)), (30, 30, (20, 20))])
def test_shortest_edge_keeps_the_ratio_rounded_down(height: int, width: int, expected: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    got = ViTImageProcessor(size={"shortest_edge": 20})(image, return_tensors="np").pixel_values
    assert same(got, ViTImageProcessor(size=expected)(image, return_tensors="np").pixel_values)


# ---- inputs


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(INPUTS["rgb"])


@pytest.fixture
def processor() -> ViTImageProcessor:
    return ViTImageProcessor(size=SMALL)


@pytest.fixture
def expected(processor: ViTImageProcessor) -> np.ndarray:
    return processor(INPUTS["rgb"], return_tensors="np").pixel_values


def encoded(picture: Image.Image, kind: str = "png", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_input_gives_the_same_bits(
    picture: Image.Image, processor: ViTImageProcessor, expected: np.ndarray, tmp_path: Path
) -> None:
    path, array = tmp_path / "picture.png", np.asarray(picture)
    path.write_bytes(encoded(picture))
    kinds = [
        picture, str(path), path, path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()),
        array, array.transpose(2, 0, 1), array[None], array.astype(np.int64), array.astype(np.float32),
        array.astype(">i2"), array.astype(np.float64), [picture], (array,), [[picture]], [[], [array]], [array[None]],
    ]  # fmt: skip
    for kind in kinds:
        assert same(processor(kind, return_tensors="np").pixel_values, expected), type(kind)
    with path.open("rb") as file:
        assert same(processor(file, return_tensors="np").pixel_values, expected)
        assert not file.closed
    together = processor([*kinds[:5], array], return_tensors="np").pixel_values
    assert same(together, np.repeat(expected, 6, axis=0))


def test_tensors_of_every_framework_give_the_same_bits(processor: ViTImageProcessor, expected: np.ndarray) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(INPUTS["rgb"])
    half = (tensor // 16 * 16).to(torch.bfloat16)  # whole multiples of 16 are exact
    for each in (tensor, tensor.permute(2, 0, 1), [tensor], tensor[None], tensor.float().requires_grad_()):
        assert same(processor(each, return_tensors="np").pixel_values, expected)
    assert same(
        processor(half, return_tensors="np").pixel_values,
        processor(INPUTS["rgb"] // 16 * 16, return_tensors="np").pixel_values,
    )


@pytest.mark.parametrize(("module", "make"), [("tensorflow", "constant"), ("jax.numpy", "asarray")])
def test_tensors_of_other_frameworks(
    module: str, make: str, processor: ViTImageProcessor, expected: np.ndarray
) -> None:
    tensor = getattr(pytest.importorskip(module), make)(INPUTS["rgb"])
    assert same(processor(tensor, return_tensors="np").pixel_values, expected)
    assert same(processor([tensor, tensor], return_tensors="np").pixel_values, np.repeat(expected, 2, axis=0))


@pytest.mark.parametrize(
    ("given", "shape"), [("channels_first", (1, 16, 24)), ("channels_last", (16, 24, 1)), (None, (16, 24))]
)
def test_images_without_a_channel_axis(given: str | None, shape: tuple[int, ...]) -> None:
    processor = ViTImageProcessor(size=SMALL, image_mean=0.5, image_std=0.25)
    gray = INPUTS["gray"]
    options: dict[str, Any] = {"return_tensors": "np", "input_data_format": "none", "data_format": given}
    got = processor(gray, **options).pixel_values
    assert got.shape == (1, *shape)
    assert got.tobytes() == processor(gray[..., None], return_tensors="np").pixel_values.tobytes()
    assert same(processor(np.stack([gray, gray]), **options).pixel_values, np.repeat(got, 2, axis=0))


def test_data_format_none_keeps_the_layout(picture: Image.Image, processor: ViTImageProcessor) -> None:
    first, last = (
        processor(picture, return_tensors="np", data_format=layout).pixel_values
        for layout in ("channels_first", "channels_last")
    )
    assert same(processor(picture, return_tensors="np", data_format=None).pixel_values, last)
    assert same(processor(INPUTS["rgb"], return_tensors="np", data_format=None).pixel_values, last)
    assert same(processor(INPUTS["rgb_chw"], return_tensors="np", data_format=None).pixel_values, first)


@pytest.mark.parametrize("height", [1, 3])
def test_the_layout_of_a_picture_is_known_however_low_it_is(height: int, processor: ViTImageProcessor) -> None:
    array = INPUTS["rgb"][:height]
    got = processor(Image.fromarray(array), return_tensors="np").pixel_values
    assert same(got, processor(array, return_tensors="np", input_data_format="channels_last").pixel_values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_what_is_opened_here(
    orientation: int, picture: Image.Image, processor: ViTImageProcessor, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture, "png", exif=exif)
    path = tmp_path / "turned.png"
    path.write_bytes(data)
    turn = [None, None, 0, 3, 1, 5, 4, 6, 2][orientation]  # Exif 2.3, table 4.6.4 A; PIL.Image.Transpose
    upright = picture if turn is None else picture.transpose(Image.Transpose(turn))
    expected = processor(upright, return_tensors="np").pixel_values
    for source in (path, data, io.BytesIO(data)):
        assert same(processor(source, return_tensors="np").pixel_values, expected)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(upright))
    with Image.open(path) as given_open:  # an image already given is taken as it is
        got = processor(given_open, return_tensors="np").pixel_values
    assert same(got, processor(picture, return_tensors="np").pixel_values)


def test_palette_with_transparency_converts_without_a_warning(processor: ViTImageProcessor) -> None:
    palette = Image.fromarray(INPUTS["rgb"]).quantize(16)
    plain = processor(palette.convert("RGB"), return_tensors="np").pixel_values
    palette.info["transparency"] = bytes(range(0, 160, 10))
    assert same(processor(palette, return_tensors="np", do_convert_rgb=True).pixel_values, plain)


def test_very_wide_picture(processor: ViTImageProcessor) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (10, 20000, 3), dtype=np.uint8)
    steps = {**vars(processor), "size": (16, 24)}
    assert same(processor(wide, return_tensors="np").pixel_values, documented(Image.fromarray(wide), steps))


# ---- batches, threads, what comes out


def test_threads_give_the_bits_of_one_after_another(processor: ViTImageProcessor) -> None:
    rng = np.random.default_rng(0)
    batch: list[Any] = [rng.integers(0, 256, (int(rng.integers(5, 90)), 40, 3), dtype=np.uint8) for _ in range(40)]
    batch[::3] = [Image.fromarray(image) for image in batch[::3]]
    batch[1::3] = [encoded(Image.fromarray(image)) for image in batch[1::3]]
    batch += [batch[0]] * 3
    alone = np.concatenate([processor(image, return_tensors="np").pixel_values for image in batch])
    for workers in (None, 1, 2, 7):
        assert same(processor(batch, return_tensors="np", num_workers=workers).pixel_values, alone)
    listed = processor(batch, num_workers=3).pixel_values
    assert isinstance(listed, list)
    assert all(same(each, one) for each, one in zip(listed, alone, strict=True))


def test_a_batch_without_one_size_is_a_list() -> None:
    images = [INPUTS["rgb"], INPUTS["big"]]
    processor = ViTImageProcessor(size={"shortest_edge": 20})
    assert [each.shape for each in processor(images).pixel_values] == [(3, 20, 28), (3, 20, 27)]


def test_an_error_in_a_batch_names_the_image(processor: ViTImageProcessor, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"images\[2\] of 3: .*bad\.png is no picture that Pillow can read"):
        processor([INPUTS["rgb"], INPUTS["big"], tmp_path / "bad.png"])
    with pytest.raises(ValueError, match=r"images\[1\] of 2: .*outside the range \[0, 255\]"):
        processor([INPUTS["rgb"], INPUTS["rgb_negative"]])


@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("np", "numpy", "ndarray"), ("pt", "torch", "Tensor"), ("tf", "tensorflow", "Tensor"), ("jax", "jax", "Array")],
)
def test_return_tensors(kind: str, module: str, name: str, processor: ViTImageProcessor, expected: np.ndarray) -> None:
    framework = pytest.importorskip(module)
    got = processor([INPUTS["rgb"]] * 2, return_tensors=kind)
    assert isinstance(got.pixel_values, getattr(framework, name))
    assert same(np.asarray(got.pixel_values), np.repeat(expected, 2, axis=0))


@pytest.mark.parametrize(
    ("kind", "module", "extra"), [("pt", "torch", "torch"), ("tf", "tensorflow", "tf"), ("jax", "jax", "flax")]
)
def test_a_missing_framework_names_the_extra(
    kind: str, module: str, extra: str, processor: ViTImageProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "jax.numpy", raising=False)
    with pytest.raises(ImportError, match=rf'return_tensors="{kind}" needs {module}.*"vit-trio\[{extra}\]"'):
        processor(INPUTS["rgb"], return_tensors=kind)


def test_importing_and_using_it_imports_no_framework() -> None:
    code = (
        "import sys, numpy; from vit_core.pictures.processing import ViTImageProcessor as P; "
        "P()(numpy.zeros((4, 5, 3), 'uint8'), return_tensors='np'); "
        "print([m for m in ('torch', 'tensorflow', 'jax', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_batch_feature() -> None:
    feature = BatchFeature(pixel_values=np.zeros(3))
    assert feature.pixel_values is feature["pixel_values"] is dict(**feature)["pixel_values"]
    assert feature.data["pixel_values"] is feature.pixel_values
    with pytest.raises(AttributeError, match="labels"):
        _ = feature.labels
    with pytest.raises(TypeError, match='return_tensors="pt"'):
        feature.to("cpu")


def test_batch_feature_moves_and_casts_torch_tensors(processor: ViTImageProcessor) -> None:
    torch = pytest.importorskip("torch")
    got = processor(INPUTS["rgb"], return_tensors="pt")
    got["labels"], got["names"] = torch.tensor([1]), ["a"]
    assert got.to("cpu", torch.float16) is got
    assert (got.pixel_values.dtype, got.labels.dtype) == (torch.float16, torch.int64)
    assert got.to(dtype=torch.float64).pixel_values.dtype == torch.float64
    assert got.names == ["a"]
    assert got.to(torch.device("meta")).labels.device.type == "meta"
    assert processor(INPUTS["rgb"], return_tensors="pt", device="meta").pixel_values.is_meta


# ---- what is refused


def bad_sources(folder: Path) -> dict[str, tuple[Path, type[Exception], str]]:
    whole = encoded(Image.fromarray(INPUTS["big"]), "jpeg")
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "truncated.png").write_bytes(encoded(Image.fromarray(INPUTS["big"]))[:900])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("This is not a picture.")
    (folder / "folder.png").mkdir()
    unreadable = "{} is no picture that Pillow can read"
    return {
        "truncated.jpg": (folder / "truncated.jpg", ValueError, unreadable),
        "truncated.png": (folder / "truncated.png", ValueError, unreadable),
        "empty.png": (folder / "empty.png", ValueError, unreadable),
        "text.png": (folder / "text.png", ValueError, unreadable),
        "folder.png": (folder / "folder.png", IsADirectoryError, "{} is a directory: pass the path of a picture"),
        "missing.png": (folder / "missing.png", FileNotFoundError, "There is no image file {}: check the path"),
    }


@pytest.mark.parametrize(
    "name", ["truncated.jpg", "truncated.png", "empty.png", "text.png", "folder.png", "missing.png"]
)
def test_bad_files(name: str, processor: ViTImageProcessor, tmp_path: Path) -> None:
    path, error, words = bad_sources(tmp_path)[name]
    for call in (processor, load_image):
        with pytest.raises(error) as raised:
            call(path)
        assert str(raised.value).startswith(words.format(path))
    if path.is_file():
        with pytest.raises(ValueError, match=r"^the image in \d+ bytes is no picture"):
            processor(path.read_bytes())
        with path.open("rb") as file, pytest.raises(ValueError, match=f"^{path} is no picture"):
            processor(file)


def test_a_picture_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow hands PostScript to Ghostscript, where that is installed, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(INPUTS["big"]), "eps"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was run"))
    for source in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        with pytest.raises(ValueError, match=r"is no picture that Pillow can read \(it is none of PNG, JPEG, WEBP"):
            load_image(source)


def test_every_format_is_opened(tmp_path: Path) -> None:
    Image.init()
    picture = Image.new("RGB", (8, 8))
    for format, suffixes in FORMATS.items():
        if format in Image.SAVE:  # AVIF is not everywhere
            picture.save(tmp_path / f"a{suffixes[0]}", format)
            assert load_image(tmp_path / f"a{suffixes[0]}").size == (8, 8)


def test_a_long_picture_is_refused_before_it_is_resized() -> None:
    processor = ViTImageProcessor(size={"shortest_edge": 224})
    assert processor(Image.new("L", (2000, 60)).convert("RGB"), return_tensors="np").pixel_values.shape[3] == 7466
    words = r"A picture of 10000 x 1 pixels whose shortest edge becomes 224 has 501760000 pixels"
    with pytest.raises(ValueError, match=words):
        processor(Image.new("RGB", (10_000, 1)))


def test_an_address_is_no_path(processor: ViTImageProcessor) -> None:
    with pytest.raises(FileNotFoundError, match=r"http://localhost/cat\.jpg: download it"):
        processor("http://localhost/cat.jpg")


def test_a_lazy_picture_that_is_truncated(processor: ViTImageProcessor, tmp_path: Path) -> None:
    path = bad_sources(tmp_path)["truncated.jpg"][0]
    with Image.open(path) as picture, pytest.raises(ValueError, match=f"^{path} is no picture"):
        processor(picture)


def test_decompression_bomb(processor: ViTImageProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above twice Pillow's limit, which is anybody's to set; up to there Pillow warns."""
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("RGB", (60, 50))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png is too large.*3000 pixels.*2000.*raise PIL\.Image\.MAX_IMAGE"):
        processor(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning, match="3000 pixels"):
        assert load_image(tmp_path / "bomb.png").size == (60, 50)


def test_a_phone_picture_of_108_megapixels(processor: ViTImageProcessor, tmp_path: Path) -> None:
    Image.new("L", (12_000, 9_000), 255).save(tmp_path / "phone.jpg")
    with pytest.warns(Image.DecompressionBombWarning, match="108000000 pixels"):
        pixels = processor(tmp_path / "phone.jpg", return_tensors="np", do_convert_rgb=True).pixel_values
    assert pixels.shape == (1, 3, 16, 24) and (pixels == 1).all()


@pytest.mark.parametrize(("mode", "value"), [("I;16", 300), ("I", 70_000), ("I", -1), ("F", 256.5)])
def test_values_that_are_cut_are_warned_of(processor: ViTImageProcessor, mode: str, value: float) -> None:
    picture = Image.new(mode, (4, 4), value)
    with pytest.warns(UserWarning, match=f"has mode '{mode}' and values from .* what lies outside 0 to 255 is cut off"):
        processor(picture, do_convert_rgb=True)
    processor(Image.new(mode, (4, 4), 255), do_convert_rgb=True)  # nothing is cut, and nothing said


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1", "F", "YCbCr"])
def test_modes_other_than_rgb(mode: str, processor: ViTImageProcessor, tmp_path: Path) -> None:
    picture = Image.new(mode, (7, 5))
    with pytest.raises(ValueError, match=f"the image has mode '{mode}', expected 'RGB': set do_convert_rgb=True"):
        processor(picture)
    black = processor(picture.convert("RGB"), return_tensors="np").pixel_values
    assert same(processor(picture, return_tensors="np", do_convert_rgb=True).pixel_values, black)
    if mode not in ("F", "YCbCr"):
        path = tmp_path / "picture.tiff"
        picture.save(path)
        with path.open("rb") as file:
            for source in (path, str(path), path.read_bytes(), file):
                assert same(processor(source, return_tensors="np").pixel_values, black)
                with pytest.raises(ValueError, match=f"has mode '{mode}', expected 'RGB'"):
                    processor(source, do_convert_rgb=False)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (None, "flat list of images from NoneType: expected a PIL image, a path"),
        (7, "flat list of images from int"),
        ([[1, 2], [3, 4]], "flat list of images from int"),
        ({"image": 1}, "flat list of images from dict"),
        ([], "There are no images: pass at least one"),
        ([[], []], "There are no images"),
        (np.zeros((0, 4, 4, 3), np.uint8), "There are no images"),
        (np.zeros((1, 1, 1, 4, 3), np.uint8), "array of shape .1, 1, 1, 4, 3.: expected 3 axes, or 4"),
        (np.zeros((0, 4, 3), np.uint8), "size .0, 4, 3. has no pixels"),
        (np.zeros((4, 4, 3), complex), "dtype complex128 are not supported"),
        (np.array([[["a"]]]), "dtype <U1 are not supported"),
        (np.full((4, 5, 3), np.nan), r"outside the range \[0, 1\], got \[nan, nan\]"),
        (np.zeros((4, 5, 7), np.uint8), "Unable to infer channel dimension format.*pass input_data_format"),
    ],
    ids=str,
)
def test_bad_images(images: Any, words: str, processor: ViTImageProcessor) -> None:
    with pytest.raises(ValueError, match=words):
        processor(images)


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    *(({"size": size}, "size must be a positive int, .*got") for size in (
        0, -1, 2.5, "224", (1, 2, 3), [4], {"height": 4}, {"height": 4, "width": 0}, {"longest_edge": 4}, (True, 4),
    )),
    *(({"resample": resample}, "resample must be a PIL.Image.Resampling") for resample in (-1, 60, 2.0, "bilinear")),
    *(({"rescale_factor": it}, "rescale_factor must be a finite number") for it in (np.inf, np.nan, "1/255", [1])),
    ({"image_mean": [0.5, None, 0.5]}, "image_mean must be a finite number, got None"),
    ({"image_mean": np.nan}, "image_mean must be a finite number"),
    ({"image_mean": "0.5"}, "image_mean must be a finite number"),
    ({"image_std": 0}, "image_std must not be zero"),
    ({"image_std": [1, 0.0, 1]}, "image_std must not be zero"),
    ({"image_std": [1, 1e-60, 1]}, "image_std must not be zero in float32"),
    *((given, "Values of 0 to 255 must become numbers that float32 holds, but do not with ") for given in (
        {"image_std": [1, -1e-40, 1]}, {"image_mean": 1e300}, {"rescale_factor": 10**300},
        {"rescale_factor": 0, "backend": "torchvision"}, {"rescale_factor": 1e-320, "backend": "torchvision"},
    )),
    ({"do_resize": "false"}, "do_resize must be True or False, got 'false'"),
    ({"do_center_crop": True}, "`crop_size` must be specified if `do_center_crop` is `True`: pass crop_size"),
    ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size must be an int, .height, width."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), BAD_ARGUMENTS, ids=lambda value: str(value))
def test_bad_arguments_when_made_and_when_called(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ViTImageProcessor(**arguments)
    processor = ViTImageProcessor(backend=arguments.get("backend", "pil"))
    with pytest.raises(ValueError, match=words):
        processor(INPUTS["rgb"], **{name: value for name, value in arguments.items() if name != "backend"})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"image_mean": [0.5]}, "mean must have 3 elements if it is an iterable, got 1: pass image_mean"),
        ({"image_std": (1, 2, 3, 4)}, "std must have 3 elements if it is an iterable, got 4: pass image_std"),
        ({"data_format": "none"}, "data_format must be one of 'channels_first', 'channels_last', None, got 'none'"),
        ({"input_data_format": "NHWC"}, "input_data_format must be one of 'channels_first', .*'none', None"),
        ({"return_tensors": "torch"}, "return_tensors must be one of 'np', 'pt', 'tf', 'jax', None, got 'torch'"),
    ],
)
def test_bad_calls(arguments: dict[str, Any], words: str, processor: ViTImageProcessor) -> None:
    with pytest.raises(ValueError, match=words):
        processor(INPUTS["rgb"], **arguments)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("do_resize", "size"),
        ("do_resize", "resample"),
        ("do_rescale", "rescale_factor"),
        ("do_normalize", "image_mean"),
    ],
)
def test_missing_values_of_a_step(flag: str, name: str, processor: ViTImageProcessor) -> None:
    setattr(processor, name, None)
    with pytest.raises(
        ValueError, match=f"`{name}` must be specified if `{flag}` is `True`: pass {name}, or {flag}=False"
    ):
        processor(INPUTS["rgb"])
    processor(INPUTS["rgb"], **{flag: False})


# ---- files

LOADED_AS = json.loads((GOLDEN / "configs" / "_loaded_as.json").read_text())


@pytest.mark.parametrize("name", LOADED_AS)
def test_configs_load_as_transformers_load_them(name: str) -> None:
    """Into the slow class: this one is the fast one too, and else follows the file."""
    processor = ViTImageProcessor.from_pretrained(GOLDEN / "configs" / f"{name}.json", use_fast=False)
    expected = {key: value for key, value in LOADED_AS[name].items() if key != "_processor_class"}
    assert {key: value for key, value in processor.to_dict().items() if key in expected} == expected


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    made = ViTImageProcessor(
        size=UserList([20, 30]), resample=Image.Resampling.BICUBIC, image_mean=np.array([0.1, 0.2, 0.3]),
        image_std=UserList([1, 2, 3]),  # a sequence that is no list, as OmegaConf's
        do_convert_rgb=True, house=UserDict(rule=[1, 2]),
    )  # fmt: skip
    folder = tmp_path / "new" / "folder"
    assert made.save_pretrained(folder) == [str(folder / "preprocessor_config.json")]
    assert [each.name for each in folder.iterdir()] == ["preprocessor_config.json"]
    text = (folder / "preprocessor_config.json").read_text()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2, sort_keys=True) + "\n"
    assert (values["image_processor_type"], values["resample"]) == ("ViTImageProcessor", 3)
    for source in (folder, str(folder), folder / "preprocessor_config.json"):
        loaded = ViTImageProcessor.from_pretrained(source)
        assert loaded == made
        assert loaded.house == {"rule": [1, 2]}  # type: ignore[attr-defined]
        assert same(*(each(INPUTS["rgb"], return_tensors="np").pixel_values for each in (loaded, made)))
        assert len(loaded(UserList([INPUTS["rgb"], INPUTS["rgb"]])).pixel_values) == 2  # as a column of `datasets`
    assert repr(loaded) == repr(made) == f"ViTImageProcessor {text.rstrip()}"
    assert loaded != ViTImageProcessor()
    assert loaded != 1


def test_overrides(tmp_path: Path) -> None:
    ViTImageProcessor(resample=3).save_pretrained(tmp_path)
    loaded = ViTImageProcessor.from_pretrained(tmp_path, size=32, do_normalize=False, use_fast=False)
    assert loaded == ViTImageProcessor(resample=3, size=32, do_normalize=False)
    assert ViTImageProcessor.from_dict(image_processor_dict={"size": 16}, resample=0) == ViTImageProcessor(
        size=16, resample=0
    )
    with pytest.raises(TypeError, match=r"\['do_resise'\] are no arguments of ViTImageProcessor"):
        ViTImageProcessor.from_pretrained(tmp_path, do_resise=False)
    with pytest.raises(TypeError, match=r"\['do_resise'\] are no arguments of ViTImageProcessor"):
        ViTImageProcessor.from_dict({"size": 16}, do_resise=False)


def test_a_processor_that_crops_is_written_for_the_class_that_crops(tmp_path: Path) -> None:
    made = ViTImageProcessor(size=32, do_center_crop=True, crop_size=24)
    made.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "DeiTImageProcessor"
    )
    loaded = ViTImageProcessor.from_pretrained(tmp_path)
    assert loaded == made
    assert loaded(INPUTS["rgb"], return_tensors="np").pixel_values.shape == (1, 3, 24, 24)


def test_a_file_of_another_processor_warns() -> None:
    with pytest.warns(UserWarning, match="A ConvNextImageProcessor may prepare images in another way"):
        ViTImageProcessor.from_dict({"image_processor_type": "ConvNextImageProcessor"})


def test_bad_config_files(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text('{"size": 0}')
    with pytest.raises(ValueError, match=f"{path}: size must be a positive int"):
        ViTImageProcessor.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=f"{path} is not valid JSON"):
        ViTImageProcessor.from_pretrained(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = ViTImageProcessor(size=16), ViTImageProcessor(size=32)
    old.save_pretrained(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        new.save_pretrained(tmp_path)
    assert ViTImageProcessor.from_pretrained(tmp_path) == old
    assert len(list(tmp_path.iterdir())) == 1


def test_every_name_is_the_same_class() -> None:
    assert ViTImageProcessor is ViTImageProcessorFast is ViTFeatureExtractor
    assert DeiTImageProcessor is DeiTImageProcessorFast is DeiTFeatureExtractor


def test_what_is_changed_in_one_is_not_changed_in_others() -> None:
    for cls in (ViTImageProcessor, DeiTImageProcessor, BitImageProcessor):
        changed, other = cls(), cls()
        before = other.to_dict()
        changed.image_mean[0] = changed.image_std[0] = changed.size["height"] = 0.1
        assert other.to_dict() == cls().to_dict() == before


# ---- torchvision's numbers -----------------------------------------------------------------------------------------

FAST: dict[str, dict[str, Any]] = json.loads((GOLDEN / "fast" / "cases.json").read_text())


@pytest.mark.parametrize("name", FAST)
def test_golden_of_fast_processors(name: str, tmp_path: Path) -> None:
    """The file says it, and what is saved says it again."""
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(FAST[name]["file"]))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert processor.is_fast and again == processor
    assert again.to_dict()["image_processor_type"] == FAST[name]["file"]["image_processor_type"]
    for each in (processor, again):
        for found in with_and_without_torch(partial(each, return_tensors="np"), INPUTS[FAST[name]["picture"]]):
            assert same(found.pixel_values, np.load(GOLDEN / "fast" / "outputs.npz")[name])


@pytest.mark.parametrize("mode", ["nearest-exact", "bilinear", "bicubic"])  # by which torchvision's processors resize
def test_torchvisions_resize_is_that_of_pytorch(mode: str) -> None:
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("PyTorch resizes uint8 in other numbers here")
    random, resample = np.random.default_rng(0), Image.Resampling[mode.removesuffix("-exact").upper()]
    wide = [400, 3000, 399, 150]  # enough places for the last bit of a sum to show
    for edges in (*random.integers(1, 200, (30, 4)).tolist(), wide):
        height, width, *size = edges
        levels = random.choice([2, 256])  # black and white goes beyond 0 and 255
        planes = (random.integers(0, levels, (3, height, width)) * (255 // (levels - 1))).astype(np.uint8)
        planes[:, : height // 2] = 255 * random.integers(2)  # where a sum is largest
        smooth = mode != "nearest-exact"
        expected = torch.nn.functional.interpolate(torch.from_numpy(planes)[None], size, mode=mode, antialias=smooth)
        for found in with_and_without_torch(torchvision.resized, planes, *size, int(resample)):
            np.testing.assert_array_equal(found, expected[0].numpy())


def test_a_pictures_own_memory_is_looked_at_and_kept() -> None:
    """That of an RGB picture in one block (of 16 MB), where Pillow hands it out; all others are copied."""
    random = np.random.default_rng(0)
    for height, width, channels in ((37, 41, 3), (37, 41, 1), (37, 41, 4), (2100, 2000, 3)):
        expected = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
        picture = Image.fromarray(expected if channels > 1 else expected[..., 0])
        found = pixels(picture)
        if hasattr(picture, "__arrow_c_array__"):
            in_one = picture.mode == "RGB" and height * width * 4 < 16 << 20
            assert found.shape == (height, width, 4 if in_one else channels)
            picture.paste(0, (0, 0, 1, 1))
            assert found[0, 0, 0] == (0 if in_one else expected[0, 0, 0])
            expected[0, 0] = found[0, 0, :channels]
        del picture
        others = [Image.new("RGB", (width, height), "red") for _ in range(3)]  # in what had been freed
        np.testing.assert_array_equal(found[..., :channels], expected)
        del others


def with_and_without_torch(function: Callable[..., Any], *args: Any) -> list[Any]:
    """What a function gives where PyTorch has been imported, and where it has not."""
    found = [function(*args)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        return [*found, function(*args)]


def test_it_is_no_matter_whether_pytorch_has_been_imported() -> None:
    """Which resizes what it can: pictures, also of one channel, and arrays as they come, upside down or read-only."""
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 3), dtype=np.uint8)
    fixed = pixels[0].copy()
    fixed.flags.writeable = False
    pictures = [Image.fromarray(pixels[0]), Image.fromarray(pixels[0, ..., 0])]
    given = [*pictures, pixels[0, ::-1], fixed, torch.tensor(fixed), list(pixels), pixels.transpose(0, 3, 1, 2)]
    for resample in (2, 3, 1):
        processor = ViTImageProcessorFast(size=SMALL, resample=resample, backend="torchvision", do_convert_rgb=True)
        for images in given:
            ours, alone = with_and_without_torch(processor, images)
            np.testing.assert_array_equal(ours.pixel_values, alone.pixel_values)


def test_layouts_and_gray_arrays_of_fast_processors() -> None:
    """Each picture of a list has its own layout, and a gray one becomes as many channels as there are means."""
    processor = ViTImageProcessorFast(size=SMALL, image_mean=[0.1, 0.2, 0.3], backend="torchvision")
    rgb, gray = INPUTS["rgb"], INPUTS["rgb"][..., :1]
    for one, same in ((rgb, rgb), (gray, gray.repeat(3, 2))):
        found = processor([Image.fromarray(rgb), one, one.transpose(2, 0, 1)], return_tensors="np").pixel_values
        np.testing.assert_array_equal(found, processor([rgb, same, same], return_tensors="np").pixel_values)
    with pytest.raises(ValueError, match="mean must have 1 elements if it is an iterable, got 3"):
        ViTImageProcessor(size=SMALL, image_mean=[0.1, 0.2, 0.3])(gray)


def test_backends(tmp_path: Path) -> None:
    """What is asked for stands before what the file says; floats and other integers are resized as they are."""
    pil, fast = ViTImageProcessor(size=SMALL), ViTImageProcessorFast(size=SMALL, backend="torchvision")
    assert (pil.backend, pil.is_fast, pil == fast) == ("pil", False, False)
    fast.save_pretrained(tmp_path)
    assert ViTImageProcessor.from_pretrained(tmp_path) == fast
    for options in ({"use_fast": False}, {"backend": "pil"}):
        assert AutoImageProcessor.from_pretrained(tmp_path, **options) == pil
    pil.save_pretrained(tmp_path)
    for options in ({"use_fast": True}, {"backend": "torchvision"}):
        assert AutoImageProcessor.from_pretrained(tmp_path, **options) == fast
    whole = fast(INPUTS["rgb"], return_tensors="np").pixel_values
    for dtype in (np.int32, np.float32, np.float64):
        pixels = fast(INPUTS["rgb"].astype(dtype), return_tensors="np").pixel_values
        assert pixels.dtype == np.float32
        assert 0 < abs(pixels - whole).max() <= 2 / 255 * 1.001  # a level: these are rounded once, or not at all
    with pytest.raises(ValueError, match=r"resample must be one of 0 nearest, .* with backend='torchvision', got 4"):
        ViTImageProcessor(backend="torchvision", resample=4)
    with pytest.raises(ValueError, match="backend must be one of 'pil', 'torchvision', got 'cv2'"):
        ViTImageProcessor(backend="cv2")


# ---- other members of the family -----------------------------------------------------------------------------------

MEMBERS = GOLDEN / "members"
MEMBER_CASES: list[dict[str, Any]] = json.loads((MEMBERS / "cases.json").read_text())


@pytest.mark.parametrize("case", MEMBER_CASES, ids=lambda case: case["output"])
def test_golden_of_members(case: dict[str, Any]) -> None:
    if case["output"] in ROWS_FIRST:
        pytest.importorskip("PIL", "13")
    name, picture = case["output"].split("/")
    array, wanted = np.load(MEMBERS / "inputs.npz")[picture], np.load(MEMBERS / "outputs.npz")[case["output"]]
    processor = getattr(processing, case["processor"])(**case["arguments"])
    stride = case.get("strided", 1)
    for each in (processor, AutoImageProcessor.from_pretrained(MEMBERS / f"{name}.json")):
        pixels = each(array, return_tensors="np").pixel_values
        np.testing.assert_array_equal(pixels[..., ::stride, ::stride], wanted)


def test_bit_keeps_the_ratio_without_a_warning(tmp_path: Path) -> None:
    """As a published DINOv2 has it: an int is the shortest edge, also in a call, and what is saved names its class."""
    processor = BitImageProcessor(size=256)
    assert (processor.size, processor.crop_size) == ({"shortest_edge": 256}, {"height": 224, "width": 224})
    assert BitImageProcessor().size == {"shortest_edge": 224}
    processor.save_pretrained(tmp_path)
    assert (
        json.loads((tmp_path / "preprocessor_config.json").read_text())["image_processor_type"] == "BitImageProcessor"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = AutoImageProcessor.from_pretrained(tmp_path)
    assert (type(again), again) == (BitImageProcessor, processor)
    picture = np.zeros((30, 60, 3), np.uint8)
    assert again(picture, size=48, do_center_crop=False, return_tensors="np").pixel_values.shape == (1, 3, 48, 96)
    assert again(picture, return_tensors="np").pixel_values.shape == (1, 3, 224, 224)


def test_segmentation_maps_are_refused() -> None:
    picture = np.zeros((30, 60, 3), np.uint8)
    with pytest.raises(TypeError, match="segmentation_maps are prepared by none here, as no model segments"):
        BeitImageProcessor()(picture, segmentation_maps=picture[..., 0])


def test_the_class_is_the_one_that_the_file_names(tmp_path: Path) -> None:
    stored = json.loads((MEMBERS / "DeiTImageProcessor.0.json").read_text())
    processor = AutoImageProcessor.from_pretrained(MEMBERS / "DeiTImageProcessor.0.json")
    assert type(processor) is DeiTImageProcessor
    assert processor == DeiTImageProcessor()
    assert stored.items() <= processor.to_dict().items()
    (tmp_path / "old.json").write_text(json.dumps({"feature_extractor_type": "DeiTFeatureExtractor"}))
    assert AutoImageProcessor.from_pretrained(tmp_path / "old.json") == DeiTImageProcessor()
    (tmp_path / "vit.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessorFast"}))
    assert type(AutoImageProcessor.from_pretrained(tmp_path / "vit.json")) is ViTImageProcessor
    for name, made in (("BeitImageProcessor", BeitImageProcessor), ("BeitImageProcessorFast", BeitImageProcessorFast)):
        (tmp_path / "beit.json").write_text(json.dumps({"image_processor_type": name}))
        processor = AutoImageProcessor.from_pretrained(tmp_path / "beit.json")
        assert (type(processor), processor) == (made, made(backend="torchvision" if name.endswith("Fast") else "pil"))
        assert AutoImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()
    assert BeitImageProcessorFast().size == {"height": 224, "width": 224}
    uncropped = DeiTImageProcessor(do_center_crop=False)
    uncropped.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path) == uncropped
    for key in ("model_type", "architecture", "registered_name"):  # of transformers, of timm and of Keras
        (tmp_path / "config.json").write_text(json.dumps({key: "vit", "image_size": 32}))
        with pytest.raises(
            ValueError, match=r"config\.json is a model's configuration, no processor's: pass its folder"
        ):
            AutoImageProcessor.from_pretrained(tmp_path / "config.json")
    with pytest.raises(TypeError, match="AutoImageProcessor is not made itself"):
        AutoImageProcessor()


@pytest.mark.parametrize(
    ("document", "height", "width", "changed"),
    [
        ({}, 32, 48, {"size": {"height": 32, "width": 48}}),
        (
            {"do_center_crop": True, "size": 256, "crop_size": 224}, 384, 448,
            {"size": {"height": 439, "width": 512}, "crop_size": {"height": 384, "width": 448}},
        ),
        (
            {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
            112, 112,
            {"size": {"shortest_edge": 128}, "crop_size": {"height": 112, "width": 112}},
        ),
        (
            {"image_processor_type": "DeiTImageProcessor"}, 112, 168,
            {"size": {"height": 128, "width": 192}, "crop_size": {"height": 112, "width": 168}},
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": False}, 8, 9,
            {"size": {"height": 8, "width": 9}},
        ),
        (
            {"image_processor_type": "BeitImageProcessorFast", "size": {"longest_edge": 9}}, 8, 9,
            {"size": {"height": 8, "width": 9}},
        ),
        (
            {"image_processor_type": "BitImageProcessor", "size": 256}, 112, 112,
            {"size": {"shortest_edge": 128}, "crop_size": {"height": 112, "width": 112}},
        ),
    ],
)  # fmt: skip
def test_pictures_of_another_size(document: dict[str, Any], height: int, width: int, changed: dict[str, Any]) -> None:
    """A crop gets the model's size, and what it is cut from keeps its proportion; the class has what is not said."""
    assert for_size({"resample": 3, **document}, height, width) == {"resample": 3, **document, **changed}


@pytest.mark.parametrize(
    ("document", "stored", "channels", "changed"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": 0.25}, 3, 1, {"image_mean": [0.2]}),
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4]}, 3, 4, {"image_mean": [0.1, 0.2, 0.3, 0.1]}),
        ({}, 3, 1, {"image_mean": [0.5], "image_std": [0.5]}),
        ({"image_mean": None}, 3, 2, {"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}),
        ({"image_processor_type": "BitImageProcessor"}, 3, 1, {"image_mean": [0.44916], "image_std": [0.26857]}),
        ({"image_mean": "odd"}, 3, 3, {}),
    ],
)
def test_pictures_of_other_channels(document: dict[str, Any], stored: int, channels: int, changed: Any) -> None:
    """Mean and deviation are made for them, those of the class as well, which a file may leave out."""
    made = with_statistics(document, stored, channels)
    assert made == {**document, **{name: pytest.approx(values, abs=1e-5) for name, values in changed.items()}}
    with pytest.raises(ValueError, match=r"x\.json: image_mean must be"):
        with_statistics(Document({"image_mean": "odd"}, "x.json"), 3, 1)
