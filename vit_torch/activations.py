"""The activation functions, by Hugging Face's names (transformers 4.57.6 `ACT2FN`, and selu, which it documents)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return F.gelu(x, approximate="tanh")


def gelu_fast(x: Tensor) -> Tensor:
    """`gelu_tanh` with the constant cut to ten digits."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_10(x: Tensor) -> Tensor:
    """GELU clipped to [-10, 10] (Wu et al. 2020, "Integer Quantization", section 4)."""
    return F.gelu(x).clip(-10.0, 10.0)


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


def laplace(x: Tensor) -> Tensor:
    """The Laplace function with mean sqrt(1/2) and deviation sqrt(1/(4 pi)) (Ma et al. 2022, "Mega", section 3.2)."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, "Primer", section 4)."""
    return F.relu(x).square()


def linear(x: Tensor) -> Tensor:
    """The identity."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": linear,
    "mish": F.mish,
    "quick_gelu": quick_gelu,
    "relu": F.relu,
    "relu2": relu2,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class ViTActivation(nn.Module):
    """An activation function as a module, for hooks to see."""

    def __init__(self, function: str | Activation) -> None:
        super().__init__()
        self.function = ACTIVATIONS[function] if isinstance(function, str) else function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
