"""Documents and names of anybody: what is wrong in them is a ValueError at once, with the file and the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINTS, GOLDEN

import conversion
from vit_core.app.cli import main
from vit_core.config import ViTConfig
from vit_core.family import PARTS
from vit_core.files.documents import Document, parse_json_object, read_json_object
from vit_core.files.keras_hdf5 import read_keras_h5, write_keras_h5
from vit_core.files.npz import read_npz, write_npz
from vit_core.files.pytorch import read_pytorch_bin, write_pytorch_bin
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import CONTAINERS, Container, find_weights, read_checkpoint, read_named
from vit_core.loading import fit
from vit_core.params import rank_of
from vit_core.pictures.processing import ViTImageProcessor

FORMATS = GOLDEN / "families"
MINI = CHECKPOINTS / "mini" / "pt_safetensors"


def edited(folder: Path, name: str, path: str, value: Any) -> None:
    """Set the field at a dotted path of a JSON document, whose objects are made where they are missing."""
    document = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
    node = document
    *outer, last = path.split(".")
    for part in outer:
        node = node.setdefault(part, {})
    node[last] = value
    (folder / name).write_text(json.dumps(document))


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MINI, tmp_path / "mini"))


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"a": {"b": [1, NaN]}}', r"^there: a\.b\.1 must be a finite number, got nan\.$"),
        (b'{"a": 1e999}', r"^there: a must be a finite number, got inf\.$"),
        (b'{"a": ' + b"1" * 400 + b"}", r"^there: a exceeds 1000 bits\.$"),
        (b'{"a": ' + b"1" * 5000 + b"}", r"^there is not valid JSON: Exceeds the limit"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", r"^there is not valid JSON: a\.0\.0.* deeper than 64 levels\.$"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, r"^there is not valid JSON: .* deeper than 64 levels\.$"),
        (b'{"a": {"b": 1, "b": 2}}', "^there is not valid JSON: the name 'b' occurs twice"),
        (b"\xff\xfe", "^there is not valid JSON"),
        (b"[]", r"^there must hold a JSON object, got a list\.$"),
    ],
)
def test_what_no_document_may_hold(text: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json_object(text, "there")


def test_what_a_document_may_hold() -> None:
    deepest = b'{"a": ' + b"[" * 63 + b"-9223372036854775808, 1e308" + b"]" * 63 + b"}"
    assert parse_json_object(deepest, "there") == json.loads(deepest)


@pytest.mark.parametrize("value", [float("nan"), 1 << 1000, json.loads("[" * 70 + "]" * 70)])
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, value: Any) -> None:
    for made, name in ((ViTConfig(extra=value), "configuration"), (ViTImageProcessor(extra=value), "processor")):
        with pytest.raises(ValueError, match=f"^This {name}.*extra"):
            made.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
    ViTConfig(extra=1 << 999).save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path).extra == 1 << 999


def test_a_file_that_is_no_document_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=r"config\.json is larger than 67108864 bytes"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("method", "value", "kind"),
    [
        ("object", "x", "an object"),
        ("text", 3, "a text"),
        ("texts", "cat", "texts"),
        ("texts", ["cat", 3], "texts"),
        ("integer", 1.5, "an integer"),
        ("integer", True, "an integer"),
        ("number", "1", "a number"),
        ("number", True, "a number"),
        ("numbers", [], "a number, or one a channel"),
        ("numbers", [0.5, None], "a number, or one a channel"),
        ("lengths", [1, 2, 3], "an integer, or 2 of them"),
        ("lengths", 1.5, "an integer, or 2 of them"),
    ],
)
def test_fields_are_asked_for_by_kind(method: str, value: Any, kind: str) -> None:
    document = Document({"outer": {"field": value}}, "there").object("outer")
    with pytest.raises(ValueError, match=rf"^there: outer\.field must be {kind}, got "):
        getattr(document, method)("field", *(["x"] if method == "text" else []))


# ---- config.json and preprocessor_config.json --------------------------------------------------------------------

ATTRIBUTES = ("self", "grid", "__dict__", "__class__", "validate", "to_dict", "use_return_dict", "_set_labels")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_a_key_that_is_an_attribute_of_the_class_is_refused(mini: Path, name: str) -> None:
    edited(mini, "config.json", name, {"hidden_size": 10**9})
    words = rf"^{mini}/config\.json: '{name}' is part of ViTConfig itself"
    for read in (ViTConfig.from_pretrained, lambda folder: ViTConfig.from_json_file(folder / "config.json")):
        with pytest.raises(ValueError, match=words):
            read(mini)
    with pytest.raises(ValueError, match=words):
        conversion.read(mini)


@pytest.mark.parametrize("name", ["self", "__class__", "__dict__", "to_dict", "preprocess", "model_input_names"])
def test_a_key_that_is_an_attribute_of_the_processor_is_refused(tmp_path: Path, name: str) -> None:
    edited(tmp_path, "preprocessor_config.json", name, 5)
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json: '{name}' is part of ViTImageProcessor itself"):
        ViTImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", -8, "hidden_size must be a positive integer, got -8"),
        ("architectures", 5, "architectures must be a list of names of classes"),
        ("architectures", {"a": 1}, "architectures must be a list of names of classes"),
        ("architectures", [["x"]], "architectures must be a list of names of classes"),
        ("id2label", 5, "id2label must map label numbers to names"),
        ("id2label", {"0": "a", " 0": "b"}, "id2label must name each label number once"),
        ("label2id", {"a": "x"}, "label2id must map label names to numbers"),
        ("pruned_heads", {"0": [1]}, "pruned_heads="),
        ("stage_names", 5, "stage_names must be a list of names, or None, got 5"),
        ("stage_names", {"0": "stem"}, "stage_names must be a list of names, or None"),
    ],
)
def test_messages_about_a_field_name_the_file(mini: Path, field: str, value: Any, words: str) -> None:
    edited(mini, "config.json", field, value)
    with pytest.raises(ValueError, match=rf"^{mini}/config\.json: {words}"):
        ViTConfig.from_pretrained(mini)
    with pytest.raises(ValueError, match=rf"^{mini}/config\.json with image_size as given: {words}"):
        ViTConfig.from_pretrained(mini, image_size=32)


@pytest.mark.parametrize("layers", [101, 10**6, 2**63])
def test_a_number_of_layers_is_bounded_by_what_the_weights_hold(
    mini: Path, layers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(mini, "config.json", "num_hidden_layers", layers)
    assert main(["inspect", str(mini)]) == 2
    assert f"num_hidden_layers is {layers} in the configuration of {mini}" in capsys.readouterr().err


@pytest.mark.parametrize("layers", [101, 2**63])
def test_so_is_the_number_of_the_decoders_layers(
    tmp_path: Path, layers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / "mae_pretraining" / "pt_safetensors", tmp_path / "mae"))
    edited(folder, "config.json", "decoder_num_hidden_layers", layers)
    assert main(["inspect", str(folder)]) == 2
    assert f"decoder_num_hidden_layers is {layers} in the configuration of {folder}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("member", "cls", "field", "value", "words"),
    [
        (
            "base",
            "ViTForMaskedImageModeling",
            "encoder_stride",
            10**5,
            r"decoder\.0\.weight of shape \(30000000000, 32",
        ),
        ("beit_cls", "BeitForMaskedImageModeling", "vocab_size", 10**9, r"lm_head\.weight of shape \(1000000000, 32\)"),
        ("mae", "ViTMAEForPreTraining", "decoder_intermediate_size", 10**9, r"of shape \(1000000000, 16\)"),
    ],
)
def test_what_is_initialised_anew_is_bounded(
    tmp_path: Path, member: str, cls: str, field: str, value: int, words: str
) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / member / "pt_safetensors", tmp_path / member))
    edited(folder, "config.json", field, value)
    checkpoint = conversion.read(folder)
    with pytest.raises(ValueError, match=rf"numbers that {folder}/model\.safetensors does not hold, .*{words}"):
        fit(checkpoint, checkpoint.config, PARTS[cls])


@pytest.mark.parametrize(
    ("member", "field", "value", "words"),
    [
        ("mae", "image_size", 10**300, r"image_size must be a positive integer or a \(height, width\) pair, got 10"),
        ("mae", "hidden_size", 4 * 10**299, "hidden_size must be an integer of at most 64 bits, got 40"),
        ("dinov2_swiglu", "mlp_ratio", 1e308, r"mlp_ratio must be a number from 0 to 1\.84467e\+19, got 1e\+308"),
        ("dinov2", "mlp_ratio", 10**300, r"mlp_ratio must be a number from 0 to 1\.84467e\+19, got 10"),
    ],
)
def test_numbers_of_which_no_other_can_be_computed(
    tmp_path: Path, member: str, field: str, value: Any, words: str
) -> None:
    folder = Path(shutil.copytree(CHECKPOINTS / member / "pt_safetensors", tmp_path / member))
    edited(folder, "config.json", field, value)
    with pytest.raises(ValueError, match=rf"config\.json: {words}"):
        conversion.read(folder)


def test_a_file_that_does_not_say_how_wide_a_dinov2_is(tmp_path: Path) -> None:
    tensors, path = read_pytorch_bin(FORMATS / "facebook_dinov2" / "model.pth"), tmp_path / "model.pth"
    write_pytorch_bin(path, {name: tensor for name, tensor in tensors.items() if name != "blocks.0.mlp.fc2.weight"})
    with pytest.raises(ValueError, match=rf"^{path}: encoder\.layer\.0\.output\.dense\.weight is not there"):
        conversion.read(path, num_attention_heads=2)


def test_parts_of_two_models_are_refused_by_name(tmp_path: Path) -> None:
    source, path = FORMATS / "timm_dinov2_gated" / "pytorch_model.bin", tmp_path / "model.pth"
    tensors, options = read_pytorch_bin(source), {"num_attention_heads": 2, "stored_image_size": 32}
    assert conversion.read(source, **options).family.title == "DINOv2 with registers"
    write_pytorch_bin(path, {**tensors, "fc_norm.weight": tensors["norm.weight"]})
    with pytest.raises(ValueError, match=rf"^{path} holds fc_norm\.weight, which no DINOv2 with registers has"):
        conversion.read(path, **options)


@pytest.mark.parametrize("labels", [2**18 + 1, 10**9, 2**63])
def test_a_number_of_labels_without_names_is_bounded(tmp_path: Path, labels: int) -> None:
    edited(tmp_path, "config.json", "num_labels", labels)
    with pytest.raises(ValueError, match=rf"config\.json: num_labels={labels} is more than the 262144 labels"):
        ViTConfig.from_pretrained(tmp_path)
    named = ViTConfig(id2label=dict.fromkeys(range(2**18 + 1), "x"))
    assert named.num_labels == 2**18 + 1


def test_layers_that_the_weights_lack_are_missing(mini: Path) -> None:
    edited(mini, "config.json", "num_hidden_layers", 100)
    assert read_checkpoint(find_weights(mini)).config == ViTConfig.from_pretrained(mini)


@pytest.mark.parametrize("labels", [{"1": "cat", "2": "dog"}, {0: "cat", 2: "dog"}, {-1: "cat"}])
def test_labels_have_no_holes(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"id2label must number its labels from 0 to \d, lacks "):
        ViTConfig(id2label=labels)


def test_one_of_the_tables_of_labels_is_enough() -> None:
    expected = ViTConfig(id2label={0: "cat", 1: "dog", 2: "owl"})
    assert ViTConfig(label2id={"owl": 2, "cat": 0, "dog": "1"}) == expected
    assert ViTConfig(id2label=["cat", "dog", "owl"]) == expected
    assert expected.label2id == {"cat": 0, "dog": 1, "owl": 2}
    with pytest.raises(ValueError, match="id2label must number its labels from 0 to 1, lacks 1"):
        ViTConfig(label2id={"cat": 0, "dog": 2})


@pytest.mark.parametrize("size", [10**6, 10**30, {"shortest_edge": 4097}, {"height": 2, "width": 2**23 + 1}])
@pytest.mark.parametrize("name", ["size", "crop_size"])
def test_what_pictures_become_is_bounded(name: str, size: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be at most 16777216 pixels"):
        ViTImageProcessor(do_center_crop=True, **{"crop_size": 8, name: size})


# ---- the documents of other families -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("architecture", 5, "architecture must be a text"),
        ("model_args", 5, "model_args must be an object"),
        ("model_args.depth", "x", r"model_args\.depth must be an integer"),
        ("model_args.embed_dim", 1.5, r"model_args\.embed_dim must be an integer"),
        ("model_args.img_size", [1], r"model_args\.img_size must be an integer, or 2 of them"),
        ("model_args.img_size", {}, r"model_args\.img_size must be an integer, or 2 of them"),
        ("model_args.act_layer", ["gelu"], r"model_args\.act_layer must be a text"),
        ("pretrained_cfg", "x", "pretrained_cfg must be an object"),
        ("pretrained_cfg.mean", "x", r"pretrained_cfg\.mean must be a number, or one a channel"),
        ("pretrained_cfg.interpolation", [], r"pretrained_cfg\.interpolation must be a text"),
        ("pretrained_cfg.crop_pct", "1", r"pretrained_cfg\.crop_pct must be a number"),
        ("label_names", 5, "label_names must be texts"),
        ("label_names", "cat", "label_names must be texts"),
        ("model_args.num_heads", -1, "num_attention_heads must be a positive integer"),
        ("model_args.depth", 10**9, "num_hidden_layers is 1000000000 in the configuration of"),
    ],
)
def test_timm_documents(tmp_path: Path, path: str, value: Any, words: str) -> None:
    folder = Path(shutil.copytree(FORMATS / "timm", tmp_path / "timm"))
    edited(folder, "config.json", path, value)
    with pytest.raises(ValueError, match=words) as caught:
        conversion.read(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path", "value", "words"),
    [
        ("config.json", "config", "x", "config must be an object"),
        ("config.json", "config.image_shape", 8.5, r"config\.image_shape must be an integer, or 3 of them"),
        ("config.json", "config.num_heads", "2", r"config\.num_heads must be a number"),
        ("config.json", "config.layer_norm_epsilon", -1, "layer_norm_eps must be a finite number of at least 0"),
        ("task.json", "config", "x", "config must be an object"),
        ("task.json", "config.pooling", [], r"config\.pooling must be a text"),
        ("image_converter.json", "config", "x", "config must be an object"),
        ("image_converter.json", "config", {"scale": 0, "offset": 0}, "scale must be positive"),
        ("image_converter.json", "config", {"scale": 5e-324, "offset": 0}, "scale must be positive"),
        ("image_converter.json", "config", {"scale": [1, 2], "offset": 0}, "scale must be positive, one a channel"),
        ("image_converter.json", "config", {"scale": "x"}, r"config\.scale must be a number, or one a channel"),
    ],
)
def test_keras_hub_documents(tmp_path: Path, name: str, path: str, value: Any, words: str) -> None:
    folder = Path(shutil.copytree(FORMATS / "keras_hub_preset", tmp_path / "preset"))
    edited(folder, name, path, value)
    with pytest.raises(ValueError, match=words) as caught:
        conversion.read(folder)
    assert str(folder) in str(caught.value)


def test_a_keras_hub_converter_without_scale_takes_pixel_values_as_they_are(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(FORMATS / "keras_hub_preset", tmp_path / "preset"))
    edited(folder, "image_converter.json", "config.image_size", [32, 32])
    processor = conversion.read(folder).processor
    assert (processor["image_mean"], processor["image_std"]) == ([0.0] * 3, [1 / 255] * 3)


# ---- a source's preprocessor in a target -------------------------------------------------------------------------

INTERPOLATION = {"timm": ("config.json", "pretrained_cfg"), "keras-hub": ("image_converter.json", "config")}


@pytest.mark.parametrize("to", INTERPOLATION)
@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"image_mean": 0.25, "image_std": 0.5}, "bilinear"),
        ({"image_mean": 0.25, "image_std": [0.5, 0.5, 0.5], "resample": 3}, "bicubic"),
        ({"image_mean": 0.25, "image_std": 0.5, "resample": None, "do_resize": False}, "bilinear"),
        ({"image_mean": 0.25, "image_std": 0.5, "resample": 6}, "bicubic"),
        ({"image_mean": 0.25, "image_std": 0.5, "resample": 7}, "bicubic"),
    ],
)
def test_legal_preprocessors_convert(mini: Path, tmp_path: Path, to: str, values: dict[str, Any], name: str) -> None:
    (mini / "preprocessor_config.json").write_text(json.dumps(values))
    if values.get("resample") in (6, 7):
        pytest.importorskip("PIL", "12.1")  # which has these filters
    report = conversion.convert(mini, tmp_path / "out", to=to, pooler="drop")
    file, path = INTERPOLATION[to]
    written = json.loads((tmp_path / "out" / file).read_text())[path]
    assert written["interpolation"] == name
    assert written.get("mean", [0.25] * 3) == [0.25] * 3
    assert written.get("offset", [-0.5] * 3) == [-0.5] * 3
    assert any("resized by bicubic" in note for note in report.notes) == (values.get("resample") in (6, 7))
    assert conversion.read(tmp_path / "out").processor is not None


@pytest.mark.parametrize("to", ["torch", "timm", "keras-hub"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("image_std", [0, 1, 1]), ("image_mean", "x"), ("resample", 99), ("resample", "bicubic"), ("do_resize", 5)],
)
@pytest.mark.parametrize("steps", [{}, {"do_resize": False, "do_normalize": False}], ids=["on", "off"])
def test_preprocessors_that_no_library_takes(
    mini: Path, tmp_path: Path, to: str, field: str, value: Any, steps: dict[str, bool]
) -> None:
    (mini / "preprocessor_config.json").write_text(json.dumps({**steps, field: value}))
    with pytest.raises(ValueError, match=rf"^{mini}/preprocessor_config\.json: {field} must "):
        conversion.convert(mini, tmp_path / "out", to=to, pooler="drop")
    assert not (tmp_path / "out").exists()


# ---- ranks of arrays ---------------------------------------------------------------------------------------------

OF_FORMATS = {
    **dict.fromkeys(("pt_safetensors", "tf_safetensors", "flax_safetensors"), "model.safetensors"),
    "pt_bin_fp16": "pytorch_model.bin",
    "flax_msgpack_bf16": "flax_model.msgpack",
}


def refused_with_other_ranks(path: Path, tensors: dict[str, Tensor], write: Any) -> None:
    """Every array with an axis less, and with one more, is refused when the file is opened."""
    for name, tensor in tensors.items():
        for shape in (tensor.shape[:-1], (*tensor.shape, 1)):
            write({**tensors, name: Tensor.of(np.zeros(shape, tensor.dtype))})
            with pytest.raises(ValueError, match=r"of shape .*, expected \d axes") as caught:
                conversion.read(path, head="drop")
            assert str(path) in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize("folder", OF_FORMATS)
def test_arrays_of_another_rank_are_refused(tmp_path: Path, folder: str) -> None:
    path = tmp_path / OF_FORMATS[folder]
    container: Container = next(c for c in CONTAINERS if path.name == c.names()[0])
    named = read_named(CHECKPOINTS / "mini" / folder / path.name)
    chosen = {name: t for name, t in named.tensors.items() if "layer.1" not in name and "layer_._1" not in name}
    refused_with_other_ranks(path, chosen, lambda tensors: container.write(path, tensors, named.format, False))


def test_arrays_of_another_rank_are_refused_in_other_families(tmp_path: Path) -> None:
    safe, npz, h5 = tmp_path / "model.safetensors", tmp_path / "model.npz", tmp_path / "model.weights.h5"
    tensors, _ = read_safetensors(FORMATS / "timm" / "model.safetensors")
    tensors = {name: t for name, t in tensors.items() if not name.startswith("blocks.1.")}
    refused_with_other_ranks(safe, tensors, lambda tensors: write_safetensors(safe, tensors, {}))
    tensors = read_npz(FORMATS / "google" / "model.npz")
    tensors = {name: t for name, t in tensors.items() if "encoderblock_1" not in name}
    refused_with_other_ranks(npz, tensors, lambda tensors: write_npz(npz, tensors))
    tensors = dict(list(read_keras_h5(FORMATS / "keras_hub_preset" / "model.weights.h5").items())[:6])
    refused_with_other_ranks(h5, tensors, lambda tensors: write_keras_h5(h5, tensors))


def test_ranks_are_those_of_the_table() -> None:
    ranks = {name: len(tensor.shape) for name, tensor in read_checkpoint(find_weights(MINI)).tensors.items()}
    assert {name: rank_of(name) for name in ranks} == ranks and set(ranks.values()) == {1, 2, 3, 4}


def test_layer_scales_must_fit_the_layers_before_them(tmp_path: Path) -> None:
    tensors, _ = read_safetensors(FORMATS / "timm_layer_scale" / "model.safetensors")
    gamma = "blocks.0.ls1.gamma"
    for changed in ({gamma: Tensor.of(np.ones(1, np.float32))}, {"blocks.7.ls1.gamma": tensors[gamma]}):
        write_safetensors(tmp_path / "model.safetensors", tensors | changed, {})
        with pytest.raises(ValueError, match="has the layer scale 'blocks"):
            conversion.read(tmp_path, fold_layer_scale=True, num_attention_heads=2)


def test_names_and_headers_that_once_broke_the_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = Tensor.of(np.zeros(1, np.float32))
    write_safetensors(tmp_path / "deep.safetensors", {"module." * 1100 + "x": one}, {})
    write_safetensors(tmp_path / "empty.safetensors", {"classifier.bias": Tensor.of(np.zeros(0, np.float32))}, {})
    header = b'{"__metadata__":null,"classifier.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "null.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    (tmp_path / "deep.msgpack").write_bytes(b"\x81\xa0" * 1000 + b"\x80")
    codes = {name: main(["inspect", str(tmp_path / name)]) for name in sorted(p.name for p in tmp_path.iterdir())}
    assert codes == {"deep.msgpack": 2, "deep.safetensors": 2, "empty.safetensors": 0, "null.safetensors": 0}
    assert "'' is no name of a parameter" in capsys.readouterr().err


def test_a_configuration_beside_weights_without_positions(tmp_path: Path) -> None:
    tensors, _ = read_safetensors(FORMATS / "timm" / "model.safetensors")
    write_safetensors(tmp_path / "model.safetensors", {n: t for n, t in tensors.items() if n != "pos_embed"}, {})
    shutil.copy(MINI / "config.json", tmp_path)
    with pytest.raises(ValueError, match="lacks position or patch embeddings"):
        conversion.read(tmp_path)
