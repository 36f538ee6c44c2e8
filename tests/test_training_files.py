"""What training code leaves: prefixes, averages, tensors beside the model, heads that were replaced, other models."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from conftest import CHECKPOINTS, GOLDEN
from PIL import Image
from tolerances import UNIT_ROUNDOFF, both_rounded

from conversion import convert, read
from conversion.cli import main
from vit_core.app.opening import find_processor
from vit_core.channels import with_channels
from vit_core.files.msgpack import read_msgpack
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Checkpoint
from vit_core.pictures.processing import ViTImageProcessor

torch = pytest.importorskip("torch")
vit_torch = pytest.importorskip("vit_torch")

FORMATS = GOLDEN / "families"
CLS = CHECKPOINTS / "cls" / "pt_safetensors"
OTHERS = ("deit", "beit", "dinov2", "dinov2_with_registers")
SOURCES = {
    "hugging_face": (CLS / "model.safetensors", {"config": vit_torch.ViTConfig.from_pretrained(CLS)}),
    "timm": (FORMATS / "timm" / "model.safetensors", {"num_attention_heads": 2}),
    "torchvision": (FORMATS / "torchvision" / "model.pth", {"num_attention_heads": 2}),
}
PREFIXES = (
    "model.", "net.", "network.", "timm_model.", "_forward_module.", "ema_model.", "base_model.model.", "backbone.",
    "student.", "teacher.backbone.", "module._orig_mod.model.", "_orig_mod.module.", "encoder.", "visual.trunk.",
)  # fmt: skip


def bits(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: tensor.read().tobytes() for name, tensor in checkpoint.tensors.items()}


def state_of(source: Path) -> dict[str, Any]:
    if source.suffix == ".pth":
        return dict(torch.load(source, weights_only=True))
    return {name: torch.from_numpy(tensor.read().copy()) for name, tensor in read_safetensors(source)[0].items()}


# ---- models that are no ViT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("cls", ["ViTModel", "ViTForImageClassification"])
def test_another_familys_folder_is_never_a_random_vit(backend: Any, name: str, cls: str) -> None:
    folder = FORMATS / f"transformers_{name}"
    wanted = json.loads((folder / "config.json").read_text())["architectures"][0]
    with pytest.raises(ValueError, match=rf"of the family '{name}'.* no ViT: load it with .*{wanted}"):
        backend.load(cls, folder)


def test_a_checkpoint_without_most_of_a_trunk_is_an_error(backend: Any, tmp_path: Path) -> None:
    tensors, _ = read_safetensors(CLS / "model.safetensors")
    (tmp_path / "config.json").write_bytes((CLS / "config.json").read_bytes())
    kept = {name: tensor for name, tensor in tensors.items() if "layer." not in name}
    write_safetensors(tmp_path / "model.safetensors", kept | {"odd": Tensor.of(np.ones(1, np.float32))}, {})
    with pytest.raises(ValueError, match=r"lacks 32 of the 38 parameters .* trunk: .*encoder\.layer\.0.* beside .*odd"):
        backend.load("ViTForImageClassification", tmp_path)


def test_a_fresh_head_and_a_fresh_pooler_stay_warnings(backend: Any) -> None:
    fresh = {"ViTModel": CLS, "ViTForImageClassification": CHECKPOINTS / "base" / "pt_safetensors"}
    for cls, folder in fresh.items():
        assert backend.load(cls, folder) is not None


# ---- prefixes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", SOURCES)
def test_any_prefix_with_a_tensor_beside_it(tmp_path: Path, family: str, prefix: str) -> None:
    source, options = SOURCES[family]
    content = {f"{prefix}{name}": tensor for name, tensor in state_of(source).items()}
    torch.save(content | {"criterion.weight": torch.ones(3)}, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt", **options)
    assert bits(found) == bits(read(source, **options))
    assert list(found.unknown) == ["criterion.weight"]
    assert bits(read(tmp_path / "model.pt", prefix=prefix, **options)) == bits(found)


def test_shards_whose_names_have_a_prefix(tmp_path: Path) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in read_safetensors(CLS / "model.safetensors")[0].items()}
    tensors |= {"criterion.weight": Tensor.of(np.ones(3, np.float32))}
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, inside in shards.items():
        write_safetensors(tmp_path / shard, {name: tensors[name] for name in inside}, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, inside in shards.items() for name in inside}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_bytes((CLS / "config.json").read_bytes())
    found = read(tmp_path)
    assert (bits(found), list(found.unknown)) == (bits(read(CLS)), ["criterion.weight"])
    index["weight_map"]["model.vit.embeddings.lost"] = "model-00001-of-00002.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"promises tensors that no shard holds: model\.vit\.embeddings\.lost"):
        read(tmp_path)


def test_a_prefix_by_hand_and_the_prefixes_there_are(tmp_path: Path) -> None:
    source, options = SOURCES["timm"]
    copies = {name: {n: t + i for n, t in state_of(source).items()} for i, name in enumerate(("first", "second"))}
    torch.save({f"{k}.{n}": t for k, state in copies.items() for n, t in state.items()}, tmp_path / "m.pt")
    for name, state in copies.items():
        found = read(tmp_path / "m.pt", prefix=f"{name}.", **options).tensors["classifier.bias"].read()
        np.testing.assert_array_equal(found, state["head.bias"].numpy())
    with pytest.raises(ValueError, match=r"no names that begin with 'third\.', but first\. \(32\), second\. \(32\)"):
        read(tmp_path / "m.pt", prefix="third.", **options)
    torch.save({"net.conv.weight": torch.ones(3), "loss.weight": torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"none of a ViT: .* Its names begin with net\. \(1\), loss\. \(1\)"):
        read(tmp_path / "m.pt")


def test_the_average_of_a_student_and_a_teacher_in_one_dict(tmp_path: Path) -> None:
    source, options = SOURCES["timm"]
    state = state_of(source)
    content = {f"{who}.{n}": t + i for i, who in enumerate(("student", "teacher")) for n, t in state.items()}
    torch.save(content, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt", **options)
    np.testing.assert_array_equal(found.tensors["classifier.bias"].read(), state["head.bias"].numpy() + 1)
    assert len(found.unknown) == len(state)


def test_of_models_beside_each_other_none_is_taken_at_random(tmp_path: Path) -> None:
    source, options = SOURCES["timm"]
    copies = {name: {n: t + i for n, t in state_of(source).items()} for i, name in enumerate(("q_net", "k_net"))}
    torch.save({f"{k}.{n}": t for k, state in copies.items() for n, t in state.items()}, tmp_path / "prefixes.pt")
    torch.save(copies, tmp_path / "keys.pt")
    for argument, names in (("prefix", ("q_net.", "k_net.")), ("key", ("q_net", "k_net"))):
        path = tmp_path / ("prefixes.pt" if argument == "prefix" else "keys.pt")
        with pytest.raises(
            ValueError, match=rf"several models, .*'{names[0]}', '{names[1]}': choose one with {argument}="
        ):
            read(path, **options)
        found = read(path, **{argument: names[1]}, **options).tensors["classifier.bias"].read()
        np.testing.assert_array_equal(found, copies["k_net"]["head.bias"].numpy())


def test_a_prefix_without_its_dot_and_one_without_a_model(tmp_path: Path) -> None:
    source, options = SOURCES["timm"]
    torch.save({f"model.{n}": t for n, t in state_of(source).items()}, tmp_path / "m.pt")
    assert bits(read(tmp_path / "m.pt", prefix="model", **options)) == bits(read(source, **options))
    with pytest.raises(
        ValueError, match=r"none of a ViT under the prefix 'model\.blocks\.': .* model\. \(32\): pass prefix="
    ):
        read(tmp_path / "m.pt", prefix="model.blocks.", **options)


def test_what_is_outside_the_prefix_is_reported_and_not_converted_in_silence(tmp_path: Path) -> None:
    content = {f"model.{n}": t for n, t in state_of(CLS / "model.safetensors").items()}
    torch.save(content | {"criterion.weight": torch.ones(3)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((CLS / "config.json").read_bytes())
    _, report = vit_torch.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert (report.missing_keys, report.unexpected_keys) == ([], ["criterion.weight"])
    with pytest.raises(ValueError, match=r"1 tensors that no ViT has: criterion\.weight"):
        convert(tmp_path, tmp_path / "new", to="timm")
    report = convert(tmp_path, tmp_path / "new", to="timm", ignore_unknown=True)
    assert "left out criterion.weight: no tensor of a ViT" in report.notes


# ---- as the code of others writes them ---------------------------------------------------------------------------


def test_a_checkpoint_of_lightning(backend: Any) -> None:
    """It trained a module with `model.*` and `criterion.weight`, MultiStepLR, and a Namespace for hyperparameters."""
    path, options = GOLDEN / "lightning" / "last.ckpt", {"num_attention_heads": 2, "output_loading_info": True}
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    model, report = cls.from_pretrained(path, **options)
    assert (report.missing_keys, report.unexpected_keys) == ([], ["criterion.weight"])
    found = backend.call(model, pixel_values=np.load(FORMATS / "inputs.npy")).logits
    wanted = np.load(path.parent / "outputs.npz")["logits"]
    assert_close(found, wanted, both_rounded(model.config), "logits")
    notes = " ".join(read(path, num_attention_heads=2).notes)
    assert "took the state dict 'state_dict'" in notes and "lr_schedulers" in notes


def model_and_folder(tmp_path: Path) -> tuple[Any, Path]:
    (tmp_path / "config.json").write_bytes((CLS / "config.json").read_bytes())
    return vit_torch.ViTForImageClassification.from_pretrained(CLS), tmp_path / "pytorch_model.bin"


def assert_same(path: Path, model: Any) -> None:
    again, report = vit_torch.ViTForImageClassification.from_pretrained(path.parent, output_loading_info=True)
    assert (report.missing_keys, report.unexpected_keys, report.mismatched_keys) == ([], [], [])
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("around", ["", "model_ema"])
def test_averaged_models(tmp_path: Path, around: str) -> None:
    """AveragedModel saves n_averaged beside module.*; torchvision's references save it beside the trained model."""
    model, path = model_and_folder(tmp_path)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    with torch.no_grad():
        model.classifier.bias += 1
    average.update_parameters(model)
    content = average.state_dict()
    assert "n_averaged" in content
    args = argparse.Namespace(model="vit_b_16")
    torch.save({"model": model.state_dict(), around: content, "args": args} if around else content, path)
    assert_same(path, average.module)
    assert any("n_averaged: how many models" in note for note in read(tmp_path).notes)


