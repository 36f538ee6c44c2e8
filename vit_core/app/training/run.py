"""The folder of a run: its settings, metrics, progress and curves."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from time import monotonic
from typing import Any, Self

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vit_core.app.training.drawing import draw_curves
from vit_core.app.training.libraries import library
from vit_core.config import AutoConfig
from vit_core.files.disk import write_atomically
from vit_core.training import Settings

EPOCHS, STEPS, CURVES, SETTINGS, CHECKPOINTS = "metrics.csv", "steps.csv", "curves.png", "settings.json", "checkpoints"
REDRAWN = 5.0  # seconds after which the curves are drawn anew, which takes half of one: at the end they are in any case


class Run:
    """A training's folder and its progress, as a context; `main` is whether this process prints and writes.

    `done` epochs are in a checkpoint already. `steps` are those of an epoch. Ctrl-C ends the run after its step, and a
    second one at once: a framework may lose the exception of a signal in the middle of a step.
    """

    interrupted = False

    def __init__(self, settings: Settings, steps: int, done: int = 0, main: bool = True) -> None:
        self.out, self.main, self.epochs, self.steps, self.done = settings.out, main, settings.epochs, steps, done
        self.rate, self.precision = settings.rate, settings.precision
        self.rows: dict[str, list[dict[str, Any]]] = {name: self._read(name, done) for name in (EPOCHS, STEPS)}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, disable=not main)
        self.bar = self.progress.add_task("step", total=self.epochs * steps, completed=done * steps)
        writer = library("tensorboardX").SummaryWriter
        self.writer = writer(str(self.out), purge_step=done * steps + 1) if main else None
        self.drawn = monotonic()
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
            with suppress(OSError):  # of a full disk, which the run has told
                self.writer.close()
            with suppress(*((OSError,) if kind else ())):  # likewise; but at the end of a whole run it is an error
                self._draw()

    def _draw(self) -> None:
        """Draw the curves of the epochs that there are."""
        if epochs := self.rows[EPOCHS]:
            draw_curves(self.out / CURVES, self.rows[STEPS], epochs, self.steps)
        self.drawn = monotonic()

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
        Raises FloatingPointError, and writes nothing, where a metric is not finite. The loss of a step may be so in
        float16, which does not take that step.
        """
        losses = [*losses]
        if not np.isfinite([*metrics.values()]).all():
            shown = ", ".join(f"{name} {value:g}" for name, value in {"loss": np.mean(losses), **metrics}.items())
            before = f"; the checkpoint of epoch {epoch} stays in {self.out / CHECKPOINTS}" if epoch else ""
            wider = ", or --precision bfloat16 or float32," if self.precision == "float16" else ""
            raise FloatingPointError(
                f"The training diverged in epoch {epoch + 1} of {self.epochs}, which is not kept{before}: {shown}. "
                f"Pass a lower --rate than {self.rate:g}{wider} and another --out."
            )
        first = epoch * self.steps + 1
        new = [
            {"step": first + i, "epoch": epoch + 1, "loss": float(loss), "learning_rate": float(rate)}
            for i, (loss, rate) in enumerate(zip(losses, rates, strict=True))
        ]
        self.rows[STEPS] += new
        self.rows[EPOCHS].append({"epoch": epoch + 1, "loss": float(np.mean([r["loss"] for r in new])), **metrics})
        if self.writer is None:
            return
        for row in new:
            for name in ("loss", "learning_rate"):
                self.writer.add_scalar(name, row[name], row["step"])
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, new[-1]["step"])
        for name, rows in self.rows.items():
            _write(self.out / name, rows)
        if monotonic() > self.drawn + REDRAWN:
            self._draw()
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.rows[EPOCHS][-1].items() if name != "epoch")
        self.say(f"epoch {epoch + 1} of {self.epochs}  {shown}")

    def best(self) -> dict[str, Any]:
        """The row of the best epoch so far: the most accurate, and of those the one of the lowest validation loss."""
        return max(self.rows[EPOCHS], key=lambda row: (row.get("val_accuracy", 0), -row["val_loss"]))

    def _read(self, name: str, done: int) -> list[dict[str, Any]]:
        """The rows of the epochs that are done. Raises ValueError where the main process finds none."""
        path = self.out / name
        if not done or not (self.main or path.exists()):
            return []
        if not path.exists():
            raise ValueError(
                f"{path} is missing, and the run resumes after epoch {done}: put it back, or pass another --out."
            )
        with path.open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        whole = [{k: int(v) if k in ("epoch", "step") else v for k, v in row.items()} for row in rows]
        return [row for row in whole if row["epoch"] <= done]


def begun(settings: Settings, **others: str) -> bool:
    """Whether the folder holds this run already. Raises ValueError where it holds one with other settings.

    others: what is written beside them.
    """
    known, stated = settings.out / SETTINGS, json.loads(json.dumps({**asdict(settings), **others}, default=str))
    if not known.exists():
        return False
    defaults = {each.name: each.default for each in fields(settings)}  # of flags that are newer than the run
    before = others | defaults | json.loads(known.read_text(encoding="utf-8"))
    free = ("out", "workers", "prefetch", "parallel")
    if changed := [n for n in stated if n not in free and stated[n] != before[n]]:
        flags = ", ".join(f"{n}: {before[n]!r}, not {stated[n]!r}" for n in changed)
        raise ValueError(f"{settings.out} holds a run with {flags}: pass the same to resume it, or another --out.")
    return True


def begin(settings: Settings, model: Any, processor: Any, backend: str, main: bool = True) -> Path:
    """The folder of the run's checkpoints, with all that a model is made of but its weights.

    Raises ValueError where the folder holds a run with other settings, of another backend or of other classes.
    """
    folder = (settings.out / CHECKPOINTS).absolute()
    if begun(settings, backend=backend):
        before, now = (list(each.id2label.values()) for each in (AutoConfig.from_pretrained(folder), model.config))
        if before != now:
            raise ValueError(
                f"{settings.out} holds a run with the classes {', '.join(before)}, not {', '.join(now)}: give it the "
                "same to resume it, or pass another --out."
            )
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        model.config.copy(architectures=[model.architecture]).save_pretrained(folder)
        processor.save_pretrained(folder)
        stated = {"backend": backend, **asdict(settings)}
        write_atomically(settings.out / SETTINGS, json.dumps(stated, default=str, indent=2).encode())
    return folder


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
