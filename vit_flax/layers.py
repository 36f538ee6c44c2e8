"""Linen's layers, computed in the form that XLA runs fast and at the precision the model needs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

MATRICES = (((1,), (0,)), ((), ()))  # the dimension numbers of their product


def product(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None) -> Array:
    """The `dot_general` of a Dense as one product of matrices.

    The gradient of a kernel sums over all leading axes. Where that is more than one, XLA on CPUs writes activations
    down transposed before it multiplies. `dot_general` itself, as quantisers put another in its place.
    """
    *leading, width = x.shape
    rows = jax.lax.dot_general(x.reshape(math.prod(leading), width), kernel, MATRICES, precision=precision)
    return rows.reshape(*leading, kernel.shape[1])


def spread(parameter: Array, x: Array) -> Array:
    """A parameter (D,) with as many axes as `x`, (..., D): JAX can be told to refuse what adds them by itself."""
    return jax.lax.broadcast_to_rank(parameter, x.ndim)


def wider(dtype: Any, other: Any = jnp.float32) -> Any:
    """The dtype that holds both, also where JAX is told to refuse to mix them: what is computed in it is cast first."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, other)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(var + eps) * scale + bias over the last axis, with the two-pass variance.

    The derivative is the plain one, except that it divides by the deviation instead of multiplying by its inverse. XLA
    recomputes chains of sums and products in each of their users, but not chains that hold a division: on CPUs it would
    otherwise add up the residual stream's gradient from the last layer on anew in each layer.
    """
    return _normal(x, eps)[0] * spread(scale, x) + spread(bias, x)


@_layer_norm.defjvp
def _layer_norm_jvp(eps: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, scale, bias), (dx, dscale, dbias) = primals, tangents
    normal, deviation = _normal(x, eps)
    d = dx / deviation
    d = d - d.mean(-1, keepdims=True)
    d = (d - normal * (normal * d).mean(-1, keepdims=True)) * spread(scale, x)
    tangent = d + normal * spread(dscale, x) + spread(dbias, x)
    return normal * spread(scale, x) + spread(bias, x), tangent


layer_norm = jax.jit(_layer_norm, static_argnums=3)  # traced once, not in every layer


def _normal(x: Array, eps: float) -> tuple[Array, Array]:
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return centred / deviation, deviation


class LayerNorm(nn.Module):
    """LayerNorm with its parameters `scale` and `bias` (Ba et al. 2016, section 3).

    Computed in float32 or wider, the result in `dtype`.
    """

    epsilon: float
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], self.param_dtype)
        wide = wider(self.dtype)
        return layer_norm(x.astype(wide), scale.astype(wide), bias.astype(wide), self.epsilon).astype(self.dtype)
