"""The backends agree with each other on random models in float64: outputs, losses, gradients, masks, interpolation."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import tolerances
from adapters import BACKENDS
from closeness import assert_close
from hypothesis import Phase, given, settings
from members import BACKBONES, CLASSIFIERS, DECODERS, MASKED, MODELS, PRETRAINED, config_for

from vit_core.config import ViTConfig
from vit_core.family import PARTS
from vit_core.files.tensor import Tensor
from vit_core.params import specs

pytest.importorskip("torch")  # what the others are compared with
LOSSES = ("single_label_classification", "multi_label_classification", "regression")


@st.composite
def configs(draw: st.DrawFn, cls: str) -> ViTConfig:
    """Tiny models, of any aspect."""
    heads, patch = draw(st.integers(1, 3)), draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    return config_for(
        cls,
        hidden_size=heads * 4,
        num_hidden_layers=draw(st.integers(1, 2)),
        num_attention_heads=heads,
        intermediate_size=draw(st.integers(1, 9)),
        hidden_act=draw(st.sampled_from(["gelu", "gelu_new", "relu", "silu"])),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-3])),
        image_size=tuple(p * draw(st.integers(1, 3)) for p in patch),
        patch_size=patch,
        encoder_stride=patch,
        num_channels=draw(st.integers(1, 3)),
        qkv_bias=draw(st.booleans()),
        num_labels=draw(st.integers(1, 3)),
        problem_type=draw(st.sampled_from(LOSSES)),
        layer_scale=draw(st.sampled_from([0.0, 0.5])),
        dtype="float64",
    )


@st.composite
def calls(draw: st.DrawFn, config: ViTConfig, cls: str) -> dict[str, Any]:
    """NumPy arguments of a call of a model, with its labels or mask where it has a loss."""
    rng, flags = np.random.default_rng(draw(st.integers(0, 99))), st.booleans()
    least = 2 if cls in PRETRAINED else 1  # of which half is kept
    grid = tuple(draw(st.integers(least, 4)) for _ in range(2)) if (interpolate := draw(flags)) else config.grid
    ph, pw = config.patch_size
    patches, heads = grid[0] * grid[1], config.num_attention_heads
    tokens = patches + config.num_prefix_tokens
    call: dict[str, Any] = {
        "pixel_values": rng.standard_normal((2, config.num_channels, grid[0] * ph, grid[1] * pw)),
        "interpolate_pos_encoding": interpolate,
        "output_hidden_states": True,
        "output_attentions": True,
    }
    if cls in BACKBONES:
        return call
    if draw(flags):
        call["head_mask"] = rng.integers(0, 3, (config.num_hidden_layers, heads)) / 2
    if cls not in PRETRAINED and draw(flags):
        call["attention_mask"] = np.arange(2 * tokens).reshape(2, tokens) % 3 != 1
    if cls in CLASSIFIERS:
        labels = rng.integers(0, 2, (2, config.num_labels))
        single = config.problem_type == "single_label_classification"
        call["labels"] = labels[:, 0] % config.num_labels if single else labels.astype(float)
        if single and cls.endswith("WithTeacher") and draw(flags):
            call["teacher_logits"] = rng.standard_normal((2, config.num_labels))
            config.distillation = draw(st.sampled_from(["hard", "soft"]))
            config.distillation_weight, config.distillation_temperature = 0.3, 2.5
    if cls in MASKED:
        call["bool_masked_pos"] = mask = rng.random((2, patches)) < 0.5
        if cls not in DECODERS and mask.any():
            call["labels"] = rng.integers(0, config.vocab_size, mask.sum())
    return call


def tensors(config: ViTConfig, cls: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights, biases and norms by canonical name."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, spec in specs(config, PARTS[cls]).items():
        array = rng.standard_normal(spec.shape) * 0.3 + (spec.init == "norm" and spec.leaf == "weight")
        found[name] = Tensor(spec.shape, array.dtype, partial(np.copy, array), name)
    return found


def arrays(output: Any) -> dict[str, np.ndarray]:
    """Every array of an output by its field, numbered where the field is a tuple."""
    found: dict[str, np.ndarray] = {}
    for field, value in output.items():
        for i, item in enumerate(value if isinstance(value, tuple) else (value,)):
            found[f"{field}[{i}]"] = np.asarray(item)
    return found


@pytest.mark.parametrize("cls", MODELS)
@settings(max_examples=2, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_a_backend_agrees_with_torch(backend: Any, cls: str, data: st.DataObject) -> None:
    if backend.name == "torch":
        pytest.skip("torch is what the others are compared with")
    config = data.draw(configs(cls))
    call = data.draw(calls(config, cls))
    (expected, expected_gradients), (actual, gradients) = (
        b.step(getattr(b.package, f"{b.prefix}{cls}").from_tensors(config.copy(), tensors(config, cls), 0), **call)
        for b in (BACKENDS["torch"](), backend)
    )
    expected, actual = arrays(expected), arrays(actual)
    assert actual.keys() == expected.keys()
    for name in ("mask[0]", "ids_restore[0]") if cls in PRETRAINED else ():
        np.testing.assert_array_equal(actual.pop(name), expected.pop(name), name)
    for name, array in expected.items():
        assert array.dtype == np.float64, name
        assert_close(actual[name], array, tolerances.SAME_FUNCTION_FLOAT64, name)
    assert_close(gradients, expected_gradients, tolerances.SAME_FUNCTION_FLOAT64)
