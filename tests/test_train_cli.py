"""`vit finetune`: the epoch whose model is kept, the confusion matrix, and what is said where a library is missing.

`test_finetune.py` has what a run leaves, in every framework.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from command import Command
from PIL import Image
from safetensors.numpy import load_file
from trainings import need, table, write_digits

from vit_core.app.cli import main
from vit_core.app.training.batches import PADDING, confusion
from vit_core.app.training.dataset import find_pictures, read_pictures
from vit_core.app.training.drawing import draw_confusion
from vit_core.app.training.finetuning import FineTuner


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command("vit", main, capsys)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("torch")
    return write_digits(tmp_path_factory.mktemp("digits"), per_class=2)


def test_the_best_epochs_model_is_kept(
    vit: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([{"val_loss": 0.5, "val_accuracy": 0.9}, {"val_loss": 0.6, "val_accuracy": 0.9}])
    monkeypatch.setattr(FineTuner, "validate", lambda _: next(measured))
    out = tmp_path / "my vit"
    flags = ("--backend", "torch", "--out", out, "--epochs", 2, "--batch-size", 10, "--validation", 0.5)
    vit("finetune", pictures, *flags, "--keep", "best", "--json")
    assert vit.code == 0, vit.err
    assert "Best epoch: 1 of 2, val_accuracy 0.9000.\n" in vit.err
    assert f"Next: vit classify PICTURES --model '{out}'\n" in vit.err
    document = json.loads(vit.out)
    assert (document["best_epoch"], document["kept_epoch"], document["out"]) == (1, 1, str(out))
    assert [row["val_loss"] for row in document["epochs"]] == [0.5, 0.6]
    assert document["pictures"] == {"training": 10, "validation": 10}
    assert Path(document["confusion"]) == out / "confusion.png"
    kept, *gathered = (load_file(folder / "model.safetensors") for folder in (out, *_gathered(out, tmp_path)))
    assert [all((kept[name] == array).all() for name, array in each.items()) for each in gathered] == [True, False]
    vit("finetune", pictures, *flags, "--keep", "best", "--json")  # there is nothing left to do
    assert json.loads(vit.out) == document
    assert "holds a run with keep: 'best', not 'last'" in vit("finetune", pictures, *flags).err
    (out / "metrics.csv").unlink()
    assert (
        f"{out / 'metrics.csv'} is missing, and the run resumes after epoch 2"
        in vit("finetune", pictures, *flags, "--keep", "best").err
    )


def test_a_run_goes_on_with_its_classes_alone(vit: Command, pictures: Path, tmp_path: Path) -> None:
    """Its folder stands in that of the pictures, and is no class of them."""
    digits = tmp_path / "digits"
    out = digits / "out"
    shutil.copytree(pictures, digits)
    flags = "--backend", "torch", "--out", out, "--epochs", 1, "--batch-size", 10, "--validation", 0.5, "--json"
    arguments = "finetune", digits, *flags
    vit(*arguments)
    assert vit.code == 0, vit.err
    kept = (out / "config.json").read_bytes()
    assert json.loads(vit(*arguments).out)["classes"] == [str(digit) for digit in range(10)]
    (digits / "9").rename(digits / "nine")
    vit(*arguments)
    assert (vit.code, vit.out) == (2, "")
    told = "holds a run with the classes 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, not 0, 1, 2, 3, 4, 5, 6, 7, 8, nine:"
    assert f"{out} {told}" in vit.err
    shutil.copytree(digits / "8", digits / "ten")
    assert "holds a run with the classes" in vit(*arguments).err
    assert (out / "config.json").read_bytes() == kept


def test_runs_among_the_pictures_are_no_pictures(tmp_path: Path) -> None:
    root, run = tmp_path / "pictures", {"pictures": "a", "out": "b"}
    folders = [root / name for name in ("cat", "dog", "mine", "cat/theirs")]
    for folder, settings in zip(folders, ({"editor": 1}, ["out", "pictures"], run, run), strict=True):
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "0.png")
        (folder / "settings.json").write_text(json.dumps(settings))
    (root / "out").mkdir()
    with pytest.warns(UserWarning, match=r"(mine|theirs) holds a training's run: it is left aside\.$") as told:
        found = read_pictures(root, out=root / "out")
    assert found.paths == [root / "cat/0.png", root / "dog/0.png"]
    assert {str(each.message).split()[0] for each in told} == {str(each) for each in folders[2:]}
    with pytest.warns(UserWarning, match="theirs holds a training's run: it is left aside"):
        assert find_pictures(root, out=root / "mine").paths == found.paths


@pytest.mark.parametrize(
    ("command", "name", "words"),
    [
        ("finetune", ".", "holds pictures to train on: name another folder."),
        ("finetune", "3", "holds pictures to train on: name another folder."),
        ("pretrain", ".", "holds pictures to train on: name another folder."),
        ("pretrain", "labels.csv/a", "labels.csv is a file: name another."),
        ("finetune", "labels.csv", "labels.csv is a file: name another."),
    ],
)
def test_folders_that_no_run_can_have(vit: Command, pictures: Path, command: str, name: str, words: str) -> None:
    assert vit.refused(command, pictures, "--out", pictures / name, "--backend", "torch").endswith(f"{words}\n")
    assert not (pictures / "settings.json").exists()


@pytest.mark.parametrize(
    ("command", "flag", "value", "words"),
    [
        ("finetune", "--layer-decay", 2, "--layer-decay must be above 0 and at most 1, got 2."),
        ("finetune", "--layer-decay", 0, "--layer-decay must be above 0 and at most 1, got 0."),
        ("finetune", "--head", "new", "--head must be keep or drop, got new."),
        ("finetune", "--pooler", "new", "--pooler must be keep or drop, got new."),
        ("pretrain", "--mask-unit", 0, "Invalid value for '--mask-unit'"),
    ],
)
def test_values_that_no_training_takes(
    vit: Command, pictures: Path, tmp_path: Path, command: str, flag: str, value: Any, words: str
) -> None:
    """They are told before a folder is begun, which another value would not resume."""
    out = tmp_path / "out"
    assert words in vit.refused(command, pictures, "--out", out, "--batch-size", 4, "--backend", "torch", flag, value)
    assert not out.exists()


def test_a_training_that_diverges_ends(
    vit: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = FineTuner.validate

    def diverging(training: FineTuner) -> dict[str, float]:
        if training.run.rows["metrics.csv"]:  # in the second epoch
            training.trainer.model.classifier.weight.data.fill_(np.nan)
        return validate(training)

    monkeypatch.setattr(FineTuner, "validate", diverging)
    out = tmp_path / "out"
    flags = ("--backend", "torch", "--epochs", 3, "--batch-size", 10, "--validation", 0.5, "--keep", "best")
    assert vit("finetune", pictures, "--out", out, *flags, "--json").code == 1
    assert vit.out == ""
    assert (
        f"vit: The training diverged in epoch 2 of 3, which is not kept; the checkpoint of epoch 1 stays in {out}"
        in (vit.err)
    )
    assert ": loss " in vit.err and ", val_loss nan, " in vit.err
    assert vit.err.endswith("Pass a lower --rate than 0.0005 and another --out.\n")
    assert [path.name for path in (out / "checkpoints").iterdir() if path.is_dir()] == ["1"]
    assert np.isfinite(load_file(out / "model.safetensors")["classifier.weight"]).all()
    assert [row["epoch"] for row in table(out / "metrics.csv")] == [1]


def test_a_disk_that_is_full_at_a_checkpoint(
    vit: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unexpected(BaseException):
        """As PyTorch's, which says nothing of disks."""

    def written(training: FineTuner, epoch: int) -> Any:
        def save(epoch: int) -> None:
            raise Unexpected

        training.trainer.save = save
        return train(training, epoch)

    train = FineTuner.train
    monkeypatch.setattr(FineTuner, "train", written)
    flags = ("--backend", "torch", "--epochs", 1, "--batch-size", 10, "--validation", 0.5)
    with pytest.raises(Unexpected):
        vit("finetune", pictures, "--out", tmp_path / "out", *flags)
    monkeypatch.setattr("vit_core.app.training.loop.disk_usage", lambda path: SimpleNamespace(free=4096))
    assert vit("finetune", pictures, "--out", tmp_path / "out", *flags).code == 2
    words = f"vit: The disk is full, and the checkpoint of epoch 1 not written to {tmp_path / 'out'}. Where there is"
    assert vit.err.splitlines()[-1].startswith(words)


