"""Proof of a conversion: the target read again, tensor by tensor, and both models run on the same pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conversion.plan import Plan
from conversion.report import Difference, Verification
from vit_core.app.backends import BACKENDS, import_backend, is_installed, run
from vit_core.config import ViTConfig, pair
from vit_core.family import family_of
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Checkpoint
from vit_core.formats.reading import read

# Of the largest value of an output: float32 by rounding alone; the others by what a cast of all weights changes.
_TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}


def verified(source: Plan, planned: Plan, target: Path, weights: str) -> Verification:
    """Compare the target with what was planned, and the models of source and target in every backend installed.

    `weights` is the name of the file, or of the index of its shards, in the target.
    The models compute in float32, on two pictures of noise. Raises what `read` raises for a target it can't read.
    """
    path = target / weights if target.is_dir() else target
    again = read(path, config=planned.config, num_attention_heads=planned.config.num_attention_heads)
    result = Verification(len(planned.tensors), sorted(_unequal(planned, again)))
    used = again.config or planned.config
    for backend in BACKENDS:
        if not is_installed(backend):
            result.skipped.append(backend)
            continue
        ours = _outputs(backend, source.config, source.architecture, source.tensors)
        theirs = _outputs(backend, used, planned.architecture, again.tensors)
        dtypes = {tensor.dtype.name for tensor in planned.tensors.values()} & set(_TOLERANCES)
        cast = {t.dtype.name for t in source.tensors.values()} != dtypes
        tolerance = max((_TOLERANCES[name] for name in dtypes), default=1e-5) if cast else _TOLERANCES["float32"]
        result.differences += [_difference(backend, name, ours[name], theirs[name], tolerance) for name in ours]
    return result


def _unequal(planned: Plan, again: Checkpoint) -> Iterator[str]:
    """Names of tensors that are not the same to the bit."""
    yield from planned.tensors.keys() ^ again.tensors.keys()
    for name in planned.tensors.keys() & again.tensors.keys():
        wanted, found = planned.tensors[name], again.tensors[name]
        if wanted.shape != found.shape or not _same_bits(wanted, found):
            yield name


def _same_bits(wanted: Tensor, found: Tensor) -> bool:
    """Whether two tensors hold the same; one that a file had to store in a wider dtype is compared in its own."""
    ours, theirs = (np.ascontiguousarray(tensor.read()) for tensor in (wanted, found))
    same = ours.dtype == theirs.dtype or np.array_equal(theirs, theirs.astype(ours.dtype).astype(theirs.dtype))
    equal = same and ours.tobytes() == theirs.astype(ours.dtype).tobytes()
    wanted.release()
    found.release()
    return bool(equal)


def _outputs(backend: str, config: ViTConfig, architecture: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a model of these tensors gives, by name."""
    cls = getattr(import_backend(backend), architecture)
    family = family_of(config)
    options = family.arguments(architecture, family.parts_in(tensors))
    model = cls.from_tensors(config.copy(dtype="float32"), tensors, 0, **options)
    height, width = pair(config.image_size)
    pixels = np.random.default_rng(0).standard_normal((2, config.num_channels, height, width)).astype(np.float32)
    return run(model, pixels)


def _difference(backend: str, name: str, ours: Any, theirs: Any, tolerance: float) -> Difference:
    largest = float(np.abs(ours).max(initial=0.0)) or 1.0
    absolute = float(np.abs(ours - theirs).max(initial=0.0))
    return Difference(backend, name, absolute, absolute / largest, tolerance)
