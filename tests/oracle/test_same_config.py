"""config.json crosses in both directions; every key that both write has the same value."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis.strategies as st
import pytest
import transformers
from hypothesis import given
from oracle import architectures

import vit_torch

COMMON = st.fixed_dictionaries(
    {},
    optional={
        "hidden_dropout_prob": st.sampled_from([0.0, 0.1]),
        "attention_probs_dropout_prob": st.sampled_from([0.0, 0.1]),
        "initializer_range": st.floats(0.001, 1),
        "output_attentions": st.booleans(),
        "output_hidden_states": st.booleans(),
        "return_dict": st.booleans(),
        "problem_type": st.sampled_from(
            [None, "regression", "single_label_classification", "multi_label_classification"]
        ),
        "dtype": st.sampled_from([None, "float32", "float16", "bfloat16", "float64"]),
        "architectures": st.sampled_from([None, ["ViTModel"], ["ViTForImageClassification"]]),
        "a_key_of_a_user": st.sampled_from(["text", [1, {"b": None}], 0.5]),
    },
)
OWN = {  # theirs always has a version; the others are ours alone, and in a file where they are not the default
    "transformers_version", "skip_unread_tokens", "position_kernel", "layer_scale", "drop_path_rate", "pool", "fc_norm",
    "out_features", "out_indices", "apply_layernorm", "reshape_hidden_states",
}  # fmt: skip
NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=4, unique=True)


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    values = {**draw(architectures()), **draw(COMMON)}
    if draw(st.booleans()):
        del values["num_labels"]
        names = draw(NAMES)
        values["id2label"] = dict(enumerate(names))
        values["label2id"] = {name: i for i, name in enumerate(names)}
    return values


def shared(ours: Any, theirs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both configurations say, as JSON has it, in full. A pooler's width of None is the hidden size in ours."""
    a, b = (json.loads(config.to_json_string(use_diff=False)) for config in (ours, theirs))
    a["pooler_output_size"] = a["pooler_output_size"] or a["hidden_size"]
    a = {key: value for key, value in a.items() if key not in OWN}
    assert a.keys() <= b.keys()
    return a, {key: b[key] for key in a}


@given(arguments())
def test_the_same_arguments_mean_the_same(values: dict[str, Any]) -> None:
    ours, theirs = vit_torch.ViTConfig(**values), transformers.ViTConfig(**values)
    a, b = shared(ours, theirs)
    assert a == b
    assert (ours.num_labels, ours.use_return_dict) == (theirs.num_labels, theirs.use_return_dict)
    assert (ours.id2label, ours.label2id) == (theirs.id2label, theirs.label2id)


@pytest.mark.parametrize("writer", ["ours", "theirs"])
@given(arguments())
def test_file_crosses(writer: str, values: dict[str, Any]) -> None:
    ours, theirs = vit_torch.ViTConfig(**values), transformers.ViTConfig(**values)
    with TemporaryDirectory() as folder:
        if writer == "ours":
            ours.save_pretrained(folder)
            theirs = transformers.ViTConfig.from_pretrained(folder)
        else:
            theirs.save_pretrained(folder)
            ours = vit_torch.ViTConfig.from_pretrained(folder)
    a, b = shared(ours, theirs)
    assert a == b
    assert (ours.id2label, ours.label2id) == (theirs.id2label, theirs.label2id)


@given(arguments(), st.sampled_from([{"num_labels": 4}, {"hidden_act": "relu", "num_channels": 2}, {"new": 1}]))
def test_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        vit_torch.ViTConfig(**values).save_pretrained(folder)
        (ours, our_unused), (theirs, their_unused) = (
            library.ViTConfig.from_pretrained(folder, return_unused_kwargs=True, **overrides)
            for library in (vit_torch, transformers)
        )
    a, b = shared(ours, theirs)
    assert a == b
    assert our_unused == their_unused


def test_auto_config_reads_ours(tmp_path: Path) -> None:
    vit_torch.ViTConfig(image_size=32, num_labels=3).save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.ViTConfig
    assert (theirs.image_size, theirs.num_labels) == (32, 3)
