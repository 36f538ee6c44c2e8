"""Every format to every other and back is equal bit for bit; what other libraries wrote gives what they computed."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from closeness import assert_close
from conftest import CHECKPOINTS, GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saves import NEW, Model
from tolerances import SAME_FUNCTION_FLOAT64, UNIT_ROUNDOFF, both_rounded
from xxhash import xxh3_128_hexdigest

from conversion import TARGETS, convert, read
from vit_core import ViTConfig
from vit_core.app.cli.inspect import summarise
from vit_core.app.opening import find_processor
from vit_core.assets import DIGITS
from vit_core.config import pair
from vit_core.family import BEIT, DEIT, MAE, PARTS, REGISTERS, Dinov2Config, IJepaConfig
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.tensor import Tensor
from vit_core.formats import timm
from vit_core.formats.huggingface import Checkpoint, read_bin, read_checkpoint, write_checkpoint
from vit_core.params import specs
from vit_core.pictures.processing import AutoImageProcessor, ViTImageProcessor
from vit_core.position import resize_position_embeddings

FORMATS = GOLDEN / "families"
CASES = json.loads((FORMATS / "cases.json").read_text())
FOLDERS = sorted(CHECKPOINTS.glob("*/*"))
CLS = CHECKPOINTS / "cls" / "pt_safetensors"
ALL = [(name, container) for name, target in TARGETS.items() for container in target.containers]


def bits(checkpoint: Checkpoint) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {name: tensor.read() for name, tensor in checkpoint.tensors.items()}
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in found.items()}


SCALED = ("timm_layer_scale", "deit3")


def options(case: str) -> dict[str, Any]:
    """What a user says of a source that does not say it itself."""
    given: dict[str, Any] = {"num_attention_heads": 2}
    if case in SCALED:
        given["fold_layer_scale"] = True
    if case == "vit_tf_masked":
        given["stored_image_size"] = (16, 24)
    return given


def holds(checkpoint: Checkpoint, target: str) -> bool:
    """Whether a format has a place for everything in the checkpoint."""
    names = set(checkpoint.tensors)
    masked = any(name.startswith(("decoder", "embeddings.mask")) for name in names)
    pooled, config = "pooler.dense.weight" in names, checkpoint.config
    if target == "keras":
        return True
    if checkpoint.family is BEIT or target == "timm-beit":
        return target in ("torch", "tf", "flax") or (checkpoint.family is BEIT and target == "timm-beit")
    if checkpoint.config.unknown_to_others or isinstance(checkpoint.config, IJepaConfig):  # a head on the mean
        return target == "timm" or (target in ("torch", "tf", "flax") and not checkpoint.config.unknown_to_others)
    if target in ("torch", "tf", "flax"):
        return True
    if checkpoint.family is MAE or target == "mae":
        return checkpoint.family is MAE and (target == "mae" or not masked)
    if isinstance(checkpoint.config, Dinov2Config):
        return target == "timm" and "classifier.weight" not in names
    if checkpoint.family is DEIT:
        return target == "timm" and not (masked or pooled or "classifier.weight" in names)
    square = all(height == width for height, width in map(pair, (config.image_size, config.patch_size)))
    row = checkpoint.tensors["embeddings.position_embeddings"].read()[:, 0].any()
    return not (
        masked
        or (pooled and target in ("timm", "torchvision", "keras-hub"))
        or (target == "torchvision" and not (square and config.num_channels == 3))
        or (target == "big_vision" and row and isqrt(config.num_patches) ** 2 != config.num_patches)
    )


# ---- without loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: "/".join(p.parts[-2:]))
def test_every_golden_checkpoint_to_every_format_and_back(tmp_path: Path, folder: Path) -> None:
    """A file without bfloat16 has float32 in its place; a family without models of qkv_bias=False has zeros."""
    source = read(folder)
    there = bits(source)
    # A model goes everywhere once; from its other containers, which differ in how they are read, to some in turn.
    apart = folder.name.startswith("pt_safetensors") and not folder.name.endswith("sharded")
    for to, container in ALL if apart else ALL[FOLDERS.index(folder) % 6 :: 6]:
        target, back = tmp_path / f"{to}-{container}", tmp_path / f"{to}-{container}-back"
        if not holds(source, to):
            with pytest.raises(
                ValueError,
                match=r"has no (place for|ViT|DeiT|BEiT|MAE|DINOv2|I-JEPA|MSN|head on)|torchvision's ViT|two heads",
            ):
                convert(folder, target, to=to, container=container)
            assert not target.exists()
            continue
        report = convert(folder, target, to=to, container=container, sync=False)
        found = bits(read(target))
        wider = container == "h5" and to == "tf"
        wanted = {n: bits_of(source.tensors[n].astype(np.float32)) if wider and t[0] == "bfloat16" else t
                  for n, t in there.items()}  # fmt: skip
        assert wanted.items() <= found.items(), (to, container)
        for name in found.keys() - wanted.keys():
            assert name.endswith((".query.bias", ".key.bias", ".value.bias")) and not any(found[name][2]), name
        assert len(report.entries) == len({entry.target for entry in report.entries})
        if len(found) == len(wanted) and not wider:
            convert(target, back, to={"pt": "torch"}.get(source.format, source.format), sync=False)
            assert bits(read(back)) == there, (to, container)


def bits_of(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return tensor.dtype.name, tensor.shape, tensor.read().tobytes()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expects"] == "outputs"])
def test_every_family_to_every_format_and_back(tmp_path: Path, name: str) -> None:
    file, given = FORMATS / CASES[name]["file"], options(name)
    given["head"] = "drop" if "pre_logits" in name else "keep"
    source = read(file, **given)
    there = bits(source)
    held = [to for to in TARGETS if holds(source, to)]
    for to in held if name not in READ_ALONE else held[WRITTEN.index(name) % 3 :: 3]:
        if to == "keras-hub" and source.config.hidden_act != "gelu":
            with pytest.raises(ValueError, match="pass hidden_act"):
                convert(file, tmp_path / to, to=to, **given)
            continue
        convert(file, tmp_path / to, to=to, **given)
        extra = {"stored_image_size": source.config.image_size}
        again = read(tmp_path / to, num_attention_heads=2, **extra)
        assert there.items() <= bits(again).items(), to
        assert {n.split(".")[-1] for n in set(bits(again)) - set(there)} <= {"bias"}, to


@st.composite
def checkpoints(draw: Any) -> tuple[ViTConfig, str, dict[str, Tensor]]:
    heads, patch = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    grid = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    config = ViTConfig(
        hidden_size=heads * draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_hidden_layers=draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(1, 5)),
        patch_size=patch,
        image_size=(grid[0] * patch, grid[1] * patch),
        num_channels=draw(st.integers(1, 4)),
        qkv_bias=draw(st.booleans()),
        num_labels=draw(st.integers(1, 4)),
        layer_norm_eps=1e-6,
    )
    architecture = draw(st.sampled_from(["ViTModel", "ViTForImageClassification"]))
    parts = PARTS[architecture] if draw(st.booleans()) or architecture != "ViTModel" else frozenset()
    dtypes = draw(st.lists(st.sampled_from(["float64", "float32", "float16", "bfloat16"]), min_size=1, max_size=2))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = {}
    for i, (name, spec) in enumerate(specs(config, parts).items()):
        dtype = dtypes[0 if ".attention.attention." in name else i % len(dtypes)]
        tensors[name] = Tensor.of(generator.standard_normal(spec.shape).astype(getattr(ml_dtypes, dtype, dtype)))
    return config, architecture, tensors


def without_pooler(checkpoint: Checkpoint) -> Checkpoint:
    kept = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.startswith("pooler.")}
    return replace(checkpoint, tensors=kept)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=checkpoints(), way=st.lists(st.sampled_from(ALL), min_size=1, max_size=3))
def test_random_models_along_random_ways(tmp_path: Path, drawn: Any, way: list[tuple[str, str]]) -> None:
    config, architecture, tensors = drawn
    shutil.rmtree(tmp_path / "0", ignore_errors=True)
    (tmp_path / "0").mkdir()
    write_checkpoint(
        tmp_path / "0",
        tensors,
        specs(config, {t.split(".")[0] for t in tensors} & {"pooler", "classifier"}),
        architecture,
    )
    config.copy(architectures=[architecture]).save_pretrained(tmp_path / "0")
    there = {name: bits_of(tensor) for name, tensor in tensors.items()}
    for i, (to, container) in enumerate(way, start=1):
        shutil.rmtree(tmp_path / str(i), ignore_errors=True)
        pooler = "drop" if to in ("timm", "torchvision", "keras-hub") else "keep"
        if pooler == "drop":
            there = {name: value for name, value in there.items() if not name.startswith("pooler.")}
        if not holds(without_pooler(read(tmp_path / str(i - 1))), to):
            to, container = "google", "npz"
        convert(tmp_path / str(i - 1), tmp_path / str(i), to=to, container=container, pooler=pooler)
        if (to, container) == ("tf", "h5"):
            there = {n: bits_of(tensors[n].astype(np.float32)) if v[0] == "bfloat16" else v for n, v in there.items()}
    found = bits(read(tmp_path / str(len(way))))
    assert there.items() <= found.items()
    assert all(name.endswith(".bias") and not any(found[name][2]) for name in found.keys() - there.keys())


# ---- what other libraries wrote ----------------------------------------------------------------------------------


WRITTEN = [name for name, case in CASES.items() if case["expects"] == "outputs"]
# Once they are read, these are models of other cases, in configuration and shapes: they show how the core reads a file,
# which one backend shows for all, and some targets.
READ_ALONE = (
    "timm_no_proj_bias", "timm_no_embed_class", "deit", "deit3", "timm_training", "deit_args", "mae_args",
    "timm_saver", "timm_new_head", "torchvision", "torchvision_linear_head", "torchvision_sequential_head",
    "torchvision_nested_head", "torchvision_published", "keras_hub", "keras_hub_preset", "dino_backbone",
    "dino_full", "dino_namespace", "google_linen", "google_target", "big_vision_old",
    "transformers_data2vec-vision", "transformers_data2vec-vision_h5", "deit_distilled", "keras_hub_pre_logits",
    "big_vision_scan", "keras_hub_dinov2_no_mask", "keras_hub_dinov2", "facebook_dinov2_registers",
    "facebook_dinov2_gated", "facebook_dinov2_training", "microsoft_beit", "microsoft_beit_token",
)  # fmt: skip
OPENED = [("torch", name) for name in WRITTEN]
OPENED += [(backend, name) for backend in ("tf", "flax") for name in WRITTEN if name not in READ_ALONE]


@pytest.mark.parametrize(("backend", "name"), OPENED, indirect=["backend"])
def test_outputs_are_those_of_the_library_that_wrote_it(backend: Any, name: str) -> None:
    case, given = CASES[name], options(name)
    wanted = np.load(FORMATS / name / "outputs.npz")
    pixels = np.load(FORMATS / case["inputs"])
    source = read(FORMATS / case["file"], **given, head="fresh")
    headed = source.family.architecture_of(source.family.parts_in(source.tensors))
    for output in wanted.files:
        cls = headed if output in ("logits", "reconstruction", "loss") else source.family.bare
        if "pre_logits" in name and output == "logits":
            cls = "ViTForImageClassification"
            with pytest.raises(ValueError, match="a head on top of a pooler"):
                backend.load(cls, FORMATS / case["file"], **given)
            continue
        if source.config.fc_norm and output == "last_hidden_state":  # which is not normalised
            model = backend.load(headed, FORMATS / case["file"], **given)
            found = backend.call(model, pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        else:
            model = backend.load(cls, FORMATS / case["file"], **given)
            patches = np.arange(model.config.num_patches, dtype=np.float32)
            in_order = {"noise": np.tile(patches, (len(pixels), 1))} if source.family is MAE else {}
            found = backend.call(model, pixel_values=pixels, **in_order)[output]
        assert_close(found, wanted[output], both_rounded(model.config), output)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expects"] == "refused"])
def test_what_is_no_vit_is_refused_by_name(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    words = {
        "cls_token": "no class token",
        "cls": "no class token",
        "layers/vi_t_patching_and_embedding/vars/0": "no class token",
        "norm.weight": "lacks layernorm",
        "pos_embed": "lacks position",
        "blocks.0.attn.q_norm.weight": "qk_norm",
        "conv_root/kernel": "hybrid",
    }
    tensor = case["tensor"].rstrip("/.")
    expected = words.get(case["tensor"], tensor.split(".")[-2] if tensor.count(".") > 1 else tensor.split(".")[0])
    with pytest.raises(ValueError, match=re.escape(expected)):
        convert(FORMATS / case["file"], tmp_path / "new", to="torch", num_attention_heads=2)
    assert not (tmp_path / "new").exists()


def test_a_head_on_the_mean_and_the_model_below_it(tmp_path: Path) -> None:
    """It stays where the target has such heads; transformers' ViT has none, and takes what is below it."""
    file = FORMATS / CASES["timm_avg"]["file"]
    for to in ("torch", "google"):
        with pytest.raises(ValueError, match=r"no place for a head on the mean of the patches: pass head='drop'"):
            convert(file, tmp_path / "new", to=to, num_attention_heads=2)
    report = convert(file, tmp_path / "new", to="torch", num_attention_heads=2, head="drop")
    assert any("became the final norm" in note for note in report.notes)
    assert read(tmp_path / "new").config.architectures == ["ViTModel"]


