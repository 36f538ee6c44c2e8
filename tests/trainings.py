"""Running the training scripts of examples/ in tests: in this process, or in processes of their own."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FIRST = {"torch": "1/.metadata", "keras": "checkpoint", "jax": "1"}  # what is there once the first checkpoint is whole
FRAMEWORKS = {"torch": "torch", "keras": "tensorflow", "jax": "jax"}  # by the name in the scripts: what they need
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than these trainings
}
KERAS_ITSELF = "ignore:__array__ implementation:DeprecationWarning"  # of its variables, with NumPy 2

if str(EXAMPLES) not in sys.path:
    sys.path.insert(0, str(EXAMPLES))


def need(framework: str) -> None:
    """Skip the test where a framework, or what the scripts share, is not installed."""
    for name in (FRAMEWORKS[framework], "sklearn", "matplotlib", "tensorboardX"):
        pytest.importorskip(name)
    if framework == "jax":
        pytest.importorskip("orbax.checkpoint")


def write_digits(folder: Path, per_class: int) -> Path:
    """A folder of class folders of digits, and its CSV."""
    import_module("digits_folder").main(folder, per_class)
    return folder


def command(script: str, *arguments: Any) -> list[str]:
    """A script, with warnings as errors."""
    strict = [sys.executable, "-W", "error", "-W", KERAS_ITSELF]
    return [*strict, str(EXAMPLES / script), *map(str, arguments)]


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """A process of its own group, its output in one pipe."""
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "COLUMNS")} | QUIET | variables
    return subprocess.Popen(
        arguments, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def run(script: str, *arguments: Any, code: int = 0, **variables: str) -> str:
    """The output of a script that ends with this code."""
    process = start(command(script, *arguments), **variables)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def wait_for_a_checkpoint(framework: str, out: Path, *processes: subprocess.Popen[str]) -> None:
    """Wait until the checkpoint of the first epoch is whole; the processes must not end before."""
    while not (out / "checkpoints" / FIRST[framework]).exists():
        assert all(process.poll() is None for process in processes), [p.communicate()[0] for p in processes]
        time.sleep(0.01)


def kill(*processes: subprocess.Popen[str]) -> None:
    """Kill processes and their children, which can't do anything about it."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of numbers."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def losses(out: Path) -> list[float]:
    """The loss of every step of a run."""
    return [row["loss"] for row in table(out / "steps.csv")]


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