@pytest.mark.parametrize("new", [True, False])
def test_an_object_beside_the_model_is_dropped(tmp_path: Path, new: bool) -> None:
    model, path = model_and_folder(tmp_path)
    content = {"model": model.state_dict(), "ema": torch.nn.Linear(2, 2)}
    with warnings.catch_warnings(action="ignore"):  # of source code that is not found
        torch.save(content, path, _use_new_zipfile_serialization=new)
    assert_same(path, model)
    assert any("ema (torch.nn.modules.linear.Linear)" in note for note in read(tmp_path).notes)


class Doubled(torch.nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values


OTHER_FILES: dict[str, tuple[Any, str]] = {
    "a model": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path),
        "an object of torch.nn.modules.linear.Linear, exp",
    ),
    "a model, older layout": (
        lambda path: torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
        "an object of torch.nn.modules.linear.Linear, expected tensors by name",
    ),
    "a list": (lambda path: torch.save([{"a": torch.ones(2)}], path), "a list, expected tensors by name"),
    "a tensor": (lambda path: torch.save(torch.ones(2), path), "a single tensor, expected tensors by name"),
    "too deep": (
        lambda path: torch.save({"a": {"b": {"c": {"d": torch.ones(2)}}}}, path),
        "in its first 3 levels, but a",
    ),
    "TorchScript": (
        lambda path: torch.jit.save(torch.jit.trace(Doubled(), torch.ones(2)), path),
        "a TorchScript archive",
    ),
    "torch.export": (
        lambda path: torch.export.save(torch.export.export(Doubled(), (torch.ones(2),)), path),
        "an archive of torch.export",
    ),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_files_of_pytorch_that_are_no_state_dicts_are_named(tmp_path: Path, kind: str) -> None:
    write, what = OTHER_FILES[kind]
    with warnings.catch_warnings(action="ignore"):
        write(tmp_path / "m.pt2")
    with pytest.raises(ValueError, match=rf"m\.pt2 .*{what}.*; nothing was executed.*save its tensors alone"):
        read(tmp_path / "m.pt2")