def pooled_by_timm(folder: Path, pool: str, **more: Any) -> Path:
    """Digits as timm's, with another pooling in its config.json and, where it is asked for, `fc_norm` and registers."""
    convert(DIGITS, folder, to="timm")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"global_pool": pool}))
    tensors = read_safetensors(folder / "model.safetensors")[0]
    names = {"norm.weight": "fc_norm.weight", "norm.bias": "fc_norm.bias"} if more.get("fc_norm") else {}
    renamed = {names.get(name, name): Tensor.of(tensor.read()) for name, tensor in tensors.items()}
    registers = {"reg_token": Tensor.of(np.zeros((1, 2, 64), np.float32))} if more.get("registers") else {}
    write_safetensors(folder / "model.safetensors", renamed | registers, {})
    return folder


@pytest.mark.parametrize("pool", ["avgmax", "max"])
def test_other_poolings_of_timm_are_refused_by_name(tmp_path: Path, pool: str) -> None:
    folder = pooled_by_timm(tmp_path, pool)
    with pytest.raises(ValueError, match=f"has a head on global_pool='{pool}', .*pass head='drop'"):
        read(folder)
    assert read(folder, head="drop").config.pool == "cls"


def test_a_norm_after_pooling_of_the_class_token_is_the_final_norm(tmp_path: Path) -> None:
    """timm's `fc_norm=True` with `global_pool="token"`."""
    found = read(pooled_by_timm(tmp_path, "token", fc_norm=True))
    assert bits(found) == bits(read(DIGITS)) and (found.config.pool, found.config.fc_norm) == ("cls", False)
    dropped = read(tmp_path, head="drop")
    assert not any("mean" in note for note in dropped.notes) and "layernorm.weight" in dropped.tensors


