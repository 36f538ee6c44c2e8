"""The libraries that own the formats read what `conversion` writes, with equal outputs, and ours reads what they write.

Libraries that transformers must not find run in a process of their own, `families.py serve`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from oracle import pixels
from PIL import Image

import conversion
import vit_torch
from vit_core.config import pair
from vit_torch import ViTImageProcessor

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = GOLDEN / "families"
CASES = json.loads((FORMATS / "cases.json").read_text())


@pytest.fixture(scope="module")
def library() -> Iterator[Callable[..., None]]:
    """Runs one command of families.py, in a process that lives as long as the tests of this file."""
    script = Path(__file__).with_name("families.py")
    process = subprocess.Popen(
        [sys.executable, script, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout

    def command(*words: Any) -> None:
        process.stdin.write(json.dumps([json.dumps(w) if isinstance(w, dict) else str(w) for w in words]) + "\n")
        process.stdin.flush()
        error = json.loads(process.stdout.readline())
        assert error is None, error

    yield command
    process.stdin.close()
    process.wait()
    process.stdout.close()


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    """The same shape, and no difference above `tolerance` times the largest expected value."""
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected).max() / np.abs(expected).max()
    assert difference <= tolerance, f"differs by {difference:.2e} of the largest value"


# ---- files of ours, read by the libraries ----------------------------------------------------------------------------

ARCHITECTURE = {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "image_size": 12, "patch_size": 4, "encoder_stride": 4, "num_labels": 3, "layer_norm_eps": 1e-6,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "classifier": {},
    "12 layers": {"num_hidden_layers": 12},
    "no qkv bias": {"qkv_bias": False},
    "not square": {"image_size": [8, 12], "patch_size": [4, 2]},
    "1 channel": {"num_channels": 1},
    "4 channels": {"num_channels": 4},
    "odd width of the MLP": {"hidden_size": 28, "num_attention_heads": 2, "intermediate_size": 61},
    "float16": {"dtype": "float16"},
    "bfloat16": {"dtype": "bfloat16"},
    "tanh gelu": {"hidden_act": "gelu_new"},
    "base": {"class": "ViTModel", "add_pooling_layer": False},
    "pooler": {"class": "ViTModel", "pooler_output_size": 5},
}
GAPS = {
    ("torchvision", "not square"): "takes one size of images and of patches",
    ("torchvision", "1 channel"): "takes three channels",
    ("torchvision", "4 channels"): "takes three channels",
    ("torchvision", "tanh gelu"): "has one activation",
    ("keras-hub", "tanh gelu"): "has one activation",
    ("big_vision", "not square"): "tells a position of the class token by a square number of others",
}
LINEN = ("google", "big_vision")
NO_POOLER = ("timm", "torchvision", "keras-hub")


def save_ours(folder: Path, changes: dict[str, Any]) -> Any:
    """A random model, stored in a folder in the dtype asked for, and read again in float32."""
    values = ARCHITECTURE | changes
    model_class = getattr(vit_torch, values.pop("class", "ViTForImageClassification"))
    dtype, kwargs = values.pop("dtype", None), {}
    if "add_pooling_layer" in values:
        kwargs["add_pooling_layer"] = values.pop("add_pooling_layer")
    model = model_class(vit_torch.ViTConfig(**values), **kwargs)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = noise + (parameter.data.round() if parameter.dim() == 1 else 0)  # a norm's weight is about 1
    model.save_pretrained(folder, dtype=dtype)
    return model_class.from_pretrained(folder, **kwargs)


def arguments(family: str, config: vit_torch.ViTConfig, labels: int, pooled: int | None = None) -> dict[str, Any]:
    """What a library builds the model of a configuration with, one without a head if `labels` is 0."""
    c = config
    sizes = {"num_heads": c.num_attention_heads, "patch_size": c.patch_size, "num_classes": labels}
    width, layers, mlp = c.hidden_size, c.num_hidden_layers, c.intermediate_size
    if family == "timm":
        return sizes | {
            "img_size": c.image_size, "in_chans": c.num_channels, "embed_dim": width, "depth": layers,
            "mlp_ratio": (mlp + 0.5) / width,  # times the width, and rounded down, is the number of neurons
            "qkv_bias": c.qkv_bias, "act_layer": "gelu" if c.hidden_act == "gelu" else "gelu_tanh",
        }  # fmt: skip
    if family == "torchvision":
        hidden = {"hidden_dim": width, "mlp_dim": mlp, "num_layers": layers}
        return sizes | hidden | {"image_size": c.image_size, "representation_size": pooled}
    if family == "keras-hub":
        shape = [*pair(c.image_size), c.num_channels]
        return sizes | {"image_shape": shape, "hidden_dim": width, "mlp_dim": mlp, "num_layers": layers}
    hidden = {"hidden_size": width, "mlp_dim": mlp, "num_layers": layers, "representation_size": pooled}
    return sizes | hidden | {"patch_size": pair(c.patch_size), "early_positions": family == "big_vision"}


@torch.no_grad()
def outputs_of(model: Any, x: torch.Tensor) -> dict[str, Any]:
    """Everything a model of ours computes that another library's may: hidden states after the final norm, and heads."""
    found = dict(model(x))
    return found | ({"last_hidden_state": model.vit(x).last_hidden_state} if "logits" in found else {})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("family", ["timm", "torchvision", "keras-hub", *LINEN])
