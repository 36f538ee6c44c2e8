"""New models are drawn from transformers' distribution, parameter by parameter, with a seed of ours or torch's."""

from __future__ import annotations

import numpy as np
import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from oracle import MODELS

import vit_torch

NARROW = {  # ViT-B/16 with a twelfth of its width
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_labels": 10,
}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Kolmogorov-Smirnov distance of two samples, scaled to be distributed alike whatever their sizes."""
    values = np.concatenate([a, b])
    below = (np.searchsorted(np.sort(sample), values, side="right") / sample.size for sample in (a, b))
    largest = np.abs(np.subtract(*below)).max()
    return float(largest * np.sqrt(a.size * b.size / (a.size + b.size)))


@pytest.mark.parametrize("deviation", [0.02, 1.5])  # at 1.5 the cut at 2 shows
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [None, 0])
def test_parameters_have_the_same_distribution(name: str, deviation: float, seed: int | None) -> None:
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(transformers.ViTConfig(**NARROW, initializer_range=deviation)).state_dict()
    ours = getattr(vit_torch, name)(vit_torch.ViTConfig(**NARROW, initializer_range=deviation), seed=seed).state_dict()
    assert list(ours) == list(theirs)
    for key, expected in theirs.items():
        a, b = ours[key].numpy().ravel(), expected.numpy().ravel()
        assert (ours[key].shape, ours[key].dtype) == (expected.shape, expected.dtype)
        if np.ptp(b) == 0:  # biases, norms and the mask token
            np.testing.assert_array_equal(a, b, err_msg=key)
            continue
        assert np.abs(a).max() <= 2, key
        assert distance(a, b) < tolerances.SAMPLE, key
        assert abs(a.mean()) < 5 * b.std() / np.sqrt(a.size), key
        assert abs(a.std() / b.std() - 1) < 5 / np.sqrt(a.size), key


@pytest.mark.parametrize("seed", [None, 0])
def test_parameters_that_a_file_lacks(tmp_path: object, seed: int | None) -> None:
    """A fresh classifier on a loaded trunk, which both draw as they draw a new model's."""
    config = transformers.ViTConfig(**{**NARROW, "num_labels": 500})
    transformers.ViTModel(config).save_pretrained(tmp_path)
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path).classifier
    ours, _ = vit_torch.ViTForImageClassification.from_pretrained(tmp_path, output_loading_info=True, seed=seed)
    a, b = (head.weight.detach().numpy().ravel() for head in (ours.classifier, theirs))
    assert distance(a, b) < tolerances.SAMPLE
    assert torch.equal(ours.classifier.bias, theirs.bias)