@pytest.mark.parametrize("fc_norm", [False, True])
def test_registers_outside_dinov2_are_refused_by_name(tmp_path: Path, fc_norm: bool) -> None:
    folder = pooled_by_timm(tmp_path, "avg" if fc_norm else "token", registers=True, fc_norm=fc_norm)
    with pytest.raises(ValueError, match=r"no plain ViT .*\n  reg_token: register tokens, which only DINOv2 has"):
        read(folder)


def of_architecture(folder: Path, name: str) -> Path:
    """Digits as timm's, with another architecture in its config.json, which says nothing else of the model."""
    convert(DIGITS, folder, to="timm")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {"architecture": name, "model_args": {"img_size": 32}}))
    return folder


@pytest.mark.parametrize(
    ("name", "heads", "activation"),
    [
        ("vit_small_patch16_224", 6, "gelu"),
        ("deit_tiny_distilled_patch16_224", 3, "gelu"),
        ("flexivit_large", 16, "gelu"),
        ("vit_medium_patch16_gap_256", 8, "gelu"),
        ("vit_base_patch16_gap_224", 16, "gelu"),
        ("vit_base_patch16_siglip_gap_224", 12, "gelu"),
        ("vit_base_patch16_plus_240", 14, "gelu"),
        ("vit_giant_patch14_dinov2", 24, "gelu"),
        ("vit_so400m_patch14_siglip_gap_224", 16, "gelu"),
        ("vit_so400m_patch16_siglip_gap_256", 16, "gelu_new"),
        ("vit_large_patch16_siglip_gap_384", 16, "gelu"),
        ("vit_large_patch16_siglip_gap_512", 16, "gelu_new"),
    ],
)
def test_what_timms_name_of_an_architecture_says(tmp_path: Path, name: str, heads: int, activation: str) -> None:
    said = timm.read_side(of_architecture(tmp_path, name) / "model.safetensors").config
    assert (said["num_attention_heads"], said["hidden_act"]) == (heads, activation)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_base_patch16_rope_ape_224", "rotary position embeddings"),
        ("eva02_tiny_patch14_224", "rotary position embeddings"),
        ("eva02_enormous_patch14_clip_224", "norms behind attention and MLP"),
        ("vit_base_patch16_rpn_224", "norms behind attention and MLP"),
    ],
)
def test_architectures_of_timm_that_only_their_name_tells_from_a_vit(tmp_path: Path, name: str, reason: str) -> None:
    folder = of_architecture(tmp_path, name)
    for head in ("keep", "drop"):
        with pytest.raises(
            ValueError, match=f"is timm's {name}, which has {reason}, and no ViT here: load it with timm"
        ):
            read(folder, head=head)


def dinov2_of_timm(folder: Path, case: str, pool: str, **changed: Any) -> Path:
    """A golden DINOv2 of timm with these tensors as well, and this pooling in its config.json."""
    source = FORMATS / CASES[case]["file"]
    stored = json.loads((source / "config.json").read_text())
    folder.mkdir()
    arguments = stored["model_args"] | {"global_pool": pool}
    (folder / "config.json").write_text(json.dumps(stored | {"model_args": arguments}))
    tensors = {tensor.source: tensor for tensor in read_bin(source / "pytorch_model.bin")[0].values()}
    write_safetensors(folder / "model.safetensors", tensors | {n: Tensor.of(a) for n, a in changed.items()}, {})
    return folder


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("case", ["timm_dinov2", "timm_dinov2_registers"])
def test_a_head_of_timm_on_one_half_of_what_dinov2s_reads(tmp_path: Path, case: str, pool: str) -> None:
    width = read(FORMATS / CASES[case]["file"]).config.hidden_size
    head = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    changed = {"head.weight": head, "head.bias": np.zeros(3, np.float32)}
    found = read(dinov2_of_timm(tmp_path / "timm", case, pool, **changed))
    halves = np.split(found.tensors["classifier.weight"].read(), 2, axis=1)
    read_half, other = halves if pool == "token" else reversed(halves)
    assert np.array_equal(read_half, head) and not other.any()
    assert any("zeros stand beside the weights of the head" in note for note in found.notes)
    assert found.config.architectures[0].endswith("ForImageClassification")
    convert(tmp_path / "timm", tmp_path / "torch", to="torch")
    assert bits(read(tmp_path / "torch")) == bits(found)


