"""from_pretrained and save_pretrained: what is loaded, reported, resized, refused; saves that survive a crash."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from conftest import CHECKPOINTS
from hub_server import HubServer, Repo, client_environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_config import configs
from test_h5 import OWN_FILES
from test_models import TINY, pixels
from tolerances import UNIT_ROUNDOFF

from vit_core.assets import DIGITS
from vit_core.config import ViTConfig
from vit_core.files.safetensors import read_safetensors
from vit_core.params import count
from vit_core.position import KERNELS, resize_position_bias, resize_position_embeddings

CLS = CHECKPOINTS / "cls" / "pt_safetensors"
BASE = CHECKPOINTS / "base" / "pt_safetensors"
MINI = CHECKPOINTS / "mini"


def load(backend: Any, cls: str, path: Path, **kwargs: Any) -> tuple[Any, Any]:
    result: tuple[Any, Any] = getattr(backend.package, cls).from_pretrained(path, output_loading_info=True, **kwargs)
    return result


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        assert array.tobytes() == b[name].tobytes(), name


# ---- load --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tf_safetensors", "tf_safetensors_sharded", "flax_safetensors"])
def test_every_format_gives_the_same_model(backend: Any, name: str) -> None:
    expected, _ = load(backend, "ViTForImageClassification", MINI / "pt_safetensors")
    model, report = load(backend, "ViTForImageClassification", MINI / name)
    assert_same(backend.parameters(model), backend.parameters(expected))
    assert report.format == name.partition("_")[0]
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in report.converted


def test_demanded_format(backend: Any) -> None:
    load(backend, "ViTForImageClassification", MINI / "tf_safetensors", from_tf=True)
    load(backend, "ViTForImageClassification", MINI / "pt_safetensors", from_pt=True, from_flax=True)
    with pytest.raises(ValueError, match=r"from_tf=True was given, but .* has the format 'flax'"):
        load(backend, "ViTForImageClassification", MINI / "flax_safetensors", from_tf=True)


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("pt_safetensors_bf16", None, "float32"),
        ("pt_safetensors_bf16", "auto", "bfloat16"),
        ("pt_safetensors_fp16", "auto", "float16"),
        ("pt_safetensors_mixed", "auto", "bfloat16"),
        ("flax_safetensors_bf16", "bfloat16", "bfloat16"),
        ("pt_safetensors", "float64", "float64"),
    ],
)
def test_dtype_of_a_loaded_model(backend: Any, name: str, dtype: Any, expected: str) -> None:
    model, _ = load(backend, "ViTForImageClassification", MINI / name, dtype=dtype)
    found = {a.dtype.name for a in backend.parameters(model).values()}
    wider = {"float32"} if backend.keeps_wider_parameters and name == "pt_safetensors_mixed" else set()
    assert found == {expected} | wider
    assert model.config.dtype == expected


def test_unknown_dtype(backend: Any) -> None:
    with pytest.raises(ValueError, match=r"dtype must be \"auto\" or one of float32, .*got 'int8'"):
        load(backend, "ViTForImageClassification", CLS, dtype="int8")


def test_trunk_of_a_classifier(backend: Any) -> None:
    """It has no pooler, which the file has not, unless one is asked for: nothing random is handed out."""
    model, report = load(backend, "ViTModel", CLS)
    assert report.missing_keys == []
    assert report.unexpected_keys == ["classifier.bias", "classifier.weight"]
    assert "pooler" not in model.parts
    with pytest.warns(UserWarning, match=r"pooler_output is None: .*\.features\(pixel_values\)"):
        getattr(backend.package, "ViTModel").from_pretrained(CLS)  # noqa: B009
    model, report = load(backend, "ViTModel", CLS, add_pooling_layer=True)
    assert report.missing_keys == ["pooler.dense.weight", "pooler.dense.bias"]
    with pytest.warns(
        UserWarning, match=r"2 parameters of .*ViTModel were not taken .* newly initialised: pooler\.dense"
    ):
        backend.package.ViTModel.from_pretrained(CLS, add_pooling_layer=True)
    expected, _ = load(backend, "ViTForImageClassification", CLS)
    arrays, whole = backend.parameters(model), backend.parameters(expected)
    assert all(np.array_equal(arrays[n], whole[n]) for n in arrays if not n.startswith("pooler"))


def test_classifier_and_decoder_on_a_trunk(backend: Any) -> None:
    _, report = load(backend, "ViTForImageClassification", BASE)
    assert report.missing_keys == ["classifier.weight", "classifier.bias"]
    assert report.unexpected_keys == ["pooler.dense.bias", "pooler.dense.weight"]
    _, report = load(backend, "ViTForMaskedImageModeling", BASE)
    assert report.missing_keys == ["vit.embeddings.mask_token", "decoder.0.weight", "decoder.0.bias"]
    _, report = load(backend, "ViTModel", BASE, add_pooling_layer=False, use_mask_token=True)
    assert (report.missing_keys, report["unexpected_keys"]) == (
        ["embeddings.mask_token"],
        ["pooler.dense.bias", "pooler.dense.weight"],
    )
    assert dict(report.items())["missing_keys"] == report.get("missing_keys") == ["embeddings.mask_token"]
    assert "unexpected_keys" in report and len(report) == len(list(report)) and report["error_msgs"] == []
    for name in ("nothing", "checksums", "_taken"):
        assert name not in report
        with pytest.raises(KeyError):
            report[name]


def test_missing_parameters_come_from_the_seed(backend: Any) -> None:
    a, b, c = (load(backend, "ViTForImageClassification", BASE, seed=s)[0] for s in (1, 1, 2))
    assert_same(backend.parameters(a), backend.parameters(b))
    name = "classifier.weight"
    assert not np.array_equal(backend.parameters(a)[name], backend.parameters(c)[name])


def test_all_wrong_shapes_are_listed_at_once(backend: Any) -> None:
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        load(backend, "ViTForImageClassification", CLS, num_labels=7, intermediate_size=48)
    text = str(caught.value)
    assert "classifier.weight: (5, 32) in the file, (7, 32) in the model" in text
    assert "vit.encoder.layer.1.intermediate.dense.weight: (64, 32) in the file, (48, 32) in the model" in text
    assert text.count("in the file") == 2 + 2 * 3
    assert "ignore_mismatched_sizes=True" in text


def test_fresh_heads(backend: Any) -> None:
    labels = {i: f"sort {i}" for i in range(7)}
    numbers = {label: i for i, label in labels.items()}
    for options in ({"id2label": labels}, {"label2id": numbers}, {"num_labels": 7, "ignore_mismatched_sizes": True}):
        model, report = load(backend, "ViTForImageClassification", CLS, **options)
        assert model.config.num_labels == 7
        assert (model.config.id2label == labels) == ("num_labels" not in options)
        assert report.mismatched_keys == [
            ("classifier.weight", (5, 32), (7, 32)),
            ("classifier.bias", (5,), (7,)),
        ]
    with pytest.raises(ValueError, match="intermediate"):
        load(backend, "ViTForImageClassification", CLS, id2label=labels, intermediate_size=48)


def test_no_labels(backend: Any) -> None:
    model, report = load(backend, "ViTForImageClassification", CLS, num_labels=0)
    assert report.unexpected_keys == ["classifier.bias", "classifier.weight"]
    assert backend.call(model, pixel_values=pixels(model.config)).logits.shape == (2, 32)


def test_an_image_size_of_no_whole_number_of_patches(backend: Any) -> None:
    seen = "Of pictures of 30x30 pixels only 28x28 are seen, the whole patches of 4x4 from the top left."
    with pytest.warns(UserWarning, match=seen) as told:
        backend.package.ViTForImageClassification.from_pretrained(DIGITS, image_size=30)
    assert len(told) == 1
    assert not load(backend, "ViTForImageClassification", DIGITS, image_size=28)[1].notes


@pytest.mark.parametrize("kernel", KERNELS)
def test_another_image_size_resizes_the_positions(backend: Any, kernel: str) -> None:
    original, _ = load(backend, "ViTForImageClassification", CLS)
    model, report = load(backend, "ViTForImageClassification", CLS, image_size=[48, 16], position_kernel=kernel)
    name = "embeddings.position_embeddings"
    assert report.resized == [(f"vit.{name}", (4, 4), (6, 2), kernel)]
    expected = resize_position_embeddings(backend.parameters(original)[name], (4, 4), (6, 2), kernel)
    np.testing.assert_array_equal(backend.parameters(model)[name], expected)
    assert np.isfinite(backend.call(model, pixel_values=pixels(model.config)).logits).all()


def test_same_number_of_patches_on_another_grid_is_resized(backend: Any) -> None:
    model, report = load(backend, "ViTForImageClassification", CLS, image_size=(16, 64))
    assert model.config.grid == (2, 8)
    assert report.resized[0][1:3] == ((4, 4), (2, 8))


def test_unknown_kernel(backend: Any) -> None:
    with pytest.raises(ValueError, match="Unknown interpolation kernel 'cubic'"):
        load(backend, "ViTForImageClassification", CLS, image_size=48, position_kernel="cubic")


def test_positions_that_are_not_of_the_stored_grid_are_an_error(backend: Any, tmp_path: Path) -> None:
    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "image_size": 48}))
    with pytest.raises(ValueError, match=r"position_embeddings: \(1, 17, 32\) in the file, \(1, 37, 32\) in the model"):
        load(backend, "ViTForImageClassification", tmp_path)


def test_configuration_given_apart(backend: Any, tmp_path: Path) -> None:
    shutil.copy(CLS / "model.safetensors", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No config\.json beside .*: pass config="):
        load(backend, "ViTForImageClassification", tmp_path)
    for config in (ViTConfig.from_pretrained(CLS), CLS, str(CLS / "config.json")):
        model, _ = load(backend, "ViTForImageClassification", tmp_path, config=config, output_attentions=True)
        assert model.config.output_attentions
    if isinstance(config, ViTConfig):
        assert not config.output_attentions


def test_unknown_arguments(backend: Any) -> None:
    with pytest.raises(TypeError, match="nun_labels"):
        load(backend, "ViTForImageClassification", CLS, nun_labels=3)
    with pytest.raises(TypeError, match="add_pooling_layer"):
        load(backend, "ViTForImageClassification", CLS, add_pooling_layer=False)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_biases_of_zeros_are_no_biases(backend: Any, tmp_path: Path, value: float) -> None:
    from vit_core.family import PARTS
    from vit_core.files.tensor import Tensor
    from vit_core.formats.huggingface import read_checkpoint, write_checkpoint
    from vit_core.params import specs

    folder = CHECKPOINTS / "cls_no_qkv_bias" / "pt_safetensors"
    config = ViTConfig.from_pretrained(folder)
    whole = specs(config.copy(qkv_bias=True), PARTS["ViTForImageClassification"])
    tensors = {n: Tensor.of(np.full(s.shape, value, np.float32)) for n, s in whole.items() if s.leaf == "bias"}
    tensors.update(read_checkpoint(folder / "model.safetensors").tensors)
    write_checkpoint(tmp_path, tensors, whole, "ViTForImageClassification", format="tf")
    config.save_pretrained(tmp_path)
    _, report = load(backend, "ViTForImageClassification", tmp_path)
    biases = [n for n in whole if n.endswith(("query.bias", "key.bias", "value.bias"))]
    assert len(report.unexpected_keys) == (len(biases) if value else 0)
    assert not report.missing_keys


def test_weights_that_are_no_floats(backend: Any, tmp_path: Path) -> None:
    from vit_core.files.safetensors import read_safetensors, write_safetensors
    from vit_core.formats.huggingface import read_checkpoint

    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    tensors, metadata = read_safetensors(CLS / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"].astype(np.int64)
    (tmp_path / "model.safetensors").unlink()
    write_safetensors(tmp_path / "model.safetensors", tensors, metadata)
    assert read_checkpoint(tmp_path / "model.safetensors").dtypes["int64"] == 5
    with pytest.raises(ValueError, match=r"holds classifier\.bias as int64, .*if they are quantised, load it"):
        load(backend, "ViTForImageClassification", tmp_path)


@pytest.mark.parametrize("cut", [0, 7, 200, -1])
def test_truncated_weights(backend: Any, tmp_path: Path, cut: int) -> None:
    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(backend, "ViTForImageClassification", tmp_path)


def test_missing_weights_and_folders(backend: Any, tmp_path: Path) -> None:
    shutil.copy(CLS / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load(backend, "ViTForImageClassification", tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(backend, "ViTForImageClassification", tmp_path / "nowhere")


HUB_USER = """
import sys, warnings
import numpy as np
import {package}
from vit_core import ViTConfig, ViTImageProcessor
cls = {package}.ViTForImageClassification
model = cls.from_pretrained("org/cls", revision="v1", token="hf_writer")
assert ViTConfig.from_pretrained("org/cls", revision="v1").num_labels == 5
assert ViTImageProcessor.from_pretrained("org/cls", revision="v1").size["height"] == 30
warnings.simplefilter("default")  # the client's own, of its HTTP library
print(model.push_to_hub("me/copy", token="hf_writer", max_shard_size=40_000, commit_message="A copy"))
about = {{"commit_description": "All of it", "use_temp_dir": True, "use_auth_token": "hf_writer"}}
processor = {package}.ViTImageProcessor(size=30)
processor.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/processor", **about)
model.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/model", **about)
{package}.pipeline(model=model, image_processor=processor).push_to_hub("me/pipeline", **about)
model.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="me/copy", token="hf_writer", variant="ema")
again = cls.from_pretrained("me/copy", token="hf_writer")
ema = cls.from_pretrained("me/copy", token="hf_writer", variant="ema")
for other in (again, ema):
    for name, tensor in model.to_tensors().items():
        assert np.array_equal(tensor.read(), other.to_tensors()[name].read()), name