def _gathered(out: Path, folder: Path) -> list[Path]:
    """The models of both checkpoints."""
    for epoch in (1, 2):
        import_module("gather").main(out / "checkpoints", folder / str(epoch), epoch)
    return [folder / "1", folder / "2"]


def test_a_confusion_matrix(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    logits = {1: [0, 1, 0], 2: [0, 0, 1], 3: [1, 0, 0]}  # of pictures of one pixel
    batches = [(np.array([1, 2, 3]), np.array([1, 1, 0])), (np.array([3, 3]), np.array([2, PADDING]))]
    counts = confusion(lambda pixels: np.array([logits[p] for p in pixels]), batches, 3, lambda sums: 2 * sums)
    np.testing.assert_array_equal(counts, [[2, 0, 0], [0, 2, 2], [2, 0, 0]])
    for classes, edge in ((3, 450), (30, 1206)):
        whole = np.zeros((classes, classes))
        whole[:3, :3] = counts
        draw_confusion(tmp_path / "drawn.png", whole, ["c\udce4t", "$dog", "猫" * 30, *map(str, range(3, classes))])
        with Image.open(tmp_path / "drawn.png") as image:
            assert image.size == (edge, edge)
            assert {(8, 48, 107), (247, 251, 255)} <= set(image.convert("RGB").get_flattened_data())  # all, and none


def test_libraries_that_are_missing(
    vit: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: tuple[Any, ...] = ("finetune", pictures, "--out", tmp_path / "out", "--backend", "torch")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorboardX", None)
        assert vit.refused(*arguments).endswith('pip install "vit-trio[train]"\n')
    monkeypatch.delitem(sys.modules, "vit_torch.engine", raising=False)
    monkeypatch.setitem(sys.modules, "torch.distributed.checkpoint", None)
    assert vit.refused(*arguments).endswith('pip install "vit-trio[torch]"\n')
    assert not (tmp_path / "out").exists()


def test_curves_are_drawn_now_and_then_and_at_the_end(
    vit: Command, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, drawn = ("--backend", "torch", "--epochs", 2, "--batch-size", 10, "--validation", 0.5), list[int]()
    monkeypatch.setattr("vit_core.app.training.run.draw_curves", lambda _, __, epochs, *___: drawn.append(len(epochs)))
    for seconds, expected in ((1e9, [2]), (-1.0, [1, 2, 2])):
        drawn.clear()
        monkeypatch.setattr("vit_core.app.training.run.REDRAWN", seconds)
        assert vit("finetune", pictures, "--out", tmp_path / str(seconds), *flags).code == 0
        assert drawn == expected
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("vit_core.app.training.run.draw_curves", full)
    assert vit("finetune", pictures, "--out", tmp_path / str(seconds), *flags).code == 2  # its epochs are done
    assert "No space left on device" in vit.err
