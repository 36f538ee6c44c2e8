"""Running trainings in tests, by `vit` and the scripts of examples/: in this process, or in processes of their own."""

from __future__ import annotations

import csv
import os
import socket
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from random import SystemRandom
from typing import Any

import psutil
import pytest
from command import HANGS

from vit_core.app.cli import main
from vit_core.assets import DIGITS
from vit_core.family import DeiTConfig
from vit_core.pictures.processing import ViTImageProcessor

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FRAMEWORKS = {"torch": "torch", "keras": "tensorflow", "jax": "jax"}  # by the name in the scripts: what they need
BACKENDS = {"torch": "torch", "keras": "tf", "jax": "flax"}
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
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


def write_deit(folder: Path, architecture: str, processor: ViTImageProcessor | None = None, **changes: Any) -> Path:
    """A small DeiT for the digits, drawn at random, and a processor beside it, by default theirs."""
    known = {str(i): i for i in range(10)}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = DeiTConfig(image_size=24, patch_size=4, encoder_stride=4, label2id=known, **sizes, **changes)
    getattr(import_module("vit_torch"), architecture)(config, seed=1).save_pretrained(folder)
    (processor or ViTImageProcessor.from_pretrained(DIGITS)).save_pretrained(folder)
    return folder


def write_student(folder: Path) -> dict[str, str]:
    """A small DeiT in a folder; the flags of a training in which the digits model teaches it."""
    student = write_deit(folder, "DeiTForImageClassification")
    return {"model": str(student), "teacher": str(DIGITS), "distillation": "soft"}


def dying(script: str, rank: int = 0) -> list[str]:
    """A training script whose process of this rank dies in its second epoch, after the checkpoint of the first."""
    function = "vit_core.app.training.run:Run.end_epoch"
    return [str(ROOT / "tests" / "dying.py"), function, "2", str(rank), str(EXAMPLES / script)]


def command(program: str, *arguments: Any, dies: bool = False) -> list[str]:
    """A script, or `vit`, with warnings as errors."""
    strict = [sys.executable, "-W", "error", "-W", KERAS_ITSELF]
    if program == "vit":
        return [*strict, "-m", "vit_core.cli", *map(str, arguments)]
    return [*strict, *(dying(program) if dies else [str(EXAMPLES / program)]), *map(str, arguments)]


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """A process of its own group, its output in one pipe."""
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | QUIET | variables
    return subprocess.Popen(
        arguments, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def run(program: str, *arguments: Any, code: int = 0, dies: bool = False, **variables: str) -> str:
    """The output of a script, or of `vit`, that ends with this code."""
    process = start(command(program, *arguments, dies=dies), **variables)
    (output,) = finish(process)
    assert process.returncode == code, output
    return output


def run_here(*arguments: Any) -> str:
    """The output of `vit` in this process, which ends well."""
    with redirect_stdout(StringIO()) as output:
        code = main([str(argument) for argument in arguments])
    assert code == 0, output.getvalue()
    return output.getvalue()


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    """The outputs of processes; where one does not end, none of them is left."""
    try:
        return [process.communicate(timeout=HANGS)[0] for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                whole = psutil.Process(process.pid)
                for each in (*whole.children(recursive=True), whole):  # torchrun's have sessions of their own
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
            process.communicate()


def table(path: Path) -> list[dict[str, float]]:
    """The rows of a CSV of numbers."""
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def losses(out: Path) -> list[float]:
    """The loss of every step of a run."""
    return [row["loss"] for row in table(out / "steps.csv")]


def free_port() -> int:
    """A port that nothing listens on, below those that systems give away: it stays free until it is taken."""
    for port in SystemRandom().sample(range(10_000, 30_000), 100):
        with socket.socket() as listening, suppress(OSError):
            listening.bind(("127.0.0.1", port))
            return port
    raise OSError("None of 100 ports from 10000 to 29999 is free.")
