"""Scaled dot-product attention three ways, and which of them a call runs (ViT paper, appendix A; Vaswani et al. 2017).

It takes queries, keys and values (B, h, S, d), a bias (B or 1, h or 1, S or 1, S) that is added to the scores or None,
and returns the context (B, h, S, d) with the probabilities (B, h, S, S), or None where they are never normalised.
`sdpa` and `eager` are batched products of matrices (S, d): on CPUs XLA runs these at the speed of its matmul, einsums
over (S, h, d) not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from vit_flax.layers import wider

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
    return _scaled((weights if dropout is None else dropout(weights)) @ v / total.astype(v.dtype), head_mask), None


def cudnn(
    q: Array, k: Array, v: Array, bias: Array | None, head_mask: Array | None, dropout: Dropout | None
) -> tuple[Array, None]:
    """cuDNN's flash attention on NVIDIA GPUs (Dao et al. 2022, "FlashAttention"), which keeps no matrix (S, S).

    `sdpa` computes what it does not: any dtype but float16 and bfloat16, heads wider than 128 or of no multiple of 8,
    sizes that are symbols, dropout, and a bias, whose gradient JAX 0.6 leaves out without a word for some shapes. There
    are first derivatives in reverse mode alone. Raises ValueError where JAX sees no GPU that has the kernel.
    """
    if not gpus():
        kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
        raise ValueError(
            "attn_implementation='cudnn' needs an NVIDIA GPU of compute capability 8.0 (Ampere) or above, and JAX sees "
            f"{kinds}: use 'sdpa', or install JAX for CUDA."
        )
    width, half = q.shape[-1], q.dtype in (jnp.float16, jnp.bfloat16)
    symbols = not all(isinstance(size, int) for size in q.shape)
    if not half or width > 128 or width % 8 or symbols or dropout is not None or bias is not None:
        return sdpa(q, k, v, bias, head_mask, dropout)
    return _scaled(_flash(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2), head_mask), None


@jax.custom_vjp
def _flash(q: Array, k: Array, v: Array) -> Array:
    """The context (B, S, h, d) of queries, keys and values of that shape."""
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _even(q: Array, k: Array, v: Array) -> Array:
    """As `_flash`, with another token to which none attends if S is odd: JAX refuses gradients of the kernel there."""
    tokens, lengths = q.shape[1], None
    if tokens % 2:
        lengths = tokens + 0 * q[:, 0, 0, 0].astype(jnp.int32)  # of q: JAX's rule for vmap wants them batched as q is
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    found = jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    return found[:, :tokens]


_flash.defvjp(lambda *given: jax.vjp(_even, *given), lambda backward, gradient: backward(gradient))


def gpus() -> bool:
    """Whether JAX sees NVIDIA GPUs, all of which have flash attention."""
    try:
        return all(float(device.compute_capability) >= 8 for device in jax.devices("cuda"))
    except RuntimeError:  # no such platform
        return False


def _scaled(context: Array, head_mask: Array | None) -> Array:
    return context if head_mask is None else context * head_mask[None, :, None, None].astype(context.dtype)


def _scores(q: Array, k: Array, bias: Array | None) -> Array:
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, h, S, S)
    scores = scores if bias is None else scores + bias
    return scores.astype(wider(scores.dtype))


ATTENTIONS: dict[str, Attention] = {"sdpa": sdpa, "eager": eager, "cudnn": cudnn}
_ALIASES = {None: "sdpa", "flash": "cudnn"}


def choose(name: str | None, output_attentions: bool) -> Attention:
    """The implementation of a name, sdpa by default; the explicit one where the probabilities are asked for.

    Raises ValueError for an unknown name.
    """
    known = _ALIASES.get(name, name)
    if known not in ATTENTIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {name!r}.")
    return eager if output_attentions else ATTENTIONS[known]


def additive_bias(mask: Array | None, dtype: jnp.dtype) -> Array | None:
    """What to add to the scores for an attention mask, (B, S) with 1 for tokens to attend to, or additive already."""
    if mask is None:
        return None
    if mask.ndim == 4:
        return mask.astype(dtype)
    return jnp.where(mask.astype(bool), 0.0, jnp.finfo(dtype).min).astype(dtype)[:, None, None, :]  # (B, 1, 1, S)