def test_ours_in_their_format(tmp_path: Path, library: Callable[..., None], family: str, name: str) -> None:
    """Each library reads all of the file, and of timm the folder too, which says what model it is."""
    if gap := GAPS.get((family, name)):
        pytest.skip(f"{family} {gap}")
    model = save_ours(tmp_path / "ours", MODELS[name] | ({"hidden_act": "gelu_new"} if family in LINEN else {}))
    x, pooler = pixels(model), "drop" if family in NO_POOLER else "keep"
    np.save(tmp_path / "x.npy", x)
    expected = outputs_of(model, x)
    labels = model.config.num_labels if "logits" in expected else 0
    pooled = model.config.pooler_output_size if "pooler_output" in expected and pooler == "keep" else None
    values = arguments(family, model.config, labels, pooled)
    for container in conversion.TARGETS[family].containers:
        folder = tmp_path / container
        report = conversion.convert(tmp_path / "ours", folder, to=family, container=container, pooler=pooler)
        file = folder / report.files[0]
        for source in {"timm": [file, folder], "keras-hub": [folder]}.get(family, [file]):
            library("run", family, source, values, tmp_path / "x.npy", tmp_path / "y.npz")
            with np.load(tmp_path / "y.npz") as outputs:
                assert set(outputs) == expected.keys() - ({"pooler_output"} if family in NO_POOLER else set())
                for field in outputs:
                    assert_near(outputs[field], expected[field], tolerances.FORMATS)


MEMBERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DINOv2": ("Dinov2Model", {"mlp_ratio": 2}),
    "registers": ("Dinov2WithRegistersModel", {"mlp_ratio": 2, "num_register_tokens": 3}),
    "gated": ("Dinov2Model", {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "registers, gated": ("Dinov2WithRegistersModel", {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "no mask token": ("Dinov2Model", {"mlp_ratio": 2, "use_swiglu_ffn": True, "use_mask_token": False}),
    "I-JEPA": ("IJepaForImageClassification", {"intermediate_size": 20}),
    "MSN": ("ViTMSNForImageClassification", {"intermediate_size": 20}),
    "BEiT": ("BeitForImageClassification", {"intermediate_size": 20, "use_relative_position_bias": True}),
    "BEiT, CLS token": (
        "BeitForImageClassification",
        {"intermediate_size": 20, "use_shared_relative_position_bias": True, "use_mean_pooling": False},
    ),
    "mean": ("ViTForImageClassification", {"intermediate_size": 20, "pool": "mean"}),
    "norm of the mean": ("ViTForImageClassification", {"intermediate_size": 20, "pool": "mean", "fc_norm": True}),
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.filterwarnings("ignore:transformers' ViT has no place")
def test_members_in_timms_format(tmp_path: Path, library: Callable[..., None], name: str) -> None:
    """timm reads the folder, which says what model it is; DINOv2 as its authors write it."""
    cls, values = MEMBERS[name]
    kept = ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size", "num_labels")
    made = getattr(vit_torch, cls)
    sizes = {key: ARCHITECTURE[key] for key in kept} | {"layer_norm_eps": 1e-6}
    model = made(made.config_class(**sizes, **values)).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = noise + (parameter.data.round() if parameter.dim() == 1 else 0)
    x = pixels(model)
    np.save(tmp_path / "x.npy", x)
    model.save_pretrained(tmp_path / "ours")
    if name in ("mean", "norm of the mean"):  # a folder for this package, which vit-convert reads as well
        assert conversion.read(tmp_path / "ours").config.pool == "mean"
    conversion.convert(tmp_path / "ours", tmp_path / "timm", to="timm-beit" if cls.startswith("Beit") else "timm")
    library("run", "timm", tmp_path / "timm", {}, tmp_path / "x.npy", tmp_path / "y.npz")
    field = "logits" if cls.endswith("ForImageClassification") else "last_hidden_state"
    with torch.no_grad(), np.load(tmp_path / "y.npz") as outputs:
        assert_near(outputs[field], model(x)[field], tolerances.FORMATS)


# ---- golden files of the libraries, converted, in the models of transformers -----------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "timm_layer_scale": {"fold_layer_scale": True},
    "deit3": {"fold_layer_scale": True},
    "torchvision_pre_logits": {"head": "drop"},
    "google_pre_logits_head": {"head": "drop"},
    "timm_avg": {"head": "drop"},
    "timm_avg_final_norm": {"head": "drop"},
    "keras_hub_pre_logits": {"head": "drop"},
    "vit_tf_masked": {"stored_image_size": (16, 24)},
}
SOURCES = [name for name, case in CASES.items() if case["expects"] == "outputs"]


def named(*parts: str) -> list[str]:
    return [name for name in SOURCES if any(part in name for part in parts)]


CONTAINERS = {"torch": ("safetensors", "bin"), "tf": ("safetensors", "h5"), "flax": ("safetensors", "msgpack")}
PREFIXES = {"torch": "", "tf": "TF", "flax": "Flax"}
LIBRARY_GAPS = {
    ("torch", "vit_tf_masked"): "reconstructs square grids only",
    ("tf", "vit_tf_masked"): "has no such class",
    ("flax", "vit_tf_masked"): "has no such class",
    ("tf", "timm_not_square"): "takes one size of images",
    ("flax", "timm_not_square"): "takes one size of images",
    **{("flax", name): "never had DeiT" for name in ("timm_distilled", "deit_distilled", "transformers_deit")},
    **{("flax", name): "never had MAE" for name in ("mae", "transformers_vit_mae")},
    **{("flax", name): "multiplies DINOv2's scales twice, and never had registers" for name in named("dinov2")},
    **{("tf", name): "never had BEiT" for name in named("beit", "data2vec")},
    **{("tf", name): "never had DINOv2" for name in named("dinov2")},
    **{(to, "timm_gap"): "never had I-JEPA" for to in ("tf", "flax")},
    **{(to, "transformers_vit_msn"): "never had MSN" for to in ("tf", "flax")},
}
BIASES = ("query/bias:0", "key/bias:0", "value/bias:0")


def theirs(to: str, folder: Path, x: np.ndarray, pooled: bool) -> Any:
    """Outputs of transformers' model of a folder, which has each of its parameters and nothing else."""
    config = vit_torch.AutoConfig.from_pretrained(folder)
    name = config.architectures[0]
    model_class = getattr(transformers, PREFIXES[to] + name)
    kwargs: dict[str, Any] = {"add_pooling_layer": pooled} if name == "ViTModel" else {}
    call: dict[str, Any] = {"output_hidden_states": True}
    if to == "flax":
        model, params = model_class.from_pretrained(folder, _do_init=False, **kwargs)
        assert set(flatten_dict(params)) == model.required_params
        return model(x, params=params, **call)
    if name.startswith("ViTMAE"):  # the first patches are kept
        noise = np.tile(np.arange(config.num_patches, dtype=np.float32), (len(x), 1))
        call["noise"] = noise if to == "tf" else torch.from_numpy(noise)
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    if to == "tf" and not config.qkv_bias:  # theirs has these biases all the same, and starts them at zero
        missing = info.pop("missing_keys")
        assert len(missing) == 3 * config.num_hidden_layers and all(key.endswith(BIASES) for key in missing)
    assert not any(map(len, info.values())), info
    with torch.no_grad():
        return model(x if to == "tf" else torch.from_numpy(x), **call)


def sizes_of(to: str, container: str, name: str) -> list[str]:
    """Whole, and in shards where transformers reads them; its slow models read those of three sources."""
    if (to, container) == ("flax", "safetensors") or (to != "torch" and name not in ("timm", "timm_no_head", "vit_tf")):
        return ["5GB"]
    return ["5GB", "2KB"]


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("to", CONTAINERS)
def test_theirs_in_transformers(tmp_path: Path, name: str, to: str) -> None:
    if gap := LIBRARY_GAPS.get((to, name)):
        pytest.skip(f"{to} {gap}")
    case, options = CASES[name], OPTIONS.get(name, {})
    if case["family"] in ("torchvision", "vit_tf") or ".pth" in case["file"]:
        options = options | {"num_attention_heads": 2}
    if (to, name) == ("tf", "timm_gelu_tanh"):
        options = options | {"hidden_act": "gelu_new"}  # the same function; theirs does not know the other name
    x = np.load(FORMATS / case["inputs"])
    with np.load(FORMATS / name / "outputs.npz") as file:
        expected = dict(file)
    for container in CONTAINERS[to]:
        for size in sizes_of(to, container, name):
            folder = tmp_path / container / size
            report = conversion.convert(
                FORMATS / case["file"], folder, to=to, container=container, max_shard_size=size, **options
            )
            assert any(file.endswith(".index.json") for file in report.files) == (size == "2KB")
            outputs = theirs(to, folder, x, "pooler_output" in expected)
            head = "logits" in expected and options.get("head") != "drop"
            for field in ["logits"] if head else expected.keys() - {"logits"}:
                # Of timm_avg, whose norm is that of the head, what the library gives is before the norm.
                found = outputs.hidden_states[-1] if name == "timm_avg" else outputs[field]
                assert_near(found, expected[field], tolerances.FORMATS)


def test_flax_of_transformers_reads_no_shards_of_safetensors(tmp_path: Path) -> None:
    conversion.convert(FORMATS / "timm", tmp_path, to="flax", max_shard_size="2KB")
    with pytest.raises(NotImplementedError, match="sharded checkpoints using safetensors"):
        transformers.FlaxViTForImageClassification.from_pretrained(tmp_path)


# ---- golden files of transformers, out of one of them ----------------------------------------------------------------

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
SHARD_SIZES = {"pt_safetensors_sharded": 40_000, "pt_bin_sharded": 12_000}  # bytes, as the golden files were split
FOLDERS = [f for f in sorted(GOLDEN.glob("ckpt/*/*")) if (f.parent / "pt_safetensors").is_dir()]
OTHERWISE = {
    "tf_safetensors_sharded": "TensorFlow splits by a rule of its own",
    "tf_h5_sharded": "TensorFlow splits by a rule of its own",
    "flax_msgpack_sharded": "Flax splits by a rule of its own",
    "pt_bin_legacy": "an old container, which is read only",
    "pt_safetensors_mixed": "dtypes differ from tensor to tensor",
}


def content(path: Path) -> Any:
    """What two files must share: the bytes; but of PyTorch's and of HDF5, which hold more, the tensors by name."""
    if path.suffix == ".bin":
        return {name: (t.dtype, t.tolist()) for name, t in torch.load(path, weights_only=True).items()}
    if path.suffix != ".h5":
        return path.read_bytes()
    found: dict[str, Any] = {}

    def add(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            name = re.sub(r"(model|pre_training)_1/", r"\1/", name)  # Keras numbers the models of a process
            found[name] = item.dtype, item[()].tolist()

    with h5py.File(path) as file:
        file.visititems(add)
    return found


@pytest.mark.parametrize("golden", FOLDERS, ids=lambda f: "/".join(f.parts[-2:]))
def test_the_files_of_transformers(tmp_path: Path, golden: Path) -> None:
    """Out of PyTorch's safetensors come the bytes that transformers wrote."""
    if other := OTHERWISE.get(golden.name):
        pytest.skip(other)
    format, container, *rest = golden.name.split("_")
    conversion.convert(
        golden.parent / "pt_safetensors", tmp_path, to={"pt": "torch"}.get(format, format), container=container,
        max_shard_size=SHARD_SIZES.get(golden.name, "5GB"), dtype=DTYPES.get(rest[0]) if rest else None,
    )  # fmt: skip
    ours, expected = ({p.name: p for p in folder.iterdir() if p.name != "config.json"} for folder in (tmp_path, golden))
    assert ours.keys() == expected.keys()
    for name, path in expected.items():
        assert content(ours[name]) == content(path), name


# ---- files the libraries write afresh, read by our models ------------------------------------------------------------


def random_config(seed: int, square: bool) -> vit_torch.ViTConfig:
    rng = np.random.default_rng(seed)
    heads, patch, grid = (int(rng.integers(1, high)) for high in (5, 6, 5))
    return vit_torch.ViTConfig(
        hidden_size=heads * 2 * int(rng.integers(1, 5)), num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=heads, intermediate_size=int(rng.integers(1, 40)), patch_size=patch,
        image_size=patch * grid if square else (patch * grid, patch * int(rng.integers(1, 5))),
        num_channels=3 if square else int(rng.integers(1, 5)), num_labels=int(rng.integers(1, 6)),
    )  # fmt: skip


def assert_read(
    tmp_path: Path, library: Callable[..., None], family: str, values: dict[str, Any], **kwargs: Any
) -> None:
    """A random model that the library saves is read by ours, whole, and computes the same."""
    library("save", family, values, tmp_path / "theirs")
    model, report = vit_torch.AutoModelForImageClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True, **kwargs
    )
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    x = pixels(model)
    np.save(tmp_path / "x.npy", x)
    source = tmp_path / "theirs" / ("model.pth" if family == "torchvision" else "")
    library("run", family, source, values, tmp_path / "x.npy", tmp_path / "y.npz")
    with np.load(tmp_path / "y.npz") as expected, torch.no_grad():
        assert_near(model(x).logits, expected["logits"], tolerances.FORMATS)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", ["timm", "torchvision", "keras-hub"])
def test_theirs_in_ours(tmp_path: Path, library: Callable[..., None], family: str, seed: int) -> None:
    config = random_config(seed, square=family == "torchvision")
    kwargs = {"num_attention_heads": config.num_attention_heads} if family == "torchvision" else {}
    assert_read(tmp_path, library, family, arguments(family, config, config.num_labels), **kwargs)


ONE_LAYER = {"depth": 1, "img_size": 32}


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_base_patch16_gap_224", ONE_LAYER),  # whose heads, and whose GELU below, only its name says
        ("vit_base_patch16_plus_240", ONE_LAYER),
        ("vit_so400m_patch16_siglip_gap_256", ONE_LAYER),
        ("vit_small_patch14_dinov2", {"depth": 1, "img_size": 28}),  # with a head on the class token
        ("vit_small_patch14_reg4_dinov2", {"depth": 1, "img_size": 28, "no_embed_class": False}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 1, "img_size": 28, "global_pool": "avg", "fc_norm": False}),
    ],
)
def test_an_architecture_of_timm_by_name(
    tmp_path: Path, library: Callable[..., None], architecture: str, values: dict[str, Any]
) -> None:
    """In float64: in float32 each is further from that than they may differ, with twelve layers of large weights."""
    values = {"architecture": architecture, "num_classes": 10, **values}
    assert_read(tmp_path, library, "timm", values, dtype="float64")


