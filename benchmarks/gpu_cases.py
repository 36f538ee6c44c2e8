"""What the two children of `gpu.py` share: cases and how one process runs them, shapes, peaks, bounds and pictures.

A child takes `Settings` as one JSON argument and prints an event of JSON a line: first what it is and which cases it
has, then the beginning and the result of each case, so that whatever ends it, what it measured is known.
"""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from closeness import relative_error  # of tests/, like the next: gpu.py puts that on the path
from PIL import Image
from tolerances import rounding

from benchmarks.harness import forward_flops, interleaved, ratio, seconds_of
from vit_core.app.backends import run
from vit_core.app.pipeline import pipeline
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

# Dense bfloat16 TFLOP/s by the vendors' datasheets; the first name that is a word of the card's name counts.
PEAKS = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
}
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
Row = dict[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Settings:
    """What a child is told: where to run, which cases, until when (`time.time()`), and what is done already."""

    device: str
    tiny: bool  # models and batches of a size that shows no more than that everything runs
    only: str  # a regular expression, which is found in the names of the cases to run
    until: float
    seconds: float  # for which a candidate is timed, at least
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Something to measure, which gives rows by name; `cost`: the seconds that it may take on a GPU, compiling too."""

    name: str
    run: Callable[[], dict[str, Row]]
    cost: float


@dataclass(frozen=True)
class Machine:
    """A card's name, and what timing asks of a framework: waiting, arrays, and the memory held now and at most."""

    card: str
    wait: Callable[[], None]
    array: Callable[[Any], np.ndarray]
    held: Callable[[], int]
    restart_peak: Callable[[], None]
    peak: Callable[[], int | None]
    release: Callable[[], None]


# ---- running cases -------------------------------------------------------------------------------------------------


def serve(
    cases: Callable[[Settings], Iterable[Case]], machine: Callable[[Settings], Machine], packages: Iterable[str]
) -> None:
    """The whole of a child: run the cases that are left, most worth first, and print an event a line.

    Raises SystemExit where the framework does not see the device.
    """
    settings = Settings(**json.loads(sys.argv[1]))
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no event

    def tell(**event: Any) -> None:
        print(json.dumps(event), file=events, flush=True)

    found = [case for case in cases(settings) if re.search(settings.only, case.name)]
    here = machine(settings)
    tell(card=here.card, versions=dict(versions(packages)), cases=[case.name for case in found])
    gc.freeze()  # what is here stays: after each case only what is new is looked through
    for case in found:
        if case.name in settings.done:
            continue
        left = settings.until - time.time()
        if left < (0 if settings.tiny else case.cost):
            tell(case=case.name, not_run=f"less than {case.cost:.0f} s were left")
            continue
        tell(begin=case.name)
        start = time.perf_counter()
        try:
            result = {"rows": case.run()}
        except Exception as error:
            result = {"error": one_line(error)}
        tell(case=case.name, **result, took=round(time.perf_counter() - start, 1))
        gc.collect()
        here.release()  # raises where the device is lost; the next process goes on with the next case
    events.close()


def versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The versions of those packages that are installed."""
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def one_line(error: BaseException) -> str:
    """What an error says, in short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ---- shapes --------------------------------------------------------------------------------------------------------

# In order of worth: the precision, the batches, and which table of candidates is timed on them.
INFERENCE = (
    ("B/16", 224, "float32", (1, 2, 4, 8), "plain"),  # the table of Hugging Face's pages
    ("B/16", 224, "bfloat16", (64, 1), "plain"),
    ("B/16", 224, "bfloat16", (64, 1), "compiled"),
    ("L/16", 224, "bfloat16", (64,), "plain"),
    ("L/16", 384, "bfloat16", (16,), "plain"),
    ("B/16", 224, "bfloat16", (256, 8), "plain"),
    ("B/16", 224, "tf32", (64, 1, 8), "plain"),
    ("B/16", 224, "float16", (64, 1), "plain"),
    ("B/16", 224, "bfloat16", (64, 1), "compiled, peers"),
    ("B/16", 224, "float32", (64, 1), "compiled"),
    ("B/16", 224, "float32", (64,), "plain"),
    ("L/16", 224, "float16", (64,), "plain"),
    ("L/16", 384, "float16", (16,), "plain"),
    ("L/16", 224, "tf32", (64,), "plain"),
    ("L/16", 384, "tf32", (16,), "plain"),
    ("B/16", 224, "float16", (256, 8, 2, 4), "plain"),
    ("B/16", 224, "bfloat16", (2, 4), "plain"),
    ("B/16", 224, "tf32", (256, 2, 4), "plain"),
    ("B/16", 224, "float32", (256,), "plain"),
    ("L/16", 224, "float32", (64,), "plain"),
    ("L/16", 384, "float32", (16,), "plain"),
)
PAGES = 4  # how many of the names below are the table of the pages
TRAINING = (("B/16", 224, 64), ("L/16", 224, 64), ("B/16", 224, 256))


@dataclass(frozen=True)
class Shape:
    """What a case is called and what it runs on: with `tiny` all models are one, and all batches of two."""

    variant: str
    image: int
    batch: int
    tiny: bool

    @property
    def config(self) -> ViTConfig:
        if self.tiny:
            return ViTConfig(
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=96,
                image_size=32,
                patch_size=8,
                layer_norm_eps=1e-6,
                num_labels=10,
            )
        return ViTConfig.variant(self.variant, image_size=self.image, layer_norm_eps=1e-6, num_labels=1000)

    @property
    def pictures(self) -> int:
        return 2 if self.tiny else self.batch

    @property
    def key(self) -> tuple[str, int, bool]:
        """Of the weights: equal for shapes that differ in their batch alone."""
        return ("B/16", 224, True) if self.tiny else (self.variant, self.image, False)

    def __str__(self) -> str:
        return f"{self.variant} {self.image}"

    def pixels(self, dtype: str = "float32") -> np.ndarray:
        """Noise (B, 3, H, W)."""
        size = self.config.image_size
        return np.random.default_rng(0).standard_normal((self.pictures, 3, size, size), np.float32).astype(dtype)

    def flops(self, row: str, training: bool = False) -> int:
        """Of a call of a candidate; a training step is counted as three forward passes, whatever it computes twice."""
        tokens = self.config.num_patches + 1 if row.startswith(("timm", "transformers", "plain JAX")) else 1
        return forward_flops(self.config, self.pictures, tokens) * (3 if training else 1)


def inference_shapes(settings: Settings) -> Iterator[tuple[str, Shape, str, str]]:
    """(name, shape, precision, table of candidates) of each case, most worth first."""
    for variant, image, precision, batches, table in INFERENCE:
        for batch in batches:
            prefix = "inference" if table == "plain" else f"inference, {table}"
            name = f"{prefix}, {variant} {image}, {precision}, batch {batch}"
            yield name, Shape(variant, image, batch, settings.tiny), precision, table


# ---- timing --------------------------------------------------------------------------------------------------------


def measured(
    candidates: Mapping[str, Callable[[], Call]],
    shape: Shape,
    machine: Machine,
    settings: Settings,
    *,
    bound: float,
    training: bool = False,
) -> dict[str, Row]:
    """Rows of candidates, each a function that builds a call. The first is what the others are divided by.

    Each is built, and its first result compared with that of the first that has one, within `bound` relative to the
    largest value. Those that fail or differ say so and are not timed; the others are, in turn.
    """
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    expected: np.ndarray | None = None
    for name, build in candidates.items():
        try:
            before = machine.held()
            call = build()
            found = machine.array(call())
            machine.restart_peak()
            call()
            machine.wait()
            peak = machine.peak()
            expected = found if expected is None else expected
            if not (error := relative_error(found, expected)) <= bound:
                raise ArithmeticError(f"{error:.1e} from {next(iter(calls), name)}, {bound:.1e} is allowed")
        except Exception as error:
            rows[name] = {"error": one_line(error)}
            gc.collect()
            continue
        calls[name] = call
        rows[name] = {"peak_memory_gb": None if peak is None else round((peak - before) / 1e9, 3)}
    if calls:
        times = interleaved(
            calls,
            min_rounds=1 if settings.tiny else 10,
            min_seconds=settings.seconds * len(calls),
            warm_up=1 if settings.tiny else 3,
            measure=lambda call: seconds_of(lambda: (call(), machine.wait())),
        )
        first = next(iter(calls))
        for name, seconds in times.items():
            rows[name] |= timing(seconds, shape.pictures, shape.flops(name, training), machine.card)
            if name != first:
                quoted = ratio(times[first], seconds)
                rows[name] |= {"ratio": quoted["ratio"], "ratio_p10": quoted["p10"], "ratio_p90": quoted["p90"]}
    return rows


def timing(seconds: np.ndarray, pictures: int | None, flops: int, card: str) -> Row:
    """Median and percentiles in ms, pictures, if any, and operations a second, and the share of the card's peak."""
    low, middle, high = (float(value) for value in np.percentile(seconds, [10, 50, 90]))
    rate, peak = flops / middle / 1e12, peak_of(card)
    return {
        "ms": round(1e3 * middle, 3),
        "p10": round(1e3 * low, 3),
        "p90": round(1e3 * high, 3),
        "rounds": len(seconds),
        "pictures_per_second": None if pictures is None else round(pictures / middle, 1),
        "tflops": float(f"{rate:.4g}"),
        "of_bf16_peak": None if peak is None else float(f"{rate / peak:.4g}"),
    }


def peak_of(card: str) -> float | None:
    """The dense bfloat16 TFLOP/s of a card by its name, None where it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.search(rf"\b{re.escape(name)}\b", card)), None)


# ---- correctness ---------------------------------------------------------------------------------------------------


def compared(actual: Row, expected: Row, config: ViTConfig, precision: str) -> Row:
    """The errors of logits, hidden states and gradients against float64, their bounds, and whether all are within.

    A gradient is measured by the largest of all, as one that is nothing but rounding has no size of its own.
    """
    states = zip(actual["hidden states"], expected["hidden states"], strict=True)
    largest = max(float(np.abs(array).max()) for array in expected["gradients"].values())
    errors = {
        "hidden states": max(relative_error(found, wanted) for found, wanted in states),
        "logits": relative_error(actual["logits"], expected["logits"]),
        "gradients": max(
            float(np.abs(actual["gradients"][name] - wanted).max()) / largest
            for name, wanted in expected["gradients"].items()
        ),
    }
    bounds = {name: rounding(config, precision, gradient=name == "gradients") for name in errors}
    numbers = {name: {"error": error, "bound": bounds[name]} for name, error in errors.items()}
    return {"errors": numbers, "ok": all(error <= bounds[name] for name, error in errors.items())}


# ---- pictures ------------------------------------------------------------------------------------------------------


@contextmanager
def photographs(count: int, distinct: int, size: tuple[int, int]) -> Iterator[Path]:
    """A folder of JPEG files of `size`, width x height, smooth with some noise as photographs are."""
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(0)
        for i in range(min(count, distinct)):
            small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
            noisy = np.asarray(small) + rng.normal(0, 4, (*size[::-1], 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05}.jpg", quality=90)
        for i in range(distinct, count):
            shutil.copy(folder / f"{i % distinct:05}.jpg", folder / f"{i:05}.jpg")
        yield folder


def feeding(model: Any, backend: str, settings: Settings, dtypes: Iterable[str]) -> dict[str, Row]:
    """Pictures a second: of decoding and resizing, of the model alone, of both, and of `vit classify` on a folder."""
    count, distinct, batch = (6, 3, 2) if settings.tiny else (2048, 64, 64)
    rows: dict[str, Row] = {}
    device = settings.device if backend == "torch" else None
    with photographs(count, distinct, (640, 480)) as folder, tempfile.TemporaryDirectory() as saved:
        size = {"height": model.config.image_size, "width": model.config.image_size}
        model.save_pretrained(saved)
        ViTImageProcessor(size=size).save_pretrained(saved)
        files = sorted(map(str, folder.iterdir()))
        for dtype in dtypes:
            classifier = pipeline(model=saved, backend=backend, device=device, dtype=dtype, batch_size=batch)
            pixels = np.stack([classifier.preprocess(each) for each in files[:batch]])
            run(classifier.model, pixels)  # compiles it

            def model_alone(classifier: Any = classifier, pixels: np.ndarray = pixels) -> None:
                for _ in range(count // batch):
                    run(classifier.model, pixels)

            def both(classifier: Any = classifier) -> None:
                if bad := [each for each in classifier.stream(files) if isinstance(each, Exception)]:
                    raise bad[0]

            if not rows:
                with ThreadPoolExecutor(os.cpu_count()) as threads:
                    prepare = classifier.preprocess
                    rows["decoding and resizing"] = _rate(lambda: list(threads.map(prepare, files)), count)  # noqa: B023
            rows[f"model, {dtype}"] = _rate(model_alone, count)
            rates = {name: rows[name]["pictures_per_second"] for name in ("decoding and resizing", f"model, {dtype}")}
            rows[f"pipeline, {dtype}"] = {**_rate(both, count), "limit": min(rates, key=lambda name: rates[name])}
        rows["vit classify, float32"] = _classify(folder, saved, backend, device, batch)
    return rows


def _rate(call: Call, count: int) -> Row:
    seconds = min(seconds_of(call) for _ in range(2))
    return {"pictures_per_second": round(count / seconds, 1)}


def _classify(folder: Path, model: str, backend: str, device: str | None, batch: int) -> Row:
    command = [sys.executable, "-m", "vit_core.cli", "classify", folder, "--model", model, "--backend", backend]
    where = ["--devices", device] if device else []
    out = ["--batch-size", batch, "--out", Path(model) / "results.jsonl", "--json"]
    done = subprocess.run(list(map(str, chain(command, where, out))), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"vit classify ended with {done.returncode}: {done.stderr[-300:]}")
    return {"pictures_per_second": round(json.loads(done.stdout)["pictures_per_second"], 1)}
