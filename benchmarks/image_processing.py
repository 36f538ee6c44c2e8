"""Image processors: against transformers' slow and fast ones, and hf-processors-rs; and two threads against one.

Needs the environment of `make oracle`: python benchmarks/image_processing.py [--json] [--rounds N] [--seconds S]
On one core but where threads are compared. Every peer's numbers are compared first: all are the same to the last bit.
Most of the slow one's time beyond the resize goes into large temporaries, so that ratio depends on malloc: compare with
MALLOC_MMAP_THRESHOLD_=30000000 MALLOC_TRIM_THRESHOLD_=300000000, under which no memory goes back to the system.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from harness import OURS, THEIRS, arguments, find_families, interleaved, ratio, report
from PIL import Image

from vit_core.pictures.processing import ViTImageProcessor

find_families()
import hf_processors_rs  # noqa: E402
import transformers  # noqa: E402

FAST, RUST = "transformers' fast one", "hf-processors-rs"
ALONE = "ours without PyTorch"


def without_torch(call: Callable[..., Any]) -> Callable[..., Any]:
    """The call as in a program that has not imported PyTorch, whose resize ours would use."""

    def called(*args: Any) -> Any:
        kept = sys.modules.pop("torch")
        try:
            return call(*args)
        finally:
            sys.modules["torch"] = kept

    return called


def peers(backend: str, folder: str) -> dict[str, Any]:
    """By name, what makes pixels (B, 3, 224, 224) of pictures as this backend does, on one thread; ours first."""
    ours = ViTImageProcessor(backend=backend)
    ours.save_pretrained(folder)
    rust = hf_processors_rs.AutoImageProcessor.from_pretrained(folder, backend=backend)
    fast = backend == "torchvision"
    theirs, kind = (transformers.ViTImageProcessorFast(), "pt") if fast else (transformers.ViTImageProcessor(), "np")

    def call(pictures: Any) -> Any:
        return ours(pictures, return_tensors="np", num_workers=1).pixel_values

    return {
        OURS: call,
        **({ALONE: without_torch(call)} if fast else {}),
        FAST if fast else THEIRS: lambda pictures: theirs(pictures, return_tensors=kind)["pixel_values"],
        RUST: lambda pictures: rust(pictures, num_threads=1),
    }


def main() -> None:
    options = arguments(__doc__, rounds=20, seconds=5)
    limits = {"min_rounds": options.rounds, "min_seconds": options.seconds}
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    given = {"a PIL image of 640x480": image, "an array of 480x640x3": pixels, "64 PIL images": [image] * 64}
    cores, results = os.sched_getaffinity(0), {}
    os.sched_setaffinity(0, {min(cores)})
    with tempfile.TemporaryDirectory() as folder:
        for backend in ("pil", "torchvision"):
            called = peers(backend, folder)
            for what, pictures in given.items():
                found = [np.asarray(call(pictures)) for call in called.values()]
                assert all(np.array_equal(found[0], each) for each in found[1:]), "they do not agree"
                seconds = interleaved({n: lambda f=f, x=pictures: f(x) for n, f in called.items()}, **limits)
                ours = [name for name in called if name in (OURS, ALONE)]
                for us, them in product(ours, list(called)[len(ours) :]):
                    how = "one core" if us == OURS else "one core, PyTorch not imported"
                    results[f"{what}, backend={backend}, {how}, against {them}"] = ratio(seconds[us], seconds[them])
    os.sched_setaffinity(0, cores)
    for backend in ("pil", "torchvision"):
        processor = ViTImageProcessor(backend=backend)
        workers = {str(n): lambda n=n, p=processor: p(given["64 PIL images"], num_workers=n) for n in (1, 2)}
        seconds = interleaved(workers, **limits)
        results[f"64 PIL images, backend={backend}, two threads against one"] = ratio(seconds["2"], seconds["1"])
    report("Image processors: ours by theirs", results, options.json)


if __name__ == "__main__":
    main()
