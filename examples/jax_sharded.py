"""Data and tensor parallel training: jit over a mesh of devices, the parameters split as `partition_specs` says.

The step is written for one device; where the arrays lie is all that makes it parallel. On a machine without
accelerators the processor plays the devices.

python examples/jax_sharded.py --data 4 --tensor 2
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Annotated

import jax
import numpy as np
import optax
import typer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax_common import accuracy, batches, load_digits, make_step, new_model

from vit_flax.sharding import partition_specs


def main(
    data: Annotated[int, typer.Option(help="How many groups of devices share a batch.")] = 4,
    tensor: Annotated[int, typer.Option(help="How many devices of a group share the parameters.")] = 2,
    steps: int = 200,
    batch: Annotated[int, typer.Option(help="Pictures in a batch, over all devices.")] = 64,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train for a number of steps, print the loss of each, and measure on the held-out fifth."""
    jax.config.update("jax_num_cpu_devices", data * tensor)  # for the processor only
    mesh = Mesh(np.reshape(jax.devices()[: data * tensor], (data, tensor)), ("data", "model"))
    training, held_out, _ = load_digits()
    model = new_model(seed)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, rate), weight_decay=0.05)
    params = jax.device_put(model.params, jax.tree.map(partial(NamedSharding, mesh), partition_specs(model, "model")))
    state = {"params": params, "optimizer": optimizer.init(params)}
    step = make_step(model.module, optimizer)
    by_picture = NamedSharding(mesh, PartitionSpec("data"))
    epochs = range(-(-steps // (len(training.labels) // batch)))
    stream = chain.from_iterable(batches(training, batch, seed, epoch) for epoch in epochs)
    for number, each in zip(range(steps), stream, strict=False):
        state, loss = step(state, jax.device_put(each, by_picture))
        print(f"step {number}: loss {loss:.8f}")
    kernel = state["params"]["vit"]["encoder"]["layer"]["0"]["intermediate"]["dense"]["kernel"]
    print(f"Each device holds {kernel.sharding.shard_shape(kernel.shape)} of an MLP kernel of {kernel.shape}")
    model.params = jax.device_get(state["params"])
    print(f"Held-out accuracy: {accuracy(model, held_out):.2%} of {len(held_out.labels)}")


if __name__ == "__main__":
    typer.run(main)
