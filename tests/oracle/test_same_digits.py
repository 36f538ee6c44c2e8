"""The checkpoint that the package carries loads in transformers, and both say the same about its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from oracle import assert_same_output
from PIL import Image

import vit_core
import vit_torch

DIGITS = Path(vit_core.__file__).parent / "assets" / "digits"
PICTURES = sorted(DIGITS.glob("pictures/*.png"))


def test_processor() -> None:
    images = [Image.open(picture) for picture in PICTURES]
    assert images
    expected = transformers.AutoImageProcessor.from_pretrained(DIGITS, use_fast=False)(images, return_tensors="np")
    for given in (images, PICTURES):
        actual = vit_torch.AutoImageProcessor.from_pretrained(DIGITS)(given, return_tensors="np")
        np.testing.assert_array_equal(actual.pixel_values, expected.pixel_values)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits(attention: str) -> None:
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(
        DIGITS, attn_implementation=attention, output_loading_info=True
    )
    assert not any(info.values())
    ours = vit_torch.ViTForImageClassification.from_pretrained(DIGITS, attn_implementation=attention)
    inputs = vit_torch.AutoImageProcessor.from_pretrained(DIGITS)(PICTURES, return_tensors="pt")
    with torch.no_grad():
        output = ours(**inputs)
        assert_same_output(output, theirs(**inputs), tolerances.OUTPUT_FLOAT32)
    predictions = [ours.config.id2label[label] for label in output.logits.argmax(-1).tolist()]
    assert predictions == [theirs.config.id2label[label] for label in output.logits.argmax(-1).tolist()]
    right = sum(guess == picture.name[0] for guess, picture in zip(predictions, PICTURES, strict=True))
    assert right >= 0.9 * len(PICTURES)