model.push_to_hub("me/copy", token="hf_writer", safe_serialization=False)  # in the place of the shards
own = cls.from_pretrained("me/copy", token="hf_writer", output_loading_info=True)[1]
assert own.path.endswith("/{own}"), own.path
report = cls.from_pretrained("org/h5", token="hf_writer", output_loading_info=True)[1]
assert (report.format, report.missing_keys) == ("tf", []), report
deep, report = {package}.ViTModel.from_pretrained("org/deep", subfolder="a/b", output_loading_info=True)
assert not report.missing_keys
try:
    cls.from_pretrained("org/cls", revision="v2")
except OSError as error:
    print(error)
"""


def test_models_go_through_the_hub(backend: Any, tmp_path: Path) -> None:
    """Loaded at a tag and from HDF5; pushed in shards, as a variant, and in the framework's own format; loaded again.

    By the real client in its own process.
    """
    files = {p.name: p.read_bytes() for p in CLS.iterdir()}
    files["preprocessor_config.json"] = b'{"image_processor_type": "ViTImageProcessor", "size": 30}'
    with HubServer() as server:
        server.repos["org/cls"] = Repo()
        server.repos["org/cls"].refs["v1"] = server.repos["org/cls"].commit(files)
        server.repos["org/cls"].commit({"README.md": b"moved on"})
        shards = {f"a/b/{p.name}": p.read_bytes() for p in (CHECKPOINTS / "base" / "pt_safetensors_sharded").iterdir()}
        server.repos["org/deep"] = Repo()
        server.repos["org/deep"].commit(shards)
        server.repos["org/h5"] = Repo()
        server.repos["org/h5"].commit({p.name: p.read_bytes() for p in (MINI / "tf_h5_sharded").iterdir()})
        (tmp_path / "saved" / "checkpoint-1").mkdir(parents=True)
        for other in ("patients.csv", "checkpoint-1/optimizer.pt"):  # which nobody asked to upload
            (tmp_path / "saved" / other).touch()
        code = HUB_USER.format(package=backend.package.__name__, own=OWN_FILES[backend.name])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path / "saved")],
            env=client_environment(server, tmp_path / "home"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        pushed, missing = done.stdout.splitlines()
        assert pushed.startswith(f"{server.url}/me/copy/commit/")
        assert missing.startswith("'org/cls' has no revision 'v2'. Pass as revision=")
    documents, weights = {"preprocessor_config.json"}, {"config.json", "model.safetensors"}
    for name, files in {"processor": documents, "model": weights | documents, "pipeline": weights | documents}.items():
        repo = server.repos[f"me/{name}"]
        assert set(repo.commits[repo.refs["main"]]) - {".gitattributes"} == files


# ---- save --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=configs, cls=st.sampled_from(["ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"]))
def test_saving_and_loading_is_the_identity(backend: Any, tmp_path: Path, config: ViTConfig, cls: str) -> None:
    model = backend.build(cls, config)
    assert model.num_parameters() == count(config, model.parts)
    model.save_pretrained(tmp_path)
    again, report = load(backend, cls, tmp_path)
    assert not (report.missing_keys or report.unexpected_keys)
    assert report.format == "pt"
    assert_same(backend.parameters(again), backend.parameters(model))
    saved = ViTConfig.from_pretrained(tmp_path)
    assert saved == config.copy(architectures=[cls], dtype="float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("max_shard_size", ["5GB", 20_000])
def test_every_dtype_is_kept_to_the_bit(backend: Any, tmp_path: Path, dtype: str, max_shard_size: Any) -> None:
    model = backend.build("ViTForImageClassification", ViTConfig(**TINY), dtype=dtype)
    model.save_pretrained(save_directory=tmp_path, max_shard_size=max_shard_size)
    assert ViTConfig.from_pretrained(tmp_path).dtype == dtype
    again, _ = load(backend, "ViTForImageClassification", tmp_path, dtype="auto")
    assert_same(backend.parameters(again), backend.parameters(model))


def test_saving_in_another_dtype(backend: Any, tmp_path: Path) -> None:
    model = backend.build("ViTForImageClassification", ViTConfig(**TINY))
    model.save_pretrained(tmp_path, dtype="bfloat16")
    again, report = load(backend, "ViTForImageClassification", tmp_path, dtype="auto")
    assert list(report.dtypes) == ["bfloat16"]
    expected = backend.parameters(backend.build("ViTForImageClassification", ViTConfig(**TINY)))
    assert backend.parameters(again).keys() == expected.keys()
    for name, array in backend.parameters(model).items():
        found = backend.parameters(again)[name].astype(np.float32)
        assert_close(found, array, UNIT_ROUNDOFF["bfloat16"], name, each=True)


def test_variants_live_side_by_side(backend: Any, tmp_path: Path) -> None:
    first, second = (backend.build("ViTModel", ViTConfig(**TINY), seed=s) for s in (1, 2))
    first.save_pretrained(tmp_path)
    second.save_pretrained(tmp_path, variant="ema")
    assert_same(backend.parameters(load(backend, "ViTModel", tmp_path)[0]), backend.parameters(first))
    assert_same(backend.parameters(load(backend, "ViTModel", tmp_path, variant="ema")[0]), backend.parameters(second))


def test_files_of_an_earlier_save_do_not_linger(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    model = backend.build("ViTModel", ViTConfig(**TINY))
    for size in (5_000, "5GB", 20_000, 5_000):
        model.save_pretrained(tmp_path, max_shard_size=size)
        names = {p.name for p in tmp_path.iterdir()} - {"README.md", "config.json"}
        assert ("model.safetensors" in names) == (size == "5GB")
        assert ("model.safetensors.index.json" in names) == (size != "5GB")
        assert_same(backend.parameters(load(backend, "ViTModel", tmp_path)[0]), backend.parameters(model))
    assert (tmp_path / "README.md").read_text() == "mine"


def test_saving_over_the_folder_it_was_loaded_from(backend: Any, tmp_path: Path) -> None:
    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    model, _ = load(backend, "ViTForImageClassification", tmp_path)
    expected = {n: a.copy() for n, a in backend.parameters(model).items()}
    model.save_pretrained(tmp_path)
    assert_same(backend.parameters(model), expected)
    assert_same(backend.parameters(load(backend, "ViTForImageClassification", tmp_path)[0]), expected)


def test_a_file_is_no_folder(backend: Any, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file: expected a folder to save to"):
        backend.build("ViTModel", ViTConfig(**TINY)).save_pretrained(tmp_path / "model")


# ---- a full disk -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files")
def test_a_full_disk_leaves_the_old_checkpoint(backend: Any, tmp_path: Path) -> None:
    import resource  # of POSIX

    shutil.copytree(CLS, tmp_path, dirs_exist_ok=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    model, _ = load(backend, "ViTModel", tmp_path, seed=1)
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))
    try:
        with pytest.raises(OSError, match="File too large"):
            model.save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_shape_that_is_not_the_configurations_is_refused(backend: Any, tmp_path: Path) -> None:
    model = backend.build("ViTForImageClassification", ViTConfig(**TINY))
    model.config = model.config.copy(num_labels=5)
    with pytest.raises(ValueError, match=r"classifier\.weight: \(3, 16\), \(5, 16\) by the configuration"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_all_parts_have_a_model() -> None:
    from vit_core.family import FAMILIES

    for family in FAMILIES.values():
        optional = {"mask_token", *({"pooler"} if family.title == "I-JEPA" else set())}  # of arguments alone
        assert frozenset().union(*family.models.values()) | (optional & family.all_parts) == family.all_parts


def test_tables_of_relative_positions_for_another_size(backend: Any, tmp_path: Path) -> None:
    """And the index that older files hold beside them is left out."""
    folder = Path(shutil.copytree(CHECKPOINTS / "beit" / "pt_safetensors", tmp_path / "beit"))
    model, report = getattr(backend.package, f"{backend.prefix}BeitModel").from_pretrained(
        folder, image_size=(40, 56), output_loading_info=True
    )
    assert [each[1:] for each in report.resized] == [((4, 4), (5, 7), "bilinear")] * 2
    tensors, _ = read_safetensors(folder / "model.safetensors")
    name = "encoder.layer.0.attention.attention.relative_position_bias.relative_position_"
    expected = resize_position_bias(tensors[f"{name}bias_table"].read(), (4, 4), (5, 7))
    np.testing.assert_array_equal(backend.parameters(model)[f"{name}bias_table"], expected)
    arrays = {n: t.read() for n, t in tensors.items()} | {f"{name}index": np.zeros((17, 17), np.int64)}
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    _, report = getattr(backend.package, f"{backend.prefix}BeitModel").from_pretrained(folder, output_loading_info=True)
    assert not (report.unexpected_keys or report.missing_keys)
