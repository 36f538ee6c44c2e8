"""Train a ViT on handwritten digits with jit and optax. A run that is stopped, even by `kill -9`, is taken up again by
the same command from its last Orbax checkpoint, and ends as it would have ended.

python examples/jax_train.py --out my-digits
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import optax
import orbax.checkpoint as ocp
import typer
from digits import Split
from jax_common import State, Step, accuracy, batches, load_digits, make_step, new_model
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def train(
    step: Step, state: State, data: Split, manager: ocp.CheckpointManager, epochs: int, batch: int, seed: int
) -> State:
    """The state after all epochs, those before the last checkpoint left out; a checkpoint after each."""
    done = manager.latest_step() or 0
    if done:
        state = manager.restore(done, args=ocp.args.StandardRestore(state))
        print(f"Resumed after epoch {done}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("epoch", total=epochs, completed=done)
        for epoch in range(done, epochs):
            losses = []
            for each in batches(data, batch, seed, epoch):
                state, loss = step(state, each)
                losses.append(loss)
            manager.save(epoch + 1, args=ocp.args.StandardSave(state))
            progress.update(bar, advance=1, description=f"epoch, loss {sum(losses) / len(losses):.3f}")
    return state


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model; its checkpoints stand in checkpoints/.")],
    epochs: int = 60,
    batch: int = 64,
    rate: float = 2e-3,
    decay: float = 0.05,
    seed: int = 0,
) -> None:
    """Train, measure once on the held-out fifth, and write an ordinary Hugging Face folder."""
    training, held_out, processor = load_digits()
    model = new_model(seed)
    schedule = optax.cosine_onecycle_schedule(epochs * (len(training.labels) // batch), rate)
    optimizer = optax.adamw(schedule, weight_decay=decay)
    state = {"params": model.params, "optimizer": optimizer.init(model.params)}
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager((out / "checkpoints").absolute(), options=options) as manager:
        step = make_step(model.module, optimizer)
        model.params = train(step, state, training, manager, epochs, batch, seed)["params"]
    print(f"Held-out accuracy: {accuracy(model, held_out):.2%} of {len(held_out.labels)}")
    model.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