def test_registers_that_timm_gives_positions(tmp_path: Path) -> None:
    """Without `no_embed_class`, its default: the sum is computed once, not in each call."""
    source = read(FORMATS / CASES["timm_dinov2_registers"]["file"])
    registers, positions = (
        source.tensors[f"embeddings.{n}"].read() for n in ("register_tokens", "position_embeddings")
    )
    of_registers = np.random.default_rng(0).normal(size=registers.shape).astype(np.float32)
    rows = np.concatenate([positions[:, :1], of_registers, positions[:, 1:]], axis=1)
    folder = dinov2_of_timm(tmp_path / "timm", "timm_dinov2_registers", "token", pos_embed=rows)
    expected = bits(source) | bits(replace(source, tensors={REGISTERS: Tensor.of(registers + of_registers)}))
    assert bits(read(folder)) == expected
    (folder / "config.json").unlink()
    assert bits(read(folder, num_attention_heads=source.config.num_attention_heads)) == expected


def test_a_norm_of_the_mean_without_a_head(tmp_path: Path) -> None:
    """timm's `num_classes=0` with `global_pool="avg"`: a fresh head can stand on it."""
    folder = pooled_by_timm(tmp_path, "avg", fc_norm=True)
    tensors = read_safetensors(folder / "model.safetensors")[0]
    trunk = {name: Tensor.of(tensor.read()) for name, tensor in tensors.items() if not name.startswith("head.")}
    write_safetensors(folder / "model.safetensors", trunk, {})
    with pytest.raises(
        ValueError, match=r"lacks classifier\.bias, classifier\.weight, .*: pass head='drop' for the mod"
    ):
        read(folder)
    assert "layernorm.weight" in read(folder, head="drop").tensors
    fresh = read(folder, head="fresh")
    assert fresh.config.fc_norm and "classifier.weight" not in fresh.tensors


@pytest.mark.parametrize("name", SCALED)
def test_layer_scale_is_the_blocks_own(backend: Any, name: str, tmp_path: Path) -> None:
    """It loads as it is, trains, is saved, and goes to the one other format that has a place for it."""
    file, wanted = FORMATS / CASES[name]["file"], np.load(FORMATS / name / "outputs.npz")["logits"]
    pixels = np.load(FORMATS / CASES[name]["inputs"])
    model = backend.load("ViTForImageClassification", file, num_attention_heads=2)
    assert model.config.layer_scale
    assert_close(backend.call(model, pixel_values=pixels).logits, wanted, both_rounded(model.config))
    with pytest.warns(UserWarning, match="has no place for layer scales"):
        model.save_pretrained(tmp_path / "own")
    again = backend.load("ViTForImageClassification", tmp_path / "own")
    assert_close(backend.call(again, pixel_values=pixels).logits, wanted, both_rounded(model.config))
    convert(tmp_path / "own", tmp_path / "timm", to="timm")
    assert bits(read(tmp_path / "timm", num_attention_heads=2)) == bits(read(tmp_path / "own"))
    convert(tmp_path / "own", tmp_path / "folded", to="torch", fold_layer_scale=True)
    folded = backend.load("ViTForImageClassification", tmp_path / "folded")
    assert not folded.config.layer_scale
    assert_close(backend.call(folded, pixel_values=pixels).logits, wanted, 2 * both_rounded(model.config))
    _, gradients = backend.step(model, pixel_values=pixels, labels=np.zeros(len(pixels), np.int64))
    assert all(np.abs(gradients[f"encoder.layer.0.{name}output.scale"]).max() > 0 for name in ("", "attention."))


