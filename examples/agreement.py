"""Train one small ViT on handwritten digits in every framework that is installed, from the same seed and on the same
batches, and show how far the runs part: largest differences as a table, curves of the losses as a picture.

python examples/agreement.py --out agreement.png
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import matplotlib
import numpy as np
import typer
from digits import load_split
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vit_core.app.backends import BACKENDS
from vit_core.config import ViTConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OPTIMIZERS = {"sgd": "SGD with momentum", "adamw": "AdamW"}
RATES, MOMENTUM = {"sgd": 0.05, "adamw": 3e-3}, 0.9
BETAS, EPSILON, DECAY = (0.9, 0.999), 1e-8, 0.05
STEPS, BATCH, SEED = 50, 32, 0
STYLES: dict[str, dict[str, Any]] = {  # the first is wide and pale; the dashes of the others alternate on top of it
    "torch": {"label": "PyTorch", "color": "#f2c179", "linewidth": 7, "solid_capstyle": "round"},
    "tf": {"label": "TensorFlow", "color": "#c0392b", "linewidth": 1.8, "linestyle": (0, (5, 5))},
    "flax": {"label": "JAX", "color": "#1f4e79", "linewidth": 1.8, "linestyle": (5, (5, 5))},
}

Batch = tuple[np.ndarray, np.ndarray]  # pixels (B, 1, 8, 8), classes (B,)


class Run(NamedTuple):
    """The loss of every step (n,), float64, and the weights after the last by canonical name, in PyTorch's layout."""

    losses: np.ndarray
    weights: dict[str, np.ndarray]


def config() -> ViTConfig:
    """A small classifier of 8x8 digits, without dropout."""
    return ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        initializer_range=0.2,  # so that a model this narrow learns within 50 steps
    )


def load_batches(dtype: str, steps: int) -> list[Batch]:
    """The batches of a run, pixels from -1 to 1: the same in the same order whenever they are asked for."""
    data = load_split()[0]
    pixels = (data.pictures[:, None] / 127.5 - 1).astype(dtype)
    drawn = np.random.default_rng(SEED).integers(len(pixels), size=(steps, BATCH))
    return [(pixels[index], data.labels[index].astype(np.int64)) for index in drawn]


def train_torch(batches: Sequence[Batch], optimizer: str, dtype: str, tick: Callable[[], Any]) -> Run:
    """Train vit_torch with torch.optim; `tick` is called after every step."""
    import torch

    from vit_torch import ViTForImageClassification

    model = ViTForImageClassification(config(), seed=SEED).to(getattr(torch, dtype)).train()
    rate = RATES[optimizer]
    update: torch.optim.Optimizer = (
        torch.optim.SGD(model.parameters(), rate, MOMENTUM)
        if optimizer == "sgd"
        else torch.optim.AdamW(model.parameters(), rate, BETAS, EPSILON, DECAY)
    )
    losses = []
    for pixels, labels in batches:
        loss = model(torch.from_numpy(pixels), labels=torch.from_numpy(labels)).loss
        update.zero_grad()
        loss.backward()
        update.step()
        losses.append(loss.item())
        tick()
    return finished(model, losses)


def train_tf(batches: Sequence[Batch], optimizer: str, dtype: str, tick: Callable[[], Any]) -> Run:
    """Train vit_tf with keras.optimizers; `tick` is called after every step.

    Keras rounds Python numbers, and the variable of a fixed learning rate, to float32 whatever the variables' dtype:
    NumPy's float64, and a rate that is asked for, stay what they are.
    """
    import keras
    import tensorflow as tf

    from vit_tf import TFViTForImageClassification

    model = TFViTForImageClassification(config(), seed=SEED, dtype=dtype)
    number = np.float64 if dtype == "float64" else float
    momentum, *betas, decay = map(number, (MOMENTUM, *BETAS, DECAY))

    def rate() -> float:
        return number(RATES[optimizer])

    update = (
        keras.optimizers.SGD(rate, momentum)
        if optimizer == "sgd"
        else keras.optimizers.AdamW(rate, decay, *betas, EPSILON)
    )
    variables = model.trainable_variables
    update.build(variables)

    @tf.function
    def step(pixels: tf.Tensor, labels: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model(pixels, labels=labels, training=True).loss
        update.epsilon = epsilon
        update.apply(tape.gradient(loss, variables), variables)
        return loss

    losses = []
    for i, (pixels, labels) in enumerate(batches, 1):
        # Keras adds epsilon to the root of the second moment before its bias is corrected, the others after.
        epsilon = EPSILON * (1 - BETAS[1] ** i) ** 0.5
        losses.append(float(step(pixels, labels, tf.constant(epsilon, dtype))))
        tick()
    return finished(model, losses)


def train_flax(batches: Sequence[Batch], optimizer: str, dtype: str, tick: Callable[[], Any]) -> Run:
    """Train vit_flax with optax; `tick` is called after every step. float64 turns on JAX's x64 for the process."""
    import jax
    import optax

    from vit_flax import FlaxViTForImageClassification

    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    model = FlaxViTForImageClassification(config(), seed=SEED, dtype=dtype)
    rate = RATES[optimizer]
    update = (
        optax.sgd(rate, MOMENTUM) if optimizer == "sgd" else optax.adamw(rate, *BETAS, eps=EPSILON, weight_decay=DECAY)
    )

    def loss_of(params: Any, pixels: jax.Array, labels: jax.Array) -> jax.Array:
        return model.module.apply({"params": params}, pixels, labels=labels, train=True).loss

    @jax.jit
    def step(params: Any, state: Any, pixels: jax.Array, labels: jax.Array) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, pixels, labels)
        updates, state = update.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = update.init(model.params), []
    for pixels, labels in batches:
        model.params, state, loss = step(model.params, state, pixels, labels.astype(np.int32))
        losses.append(float(loss))
        tick()
    return finished(model, losses)


