"""PyTorch's linear layer, and in training its gradients, in a faster form: by oneDNN, where MKL is slower.

MKL multiplies at 0.44 to 0.95 of oneDNN's speed on AMD's processors with AVX-512. Where no gradient is asked for,
oneDNN also applies GELU while the product is in the cache. `torch.backends.mkldnn.flags(enabled=False)` leaves all to
PyTorch, as Intel's processors do.
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
    elif _differentiated(layer, x):
        y = _Linear.apply(x, layer.weight, layer.bias)
    elif activation is not None and activation.function in _GELU and _bare(activation):
        return _product(x, layer.weight, layer.bias, "gelu", _GELU[activation.function])
    else:
        y = _product(x, layer.weight, layer.bias)
    return y if activation is None else activation(y)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, function: str = "none", algorithm: str = ""
) -> Tensor:
    """`F.linear` and then a function, by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, function, [], algorithm)


class _Linear(torch.autograd.Function):
    """The product with its gradients, which are PyTorch's own where somebody looks or differentiates them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        product = F.linear if torch.is_grad_enabled() or not _plain(grad, x, weight) else _product
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.t()) if of_x else None,
            product(rows.t(), x.reshape(-1, x.shape[-1]).t()) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _differentiated(layer: nn.Linear, x: Tensor) -> bool:
    wanted = x.requires_grad or any(each.requires_grad for each in layer.parameters(recurse=False))
    return torch.is_grad_enabled() and wanted


def _taken(layer: nn.Linear, x: Tensor) -> bool:
    """Whether oneDNN multiplies: a plain layer, large enough, on a processor where it is faster.

    In evaluation gradients are PyTorch's, which leaves out the weights' where only those of pixels are asked for.
    """
    return bool(
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(layer) is nn.Linear
        and x.numel() * layer.out_features >= _WORTH
        and onednn_is_faster()
        and _plain(x, layer.weight)
        and _bare(layer)
        and (layer.training or not _differentiated(layer, x))
    )


def _plain(*tensors: Tensor) -> bool:
    """Whether these are float32 on the processor, and nobody looks: no compiler, transform or mode of PyTorch."""
    return bool(
        not torch.compiler.is_compiling()
        and all(type(each) in (Tensor, nn.Parameter) for each in tensors)
        and all(each.dtype == torch.float32 and each.device == _CPU for each in tensors)
        and torch.backends.mkldnn.enabled
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_autocast_enabled("cpu")
        and not is_in_torch_dispatch_mode()
        and not torch._C._len_torch_function_stack()
        and F.linear is torch._C._nn.linear
        and nn.Linear.forward.__module__ == nn.Linear.__module__
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
def onednn_is_faster() -> bool:
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
