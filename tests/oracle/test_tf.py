"""Our Keras 3 models beside the Keras 2 models of transformers: outputs, gradients, losses, files in both directions.

Theirs takes square images and the activations of a short table, always has biases of queries, keys and values, and
resizes position embeddings with a kernel of its own. keras-hub's classifier, which reads files of PyTorch, is compared
too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import keras
import keras_hub
import numpy as np
import oracle_tolerances as tolerances
import pytest
import tensorflow as tf
import tf_keras
import torch
import transformers
from hypothesis import given, settings
from oracle import architectures, assert_close, assert_same_output
from test_same_files import ARCHITECTURE

import vit_tf
import vit_torch

MODELS = ("TFViTModel", "TFViTForImageClassification")
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
FEW = settings(max_examples=settings.default.max_examples // 4)
ACTIVATIONS = ["gelu", "gelu_10", "gelu_fast", "gelu_new", "mish", "quick_gelu", "relu", "sigmoid", "silu", "tanh"]
KERAS_ACTIVATIONS = ["gelu", "linear", "mish", "relu", "sigmoid", "swish", "tanh"]  # of their pooler
BIASES = ("query/bias", "key/bias", "value/bias")


@st.composite
def tf_architectures(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that both ViTConfigs take, with what their Keras models know."""
    acts = {"hidden_act": draw(st.sampled_from(ACTIVATIONS)), "pooler_act": draw(st.sampled_from(KERAS_ACTIVATIONS))}
    return {**draw(architectures(square=True)), **acts, "qkv_bias": True}


def inner(path: str) -> str:
    """The path of a variable below the outermost name, without the trunk's: what both libraries share."""
    return path.removesuffix(":0").partition("/")[2].removeprefix("vit/")


def by_path(model: Any) -> dict[str, Any]:
    """A model's variables by their shared paths."""
    theirs = isinstance(model, transformers.TFPreTrainedModel)
    return {inner(v.name if theirs else v.path): v for v in model.weights}


def randomize(model: Any, seed: int = 0) -> Any:
    """The model with random weights, biases and norms."""
    rng = np.random.default_rng(seed)
    for path, variable in sorted(by_path(model).items()):
        one = path.endswith("gamma")  # a norm's weight is about 1
        variable.assign(rng.standard_normal(variable.shape).astype(np.float32) * 0.3 + one)
    return model


def theirs_of(name: str, architecture: dict[str, Any], **kwargs: Any) -> Any:
    """Their model, its variables made."""
    model = getattr(transformers, name)(transformers.ViTConfig(**architecture), **kwargs)
    model.build_in_name_scope()
    return model


def ours_of(name: str, architecture: dict[str, Any], **kwargs: Any) -> Any:
    """Our model."""
    return getattr(vit_tf, name)(vit_tf.ViTConfig(**architecture), **kwargs)


def pair(name: str, architecture: dict[str, Any], seed: int = 0, **kwargs: Any) -> tuple[Any, Any]:
    """Their model and ours with the same random weights: of the same paths and shapes."""
    theirs, ours = (of(name, architecture, **kwargs) for of in (theirs_of, ours_of))
    assert {p: tuple(v.shape) for p, v in by_path(ours).items()} == {
        p: tuple(v.shape) for p, v in by_path(theirs).items()
    }
    return randomize(theirs, seed), randomize(ours, seed)


def pixels(architecture: dict[str, Any], batch: int = 2, size: tuple[int, int] | None = None) -> np.ndarray:
    """Random pixels (B, C, H, W) of the size of a model, or of another."""
    shape = (batch, architecture.get("num_channels", 3), *(size or (architecture["image_size"],) * 2))
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def tensors(value: Any) -> Any:
    """An output, its tensors as PyTorch's: what the shared comparison takes."""
    if hasattr(value, "to_tuple"):
        return {name: tensors(field) for name, field in value.items()}
    if isinstance(value, tuple):
        return tuple(tensors(field) for field in value)
    return torch.tensor(np.asarray(value).astype(np.float32))


def assert_equal_variables(actual: Any, expected: Any) -> None:
    """The same paths, and the same bits."""
    actual, expected = by_path(actual), by_path(expected)
    assert actual.keys() == expected.keys()
    for path, variable in expected.items():
        assert np.array_equal(actual[path].numpy(), variable.numpy()), path


