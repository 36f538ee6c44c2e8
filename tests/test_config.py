"""ViTConfig: what it accepts and refuses, and its JSON in both directions."""

from __future__ import annotations

import itertools
import json
import re
from collections import UserList
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINTS
from hypothesis import given
from hypothesis import strategies as st

from vit_core.config import CLASSES, VARIANTS, AutoConfig, ViTConfig
from vit_core.family import (
    DEIT,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    ViTMAEConfig,
    ViTMSNConfig,
    family_of,
)
from vit_core.validation import ACTIVATIONS

GOLDEN_CONFIGS = sorted(CHECKPOINTS.glob("*/*/config.json"))


@pytest.mark.parametrize("path", GOLDEN_CONFIGS, ids=lambda p: "/".join(p.parts[-3:-1]))
def test_transformers_file_is_read_and_written_back_to_the_byte(path: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(path.parent)
    config.save_pretrained(save_directory=tmp_path)
    # A float, which transformers 5 insists on, for the one whole number that transformers 4 wrote.
    stored = path.read_text().replace('"layer_scale_init_value": 0,', '"layer_scale_init_value": 0.0,')
    assert (tmp_path / "config.json").read_text() == stored
    assert AutoConfig.from_json_file(json_file=tmp_path / "config.json") == config


def test_documented_defaults() -> None:
    config = ViTConfig()
    documented = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3,
        "qkv_bias": True, "encoder_stride": 16, "pooler_output_size": None, "pooler_act": "tanh", "num_labels": 2,
        "return_dict": True, "output_attentions": False, "output_hidden_states": False, "problem_type": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in documented} == documented


