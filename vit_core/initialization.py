"""Seeded initialisation: arrays drawn from the table's init column, equal to the last bit in every framework.

As Hugging Face's PyTorch ViT draws (transformers 4.57.6): weights, CLS token and position embeddings from a normal
distribution of standard deviation `initializer_range`, cut at -2 and 2 (absolute, not in standard deviations).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from vit_core.config import ViTConfig
from vit_core.params import Spec
from vit_core.position import sincos

BOUND = 2.0  # where the normal distribution is cut
DRAWN = {"normal": BOUND, "untruncated": float("inf")}  # where that of each initialiser is


def uniform_bound(spec: Spec) -> float:
    """Where the uniform distribution of "xavier" ends: of a matrix as MAE draws it (Glorot and Bengio 2010, eq. 16)."""
    return math.sqrt(6 / (spec.shape[0] + math.prod(spec.shape[1:])))


def constant(spec: Spec, config: ViTConfig) -> float | None:
    """The one value that a parameter starts at; None for one that is drawn, or of sines."""
    if spec.init in ("sincos", "xavier") or (spec.init in DRAWN and config.initializer_range):
        return None
    values = {**dict.fromkeys(DRAWN, 0.0), "zeros": 0.0, "norm": 1.0}
    return float(values[spec.init] if spec.init in values else getattr(config, spec.init))


def draw(spec: Spec, config: ViTConfig, seed: int) -> npt.NDArray[np.float32]:
    """The initial float32 array of one parameter, in PyTorch's layout.

    Each parameter has a stream of its own, from the seed and its name: a trunk starts equal under every head.
    """
    if (value := constant(spec, config)) is not None:
        return np.full(spec.shape, value, np.float32)
    if spec.init == "sincos":
        return sincos(config.grid, spec.shape[-1], config.position_prefix)
    stream = int.from_bytes(hashlib.sha256(spec.name.encode()).digest()[:8], "little")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream])))
    if spec.init == "xavier":
        return generator.uniform(-uniform_bound(spec), uniform_bound(spec), spec.shape).astype(np.float32)
    values = generator.standard_normal(spec.shape, np.float32) * np.float32(config.initializer_range)
    while (outside := np.abs(values) > DRAWN[spec.init]).any():
        again = generator.standard_normal(int(outside.sum()), np.float32)
        values[outside] = again * np.float32(config.initializer_range)
    return values
