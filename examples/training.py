"""What the training scripts share: their flags, and the folder of a run with its metrics, progress and picture."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from inspect import Signature, signature
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

import matplotlib
import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from vit_core.assets import DIGITS
from vit_core.files.disk import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EPOCHS, STEPS, CURVES, SETTINGS, CHECKPOINTS = "metrics.csv", "steps.csv", "curves.png", "settings.json", "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of every training script."""

    pictures: Annotated[Path, typer.Argument(exists=True, help="Folder of class folders, or CSV of file and label.")]
    out: Annotated[Path, typer.Option(help="Folder for the model, its checkpoints, metrics and curves.")]
    model: Annotated[str, typer.Option(help="Checkpoint to start from: file, folder or hub id.")] = str(DIGITS)
    image_size: Annotated[int | None, typer.Option(help="Train at this size instead of the checkpoint's.")] = None
    epochs: Annotated[int, typer.Option(min=1)] = 10
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step, over all devices and processes.")] = 32
    rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 5e-4
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps in which the rate rises.")] = 0.1
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.05
    clip: Annotated[float, typer.Option(min=1e-9, help="Largest norm of the gradient.")] = 1.0
    accumulate: Annotated[int, typer.Option(min=1, help="Cut a batch into parts, to save memory.")] = 1
    ema: Annotated[float, typer.Option(min=0, max=1, help="Average the weights with this decay; 0: do not.")] = 0.0
    precision: Annotated[str, typer.Option(help="float32, or bfloat16: compute in that, over float32 weights.")] = (
        "float32"
    )
    gradient_checkpointing: Annotated[bool, typer.Option(help="Recompute layers going back, to save memory.")] = False
    drop_path: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="How likely the last layer is skipped, the first ones less.")
    ] = None
    augment: Annotated[
        bool | None, typer.Option(help="Rotate, zoom and shift the pictures.", show_default="augment")
    ] = None
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = False
    parallel: Annotated[str, typer.Option(help="How devices share the work; see docs/scale.md.")] = "none"
    workers: Annotated[int | None, typer.Option(help="Threads that read pictures.", show_default="by cores")] = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "bfloat16"):
            raise typer.BadParameter(f"--precision must be float32 or bfloat16, got {self.precision}.")

    @property
    def augments(self) -> bool:
        """Whether pictures are rotated, zoomed, shifted and mirrored as they are read."""
        return self.augment is not False

    def warmup_steps(self, steps: int) -> int:
        """How many of the run's steps the learning rate rises."""
        return max(round(steps * self.warmup), 1)

    def first_rate(self, steps: int) -> float:
        """The learning rate of the first step, from which it rises."""
        return self.rate / self.warmup_steps(steps)


def command(train: Callable[[Any], None], settings: type[Any]) -> None:
    """Run a script: its flags are the fields of `settings`."""

    def main(**flags: Any) -> None:
        train(settings(**flags))

    hints = get_type_hints(settings, include_extras=True)
    flags = [p.replace(annotation=hints[name]) for name, p in signature(settings).parameters.items()]
    main.__signature__ = Signature(flags)
    main.__doc__ = train.__doc__
    typer.run(main)


