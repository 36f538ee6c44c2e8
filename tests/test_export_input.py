"""What an exported file makes of a picture is what the image processor makes of it, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_export import ENDS, need

from vit_core.app.backends import import_exporter
from vit_core.app.export.asking import TARGETS
from vit_core.app.export.runtime import RUNTIMES
from vit_core.app.opening import load
from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.exports import Exported, Operations
from vit_core.pictures import graph, torchvision
from vit_core.pictures.graph import FILTERS, PictureOperations, Preparation
from vit_core.pictures.processing import BitImageProcessor, ViTImageProcessor

datasets = pytest.importorskip("sklearn.datasets")
PHOTOGRAPHS = [np.array(each) for each in datasets.load_sample_images().images]  # two of 427 x 640 pixels
NUMPY = PictureOperations(
    lengths=np.shape,
    larger=max,
    scalar=np.float64,
    count=lambda length: np.arange(length, dtype=np.float64),
    floor=np.floor,
    sin=np.sin,
    where=np.where,
    total=lambda x: x.sum(-1, keepdims=True),
    largest=np.max,
    running=np.cumsum,
    either=lambda condition, a, b, *x: (a if condition else b)(*x),
    reshape=np.reshape,
    transpose=np.transpose,
    take=lambda x, places: x[places.astype(int)],
    wide=lambda x: x.astype(np.float64),
    narrow=lambda x: x.astype(np.uint8),
    single=np.float32,
    constant=np.asarray,
)
# Smaller and larger, wide and tall, odd; of the last, Pillow resizes the rows first, from 13 on.
SIZES = [(427, 640), (427, 427), (64, 64), (33, 47), (20, 300), (400, 101)]


def expected(processor: ViTImageProcessor, picture: Any) -> Any:
    layout = "channels_last" if isinstance(picture, np.ndarray) else None
    return processor(picture, return_tensors="np", input_data_format=layout).pixel_values


KINDS = [*(("pil", each) for each in FILTERS), *(("torchvision", each) for each in torchvision.RESAMPLING)]


@pytest.mark.parametrize(("backend", "resample"), KINDS, ids=lambda each: getattr(each, "name", each).lower())
def test_a_graph_is_the_processor(backend: str, resample: Image.Resampling) -> None:
    random, kind = np.random.default_rng(int(resample)), {"backend": backend, "resample": resample}
    edges = partial(random.integers, 1, 300)
    for photograph in PHOTOGRAPHS:
        for _ in range(4):
            crop = {"do_center_crop": True, "crop_size": (int(edges()), int(edges()))}
            of_unit = {"do_rescale": False, "do_normalize": False}
            for processor in (
                ViTImageProcessor(size=(int(edges()), int(edges())), **kind),
                BitImageProcessor(size=int(edges()), crop_size=crop["crop_size"], **kind),
                ViTImageProcessor(size=int(edges()), image_mean=0.1, **crop, **kind),
                ViTImageProcessor(do_resize=False, **crop, **of_unit, **kind),
            ):
                picture = photograph[: random.integers(4, 428), : random.integers(4, 641)]
                found = Preparation.of(processor, 3)(NUMPY, picture[None])
                assert found.dtype == np.float32
                np.testing.assert_array_equal(found, expected(processor, picture))


@pytest.mark.parametrize(("backend", "resample"), KINDS, ids=lambda each: getattr(each, "name", each).lower())
def test_a_graph_of_small_long_and_gray_pictures(backend: str, resample: Image.Resampling) -> None:
    """In black and white, which goes beyond 0 and 255 between them; cut, and with a border."""
    random, kind = np.random.default_rng(0), {"backend": backend, "resample": resample}
    for height, width in [(1, 1), (1, 2), (2, 1), (1, 90), (97, 2), (26, 93), (5, 5), (64, 31)]:
        picture = 255 * random.integers(0, 2, (height, width, 1), np.uint8)
        for size in (1, 6, 23, (40, 3), (22, 21)):
            for crop in ((4, 5), (22, 21), (5, 40)):
                processor = BitImageProcessor(size=size, crop_size=crop, image_mean=0.4, image_std=0.2, **kind)
                found = Preparation.of(processor, 1)(NUMPY, picture[None])
                np.testing.assert_array_equal(found, expected(processor, picture))


@dataclass(frozen=True, kw_only=True)
class Prepared(Exported):
    """A file that gives the pixels that its model would get."""

    def names(self, config: ViTConfig) -> list[str]:
        return ["pixels"]

    def compute(self, config: ViTConfig, operations: Operations, call: Any, features: Any) -> dict[str, Any]:
        return {"pixels": call.args[-1]}


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
@pytest.mark.parametrize(
    ("target", "taken"),
    [("onnx", "image"), ("pt2", "image"), ("saved-model", "bytes"), ("stablehlo", "image")],
)
def test_a_file_gives_the_pixels_of_the_processor(
    target: str, taken: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(target)
    sizes, many = SIZES, backend == "pil"  # pictures in a call
    if target == "pt2" and backend == "pil":  # as with a Pillow before 13
        monkeypatch.setattr(graph, "PILLOW_ORDERS", False)
        sizes = SIZES[:-1]
    framework = TARGETS[target].backend
    model, _ = load(DIGITS, framework)
    processor = BitImageProcessor(size=71, resample=Image.Resampling.LANCZOS, crop_size=(64, 72), backend=backend)
    wanted = Prepared(input=taken, preparation=Preparation.of(processor, 3), any_batch=many)
    file = tmp_path / f"digits{ENDS[target]}"
    import_exporter(framework).export(model, file, target, wanted)
    pictures: list[Any] = [photograph[:height, :width] for photograph in PHOTOGRAPHS for height, width in sizes]
    if taken == "bytes":
        pictures = [upright_or_not(picture, number) for number, picture in enumerate(pictures)]
    together = pictures if taken == "bytes" else PHOTOGRAPHS
    run = RUNTIMES[target](str(file))
    for same in [*([each] for each in pictures), *([together] if many else [])]:
        found = np.asarray(run(np.array(same))["pixels"])
        np.testing.assert_array_equal(found, np.concatenate([expected(processor, each) for each in same]))


def upright_or_not(picture: Any, number: int) -> bytes:
    """A picture as a JPEG that is to be turned, or as a PNG."""
    exif, buffer = Image.Exif(), BytesIO()
    exif[0x0112] = number
    kind = "PNG" if number % 4 == 0 else "JPEG"
    Image.fromarray(picture).save(buffer, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return buffer.getvalue()
