"""`vit finetune`: the epoch whose model is kept, the confusion matrix, and what is said where a library is missing.

`test_finetune.py` has what a run leaves, in every framework.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command
from PIL import Image
from safetensors.numpy import load_file
from trainings import need, write_digits

from vit_core.app.cli import main
from vit_core.app.training.batches import PADDING, confusion
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
        draw_confusion(tmp_path / "drawn.png", whole, ["cat", "$dog", "猫" * 30, *map(str, range(3, classes))])
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
