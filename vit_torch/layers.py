"""PyTorch's linear layer in a faster form: by oneDNN instead of MKL, where that is faster and no gradient is asked for.

MKL multiplies at 0.44 to 0.95 of oneDNN's speed on AMD's processors with AVX-512. oneDNN also applies GELU while the
product is in the cache. `torch.backends.mkldnn.flags(enabled=False)` leaves all to PyTorch, as Intel's processors do.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as _anywhere
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from vit_torch.activations import ViTActivation, gelu_tanh

# The operator is private: a PyTorch that lacks or changed it has its own product.
_SIGNATURE = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
_GELU = {F.gelu: "none", gelu_tanh: "tanh"}  # oneDNN's names of the exact form and of the approximation
_WORTH = 1 << 24  # multiplications below which a call costs more than it saves
_CPU = torch.device("cpu")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def linear(layer: nn.Linear, x: Tensor, activation: ViTActivation | None = None) -> Tensor:
    """`layer(x)`, (..., I) to (..., O), and what an `activation` makes of it; equal but for rounding.

    What watches or replaces a layer (hooks, compilers, exporters, quantisers, transforms of functions) still does.
    """
    if not _taken(layer, x):
        y = layer(x)
    elif activation is not None and activation.function in _GELU and _bare(activation):
        return _product(x, layer, "gelu", _GELU[activation.function])
    else:
        y = _product(x, layer, "none", "")
    return y if activation is None else activation(y)


def _product(x: Tensor, layer: nn.Linear, function: str, algorithm: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, function, [], algorithm)


def _taken(layer: nn.Linear, x: Tensor) -> bool:
    """Whether oneDNN multiplies: plain float32 on a processor where it is faster, and nobody looks."""
    return bool(
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and type(x) is Tensor
        and type(layer) is nn.Linear
        and x.numel() * layer.out_features >= _WORTH
        and _faster()
        and type(weight := layer.weight) is nn.Parameter
        and x.dtype == weight.dtype == torch.float32
        and x.device == weight.device == _CPU
        and torch.backends.mkldnn.enabled
        and _bare(layer)
        and forward_ad._current_level < 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
    )


def hooks_of(*modules: nn.Module) -> list[Any]:
    """The forward and backward hooks on these modules, and those on all modules that there are."""
    found = [getattr(module, kind) for module in modules for kind in _HOOKS]
    found += [getattr(_anywhere, f"_global{kind}") for kind in _HOOKS]
    return [hook for hooks in found for hook in hooks.values()]


def _bare(module: nn.Module) -> bool:
    """Whether a module is called as it was made: without hooks, and by its class's own `forward`."""
    return "forward" not in module.__dict__ and not hooks_of(module)


@cache
def _faster() -> bool:
    """Whether this PyTorch multiplies by MKL on a processor of AMD that has AVX-512, and could by oneDNN."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    known = operator is not None and str(operator.default._schema).endswith(_SIGNATURE)
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return known and wide and torch.backends.mkl.is_available() and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What the system says of its first processor."""
    try:
        with open("/proc/cpuinfo") as file:
            return file.read(1024)
    except OSError:  # no Linux
        return platform.processor()
