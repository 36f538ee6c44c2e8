"""Our Flax models beside those of transformers: parameter trees, outputs, gradients, and files in both directions.

Theirs takes square images, patches of one size and the activations of a short table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from flax.traverse_util import flatten_dict
from hypothesis import given, settings
from oracle import architectures, assert_close, assert_same_output
from safetensors import safe_open
from test_same_files import ARCHITECTURE
from transformers.modeling_flax_utils import ACT2FN

import vit_flax

MODELS = ("FlaxViTModel", "FlaxViTForImageClassification")
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}
FEW = settings(max_examples=settings.default.max_examples // 4)  # each of which is compiled


@st.composite
def flax_architectures(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments that both ViTConfigs take, with what their Flax models know."""
    acts = st.sampled_from(sorted(ACT2FN))
    return {**draw(architectures(square=True)), "hidden_act": draw(acts), "pooler_act": draw(acts)}


def theirs_of(name: str, architecture: dict[str, Any], **kwargs: Any) -> Any:
    """Their model, without parameters."""
    return getattr(transformers, name)(transformers.ViTConfig(**architecture), _do_init=False, **kwargs)


def ours_of(name: str, architecture: dict[str, Any], **kwargs: Any) -> Any:
    """Our model, without parameters."""
    return getattr(vit_flax, name)(vit_flax.ViTConfig(**architecture), _do_init=False, **kwargs)[0]