def assert_equal_models(ours: Any, theirs: Any) -> None:
    """The same variables, and every output close."""
    assert_equal_variables(ours, theirs)
    x = pixels(ARCHITECTURE)
    expected = tensors(theirs(x, **EVERYTHING))
    assert_same_output(tensors(ours(x, **EVERYTHING)), expected, tolerances.TF_FLOAT32)


# ---- outputs, gradients and losses -------------------------------------------------------------------------------


@FEW
@given(tf_architectures(), st.sampled_from(MODELS), st.integers(0, 99))
def test_every_field(architecture: dict[str, Any], name: str, seed: int) -> None:
    theirs, ours = pair(name, architecture, seed)
    x = pixels(architecture)
    expected = tensors(theirs(x, **EVERYTHING))
    assert_same_output(tensors(ours(x, **EVERYTHING)), expected, tolerances.TF_FLOAT32)


def test_without_pooler() -> None:
    theirs, ours = pair(MODELS[0], ARCHITECTURE, add_pooling_layer=False)
    x = pixels(ARCHITECTURE)
    assert_same_output(tensors(ours(x)), tensors(theirs(x)), tolerances.TF_FLOAT32)


@FEW
@given(tf_architectures(), st.sampled_from(MODELS))
def test_gradients(architecture: dict[str, Any], name: str) -> None:
    """Of the mean square of the first output, relative to the largest gradient of all."""
    theirs, ours = pair(name, architecture)
    x = pixels(architecture)

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        variables = by_path(model)
        raw = [getattr(v, "value", v) if model is ours else v for v in variables.values()]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x)[0] ** 2)
        zero = tf.UnconnectedGradients.ZERO  # of the pooler, which the first output leaves out
        found = tape.gradient(loss, raw, unconnected_gradients=zero)
        return {path: tensors(gradient) for path, gradient in zip(variables, found, strict=True)}

    actual, expected = gradients(ours), gradients(theirs)
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for path, gradient in expected.items():
        assert_close(actual[path], gradient, tolerances.TF_GRADIENT, path, least=largest)


@pytest.mark.parametrize("labels", [1, 4], ids=["regression", "classes"])
def test_losses(labels: int) -> None:
    """Theirs gives the loss of every image, ours, as in PyTorch, the mean."""
    theirs, ours = pair(MODELS[1], {**ARCHITECTURE, "num_labels": labels})
    y = tf.constant([0.5, -1.0, 2.0]) if labels == 1 else tf.constant([0, 3, 1])
    x = pixels(ARCHITECTURE, batch=3)
    expected = tensors(theirs(x, labels=y).loss)
    assert expected.shape == (3,)
    assert_close(tensors(ours(x, labels=y).loss), expected.mean(), tolerances.LOSS, "loss", least=1.0)


@pytest.mark.parametrize("labels", [1, 4], ids=["regression", "classes"])
def test_fit(labels: int) -> None:
    """Three steps of `fit` with each library's own loss end in the same weights."""
    architecture = {**ARCHITECTURE, "num_labels": labels}
    theirs, ours = pair(MODELS[1], architecture)
    x = pixels(ARCHITECTURE, batch=6)
    y = np.linspace(-1, 1, 6, dtype=np.float32) if labels == 1 else np.arange(6) % labels
    theirs.compile(tf_keras.optimizers.SGD(0.01))
    ours.compile(keras.optimizers.SGD(0.01))
    history = [m.fit(x, y, batch_size=2, shuffle=False, verbose=0).history["loss"] for m in (ours, theirs)]
    np.testing.assert_allclose(history[0], history[1], rtol=tolerances.LOSS)
    start = by_path(randomize(ours_of(MODELS[1], architecture)))
    actual, expected = by_path(ours), by_path(theirs)
    changes = {path: tensors(v) - tensors(start[path]) for path, v in expected.items()}
    largest = max(change.abs().max().item() for change in changes.values())
    for path, change in changes.items():
        moved = tensors(actual[path]) - tensors(start[path])
        assert_close(moved, change, tolerances.TF_FIT, path, least=largest)