def test_layer_scale_is_folded_on_request_alone(tmp_path: Path) -> None:
    file = FORMATS / CASES["timm_layer_scale"]["file"]
    for to in TARGETS:
        if to not in ("timm", "keras", "mae", "timm-beit"):  # the last two have no ViT
            with pytest.raises(ValueError, match=r"has no place for .*pass fold_layer_scale=True"):
                convert(file, tmp_path, to=to, num_attention_heads=2)
    stored, _ = read_safetensors(file if file.is_file() else file / "model.safetensors")
    report = convert(file, tmp_path, to="torch", fold_layer_scale=True, num_attention_heads=2)
    gamma, weight, bias = (stored[f"blocks.0.{n}"].read() for n in ("ls1.gamma", "attn.proj.weight", "attn.proj.bias"))
    found = read_checkpoint(tmp_path / "model.safetensors").tensors
    for leaf, array, scale in (("weight", weight, gamma[:, None]), ("bias", bias, gamma)):
        expected = (array.astype(np.float64) * scale.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(found[f"encoder.layer.0.attention.output.dense.{leaf}"].read(), expected)
    entry = next(e for e in report.entries if e.source == "blocks.0.attn.proj.weight")
    assert entry.transform == "times blocks.0.ls1.gamma"


@pytest.mark.parametrize("target", ["folder", "model.safetensors"])
def test_timm_has_no_deit_with_one_head(tmp_path: Path, target: str) -> None:
    with pytest.raises(ValueError, match="distilled models have two heads, this one has one"):
        convert(CHECKPOINTS / "deit_cls" / "pt_safetensors", tmp_path / target, to="timm")
    assert not (tmp_path / target).exists()


# ---- what is told apart ------------------------------------------------------------------------------------------


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    files = {
        "pt_bin": "pytorch_model.bin",
        "tf_h5": "tf_model.h5",
        "flax_msgpack": "flax_model.msgpack",
        "pt_safetensors": "model.safetensors",
    }
    wanted = bits(read(CLS))
    for folder, file in files.items():
        for name in ("weights", "model.safetensors", "pytorch_model.bin"):
            shutil.copy(CHECKPOINTS / "cls" / folder / file, tmp_path / name)
            assert bits(read(tmp_path / name)) == wanted, (file, name)


def test_wrappers_and_their_keys(tmp_path: Path) -> None:
    full = FORMATS / CASES["dino_full"]["file"]
    assert any("took the state dict 'teacher'" in note for note in read(full, num_attention_heads=2).notes)
    student = read(full, num_attention_heads=2, key="student")
    assert bits(student) != bits(read(full, num_attention_heads=2))
    with pytest.raises(ValueError, match="no state dict 'ema': choose with key= among 'student', 'teacher'"):
        read(full, key="ema")


def test_several_files_ask_for_a_choice(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        shutil.copy(FORMATS / CASES["google"]["file"], tmp_path / name)
    with pytest.raises(ValueError, match=r"several weights files, a\.npz, b\.npz: choose one with filename="):
        read(tmp_path)
    assert read(tmp_path, filename="b.npz").path.name == "b.npz"


def test_unknown_files_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="no file of weights that is known, it begins with b'nothing "):
        read(tmp_path / "a.dat")
    (tmp_path / "b.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="is a Git LFS pointer"):
        read(tmp_path / "b.bin")
    np.savez(tmp_path / "c.npz", **{"conv1/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match=r"c\.npz holds 1 tensors \(conv1/kernel ...\), none of a ViT"):
        read(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(tmp_path / "nowhere")


def test_a_safetensors_file_that_begins_as_a_pickle(tmp_path: Path) -> None:
    """The length of its header, 640 or 65536 bytes more, is its first bytes: those of a pickle of protocol 2."""
    tensors, _ = read_safetensors(CLS / "model.safetensors")
    path, length = (
        tmp_path / "model.safetensors",
        int.from_bytes((CLS / "model.safetensors").read_bytes()[:8], "little"),
    )
    longer = 0x10280 - length - len('"x":"",')
    write_safetensors(path, tensors, {"format": "pt", "x": "y" * longer})
    assert path.read_bytes().startswith(b"\x80\x02")
    assert bits(read(path)) == bits(read(CLS))


def test_tensors_that_no_vit_has_are_not_dropped_silently(tmp_path: Path) -> None:
    tensors, _ = read_safetensors(CLS / "model.safetensors")

    extra = {**tensors, "vit.temperature": Tensor.of(np.ones(1, np.float32))}
    write_safetensors(tmp_path / "model.safetensors", extra, {"format": "pt"})
    shutil.copy(CLS / "config.json", tmp_path)
    with pytest.raises(ValueError, match=r"1 tensors that no ViT has: vit\.temperature\. Pass ignore_unknown=True"):
        convert(tmp_path, tmp_path / "new", to="flax")
    report = convert(tmp_path, tmp_path / "new", to="flax", ignore_unknown=True)
    assert "left out vit.temperature: no tensor of a ViT" in report.notes


# ---- options -----------------------------------------------------------------------------------------------------


def test_the_report_names_every_tensor_and_its_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = convert(
        CLS, tmp_path, to="flax", progress=lambda entry, done, total: seen.append((entry.target, done, total))
    )
    stored, metadata = read_safetensors(tmp_path / "model.safetensors")
    assert metadata == {"format": "flax"} and {entry.target for entry in report.entries} == set(stored)
    for entry in report.entries:
        array = stored[entry.target].read()
        assert (entry.shape, entry.dtype) == (array.shape, array.dtype.name)
        assert entry.checksum == xxh3_128_hexdigest(array.tobytes())
    kernel = next(e for e in report.entries if e.target == "vit.encoder.layer.1.intermediate.dense.kernel")
    assert (kernel.source, kernel.transform) == ("vit.encoder.layer.1.intermediate.dense.weight", "transpose (1, 0)")
    assert [done for _, done, _ in seen][-1] == seen[0][2] == sum(t.nbytes for t in stored.values())
    assert json.loads(json.dumps(report.to_dict()))["files"] == ["model.safetensors", "config.json"]
    assert kernel.target not in repr(report)  # which a notebook shows of a call


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    report = convert(CLS, tmp_path / "new", to="timm", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    qkv = next(entry for entry in report.entries if entry.target == "blocks.0.attn.qkv.weight")
    assert qkv.transform == "concatenate" and qkv.source.count(",") == 2 and qkv.checksum == ""


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    report = convert(CLS, tmp_path, to="torch", dtype=dtype)
    assert {entry.dtype for entry in report.entries} == {dtype}
    assert ViTConfig.from_pretrained(tmp_path).dtype == dtype
    source, found = read(CLS).tensors, read(tmp_path).tensors
    wanted = source["classifier.weight"].read().astype(getattr(ml_dtypes, dtype, dtype))
    assert found["classifier.weight"].read().tobytes() == wanted.tobytes()
    with pytest.raises(ValueError, match=r"dtype must be one of .*, got 'int8'"):
        convert(CLS, tmp_path / "new", to="torch", dtype="int8")


def test_image_size_resizes_the_positions(tmp_path: Path) -> None:
    config = ViTConfig.from_pretrained(CLS)
    patch = config.patch_size
    report = convert(CLS, tmp_path, to="google", image_size=(3 * patch, 5 * patch), position_kernel="timm")
    again = read(tmp_path)
    table = read(CLS).tensors["embeddings.position_embeddings"].read()
    wanted = resize_position_embeddings(table, config.grid, (3, 5), "timm")
    np.testing.assert_array_equal(again.tensors["embeddings.position_embeddings"].read(), wanted)
    assert again.config.image_size == (3 * patch, 5 * patch) and any("are resized from" in n for n in report.notes)
    with pytest.raises(ValueError, match="Unknown interpolation kernel 'cubic'"):
        convert(CLS, tmp_path / "new", to="torch", image_size=5 * patch, position_kernel="cubic")


@pytest.mark.parametrize("case", ["cls", "msn_cls"])
def test_keras_hub_knows_of_the_head(tmp_path: Path, case: str) -> None:
    """Of any member's: without a task.json it would make another, at random."""
    convert(CHECKPOINTS / case / "pt_safetensors", tmp_path / "preset", to="keras-hub")
    task = json.loads((tmp_path / "preset" / "task.json").read_text())
    assert task["config"]["num_classes"] == read(tmp_path / "preset").tensors["classifier.weight"].shape[0]
    assert json.loads((tmp_path / "preset" / "metadata.json").read_text())["tasks"] == ["ImageClassifier"]
    convert(CHECKPOINTS / case / "pt_safetensors", tmp_path / "backbone", to="keras-hub", head="drop")
    assert not (tmp_path / "backbone" / "task.json").exists()


def test_heads_and_poolers(tmp_path: Path) -> None:
    dropped = convert(CLS, tmp_path / "a", to="torch", head="drop")
    assert read(tmp_path / "a").config.architectures == ["ViTModel"]
    assert "left out classifier.weight, as asked" in dropped.notes
    fresh = convert(tmp_path / "a", tmp_path / "b", to="flax", num_labels=7)
    assert read(tmp_path / "b").tensors["classifier.weight"].shape[0] == 7
    assert ViTConfig.from_pretrained(tmp_path / "b").num_labels == 7
    assert any("newly initialised" in note for note in fresh.notes)
    base = CHECKPOINTS / "base" / "pt_safetensors"
    convert(base, tmp_path / "c", to="keras-hub", pooler="drop")
    assert not any(name.startswith("pooler") for name in read(tmp_path / "c").tensors)
    with pytest.raises(ValueError, match=r"head must be .*, got 'none'"):
        convert(CLS, tmp_path / "d", to="torch", head="none")


@pytest.mark.parametrize(("to", "container"), [a for a in ALL if a[0] in ("torch", "tf", "flax", "timm")])
def test_shards(tmp_path: Path, to: str, container: str) -> None:
    report = convert(CLS, tmp_path, to=to, container=container, max_shard_size=20_000)
    assert sum(".index." in name for name in report.files) == 1 and len(report.files) > 4
    assert {entry.file for entry in report.entries} <= set(report.files)
    assert bits(read(tmp_path)) == bits(read(CLS))
    convert(CLS, tmp_path, to=to, container=container)
    assert not [name for name in os.listdir(tmp_path) if "-of-" in name or ".index." in name]
    with pytest.raises(ValueError, match="has no shards"):
        convert(CLS, tmp_path / "new", to="google", max_shard_size=20_000)


SINGLE = {
    "a.safetensors": "torch", "a.bin": "torch", "a.msgpack": "flax", "a.h5": "tf", "a.npz": "google",
    "vit.pth": "torchvision", "a.weights.h5": "keras",
}  # fmt: skip


@pytest.mark.parametrize(("name", "to"), list(SINGLE.items()))
def test_a_single_file_as_target(tmp_path: Path, to: str, name: str) -> None:
    container = Path(name).suffix[1:] if to in ("torch", "tf", "flax") else None
    report = convert(CLS, tmp_path / name, to=to, container=container)
    assert os.listdir(tmp_path) == report.files == [name]
    config = ViTConfig.from_pretrained(CLS)
    assert bits(read(tmp_path / name, config=config)) == bits(read(CLS))
    with pytest.raises(ValueError, match="expected a folder, or a file ending in"):
        convert(CLS, tmp_path / "b.dat.npz", to="torch")


@pytest.mark.parametrize(("name", "to"), [("a.safetensors", "torch"), ("vit.pth", "torchvision")])
def test_a_single_file_has_no_shards(tmp_path: Path, name: str, to: str) -> None:
    with pytest.raises(ValueError, match=r"is one file, max_shard_size=20000 would make \d+: pass a folder"):
        convert(CLS, tmp_path / name, to=to, max_shard_size=20_000)
    assert not os.listdir(tmp_path)
    convert(CLS, tmp_path / name, to=to, max_shard_size="1GB")


@pytest.mark.parametrize(
    ("kind", "index"),
    [(".fp16-{}", "model.safetensors.index.fp16.json"), ("-{}.fp16", "model.safetensors.index.fp16.json"),
     ("-{}", "model.safetensors.index.json")],
)  # fmt: skip
def test_shards_and_their_index(tmp_path: Path, kind: str, index: str) -> None:
    convert(CLS, tmp_path, to="torch", max_shard_size=20_000)
    text = (tmp_path / "model.safetensors.index.json").read_text()
    for path in [*tmp_path.glob("model-*.safetensors")]:
        renamed = f"model{kind.format(path.stem.removeprefix('model-'))}.safetensors"
        text = text.replace(path.name, renamed)
        path.rename(tmp_path / renamed)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"without their index, {re.escape(index)}: fetch it"):
        read(tmp_path)
    (tmp_path / index).write_text(text)
    assert read(tmp_path).path.name == index  # the only one, whatever variant it is of
    (tmp_path / "model.safetensors.index.bf16.json").write_text(text)
    if index != "model.safetensors.index.json":
        with pytest.raises(ValueError, match=r"several weights files, .*bf16.*fp16.*: choose one with filename="):
            read(tmp_path)


def test_a_variant_that_is_not_there_is_no_other_file(tmp_path: Path) -> None:
    for file, to in (("model.safetensors", "torch"), ("vit.pth", "torchvision"), ("model.weights.h5", "keras")):
        convert(CLS, tmp_path / file, to=to)
        with pytest.raises(FileNotFoundError, match=r"model\.fp16\.safetensors"):
            read(tmp_path, variant="fp16")
        (tmp_path / file).unlink()


@pytest.mark.parametrize("name", ["target", "target.npz"])
def test_without_sync_the_disk_is_not_waited_for(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    to = "google" if name.endswith(".npz") else "torch"
    (tmp_path / "other").mkdir()
    convert(DIGITS, tmp_path / "other" / name, to=to)
    count = len(synced)
    assert count
    convert(DIGITS, tmp_path / name, to=to, sync=False)
    assert len(synced) == count
    same, other = read(tmp_path / name), read(tmp_path / "other" / name)
    assert all(np.array_equal(same.tensors[key].read(), tensor.read()) for key, tensor in other.tensors.items())


def test_the_source_is_never_written_over(tmp_path: Path) -> None:
    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for target in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(ValueError, match=r"would replace the source .*: choose another target"):
            convert(tmp_path, target, to="torch", dtype="float16")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    convert(tmp_path, tmp_path, to="flax", container="msgpack")
    assert bits(read(tmp_path, formats=["flax"])) == bits(read(CLS))


def test_a_failure_leaves_the_old_target(tmp_path: Path) -> None:
    convert(CLS, tmp_path, to="flax")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(entry: Any, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    for target, to in ((tmp_path, "tf"), (tmp_path, "google"), (tmp_path / "new.npz", "google")):
        with pytest.raises(KeyboardInterrupt):
            convert(CLS, target, to=to, progress=fail)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_nothing_outside_the_target_is_touched(tmp_path: Path) -> None:
    """Links in the target lead to files that are neither written through nor removed."""
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.write_bytes(b"precious")
    names = ("model.safetensors", "config.json", "model-00001-of-00002.safetensors")
    for name in names:
        (target / name).symlink_to(outside)
    (target / "config.json").unlink()
    convert(CLS, target, to="torch")
    convert(CLS, tmp_path / "b.npz", to="google")
    assert outside.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["b.npz", "outside", "target"]
    assert not (target / "model.safetensors").is_symlink() and not (target / names[2]).exists()


def test_a_shard_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    source = CHECKPOINTS / "cls" / "pt_safetensors_sharded"
    shutil.copytree(source, tmp_path / "m")
    shard = sorted((tmp_path / "m").glob("*-of-*"))[0]
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to("../outside.safetensors")
    with pytest.raises(ValueError, match=r"a link that leads out of its folder, to .*outside"):
        read(tmp_path / "m")


# ---- what comes along --------------------------------------------------------------------------------------------


def test_labels_and_preprocessing_come_along(tmp_path: Path) -> None:
    timm = FORMATS / CASES["timm"]["file"]
    convert(timm, tmp_path / "torch", to="torch")
    config = ViTConfig.from_pretrained(tmp_path / "torch")
    assert list(config.id2label.values()) == ["cat", "dog", "owl"] and config.layer_norm_eps == 1e-6
    convert(tmp_path / "torch", tmp_path / "timm", to="timm")
    stored = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert stored["label_names"] == ["cat", "dog", "owl"] and stored["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    convert(tmp_path / "timm", tmp_path / "hub", to="keras-hub")
    convert(tmp_path / "hub", tmp_path / "again", to="torch")
    from vit_core import ViTImageProcessor

    first, last = (ViTImageProcessor.from_pretrained(tmp_path / name) for name in ("torch", "again"))
    assert_close([first.image_mean, first.image_std], [last.image_mean, last.image_std], SAME_FUNCTION_FLOAT64)
    assert (first.size, first.resample) == (last.size, last.resample)


MIDDLE = {"height": 24, "width": 24}
PREPARED: dict[str, dict[str, Any]] = {
    "another factor": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0, 2.0, 4.0]},
    "not normalised": {"do_normalize": False},
    "not rescaled": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
    "neither": {"do_rescale": False, "do_normalize": False},
    "the middle": {"size": {"shortest_edge": 28}, "do_center_crop": True, "crop_size": MIDDLE},
    "the middle of a square": {"size": {"height": 32, "width": 32}, "do_center_crop": True, "crop_size": MIDDLE},
    "no room": {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": MIDDLE},
}


@pytest.mark.parametrize("to", ["timm", "keras-hub"])
@pytest.mark.parametrize("name", PREPARED)
def test_preprocessing_is_folded_into_what_others_state(tmp_path: Path, name: str, to: str) -> None:
    """Read back from their documents alone, the processor gives the same numbers, or a note says that it does not."""
    source, target, again = tmp_path / "source", tmp_path / "target", tmp_path / "again"
    shutil.copytree(DIGITS, source)
    ours = ViTImageProcessor.from_pretrained(source, **PREPARED[name])
    ours.save_pretrained(source)
    report = convert(source, target, to=to)
    (target / "preprocessor_config.json").unlink()
    if to == "keras-hub" and ours.do_center_crop:
        assert "keras-hub's ViT can't state how pictures are cropped, it resizes them whole" in report.notes
        return
    assert not any("crop" in note for note in report.notes)
    convert(target, again, to="torch")
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    pixels = [AutoImageProcessor.from_pretrained(each)(picture)["pixel_values"][0] for each in (source, again)]
    assert_close(pixels[1], np.float32(pixels[0]), 8 * UNIT_ROUNDOFF["float32"])


def test_a_crop_that_timm_can_not_state_is_noted(tmp_path: Path) -> None:
    shutil.copytree(DIGITS, tmp_path / "source")
    crop = {"do_center_crop": True, "crop_size": MIDDLE, "size": {"height": 28, "width": 40}}
    ViTImageProcessor.from_pretrained(DIGITS, **crop).save_pretrained(tmp_path / "source")
    report = convert(tmp_path / "source", tmp_path / "target", to="timm")
    assert any("can't state how pictures are cropped" in note for note in report.notes)
    stored = json.loads((tmp_path / "target" / "config.json").read_text())["pretrained_cfg"]
    assert (stored["crop_pct"], stored["crop_mode"]) == (1.0, "squash")


def test_a_difference_between_code_bases_is_reported(tmp_path: Path) -> None:
    report = convert(FORMATS / CASES["google"]["file"], tmp_path / "a", to="torchvision", num_attention_heads=2)
    assert any("computes with hidden_act 'gelu', not 'gelu_new'" in note for note in report.notes)
    report = convert(CLS, tmp_path / "b", to="timm", layer_norm_eps=1e-12)
    assert any("computes with layer_norm_eps 1e-06, not 1e-12" in note for note in report.notes)
    with pytest.raises(ValueError, match="pass hidden_act"):
        convert(FORMATS / CASES["google"]["file"], tmp_path / "c", to="keras-hub", num_attention_heads=2)


def zeros(config: ViTConfig) -> Model:
    table = specs(config, PARTS[Model.architecture])
    return Model(config, {name: Tensor.of(np.zeros(spec.shape, np.float16)) for name, spec in table.items()})


def test_the_usual_heads_are_those_of_the_named_variants(tmp_path: Path) -> None:
    """What is exactly a variant is a note, anything else is warned of."""
    for name, changes in (("Ti/16", {}), ("H/16", {"num_hidden_layers": 1, "intermediate_size": 8})):
        config = ViTConfig.variant(name, image_size=16, **changes)
        zeros(config).save_pretrained(tmp_path / name)
        report = convert(tmp_path / name, file := tmp_path / f"{name[0]}.pth", to="torchvision")
        assert not any("num_attention_heads" in note for note in report.notes)
        found = read(file)
        assert found.config.num_attention_heads == config.num_attention_heads
        assert bool(found.doubts) is bool(changes)
    assert found.doubts[0] in summarise(found, found.config)["notes"]  # of `vit inspect`
    with pytest.warns(
        UserWarning,
        match=r"does not say how many heads it has, 16 are taken, .* width 1280: if it has others, pass num_",
    ):
        Model.from_pretrained(tmp_path / "H.pth")
    _, report = Model.from_pretrained(tmp_path / "T.pth", output_loading_info=True)
    assert "num_attention_heads is 3, as ViT-Ti has: the file does not say" in report.notes
    Model.from_pretrained(tmp_path / "T.pth")  # which a warning would fail


@pytest.mark.parametrize("name", ["d.pth", "d.safetensors", "d.weights.h5", "d.npz", "folder"])
def test_other_heads_than_the_usual_are_noted(tmp_path: Path, name: str) -> None:
    """Digits has 4 in a width of 64. An axis of an array says so, as does a configuration."""
    formats = {".pth": "torchvision", ".safetensors": "timm", ".h5": "keras", ".npz": "google", "": "timm"}
    report = convert(DIGITS, tmp_path / name, to=(to := formats[Path(name).suffix]))
    unsaid = to != "google" and name != "folder"
    note = "the file does not say that it has 4 heads: read it with num_attention_heads=4"
    assert (note in report.notes) is unsaid
    config = ViTConfig.from_pretrained(DIGITS)
    for said in ({"config": config}, {"config": DIGITS}, {"num_attention_heads": 4}):
        assert Model.from_pretrained(tmp_path / name, **said).config.num_attention_heads == 4
    if unsaid:
        with pytest.warns(UserWarning, match="does not say how many heads it has, 1 are taken"):
            assert Model.from_pretrained(tmp_path / name).config.num_attention_heads == 1


@pytest.mark.parametrize("to", ["torch", "timm", "google", "torchvision", "keras-hub", "keras"])  # a kind of file each
def test_verification(tmp_path: Path, to: str) -> None:
    report = convert(CLS, tmp_path, to=to, verify=True, layer_norm_eps=1e-6)
    assert report.verification is not None and report.ok
    assert report.verification.tensors == 40 and report.verification.unequal == []
    assert {d.output for d in report.verification.differences} == {"logits"}
    assert max(d.absolute for d in report.verification.differences) == 0


def test_a_whole_mae_is_verified(tmp_path: Path) -> None:
    source = CHECKPOINTS / "mae_pretraining" / "pt_safetensors"
    report = convert(source, tmp_path, to="mae", verify=True, layer_norm_eps=1e-6)
    assert report.verification is not None and report.ok
    assert {d.output for d in report.verification.differences} == {"loss", "logits", "mask", "ids_restore"}
    assert max(d.absolute for d in report.verification.differences) == 0


def folder_of(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("before", ["torch", "tf", "timm", "keras-hub", "google"])
def test_another_model_is_replaced_only_when_asked(tmp_path: Path, before: str, overwrite: bool) -> None:
    """And then whole: none of its weights stays, whatever container, nor a document that only its format has."""
    target = tmp_path / "target"
    containers = {"tf": "h5"}
    convert(CHECKPOINTS / "mini" / "pt_safetensors", target, to=before, container=containers.get(before))
    held = folder_of(target)
    if before == "google":
        (target / "config.json").write_text('{"model_type": "vit", "hidden_size": 5}')  # a name of its own: no config
    if not overwrite:
        with pytest.raises(ValueError, match=r"holds another model: .*Choose another target, or pass overwrite=True"):
            convert(CLS, target, to="torch")
        assert folder_of(target) >= held
        return
    convert(CLS, target, to="torch", overwrite=True)
    left = folder_of(target) - {"config.json", "preprocessor_config.json"}
    assert left == {"model.safetensors"}
    assert bits(read(target)) == bits(read(CLS))


def test_the_same_weights_stay_beside_and_others_do_not(tmp_path: Path) -> None:
    convert(CLS, tmp_path, to="tf", container="h5")
    convert(CLS, tmp_path, to="torch")
    convert(CLS, tmp_path, to="flax", container="msgpack")
    weights = {"model.safetensors", "tf_model.h5", "flax_model.msgpack"}
    assert weights <= folder_of(tmp_path)
    trained = tmp_path / "trained"
    shutil.copytree(CLS, trained)
    tensors = read_safetensors(trained / "model.safetensors")[0]
    changed = {name: Tensor.of(tensor.read() + 1) for name, tensor in tensors.items()}
    write_safetensors(trained / "model.safetensors", changed, {})
    with pytest.raises(ValueError, match=r"holds another model: flax_model\.msgpack, tf_model\.h5\. Choose"):
        convert(trained, tmp_path, to="torch")
    convert(trained, tmp_path, to="torch", overwrite=True)
    assert folder_of(tmp_path) & weights == {"model.safetensors"}
    convert(tmp_path, tmp_path, to="tf", container="h5", overwrite=True)  # the source stays
    assert folder_of(tmp_path) & weights == {"model.safetensors", "tf_model.h5"}


@pytest.mark.parametrize("to", ["timm", "keras-hub"])
def test_statistics_of_other_channels_are_not_dropped_in_silence(tmp_path: Path, to: str) -> None:
    source = tmp_path / "source"
    Model.of(NEW).save_pretrained(source)
    ViTImageProcessor(size={"height": 4, "width": 4}, image_mean=[0.1], image_std=[0.2]).save_pretrained(source)
    with pytest.warns(UserWarning, match=r"image_mean \[0.1\] and image_std \[0.2\] are not those of a model of 3"):
        convert(source, tmp_path / "target", to=to)
    convert(source, tmp_path / "again", to="torch")
    assert read(tmp_path / "again").processor["image_mean"] == [0.1]


@pytest.mark.parametrize("to", ["timm", "keras-hub"])
def test_the_processor_of_a_folder_of_another_library(tmp_path: Path, to: str) -> None:
    convert(DIGITS, tmp_path, to=to)
    (tmp_path / "preprocessor_config.json").unlink()  # which no folder of theirs has
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    processors = [AutoImageProcessor.from_pretrained(folder) for folder in (DIGITS, tmp_path)]
    theirs, ours = (processor(picture)["pixel_values"][0] for processor in processors)
    assert_close(theirs, ours, 8 * UNIT_ROUNDOFF["float32"])
    assert processors[1] == AutoImageProcessor.from_dict(read(tmp_path).processor)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json; it holds"):
        AutoImageProcessor.from_pretrained(tmp_path)


def test_a_pipeline_prepares_pictures_as_the_source_does(backend: Any) -> None:
    """Whatever the format; without a warning, which would fail the test."""
    picture = GOLDEN.parent.parent / "vit_core/assets/digits/pictures/2-1466.png"
    for name in ("timm", "torchvision", "google"):
        file = FORMATS / CASES[name]["file"]
        model = backend.load("ViTForImageClassification", file, num_attention_heads=2)
        processor = find_processor(file, model.config)
        assert list(processor.image_mean) == read(file, num_attention_heads=2).processor["image_mean"], name
        assert processor(picture, return_tensors="np", do_convert_rgb=True).pixel_values.shape == (1, 3, 32, 32)
