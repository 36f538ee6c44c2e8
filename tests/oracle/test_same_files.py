"""Weight files cross in both directions: nothing missing, nothing unexpected, equal weights and equal outputs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from oracle import MODELS, assert_same_output, pair, pixels

import vit_torch

LIBRARIES = {"ours": vit_torch, "theirs": transformers}
ARCHITECTURE = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "image_size": 12,
    "patch_size": 4,
    "encoder_stride": 4,
    "pooler_output_size": 7,
    "num_labels": 3,
}
SAVES = {
    "whole": {},
    "sharded": {"max_shard_size": 2000},
    "variant": {"variant": "fp16"},
    "sharded variant": {"max_shard_size": "2KB", "variant": "fp16"},
}
DTYPES = ("float32", "float16", "bfloat16", "float64")


def saved(library: str, folder: Path, name: str, dtype: str = "float32", save: Any = None, **kwargs: Any) -> Any:
    """The model of one library, saved to a folder, and the same model of the other."""
    theirs, ours = pair(name, ARCHITECTURE, dtype=getattr(torch, dtype), **kwargs)
    model = ours if library == "ours" else theirs
    model.save_pretrained(folder, **(save or {}))
    return model


def load(library: str, name: str, folder: Path, **kwargs: Any) -> tuple[Any, dict[str, set[str]]]:
    """A model and what its library reports about the loading, as sets of names.

    Unexpected ones are compared without the prefix: theirs takes it off when a bare model reads a headed one's file,
    ours gives the names in the file. Of mismatched ones theirs has the name, ours the shapes as well.
    """
    model_class = getattr(LIBRARIES[library], name)
    model, info = model_class.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **kwargs)
    return model, {
        "missing": set(info["missing_keys"]),
        "unexpected": {key.removeprefix("vit.") for key in info["unexpected_keys"]},
        "mismatched": {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]},
    }


def other(library: str) -> str:
    return next(name for name in LIBRARIES if name != library)


NOTHING: dict[str, set[str]] = {"missing": set(), "unexpected": set(), "mismatched": set()}


@pytest.mark.parametrize("writer", LIBRARIES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_file_crosses(tmp_path: Path, writer: str, name: str, save: str, dtype: str) -> None:
    model = saved(writer, tmp_path, name, dtype, SAVES[save])
    variant = SAVES[save].get("variant")
    loaded, report = load(other(writer), name, tmp_path, variant=variant, dtype="auto")
    assert report == NOTHING
    assert str(loaded.dtype) == f"torch.{dtype}"
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    tolerance = {"float32": tolerances.OUTPUT_FLOAT32, "float64": tolerances.OUTPUT_FLOAT32, **tolerances.HALF}[dtype]
    with torch.no_grad():
        assert_same_output(loaded(pixels(model)), model(pixels(model)), tolerance)


@pytest.mark.parametrize("save", SAVES)
@pytest.mark.parametrize("name", MODELS)
def test_files_have_the_same_names(tmp_path: Path, name: str, save: str) -> None:
    for writer in LIBRARIES:
        saved(writer, tmp_path / writer, name, save=SAVES[save])
    ours, theirs = ({file.name for file in (tmp_path / writer).iterdir()} for writer in LIBRARIES)
    assert ours == theirs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("asked", [None, *DTYPES])
def test_dtype_of_a_loaded_model(tmp_path: Path, dtype: str, asked: str | None) -> None:
    saved("theirs", tmp_path, MODELS[1], dtype)
    (ours, _), (theirs, _) = (load(library, MODELS[1], tmp_path, dtype=asked) for library in LIBRARIES)
    assert ours.dtype == theirs.dtype
    assert ours.config.dtype == str(theirs.config.dtype).removeprefix("torch.")
    assert all(torch.equal(ours.state_dict()[key], value) for key, value in theirs.state_dict().items())


@pytest.mark.parametrize("writer", LIBRARIES)
@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(MODELS, 2)))
def test_change_of_head(tmp_path: Path, writer: str, source: str, target: str) -> None:
    """Both report the same names, and what is not newly initialised is equal. A fresh pooler is asked for in ours."""
    saved(writer, tmp_path, source)
    asked = {"add_pooling_layer": True} if target == "ViTModel" else {}
    (ours, our_report), (theirs, their_report) = (load(library, target, tmp_path, **asked) for library in LIBRARIES)
    assert our_report == their_report
    taken = ours.state_dict().keys() - our_report["missing"]
    assert taken
    assert all(torch.equal(ours.state_dict()[key], theirs.state_dict()[key]) for key in taken)


@pytest.mark.parametrize("pooled", [True, False])
def test_pooler_is_optional(tmp_path: Path, pooled: bool) -> None:
    saved("theirs", tmp_path, "ViTModel", add_pooling_layer=pooled)
    ours, theirs = (load(library, "ViTModel", tmp_path, add_pooling_layer=not pooled)[1] for library in LIBRARIES)
    assert ours == theirs


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
def test_mismatched_sizes(tmp_path: Path, name: str) -> None:
    saved("theirs", tmp_path, name)
    sizes = {"num_labels": 5, "intermediate_size": 8, "pooler_output_size": 4}
    (ours, our_report), (theirs, their_report) = (
        load(library, name, tmp_path, ignore_mismatched_sizes=True, **sizes) for library in LIBRARIES
    )
    assert our_report == their_report
    assert our_report["mismatched"]
    assert ours.config.id2label == theirs.config.id2label
    for key, value in theirs.state_dict().items():
        assert ours.state_dict()[key].shape == value.shape
        assert key in our_report["mismatched"] or torch.equal(ours.state_dict()[key], value)


@pytest.mark.parametrize("base", [True, False], ids=["base", "headed"])
def test_state_dict_as_a_file_of_its_own(tmp_path: Path, base: bool) -> None:
    """A file that says neither its format nor has the prefix that the model wants."""
    from safetensors.torch import save_file

    theirs, _ = pair("ViTForImageClassification", ARCHITECTURE)
    source = theirs.vit if base else theirs
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    theirs.config.save_pretrained(tmp_path)
    ours, our_report = load("ours", "ViTForImageClassification", tmp_path)
    assert our_report == load("theirs", "ViTForImageClassification", tmp_path)[1]
    assert torch.equal(ours.vit.layernorm.weight, theirs.vit.layernorm.weight)