@pytest.mark.parametrize("size", [(20, 20), (12, 24), (8, 8)])
def test_interpolation_is_that_of_pytorch(tmp_path: Path, size: tuple[int, int]) -> None:
    """Their Keras models resize the position embeddings with another kernel than their PyTorch models; ours do not."""
    theirs, ours = pair(MODELS[1], {**ARCHITECTURE, "num_channels": 3})
    ours.save_pretrained(tmp_path)
    vit_torch.ViTForImageClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    pytorch = transformers.ViTForImageClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    x = pixels(ARCHITECTURE, size=size)
    with torch.no_grad():
        expected = pytorch(torch.tensor(x), interpolate_pos_encoding=True).logits
    actual = tensors(ours(x, interpolate_pos_encoding=True).logits)
    assert_close(actual, expected, tolerances.INTERPOLATED_FLOAT32, "logits")
    other = tensors(theirs(x, interpolate_pos_encoding=True).logits)
    assert (other - expected).abs().max() > 100 * tolerances.INTERPOLATED_FLOAT32 * expected.abs().max()


# ---- files -------------------------------------------------------------------------------------------------------

FILES: dict[str, dict[str, Any]] = {
    "h5": {"safe_serialization": False},
    "sharded h5": {"safe_serialization": False, "max_shard_size": "2KB"},
    "safetensors": {"safe_serialization": True},
    "sharded safetensors": {"safe_serialization": True, "max_shard_size": "2KB"},
}
WEIGHTS = {True: "model.safetensors", False: "tf_model.h5"}


def load_ours(name: str, folder: Path, **kwargs: Any) -> Any:
    """Our model, from a file that has all of it and nothing else."""
    ours, report = getattr(vit_tf, name).from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    return ours


def load_theirs(name: str, folder: Path, **kwargs: Any) -> Any:
    """Their model, from a file that has all of it and nothing else."""
    theirs, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not any(map(len, report.values())), report
    return theirs


def assert_files(folder: Path, save: dict[str, Any]) -> None:
    """Weights in one file of the format asked for, or in several beside an index, and nothing of another format."""
    whole = WEIGHTS[save["safe_serialization"]]
    stem, suffix = whole.split(".")
    files = {file.name for file in folder.iterdir()} - {"config.json"}
    if "max_shard_size" not in save:
        assert files == {whole}
        return
    assert f"{whole}.index.json" in files
    shards = files - {f"{whole}.index.json"}
    assert len(shards) > 1
    assert all(file.startswith(f"{stem}-0") and file.endswith(suffix) for file in shards)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_theirs_loads_in_ours(tmp_path: Path, name: str, file: str) -> None:
    theirs = randomize(theirs_of(name, ARCHITECTURE))
    theirs.save_pretrained(tmp_path, **FILES[file])
    assert_files(tmp_path, FILES[file])
    assert_equal_models(load_ours(name, tmp_path), theirs)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_ours_loads_in_theirs(tmp_path: Path, name: str, file: str) -> None:
    ours = randomize(ours_of(name, ARCHITECTURE))
    ours.save_pretrained(tmp_path, save_format="tf", **FILES[file])
    assert_files(tmp_path, FILES[file])
    assert_equal_models(ours, load_theirs(name, tmp_path))
    assert_equal_variables(load_ours(name, tmp_path), ours)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_with_the_names_of_pytorch_loads_in_theirs(tmp_path: Path, name: str) -> None:
    """Where `from_pt=True` is given: without it theirs can't open any such file, its own neither."""
    ours = randomize(ours_of(name, ARCHITECTURE))
    ours.save_pretrained(tmp_path)
    assert_equal_models(ours, load_theirs(name, tmp_path, from_pt=True))
    with pytest.raises(TypeError, match="safe_open"):
        load_theirs(name, tmp_path)