def test_parts_of_a_model_are_named(tmp_path: Path) -> None:
    """Names as PEFT gives them to a model in training and to its adapters, FSDP to flattened shards, bitsandbytes and
    GPTQ to what they quantise, PyTorch to what it prunes.
    """
    state = state_of(CLS / "model.safetensors")
    query = "base_model.model.vit.encoder.layer.0.attention.attention.query"
    adapter = {f"{query}.lora_A.weight": torch.ones(2, 4), f"{query}.lora_B.weight": torch.ones(4, 2)}
    wrapped = {f"base_model.model.{n.replace('query.', 'query.base_layer.')}": t for n, t in state.items()}
    cases = {
        "an adapter of PEFT, not merged: .*merge_and_unload": (adapter, wrapped | adapter),
        "FSDP's shard of flattened .*FULL_STATE_DICT": ({"_fsdp_wrapped_module._flat_param": torch.ones(9)},),
        "that shared it out, .*zero_to_fp32": ({n: t[:0].flatten() for n, t in state.items()},),
        "what a quantised layer is made of: .*save it dequantised": (
            *(state | {f"{query}.{n}": torch.ones(4)} for n in ("SCB", "qweight", "weight_scale_inv", "weight_packed")),
            state | {f"{query}.weight.quant_state.bitsandbytes__nf4": torch.ones(4)},
        ),
        "what a pruning computes weights of: .*prune.remove": (
            state | {"classifier.weight_orig": torch.ones(4), "classifier.weight_mask": torch.ones(4)},
        ),
        "parameters as integers, .*save it dequantised": (
            state | {"classifier.weight": state["classifier.weight"].to(torch.int8)},
        ),
    }
    for reason, contents in cases.items():
        for content in contents:
            torch.save(content, tmp_path / "m.pt")
            with pytest.raises(ValueError, match=rf"(?s)m\.pt .*{reason}"):
                convert(tmp_path / "m.pt", tmp_path / "new", to="torch", config=SOURCES["hugging_face"][1]["config"])


