"""The parameter table: names, shapes and counts, and its three dialects against files that transformers wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import CHECKPOINTS
from hypothesis import given
from members import config_for, of_member
from test_config import configs

from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import ARCHITECTURES, FAMILIES, PARTS, VIT, Family, family_of, has_head, member_of
from vit_core.params import DIALECTS, TORCH, TORCH_V5, count, native_name, parse_name, parse_names, spec_of, specs

# Published number of parameters with the 1,000-class ImageNet head (as timm's model listing has them).
PUBLISHED = {
    "Ti/16": 5_717_416, "S/16": 22_050_664, "B/16": 86_567_656, "B/32": 88_224_232, "L/16": 304_326_632,
    "H/14": 632_045_800,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    assert count(ViTConfig.variant(name, num_labels=1000), PARTS["ViTForImageClassification"]) == PUBLISHED[name]


def test_published_counts_of_other_members() -> None:
    """As the DeiT paper's table 1 and timm's listing have them, the distilled ones with both heads."""
    values = {"hidden_size": 768, "num_labels": 1000}
    teacher = "DeiTForImageClassificationWithTeacher"
    assert count(config_for(teacher, **values), PARTS[teacher]) == 87_338_192


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_is_known_by_its_parameters(architecture: str) -> None:
    family, config = ARCHITECTURES[architecture], config_for(architecture)
    table = specs(config, PARTS[architecture])
    assert family.parts_in(table) == PARTS[architecture]
    headless = not has_head(PARTS[architecture])
    assert family.architecture_of(family.parts_in(table)) == (family.bare if headless else architecture)
    assert member_of(table, FAMILIES.values(), asked=family) is family


@pytest.mark.parametrize(
    ("parts", "tensors"),
    [
        ({"classifier"}, 16 * 12 + 8),
        ({"pooler"}, 16 * 12 + 8),
        (set(), 16 * 12 + 6),
        ({"mask_token", "decoder"}, 16 * 12 + 9),
    ],
)
def test_tensor_counts(parts: set[str], tensors: int) -> None:
    assert len(specs(ViTConfig(), parts)) == tensors
    assert len(specs(ViTConfig(qkv_bias=False), parts)) == tensors - 36


def test_no_labels_no_classifier() -> None:
    assert specs(ViTConfig(num_labels=0), {"classifier"}) == specs(ViTConfig(), set())


def test_sizes_of_any_configuration() -> None:
    """A file may ask for more than any machine has: that is a number, too."""
    sizes = {name: spec.size for name, spec in specs(ViTConfig(hidden_size=12 * 10**17), {"classifier"}).items()}
    assert sizes["encoder.layer.0.attention.attention.query.weight"] == 144 * 10**34


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_parameter_by_its_name(architecture: str) -> None:
    config = config_for(architecture, layer_scale=0.1, num_hidden_layers=2)
    table = specs(config, PARTS[architecture])
    assert {name: spec_of(config, name) for name in table} == table


def test_unknown_part() -> None:
    with pytest.raises(ValueError, match="Unknown parts \\['head'\\]"):
        specs(ViTConfig(), {"head"})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@given(config=configs)
def test_every_name_is_read_back_in_every_dialect(family: Family, config: ViTConfig) -> None:
    table = specs(of_member(family.config, {**vars(config), "layer_scale": 0.1}), family.all_parts)
    for dialect in (*DIALECTS.values(), TORCH_V5):
        for prefixed in (True, False):  # without the prefix there is no head
            shown = [spec for spec in table.values() if prefixed or not spec.row.head]
            names = {native_name(spec, dialect, prefixed): spec for spec in shown}
            assert len(names) == len(shown)
            known = parse_names(names, family, dialect)
            for native, spec in names.items():
                parsed = known[native]
                assert (parsed.name, parsed.piece[0]) == (spec.name, 0)
                there, back = dialect.permutation(spec.kind, spec.leaf), parsed.axes
                if there is not None and back is not None:
                    assert np.transpose(np.empty(spec.shape), there).transpose(back).shape == spec.shape


@pytest.mark.parametrize(
    "name",
    ["encoder.layer.01.layernorm_before.weight", "encoder.layer.0.attention.query.weight", "vit.classifier.weight",
     "embeddings.cls_token.weight", "encoder.layer.0.output.dense.kernel", "vit.vit.layernorm.bias", "layernorm", ""],
)  # fmt: skip
def test_other_names_stand_for_nothing(name: str) -> None:
    assert parse_name(name, VIT, TORCH, TORCH_V5) is None


def test_names_since_transformers_5_9() -> None:
    names = {
        "vit.layers.11.attention.q_proj.weight": "encoder.layer.11.attention.attention.query.weight",
        "layers.0.attention.o_proj.bias": "encoder.layer.0.attention.output.dense.bias",
        "vit.layers.3.mlp.fc1.weight": "encoder.layer.3.intermediate.dense.weight",
        "vit.layers.3.mlp.fc2.bias": "encoder.layer.3.output.dense.bias",
        "layers.2.layernorm_after.weight": "encoder.layer.2.layernorm_after.weight",
        "vit.layernorm.bias": "layernorm.bias",
    }
    for new, canonical in names.items():
        parsed = parse_name(new, VIT, TORCH_V5)
        assert parsed is not None
        assert parsed.name == canonical


def test_the_table_holds_what_transformers_saved() -> None:
    """Every PyTorch file of the golden data: the same names in the same number, each of the table's shape."""
    from safetensors import safe_open

    folders = [p for p in sorted(CHECKPOINTS.glob("*/pt_safetensors*")) if (p / "model.safetensors").is_file()]
    assert len(folders) >= 10
    for folder in folders:
        config = AutoConfig.from_pretrained(folder)
        (architecture,) = config.architectures
        parts, family = PARTS[architecture], family_of(config)
        parts = {"base_nopool": frozenset[str](), "deit_mask_token": {"mask_token"}}.get(folder.parent.name, parts)
        table = specs(config, parts).values()
        expected = {native_name(s, TORCH, architecture != family.bare): s.shape for s in table}
        with safe_open(Path(folder, "model.safetensors"), "np") as file:
            assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == expected  # noqa: SIM118
