"""The output classes behave as Hugging Face's do: ordered dicts of the fields that are not None."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from vit_core.outputs import ImageClassifierOutput, MaskedImageModelingOutput

VALUES = {"logits": [1, 2], "attentions": ("a",)}
OUTPUT = ImageClassifierOutput(**VALUES)


def test_a_dict_of_the_fields_that_are_not_none() -> None:
    assert isinstance(OUTPUT, dict)
    assert dict(OUTPUT) == dict(**OUTPUT) == dict(OUTPUT.items()) == VALUES
    assert list(OUTPUT) == list(OUTPUT.keys()) == ["logits", "attentions"]
    assert OUTPUT.to_tuple() == tuple(OUTPUT.values()) == ([1, 2], ("a",))
    assert len(OUTPUT) == 2
    first, second = OUTPUT
    assert (first, second) == ("logits", "attentions")


def test_fields_by_attribute_key_and_number() -> None:
    assert OUTPUT.logits == OUTPUT["logits"] == OUTPUT[0] == [1, 2]
    assert OUTPUT[-1] == ("a",)
    assert OUTPUT[:1] == ([1, 2],)
    assert OUTPUT.loss is None


def test_missing_fields() -> None:
    assert "loss" not in OUTPUT
    assert OUTPUT.get("loss", 0) == 0
    with pytest.raises(KeyError, match="'loss': this ImageClassifierOutput has logits, attentions"):
        OUTPUT["loss"]
    with pytest.raises(IndexError):
        OUTPUT[2]
    with pytest.raises(AttributeError):
        OUTPUT.pooler_output  # noqa: B018


def test_setting_a_field_sets_both() -> None:
    output = ImageClassifierOutput(**VALUES)
    output.logits = 3
    assert output["logits"] == output[0] == 3
    output["logits"] = 4
    assert output.logits == 4
    output.loss = 5
    assert output["loss"] == 5
    output.loss = None
    assert dict(output) == {"logits": 4, "attentions": ("a",)}
    output["extra"] = 6
    assert output.extra == output[-1] == 6


def test_replacing_fields_makes_another_output() -> None:
    output = ImageClassifierOutput(**VALUES)
    output["extra"] = 6
    found = output.replace(loss=5, attentions=None)
    assert isinstance(found, ImageClassifierOutput)
    assert list(found.items()) == [("loss", 5), ("logits", [1, 2]), ("extra", 6)]
    assert dict(output) == {**VALUES, "extra": 6}
    with pytest.raises(TypeError, match="pooler_output"):
        output.replace(pooler_output=1)


@pytest.mark.parametrize("name", ["pop", "popitem", "update", "setdefault", "clear", "__delitem__"])
def test_fields_are_not_taken_away(name: str) -> None:
    with pytest.raises(TypeError, match="ImageClassifierOutput has the fields of its class, which stay"):
        getattr(OUTPUT, name)("logits")


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "method": lambda output: output.copy(),
    "pickle": lambda output: pickle.loads(pickle.dumps(output)),
    "replace": dataclasses.replace,
    "mapping": lambda output: type(output)(dict(output)),
    "pairs": lambda output: type(output)(list(output.items())),
    "generator": lambda output: type(output)((name, output[name]) for name in output),  # as DataParallel
}


@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str) -> None:
    again = COPIES[name](OUTPUT)
    assert type(again) is ImageClassifierOutput
    assert again is not OUTPUT
    assert again == OUTPUT
    assert dict(again) == VALUES
    assert (again.loss, again.logits) == (None, [1, 2])


def test_a_first_field_is_no_series_of_pairs() -> None:
    assert dict(ImageClassifierOutput([1, 2])) == {"loss": [1, 2]}
    assert dict(ImageClassifierOutput(3)) == {"loss": 3}
    assert dict(ImageClassifierOutput({"loss": 1}, 2)) == {"loss": {"loss": 1}, "logits": 2}


def test_old_name_of_the_reconstruction() -> None:
    assert MaskedImageModelingOutput(reconstruction=1).logits == 1
