"""What the suite shares: the golden data, and the backends that are installed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backends import BACKENDS

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINTS = GOLDEN / "ckpt"


# Files that take minutes: with one process a file, those begin first, so that none is left for the end.
LONGEST = (
    "test_jax_examples.py",
    "test_keras_examples.py",
    "test_models.py",
    "test_tf.py",
    "test_flax.py",
    "test_readme.py",
)


def pytest_configure() -> None:
    """With several processes, each on a core of its own: frameworks then start one thread, not one for every core."""
    if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


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
    return dict(np.load(GOLDEN / "inputs.npz"))


def golden_cases(kind: str) -> list[Any]:
    """The golden calls that gave "outputs", or those that gave an "error", as pytest parameters."""
    cases = json.loads((GOLDEN / "cases.json").read_text())
    return [pytest.param(case, id=case["case"]) for case in cases if kind in case]


def checkpoint_path(case: dict[str, Any]) -> Path:
    """The folder a golden case was run on."""
    name = case["ckpt"]
    return CHECKPOINTS / (name if "/" in name else f"{name}/pt_safetensors")


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
