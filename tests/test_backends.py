"""The command and the pipeline give the same answers through every backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from test_digits import DIGITS

from vit_core.app.attention_maps import rollout
from vit_core.app.backends import backend_of
from vit_core.app.cli import main
from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

PICTURES = sorted((DIGITS / "pictures").glob("*.png"))
CONFIG = ViTConfig.from_pretrained(DIGITS)


@pytest.fixture(scope="module")
def logits(backend: Any) -> np.ndarray:
    pixels = ViTImageProcessor.from_pretrained(DIGITS)(PICTURES, return_tensors="np").pixel_values
    model = backend.load("ViTForImageClassification", DIGITS)
    assert backend_of(model) == backend.name
    values: np.ndarray = backend.call(model, pixel_values=pixels).logits
    return values


def test_classify(backend: Any, logits: np.ndarray, capsys: Any) -> None:
    assert main(["classify", str(DIGITS / "pictures"), "--backend", backend.name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["backend"] == backend.name
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for image, path, row in zip(document["images"], PICTURES, scores, strict=True):
        best = image["predictions"][0]
        assert best["label"] == path.name[0]
        assert_close(best["score"], float(row.max()), tolerances.probabilities(CONFIG, float(np.abs(logits).max())))


def test_pipeline_of_the_package(backend: Any) -> None:
    best = backend.package.pipeline("image-classification", model=str(DIGITS))(PICTURES[0])[0]
    assert best["label"] == PICTURES[0].name[0]


def test_attend(backend: Any, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "attention.png"
    arguments = ["attend", str(PICTURES[0]), "--out", str(out), "--backend", backend.name, "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    pixels = ViTImageProcessor.from_pretrained(DIGITS)(PICTURES[0], return_tensors="np").pixel_values
    model = backend.load("ViTForImageClassification", DIGITS)
    attentions = backend.call(model, pixel_values=pixels, output_attentions=True).attentions
    expected = rollout([attention[0] for attention in attentions])[0, 1:].reshape(6, 6)
    largest = -np.log(min(attention.min() for attention in attentions))
    assert_close(document["rollout"], expected.tolist(), tolerances.probabilities(CONFIG, largest), each=True)
    assert out.stat().st_size > 10_000


def test_inspect_reads_what_a_backend_saved(backend: Any, tmp_path: Path, capsys: Any) -> None:
    backend.load("ViTForImageClassification", DIGITS).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "pt"
    assert document["missing"] == document["unexpected"] == []
