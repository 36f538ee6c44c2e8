"""PyTorch's training scripts on two processes: the losses of one, checkpoints, a lost process, threads that end."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from command import HANGS
from safetensors.numpy import load_file
from tolerances import SAME_LOSS
from trainings import dying, finish, free_port, losses, need, start, table, write_digits, write_student

FLAGS = ("--epochs", 2, "--batch-size", 8, "--accumulate", 2, "--ema", 0.9, "--mixup", 0.2)

# Trainings one after the other, each with a process group of its own. First an epoch of four steps in float16, by fsdp;
# the gradients of the first are not finite in the part of one process. Then those of `vit` with these arguments, and
# last a script, in which one process dies.
TRAININGS = """
import json, os, runpy, sys
from pathlib import Path
import numpy as np
from vit_core.assets import DIGITS
from vit_core.cli import main
from vit_core.training import Settings
from vit_torch import ViTForImageClassification, engine

out, trainings = Path(sys.argv[1]), json.loads(sys.argv[2])

def overflow(place):
    model = ViTForImageClassification.from_pretrained(DIGITS)
    trainer = engine.Trainer(model, engine.class_loss, settings, place, out / "checkpoints", 4)
    unscale, steps = trainer.scaler.unscale_, iter(range(4))

    def overflowing(optimizer):
        if next(steps) == 0 and place.rank == 1:
            model.classifier.weight.grad.to_local().fill_(np.inf)
        unscale(optimizer)

    trainer.scaler.unscale_ = overflowing
    batch = np.ones((4, 3, 24, 24), np.float32), np.eye(4, 10, dtype=np.float32)
    losses, rates = trainer.epoch([batch] * 4, lambda: None)
    (out / f"{place.rank}.json").write_text(json.dumps([losses, rates]))

settings = Settings(pictures=out, out=out, epochs=1, batch_size=8, ema=0.9, precision="float16", parallel="fsdp")
with engine.processes(settings) as place:
    overflow(place)
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for name, (port, arguments) in trainings.items():
    os.environ["MASTER_PORT"] = str(port)
    if os.environ["RANK"] == "0":
        print(f"==== {name}", flush=True)
    if name == "lost":
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    elif code := main([*arguments, "--backend", "torch", "--out", str(out / name)]):
        sys.exit(code)
