"""Every block of every backend agrees with a reading of the paper in NumPy and float64, on random small models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
import tolerances
from closeness import assert_close
from hypothesis import Phase, given, settings
from members import BACKBONES, MASKED, MODELS, PRETRAINED, config_for
from reference import forward, layer_norm

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import PARTS
from vit_core.files.tensor import Tensor
from vit_core.params import specs

RESULTS = {  # fields of an output, by the reference's name of what they hold
    "last_hidden_state": "layernorm",
    "pooler_output": "pooler",
    "logits": "logits",
    "cls_logits": "cls_classifier",
    "distillation_logits": "distillation_classifier",
    "reconstruction": "reconstruction",
    "loss": "loss",
}

MAPS = ("map of the first stage", "map of the last stage")


@st.composite
def configs(draw: st.DrawFn, cls: str, masked: bool) -> ViTConfig:
    """Tiny models with the paper's activation; images need not be whole patches unless they are to be reconstructed."""
    heads, sizes = draw(st.integers(1, 3)), st.tuples(st.integers(1, 3), st.integers(1, 3))
    patch_size, grid, rest = draw(sizes), draw(sizes), draw(sizes)
    image_size = tuple(p * n + (0 if masked else r % p) for p, n, r in zip(patch_size, grid, rest, strict=True))
    own: dict[str, Any] = {}
    if cls.startswith("Dinov2"):
        own["use_swiglu_ffn"] = draw(st.booleans())
    if cls.startswith("Beit"):
        flags = ("absolute_position_embeddings", "relative_position_bias", "shared_relative_position_bias")
        own = {f"use_{flag}": draw(st.booleans()) for flag in flags} | {"vocab_size": draw(st.integers(1, 9))}
    if "WithRegisters" in cls:
        own["num_register_tokens"] = draw(st.integers(0, 3))
    channels = draw(st.integers(1, 3))
    if cls in PRETRAINED:
        own["mask_ratio"] = draw(st.sampled_from([0.0, 0.6])) if math.prod(grid) > 2 else 0.0
        own["norm_pix_loss"] = draw(st.booleans()) and channels * math.prod(patch_size) > 1
    pool = draw(st.sampled_from(["cls", "mean"]))
    return config_for(
        cls,
        **own,
        pool=pool,
        fc_norm=pool == "mean" and draw(st.booleans()),
        hidden_size=heads * draw(st.integers(2, 4)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(2, 9)),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-3, 0.5])),
        image_size=image_size,
        patch_size=patch_size,
        encoder_stride=patch_size if masked else draw(sizes),
        num_channels=channels,
        qkv_bias=draw(st.booleans()),
        pooler_output_size=draw(st.sampled_from([None, 5])),
        num_labels=draw(st.integers(1, 3)),
        layer_scale=draw(st.sampled_from([0.0, 0.5])),
        dtype="float64",
    )


@st.composite
def masks(draw: st.DrawFn, config: ViTConfig, cls: str, masked: bool) -> dict[str, np.ndarray]:
    """Some of the masks that a model takes, for two pictures."""
    rng, patches = np.random.default_rng(draw(st.integers(0, 99))), config.num_patches
    tokens = patches + config.num_prefix_tokens
    shape = draw(st.sampled_from([(), (config.num_hidden_layers,)]))
    found = {"bool_masked_pos": rng.random((2, patches)) < 0.5} if masked else {}
    if cls in BACKBONES:
        return found
    if draw(st.booleans()):
        found["head_mask"] = rng.integers(0, 3, (*shape, config.num_attention_heads)) / 2
    if cls in PRETRAINED:
        return {**found, "noise": rng.random((2, patches))}
    if draw(st.booleans()):
        found["attention_mask"] = rng.random((2, tokens)) + (np.arange(tokens) == 0) > 0.5
    return found


def torch_blocks(model: Any, call: dict[str, Any], backend: Any) -> tuple[Any, dict[str, Any]]:
    """The output of a call, and what every module returned by its name."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
    return backend.call(model, **call), found


def tf_blocks(model: Any, call: dict[str, Any], backend: Any) -> tuple[Any, dict[str, Any]]:
    """The output of a call, and what every layer returned by its path, run eagerly to see it."""
    import keras

    found, original = {}, keras.layers.Layer.__call__

    def recorded(layer: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(layer, *args, **kwargs)
        path = str(layer.path).removeprefix(f"{model.path}/")  # None for what has no variables
        found[path.replace("/", ".").replace("layer_._", "layer.")] = output
        return output

    model.run_eagerly = True
    with patch.object(keras.layers.Layer, "__call__", recorded):
        return backend.call(model, **call), found


def flax_blocks(model: Any, call: dict[str, Any], backend: Any) -> tuple[Any, dict[str, Any]]:
    """The output of a call, and what every module returned by its path."""
    from flax.traverse_util import flatten_dict

    capture = partial(model.module.apply, **call, capture_intermediates=True, mutable=["intermediates"])
    output, state = backend.jax.jit(capture)({"params": model.params})
    calls = flatten_dict(state["intermediates"])
    return output, {".".join(path[:-1]): value[0] for path, value in calls.items() if path[-1] == "__call__"}


BLOCKS = {"torch": torch_blocks, "tf": tf_blocks, "flax": flax_blocks}


SMALL = ViTConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=1, image_size=4, patch_size=2)
PIXELS = np.ones((3, 3, 4, 4), np.float32)


def test_the_last_layer_computes_what_is_read(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier reads the CLS token: all that the last layer computes of the other 4 is their attention."""
    model = backend.build("ViTForImageClassification", SMALL, seed=0)
    assert tokens_of_the_layers(monkeypatch, lambda: backend.call(model, pixel_values=PIXELS)) == [5, 5, 1, 1]


