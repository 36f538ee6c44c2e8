"""ViTImageProcessor against the slow one of transformers, interleaved in one run; and a batch on one and two threads.

Needs transformers beside this package: python benchmarks/image_processing.py [--json]
Prints medians in ms, and ratios of medians with the 10th and 90th percentile of the ratios of neighbouring rounds.
Most of the peer's time beyond the resize goes into large temporaries, so the ratio depends on malloc: compare with
MALLOC_MMAP_THRESHOLD_=30000000 MALLOC_TRIM_THRESHOLD_=300000000, under which no memory goes back to the system.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import transformers
from PIL import Image

from vit_core.pictures.processing import ViTImageProcessor


def interleaved(rounds: int, **calls: Callable[[], Any]) -> dict[str, np.ndarray]:
    """The seconds of each call in each round, (rounds,), the calls taken in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[2:]) for name, values in seconds.items()}  # two rounds warm up


def summary(seconds: dict[str, np.ndarray]) -> dict[str, Any]:
    """Medians in ms, and how many times faster the second call is than the first."""
    slow, fast = seconds.values()
    low, high = np.percentile(slow / fast, [10, 90])
    return {
        "median_ms": {name: round(1e3 * float(np.median(values)), 3) for name, values in seconds.items()},
        "ratio": round(float(np.median(slow) / np.median(fast)), 2),
        "ratio_p10_p90": [round(float(low), 2), round(float(high), 2)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()

    transformers.logging.set_verbosity_error()
    image = Image.fromarray(pixels := np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    theirs, mine = transformers.ViTImageProcessor(), ViTImageProcessor()
    expected, got = (each(image, return_tensors="np")["pixel_values"] for each in (theirs, mine))
    assert np.array_equal(expected, got), "the two do not agree: nothing to compare"

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    results = {}
    for name, given in {"one 640x480 PIL image, one core": image, "one 480x640x3 array, one core": pixels}.items():
        seconds = interleaved(
            arguments.rounds,
            transformers=lambda given=given: theirs(given, return_tensors="np"),
            vit_trio=lambda given=given: mine(given, return_tensors="np"),
        )
        results[name] = summary(seconds)
    os.sched_setaffinity(0, cores)
    batch = [image] * 32
    results[f"batch of 32 such PIL images, {len(cores)} cores"] = summary(
        interleaved(
            arguments.rounds // 10,
            one_worker=lambda: mine(batch, return_tensors="np", num_workers=1),
            two_workers=lambda: mine(batch, return_tensors="np", num_workers=2),
        )
    )

    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, result in results.items():
        (slow, slow_ms), (fast, fast_ms) = result["median_ms"].items()
        low, high = result["ratio_p10_p90"]
        print(f"{name}: {slow} {slow_ms} ms, {fast} {fast_ms} ms, ratio {result['ratio']} ({low}..{high})")


if __name__ == "__main__":
    main()