@pytest.mark.parametrize("name", ["fc.fc1.weight", "fc.bn2.running_mean", "masked_embed"])
def test_what_msn_and_ibot_train_beside_the_model(tmp_path: Path, name: str) -> None:
    source, given = SOURCES["timm"]
    state = {f"module.{n}": t for n, t in (state_of(source) | {name: torch.ones(1, 4)}).items()}
    torch.save({"target_encoder": state}, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt", **given)
    assert bits(found) == bits(read(source, **given)) and not found.unknown
    assert any(f"left out module.{name}: the " in note for note in found.notes)


def test_layers_that_were_compiled_or_wrapped_one_by_one(tmp_path: Path) -> None:
    model, path = model_and_folder(tmp_path)
    wrapped = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    layers = wrapped.vit.encoder.layer
    layers[0] = torch.compile(layers[0])
    layers[1] = torch.nn.DataParallel(layers[1])
    content = wrapped.state_dict()
    assert any("._orig_mod." in name for name in content) and any("layer.1.module." in name for name in content)
    torch.save(content, path)
    assert_same(path, model)


def test_a_name_that_a_wrapper_would_take_from_another_stays(tmp_path: Path) -> None:
    source, options = SOURCES["hugging_face"]
    state = state_of(source)
    name = "vit.module.layernorm.bias"
    torch.save(state | {name: state["vit.layernorm.bias"] + 1}, tmp_path / "m.pt")
    found = read(tmp_path / "m.pt", **options)
    assert bits(found) == bits(read(source, **options))
    assert list(found.unknown) == [name]


def test_heads_in_a_sequential_of_hugging_face(tmp_path: Path) -> None:
    model, path = model_and_folder(tmp_path)
    changed = vit_torch.ViTForImageClassification.from_pretrained(CLS)
    changed.classifier = torch.nn.Sequential(torch.nn.Dropout(0.1), changed.classifier)
    torch.save(changed.state_dict(), path)
    assert_same(path, model)


def test_heads_of_several_layers_stay_unknown(tmp_path: Path) -> None:
    model, path = model_and_folder(tmp_path)
    head = torch.nn.Linear(3, 4)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("classifier")}
    more = {f"classifier.{i}.{n}": t for i in (0, 2) for n, t in head.state_dict().items()}
    torch.save(state | more, path)
    assert sorted(read(tmp_path).unknown) == sorted(more)


# ---- fresh heads -------------------------------------------------------------------------------------------------

ODD_HEADS = {
    "google_pre_logits_head": ["head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel"],
    "torchvision_pre_logits": [
        f"heads.{name}.{leaf}" for name in ("head", "pre_logits") for leaf in ("bias", "weight")
    ],
}


@pytest.mark.parametrize("asked", [{"id2label": {0: "a", 1: "b"}}, {"head": "drop", "num_labels": 2}])
@pytest.mark.parametrize("name", ODD_HEADS)
def test_a_fresh_head_takes_the_place_of_one_that_no_vit_has(backend: Any, name: str, asked: dict[str, Any]) -> None:
    cases = json.loads((FORMATS / "cases.json").read_text())
    file = FORMATS / cases[name]["file"]
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    options = {"num_attention_heads": 2, "output_loading_info": True}
    with pytest.raises(ValueError, match="pass head='drop'"):
        cls.from_pretrained(file, **options)
    model, report = cls.from_pretrained(file, **options, **asked)
    assert (report.missing_keys, report.unexpected_keys) == (["classifier.weight", "classifier.bias"], ODD_HEADS[name])
    trunk = backend.load("ViTModel", file, num_attention_heads=2, add_pooling_layer=False)
    found = backend.parameters(model)
    for parameter, array in backend.parameters(trunk).items():
        np.testing.assert_array_equal(found[parameter], array, parameter)


def linear_probe(linear: Any) -> Any:
    """As MAE's main_linprobe.py puts it in the place of the head."""
    return torch.nn.Sequential(torch.nn.BatchNorm1d(8, affine=False), linear)


def two_layers(linear: Any) -> Any:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), linear)


@pytest.mark.parametrize("family", ["timm", "torchvision"])
@pytest.mark.parametrize("head", [linear_probe, two_layers])
def test_a_head_of_other_layers_is_named_and_dropped_on_request(
    backend: Any, tmp_path: Path, family: str, head: Any
) -> None:
    source, options = SOURCES[family]
    place = {"timm": "head.", "torchvision": "heads."}[family]
    trunk = {n: t for n, t in state_of(source).items() if not n.startswith(place)}
    more = {f"{place}{n}": t for n, t in head(torch.nn.Linear(8, 3)).state_dict().items()}
    torch.save({"model": trunk | more, "args": argparse.Namespace()}, tmp_path / "m.pth")
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    with pytest.raises(ValueError, match=r"a head of other layers than ViT's, .*heads?\.0\..*Pass head='drop'"):
        cls.from_pretrained(tmp_path / "m.pth", **options)
    _, report = cls.from_pretrained(tmp_path / "m.pth", id2label={0: "a"}, output_loading_info=True, **options)
    fresh = ["classifier.weight", "classifier.bias"]
    assert (report.missing_keys, report.unexpected_keys) == (fresh, sorted(more))
    notes = convert(tmp_path / "m.pth", tmp_path / "new", to="torch", head="drop", **options).notes
    assert {f"left out {name}, as asked" for name in more} <= {*notes}