def test_a_configuration_may_want_all_tokens(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend.build("ViTForImageClassification", SMALL.copy(skip_unread_tokens=False), seed=0)
    assert tokens_of_the_layers(monkeypatch, lambda: backend.call(model, pixel_values=PIXELS)) == [5, 5, 5, 5]


def test_who_looks_sees_all_tokens(backend: Any) -> None:
    """Hooks in PyTorch, captured intermediates in Flax. Keras has neither: nothing sees that its layers are called."""
    if backend.name == "tf":
        pytest.skip("Keras has no hooks")
    model = backend.build("ViTForImageClassification", SMALL, seed=0)
    _, blocks = BLOCKS[backend.name](model, {"pixel_values": PIXELS}, backend)
    names = ("attention", "attention.output", "layernorm_after", "intermediate.dense", "output")
    found = [blocks[f"vit.encoder.layer.1.{name}"] for name in names] + [blocks["vit.layernorm"]]
    assert [each.shape[1] for each in found] == [5] * 6
    assert blocks["vit"].last_hidden_state.shape == (3, 5, 4)


def tokens_of_the_layers(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> list[int]:
    """How many tokens each layer goes on with after its attention: of the context, and of its input."""
    found, original = [], calls.Options.wanted

    def recorded(options: calls.Options, x: Any) -> Any:
        found.append(original(options, x).shape[1])
        return original(options, x)

    monkeypatch.setattr(calls.Options, "wanted", recorded)
    call()
    return found


def compared(output: Any, blocks: dict[str, Any], trunk: str, layers: int) -> Iterator[tuple[str, Any]]:
    """Every value of a backend beside the name it has in the reference, if it has one."""
    found = {
        n.removeprefix(f"{trunk}."): value[0] if isinstance(value, tuple) else value for n, value in blocks.items()
    }
    names = [f"encoder.layer.{i}" for i in range(layers)]
    yield from found.items()
    yield from zip(["kept" if "mask" in output else "embeddings", *names], output.hidden_states, strict=True)
    yield from zip([f"{name}.probabilities" for name in names], output.attentions or (), strict=False)
    yield from ((RESULTS[field], output[field]) for field in RESULTS if field in output)
    yield from zip(MAPS, output.feature_maps if "feature_maps" in output else (), strict=False)


def maps(found: dict[str, Any], weights: dict[str, Any], config: ViTConfig) -> dict[str, Any]:
    """The maps of the first and of the last stage."""
    states = [found["embeddings"], found[f"encoder.layer.{config.num_hidden_layers - 1}"]]
    if config.final_norm and config.apply_layernorm:
        states = [layer_norm(x, weights, "layernorm", config.layer_norm_eps) for x in states]
    patches = [x[:, config.num_prefix_tokens :].transpose(0, 2, 1) for x in states]
    return {name: x.reshape(*x.shape[:2], *config.grid) for name, x in zip(MAPS, patches, strict=True)}


@pytest.mark.parametrize(("cls", "masked"), [*((cls, False) for cls in MODELS), *((cls, True) for cls in MASKED)])
@settings(max_examples=3, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_every_block(backend: Any, cls: str, masked: bool, data: st.DataObject) -> None:
    config = data.draw(configs(cls, masked))
    call = data.draw(masks(config, cls, masked))
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(spec.shape) / 2 for name, spec in specs(config, PARTS[cls]).items()}
    stored = {name: Tensor.of(array) for name, array in weights.items()}
    pixels = rng.standard_normal((2, config.num_channels, *config.image_size))
    expected = forward(weights, config, pixels, **call)
    if cls in BACKBONES:
        config.out_indices = [0, config.num_hidden_layers]
        expected |= maps(expected, weights, config)
        del expected["layernorm"]  # which is called for every map
    elif cls.startswith("Dinov2") and not cls.endswith("ForImageClassification"):
        expected["pooler"] = expected["layernorm"][:, 0]
    if cls == "BeitForMaskedImageModeling":
        del expected["layernorm"], expected["pooler"]  # a name of the head's as well; not there
    elif cls == "BeitBackbone":
        del expected["pooler"]
    model = getattr(backend.package, f"{backend.prefix}{cls}").from_tensors(config.copy(), stored, 0)
    attentions = data.draw(st.booleans())
    call |= {"pixel_values": pixels, "output_hidden_states": True, "output_attentions": attentions}
    output, blocks = BLOCKS[backend.name](model, call, backend)
    missing = {name for name in expected if attentions or not name.endswith(".probabilities")}
    if not config.final_norm:
        missing.discard("layernorm")  # no layer, but in torch
    for name, value in compared(output, blocks, model.base_model_prefix, config.num_hidden_layers):
        if name in expected:
            actual = np.asarray(value)
            assert actual.dtype == np.float64, name
            assert_close(actual, expected[name], tolerances.SAME_FUNCTION_FLOAT64, name)
            missing.discard(name)
    assert not missing
