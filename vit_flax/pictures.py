"""Pictures in JAX: what prepares them as the image processor does it, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from vit_core.pictures.graph import PictureOperations

OPERATIONS = PictureOperations(
    lengths=lambda x: x.shape,
    larger=jax.core.max_dim,
    scalar=lambda length: jnp.asarray(length).astype(jnp.float64),
    count=lambda length: jnp.arange(length, dtype=jnp.float64),
    floor=jnp.floor,
    sin=jnp.sin,
    where=jnp.where,
    total=lambda x: x.sum(-1, keepdims=True),
    largest=lambda x: x.max(initial=0.0),
    running=lambda x: jax.lax.scan(lambda total, each: (total + each,) * 2, jnp.zeros((), x.dtype), x)[1],
    either=jax.lax.cond,
    reshape=jnp.reshape,
    transpose=jnp.transpose,
    take=lambda x, places: x[places.astype(jnp.int32)],
    wide=lambda x: x.astype(jnp.float64),
    narrow=lambda x: x.astype(jnp.uint8),
    single=lambda x: x.astype(jnp.float32),
    constant=jnp.asarray,
)
