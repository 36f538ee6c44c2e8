"""Where a model looks, and what it sees: maps over the patches, of its attentions and of its tokens. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_core.config import ViTConfig

Array = NDArray[np.float64]
Grid = tuple[int, int]  # (rows, columns) of patches

TOKENS = ("cls", "mean", "registers")  # whose attention is shown


def rollout(attentions: Sequence[Array]) -> Array:
    """How much of each token reaches each token through all layers: L of (..., h, S, S) to (..., S, S).

    A layer passes on the mean of its heads plus, for the residual connection, the identity, each row scaled to sum to
    one; the layers are multiplied, the last one on the left. Every row of the result sums to one. Paper: Abnar and
    Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3.
    """
    if not attentions:
        raise ValueError("There are no attentions: call the model with output_attentions=True.")
    flow = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        layer = attention.mean(axis=-3) + np.eye(attention.shape[-1])
        flow = layer / layer.sum(axis=-1, keepdims=True) @ flow
    return flow


def relevance(attentions: Sequence[Array], gradients: Sequence[Array]) -> Array:
    """How much each token matters to each for a class: attentions and their gradients (..., h, S, S) to (..., S, S).

    A layer adds the mean of its heads' gradient times attention, where that is positive, times the relevance so far.
    Paper: Chefer et al. 2021, "Generic Attention-Model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", equations 5 and 6.
    """
    found = np.eye(attentions[0].shape[-1])
    for attention, gradient in zip(attentions, gradients, strict=True):
        found = found + (gradient * attention).clip(0).mean(axis=-3) @ found
    return found


def grad_cam(states: Array, gradients: Array, grid: Grid) -> Array:
    """How much the patches, the last of tokens (..., S, D), speak for a class, by its gradients: (..., rows, columns).

    Each channel weighs as much as its mean gradient over the patches; what speaks against the class is 0. Paper:
    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.
    """
    count = grid[0] * grid[1]
    weights = gradients[..., -count:, :].mean(axis=-2, keepdims=True)
    maps: Array = (weights * states[..., -count:, :]).sum(axis=-1).clip(0).reshape(*states.shape[:-2], *grid)
    return maps


def rows_of(config: ViTConfig, tokens: str | None = None) -> list[slice]:
    """Where the tokens stand that a map is of: one map of the "cls" token or of the "mean" patch, or each "registers".

    By default the CLS token where the model has one, else the mean. Raises ValueError for tokens that it has not.
    """
    first, prefix = len(config.tokens), config.num_prefix_tokens
    found = {
        "cls": [slice(0, 1)] * bool(config.tokens),
        "mean": [slice(prefix, None)],
        "registers": [slice(i, i + 1) for i in range(first, prefix)],
    }
    tokens = tokens or ("cls" if config.tokens else "mean")
    if not found.get(tokens):
        has = ", ".join(name for name in TOKENS if found[name])
        raise ValueError(f"tokens must be one of {has} for a {type(config).__name__}, got {tokens!r}.")
    return found[tokens]


def to_patches(weights: Array, rows: slice, grid: Grid) -> Array:
    """What the tokens in these rows of weights (..., S, S) give the patches, the last tokens, on average.

    The result is (..., rows, columns).
    """
    count = grid[0] * grid[1]
    maps: Array = weights[..., rows, -count:].mean(axis=-2).reshape(*weights.shape[:-2], *grid)
    return maps


def heaviest(weights: Array, share: float) -> NDArray[np.bool_]:
    """The fewest patches of maps (..., rows, columns) that hold this share of each map's mass.

    Paper: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", figure 3 and section 4.2.2.
    """
    flat = weights.reshape(*weights.shape[:-2], -1)
    order = np.argsort(-flat, axis=-1, kind="stable")
    sorted_ = np.take_along_axis(flat, order, axis=-1)
    before = np.cumsum(sorted_, axis=-1) - sorted_
    kept = np.zeros(flat.shape, bool)
    np.put_along_axis(kept, order, before < share * flat.sum(axis=-1, keepdims=True), axis=-1)
    return kept.reshape(weights.shape)


def principal_components(tokens: Sequence[Array]) -> tuple[list[Array], Array]:
    """The first three principal components of the patches (N, D) of several pictures, and the variance each explains.

    They are common to all pictures. Each is (N, 3), a component from 0 to 1 over them all, which can be shown as a
    colour; the shares of the variance are (3,). A component's sign is that of its largest loading. What the patches do
    not have is 0. Paper: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", figure 1.
    """
    joined = np.concatenate(tokens)
    centred = joined - joined.mean(axis=0)
    _, deviations, loadings = np.linalg.svd(centred, full_matrices=False)
    found = min(3, len(loadings))
    loadings = loadings[:found]
    signs = np.sign(np.take_along_axis(loadings, np.abs(loadings).argmax(axis=1)[:, None], axis=1))
    scores = np.pad(centred @ (loadings * signs).T, ((0, 0), (0, 3 - found)))
    extent = np.ptp(scores, axis=0)
    unit = (scores - scores.min(axis=0)) / np.where(extent > 0, extent, 1)
    variances = np.pad(deviations[:found] ** 2, (0, 3 - found))
    ends = np.cumsum([len(each) for each in tokens])[:-1]
    return np.split(unit, ends), variances / max(float((deviations**2).sum()), np.finfo(np.float64).tiny)


def foreground(weights: Array, share: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels (height, width) of a picture of `size`, (width, height), that hold this share of a map's mass.

    The map (rows, columns) is made smooth first, as large as the picture.
    """
    smooth = Image.fromarray(weights.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return heaviest(np.asarray(smooth, np.float64).clip(0), share)