@pytest.mark.parametrize("name", ["fc", "head.0.1", "linear"])
@pytest.mark.parametrize("family", SOURCES)
def test_one_layer_in_the_place_of_the_head_is_the_head(tmp_path: Path, family: str, name: str) -> None:
    source, options = SOURCES[family]
    own, place = {"timm": ("head", "head"), "torchvision": ("heads.head", "heads")}.get(family, ("classifier",) * 2)
    state = {n.replace(f"{own}.", f"{place}.{name}."): t for n, t in state_of(source).items()}
    torch.save(state, tmp_path / "m.pt")
    assert bits(read(tmp_path / "m.pt", **options)) == bits(read(source, **options))


def test_head_and_pooler_are_dropped_on_request(backend: Any) -> None:
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    _, report = cls.from_pretrained(CLS, head="drop", output_loading_info=True)
    assert report.missing_keys == report.unexpected_keys[::-1] == ["classifier.weight", "classifier.bias"]
    cls = getattr(backend.package, f"{backend.prefix}ViTModel")
    folder = CHECKPOINTS / "base" / "pt_safetensors"
    _, report = cls.from_pretrained(folder, pooler="drop", output_loading_info=True)
    assert (report.missing_keys, report.unexpected_keys) == ([], ["pooler.dense.bias", "pooler.dense.weight"])
    _, report = cls.from_pretrained(folder, pooler="drop", add_pooling_layer=True, output_loading_info=True)
    assert report.missing_keys == report.unexpected_keys[::-1] == ["pooler.dense.weight", "pooler.dense.bias"]
    with pytest.raises(ValueError, match='pooler must be "keep" or "drop", got False'):
        cls.from_pretrained(folder, pooler=False)


def test_a_trunk_reports_the_head_that_it_does_not_use(backend: Any, tmp_path: Path) -> None:
    """In every family as in Hugging Face's formats."""
    cls = getattr(backend.package, f"{backend.prefix}ViTModel")
    heads = {"hugging_face": "classifier.", "timm": "head.", "torchvision": "heads.head."}
    for family, place in heads.items():
        source, options = SOURCES[family]
        _, report = cls.from_pretrained(source, output_loading_info=True, **options)
        assert report.unexpected_keys == [f"{place}bias", f"{place}weight"]
    notes = convert(SOURCES["timm"][0], tmp_path, to="torch", head="drop", **SOURCES["timm"][1]).notes
    assert {"left out head.bias, as asked", "left out head.weight, as asked"} <= {*notes}


# ---- keras-hub's converters --------------------------------------------------------------------------------------

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CONVERTERS: dict[str, dict[str, Any]] = {
    "scale and offset": {"scale": [1 / 127.5] * 3, "offset": -1.0},
    "a scale alone": {"scale": 1 / 255},
    "an offset of null": {"scale": 1 / 255, "offset": None},
    "nothing": {},
    "0.21": {"scale": 1 / 255, "offset": None, "norm_mean": IMAGENET["mean"], "norm_std": IMAGENET["std"]},
    "all of it": {"scale": 1 / 51, "offset": [1, 2, 3], "norm_mean": 0.5, "norm_std": [2, 3, 4]},
}


@pytest.mark.parametrize("kind", CONVERTERS)
@pytest.mark.parametrize("sized", [True, False])
def test_the_arithmetic_of_a_keras_hub_converter(tmp_path: Path, kind: str, sized: bool) -> None:
    """As ImageConverter of keras-hub 0.32, and ViTImageConverter of 0.21.1, compute on pictures of the model's size."""
    values = CONVERTERS[kind]
    shutil.copytree(FORMATS / "keras_hub_preset", tmp_path / "preset")
    size = [32, 32]
    document = {"config": values | {"interpolation": "bilinear"} | ({"image_size": size} if sized else {})}
    (tmp_path / "preset" / "image_converter.json").write_text(json.dumps(document))
    convert(tmp_path / "preset", tmp_path / "new", to="torch")
    processor = ViTImageProcessor.from_pretrained(tmp_path / "new")
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    given = {
        name: 0.0 if name in ("offset", "norm_mean") else 1.0 for name in ("scale", "offset", "norm_mean", "norm_std")
    }
    given |= {name: value for name, value in values.items() if value is not None}
    scaled = picture * np.array(given["scale"]) + np.array(given["offset"])
    wanted = (scaled - np.array(given["norm_mean"])) / np.array(given["norm_std"])
    found = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    assert_close(found, wanted.astype(np.float32), 8 * UNIT_ROUNDOFF["float32"])


