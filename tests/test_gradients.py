"""The gradients of a class by the tokens and attentions of every layer: true, and the same in all frameworks."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from members import CLASSIFIERS, DISTINCT, config_for

from vit_core.app.attention_maps import grad_cam, relevance
from vit_core.app.backends import class_gradients

TINY = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 16,
    "patch_size": 4, "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
SAME = tolerances.SAME_FUNCTION_FLOAT64


def build(backend: Any, cls: str, **options: Any) -> Any:
    return backend.build(cls, config_for(cls, **TINY), dtype="float64", seed=0, **options)


@pytest.mark.parametrize("cls", [cls for cls in CLASSIFIERS if cls in DISTINCT])
def test_every_framework_has_those_of_pytorchs_autograd(backend: Any, cls: str) -> None:
    """A layer's output is replaced in PyTorch by one that is a leaf: its gradient is found without the room's help."""
    torch, package = pytest.importorskip("torch"), pytest.importorskip("vit_torch")
    reference = getattr(package, cls)(config_for(cls, **TINY), seed=0).double().eval()
    leaves: list[Any] = []

    def becomes_a_leaf(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        leaves.append(args[0].detach().requires_grad_() if not leaves else args[0])
        leaves[-1].retain_grad()
        return leaves[-1], *args[1:]

    for layer in reference.base_model.encoder.layer:
        layer.register_forward_pre_hook(becomes_a_leaf)
    output = reference(torch.from_numpy(PIXELS).to(reference.device), output_attentions=True)
    for each in output.attentions:
        each.retain_grad()
    output.logits[:, 2].sum().backward()

    found = class_gradients(build(backend, cls), PIXELS, 2)
    assert_close(found.states, tuple(each.detach().cpu().numpy() for each in leaves), SAME)
    assert_close(found.by_states, tuple(each.grad.cpu().numpy() for each in leaves), SAME)
    assert_close(found.attentions, tuple(each.detach().cpu().numpy() for each in output.attentions), SAME)
    assert_close(found.by_attentions, tuple(each.grad.cpu().numpy() for each in output.attentions), SAME)
    maps = [
        (relevance(each.attentions, each.by_attentions), grad_cam(each.states[-1], each.by_states[-1], (4, 4)))
        for each in (found, class_gradients(reference, PIXELS, 2))
    ]
    assert_close(*maps, 1e-8)


def test_they_are_the_derivative(backend: Any) -> None:
    """A head's mask scales its attention: what the logit gains by it is the sum of gradient times attention."""
    model = build(backend, "ViTForImageClassification")
    found, step = class_gradients(model, PIXELS, 1), 1e-5
    for layer in range(3):
        products = found.attentions[layer] * found.by_attentions[layer]
        for head in range(4):
            logits = []
            for sign in (1, -1):
                mask = np.ones((3, 4))
                mask[layer, head] += sign * step
                logits.append(backend.call(model, pixel_values=PIXELS, head_mask=mask).logits[:, 1])
            difference = (logits[0] - logits[1]) / (2 * step)
            np.testing.assert_allclose(products[:, head].sum((1, 2)), difference, rtol=1e-5, atol=1e-8)


def test_what_has_none(backend: Any) -> None:
    words = "but this model gives logits, hidden_states, attentions, and no logits of classes"
    with pytest.raises(ValueError, match=re.escape(words)):
        class_gradients(build(backend, "BeitForMaskedImageModeling"), PIXELS, 0)
    for label in (3, -1, "3", 1.0):
        words = f"label must be from 0 to 2, or a name of config.label2id, got {label!r}."
        with pytest.raises(ValueError, match=re.escape(words)):
            class_gradients(build(backend, "ViTForImageClassification"), PIXELS, label)
    if backend.name == "flax":
        with pytest.raises(ValueError, match="scan_layers=True makes one layer of all"):
            class_gradients(build(backend, "ViTForImageClassification", scan_layers=True), PIXELS, 0)


def test_a_frozen_model_has_them(backend: Any) -> None:
    model = build(backend, "ViTForImageClassification")
    free = class_gradients(model, PIXELS, 0)
    if backend.name == "torch":
        model.requires_grad_(False)
    elif backend.name == "tf":
        model.trainable = False
    assert_close(class_gradients(model, PIXELS, "LABEL_0"), free, SAME)
