"""Scaled dot-product attention, and the names it goes by (ViT paper, appendix A; Vaswani et al. 2017).

It takes queries, keys and values (B, h, S, d), a bias (B or 1, h or 1, S or 1, S) that is added to the scores or
None, and returns the context (B, h, S, d) with the probabilities (B, h, S, S).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import tensorflow as tf
from tensorflow import Tensor

Dropout = Callable[..., Tensor]


class Attention(Protocol):
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        head_mask: Tensor | None,
        dropout: Dropout | None,
    ) -> tuple[Tensor, Tensor | None]: ...


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, head_mask: Tensor | None, dropout: Dropout | None
) -> tuple[Tensor, Tensor]:
    """The explicit path: the softmax in float32 or wider, dropout, then the head mask."""
    scores = tf.matmul(q * q.shape[-1] ** -0.5, k, transpose_b=True)  # (B, h, S, S)
    if bias is not None:
        scores = scores + bias
    wide = scores.dtype if scores.dtype == tf.float64 else tf.float32
    probs = tf.cast(tf.nn.softmax(tf.cast(scores, wide)), v.dtype)
    probs = probs if dropout is None else dropout(probs, training=True)
    if head_mask is not None:
        probs = probs * tf.cast(head_mask, probs.dtype)[:, None, None]
    return probs @ v, probs


ATTENTIONS: dict[str, Attention] = {"sdpa": eager, "eager": eager}


def choose(name: str | None, output_attentions: bool) -> Attention:
    """The implementation of a name, sdpa by default; the explicit one where the probabilities are asked for.

    Raises ValueError for an unknown name.
    """
    known = "sdpa" if name is None else name
    if known not in ATTENTIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {name!r}.")
    return eager if output_attentions else ATTENTIONS[known]


def additive_bias(mask: Tensor | None, dtype: tf.DType) -> Tensor | None:
    """What to add to the scores for an attention mask, (B, S) with 1 for tokens to attend to, or additive already."""
    if mask is None:
        return None
    if mask.shape.rank == 4:
        return tf.cast(mask, dtype)
    return tf.where(tf.cast(mask, bool), tf.zeros((), dtype), dtype.min)[:, None, None, :]  # (B, 1, 1, S)