def test_distilled_deit(tmp_path: Path, library: Callable[..., None]) -> None:
    """A model of timm by its name, and the folder that it is written back to."""
    library("save", "timm", {"architecture": "deit_tiny_distilled_patch16_224", "depth": 1}, tmp_path / "theirs")
    model = vit_torch.AutoModelForImageClassification.from_pretrained(tmp_path / "theirs")
    assert type(model) is vit_torch.DeiTForImageClassificationWithTeacher
    assert model.config.num_attention_heads == 3
    conversion.convert(tmp_path / "theirs", tmp_path / "torch", to="torch")
    conversion.convert(tmp_path / "torch", tmp_path / "back", to="timm")
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).logits.numpy()
    for folder in ("theirs", "back"):
        library("run", "timm", tmp_path / folder, "{}", tmp_path / "x.npy", tmp_path / "y.npy")
        assert_near(np.load(tmp_path / "y.npy"), expected, tolerances.FORMATS)


# ---- how pictures are prepared ---------------------------------------------------------------------------------------

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


def assert_same_pixels(
    tmp_path: Path, library: Callable[..., None], family: str, size: tuple[int, int], resample: int
) -> None:
    """The library and our processor make the same of a picture of this size (height, width), by a converted folder."""
    save_ours(tmp_path / "ours", {"image_size": [8, 12]})
    processor = ViTImageProcessor(size={"height": 8, "width": 12}, resample=resample, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(tmp_path / "ours")
    folder = tmp_path / "theirs"
    conversion.convert(tmp_path / "ours", folder, to=family)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    picture.save(tmp_path / "picture.png")
    library("prepare", family, folder, tmp_path / "picture.png", tmp_path / "y.npy")
    processors = [ViTImageProcessor.from_pretrained(folder)]
    (folder / "preprocessor_config.json").unlink()  # the library's own documents are left, and say the same
    conversion.convert(folder, tmp_path / "back", to="torch")
    processors.append(ViTImageProcessor.from_pretrained(tmp_path / "back"))
    for processor in processors:
        assert_near(processor(picture).pixel_values[0], np.load(tmp_path / "y.npy"), tolerances.PICTURES)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_pictures_of_timm(tmp_path: Path, library: Callable[..., None], resample: int) -> None:
    assert_same_pixels(tmp_path, library, "timm", (37, 53), resample)


def test_pictures_of_keras_hub(tmp_path: Path, library: Callable[..., None]) -> None:
    """Of the model's size: TensorFlow resizes others otherwise than PIL."""
    assert_same_pixels(tmp_path, library, "keras-hub", (8, 12), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("family", ["timm", "keras-hub"])
def test_pictures_without_a_preprocessor(
    tmp_path: Path, library: Callable[..., None], family: str, channels: int
) -> None:
    """As ViT's own scales them, to [-1, 1], whatever the number of channels."""
    save_ours(tmp_path / "ours", {"num_channels": channels})
    conversion.convert(tmp_path / "ours", tmp_path / "theirs", to=family)
    array = np.random.default_rng(0).integers(0, 256, (12, 12, channels), np.uint8)
    Image.fromarray(array.squeeze()).save(tmp_path / "picture.png")
    library("prepare", family, tmp_path / "theirs", tmp_path / "picture.png", tmp_path / "y.npy")
    assert_near(np.load(tmp_path / "y.npy"), array.transpose(2, 0, 1) / 127.5 - 1, tolerances.PICTURES)