def test_labels() -> None:
    assert ViTConfig().id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert "id2label" not in ViTConfig().to_diff_dict()
    config = ViTConfig(id2label={"0": "cat", "1": "dog", "2": "owl"})
    assert (config.num_labels, config.label2id) == (3, {"cat": 0, "dog": 1, "owl": 2})
    config.num_labels = 3
    assert config.id2label[2] == "owl"
    config.num_labels = 2
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert ViTConfig(num_labels=0).id2label == {}
    assert ViTConfig.from_dict(ViTConfig(num_labels=0).to_dict()).num_labels == 0
    old = ViTConfig.from_dict({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": "0", "b": "1"}}, num_labels=4)
    assert old.label2id == {f"LABEL_{i}": i for i in range(4)}
    renamed = ViTConfig.from_dict({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, id2label={0: "x"})
    assert (renamed.num_labels, renamed.label2id) == (1, {"x": 0})
    named = ViTConfig.from_dict({"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}}, label2id={"x": 0})
    assert (named.num_labels, named.id2label, named.label2id) == (1, {0: "x"}, {"x": 0})
    assert named.copy(label2id=None) == named
    named.id2label = ["y", "z"]
    assert (named.num_labels, named.label2id) == (2, {"y": 0, "z": 1})


def test_unknown_keys_are_kept() -> None:
    config = ViTConfig(my_note="kept", transformers_version="4.13.0")
    assert config.my_note == "kept"
    again = ViTConfig.from_dict(config_dict=json.loads(config.to_json_string()))
    assert again.my_note == "kept"
    assert again == config


@pytest.mark.parametrize("name", ["gradient_checkpointing", "torchscript"])
def test_what_a_configuration_asks_of_its_model_in_vain(name: str) -> None:
    with pytest.warns(UserWarning, match=f"No model follows {name}=True of its configuration: .*model"):
        config = ViTConfig(**{name: True})
    assert config.to_dict()[name] is True
    ViTConfig(**{name: False})


@pytest.mark.parametrize("cls", [Dinov2Config, Dinov2WithRegistersConfig])
def test_what_a_file_says_of_the_class_itself(cls: type[ViTConfig], tmp_path: Path) -> None:
    """What follows from the fields, or is the same for all, is no field; the width of an MLP is said, but not read."""
    values = {**cls(hidden_size=24).to_dict(), "layer_scale": 0.0, "fc_norm": False}
    for width in (96, 37):
        (tmp_path / "config.json").write_text(json.dumps({**values, "intermediate_size": width}))
        words = rf"{cls.__name__} does not read intermediate_size=37: the MLP is 96 wide, by mlp_ratio=4\. Remove"
        with pytest.warns(UserWarning, match=words) if width == 37 else nullcontext():
            config = AutoConfig.from_pretrained(tmp_path)
        assert (config, config.intermediate_size) == (cls(hidden_size=24), 96)
    with pytest.raises(ValueError, match="'fc_norm' is part of"):
        cls(fc_norm=True)


def test_dtype_under_both_names() -> None:
    assert ViTConfig(torch_dtype="float16").dtype == "float16"
    assert ViTConfig(dtype="torch.bfloat16").dtype == "bfloat16"
    assert ViTConfig(dtype=np.float64).torch_dtype == "float64"
    written = json.loads(ViTConfig(torch_dtype="float16").to_json_string())
    assert written["dtype"] == "float16"
    assert "torch_dtype" not in written
    assert ViTConfig.from_dict({"torch_dtype": "float16"}, dtype="float32").dtype == "float32"


def test_runtime_choices_are_not_written() -> None:
    assert "attn_implementation" not in ViTConfig(attn_implementation="eager").to_dict()


def test_what_a_model_was_loaded_from_is_no_field_of_it() -> None:
    """Under both names, as the files of older versions of transformers say it."""
    config = ViTConfig.from_dict({"_name_or_path": "org/name"})
    assert config.name_or_path == config._name_or_path == config.copy().name_or_path == "org/name"
    assert config == ViTConfig()
    assert config.to_dict() == ViTConfig().to_dict()


@pytest.mark.parametrize(
    ("name", "other", "values"),
    [
        ("dtype", "torch_dtype", ["float16", "float32"]),
        ("attn_implementation", "_attn_implementation", ["sdpa", "eager"]),
        ("name_or_path", "_name_or_path", ["a", "b"]),
    ],
)
def test_an_override_holds_under_either_name(name: str, other: str, values: list[str]) -> None:
    for first, second in itertools.product((name, other), repeat=2):
        config = ViTConfig.from_dict({first: values[0]}, **{second: values[1]})
        assert getattr(config, name) == values[1]
        assert getattr(config.copy(**{second: values[0]}), name) == values[0]


def test_unused_overrides(tmp_path: Path) -> None:
    ViTConfig(hidden_size=36, num_attention_heads=4).save_pretrained(tmp_path)
    config, unused = ViTConfig.from_pretrained(tmp_path, return_unused_kwargs=True, hidden_size=48, colour="red")
    assert (config.hidden_size, unused) == (48, {"colour": "red"})
    assert ViTConfig.from_pretrained(tmp_path / "config.json", hidden_size=40, num_attention_heads=5).hidden_size == 40


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("deit", "ViTConfig is of model_type 'vit', got 'deit': that is of DeiTConfig."),
        (
            "clip",
            "model_type is 'clip', expected one of beit, data2vec-vision, deit, dinov2, dinov2_with_registers, ijepa, "
            "vit, vit_mae, vit_msn.",
        ),
        (5, "model_type is 5, expected one of"),
        (["vit"], "model_type is ['vit'], expected one of"),
    ],
)
def test_another_model_type_is_refused(model_type: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ViTConfig.from_dict({"model_type": model_type})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ValueError, match=re.escape(words)):
        ViTConfig.from_pretrained(tmp_path)
    if model_type != "deit":
        with pytest.raises(ValueError, match=re.escape(words)):
            AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["vit_mae", "vit_msn"])
def test_what_computes_as_a_vit_is_read_as_one(model_type: str) -> None:
    config = ViTConfig.from_dict({"model_type": model_type})
    assert json.loads(config.to_json_string())["model_type"] == "vit"


def test_the_class_is_the_one_that_the_file_names(tmp_path: Path) -> None:
    DeiTConfig(hidden_size=192, num_attention_heads=3, distillation="soft").save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "deit"
    config = AutoConfig.from_pretrained(tmp_path, num_labels=7)
    assert (type(config), config.hidden_size, config.num_labels, config.distillation) == (DeiTConfig, 192, 7, "soft")
    assert type(AutoConfig.for_model("deit")) is DeiTConfig
    assert type(AutoConfig.for_model("vit_mae")) is ViTMAEConfig
    assert type(AutoConfig.for_model("vit_msn")) is ViTMSNConfig
    with pytest.raises(TypeError, match="AutoConfig is not made itself"):
        AutoConfig()


def test_a_class_of_ones_own_is_known_by_its_type() -> None:
    """It computes as the member that it derives from."""

    class OwnConfig(DeiTConfig):
        model_type = "own-deit"

    try:
        assert type(AutoConfig.for_model("own-deit")) is OwnConfig
        assert family_of(OwnConfig()) is DEIT
    finally:
        del CLASSES["own-deit"]


def test_a_class_with_a_type_and_arguments_of_its_own(tmp_path: Path) -> None:
    class OwnConfig(ViTConfig):
        model_type = "own-vit"

        def __init__(self, extra: int = 3, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = extra

    class Same(ViTConfig):
        model_type = "vit"

    try:
        config = OwnConfig(extra=5, hidden_size=192, num_attention_heads=3)
        assert (config.extra, config.hidden_size, config.model_type) == (5, 192, "own-vit")
        config.save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path) == config
        assert type(AutoConfig.for_model("vit")) is ViTConfig  # which a class of another's does not take over
    finally:
        del CLASSES["own-vit"]


BAD_FIELDS: list[tuple[str, Any]] = [
    ("hidden_size", 768.0), ("hidden_size", "768"), ("hidden_size", 0), ("hidden_size", True), ("hidden_size", None),
    ("hidden_size", 770), ("num_hidden_layers", -1), ("num_attention_heads", 0), ("num_channels", 2.5),
    ("image_size", (224,)), ("image_size", (224, 0)), ("image_size", [224, 224, 3]), ("image_size", 8),
    ("image_size", "224"), ("patch_size", 300), ("encoder_stride", 0), ("layer_norm_eps", float("nan")),
    ("layer_norm_eps", float("inf")), ("layer_norm_eps", -1e-6), ("layer_norm_eps", "1e-6"),
    ("initializer_range", float("nan")), ("hidden_dropout_prob", 1.5), ("attention_probs_dropout_prob", -0.1),
    ("hidden_act", "gelou"), ("hidden_act", "prelu"), ("pooler_act", None), ("problem_type", "regresion"),
    ("qkv_bias", "yes"), ("qkv_bias", 0.0), ("return_dict", None), ("num_labels", -1), ("num_labels", 2.0),
    ("id2label", "cat"), ("id2label", {"a": "cat"}), ("label2id", {"cat": "a"}), ("label2id", 2**64),
    ("label2id", "ab"), ("pooler_output_size", -1),
    ("pruned_heads", {"0": [1]}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), BAD_FIELDS, ids=lambda v: str(v))
def test_bad_fields_are_refused_by_name_and_value(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        ViTConfig(**{field: value})
    shown = value if isinstance(value, int) and not isinstance(value, bool) else repr(value)
    assert str(shown) in str(caught.value)


def test_lists_of_other_libraries_are_lists(tmp_path: Path) -> None:
    """OmegaConf's, which Hydra gives, are sequences and no list; a word is none."""
    values: dict[str, Any] = {
        "image_size": [32, 48],
        "out_indices": [1, 3],
        "id2label": ["a", "b"],
        "architectures": ["A"],
    }
    config = ViTConfig(**{name: UserList(value) for name, value in values.items()})
    assert config == ViTConfig(**values)
    config.save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path) == config
    with pytest.raises(ValueError, match="id2label must map label numbers to names, got 'ab'"):
        ViTConfig(id2label="ab")


def test_unknown_activation_lists_the_known() -> None:
    with pytest.raises(ValueError, match=", ".join(ACTIVATIONS)):
        ViTConfig(hidden_act="gelou")


def test_num_labels_against_id2label() -> None:
    with pytest.raises(ValueError, match="num_labels=3 does not match id2label, which has 1 labels"):
        ViTConfig(num_labels=3, id2label={0: "cat"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"hidden_size": 768', "not valid JSON"),
        ("[1, 2]", "must hold a JSON object, got a list"),
        ('{"hidden_size": 768, "hidden_size": 384}', "'hidden_size' occurs twice"),
        ('{"layer_norm_eps": NaN}', "layer_norm_eps must be a finite number"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"architecture": "vit_base_patch14_dinov2", "num_classes": 0}', r"is timm's or keras-hub's, .*\.config\."),
        ('{"registered_name": "keras_hub>ViTBackbone"}', r"is timm's or keras-hub's, .*\.config\."),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        ViTConfig.from_pretrained(tmp_path)


def test_callable_activation_is_usable_but_not_written() -> None:
    config = ViTConfig(hidden_act=abs)
    with pytest.raises(ValueError, match="hidden_act is the function"):
        config.to_json_string()


def test_variants() -> None:
    config = ViTConfig.variant("L/32", image_size=384, num_labels=10)
    assert (config.hidden_size, config.num_hidden_layers, config.patch_size, config.num_patches) == (1024, 24, 32, 144)
    assert all(ViTConfig.variant(f"{letter}/14") for letter in VARIANTS)
    for bad in ("X/16", "B16", "B/", "B/x"):
        with pytest.raises(ValueError, match="Unknown variant"):
            ViTConfig.variant(bad)


def test_update_sets_what_assignments_do() -> None:
    config = ViTConfig()
    config.update({"image_size": 384, "num_labels": 3})
    assert config == ViTConfig(image_size=384, num_labels=3)
    with pytest.raises(ValueError, match="hidden_size"):
        config.update({"hidden_size": "wide"})


def test_copy_is_independent() -> None:
    config = ViTConfig(id2label={0: "a", 1: "b"}, attn_implementation="eager", note=[1])
    other = config.copy(image_size=384)
    other.id2label[0] = "changed"
    other.note.append(2)
    assert (config.id2label[0], config.note, config.image_size) == ("a", [1], 224)
    assert other.attn_implementation == "eager"


sizes = st.one_of(st.integers(1, 64), st.tuples(st.integers(1, 64), st.integers(1, 64)))
configs = st.builds(
    lambda heads, width, image, patch, **rest: ViTConfig(
        heads * width, num_attention_heads=heads, patch_size=patch, image_size=_at_least(image, patch), **rest
    ),
    heads=st.integers(1, 4), width=st.integers(1, 8), image=sizes, patch=sizes,
    num_hidden_layers=st.integers(1, 3), intermediate_size=st.integers(1, 32), num_channels=st.integers(1, 5),
    qkv_bias=st.booleans(), hidden_act=st.sampled_from(ACTIVATIONS), layer_norm_eps=st.floats(0, 1),
    num_labels=st.integers(0, 7), pooler_output_size=st.one_of(st.none(), st.integers(0, 9)), encoder_stride=sizes,
    output_attentions=st.booleans(), problem_type=st.sampled_from([None, "regression", "multi_label_classification"]),
    dtype=st.sampled_from([None, "float32", "bfloat16"]), extra=st.dictionaries(st.text(), st.integers()),
)  # fmt: skip


def _at_least(image: Any, patch: Any) -> Any:
    pairs = [(v, v) if isinstance(v, int) else v for v in (image, patch)]
    return tuple(max(i, p) for i, p in zip(*pairs, strict=True))


@given(config=configs)
def test_json_round_trip(config: ViTConfig) -> None:
    for use_diff in (True, False):
        again = ViTConfig.from_dict(json.loads(config.to_json_string(use_diff)))
        assert again == config
        assert repr(again) == repr(config)