def random_params(model: Any, seed: int = 0) -> Any:
    """Random weights, biases and norms in the tree of a model."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        one = path[-1].key == "scale"  # a norm's weight is about 1
        return jnp.asarray(rng.standard_normal(leaf.shape).astype(np.float32) * 0.3 + one)

    return jax.tree_util.tree_map_with_path(draw, model.params_shape_tree)


def pixels(architecture: dict[str, Any], batch: int = 2) -> np.ndarray:
    """Random pixels (B, C, H, W)."""
    shape = (batch, architecture["num_channels"], architecture["image_size"], architecture["image_size"])
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def tensors(tree: Any) -> Any:
    """A tree or an output, its arrays as tensors: what the shared comparison takes."""
    tree = dict(tree.items()) if hasattr(tree, "to_tuple") else tree
    return jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf.astype("float32"))), tree)


def leaves(tree: Any) -> dict[str, tuple[Any, Any]]:
    """Shape and dtype by path."""
    return {path: (leaf.shape, leaf.dtype) for path, leaf in flatten_dict(tree, sep="/").items()}


def assert_equal_trees(actual: Any, expected: Any) -> None:
    """The same paths, and the same bits."""
    actual, expected = flatten_dict(actual, sep="/"), flatten_dict(expected, sep="/")
    assert actual.keys() == expected.keys()
    for path, leaf in expected.items():
        assert (actual[path].dtype, actual[path].shape) == (leaf.dtype, leaf.shape), path
        assert np.array_equal(actual[path], leaf), path


# ---- parameters, outputs and gradients ---------------------------------------------------------------------------


@given(flax_architectures(), st.sampled_from(MODELS), st.booleans())
def test_params_have_their_tree(architecture: dict[str, Any], name: str, pooled: bool) -> None:
    kwargs = {} if pooled or name != "FlaxViTModel" else {"add_pooling_layer": False}
    ours, theirs = (of(name, architecture, **kwargs) for of in (ours_of, theirs_of))
    assert leaves(ours.params_shape_tree) == leaves(theirs.params_shape_tree)
    assert leaves(ours.init_weights(0)) == leaves(theirs.params_shape_tree)


@FEW
@given(flax_architectures(), st.sampled_from(MODELS), st.integers(0, 99))
def test_every_field(architecture: dict[str, Any], name: str, seed: int) -> None:
    theirs, ours = theirs_of(name, architecture), ours_of(name, architecture)
    params, x = random_params(theirs, seed), pixels(architecture)
    actual, expected = (tensors(model(x, params=params, **EVERYTHING)) for model in (ours, theirs))
    assert_same_output(actual, expected, tolerances.FLAX_FLOAT32)


@FEW
@given(flax_architectures(), st.sampled_from(MODELS))
def test_gradients(architecture: dict[str, Any], name: str) -> None:
    """Of the mean square of the first output, relative to the largest gradient of all."""
    theirs, ours = theirs_of(name, architecture), ours_of(name, architecture)
    params, x = random_params(theirs), pixels(architecture)

    def gradients(model: Any) -> Any:
        gradient = jax.jit(jax.grad(lambda params: (model(x, params=params)[0] ** 2).mean()))
        return flatten_dict(tensors(gradient(params)), sep="/")

    actual, expected = gradients(ours), gradients(theirs)
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for path, gradient in expected.items():
        assert_close(actual[path], gradient, tolerances.FLAX_GRADIENT, path, least=largest)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    """Parameters in float32, computation in half precision, in both."""
    architecture = {**ARCHITECTURE, "num_channels": 3}
    theirs, ours = (of(MODELS[0], architecture, dtype=jnp.dtype(dtype)) for of in (theirs_of, ours_of))
    params, x = random_params(theirs), pixels(architecture)
    expected = theirs(x, params=params)
    actual = ours(x, params=params)
    assert actual.last_hidden_state.dtype == expected.last_hidden_state.dtype == dtype
    assert_same_output(tensors(actual), tensors(expected), tolerances.HALF[dtype])


# ---- files -------------------------------------------------------------------------------------------------------

FILES: dict[str, dict[str, Any]] = {
    "msgpack": {},
    "safetensors": {"safe_serialization": True},
    "sharded msgpack": {"max_shard_size": "2KB"},
}


def saved_by_theirs(folder: Path, name: str, **kwargs: Any) -> tuple[Any, Any]:
    """Their model, saved to a folder, and its parameters."""
    theirs = theirs_of(name, ARCHITECTURE)
    params = random_params(theirs)
    theirs.save_pretrained(folder, params=params, **kwargs)
    return theirs, params


def load(name: str, folder: Path, **kwargs: Any) -> Any:
    """Our model, from a file that has all of it and nothing else."""
    ours, report = getattr(vit_flax, name).from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    return ours


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("file", FILES)
def test_theirs_loads_in_ours(tmp_path: Path, name: str, file: str) -> None:
    theirs, params = saved_by_theirs(tmp_path, name, **FILES[file])
    ours = load(name, tmp_path)
    assert_equal_trees(ours.params, params)
    x = pixels({**ARCHITECTURE, "num_channels": 3})
    expected = tensors(theirs(x, params=params, **EVERYTHING))
    assert_same_output(tensors(ours(x, **EVERYTHING)), expected, tolerances.FLAX_FLOAT32)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scan", [False, True], ids=["layers apart", "scan_layers"])
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_ours_loads_in_theirs(tmp_path: Path, name: str, scan: bool, dtype: str | None) -> None:
    """Every parameter that theirs needs is in the file, under its name, and nothing else."""
    ours = getattr(vit_flax, name)(vit_flax.ViTConfig(**ARCHITECTURE), seed=0, scan_layers=scan)
    ours.params = random_params(ours)
    ours.save_pretrained(tmp_path, dtype=dtype, save_format="flax")
    theirs, params = getattr(transformers, name).from_pretrained(tmp_path, _do_init=False)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert set(file.keys()) == {".".join(path) for path in theirs.required_params}
    assert set(flatten_dict(params)) == theirs.required_params
    assert_equal_trees(params, load(name, tmp_path, dtype=dtype or "float32").params)
    if dtype is None:
        assert_equal_trees(load(name, tmp_path, scan_layers=scan).params, ours.params)
        x = pixels({**ARCHITECTURE, "num_channels": 3})
        expected = tensors(theirs(x, params=params, **EVERYTHING))
        assert_same_output(tensors(ours(x, **EVERYTHING)), expected, tolerances.FLAX_FLOAT32)


@pytest.mark.parametrize("name", MODELS)
def test_a_file_with_the_names_of_pytorch_loads_in_theirs(tmp_path: Path, name: str) -> None:
    """Where `_do_init=False` is not given: with it theirs reads no such file, its own neither."""
    ours = getattr(vit_flax, name)(vit_flax.ViTConfig(**ARCHITECTURE), seed=0)
    ours.params = random_params(ours)
    ours.save_pretrained(tmp_path)
    assert_equal_trees(getattr(transformers, name).from_pretrained(tmp_path).params, ours.params)
    with pytest.raises(ValueError, match="_do_init=False"):
        getattr(transformers, name).from_pretrained(tmp_path, _do_init=False)


@pytest.mark.parametrize(("source", "target"), [MODELS, MODELS[::-1]], ids=["head added", "head left out"])
@pytest.mark.parametrize("writer", ["ours", "theirs"])
def test_change_of_head(tmp_path: Path, writer: str, source: str, target: str) -> None:
    """Both take the same parameters from a file of the other class, whichever of them wrote it."""
    theirs, params = saved_by_theirs(tmp_path, source)
    if writer == "ours":
        ours = load(source, tmp_path)
        (tmp_path / "flax_model.msgpack").unlink()
        ours.save_pretrained(tmp_path, save_format="flax")
    theirs, params = getattr(transformers, target).from_pretrained(tmp_path, _do_init=False)
    fresh = {"add_pooling_layer": True} if target == "FlaxViTModel" else {}  # which ours has where it is asked for
    ours, report = getattr(vit_flax, target).from_pretrained(tmp_path, output_loading_info=True, **fresh)
    actual, expected = flatten_dict(ours.params), flatten_dict(params)
    assert len(report.missing_keys) == len(theirs.required_params - expected.keys()) == 2
    assert all(np.array_equal(actual[path], leaf) for path, leaf in expected.items())