class Run:
    """A training's folder and its progress, as a context; `main` is whether this process prints and writes.

    `done` epochs are in a checkpoint already. `steps` are those of an epoch. Ctrl-C ends the run after its step, and a
    second one at once: a framework may lose the exception of a signal in the middle of a step.
    """

    interrupted = False

    def __init__(self, settings: Settings, steps: int, done: int = 0, main: bool = True) -> None:
        self.out, self.main, self.epochs, self.steps, self.done = settings.out, main, settings.epochs, steps, done
        self.rows: dict[str, list[dict[str, Any]]] = {name: self._read(name, done) for name in (EPOCHS, STEPS)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, disable=not main)
        self.bar = self.progress.add_task("step", total=self.epochs * steps, completed=done * steps)
        self.writer = SummaryWriter(str(self.out), purge_step=done * steps + 1) if main else None
        if done:
            self.say(f"Resumed after epoch {done}")

    def __enter__(self) -> Self:
        self.progress.start()
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.progress.stop()
        if signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is KeyboardInterrupt:
            self.say(self._stopped())
        if self.writer is not None:
            self.writer.close()

    def _interrupt(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.interrupted = True

    def _stopped(self) -> str:
        """Where the run is, and how it goes on."""
        step = int(self.progress.tasks[self.bar].completed)
        epoch = min(step // self.steps + 1, self.epochs)
        where = f"Stopped after step {step} of {self.epochs * self.steps}, in epoch {epoch} of {self.epochs}"
        if step < self.steps:
            return f"{where}. Checkpoints are of whole epochs: the same command starts from the beginning."
        return f"{where}. The same command goes on from the checkpoint of the last whole epoch."

    def say(self, text: str) -> None:
        """Print a line, in the one process that does."""
        if self.main:
            self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def advance(self) -> None:
        """Move the bar on by one step. Raises KeyboardInterrupt after a Ctrl-C."""
        self.progress.advance(self.bar)
        if self.interrupted:
            raise KeyboardInterrupt

    def end_epoch(self, epoch: int, losses: Iterable[Any], rates: Iterable[Any], **metrics: float) -> None:
        """Write what an epoch gave, counted from 0: the loss and learning rate of each step, and its metrics.

        To be called before the epoch's checkpoint is written: a run that is resumed drops rows that are ahead of it.
        """
        if self.writer is None:
            return
        first = epoch * self.steps + 1
        new = [
            {"step": first + i, "epoch": epoch + 1, "loss": float(loss), "learning_rate": float(rate)}
            for i, (loss, rate) in enumerate(zip(losses, rates, strict=True))
        ]
        self.rows[STEPS] += new
        self.rows[EPOCHS].append({"epoch": epoch + 1, "loss": float(np.mean([r["loss"] for r in new])), **metrics})
        for row in new:
            for name in ("loss", "learning_rate"):
                self.writer.add_scalar(name, row[name], row["step"])
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, new[-1]["step"])
        for name, rows in self.rows.items():
            _write(self.out / name, rows)
        draw_curves(self.out / CURVES, self.rows[STEPS], self.rows[EPOCHS], self.steps)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.rows[EPOCHS][-1].items() if name != "epoch")
        self.say(f"epoch {epoch + 1} of {self.epochs}  {shown}")

    def _read(self, name: str, done: int) -> list[dict[str, Any]]:
        """The rows of the epochs that are done."""
        if not (done and (self.out / name).exists()):
            return []
        with (self.out / name).open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        whole = [{k: int(v) if k in ("epoch", "step") else v for k, v in row.items()} for row in rows]
        return [row for row in whole if row["epoch"] <= done]


def begun(settings: Settings) -> bool:
    """Whether the folder holds this run already. Raises typer.BadParameter where it holds one with other settings."""
    known, stated = settings.out / SETTINGS, json.loads(json.dumps(asdict(settings), default=str))
    if not known.exists():
        return False
    before = json.loads(known.read_text())
    free = ("out", "workers", "parallel")
    if changed := [n for n in stated if n not in free and stated[n] != before.get(n)]:
        flags = ", ".join(f"{n}={before.get(n)!r}, not {stated[n]!r}" for n in changed)
        raise typer.BadParameter(
            f"{settings.out} holds a run with {flags}: pass the same to resume it, or another --out."
        )
    return True


def begin(settings: Settings, model: Any, processor: Any, main: bool = True) -> Path:
    """The folder of the run's checkpoints, with all that a model is made of but its weights.

    Raises typer.BadParameter where the folder holds a run with other settings.
    """
    begun(settings)
    folder = (settings.out / CHECKPOINTS).absolute()
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        model.config.copy(architectures=[model.architecture]).save_pretrained(folder)
        processor.save_pretrained(folder)
        write_atomically(settings.out / SETTINGS, json.dumps(asdict(settings), default=str, indent=2).encode())
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def draw_curves(path: Path, steps: list[dict[str, Any]], epochs: list[dict[str, Any]], per_epoch: int) -> None:
    """Draw losses, metrics and the learning rate over the steps of a run."""
    metrics = [name for name in epochs[0] if name not in ("epoch", "loss", "val_loss")]
    figure, axes = plt.subplots(1, 2 + len(metrics), figsize=(4.5 * (2 + len(metrics)), 3.5), layout="constrained")
    numbers = [row["step"] for row in steps]
    ends = [row["epoch"] * per_epoch for row in epochs]
    axes[0].plot(numbers, [row["loss"] for row in steps], linewidth=1, label="training")
    if "val_loss" in epochs[0]:
        axes[0].plot(ends, [row["val_loss"] for row in epochs], marker="o", label="validation")
    axes[0].set_title("loss")
    axes[0].legend()
    for axis, name in zip(axes[1:], metrics, strict=False):
        axis.plot(ends, [row[name] for row in epochs], marker="o", color="C1")
        axis.set_title(name)
    axes[-1].plot(numbers, [row["learning_rate"] for row in steps], color="C2")
    axes[-1].set_title("learning rate")
    for axis in axes:
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)