"""
PRETRAINING = {"method": "beit", "tokenizer": "kmeans", "epochs": 2, "batch_size": 8, "accumulate": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("torch")
    return write_digits(tmp_path_factory.mktemp("digits"), per_class=5)


@pytest.fixture(scope="module")
def small(shallow: Path) -> dict[str, str]:
    """The flag of a model of one layer."""
    return {"model": str(shallow)}


@pytest.fixture(scope="module")
def alone(pictures: Path, small: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    finetune(pictures, out, **small)
    return out


def finetune(pictures: Path, out: Path, **flags: Any) -> None:
    named = dict(zip([f[2:].replace("-", "_") for f in FLAGS[::2]], FLAGS[1::2], strict=True)) | flags
    script = import_module("finetune_torch")
    script.main(script.FineTuning(pictures=pictures, out=out, **named))


def torchrun(*program: Any) -> tuple[int, str]:
    """The exit code and output of two processes of a program."""
    launcher = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = start([*launcher, *map(str, program)], PYTHONWARNINGS="error")
    (output,) = finish(process)
    return process.returncode, output


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def taught_alone(pictures: Path, taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("taught")
    finetune(pictures, out, **taught)
    return out


@pytest.fixture(scope="module")
def by_two(
    pictures: Path, small: dict[str, str], taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """The folder of the trainings of two processes, which start once, and by name what each training printed.

    In the last of them the second process dies.
    """
    folder = tmp_path_factory.mktemp("two")
    trainings = {"pretrain": ["pretrain", str(pictures), "--parallel", "ddp", "--scratch", *given(small | PRETRAINING)]}
    for parallel in ("ddp", "fsdp"):
        for name, model in ((parallel, small), (f"taught {parallel}", taught)):
            flags = ("--parallel", parallel, *map(str, FLAGS), *given(model))
            trainings[name] = ["finetune", str(pictures), *flags]
    lost = ("--out", str(folder / "lost"), "--parallel", "fsdp", *map(str, FLAGS), *given(small))
    trainings["lost"] = [*dying("finetune_torch.py", rank=1), str(pictures), *lost]
    (folder / "script.py").write_text(TRAININGS)
    with_ports = {name: (free_port(), arguments) for name, arguments in trainings.items()}
    code, output = torchrun(folder / "script.py", folder, json.dumps(with_ports))
    assert code == 1, output
    _, *parts = output.split("==== ")
    printed = dict(part.split("\n", 1) for part in parts)
    assert printed.keys() == trainings.keys(), output
    return folder, printed


def given(flags: dict[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(
    parallel: str, alone: Path, by_two: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    two = by_two[0] / parallel
    assert by_two[1][parallel].count("epoch 2 of 2") == 1
    assert_close(losses(two), losses(alone), SAME_LOSS, each=True)
    for row, expected in zip(*(table(out / "metrics.csv") for out in (two, alone)), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)
    checkpoints = two / "checkpoints"
    parts = {"ddp": 1, "fsdp": 2}[parallel]  # under ddp every process has the whole, which one of them writes
    assert sum(path.stat().st_size > 1e5 for path in (checkpoints / "2").glob("*.distcp")) >= parts
    import_module("gather").main(checkpoints, tmp_path / "gathered", None)
    expected, gathered = (load_file(out / "model.safetensors") for out in (two, tmp_path / "gathered"))
    for name, array in expected.items():
        np.testing.assert_array_equal(gathered[name], array, err_msg=name)
    assert (tmp_path / "gathered" / "preprocessor_config.json").exists()
    with pytest.raises(ValueError, match=r"no whole checkpoint 7: .* found 1, 2\."):
        import_module("gather").main(checkpoints, tmp_path / "none", 7)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_learn_from_a_teacher_as_one(
    parallel: str, taught_alone: Path, by_two: tuple[Path, dict[str, str]]
) -> None:
    assert_close(losses(by_two[0] / f"taught {parallel}"), losses(taught_alone), SAME_LOSS, each=True)


@pytest.mark.slow
def test_all_processes_skip_a_step_that_overflows_in_one(by_two: tuple[Path, dict[str, str]]) -> None:
    found, other = (json.loads((by_two[0] / f"{rank}.json").read_text()) for rank in (0, 1))
    assert found == other
    losses, rates = found
    assert losses[0] == losses[1] > losses[-1]
    assert rates[0] == rates[1] == rates[2] > rates[3] > 0  # the second step that is taken still has the highest rate


@pytest.mark.slow
def test_two_processes_pretrain_as_one(
    pictures: Path, small: dict[str, str], by_two: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """A BEiT: both have the visual tokens that the first one fitted."""
    script = import_module("pretrain_torch")
    script.main(script.PreTraining(pictures=pictures, out=tmp_path, scratch=True, **small, **PRETRAINING))
    two, printed = by_two[0] / "pretrain", by_two[1]["pretrain"]
    assert printed.count("Fitting 101 visual tokens to the patches of 45 pictures.") == 1
    assert_close(losses(two), losses(tmp_path), SAME_LOSS, each=True)
    for row, expected in zip(*(table(out / "metrics.csv") for out in (two, tmp_path)), strict=True):
        assert_close(row, expected, SAME_LOSS, each=True)


@pytest.mark.slow
def test_a_lost_process_ends_the_run_which_resumes_on_one(
    pictures: Path, small: dict[str, str], by_two: tuple[Path, dict[str, str]]
) -> None:
    lost, output = by_two[0] / "lost", by_two[1]["lost"]
    assert "script.py FAILED" in output and "Signal 9 (SIGKILL) received by PID" in output
    assert not (lost / "model.safetensors").exists()
    done = max(int(path.parent.name) for path in (lost / "checkpoints").glob("*/.metadata"))
    assert done == 1
    seen = table(lost / "steps.csv")[: done * 5]
    assert import_module("vit_torch.engine").checkpoints(lost / "checkpoints")[-1] == done
    finetune(pictures, lost, **small)
    rows = table(lost / "steps.csv")
    assert rows[: len(seen)] == seen
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert (lost / "model.safetensors").exists()


def gloo_threads() -> list[str]:
    """The names of this process's threads that belong to a process group or its store, as Linux knows them."""
    names = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with suppress(OSError):  # it has ended
            names.append(path.read_text().strip())
    return [name for name in names if "gloo" in name or "tcpstore" in name]


def gloo_threads_left() -> list[str]:
    """Those that do not end; one that has been joined may be listed for a moment."""
    given_up = time.monotonic() + HANGS
    while (names := gloo_threads()) and time.monotonic() < given_up:
        time.sleep(0.01)
    return names


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads have names to read on Linux alone")
@pytest.mark.filterwarnings("ignore:Grad strides do not match:UserWarning", "ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize(
    ("name", "settings", "parallel"),  # a script that keeps its model does so under both
    [("finetune_torch", "FineTuning", "fsdp"), ("pretrain_torch", "PreTraining", "ddp")],
)
def test_threads_of_the_process_group_end_with_the_run(
    name: str,
    settings: str,
    parallel: str,
    pictures: Path,
    small: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that is left may be about to free a tensor when Python ends, which then aborts: the run exits with 134."""
    script, engine = import_module(name), import_module("vit_torch.engine")
    flags = {"epochs": 1, "batch_size": 20, "ema": 0.9, "parallel": parallel}
    given = getattr(script, settings)(pictures=pictures, out=tmp_path, **small, **flags)
    with monkeypatch.context() as launched:
        for variable, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            launched.setenv(variable, str(value))
        with engine.processes(given):
            assert gloo_threads()
        script.main(given)
    assert gloo_threads_left() == []
    import_module("gather").main(tmp_path / "checkpoints", tmp_path / "gathered", 1)
    assert gloo_threads_left() == []


def test_a_wrong_start_says_how(pictures: Path, tmp_path: Path) -> None:
    for parallel, expected in (("ddp", "--parallel ddp without torchrun"), ("tpu", "must be one of none, ddp, fsdp")):
        with pytest.raises(ValueError, match=expected):
            finetune(pictures, tmp_path, parallel=parallel)
