"""What training code leaves: prefixes, averages, tensors beside the model, heads that were replaced, other models."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from conftest import CHECKPOINTS, GOLDEN
from PIL import Image
from tolerances import both_rounded

from conversion import convert, read
from conversion.cli import main
from vit_core.channels import with_channels
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
    np.testing.assert_allclose(found, wanted, atol=2e-6 * np.abs(wanted).max())
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
    "timm_avg": ["head.bias", "head.weight"],
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


def test_head_and_pooler_are_dropped_on_request(backend: Any) -> None:
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    _, report = cls.from_pretrained(CLS, head="drop", output_loading_info=True)
    assert report.missing_keys == report.unexpected_keys[::-1] == ["classifier.weight", "classifier.bias"]
    cls = getattr(backend.package, f"{backend.prefix}ViTModel")
    folder = CHECKPOINTS / "base" / "pt_safetensors"
    _, report = cls.from_pretrained(folder, pooler="drop", output_loading_info=True)
    assert report.missing_keys == report.unexpected_keys[::-1] == ["pooler.dense.weight", "pooler.dense.bias"]
    with pytest.raises(ValueError, match='pooler must be "keep" or "drop", got False'):
        cls.from_pretrained(folder, pooler=False)


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
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


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


def test_a_folder_of_orbax_is_named(tmp_path: Path) -> None:
    checkpoints = pytest.importorskip("orbax.checkpoint")
    with checkpoints.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "run" / "0", {"a": np.ones(3)})
    for folder in (tmp_path / "run", tmp_path / "run" / "0"):
        with pytest.raises(ValueError, match=r"run/0 is a checkpoint of Orbax, .* model\.save_pretrained"):
            read(folder)


def test_what_a_folder_holds_is_named_with_filename(tmp_path: Path) -> None:
    (tmp_path / "weights.dat").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds weights\.dat\. Pass .*, or filename="):
        read(tmp_path)


def test_a_mistyped_folder_answers_before_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for there, typed in (("my-ti", "my-tii"), ("runs/vit-small", "runs/vit-smal")):
        shutil.copytree(CLS, tmp_path / there)
        with pytest.raises(FileNotFoundError, match=rf"There is no folder {typed} here; {there} is\. Correct the name"):
            vit_torch.ViTModel.from_pretrained(typed)
        with pytest.raises(ImportError, match="huggingface_hub"):
            vit_torch.ViTModel.from_pretrained(typed, revision="main")


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
    np.testing.assert_allclose(with_channels(Tensor.of(weight), channels).read(), wanted, rtol=1e-6, atol=1e-6)
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