@pytest.mark.parametrize("file", ["h5", "safetensors"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_file(tmp_path: Path, file: str, dtype: str) -> None:
    """A file in half precision is the same float32 model in both."""
    ours = randomize(ours_of(MODELS[1], ARCHITECTURE))
    ours.save_pretrained(tmp_path, dtype=dtype, save_format="tf", **FILES[file])
    assert_files(tmp_path, FILES[file])
    theirs = load_theirs(MODELS[1], tmp_path)
    assert_equal_models(load_ours(MODELS[1], tmp_path), theirs)


@pytest.mark.parametrize(("source", "target"), [MODELS, MODELS[::-1]], ids=["head added", "head left out"])
@pytest.mark.parametrize("file", ["h5", "safetensors"])
@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_change_of_head(tmp_path: Path, writer: str, file: str, source: str, target: str) -> None:
    """Both take the same variables from a file of the other class, whichever of them wrote it."""
    model = (ours_of if writer == "ours" else theirs_of)(source, ARCHITECTURE)
    randomize(model).save_pretrained(tmp_path, **FILES[file], **({"save_format": "tf"} if writer == "ours" else {}))
    assert_files(tmp_path, FILES[file])
    theirs, their_report = getattr(transformers, target).from_pretrained(tmp_path, output_loading_info=True)
    fresh = {"add_pooling_layer": True} if target == "TFViTModel" else {}  # which ours has where it is asked for
    ours, our_report = getattr(vit_tf, target).from_pretrained(tmp_path, output_loading_info=True, **fresh)
    written, actual, expected = by_path(model), by_path(ours), by_path(theirs)
    keys = tuple(inner(f"model/{key}") for key in their_report["missing_keys"])  # of an h5 file, layers at its top
    missing = {path for path in expected if path.startswith(keys)}
    assert len(our_report.missing_keys) == len(missing) == 2
    for path in expected.keys() - missing:
        assert np.array_equal(actual[path].numpy(), written[path].numpy()), path
        assert np.array_equal(actual[path].numpy(), expected[path].numpy()), path


@pytest.mark.parametrize("file", ["h5", "safetensors"])
def test_ours_without_qkv_bias_loads_in_theirs(tmp_path: Path, file: str) -> None:
    """Theirs has these biases all the same, and starts them at zero."""
    ours = randomize(ours_of(MODELS[1], {**ARCHITECTURE, "qkv_bias": False}))
    ours.save_pretrained(tmp_path, save_format="tf", **FILES[file])
    assert_files(tmp_path, FILES[file])
    theirs, report = transformers.TFViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(key.endswith(BIASES) for key in (inner(f"model/{key}") for key in report["missing_keys"]))
    x = pixels(ARCHITECTURE)
    assert_same_output(tensors(ours(x)), tensors(theirs(x)), tolerances.TF_FLOAT32)


@pytest.mark.parametrize("file", ["h5", "safetensors"])
def test_theirs_without_qkv_bias_loads_in_ours(tmp_path: Path, file: str) -> None:
    """The zeros that theirs writes for biases which the configuration does not have are no part of our model."""
    theirs = randomize(theirs_of(MODELS[1], {**ARCHITECTURE, "qkv_bias": False}))
    for path, variable in by_path(theirs).items():
        if path.endswith(BIASES):
            variable.assign(tf.zeros_like(variable))
    theirs.save_pretrained(tmp_path, **FILES[file])
    ours, report = vit_tf.TFViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report.missing_keys
    x = pixels(ARCHITECTURE)
    assert_same_output(tensors(ours(x)), tensors(theirs(x)), tolerances.TF_FLOAT32)


# ---- keras-hub ---------------------------------------------------------------------------------------------------


def test_keras_hub_computes_the_same(tmp_path: Path) -> None:
    """Its classifier reads the same weights; the epsilon of its LayerNorms is 1e-6, whatever the file says."""
    architecture = {**ARCHITECTURE, "layer_norm_eps": 1e-6}
    ours = randomize(ours_of(MODELS[1], architecture))
    ours.save_pretrained(tmp_path)
    vit_torch.ViTForImageClassification.from_pretrained(tmp_path).save_pretrained(tmp_path)
    theirs = keras_hub.models.ViTImageClassifier.from_preset(str(tmp_path), preprocessor=None)
    x = pixels(ARCHITECTURE)
    expected = tensors(theirs(np.moveaxis(x, 1, -1)))
    assert_close(tensors(ours(x).logits), expected, tolerances.TF_FLOAT32, "logits")
