"""The activation functions, by Hugging Face's names (transformers 4.57.6 `ACT2FN`, and selu, which it documents)."""

from __future__ import annotations

import math
from collections.abc import Callable

import keras
import tensorflow as tf
from tensorflow import Tensor

Activation = Callable[[Tensor], Tensor]


def gelu(x: Tensor) -> Tensor:
    """The exact GELU (Hendrycks and Gimpel 2016, section 2); `tf.nn.gelu` rounds its constants to float32."""
    return 0.5 * x * (1.0 + tf.math.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return 0.5 * x * (1.0 + tf.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_fast(x: Tensor) -> Tensor:
    """`gelu_tanh` with the constant cut to ten digits."""
    return 0.5 * x * (1.0 + tf.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def gelu_10(x: Tensor) -> Tensor:
    """GELU clipped to [-10, 10] (Wu et al. 2020, "Integer Quantization", section 4)."""
    return tf.clip_by_value(gelu(x), -10.0, 10.0)


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * tf.sigmoid(1.702 * x)


def laplace(x: Tensor) -> Tensor:
    """The Laplace function with mean sqrt(1/2) and deviation sqrt(1/(4 pi)) (Ma et al. 2022, "Mega", section 3.2)."""
    return 0.5 * (1.0 + tf.math.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, "Primer", section 4)."""
    return tf.square(tf.nn.relu(x))


def leaky_relu(x: Tensor) -> Tensor:
    """ReLU with the slope 0.01 below zero; that of `tf.nn.leaky_relu` is a float32."""
    return tf.maximum(x, 0.01 * x)


def linear(x: Tensor) -> Tensor:
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
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": keras.activations.mish,
    "quick_gelu": quick_gelu,
    "relu": tf.nn.relu,
    "relu2": relu2,
    "relu6": tf.nn.relu6,
    "selu": tf.nn.selu,
    "sigmoid": tf.sigmoid,
    "silu": tf.nn.silu,
    "swish": tf.nn.silu,
    "tanh": tf.tanh,
}


def activation(name: str | Activation) -> Activation:
    """The function of a name that the configuration has checked, or the callable itself."""
    return ACTIVATIONS[name] if isinstance(name, str) else name
