"""Scaled dot-product attention two ways, and which of them a call runs (ViT paper, appendix A; Vaswani et al. 2017).

It takes queries, keys and values (B, h, S, d), a bias (B or 1, h or 1, S or 1, S) that is added to the scores or None,
and returns the context (B, h, S, d) with the probabilities (B, h, S, S), or None where they are never normalised. Both
are batched products of matrices (S, d): on CPUs XLA runs these at the speed of its matmul, einsums over (S, h, d) not.
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
    ) -> tuple[Array, Array | None]: ...


def eager(
    q: Array, k: Array, v: Array, bias: Array | None, head_mask: Array | None, dropout: Dropout | None
) -> tuple[Array, Array]:
    """The explicit path: the softmax in float32 or wider, dropout, then the head mask."""
    probs = jax.nn.softmax(_scores(q, k, bias), axis=-1).astype(v.dtype)  # (B, h, S, S)
    probs = probs if dropout is None else dropout(probs)
    if head_mask is not None:
        probs = probs * head_mask[None, :, None, None].astype(probs.dtype)
    return probs @ v, probs


def sdpa(
    q: Array, k: Array, v: Array, bias: Array | None, head_mask: Array | None, dropout: Dropout | None
) -> tuple[Array, None]:
    """The context alone: the softmax's denominator and a head's mask divide and scale it, not the probabilities."""
    scores = _scores(q, k, bias)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))  # (B, h, S, S)
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    context = (weights if dropout is None else dropout(weights)) @ v / total.astype(v.dtype)
    return context if head_mask is None else context * head_mask[None, :, None, None].astype(v.dtype), None


def _scores(q: Array, k: Array, bias: Array | None) -> Array:
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, h, S, S)
    scores = scores if bias is None else scores + bias
    return scores.astype(jnp.promote_types(scores.dtype, jnp.float32))


ATTENTIONS: dict[str, Attention] = {"sdpa": sdpa, "eager": eager}


def choose(name: str | None, output_attentions: bool) -> Attention:
    """The implementation of a name, sdpa by default; the explicit one where the probabilities are asked for.

    Raises ValueError for an unknown name.
    """
    known = "sdpa" if name is None else name
    if known not in ATTENTIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {name!r}.")
    return eager if output_attentions else ATTENTIONS[known]


def additive_bias(mask: Array | None, dtype: jnp.dtype) -> Array | None:
    """What to add to the scores for an attention mask, (B, S) with 1 for tokens to attend to, or additive already."""
    if mask is None:
        return None
    if mask.ndim == 4:
        return mask.astype(dtype)
    return jnp.where(mask == 0, jnp.finfo(dtype).min, 0.0).astype(dtype)[:, None, None, :]  # (B, 1, 1, S)
