"""The activation functions, by Hugging Face's names (transformers 4.57.6 `ACT2FN`, and selu, which it documents)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from vit_flax.layers import wider

Activation = Callable[[Array], Array]


@jax.jit  # traced once, not in every layer
def gelu(x: Array) -> Array:
    """The exact GELU (Hendrycks and Gimpel 2016, section 2), computed in float32 or wider."""
    return _gelu(x.astype(wider(x.dtype))).astype(x.dtype)


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The plain derivative, written so that XLA does not find the value's error function in it.

    It is then computed again from x, where otherwise training keeps one more array of the MLP's size for each layer.
    """
    (x,), (dx,) = primals, tangents
    cdf = 0.5 * (1.0 - jax.lax.erf(-x * math.sqrt(0.5)))
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return _gelu(x), (cdf + x * density) * dx


def gelu_tanh(x: Array) -> Array:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return jax.nn.gelu(x, approximate=True)


def gelu_fast(x: Array) -> Array:
    """`gelu_tanh` with the constant cut to ten digits."""
    return 0.5 * x * (1.0 + jnp.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_10(x: Array) -> Array:
    """GELU clipped to [-10, 10] (Wu et al. 2020, "Integer Quantization", section 4)."""
    return jnp.clip(gelu(x), -10.0, 10.0)


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)


def laplace(x: Array) -> Array:
    """The Laplace function with mean sqrt(1/2) and deviation sqrt(1/(4 pi)) (Ma et al. 2022, "Mega", section 3.2)."""
    return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def relu2(x: Array) -> Array:
    """Squared ReLU (So et al. 2021, "Primer", section 4)."""
    return jnp.square(jax.nn.relu(x))


def linear(x: Array) -> Array:
    """The identity."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "laplace": laplace,
    "leaky_relu": partial(jax.nn.leaky_relu, negative_slope=0.01),
    "linear": linear,
    "mish": jax.nn.mish,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str | Activation) -> Activation:
    """The function of a name that the configuration has checked, or the callable itself."""
    return ACTIVATIONS[name] if isinstance(name, str) else name