def finished(model: Any, losses: list[float]) -> Run:
    """What is compared of a trained model."""
    return Run(np.array(losses), {name: np.array(tensor.read()) for name, tensor in model.to_tensors().items()})


TRAIN = {"torch": train_torch, "tf": train_tf, "flax": train_flax}


def loss_differences(run: Run, other: Run) -> np.ndarray:
    """How far the losses are from the other run's, relative to them, step by step."""
    return np.abs(run.losses - other.losses) / other.losses


def weight_difference(run: Run, other: Run, key_biases: bool = True) -> float:
    """The largest difference of a weight, relative to the largest of the other run's, with or without keys' biases.

    The softmax cancels them: their gradient is rounding alone, which AdamW divides by its own size.
    """
    compared = {n: w for n, w in other.weights.items() if key_biases or not n.endswith("key.bias")}
    apart = max(np.abs(run.weights[name] - weight).max() for name, weight in compared.items())
    return float(apart / max(np.abs(weight).max() for weight in compared.values()))


def train_all(names: Sequence[str], dtype: str, steps: int) -> dict[str, dict[str, Run]]:
    """Every optimizer's run in each of the backends, with a progress bar on stderr."""
    batches = load_batches(dtype, steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    runs: dict[str, dict[str, Run]] = {optimizer: {} for optimizer in OPTIMIZERS}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(names) * len(OPTIMIZERS) * steps)
        for name in names:
            for optimizer, title in OPTIMIZERS.items():
                progress.update(bar, description=f"{STYLES[name]['label']}, {title}")
                runs[optimizer][name] = TRAIN[name](batches, optimizer, dtype, lambda: progress.advance(bar))
    return runs


def plot(runs: dict[str, dict[str, Run]], out: Path) -> None:
    """Draw the curves of the losses on each other, and below them how far each is from the first."""
    figure, axes = plt.subplots(
        2, len(runs), figsize=(11, 6), sharex=True, sharey="row", layout="constrained", height_ratios=(3, 2)
    )
    top = 1.1 * max(run.losses.max() for found in runs.values() for run in found.values())
    for (upper, lower), (optimizer, found) in zip(axes.T, runs.items(), strict=True):
        first = next(iter(found))
        steps = np.arange(1, len(found[first].losses) + 1)
        for name, run in found.items():
            upper.plot(steps, run.losses, **STYLES[name])
            if name != first:
                apart = loss_differences(run, found[first])
                lower.plot(steps, np.where(apart, apart, np.nan), **STYLES[name] | {"linestyle": "-", "marker": "."})
        upper.set(title=f"{OPTIMIZERS[optimizer]}, learning rate {RATES[optimizer]:g}", ylim=(0, top))
        upper.legend(frameon=False, handlelength=4)
        lower.set(xlabel="step (no point: equal to the bit)", yscale="log")
        for axis in (upper, lower):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("loss")
    axes[1, 0].set_ylabel(f"difference to {STYLES[first]['label']},\nrelative to the loss")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def compared(runs: dict[str, dict[str, Run]]) -> list[dict[str, Any]]:
    """A row for each run: its last loss, and how far it is from that of the first backend."""
    return [
        {
            "optimizer": optimizer,
            "backend": name,
            "last_loss": float(run.losses[-1]),
            "losses_apart": float(loss_differences(run, first).max()),
            "weights_apart": weight_difference(run, first, key_biases=False),
        }
        for optimizer, found in runs.items()
        for first in [next(iter(found.values()))]
        for name, run in found.items()
    ]


def main(
    out: Annotated[Path, typer.Option(help="The picture of the curves.")] = Path("agreement.png"),
    steps: Annotated[int, typer.Option(min=1)] = STEPS,
    as_json: Annotated[bool, typer.Option("--json", help="Print losses and differences as JSON.")] = False,
) -> None:
    """Train with SGD and AdamW in float32, and compare losses and final weights with those of the first backend."""
    needed = {name: (*BACKENDS[name], *(["optax"] if name == "flax" else [])) for name in TRAIN}
    names = [name for name, modules in needed.items() if all(map(find_spec, modules))]
    skipped = [name for name in TRAIN if name not in names]
    if not names:
        raise SystemExit('No backend is installed: pip install "vit-trio[torch,examples]", or with tf or flax.')
    runs = train_all(names, "float32", steps)
    rows = compared(runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    plot(runs, out)
    if as_json:
        losses = {o: {n: run.losses.tolist() for n, run in found.items()} for o, found in runs.items()}
        print(json.dumps({"compared_with": names[0], "skipped": skipped, "runs": rows, "losses": losses}))
        return
    table = Table("Optimizer", "Backend", "Last loss", "Losses apart", "Weights apart", box=None)
    for row in rows:
        apart = ["" if row["backend"] == names[0] else f"{row[key]:.1e}" for key in ("losses_apart", "weights_apart")]
        table.add_row(OPTIMIZERS[row["optimizer"]], STYLES[row["backend"]]["label"], f"{row['last_loss']:.6f}", *apart)
    Console().print(table)
    first = STYLES[names[0]]["label"]
    Console().print(
        f"Apart: the largest difference to {first} over {steps} steps in float32, relative to the loss of the step "
        "and to the largest weight, keys' biases aside.",
        highlight=False,
    )
    print(f"The curves are in {out}.")
    if skipped:
        print(f"Skipped, not installed: {', '.join(skipped)}.")


if __name__ == "__main__":
    typer.run(main)
