"""The Keras training scripts of examples/, run as a user runs them."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import HANGS
from PIL import Image
from safetensors.numpy import load_file
from test_digits import LEARNT, ROOT, held_out  # noqa: F401  # a fixture

from vit_core.pictures.processing import ViTImageProcessor

for name in ("tensorflow", "keras", "sklearn", "matplotlib"):
    pytest.importorskip(name)

KERAS_ITSELF = "ignore:__array__ implementation:DeprecationWarning"  # of its variables, with NumPy 2
SCRIPT = ROOT / "examples" / "keras_fit.py"
CURVES = [(31, 119, 180), (255, 127, 14)]  # the colours of training and validation


def start(*arguments: Any, dies: str = "") -> subprocess.Popen[str]:
    """A script, on a model of one layer; `dies` is the function whose second call kills it."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples"), str(ROOT / "tests")])
    env = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    killer = [str(ROOT / "tests" / "dying.py"), dies, "2", "0"] if dies else []
    script = [*killer, str(ROOT / "tests" / "one_layer.py"), *map(str, arguments)]
    command = [sys.executable, "-W", "error", "-W", KERAS_ITSELF, *script]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*arguments: Any) -> str:
    process = start(*arguments)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    return out


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def assert_curves_are_drawn(path: Path) -> None:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        image = np.asarray(picture.convert("RGB"))
    halves = np.array_split(image, 2, axis=1)  # loss, accuracy
    for colour in CURVES:
        assert all((half == colour).all(axis=-1).sum() > 100 for half in halves)


# ---- keras_fit.py ------------------------------------------------------------------------------------------------


# The script with its arguments, and then trainings of several seeds.
AGAIN = """
import lean
import runpy, sys
from pathlib import Path
import tensorflow as tf
from keras_fit import main
script, folder = sys.argv[1], Path(sys.argv[3])
sys.argv = sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as ended:
    if ended.code:
        raise
print("==== seeds")
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
for name, seed in (("one", 3), ("same", 3), ("other", 4)):
    main(folder / name, epochs=1, batch=256, seed=seed)
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The folder of a training that was killed in its second epoch and went on; what it said before that, and after.

    In it are those of trainings of several seeds: such a process is deterministic to its end.
    """
    folder = tmp_path_factory.mktemp("trained")
    arguments = (SCRIPT, "--out", folder, "--epochs", 20, "--rate", 3e-3)
    killed = start(*arguments, dies="keras.callbacks:BackupAndRestore.on_epoch_end")
    before, err = killed.communicate(timeout=HANGS)
    assert killed.returncode == -signal.SIGKILL, err
    (folder / "again.py").write_text(AGAIN)
    after, _, _ = run(folder / "again.py", *arguments).partition("==== seeds")
    print(before, after)
    return folder, before, after


@pytest.mark.slow
def test_trained_to_the_end(backend: Any, trained: tuple[Path, str, str], held_out: Any) -> None:  # noqa: F811
    """Every backend reads the folder, and is right as often as the script said."""
    folder, _, output = trained
    processor = ViTImageProcessor.from_pretrained(folder)
    model = backend.load("ViTForImageClassification", folder)
    pixels = processor(held_out.images(), return_tensors="np").pixel_values
    right = backend.call(model, pixel_values=pixels).logits.argmax(-1) == held_out.labels
    assert right.mean() >= LEARNT
    assert f"Held-out accuracy: {right.mean():.2%} of {len(right)}" in output


@pytest.mark.slow
def test_the_trained_model_predicts_the_same_in_torch(trained: tuple[Path, str, str], held_out: Any) -> None:  # noqa: F811
    vit_torch, torch = pytest.importorskip("vit_torch"), pytest.importorskip("torch")
    vit_tf = pytest.importorskip("vit_tf")
    pixels = ViTImageProcessor.from_pretrained(trained[0])(held_out.images(), return_tensors="np").pixel_values
    expected = vit_tf.TFViTForImageClassification.from_pretrained(trained[0])(pixels).logits.numpy()
    with torch.inference_mode():
        model = vit_torch.ViTForImageClassification.from_pretrained(trained[0])
        actual = model(torch.from_numpy(pixels)).logits.numpy()
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_the_history_is_logged_and_drawn(trained: tuple[Path, str, str]) -> None:
    folder, before, after = trained
    rows = log(folder)
    assert [int(row["epoch"]) for row in rows] == [0, 1, *range(1, 20)]  # killed between the log and the backup of 1
    assert len(rows) == len(re.findall(r"^Epoch \d+/", before + after, re.MULTILINE))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) / 2
    assert_curves_are_drawn(folder / "history.png")
    assert not (folder / "backup").exists()


@pytest.mark.slow
def test_a_killed_training_goes_on(trained: tuple[Path, str, str]) -> None:
    folder, _, output = trained
    assert "Epoch 1/20" not in output
    assert "Epoch 2/20" in output and "Epoch 20/20" in output
    assert_curves_are_drawn(folder / "history.png")


def test_augmentation(monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from keras_fit import RandomAffine

    pictures = np.full((6, 24, 24, 3), -1, np.float32)
    pictures[:, 8:16, 10:14] = 1
    layer = RandomAffine(seed=0)
    np.testing.assert_array_equal(layer(pictures), pictures)
    np.testing.assert_array_equal(RandomAffine(0, 0)(pictures, training=True), pictures)
    first, second = (layer(pictures, training=True).numpy() for _ in range(2))
    found = [*first, *second]
    assert len({each.tobytes() for each in found}) == len(found)
    assert first.min() == -1 and first.max() <= 1
    for each in found:  # what is bright stays within the most that zoom, rotation and shift move it, and keeps its size
        y, x = np.mean(np.argwhere(each[..., 0] > 0), axis=0)
        assert abs(y - 11.5) < 3.5 and abs(x - 11.5) < 3.5
        assert 0.75 < (each[..., 0] + 1).sum() / (pictures[0, ..., 0] + 1).sum() < 1.32
    turned = RandomAffine(90, 0, seed=1)(pictures, training=True).numpy()  # about the centre
    assert max(np.abs(np.mean(np.argwhere(each[..., 0] > 0), axis=0) - 11.5).max() for each in turned) < 0.3


@pytest.mark.slow
def test_the_seed_repeats_a_training(trained: tuple[Path, str, str]) -> None:
    one, same, other = (load_file(trained[0] / name / "model.safetensors") for name in ("one", "same", "other"))
    for key, array in one.items():
        np.testing.assert_array_equal(same[key], array, err_msg=key)
        assert not np.array_equal(other[key], array), key
