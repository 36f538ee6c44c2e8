"""Scaled dot-product attention three ways, and which of them a call runs (ViT paper, appendix A; Vaswani et al. 2017).

Each takes queries, keys and values (B, h, S, d), a bias (B or 1, h or 1, S or 1, S) that is added to the scores or
None, and returns the context (B, h, S, d) with the probabilities (B, h, S, S), or None where they are never
materialised.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Attention(Protocol):
    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, head_mask: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor | None]: ...


def eager(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, head_mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """The explicit path: the softmax in float32 or wider, dropout, then the head mask."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, h, S, S)
    if bias is not None:
        scores = scores + bias
    probs = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
    probs = F.dropout(probs, dropout) if dropout else probs
    if head_mask is not None:
        probs = probs * head_mask[:, None, None].to(probs.dtype)
    return probs @ v, probs


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, head_mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's fused kernel; a head's mask scales its context, which equals scaling its probabilities."""
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    return _scaled(context, head_mask), None


def flex(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, head_mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """PyTorch's FlexAttention, compiled on first use. It has no dropout, and on CPUs no gradient."""
    if dropout:
        raise ValueError(
            f"attn_implementation='flex' has no attention dropout, got attention_probs_dropout_prob={dropout}: use "
            "'sdpa' or 'eager' for training."
        )
    attend = _flex_attention()
    context = attend(q, k, v, score_mod=None if bias is None else _adding(bias))
    return _scaled(context, head_mask), None


def _adding(bias: Tensor) -> Callable[..., Tensor]:
    """What adds a bias, (B or 1, heads or 1, N or 1, N), to a score of FlexAttention."""
    several = [size > 1 for size in bias.shape[:3]]
    found = bias[tuple(slice(None) if each else 0 for each in several)]  # PyTorch 2.8 takes no 0 among the places below
    if several[1] and found.device.type == "cpu" and not torch.compiler.is_compiling():
        torch._dynamo.mark_static(found)  # Inductor's C++ mixes up the names of ten and more sizes that vary

    def add(score: Tensor, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        places = [place for place, each in zip((batch, head, row), several, strict=True) if each]
        return score + found[(*places, column)]

    return add


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()


def _scaled(context: Tensor, head_mask: Tensor | None) -> Tensor:
    return context if head_mask is None else context * head_mask[:, None, None].to(context.dtype)


ATTENTIONS: dict[str, Attention] = {"sdpa": sdpa, "eager": eager, "flex": flex}
_ALIASES = {None: "sdpa", "flex_attention": "flex"}


def choose(name: str | None, output_attentions: bool) -> Attention:
    """The implementation of a name, sdpa by default; the explicit one where the probabilities are asked for.

    Raises ValueError for an unknown name.
    """
    known = _ALIASES.get(name, name)
    if known not in ATTENTIONS:
        raise ValueError(f"attn_implementation must be one of {', '.join(ATTENTIONS)}, got {name!r}.")
    return eager if output_attentions else ATTENTIONS[known]


def additive_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What to add to the scores for an attention mask, (B, S) with 1 for tokens to attend to, or additive already."""
    if mask is None:
        return None
    if mask.dim() == 4:
        return mask.to(dtype)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(mask == 0, torch.finfo(dtype).min)[:, None, None, :]  # (B, 1, 1, S)
