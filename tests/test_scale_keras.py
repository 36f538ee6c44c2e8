"""Keras's training scripts on two devices and on two processes: the losses of one, and what a lost process does."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from closeness import assert_close
from safetensors.numpy import load_file
from tolerances import SAME_LOSS
from trainings import (
    EXAMPLES,
    KERAS_ITSELF,
    ROOT,
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

FLAGS: tuple[Any, ...] = (
    "--epochs", 4, "--batch-size", 8, "--accumulate", 2, "--ema", 0.9, "--mixup", 0.2, "--keep", "best",
)  # fmt: skip
STRICT = [sys.executable, "-W", "error", "-W", KERAS_ITSELF]

# On two devices, an epoch of four steps in float16, of which what the second one sees of the first step overflows; then
# the training of `vit` with these arguments.
TWO_DEVICES = """
import lean
import json, sys
from functools import cache
from pathlib import Path
import numpy as np
import tensorflow as tf
processor = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as in the suite
tf.distribute.MirroredStrategy = cache(tf.distribute.MirroredStrategy)  # a second one mixes its sums with the first's
from vit_core.cli import main
from vit_core.training import Settings
from vit_tf import ViTForImageClassification, engine

out, model, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
settings = Settings(pictures=out, out=out, epochs=1, batch_size=8, ema=0.9, precision="float16", parallel="mirrored")
pixels, targets = np.ones((8, 3, 24, 24), np.float32), np.eye(8, 10, dtype=np.float32)
huge = np.where(np.arange(8) < 4, 1, 1e6)[:, None, None, None].astype(np.float32)
with engine.processes(settings) as place:
    trainer = engine.Trainer(
        ViTForImageClassification.from_pretrained(model), engine.class_loss, settings, place, out / "checkpoints", 4
    )
    losses, rates = trainer.epoch([(pixels * huge, targets), *[(pixels, targets)] * 3], lambda: None)
    (out / "overflow.json").write_text(json.dumps([np.asarray(losses).tolist(), rates]))
sys.exit(main(["finetune", *arguments, "--backend", "tf", "--parallel", "mirrored", "--out", str(out / "taught")]))
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("keras")
    return write_digits(tmp_path_factory.mktemp("digits"), per_class=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer, whose steps are soon traced."""
    need("keras")
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig.from_pretrained(DIGITS, **sizes)
    import_module("vit_tf").ViTForImageClassification(config, seed=0).save_pretrained(folder)
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(pictures: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process on one device, with the checkpoints of all of its epochs."""
    train, out = import_module("tensorflow").train, tmp_path_factory.mktemp("alone")
    manager = partial(train.CheckpointManager, max_to_keep=4)
    with patch.object(train, "CheckpointManager", lambda state, folder, _, **named: manager(state, folder, **named)):
        finetune(pictures, out, model=str(model))
    return out


def finetune(pictures: Path, out: Path, **flags: Any) -> None:
    named = dict(zip([f[2:].replace("-", "_") for f in FLAGS[::2]], FLAGS[1::2], strict=True)) | flags
    script = import_module("finetune_keras")
    script.main(script.FineTuning(pictures=pictures, out=out, **named))


def assert_same_run(out: Path, expected: Path) -> None:
    assert_close(losses(out), losses(expected), SAME_LOSS, each=True)
    for row, other in zip(*(table(folder / "metrics.csv") for folder in (out, expected)), strict=True):
        assert_close(row, other, SAME_LOSS, each=True)
    actual, weights = (load_file(folder / "model.safetensors") for folder in (out, expected))
    for name, array in weights.items():
        if "key/bias" in name or "key.bias" in name:
            continue  # no output depends on it: its gradient is rounding, which AdamW makes into steps of full size
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-5, err_msg=name)


