"""What an exported file gives, run by the runtime of its format, against the model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_core.app.backends import UNUSED, array, call
from vit_core.app.classification import FUNCTIONS, scores_of
from vit_core.app.differences import Difference
from vit_core.app.export import runtime
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.app.sources import read_image
from vit_core.config import ViTConfig, pair
from vit_core.exports import Exported, Operations
from vit_core.pictures.images import in_channels, to_picture
from vit_core.pictures.processing import ViTImageProcessor

Array = NDArray[Any]
BATCH = 8  # pictures in a call
# A process of a runtime computes on the CPU, and says nothing of the machine.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


@dataclass(frozen=True)
class Call:
    """What a file is called with, and the pixels (B, C, H, W) that the model has for it."""

    given: Array
    pixels: Array


def calls_of(
    pictures: Sequence[Any], processor: ViTImageProcessor, model: Any, wanted: Exported
) -> tuple[list[Call], list[Call]]:
    """A call for each picture alone, or without any for two of seeded noise, and the calls beside these.

    Those are batches where the file takes any number, and one of another size where it takes any. Raises OSError or
    ValueError.
    """
    own, more = (_pixels if wanted.input == "pixels" else _pictures)(pictures, processor, model, wanted)
    return own, more + (list(_batches(own)) if wanted.any_batch else [])


def _pixels(
    pictures: Sequence[Any], processor: ViTImageProcessor, model: Any, wanted: Exported
) -> tuple[list[Call], list[Call]]:
    """Calls of pixels: for each picture or two of noise, and for one continued to another size where any is taken."""
    config: ViTConfig = model.config
    noise = np.random.default_rng(0).standard_normal((2, config.num_channels, *wanted.pixel_size(config)))
    preprocess = ImageFeatureExtractionPipeline(model, processor).preprocess
    pixels = np.stack([preprocess(each) for each in pictures] or list(noise)).astype(np.float32)
    calls = [Call(each, each) for each in pixels[:, None]]
    if not wanted.any_size:
        return calls, []
    ph, pw = pair(config.patch_size)
    another = np.pad(pixels[:1], ((0, 0), (0, 0), (0, ph), (0, 2 * pw)), mode="wrap")
    return calls, [Call(another, another)]


def _pictures(
    pictures: Sequence[Any], processor: ViTImageProcessor, model: Any, wanted: Exported
) -> tuple[list[Call], list[Call]]:
    """Calls of pictures, encoded or not: for each or two of noise, and for noise of another size."""
    config: ViTConfig = model.config
    height, width = pair(config.image_size)
    read = _encoded if wanted.input == "bytes" else _decoded
    preprocess = ImageFeatureExtractionPipeline(model, processor).preprocess

    def noise(rows: int, columns: int) -> Image.Image:
        shape = (rows, columns, config.num_channels)
        return to_picture(np.random.default_rng(0).integers(0, 256, shape, np.uint8))[0]

    *calls, another = [
        Call(read(each, config.num_channels), preprocess(each)[None].astype(np.float32))
        for each in (*(pictures or (noise(height, 5), noise(9, width))), noise(3 * height, 2 * width))
    ]
    return calls, [another]


def _decoded(source: Any, channels: int) -> Array:
    """A picture (1, H, W, C) in 8 bits."""
    return np.asarray(in_channels(read_image(source), channels))[None]


def _encoded(source: Any, channels: int) -> Array:
    """The bytes (1,) of a picture: the file itself if that is a JPEG or a PNG, else a PNG of what it shows."""
    is_file = isinstance(source, str | os.PathLike) and os.path.isfile(source)
    data = Path(source).read_bytes() if is_file else source
    if not (isinstance(data, bytes) and data.startswith((b"\xff\xd8", b"\x89PNG"))):
        to_picture(_decoded(source, channels)[0])[0].save(buffer := BytesIO(), "PNG")
        data = buffer.getvalue()
    return np.array([data])


def _batches(calls: Sequence[Call]) -> Iterator[Call]:
    """Calls of neighbouring pictures of one size."""
    for _, same in groupby(calls, key=lambda each: each.given.shape):
        while some := list(islice(same, BATCH)):
            yield Call(*(np.concatenate([getattr(each, name) for each in some]) for name in ("given", "pixels")))


def compare(
    file: Path,
    names: tuple[str, str],
    model: Any,
    wanted: Exported,
    alone: Sequence[Call],
    others: Sequence[Call],
    tolerance: float,
) -> tuple[list[Difference], int | None]:
    """The difference of each output of a file from the model's, and of how many pictures both say the same class.

    Classes are counted for those that are alone. Of labels, the difference is how far the model's score of the label
    that the file gives is below the best one, and twice the tolerance is allowed, as either score may be off by it.
    Raises ValueError for a file that its runtime does not run.
    """
    calls = [*alone, *others]
    found = _run(file, names[1], [each.given for each in calls])
    differences: dict[str, Difference] = {}
    same = 0
    for i, (asked, actual) in enumerate(zip(calls, found, strict=True)):
        expected = _expected(model, wanted, asked.pixels)
        if actual.keys() != expected.keys():
            raise ValueError(f"The file gives {', '.join(sorted(actual))}, expected {', '.join(sorted(expected))}.")
        for name, values in expected.items():
            given, allowed = actual[name].astype(np.float64), tolerance
            if name == "labels":
                given = np.where(given[..., None] == np.arange(values.shape[-1]), values, -np.inf).max(-1)
                values, allowed = values.max(-1), 2 * tolerance
                same += int((given == values).sum()) if i < len(alone) else 0
            elif name in ("logits", "probabilities") and i < len(alone):
                same += int((given.argmax(-1) == values.argmax(-1)).sum())
            differences.setdefault(name, Difference(names, name, allowed)).add(given, values)
    return list(differences.values()), same if wanted.outputs not in ("features", "states") else None


def _scores(function: str, logits: Array) -> Array:
    return np.stack([scores_of(each, function) for each in logits])


OPERATIONS = Operations(
    wide=array,
    functions={name: partial(_scores, name) for name in FUNCTIONS},
    best=lambda scores: (scores, scores.max(-1)),  # of labels all scores, which say how good any other one is
)


def _expected(model: Any, wanted: Exported, pixels: Array) -> dict[str, Array]:
    """The outputs of the model itself, by name, in float64."""
    whole, features = partial(call, model, model, pixels), partial(call, model, model.features, pixels)
    return wanted.compute(model.config, OPERATIONS, whole, features)


def _run(file: Path, target: str, calls: Sequence[Array]) -> list[dict[str, Array]]:
    """The outputs of each call, by name, of a process that knows the format's runtime alone."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # where there is room for the file there is for these
        given, answered = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, *calls)
        # -P: not even the folder of the program is on the path
        command = [sys.executable, "-P", str(runtime.__file__), target, *map(str, (file, given, answered))]
        command += UNUSED if target in ("saved-model", "litert") else ()
        done = subprocess.run(command, env=os.environ | QUIET, capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join(done.stderr.split()[-60:]) or f"exit code {done.returncode}"
            raise ValueError(f"{target} does not run what was written: {said}")
        found: list[dict[str, Array]] = [{} for _ in calls]
        with np.load(answered, allow_pickle=False) as arrays:
            for key in arrays.files:
                number, _, name = key.partition("/")
                found[int(number)][name] = arrays[key]
    return found
