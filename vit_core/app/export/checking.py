"""What an exported file gives, run by the runtime of its format, against the model."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_core.app.backends import array, call
from vit_core.app.classification import FUNCTIONS, scores_of
from vit_core.app.differences import Difference
from vit_core.app.export import runtime
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.config import ViTConfig, pair
from vit_core.exports import Exported, Operations
from vit_core.pictures.processing import ViTImageProcessor

Array = NDArray[Any]
BATCH = 8  # pictures in a call
# A process of a runtime computes on the CPU, and says nothing of the machine.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}


def pixels_of(pictures: Sequence[Any], processor: ViTImageProcessor, model: Any) -> Array:
    """Pictures as float32 pixels (B, C, H, W); without any, two of seeded noise. Raises OSError or ValueError."""
    config: ViTConfig = model.config
    if not pictures:
        shape = (2, config.num_channels, *pair(config.image_size))
        return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    preprocess = ImageFeatureExtractionPipeline(model, processor).preprocess
    return np.stack([preprocess(each) for each in pictures]).astype(np.float32)


def compare(
    file: Path, names: tuple[str, str], model: Any, wanted: Exported, pixels: Array, tolerance: float
) -> tuple[list[Difference], int | None]:
    """The difference of each output of a file from the model's, and of how many pictures both say the same class.

    Every picture is in a call alone and, where the file takes any number, in a batch; where it takes any size, noise
    of another one is compared as well. Raises ValueError for a file that its runtime does not run.
    """
    calls = [pixels[i : i + 1] for i in range(len(pixels))]
    if wanted.any_batch:
        calls += [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
    if wanted.any_size:
        calls.append(_of_another_size(model.config))
    found = _run(file, names[1], calls)
    differences: dict[str, Difference] = {}
    same = 0
    for i, (given, actual) in enumerate(zip(calls, found, strict=True)):
        expected = _expected(model, wanted, given)
        if actual.keys() != expected.keys():
            raise ValueError(f"The file gives {', '.join(sorted(actual))}, expected {', '.join(sorted(expected))}.")
        for name, values in expected.items():
            if name == "labels":
                same += int((actual[name] == values).sum()) if i < len(pixels) else 0
                continue
            each = differences.setdefault(name, Difference(names, name, tolerance))
            each.add(actual[name].astype(np.float64), values)
            if name in ("logits", "probabilities") and i < len(pixels):
                same += int((actual[name].argmax(-1) == values.argmax(-1)).sum())
    return list(differences.values()), same if wanted.outputs not in ("features", "states") else None


def _of_another_size(config: ViTConfig) -> Array:
    """Noise of one patch more along the height, and two along the width."""
    (height, width), (ph, pw) = pair(config.image_size), pair(config.patch_size)
    shape = (1, config.num_channels, (height // ph + 1) * ph, (width // pw + 2) * pw)
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def _scores(function: str, logits: Array) -> Array:
    return np.stack([scores_of(each, function) for each in logits])


OPERATIONS = Operations(
    wide=array,
    functions={name: partial(_scores, name) for name in FUNCTIONS},
    best=lambda scores: (scores.argmax(-1), scores.max(-1)),
)


def _expected(model: Any, wanted: Exported, pixels: Array) -> dict[str, Array]:
    """The outputs of the model itself, by name, in float64."""
    whole, features = partial(call, model, model, pixels), partial(call, model, model.features, pixels)
    return wanted.compute(model.config, OPERATIONS, whole, features)


def _run(file: Path, target: str, calls: Sequence[Array]) -> list[dict[str, Array]]:
    """The outputs of each call, by name, of a process that knows the format's runtime alone."""
    with tempfile.TemporaryDirectory() as folder:
        given, answered = Path(folder, "pixels.npz"), Path(folder, "outputs.npz")
        np.savez(given, *calls)
        # -P: not even the folder of the program is on the path
        command = [sys.executable, "-P", str(runtime.__file__), target, str(file), str(given), str(answered)]
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