def run_two(pictures: Path, model: Path, out: Path) -> list[tuple[int, str]]:
    """The exit codes and outputs of two processes, of which the second dies at the end of its second epoch."""
    arguments = [pictures, "--out", out, "--model", model, "--parallel", "multiworker", *FLAGS]
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    tasks = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    script = str(EXAMPLES / "finetune_keras.py")
    lines = [[*STRICT, *line, *map(str, arguments)] for line in ([script], dying("finetune_keras.py"))]
    processes = [start(line, TF_CONFIG=task, PYTHONUNBUFFERED="1") for line, task in zip(lines, tasks, strict=True)]
    outputs = finish(*processes)
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    need("torch")
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def by_two(pictures: Path, model: Path, taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what a process with two devices has trained."""
    folder = tmp_path_factory.mktemp("two")
    flags = [f"--{flag}={value}" for flag, value in taught.items()]
    arguments = [str(pictures), *map(str, FLAGS), *flags]
    program = [*STRICT, "-c", TWO_DEVICES, str(folder), str(model), *arguments]
    process = start(program, PYTHONPATH=f"{ROOT / 'tests'}:{ROOT}")
    (output,) = finish(process)
    assert process.returncode == 0, output
    return folder


@pytest.mark.slow
def test_both_devices_skip_a_step_that_overflows_on_one(by_two: Path) -> None:
    losses, rates = json.loads((by_two / "overflow.json").read_text())
    assert rates[0] == rates[1] and rates[2] > rates[3] > 0, rates
    assert np.isfinite(losses).tolist() == [False, True, True, True] and losses[3] < losses[1], losses


@pytest.mark.slow
def test_two_devices_learn_from_a_teacher_as_one(
    pictures: Path, taught: dict[str, str], by_two: Path, tmp_path: Path
) -> None:
    finetune(pictures, tmp_path, **taught)
    assert_same_run(by_two / "taught", tmp_path)


@pytest.mark.slow
def test_a_lost_process_ends_the_other_and_the_run_resumes(
    pictures: Path, model: Path, alone: Path, tmp_path: Path
) -> None:
    """Two processes go on with a run of one, and one with the run that they lose."""
    run = tmp_path / "run"
    shutil.copytree(alone, run, ignore=shutil.ignore_patterns("epoch-[2-4].*", "*.safetensors"))
    (run / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "epoch-1"\n')
    (code, output), (lost, other) = run_two(pictures, model, run)
    assert (code, lost) == (1, -signal.SIGKILL), output
    assert [text.count("Resumed after epoch 1") for text in (output, other)] == [1, 0]
    assert [text.count("epoch 2 of 4") for text in (output, other)] == [1, 0]
    assert "Another process of this training was lost" in output
    assert "Run the same command again, in all of them, to resume from the last checkpoint." in output
    assert (run / "model.safetensors").exists()  # the best one so far
    seen = table(run / "steps.csv")[:10]
    finetune(pictures, run, model=str(model))
    assert table(run / "steps.csv")[:10] == seen
    assert_same_run(run, alone)
    kept = sorted(path.name for path in (run / "checkpoints").glob("*.index"))
    assert kept == ["epoch-1.index", "epoch-3.index", "epoch-4.index"]  # the first was put there


def test_a_wrong_start_says_how(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, expected in (
        ({"parallel": "multiworker"}, "--parallel multiworker, and TF_CONFIG names no task"),
        ({"parallel": "tpu"}, "must be one of none, mirrored, multiworker"),
        ({"accumulate": 3}, "--batch-size 8 can't be cut into 3 equal parts, --accumulate 3 on 1 devices"),
    ):
        with pytest.raises(ValueError, match=expected):
            finetune(pictures, tmp_path, **flags)
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 0}}')
    with pytest.raises(ValueError, match="--parallel none, and TF_CONFIG names worker"):
        finetune(pictures, tmp_path)
    for config, expected in (
        ("{cluster}", "TF_CONFIG must be JSON like .*: Expecting property name"),
        ("null", "TF_CONFIG must be JSON like"),
        ('{"cluster": {"worker": "127.0.0.1:1"}}', "TF_CONFIG must be JSON like .*: The tasks for job 'worker' must"),
        ('{"cluster": {"worker": ["127.0.0.1:1"]}}', "got the type None and the index None"),
        (
            '{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 2}}',
            'TF_CONFIG must name the task .*, "task": {"type": "worker", "index": 0}, .* up to 1: .* the index 2',
        ),
    ):
        monkeypatch.setenv("TF_CONFIG", config)
        with pytest.raises(ValueError, match=expected):
            finetune(pictures, tmp_path, parallel="multiworker")
