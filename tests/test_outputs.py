"""The output classes behave as Hugging Face's do, and unpack."""

from __future__ import annotations

import pytest

from vit_core.outputs import ImageClassifierOutput, MaskedImageModelingOutput

OUTPUT = ImageClassifierOutput(logits=[1, 2], attentions=("a",))


def test_indexing_skips_none() -> None:
    assert OUTPUT.logits == OUTPUT["logits"] == OUTPUT[0] == [1, 2]
    assert OUTPUT[-1] == ("a",)
    assert OUTPUT[:1] == ([1, 2],)
    assert OUTPUT.loss is None
    assert OUTPUT.keys() == ("logits", "attentions")
    assert OUTPUT.to_tuple() == OUTPUT.values() == ([1, 2], ("a",))
    assert len(OUTPUT) == 2


def test_unpacking_and_spreading() -> None:
    logits, attentions = OUTPUT
    assert (logits, attentions) == OUTPUT.to_tuple()
    assert dict(**OUTPUT) == dict(OUTPUT.items()) == {"logits": [1, 2], "attentions": ("a",)}


def test_missing_fields() -> None:
    assert "loss" not in OUTPUT
    assert OUTPUT.get("loss", 0) == 0
    with pytest.raises(KeyError, match="'loss': this ImageClassifierOutput has logits, attentions"):
        OUTPUT["loss"]
    with pytest.raises(IndexError):
        OUTPUT[2]
    with pytest.raises(AttributeError):
        OUTPUT.pooler_output  # noqa: B018


def test_old_name_of_the_reconstruction() -> None:
    assert MaskedImageModelingOutput(reconstruction=1).logits == 1
