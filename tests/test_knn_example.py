"""examples/knn.py: k nearest neighbours and a linear probe on frozen features, in every framework."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import process
from trainings import EXAMPLES, need, write_digits

from vit_core.assets import DIGITS


@pytest.fixture(scope="module")
def knn() -> Any:
    need("torch")
    import_module("torch").set_num_threads(1)  # the model is tiny: a second thread only waits
    return import_module("knn")


def test_dinos_votes(knn: Any) -> None:
    """Caron et al. 2021, appendix F.1: of the k nearest, each adds exp(T_i x / tau) to its class."""
    random = np.random.default_rng(0)
    known, asked, labels = random.normal(size=(60, 5)), random.normal(size=(40, 5)), random.integers(0, 4, 60)
    similarity = asked @ known.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(known, axis=1)
    found = {}
    for tau in (None, 0.07):
        votes = np.zeros((40, 4))
        for x, row in enumerate(similarity):
            for i in np.argsort(-row)[:20]:
                votes[x, labels[i]] += 1 if tau is None else np.exp(row[i] / tau)
        found[tau] = knn.nearest(20, tau).fit(known, labels).predict_proba(asked)
        np.testing.assert_allclose(found[tau], votes / votes.sum(1, keepdims=True), rtol=0, atol=1e-12)
    assert (found[None].argmax(1) != found[0.07].argmax(1)).any()


def test_the_digits_in_every_framework(backend: Any, knn: Any, capsys: pytest.CaptureFixture[str]) -> None:
    knn.main(backend=backend.name, weighted=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    accuracies = [found.pop("knn_accuracy"), found.pop("linear_accuracy")]
    assert found == {
        "model": str(DIGITS), "backend": backend.name, "training": 1437, "held_out": 360, "dimensions": 64, "k": 20,
        "weighted": True,
    }  # fmt: skip
    assert min(accuracies) >= 0.97  # what the classifier is held to (test_digits.py)


def test_a_folder_of_class_folders(tmp_path: Path, knn: Any) -> None:
    write_digits(tmp_path / "digits", per_class=10)
    options = ("--layers", "2,-1", "--pool", "mean", "-k", 3)
    result = process(sys.executable, "-W", "error", EXAMPLES / "knn.py", tmp_path / "digits", *options)
    assert (result.returncode, result.stderr) == (0, "")
    *_, first, second, third = result.stdout.splitlines()
    assert first == "80 pictures to learn from, 20 held out, 128 features each"
    assert second.startswith("3 nearest neighbours: ") and third.startswith("Linear probe: ")
    assert all(float(line.split()[-2]) >= 70 for line in (second, third))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 81}, "-k 81 is more than the 80 pictures to look among: take fewer."),
        ({"layers": "x"}, "--layers x: layers must be numbers with commas between them, such as -1 or 3,-1: got 'x'."),
        ({"layers": "9"}, f"--model {DIGITS}: layers must be a number from 0, the embeddings, to 5, the last layer"),
        ({"model": "./nothing"}, "--model ./nothing: The folder './nothing' does not exist"),
    ],
)
def test_what_can_not_be(options: dict[str, Any], message: str, knn: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        knn.main(write_digits(tmp_path / "digits", per_class=10), **options)
