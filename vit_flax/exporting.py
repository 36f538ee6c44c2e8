"""StableHLO: a program that JAX runs without this package, on processors, GPUs and TPUs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax import export as jax_export

from vit_core.config import pair
from vit_core.exports import Exported, Operations

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
    (height, width), (ph, pw) = pair(model.config.image_size), pair(model.config.patch_size)
    sizes = [f"{ph}*rows", f"{pw}*columns"] if wanted.any_size else [str(height), str(width)]
    batch = "batch" if wanted.any_batch else "1"
    axes = ", ".join([batch, str(model.config.num_channels), *sizes])
    shape = jax_export.symbolic_shape(axes, constraints=KNOWN if wanted.any_size else ())
    function = jax.jit(lambda pixel_values: outputs(model, wanted, pixel_values))
    pixels = jax.ShapeDtypeStruct(shape, jnp.float32)
    path.write_bytes(jax_export.export(function, platforms=PLATFORMS)(pixels).serialize())
