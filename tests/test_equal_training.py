"""A training is the same in every framework: losses of 50 steps and final weights, from one seed, with the frameworks'
own optimizers; and the script of examples/ that shows it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from adapters import BACKENDS
from closeness import assert_within
from PIL import Image
from test_digits import ROOT

for name in ("torch", "sklearn", "matplotlib"):
    pytest.importorskip(name)

sys.path.insert(0, str(ROOT / "examples"))
try:
    import agreement
finally:
    sys.path.pop(0)


@cache
def trained(backend: str, optimizer: str, dtype: str) -> agreement.Run:
    if backend == "flax":
        pytest.importorskip("optax")
    BACKENDS[backend]()  # which sets the number of threads, and JAX to float64
    return agreement.TRAIN[backend](agreement.load_batches(dtype, agreement.STEPS), optimizer, dtype, lambda: None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", agreement.OPTIMIZERS)
def test_a_training_agrees_with_torch(backend: Any, optimizer: str, dtype: str) -> None:
    run, expected = trained(backend.name, optimizer, dtype), trained("torch", optimizer, dtype)
    assert expected.losses[-5:].mean() < expected.losses[:5].mean() / 1.5  # it learns
    assert {w.dtype for w in run.weights.values()} == {np.dtype(dtype)}
    assert run.weights.keys() == expected.weights.keys()
    exact = dtype == "float64"
    allowed = tolerances.SAME_TRAINING_FLOAT64 if exact else tolerances.SAME_TRAINING_FLOAT32
    assert_within(agreement.loss_differences(run, expected).max(), allowed["losses"], "losses")
    assert_within(agreement.weight_difference(run, expected, key_biases=exact), allowed["weights"], "weights")


def test_the_example_draws_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(backend: str, _: Any, optimizer: str, dtype: str, tick: Callable[[], Any]) -> agreement.Run:
        return trained(backend, optimizer, dtype)  # as long as they are by themselves, and compared above

    monkeypatch.setattr(agreement, "TRAIN", {name: partial(again, name) for name in agreement.TRAIN})
    picture = tmp_path / "new" / "curves.png"
    agreement.main(picture)
    printed = capsys.readouterr().out
    assert "relative to the loss" in " ".join(printed.split()) and "curves.png" in printed
    with Image.open(picture) as opened:
        colours = {tuple(rgb) for rgb in np.asarray(opened.convert("RGB")).reshape(-1, 3).tolist()}
    for style in agreement.STYLES.values():
        assert (tuple(bytes.fromhex(style["color"][1:])) in colours) == (style["label"] in printed)


def test_the_example_as_json_without_a_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agreement, "find_spec", {"vit_torch": 1, "torch": 1}.get)
    agreement.main(tmp_path / "curves.png", steps=2, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["compared_with"], found["skipped"]) == ("torch", ["tf", "flax"])
    assert [len(found["losses"][optimizer]["torch"]) for optimizer in agreement.OPTIMIZERS] == [2, 2]
    assert {row["losses_apart"] for row in found["runs"]} == {0.0}
    assert (tmp_path / "curves.png").exists()


def test_without_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "find_spec", lambda module: None)
    with pytest.raises(SystemExit, match="No backend is installed"):
        agreement.main()