@pytest.mark.parametrize("to", ["keras-hub", "torchvision", "google", "timm"])
def test_names_of_labels_that_have_no_place_are_noted(tmp_path: Path, to: str) -> None:
    source = FORMATS / "timm"  # with the labels cat, dog and owl
    report = convert(source, tmp_path / "new", to=to, num_attention_heads=2)
    assert any("has no place for the names of the 3 labels" in note for note in report.notes) == (to != "timm")


# ---- where files lie, and what they are --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["last.ckpt", "checkpoint.pth.tar", "model.pyth", "model_best.pth"])
def test_a_checkpoint_alone_in_a_folder_is_found(tmp_path: Path, name: str) -> None:
    source, options = SOURCES["timm"]
    torch.save({"state_dict": state_of(source), "hyper_parameters": argparse.Namespace()}, tmp_path / name)
    assert bits(read(tmp_path, **options)) == bits(read(source, **options))
    torch.save(state_of(source), tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"several weights files, .*: choose one with filename="):
        read(tmp_path, **options)


def test_what_trainers_save_is_no_weights_file(tmp_path: Path) -> None:
    source, options = SOURCES["timm"]
    names = "training_args.bin optimizer.bin scheduler.pt scaler.pt sampler_1.bin dl_state_dict.bin rng_state_0.pth"
    for name in names.split():
        torch.save({}, tmp_path / name)
    (tmp_path / "checkpoint-500").mkdir()
    with pytest.raises(FileNotFoundError, match=r"it holds checkpoint-500, .*training_args\.bin\. Pass the folder"):
        read(tmp_path, **options)
    torch.save(state_of(source), tmp_path / "model.pth")
    assert bits(read(tmp_path, **options)) == bits(read(source, **options))


@pytest.mark.parametrize("family", SOURCES)
def test_a_head_without_a_bias(tmp_path: Path, family: str) -> None:
    source, options = SOURCES[family]
    state = {n: t for n, t in state_of(source).items() if n not in ("classifier.bias", "head.bias", "heads.head.bias")}
    torch.save(state, tmp_path / "m.pt")
    report = convert(tmp_path / "m.pt", tmp_path / "new", to="torch", **options)
    assert any("zeros stand for the biases" in note and "classifier.bias" in note for note in report.notes)
    expected = bits(read(source, **options))
    expected["classifier.bias"] = bytes(len(expected["classifier.bias"]))
    assert bits(read(tmp_path / "new")) == expected


@pytest.mark.parametrize("name", ["checkpoint_3", "state.msgpack", "flax_model.msgpack"])
def test_the_train_state_of_flax(tmp_path: Path, name: str) -> None:
    pytest.importorskip("jax")
    optax, serialization = pytest.importorskip("optax"), pytest.importorskip("flax.serialization")
    from flax.training.train_state import TrainState

    from vit_flax import FlaxViTForImageClassification

    model = FlaxViTForImageClassification.from_pretrained(CLS)
    state = TrainState.create(apply_fn=model.__call__, params=model.params, tx=optax.adamw(1e-3))
    (tmp_path / name).write_bytes(serialization.to_bytes(state))
    model.config.save_pretrained(tmp_path)
    found = read(tmp_path)
    assert bits(found) == bits(read(CLS))
    assert found.unknown == {}
    assert any("the optimizer's state" in note for note in found.notes)


@pytest.mark.parametrize("name", ["google", "big_vision"])
def test_googles_names_in_a_train_state_of_flax(tmp_path: Path, name: str) -> None:
    serialization = pytest.importorskip("flax.serialization")
    from flax.traverse_util import unflatten_dict

    source = FORMATS / name / "model.npz"
    with np.load(source) as file:
        tree = unflatten_dict({n.removeprefix("params/"): file[n] for n in file}, sep="/")
    around = {"step": 3, "rng": np.zeros(2, np.uint32), "loss": 0.5}
    for content in (tree, {"params": tree, **around}, {"state": {"params": tree, **around}, "epoch": 1}):
        (tmp_path / "m.msgpack").write_bytes(serialization.to_bytes(content))
        found = read(tmp_path / "m.msgpack")
        assert (found.format, bits(found)) == (name, bits(read(source)))


@pytest.mark.parametrize("name", ["google", "big_vision"])
def test_what_googles_trainings_keep_beside_the_model(tmp_path: Path, name: str) -> None:
    source = FORMATS / name / "model.npz"
    with np.load(source) as file:
        state = dict(file)
    beside = ("opt/0/mu/head/kernel", "chrono/accum_train_time", "opt_state/0/count", "optimizer/mu/kernel")
    np.savez(tmp_path / "m.npz", **state, **dict.fromkeys(beside, np.ones(2)))
    found = read(tmp_path / "m.npz")
    assert (found.format, found.unknown, bits(found)) == (name, {}, bits(read(source)))
    assert all(any(reason in note for note in found.notes) for reason in ("optimizer's state", "clock of a training"))


