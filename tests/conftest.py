"""What the suite shares: the golden data, and the backends that are installed."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import re
import shutil
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from adapters import BACKENDS
from card import left_out, use_card
from compilation import compile_quickly, compiled_once, leave_graphs, remember_shapes
from hypothesis import HealthCheck, settings
from safetensors.numpy import load_file, save_file

from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = GOLDEN / "ckpt"


FILE = pytest.StashKey[Path]()  # of the test that runs
DESELECTED = pytest.StashKey[Counter[str]]()
PERTURBED = int(os.environ.get("VIT_TRIO_PERTURB", 0))  # of which run of tests/portable.py: other random inputs

# Files that take minutes: with one process a file, those begin first, so that none is left for the end.
LONGEST = (
    "test_jax_examples.py",
    "test_keras_examples.py",
    "test_models.py",
    "test_tf.py",
    "test_flax.py",
    "test_finetune.py",
    "test_conversion.py",
    "test_guides.py",
    "test_scale_torch.py",
    "test_scale_jax.py",
    "test_scale_keras.py",
    "test_readme.py",
    "test_gpu_benchmark.py",
)


# How long an example takes says how busy the machine is; the suite has the same examples every time, a search others.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("suite"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where models run (tests/card.py)")


def pytest_configure(config: pytest.Config) -> None:
    """With several processes, each on a core of its own: frameworks then start one thread, not one for every core."""
    if config.getoption("--device") == "cuda":
        use_card()
    else:
        compile_quickly()  # but for test_full_size.py
        once = ExitStack()
        once.enter_context(compiled_once())
        config.add_cleanup(once.close)
    if PERTURBED:
        drawn = np.random.default_rng
        np.random.default_rng = lambda seed=None: drawn([PERTURBED, seed] if isinstance(seed, int) else seed)
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; with VIT_TRIO_SHUFFLE, files and the tests of each in the order of that seed.

    With --device cuda without those that make no sense on a card; `pytest_terminal_summary` says which, and why.
    """
    if config.getoption("--device") == "cuda":
        reasons = {item: left_out(item) for item in items}
        config.stash[DESELECTED] = Counter(reason for reason in reasons.values() if reason)
        config.hook.pytest_deselected(items=[item for item in items if reasons[item]])
        items[:] = [item for item in items if not reasons[item]]
    if seed := os.environ.get("VIT_TRIO_SHUFFLE"):
        order = random.Random(seed)
        places = {path: order.random() for path in sorted({item.path for item in items})}
        items.sort(key=lambda item: (places[item.path], order.random()))
    else:
        items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What earlier tests have left alive stays out of garbage collections: three frameworks are a large heap.

    What earlier files have freed goes back to the system: glibc keeps half of a process's memory.
    """
    gc.collect()
    gc.freeze()
    leave_graphs()
    remember_shapes()
    if item.config.stash.get(FILE, None) != item.path:
        item.config.stash[FILE] = item.path
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How many tests were left out, for each reason."""
    if found := config.stash.get(DESELECTED, None):
        terminalreporter.section("left out with --device cuda")
        for reason, count in found.most_common():
            terminalreporter.line(f"{count:5} {reason}")


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    """Each backend in turn; one whose framework is not installed is skipped by name."""
    try:
        return BACKENDS[request.param]()
    except ImportError as error:
        pytest.skip(f"backend {request.param} is not installed: {error}")


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    """The inputs of the golden model cases."""
    found = dict(np.load(GOLDEN / "inputs.npz"))
    return {name: moved(array) if array.dtype == np.float32 else array for name, array in found.items()}


@pytest.fixture(scope="session")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model with the first of its layers alone: what an export or a training costs grows with them.

    Its head is solved for the pictures beside it, of which it is right.
    """
    folder = tmp_path_factory.mktemp("shallow")
    shutil.copytree(DIGITS, folder, dirs_exist_ok=True)
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 1}))
    tensors = load_file(weights)
    weights.unlink()  # the installed one may be read-only
    kept = {name: array for name, array in tensors.items() if not re.search(r"layer\.[1-9]\.", name)}
    pictures = sorted((folder / "pictures").iterdir())
    pixels = np.asarray(ViTImageProcessor.from_pretrained(folder)(pictures, return_tensors="np").pixel_values)
    arrays = {name.removeprefix("vit."): np.float64(array) for name, array in kept.items()}
    tokens = reference.forward(arrays, ViTConfig.from_pretrained(folder), pixels)["layernorm"][:, 0]
    logits = 5 * np.eye(10)[[int(path.name[0]) for path in pictures]]
    kept["classifier.weight"] = np.linalg.lstsq(tokens, logits, rcond=None)[0].T.astype(np.float32, order="C")
    kept["classifier.bias"] = np.zeros(10, np.float32)
    save_file(kept, weights, metadata={"format": "pt"})
    return folder


def moved(array: np.ndarray) -> np.ndarray:
    """Each number as it is, or, in a perturbed run, the next one above or below: as far as rounding is from exact."""
    if not PERTURBED:
        return array
    up = np.random.default_rng(0).random(array.shape) < 0.5
    return np.nextafter(array, np.where(up, np.inf, -np.inf).astype(array.dtype))


def golden_cases(kind: str) -> list[Any]:
    """The golden calls that gave "outputs", or those that gave an "error", as pytest parameters."""
    cases = json.loads((GOLDEN / "cases.json").read_text())
    return [pytest.param(case, id=case["case"]) for case in cases if kind in case]


def checkpoint_path(case: dict[str, Any]) -> Path:
    """The folder a golden case was run on."""
    name = case["ckpt"]
    return CHECKPOINTS / (name if "/" in name else f"{name}/pt_safetensors")
