"""Data parallel training with pmap: each device takes its share of every batch, and the gradients are averaged.

On a machine without accelerators the processor plays eight devices.

python examples/jax_pmap.py --devices 8
"""

from __future__ import annotations

from functools import partial
from itertools import chain
from typing import Annotated, Any

import jax
import optax
import typer
from jax_common import State, accuracy, batches, load_digits, loss_of, new_model, updated


def make_step(module: Any, optimizer: optax.GradientTransformation, devices: int) -> Any:
    """A function of (state, batch split by device) that gives (state after the batch, its loss)."""

    @partial(jax.pmap, axis_name="devices", in_axes=(None, 0, 0, 0), out_axes=None, devices=jax.devices()[:devices])
    def step(state: State, pixels: jax.Array, labels: jax.Array, keys: jax.Array) -> tuple[State, jax.Array]:
        found = jax.value_and_grad(partial(loss_of, module))(state["params"], pixels, labels, keys)
        loss, gradients = jax.tree.map(lambda x: jax.lax.psum(x, "devices") / devices, found)
        return updated(optimizer, state, gradients), loss

    return step


def main(
    devices: Annotated[int, typer.Option(help="How many devices share a batch.")] = 8,
    steps: int = 200,
    batch: Annotated[int, typer.Option(help="Pictures in a batch, over all devices.")] = 64,
    rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train for a number of steps, print the loss of each, and measure on the held-out fifth."""
    jax.config.update("jax_num_cpu_devices", devices)  # for the processor only
    if len(jax.devices()) < devices or batch % devices:
        there = len(jax.devices())
        raise typer.BadParameter(f"--devices {devices}: give at most {there}, and a divisor of --batch {batch}.")
    training, held_out, _ = load_digits()
    model = new_model(seed)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, rate), weight_decay=0.05)
    state = {"params": model.params, "optimizer": optimizer.init(model.params)}
    step = make_step(model.module, optimizer, devices)
    epochs = range(-(-steps // (len(training.labels) // batch)))
    stream = chain.from_iterable(batches(training, batch, seed, epoch) for epoch in epochs)
    for number, each in zip(range(steps), stream, strict=False):
        state, loss = step(state, *(x.reshape(devices, -1, *x.shape[1:]) for x in each))
        print(f"step {number}: loss {loss:.8f}")
    model.params = jax.device_get(state["params"])
    print(f"Held-out accuracy: {accuracy(model, held_out):.2%} of {len(held_out.labels)}")


if __name__ == "__main__":
    typer.run(main)
