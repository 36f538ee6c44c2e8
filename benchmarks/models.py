"""The models that are compared: a ViT-B/16 at 224 pixels of this package, transformers and timm, weights equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from harness import OURS, THEIRS, TIMM, timm_of

import vit_torch
from conversion import convert

# Without AVX-512, PyTorch takes eight times as long in bfloat16 as in float32, whosever model it is.
DTYPES = ("float32", "bfloat16") if torch.backends.cpu.get_cpu_capability() == "AVX512" else ("float32",)
CASES = [(dtype, batch) for dtype in DTYPES for batch in (1, 8)]
CONFIG = vit_torch.ViTConfig.variant("B/16", num_labels=1000, layer_norm_eps=1e-6)  # as timm has it
PRODUCTS = ("aten::mm", "aten::addmm", "mkldnn::_linear", "mkldnn_convolution", "convolution_backward")
TOKENS, WIDTH, MLP = CONFIG.num_patches + 1, CONFIG.hidden_size, CONFIG.intermediate_size


def models(dtype: str) -> dict[str, Any]:
    """The models by name, with fused attention, as each builds it by default."""
    ours = vit_torch.ViTForImageClassification(CONFIG, seed=0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000, layer_norm_eps=1e-6))
    theirs.load_state_dict(ours.state_dict())
    with TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        convert(folder, Path(folder) / "timm", to="timm")
        timms = timm_of(Path(folder) / "timm")
    return {name: model.to(getattr(torch, dtype)) for name, model in ((OURS, ours), (THEIRS, theirs), (TIMM, timms))}


def logits_of(name: str, model: Any, x: torch.Tensor) -> torch.Tensor:
    """What a model of `models` gives for pixels."""
    return model(x) if name == TIMM else model(pixel_values=x).logits


def shares(call: Callable[[], Any]) -> dict[str, float]:
    """Where the time of a call goes, by PyTorch's profiler: matrix products, attention, the optimizer, and the rest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        call()
    events = profiler.key_averages()
    own = {event.key: event.self_cpu_time_total for event in events}
    kinds = {"products": PRODUCTS, "attention": ("scaled_dot_product",)}
    found = {kind: sum(own[key] for key in own if any(part in key for part in parts)) for kind, parts in kinds.items()}
    found["optimizer"] = sum(event.cpu_time_total for event in events if event.key.startswith("Optimizer.step"))
    total = sum(own.values())
    found["rest"] = total - sum(found.values())
    return {kind: round(time / total, 3) for kind, time in found.items() if time}


def pixels(batch: int, dtype: str) -> torch.Tensor:
    """Noise (B, 3, 224, 224)."""
    return torch.randn((batch, 3, 224, 224), generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
