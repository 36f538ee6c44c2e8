"""What a ViT's forward pass is made of, each part alone, on random numbers of the shapes that the classifier has.

A framework computes them in its own way, and their times beside the model's say what the rest is (`shares`):
LayerNorms, activations, biases, residuals, and whatever a framework does between two products. In a model a part can
cost less than alone, where it shares its memory with what stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.config import ViTConfig, pair

Array = np.ndarray
PARTS = ("products", "attention")


def of(config: ViTConfig, batch: int) -> dict[str, Any]:
    """By part, what it is computed from.

    products: the two factors of every matrix product with a kernel, of patches, layers and head; after its attention
    the last layer computes its CLS tokens alone. attention: an array for each layer, (B, heads, tokens, channels),
    which stands for its queries, keys and values.
    """
    generator = np.random.default_rng(0)
    width, mlp, tokens = config.hidden_size, config.intermediate_size, config.num_patches + 1
    heads, pixels = config.num_attention_heads, math.prod(pair(config.patch_size)) * config.num_channels

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape, dtype=np.float32)

    rows = {size: normal(batch * tokens, size) for size in {pixels, width, mlp}}

    def product(count: int, inner: int, outer: int) -> tuple[Array, Array]:
        return rows[inner][:count], normal(inner, outer)

    found = [product(batch * config.num_patches, pixels, width)]
    for count in [batch * tokens] * (config.num_hidden_layers - 1) + [batch]:
        found += [product(batch * tokens, width, width) for _ in range(3)]
        found += [product(count, width, width), product(count, width, mlp), product(count, mlp, width)]
    found.append(product(batch, width, config.num_labels))
    attention = [normal(batch, heads, tokens, width // heads) for _ in range(config.num_hidden_layers)]
    return dict(zip(PARTS, (found, attention), strict=True))


def shares(times: Mapping[str, Array], ours: str) -> dict[str, float]:
    """The time of each part, named beside that of our model, by that of our model; and the rest."""
    found = {name: float(np.median(times[name]) / np.median(times[ours])) for name in PARTS}
    return {name: round(share, 3) for name, share in {**found, "rest": 1 - sum(found.values())}.items()}
