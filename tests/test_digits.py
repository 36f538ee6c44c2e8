"""The embedded model: an ordinary folder, small, and right about digits it has never seen."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "vit_core" / "assets" / "digits"
REQUIRED_ACCURACY = 0.97
LEARNT = 0.85  # of what a third of the usual epochs teaches


@pytest.fixture(scope="module")
def held_out() -> Any:
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from digits import load_split
    finally:
        sys.path.pop(0)
    train, held_out = load_split()
    assert not set(train.numbers) & set(held_out.numbers)
    assert (len(train.numbers), len(held_out.numbers)) == (1437, 360)
    return held_out


def test_held_out_accuracy(backend: Any, held_out: Any) -> None:
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    model = backend.load("ViTForImageClassification", DIGITS)
    logits = backend.call(model, pixel_values=processor(held_out.images(), return_tensors="np").pixel_values).logits
    right = int((logits.argmax(-1) == held_out.labels).sum())
    assert right / len(held_out.labels) >= REQUIRED_ACCURACY
    stated = re.search(r"\*\*Held-out accuracy\*\*: ([\d.]+)% \((\d+) of 360\)", (DIGITS / "README.md").read_text())
    assert stated is not None
    assert abs(int(stated[2]) - right) <= 1  # a picture on the edge may fall either way on another processor
    assert float(stated[1]) == pytest.approx(int(stated[2]) / 3.6, abs=0.01)


def test_the_folder() -> None:
    config = ViTConfig.from_pretrained(DIGITS)
    assert config.id2label == {i: str(i) for i in range(10)}
    assert config.architectures == ["ViTForImageClassification"]
    assert (DIGITS / "model.safetensors").stat().st_size <= 1_000_000
    card = (DIGITS / "README.md").read_text()
    for word in ("Data", "Split", "Recipe", "Held-out accuracy"):
        assert f"**{word}**" in card


def test_the_pictures_are_held_out_ones(held_out: Any) -> None:
    pictures = sorted((DIGITS / "pictures").glob("*.png"))
    assert len(pictures) >= 12
    places = {number: i for i, number in enumerate(held_out.numbers)}
    for path in pictures:
        label, number = map(int, path.stem.split("-"))
        np.testing.assert_array_equal(np.asarray(Image.open(path)), held_out.pictures[places[number]])
        assert held_out.labels[places[number]] == label
