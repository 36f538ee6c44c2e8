"""Scaled dot-product attention, and the names it goes by (ViT paper, appendix A; Vaswani et al. 2017).

It takes queries, keys and values (B, h, S, d), a bias (B, 1, 1 or S, S) that is added to the scores or None, and
returns the context (B, h, S, d) with the probabilities (B, h, S, S).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

Dropout = Callable[[Array], Array]


class Attention(Protocol):
    def __call__(
        self, q: Array, k: Array, v: Array, bias: Array | None, head_mask: Array | None, dropout: Dropout | None
    ) -> tuple[Array, Array]: ...


def eager(
    q: Array, k: Array, v: Array, bias: Array | None, head_mask: Array | None, dropout: Dropout | None
) -> tuple[Array, Array]:
    """The explicit path: the softmax in float32 or wider, dropout, then the head mask.

    Batched products of matrices (S, d): on CPUs XLA runs these at the speed of its matmul, einsums over (S, h, d) not.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, h, S, S)
    if bias is not None:
        scores = scores + bias
    probs = jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), axis=-1).astype(v.dtype)
    probs = probs if dropout is None else dropout(probs)
    if head_mask is not None:
        probs = probs * head_mask[:, None, None].astype(probs.dtype)
    return probs @ v, probs


ATTENTIONS: dict[str, Attention] = {"eager": eager, "sdpa": eager}  # XLA fuses the one form there is


def choose(name: str | None, output_attentions: bool) -> Attention:
    """The implementation of a name; always one that gives the probabilities. Raises ValueError for an unknown name."""
    known = "eager" if name is None else name
    if known not in ATTENTIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {name!r}.")
    return ATTENTIONS[known]


def additive_bias(mask: Array | None, dtype: jnp.dtype) -> Array | None:
    """What to add to the scores for an attention mask, (B, S) with 1 for tokens to attend to, or additive already."""
    if mask is None:
        return None
    if mask.ndim == 4:
        return mask.astype(dtype)
    return jnp.where(mask == 0, jnp.finfo(dtype).min, 0.0).astype(dtype)[:, None, None, :]  # (B, 1, 1, S)
