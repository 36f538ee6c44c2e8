"""What every Linen module of the models is, and how its parameters start."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_core.config import ViTConfig
from vit_core.family import LAYER, family_of
from vit_core.initialization import BOUND, DRAWN, constant, uniform_bound
from vit_core.params import Spec, spec_of
from vit_core.position import sincos
from vit_flax.layers import LayerNorm, product


@cache
def normal(std: float, bound: float = BOUND) -> Callable[..., Array]:
    """Initialiser: a normal distribution cut at -bound and bound, absolute.

    Compiled, as Linen traces the initialiser of each parameter in every call, to see its shape.
    """

    @partial(jax.jit, static_argnums=(1, 2))
    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if std * 6 > bound:
            return jax.random.truncated_normal(key, -bound / std, bound / std, shape, dtype) * std
        return jax.random.normal(key, shape, dtype) * std

    return init


@cache
def uniform(bound: float) -> Callable[..., Array]:
    """Initialiser: a uniform distribution between -bound and bound. Compiled, as `normal` is."""

    @partial(jax.jit, static_argnums=(1, 2))
    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@cache
def sines(grid: tuple[int, int], first: int) -> Callable[..., Array]:
    """Initialiser: position embeddings of sines, see `vit_core.position.sincos`. Compiled, as `normal` is."""

    @partial(jax.jit, static_argnums=(1, 2))
    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jnp.asarray(sincos(grid, shape[-1], first), dtype)

    return init


class ViTModule(nn.Module):
    """What every module knows; `common` hands it down.

    `dtype` is what is computed in, `param_dtype` what parameters are drawn in, `channels_axis` 1 or 3 where pixels have
    their channels; `remat` recomputes each layer in the backward pass, `scan_layers` compiles one layer for all.
    """

    config: ViTConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    channels_axis: int = 1
    remat: bool = False
    scan_layers: bool = False

    @property
    def common(self) -> dict[str, Any]:
        """The same for a module inside this one."""
        return {name: getattr(self, name) for name in ViTModule.__dataclass_fields__ if name not in ("name", "parent")}

    def size_of(self, pixel_values: Array) -> tuple[int, ...]:
        """(height, width) of pixels."""
        return pixel_values.shape[2:] if self.channels_axis == 1 else pixel_values.shape[1:3]

    @property
    def kernel_init(self) -> Callable[..., Array]:
        """The initialiser of every other matrix than the patches': a member's table has one for all."""
        init = family_of(self.config).rows[LAYER + "output.dense"].init
        return normal(self.config.initializer_range, DRAWN[init])

    @nn.nowrap  # what makes layers is no call, which `nn.tabulate` would repeat
    def linear(self, features: int, use_bias: bool = True) -> nn.Dense:
        """A linear layer."""
        init = self.kernel_init
        return nn.Dense(features, use_bias, self.dtype, self.param_dtype, kernel_init=init, dot_general=product)

    @nn.nowrap
    def layer_norm(self) -> LayerNorm:
        """A LayerNorm with the configuration's epsilon."""
        return LayerNorm(self.config.layer_norm_eps, self.dtype, self.param_dtype)

    @nn.nowrap
    def weight(self, name: str) -> Array:
        """A raw parameter, by its name in the table, of the shape and with the start that it gives there."""
        spec = spec_of(self.config, name.format(0))
        param = self.param(spec.row.module.rpartition(".")[2], start(spec, self.config), spec.shape, self.param_dtype)
        return jax.lax.stop_gradient(param) if spec.row.fixed else param


def start(spec: Spec, config: ViTConfig) -> Callable[..., Array]:
    """The initialiser of a parameter, as its table says."""
    if spec.init == "sincos":
        return sines(config.grid, config.position_prefix)
    if spec.init == "xavier":
        return uniform(uniform_bound(spec))
    value = constant(spec, config)
    if value is None:
        return normal(config.initializer_range, DRAWN[spec.init])
    return nn.initializers.constant(value)
