"""JAX's training scripts on two processes: the losses of one, sharded checkpoints, and what a lost process does."""

from __future__ import annotations

import os
import signal
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from closeness import assert_close
from safetensors.numpy import load_file
from tolerances import SAME_LOSS
from trainings import command, free_port, losses, need, start, table, wait_for_a_checkpoint, write_digits

from vit_core.backends import DIGITS
from vit_core.config import ViTConfig
from vit_core.image_processing import ViTImageProcessor

FLAGS = {"epochs": 3, "batch_size": 8, "accumulate": 2, "ema": 0.9, "mixup": 0.2, "rate": 5e-3}
ENDED = 60  # seconds in which a process ends after another was lost: the engine's 20, and some for a busy machine


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures, and a model of one layer, which compiles fast."""
    need("jax")
    folder = tmp_path_factory.mktemp("data")
    config = ViTConfig.from_pretrained(DIGITS).copy(num_hidden_layers=1)
    import_module("vit_flax").ViTForImageClassification(config, seed=0).save_pretrained(folder / "model")
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(folder / "model")
    return {"pictures": write_digits(folder / "pictures", per_class=5), "model": folder / "model"}


@pytest.fixture(scope="module")
def alone(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    finetune(data, out)
    return out


def finetune(data: dict[str, Path], out: Path, **flags: Any) -> None:
    script = import_module("finetune_jax")
    model = str(data["model"])
    script.main(script.FineTuning(pictures=data["pictures"], model=model, out=out, **{**FLAGS, **flags}))


def start_two(data: dict[str, Path], out: Path, parallel: str) -> list[subprocess.Popen[str]]:
    """Two processes with two devices each."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in FLAGS.items()]
    line = command("finetune_jax.py", data["pictures"], f"--out={out}", f"--model={data['model']}", *flags)
    shared = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    return [start([*line, f"--parallel={parallel}"], JAX_PROCESS_ID=str(number), **shared) for number in range(2)]


@pytest.mark.slow
def test_two_processes_train_as_one(data: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    processes = start_two(data, tmp_path / "two", "data")
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert ["epoch 3 of 3" in output for output in outputs] == [True, False]
    assert_close(losses(tmp_path / "two"), losses(alone), SAME_LOSS, each=True)
    for row, expected in zip(*(table(out / "metrics.csv") for out in (tmp_path / "two", alone)), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)
    checkpoints = tmp_path / "two" / "checkpoints"
    for part in ("ocdbt.process_0", "ocdbt.process_1"):
        assert sum(path.stat().st_size for path in (checkpoints / "3" / "default" / part).rglob("*")) > 1e5
    import_module("gather").main(checkpoints, tmp_path / "gathered", None)
    expected, gathered = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "gathered"))
    assert expected.keys() == gathered.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(gathered[name], array, err_msg=name)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_resumes_on_one(data: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    processes = start_two(data, tmp_path, "tensor")
    wait_for_a_checkpoint("jax", tmp_path, *processes)
    os.kill(processes[1].pid, signal.SIGKILL)
    output, _ = processes[0].communicate(timeout=ENDED)
    processes[1].communicate()
    assert processes[0].returncode == -signal.SIGABRT
    assert "Process 0 of 2. If another one is lost, this one ends within 20 seconds: run the same command" in output
    assert "most likely indicates that another task died" in output
    assert not (tmp_path / "model.safetensors").exists()
    seen = table(tmp_path / "steps.csv")[:5]
    finetune(data, tmp_path)
    assert table(tmp_path / "steps.csv")[:5] == seen
    assert_close(losses(tmp_path), losses(alone), SAME_LOSS, each=True)
    assert (tmp_path / "model.safetensors").exists()


def test_a_wrong_start_says_how(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(typer.BadParameter, match=r"--parallel must be one of none, data, tensor, got ddp\."):
        finetune(data, tmp_path, parallel="ddp")
    with pytest.raises(
        typer.BadParameter, match=r"--batch-size 9 can't be cut into 2 equal parts, --accumulate 2 on 1"
    ):
        finetune(data, tmp_path, batch_size=9)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(typer.BadParameter, match="'two' Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROC"):
        finetune(data, tmp_path, parallel="data")
