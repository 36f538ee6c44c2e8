"""What the oracle tests share: random small models of both libraries with equal weights, and the comparison.

The oracle is transformers 4.57.6. "Theirs" is its PyTorch ViT, "ours" is `vit_torch`.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
import transformers

import vit_torch
from vit_core.validation import ACTIVATIONS

MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
SHARED_ACTIVATIONS = sorted(set(ACTIVATIONS) - {"selu"})  # documented by transformers, but in no table of its


@st.composite
def architectures(draw: st.DrawFn, square: bool = False, whole: bool = False) -> dict[str, Any]:
    """Arguments that both ViTConfigs take. `square`: one number for both axes. `whole`: patches fill the image."""
    heads, patch = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def edge(patch: int) -> int:
        return patch * draw(st.integers(1, 4)) + (0 if whole else draw(st.integers(0, patch - 1)))

    image: Any = edge(patch)
    patches: Any = patch
    if not square and draw(st.booleans()):
        patches = [patch, draw(st.integers(1, 5))]
        image = [edge(p) for p in patches]
    return {
        "hidden_size": heads * draw(st.sampled_from([2, 3, 8])) * 2,
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 40)),
        "hidden_act": draw(st.sampled_from(SHARED_ACTIVATIONS)),
        "layer_norm_eps": draw(st.sampled_from([1e-12, 1e-6, 1e-3])),
        "image_size": image,
        "patch_size": patches,
        "encoder_stride": patch,
        "num_channels": draw(st.integers(1, 4)),
        "qkv_bias": draw(st.booleans()),
        "pooler_output_size": draw(st.sampled_from([None, 5])),
        "pooler_act": draw(st.sampled_from(SHARED_ACTIVATIONS)),
        "num_labels": draw(st.sampled_from([1, 2, 5])),
    }


def pair(
    name: str, architecture: dict[str, Any], seed: int = 0, attention: str = "eager", dtype: Any = None, **kwargs: Any
) -> tuple[Any, Any]:
    """Their model and ours, in evaluation mode, with the same random weights, biases and norms included."""
    theirs = getattr(transformers, name)(
        transformers.ViTConfig(**architecture, attn_implementation=attention), **kwargs
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        noise = torch.randn(parameter.shape, generator=generator) * 0.3
        parameter.data = noise + (parameter.data.round() if parameter.dim() == 1 else 0)  # a norm's weight is about 1
    ours = getattr(vit_torch, name)(vit_torch.ViTConfig(**architecture, attn_implementation=attention), **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return theirs.to(dtype or torch.float32).eval(), ours.to(dtype or torch.float32).eval()


def pixels(model: Any, batch: int = 2, size: Any = None, seed: int = 0) -> torch.Tensor:
    """Random pixels (B, C, H, W) of the size of a model, or of another, in its dtype."""
    size = size or model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.config.num_channels, height, width)
    return torch.randn(shape, generator=generator).to(model.dtype)


def patch_mask(model: Any, batch: int = 2) -> torch.Tensor:
    """A random mask (B, N) of patches."""
    patches = vit_torch.ViTConfig.from_dict(model.config.to_dict()).num_patches
    return torch.rand((batch, patches), generator=torch.Generator().manual_seed(1)) < 0.5


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str, least: float = 0.0) -> None:
    """The same shape and dtype, and no difference above `tolerance` times the largest expected value, or `least`."""
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    difference = (actual.double() - expected.double()).abs().max().item()
    largest = max(expected.double().abs().max().item(), least)
    assert difference <= tolerance * largest, f"{what} differs by {difference:.2e}, its largest value is {largest:.2e}"


def assert_same_output(ours: Any, theirs: Any, tolerance: float) -> None:
    """The same fields, each of them close."""
    assert list(ours.keys()) == list(theirs.keys())
    for field, expected in theirs.items():
        if isinstance(expected, torch.Tensor):  # a loss is a mean of values of order 1, of which little may be left
            assert_close(ours[field], expected, tolerance, field, least=1.0 if field == "loss" else 0.0)
            continue
        for i, (a, b) in enumerate(zip(ours[field], expected, strict=True)):
            assert_close(a, b, tolerance, f"{field}[{i}]")
