"""LayerNorm with the two-pass variance and a derivative of its own (Ba et al. 2016, section 3).

Left to itself, XLA on CPUs recomputes the backward pass of every later LayerNorm in each layer's, so that a training
step grows with the square of the depth; the rule given here is computed once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * (_inverse_deviation(centred, eps) * scale) + bias


@layer_norm.defjvp
def _layer_norm_jvp(eps: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    centred = x - x.mean(-1, keepdims=True)
    inverse = _inverse_deviation(centred, eps)
    normal, d = centred * inverse, dx - dx.mean(-1, keepdims=True)
    tangent = (d - normal * (normal * d).mean(-1, keepdims=True)) * (inverse * scale) + normal * dscale + dbias
    return normal * scale + bias, tangent


def _inverse_deviation(centred: Array, eps: float) -> Array:
    return jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters `scale` and `bias`: computed in float32 or wider, the result in `dtype`."""

    epsilon: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        return layer_norm(x.astype(wide), scale.astype(wide), bias.astype(wide), self.epsilon).astype(self.dtype)
