"""StableHLO: a program that JAX runs without this package, on processors, GPUs and TPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax import export as jax_export

try:
    from jax import enable_x64
except ImportError:  # before JAX 0.8
    from jax.experimental import enable_x64  # type: ignore[attr-defined,no-redef]

from vit_core.config import pair
from vit_core.exports import Exported, Operations
from vit_flax.pictures import OPERATIONS as PICTURES

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN = ("rows >= 2", "columns >= 2", "4*rows*columns - 2*rows - 2*columns >= -1")  # the last JAX can't tell by itself
OPERATIONS = Operations(
    wide=lambda x: x.astype(jnp.float32),
    functions={"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid, "none": lambda x: x},
    best=lambda x: (x.argmax(-1), x.max(-1)),
)


def outputs(model: Any, wanted: Exported, pixel_values: Array) -> dict[str, Array]:
    """A model's outputs by name for pixels (B, C, H, W) in float32."""
    call = partial(model.module.apply, {"params": model.params}, pixel_values)
    return wanted.compute(model.config, OPERATIONS, call, partial(call, method="features"))


def export(model: Any, path: Path, target: str, wanted: Exported) -> None:
    """Write a model as "stablehlo": what `jax.export.deserialize` reads, its weights inside."""
    batch, channels = "batch" if wanted.any_batch else "1", model.config.num_channels
    if wanted.preparation:
        shape = jax_export.symbolic_shape(f"{batch}, height, width, {channels}")
        given = jax.ShapeDtypeStruct(shape, jnp.uint8)
    else:
        (height, width), (ph, pw) = wanted.pixel_size(model.config), pair(model.config.patch_size)
        sizes = f"{ph}*rows, {pw}*columns" if wanted.any_size else f"{height}, {width}"
        known = KNOWN if wanted.any_size else ()
        shape = jax_export.symbolic_shape(f"{batch}, {channels}, {sizes}", constraints=known)
        given = jax.ShapeDtypeStruct(shape, jnp.float32)

    def function(given: Array) -> dict[str, Array]:
        pixels = wanted.preparation(PICTURES, given) if wanted.preparation else given
        with enable_x64(False):
            return outputs(model, wanted, pixels)

    with enable_x64(bool(wanted.preparation)):  # a picture's weights are float64, what the model computes is not
        path.write_bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(given).serialize())
