"""The two models that are compared: one ViT-B/16 at 224 pixels of this package, one of transformers, weights equal."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from harness import OURS, THEIRS

import vit_torch

# Without AVX-512, PyTorch takes eight times as long in bfloat16 as in float32, whosever model it is.
DTYPES = ("float32", "bfloat16") if torch.backends.cpu.get_cpu_capability() == "AVX512" else ("float32",)
CASES = [(dtype, batch) for dtype in DTYPES for batch in (1, 8)]
CONFIG = vit_torch.ViTConfig.variant("B/16", num_labels=1000)
TOKENS, WIDTH, MLP = CONFIG.num_patches + 1, CONFIG.hidden_size, CONFIG.intermediate_size


def pair(dtype: str) -> dict[str, Any]:
    """Both models by name, with fused attention, as each builds it by default."""
    ours = vit_torch.ViTForImageClassification(CONFIG, seed=0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
    theirs.load_state_dict(ours.state_dict())
    return {name: model.to(getattr(torch, dtype)) for name, model in ((OURS, ours), (THEIRS, theirs))}


def pixels(batch: int, dtype: str) -> torch.Tensor:
    """Noise (B, 3, 224, 224)."""
    return torch.randn((batch, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
