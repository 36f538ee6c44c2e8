"""The JAX training scripts of examples/, run as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from command import HANGS
from safetensors.numpy import load_file
from test_digits import LEARNT, ROOT, held_out  # noqa: F401  # a fixture
from tolerances import SAME_LOSS

from vit_core.pictures.processing import ViTImageProcessor

for name in ("jax", "flax", "optax", "orbax.checkpoint", "sklearn"):
    pytest.importorskip(name)


def start(script: str, *arguments: Any, dies: str = "", as_users: bool = False) -> subprocess.Popen[str]:
    """A script; `dies` is the function whose third call kills it; `as_users` compile, not as compilation.py says."""
    quick = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS") if as_users else ()
    env = {k: v for k, v in os.environ.items() if k not in quick}
    env |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    killer = [str(ROOT / "tests" / "dying.py"), dies, "3", "0"] if dies else []
    command = [sys.executable, "-W", "error", *killer, str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(script: str, *arguments: Any, **how: Any) -> str:
    process = start(script, *arguments, **how)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    arguments = ("--epochs", 3, "--batch", 128)
    run("jax_train.py", "--out", tmp_path / "whole", *arguments)
    # The second save waits for the first, which goes on beside the training.
    killed = start(
        "jax_train.py", "--out", tmp_path / "killed", *arguments, dies="orbax.checkpoint:CheckpointManager.save"
    )
    _, err = killed.communicate(timeout=HANGS)
    assert killed.returncode == -signal.SIGKILL, err
    resumed = re.search(r"Resumed after epoch (\d)", run("jax_train.py", "--out", tmp_path / "killed", *arguments))
    assert resumed is not None and int(resumed[1]) in (1, 2)
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    for key, array in expected.items():
        np.testing.assert_array_equal(actual[key], array, err_msg=key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    print(run("jax_train.py", "--out", folder, "--epochs", 16, "--batch", 32, as_users=True))
    return folder


@pytest.mark.slow
def test_trained_to_the_end(backend: Any, trained: Path, held_out: Any) -> None:  # noqa: F811
    processor = ViTImageProcessor.from_pretrained(trained)
    model = backend.load("ViTForImageClassification", trained)
    pixels = processor(held_out.images(), return_tensors="np").pixel_values
    right = backend.call(model, pixel_values=pixels).logits.argmax(-1) == held_out.labels
    assert right.mean() >= LEARNT


def losses(output: str) -> np.ndarray:
    return np.array([float(value) for value in re.findall(r"^step \d+: loss (\S+)$", output, re.MULTILINE)])


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one() -> None:
    steps = ("--steps", 5)
    expected = losses(run("jax_pmap.py", "--devices", 1, *steps))
    assert len(expected) == 5
    assert_close(losses(run("jax_pmap.py", "--devices", 8, *steps)), expected, SAME_LOSS, each=True)
    sharded = run("jax_sharded.py", "--data", 4, "--tensor", 2, *steps)
    assert "Each device holds (64, 64) of an MLP kernel of (64, 128)" in sharded
    assert_close(losses(sharded), expected, SAME_LOSS, each=True)


def test_devices_that_do_not_divide_the_batch() -> None:
    process = start("jax_pmap.py", "--devices", 8, "--batch", 60)
    error = re.sub(r"[│\s]+", " ", process.communicate()[1])
    assert "--devices 8: give at most 8, and a divisor of --batch 60." in error
    assert process.returncode == 2
