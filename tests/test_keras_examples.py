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
    """Python with these arguments; `dies` is the function whose second call kills it."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    env = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    killer = [str(ROOT / "tests" / "dying.py"), dies, "2", "0"] if dies else []
    command = [sys.executable, "-W", "error", "-W", KERAS_ITSELF, *killer, *map(str, arguments)]
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trained")
    output = run(SCRIPT, "--out", folder, "--epochs", 20, "--rate", 1e-3)
    print(output)
    return folder, output


@pytest.mark.slow
def test_trained_to_the_end(backend: Any, trained: tuple[Path, str], held_out: Any) -> None:  # noqa: F811
    """Every backend reads the folder, and is right as often as the script said."""
    folder, output = trained
    processor = ViTImageProcessor.from_pretrained(folder)
    model = backend.load("ViTForImageClassification", folder)
    pixels = processor(held_out.images(), return_tensors="np").pixel_values
    right = backend.call(model, pixel_values=pixels).logits.argmax(-1) == held_out.labels
    assert right.mean() >= LEARNT
    assert f"Held-out accuracy: {right.mean():.2%} of {len(right)}" in output


@pytest.mark.slow
def test_the_trained_model_predicts_the_same_in_torch(trained: tuple[Path, str], held_out: Any) -> None:  # noqa: F811
    vit_torch, torch = pytest.importorskip("vit_torch"), pytest.importorskip("torch")
    vit_tf = pytest.importorskip("vit_tf")
    pixels = ViTImageProcessor.from_pretrained(trained[0])(held_out.images(), return_tensors="np").pixel_values
    expected = vit_tf.TFViTForImageClassification.from_pretrained(trained[0])(pixels).logits.numpy()
    with torch.inference_mode():
        model = vit_torch.ViTForImageClassification.from_pretrained(trained[0])
        actual = model(torch.from_numpy(pixels)).logits.numpy()
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.slow
def test_the_history_is_logged_and_drawn(trained: tuple[Path, str]) -> None:
    folder, output = trained
    rows = log(folder)
    assert [int(row["epoch"]) for row in rows] == list(range(len(rows)))
    assert len(rows) == len(re.findall(r"^Epoch \d+/", output, re.MULTILINE))
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) / 2
    assert_curves_are_drawn(folder / "history.png")
    assert not (folder / "backup").exists()


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


SHORT = ("--epochs", 3, "--batch", 256)


SEEDED = """
import sys
from pathlib import Path
from keras_fit import main
for name, seed in (("one", 3), ("same", 3), ("other", 4)):
    main(Path(sys.argv[1], name), epochs=1, batch=256, seed=seed)
"""


@pytest.mark.slow
def test_the_seed_repeats_a_training(tmp_path: Path) -> None:
    run("-c", SEEDED, tmp_path)
    one, same, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "same", "other"))
    for key, array in one.items():
        np.testing.assert_array_equal(same[key], array, err_msg=key)
        assert not np.array_equal(other[key], array), key


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    killed = start(SCRIPT, "--out", tmp_path, *SHORT, dies="keras.callbacks:BackupAndRestore.on_epoch_end")
    _, err = killed.communicate(timeout=HANGS)
    assert killed.returncode == -signal.SIGKILL, err
    output = run(SCRIPT, "--out", tmp_path, *SHORT)
    assert "Epoch 1/3" not in output
    assert "Epoch 3/3" in output
    assert {int(row["epoch"]) for row in log(tmp_path)} == {0, 1, 2}
    assert_curves_are_drawn(tmp_path / "history.png")