def test_names_of_flax_in_an_npz(tmp_path: Path) -> None:
    options = SOURCES["hugging_face"][1]
    tensors = read_msgpack(CHECKPOINTS / "cls" / "flax_msgpack" / "flax_model.msgpack")
    for prefix in ("", "params/"):
        np.savez(tmp_path / "m.npz", **{prefix + n.replace(".", "/"): t.read() for n, t in tensors.items()})
        assert bits(read(tmp_path / "m.npz", **options)) == bits(read(CLS))


@pytest.mark.parametrize("before", ["", "params/"])
def test_names_of_flax_joined_by_slashes_in_safetensors(tmp_path: Path, before: str) -> None:
    """As `flatten_dict(params, sep="/")` gives them."""
    source = CHECKPOINTS / "cls" / "flax_msgpack"
    tensors = {before + n.replace(".", "/"): t for n, t in read_msgpack(source / "flax_model.msgpack").items()}
    write_safetensors(tmp_path / "m.safetensors", tensors, {})
    assert bits(read(tmp_path / "m.safetensors", **SOURCES["hugging_face"][1])) == bits(read(source))


def test_the_names_of_another_library_are_not_called_a_vits(tmp_path: Path) -> None:
    """Those of MMPretrain, of which few are timm's; a whole ViT beside more of another model is one."""
    renamed = {"blocks.": "layers.", "norm": "ln", "mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}
    state = state_of(SOURCES["timm"][0])
    for old, new in renamed.items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    torch.save({"state_dict": {f"backbone.{name}": t for name, t in state.items()}}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"m\.pt holds \d+ tensors \(.*\), few of a ViT: expected the names of"):
        read(tmp_path / "m.pt")
    torch.save(state_of(SOURCES["timm"][0]) | {f"decode.{i}": torch.ones(1) for i in range(99)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"holds what no ViT of timm.* has: decode\.0, .* ignore_unknown=True"):
        read(tmp_path / "m.pt")


def test_a_folder_of_orbax_is_named(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("orbax.checkpoint")
    with checkpoints.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run" / "0", {"a": np.ones(3)})
    for folder in (tmp_path / "run", tmp_path / "run" / "0"):
        with pytest.raises(ValueError, match=r"run/0 is a checkpoint of Orbax, .* model\.save_pretrained"):
            read(folder)


def test_folders_that_a_training_has_shared_out_are_named(tmp_path: Path) -> None:
    """Of torch.distributed.checkpoint, as FSDP and Lightning use it, and of DeepSpeed by the script that it leaves."""
    import torch.distributed.checkpoint

    state = {"state_dict": {"head.weight": torch.ones(2)}}
    with warnings.catch_warnings(action="ignore"):  # of the one process that there is
        torch.distributed.checkpoint.save(state, checkpoint_id=tmp_path / "last.ckpt")
    torch.save({"epoch": 1}, tmp_path / "last.ckpt" / "meta.pt")
    with pytest.raises(ValueError, match=r"last\.ckpt is a checkpoint of torch\.distributed\.checkpoint, .*dcp_to"):
        read(tmp_path / "last.ckpt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "zero_to_fp32.py").write_text("")
    with pytest.raises(ValueError, match=r"run is a checkpoint of DeepSpeed, .* with the zero_to_fp32\.py"):
        read(tmp_path / "run")


def test_what_a_folder_holds_is_named_with_filename(tmp_path: Path) -> None:
    (tmp_path / "weights.dat").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds weights\.dat\. Pass .*, or filename="):
        read(tmp_path)


def test_a_mistyped_folder_answers_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for there, typed in (("my-ti", "my-tii"), ("runs/vit-small", "runs/vit-smal"), ("Run-10", "run-1")):
        shutil.copytree(CLS, tmp_path / there)
        (tmp_path / there / "config.json").unlink()  # as training code leaves a folder
        with pytest.raises(FileNotFoundError, match=rf"There is no folder {typed} here; {there} is\. Correct the name"):
            vit_torch.ViTModel.from_pretrained(typed)
        with pytest.raises(ImportError, match="huggingface_hub"):
            vit_torch.ViTModel.from_pretrained(typed, revision="main")


def test_a_mistyped_file_or_path_names_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "run").mkdir()
    torch.save(state_of(SOURCES["timm"][0]), tmp_path / "run" / "last.ckpt")
    with pytest.raises(FileNotFoundError, match=r"There is no file run/last\.ckp here; run/last\.ckpt is\."):
        vit_torch.ViTModel.from_pretrained("run/last.ckp")
    with pytest.raises(FileNotFoundError, match=r"The folder '\./runn' does not exist, but run does\."):
        vit_torch.ViTModel.from_pretrained("./runn")


def test_arrays_of_tensors_that_were_read() -> None:
    for name, tensor in read(CLS).tensors.items():
        np.testing.assert_array_equal(np.asarray(tensor), tensor.read(), name)
        assert np.asarray(tensor, np.float64).dtype == np.float64
    assert np.array(tensor, copy=True) is not tensor.read()
    with pytest.raises(ValueError, match="can't be had without a copy"):
        np.array(tensor, np.float64, copy=False)


# ---- other numbers of channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_channels_are_adapted_as_timm_does(channels: int) -> None:
    with np.load(FORMATS / "timm_channels.npz") as golden:
        weight, wanted = golden["weight"], golden[str(channels)]
    assert_close(with_channels(Tensor.of(weight), channels).read(), wanted, 8 * UNIT_ROUNDOFF["float32"])
    half = with_channels(Tensor.of(weight.astype(np.float16)), channels)
    assert (half.read().dtype, half.shape) == (np.float16, wanted.shape)


@pytest.mark.parametrize("channels", [1, 6])
def test_models_of_other_channels(backend: Any, tmp_path: Path, channels: int) -> None:
    """Of a picture whose channels are alike they compute what the model of 3 does, by whichever way they are made."""
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    model, report = cls.from_pretrained(CLS, num_channels=channels, output_loading_info=True)
    name = "vit.embeddings.patch_embeddings.projection.weight"
    assert (report.adapted, model.config.num_channels) == ([(name, 3, channels)], channels)
    config = model.config
    pixels = np.random.default_rng(0).standard_normal((2, 1, config.image_size, config.image_size)).astype(np.float32)
    wanted = backend.call(backend.load("ViTForImageClassification", CLS), pixel_values=pixels.repeat(3, 1)).logits
    found = backend.call(model, pixel_values=pixels.repeat(channels, 1)).logits
    assert_close(found, wanted, both_rounded(config), "logits")
    convert(CLS, tmp_path, to="flax", num_channels=channels)
    again = backend.parameters(backend.load("ViTForImageClassification", tmp_path))
    for parameter, array in backend.parameters(model).items():
        np.testing.assert_array_equal(again[parameter], array, parameter)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_preprocessor_of_other_channels(tmp_path: Path, channels: int) -> None:
    """What pictures are normalised with is averaged, or repeated, whichever way a model of other channels is made."""
    statistics = {f"image_{name}": values for name, values in IMAGENET.items()}
    shutil.copytree(CLS, tmp_path / "three")
    ViTImageProcessor(size=32, **statistics).save_pretrained(tmp_path / "three")
    model = vit_torch.ViTForImageClassification.from_pretrained(tmp_path / "three", num_channels=channels)
    model.save_pretrained(tmp_path / "saved")
    report = convert(tmp_path / "three", tmp_path / "converted", to="torch", num_channels=channels)
    how = "averaged" if channels == 1 else "repeated in turn"
    assert f"image_mean and image_std are {how} for pictures of {channels} channels" in report.notes
    convert(tmp_path / "three", tmp_path / "timm", to="timm", num_channels=channels)
    pixels = np.full((40, 40, channels), 128, np.uint8)
    for name in ("saved", "converted", "timm"):
        processor = find_processor(tmp_path / name, model.config)
        for key, values in statistics.items():
            wanted = [np.mean(values)] if channels == 1 else [*values, values[0]]
            np.testing.assert_allclose(getattr(processor, key), wanted)
        batch = processor(pixels, input_data_format="channels_last", return_tensors="np")["pixel_values"]
        assert batch.shape == (1, channels, model.config.image_size, model.config.image_size)


def test_channels_that_no_projection_can_be_made_of(tmp_path: Path) -> None:
    convert(CLS, tmp_path, to="torch", num_channels=4)
    with pytest.raises(ValueError, match=r"projection\.weight takes 4 channels, expected 1 or 3 to make one of 2"):
        vit_torch.ViTModel.from_pretrained(tmp_path, num_channels=2)


def test_the_flags_of_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = {f"{name}.{n}": t + i for i, name in enumerate("ab") for n, t in state_of(SOURCES["timm"][0]).items()}
    torch.save(content, tmp_path / "m.pt")
    flags = ["--to", "torch", "--heads", "2", "--ignore-unknown", "--prefix", "b.", "--num-channels", "1"]
    assert main([str(tmp_path / "m.pt"), str(tmp_path / "new"), *flags]) == 0
    assert "the patch projection of 3 channels is adapted to 1, as timm does" in capfd.readouterr().out
    found = read(tmp_path / "new")
    np.testing.assert_array_equal(found.tensors["classifier.bias"].read(), content["b.head.bias"].numpy())
    assert found.config.num_channels == 1
    assert main([str(tmp_path / "m.pt"), str(tmp_path / "other"), *flags[:-3], "c."]) == 2
    assert "no names that begin with 'c.', but a. (32), b. (32)" in capfd.readouterr().err
