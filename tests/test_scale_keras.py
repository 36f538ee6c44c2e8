"""Keras's training scripts on two devices and on two processes: the losses of one, and what a lost process does."""

from __future__ import annotations

import json
import shutil
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
    KERAS_ITSELF,
    ROOT,
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

FLAGS: tuple[Any, ...] = ("--epochs", 3, "--batch-size", 8, "--accumulate", 2, "--ema", 0.9, "--mixup", 0.2)
STRICT = [sys.executable, "-W", "error", "-W", KERAS_ITSELF]

# On two devices, an epoch of four steps in float16, of which what the second one sees of the first step overflows; then
# the trainings of `vit` with these arguments.
TWO_DEVICES = """
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

out, model, trainings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
settings = Settings(pictures=out, out=out, epochs=1, batch_size=8, ema=0.9, precision="float16", parallel="mirrored")
pixels, targets = np.ones((8, 3, 24, 24), np.float32), np.eye(8, 10, dtype=np.float32)
huge = np.where(np.arange(8) < 4, 1, 1e6)[:, None, None, None].astype(np.float32)
with engine.processes(settings) as place:
    trainer = engine.Trainer(
        ViTForImageClassification.from_pretrained(model), engine.class_loss, settings, place, out / "checkpoints", 4
    )
    losses, rates = trainer.epoch([(pixels * huge, targets), *[(pixels, targets)] * 3], lambda: None)
    (out / "overflow.json").write_text(json.dumps([np.asarray(losses).tolist(), rates]))
for name, arguments in trainings.items():
    flags = ["--backend", "tf", "--parallel", "mirrored", "--out", str(out / name)]
    if code := main(["finetune", *arguments, *flags]):
        sys.exit(code)
"""

# Two trainings, by processes that find each other once.
TWO_TRAININGS = """
from dataclasses import replace
import tensorflow as tf
from finetune_keras import FineTuning, processes, train, training_script

tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # as in the suite

def main(settings):
    with processes(settings) as place:
        for name in ("resumed", "lost"):
            train(replace(settings, out=settings.out / name), place)

training_script(main, FineTuning)
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
    out = tmp_path_factory.mktemp("alone")
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
    """The exit codes and outputs of two processes, of which the second dies in the second epoch of `lost`."""
    (out / "script.py").write_text(TWO_TRAININGS)
    arguments = [out / "script.py", pictures, "--out", out, "--model", model, "--parallel", "multiworker", *FLAGS]
    dying = [ROOT / "tests" / "dying.py", "vit_core.app.training.run:Run.end_epoch", 3, 0]  # `resumed` has one epoch
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    tasks = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}) for i in range(2)]
    paths = {"PYTHONPATH": f"{EXAMPLES}:{ROOT}", "PYTHONUNBUFFERED": "1"}
    lines = [[*STRICT, *map(str, line)] for line in (arguments, [*dying, *arguments])]
    processes = [start(line, TF_CONFIG=task, **paths) for line, task in zip(lines, tasks, strict=True)]
    outputs = finish(*processes)
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    need("torch")
    return write_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def by_two(pictures: Path, model: Path, taught: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the trainings of a process with two devices."""
    folder = tmp_path_factory.mktemp("two")
    models = {"plain": {"model": model}, "taught": taught}
    trainings = {
        name: [str(pictures), *map(str, FLAGS), *(f"--{flag}={value}" for flag, value in flags.items())]
        for name, flags in models.items()
    }
    process = start([*STRICT, "-c", TWO_DEVICES, str(folder), str(model), json.dumps(trainings)])
    (output,) = finish(process)
    assert process.returncode == 0, output
    return folder


@pytest.mark.slow
def test_two_devices_train_as_one(alone: Path, by_two: Path) -> None:
    assert_same_run(by_two / "plain", alone)


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
    resumed, run = tmp_path / "resumed", tmp_path / "lost"
    shutil.copytree(alone, resumed, ignore=shutil.ignore_patterns("epoch-3.*", "*.safetensors"))
    (resumed / "checkpoints" / "checkpoint").write_text('model_checkpoint_path: "epoch-2"\n')
    (code, output), (lost, other) = run_two(pictures, model, tmp_path)
    assert (code, lost) == (1, -signal.SIGKILL), output
    assert [text.count("Resumed after epoch 2") for text in (output, other)] == [1, 0]
    assert [text.count("epoch 3 of 3") for text in (output, other)] == [1, 0]
    assert_same_run(resumed, alone)
    assert "Another process of this training was lost" in output
    assert "Run the same command again, in all of them, to resume from the last checkpoint." in output
    assert not (run / "model.safetensors").exists()
    seen = table(run / "steps.csv")[:5]
    finetune(pictures, run, model=str(model))
    assert table(run / "steps.csv")[:5] == seen
    assert_same_run(run, alone)
    for out in (resumed, run):
        kept = sorted(path.name for path in (out / "checkpoints").glob("*.index"))
        assert kept == ["epoch-2.index", "epoch-3.index"]


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
