"""Outputs, losses and gradients of random models are those of transformers, all fields and options."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import oracle_tolerances as tolerances
import pytest
import torch
from hypothesis import given
from oracle import MODELS, architectures, assert_close, assert_same_output, pair, patch_mask, pixels

EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@torch.no_grad()
def both(models: tuple[Any, Any], **call: Any) -> tuple[Any, Any]:
    """Our output and theirs, of one call."""
    theirs, ours = models
    return ours(**call), theirs(**call)


@given(architectures(), st.sampled_from(MODELS[:2]), st.integers(0, 99))
def test_every_field(architecture: dict[str, Any], name: str, seed: int) -> None:
    models = pair(name, architecture, seed)
    assert_same_output(*both(models, pixel_values=pixels(models[0]), **EVERYTHING), tolerances.OUTPUT_FLOAT32)


@given(architectures(square=True, whole=True), st.booleans(), st.integers(0, 99))
def test_masked_image_modelling(architecture: dict[str, Any], masked: bool, seed: int) -> None:
    models = pair("ViTForMaskedImageModeling", architecture, seed)
    mask = patch_mask(models[0]) if masked else None
    call = {"pixel_values": pixels(models[0]), "bool_masked_pos": mask, **EVERYTHING}
    assert_same_output(*both(models, **call), tolerances.OUTPUT_FLOAT32)


@given(architectures(), st.booleans(), st.booleans())
def test_bare_model_with_mask_token(architecture: dict[str, Any], pooled: bool, masked: bool) -> None:
    models = pair("ViTModel", architecture, add_pooling_layer=pooled, use_mask_token=True)
    mask = patch_mask(models[0]) if masked else None
    output = both(models, pixel_values=pixels(models[0]), bool_masked_pos=mask)
    assert_same_output(*output, tolerances.OUTPUT_FLOAT32)


@given(architectures(), st.sampled_from(MODELS[:2]), st.sampled_from(["eager", "sdpa"]))
def test_float64(architecture: dict[str, Any], name: str, attention: str) -> None:
    """Their fused path is float64 throughout; their eager softmax is float32, whatever the model's dtype."""
    theirs, ours = pair(name, architecture, attention="sdpa", dtype=torch.float64)
    ours.config.attn_implementation = attention
    call = {"pixel_values": pixels(theirs), "output_hidden_states": True}
    assert_same_output(*both((theirs, ours), **call), tolerances.OUTPUT_FLOAT64)


@given(architectures(), st.sampled_from(["bfloat16", "float16"]))
def test_half_precision(architecture: dict[str, Any], dtype: str) -> None:
    models = pair("ViTModel", architecture, dtype=getattr(torch, dtype))
    assert_same_output(*both(models, pixel_values=pixels(models[0])), tolerances.HALF[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@given(architectures(square=True), st.integers(1, 25), st.integers(1, 25))
def test_interpolation(dtype: torch.dtype, architecture: dict[str, Any], height: int, width: int) -> None:
    """On square grids, and patches of one size for both axes: theirs takes no other."""
    models = pair("ViTModel", architecture, attention="sdpa", dtype=dtype)  # a lone logit may cancel to nothing
    patch = architecture["patch_size"]
    x = pixels(models[0], size=(max(height, patch), max(width, patch)))
    tolerance = tolerances.OUTPUT_FLOAT64 if dtype == torch.float64 else tolerances.INTERPOLATED_FLOAT32
    assert_same_output(*both(models, pixel_values=x, interpolate_pos_encoding=True), tolerance)


@given(architectures(), st.data())
def test_head_mask(architecture: dict[str, Any], data: st.DataObject) -> None:
    models = pair("ViTModel", architecture)
    shape = (architecture["num_hidden_layers"], architecture["num_attention_heads"])
    shape = shape[1:] if data.draw(st.booleans()) else shape
    mask = torch.tensor(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=12, max_size=12)))
    call = {"pixel_values": pixels(models[0]), "head_mask": mask[: torch.Size(shape).numel()].reshape(shape)}
    assert_same_output(*both(models, **call, **EVERYTHING), tolerances.OUTPUT_FLOAT32)


LABELS = {
    "regression": lambda batch, labels: torch.linspace(-1, 1, batch * labels).reshape(batch, labels).squeeze(1),
    "single_label_classification": lambda batch, labels: torch.arange(batch) % labels,
    "multi_label_classification": lambda batch, labels: (torch.arange(batch * labels) % 2.0).reshape(batch, labels),
}


def step(model: Any, **call: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """The output of a call and the gradient of every parameter."""
    output = model(**call)
    output.loss.backward()
    return output, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(models: tuple[Any, Any], **call: Any) -> None:
    """Relative to the largest gradient of all: some, such as a key's bias, are nothing but rounding."""
    (their_output, expected), (our_output, actual) = (step(model, **call) for model in models)
    assert_close(our_output.loss, their_output.loss, tolerances.LOSS, "loss", least=1.0)
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).abs().max().item()
        assert difference <= tolerances.GRADIENT * largest, f"{name}: {difference:.2e}"


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "inferred"])
@pytest.mark.parametrize("problem", LABELS)
@given(architectures(), st.integers(1, 3), st.sampled_from(["eager", "sdpa"]))
def test_losses_and_gradients(
    problem: str, stated: bool, architecture: dict[str, Any], batch: int, attention: str
) -> None:
    if not stated:  # both infer from the number of labels, then from the labels' dtype
        architecture["num_labels"] = 1 if problem == "regression" else max(2, architecture["num_labels"])
    models = pair("ViTForImageClassification", architecture, attention=attention)
    for model in models:
        model.config.problem_type = problem if stated else None
    labels = LABELS[problem](batch, architecture["num_labels"])
    assert_same_gradients(models, pixel_values=pixels(models[0], batch), labels=labels)


@given(architectures(square=True, whole=True))
def test_reconstruction_gradients(architecture: dict[str, Any]) -> None:
    models = pair("ViTForMaskedImageModeling", architecture)
    assert_same_gradients(models, pixel_values=pixels(models[0]), bool_masked_pos=patch_mask(models[0]))


@given(architectures())
def test_gradients_are_the_same_when_checkpointed(architecture: dict[str, Any]) -> None:
    models = pair("ViTForImageClassification", architecture)
    for model in models:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    labels = torch.arange(2) % architecture["num_labels"]
    labels = labels.float() if architecture["num_labels"] == 1 else labels
    assert_same_gradients(models, pixel_values=pixels(models[0]), labels=labels)


@given(architectures(), st.sampled_from(MODELS))
def test_state_dict_crosses(architecture: dict[str, Any], name: str) -> None:
    """Names, order, shapes and values, in both directions."""
    theirs, ours = pair(name, architecture)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.init_weights(seed=0)
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(theirs.state_dict()[key], value) for key, value in ours.state_dict().items())
    assert ours.num_parameters() == theirs.num_parameters()
