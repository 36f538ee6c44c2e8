"""JAX's training scripts on two processes: the losses of one, sharded checkpoints, and what a lost process does."""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from safetensors.numpy import load_file
from tolerances import SAME_LOSS
from trainings import (
    EXAMPLES,
    command,
    dying,
    finish,
    free_port,
    losses,
    need,
    start,
    table,
    write_digits,
    write_student,
)

from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

ByTwo = tuple[Path, list[int], list[dict[str, str]]]
FLAGS = {"epochs": 2, "batch_size": 8, "accumulate": 2, "ema": 0.9, "mixup": 0.2, "rate": 5e-3}

# Trainings one after the other, each a command of its own, by processes that find each other once.
TRAININGS = """
import json, runpy, sys
for name, line in json.loads(sys.argv[1]).items():
    print(f"==== {name}", flush=True)
    sys.argv = line
    try:
        runpy.run_path(line[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    print("PyTorch was imported" if "torch" in sys.modules else "without PyTorch")
"""


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
    given = {"model": str(data["model"]), **FLAGS, **flags}
    script.main(script.FineTuning(pictures=data["pictures"], out=out, **given))


@pytest.fixture(scope="module")
def taught(shallow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    need("torch")
    return write_student(tmp_path_factory.mktemp("student")) | {"teacher": str(shallow)}


@pytest.fixture(scope="module")
def taught_alone(data: dict[str, Path], taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught")
    finetune(data, out, **taught)
    return out


@pytest.fixture(scope="module")
def by_two(data: dict[str, Path], taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> ByTwo:
    """Two processes with two devices each, which start once; the second dies in the last of their trainings.

    The folder of the trainings, the exit codes, and what each process printed in each training.
    """
    folder = tmp_path_factory.mktemp("two")
    trainings = {
        "taught": {**taught, "parallel": "tensor"},
        "lost": {"model": str(data["model"]), "parallel": "data"},
    }
    lines: list[dict[str, list[str]]] = [{}, {}]
    for name, more in trainings.items():
        given = {**FLAGS, **more, "out": folder / name}
        flags = [f"--{flag.replace('_', '-')}={value}" for flag, value in given.items()]
        for number, each in enumerate(lines):
            dies = name == "lost" and number == 1
            program = dying("finetune_jax.py") if dies else [str(EXAMPLES / "finetune_jax.py")]
            each[name] = [*program, str(data["pictures"]), *flags]
    shared = {"JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "2"}
    shared["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    python = [sys.executable, "-W", "error", "-c", TRAININGS]
    processes = [start([*python, json.dumps(each)], JAX_PROCESS_ID=str(i), **shared) for i, each in enumerate(lines)]
    outputs = finish(*processes)
    printed = [dict(part.split("\n", 1) for part in output.split("==== ")[1:]) for output in outputs]
    assert [list(each) for each in printed] == [list(trainings)] * 2, outputs
    return folder, [process.returncode for process in processes], printed


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one(taught_alone: Path, by_two: ByTwo, tmp_path: Path) -> None:
    """Each with a part of the parameters on each of its devices."""
    two = by_two[0] / "taught"
    assert ["epoch 2 of 2" in printed["taught"] for printed in by_two[2]] == [True, False]
    assert all(printed["taught"].endswith("without PyTorch\n") for printed in by_two[2])
    assert_close(losses(two), losses(taught_alone), SAME_LOSS, each=True)
    for row, expected in zip(*(table(out / "metrics.csv") for out in (two, taught_alone)), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)
    checkpoints = two / "checkpoints"
    for part in ("ocdbt.process_0", "ocdbt.process_1"):
        assert sum(path.stat().st_size for path in (checkpoints / "2" / "default" / part).rglob("*")) > 1e5
    import_module("gather").main(checkpoints, tmp_path / "gathered", None)
    expected, gathered = (load_file(out / "model.safetensors") for out in (two, tmp_path / "gathered"))
    assert expected.keys() == gathered.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(gathered[name], array, err_msg=name)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_resumes_on_one(data: dict[str, Path], alone: Path, by_two: ByTwo) -> None:
    """Each with the whole of the parameters on each of its devices; the epoch before has the losses of one."""
    folder, (code, lost), (printed, _) = by_two
    out, output = folder / "lost", printed["lost"]
    assert (code, lost) == (-signal.SIGABRT, -signal.SIGKILL), output
    assert "Process 0 of 2. If another one is lost, this one ends within 20 seconds: run the same command" in output
    assert "most likely indicates that another task died" in output
    assert not (out / "model.safetensors").exists()
    seen = table(out / "steps.csv")[:5]
    finetune(data, out)
    assert table(out / "steps.csv")[:5] == seen
    assert_close(losses(out), losses(alone), SAME_LOSS, each=True)
    for row, expected in zip(*(table(folder / "metrics.csv") for folder in (out, alone)), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)
    assert (out / "model.safetensors").exists()


@pytest.mark.slow
def test_a_killed_pretraining_on_two_devices_goes_on_with_one(data: dict[str, Path], tmp_path: Path) -> None:
    """Of an MAE; `test_finetune` has a BEiT that is killed, `test_scale_torch` one of two processes."""
    flags = {"method": "mae", "decoder_layers": 1, "decoder_width": 64, "epochs": 2, "batch_size": 8}
    flags["model"] = str(data["model"])
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    line = command(
        "pretrain_jax.py",
        data["pictures"],
        f"--out={tmp_path / 'two'}",
        "--scratch",
        "--parallel=tensor",
        *given,
        dies=True,
    )
    killed = start(line, JAX_NUM_CPU_DEVICES="2")
    (output,) = finish(killed)
    assert killed.returncode == -signal.SIGKILL, output
    seen = losses(tmp_path / "two")
    script = import_module("pretrain_jax")
    for out in ("two", "one"):
        script.main(script.PreTraining(pictures=data["pictures"], out=tmp_path / out, scratch=True, **flags))
    assert losses(tmp_path / "two")[: len(seen)] == seen
    assert_close(losses(tmp_path / "two"), losses(tmp_path / "one"), SAME_LOSS, each=True)
    for row, expected in zip(*(table(tmp_path / name / "metrics.csv") for name in ("two", "one")), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)


def test_a_wrong_start_says_how(data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--parallel must be one of none, data, tensor, got ddp\."):
        finetune(data, tmp_path, parallel="ddp")
    with pytest.raises(ValueError, match=r"--precision float16 is for PyTorch and Keras, .* in JAX pass bfloat16\."):
        finetune(data, tmp_path, precision="float16")
    with pytest.raises(ValueError, match=r"--batch-size 9 can't be cut into 2 equal parts, --accumulate 2 on 1"):
        finetune(data, tmp_path, batch_size=9)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    for address in (None, "127.0.0.1:1"):  # without one it is no training of this process alone
        if address:
            monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        with pytest.raises(ValueError, match="'two' Set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROC"):
            finetune(data, tmp_path, parallel="data")
