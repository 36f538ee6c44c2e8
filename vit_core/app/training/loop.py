"""A training, whatever it trains and in which framework: the steps of its loop, and the loop."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import partial
from shutil import disk_usage
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from vit_core.app.backends import import_engine
from vit_core.app.training.batches import Loader
from vit_core.app.training.dataset import Pictures
from vit_core.app.training.run import EPOCHS, Run, begin
from vit_core.training import Settings

_FULL = 1 << 20  # bytes: a disk with fewer has no room for a checkpoint
S = TypeVar("S", bound=Settings)


class Place(Protocol):
    """What there is of a framework's processes."""

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    @property
    def main(self) -> bool: ...

    def total(self, sums: np.ndarray) -> np.ndarray: ...


class Training(ABC, Generic[S]):
    """What one process does in an epoch of a training, and at its end.

    A subclass opens the model, the pictures and the loader, and says which loss and which output of the model count.
    `run` is the folder of the run and its progress, a context.
    """

    drawing: ClassVar[tuple[str, str]]  # the file that `draw` writes to the folder of the run, and what it is

    def __init__(
        self,
        settings: S,
        backend: str,
        place: Place,
        model: Any,
        loader: Loader,
        pictures: Pictures,
        held_out: Pictures,
        loss: Callable[..., Any],
        output: Callable[..., Any],
        **options: Any,
    ) -> None:
        """options: of the engine's `Trainer`."""
        self.settings, self.place, self.loader = settings, place, loader
        self.pictures, self.held_out = pictures, held_out
        steps = loader.steps(pictures)
        folder = begin(settings, model, loader.processor, backend, place.main)
        self.trainer = import_engine(backend).Trainer(model, loss, settings, place, folder, steps, **options)
        self.predict = partial(self.trainer.predict, output)
        self.run = Run(settings, steps, self.trainer.resume(), place.main)

    @abstractmethod
    def batches(self, epoch: int) -> Iterable[Any]:
        """The arrays of each part of an epoch."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """What is measured on the held-out pictures."""

    @abstractmethod
    def draw(self) -> None:
        """Draw what the model makes of held-out pictures."""

    @abstractmethod
    def following(self) -> str:
        """The command that is to be typed next."""

    @property
    def epochs(self) -> range:
        """The numbers, from 0, of the epochs that are not done."""
        return range(self.run.done, self.settings.epochs)

    def train(self, epoch: int) -> tuple[list[float], list[float]]:
        """Train for an epoch; returns the loss and the learning rate of each step."""
        found: tuple[list[float], list[float]] = self.trainer.epoch(self.batches(epoch), self.run.advance)
        return found

    def save(self, epoch: int) -> None:
        """Write a checkpoint after an epoch, and the model where the best one is kept and this is it.

        Raises OSError for a disk that is full, of which each framework has another error.
        """
        if self.settings.keep == "best" and self.run.best()["epoch"] == epoch + 1:
            self._keep()
        try:
            self.trainer.save(epoch + 1)
        except BaseException as error:  # PyTorch's of checkpoints is no Exception, nor does it say why
            full = os.strerror(errno.ENOSPC) in str(error) or disk_usage(self.settings.out).free < _FULL
            if isinstance(error, KeyboardInterrupt) or not full:
                raise
            raise OSError(
                f"The disk is full, and the checkpoint of epoch {epoch + 1} not written to {self.settings.out}. Where "
                "there is room, the same command goes on from the last whole one, or else from the beginning."
            ) from error

    def finish(self) -> dict[str, Any]:
        """Write the model where the last one is kept. Returns what came of the run, of which it says the end."""
        if self.settings.keep == "last":
            self._keep()
        (file, what), out = self.drawing, self.settings.out
        drawn = out / file
        rows, best = self.run.rows[EPOCHS], self.run.best()
        kept = best if self.settings.keep == "best" else rows[-1]
        metric = "val_accuracy" if "val_accuracy" in best else "val_loss"
        others = "" if kept == best else f"; the last one's model is kept, {metric} {kept[metric]:.4f}"
        self.run.say(f"Best epoch: {best['epoch']} of {self.settings.epochs}, {metric} {best[metric]:.4f}{others}.")
        if drawn.exists():
            self.run.say(f"{what}: {drawn}")
        self.run.say(f"Next: {self.following()}")
        return {
            "model": self.settings.model,
            "out": str(out),
            "pictures": {"training": len(self.pictures.paths), "validation": len(self.held_out.paths)},
            "classes": self.pictures.classes,
            "epochs": [{key: value if np.isfinite(value) else None for key, value in row.items()} for row in rows],
            "best_epoch": best["epoch"],
            "kept_epoch": kept["epoch"],
            drawn.stem: str(drawn) if drawn.exists() else None,
        }

    def _keep(self) -> None:
        self.trainer.export(self.settings.out)
        if self.place.main:
            self.loader.processor.save_pretrained(self.settings.out)
        self.draw()


def run(kind: Callable[[S, str, Place], Training[S]], settings: S, backend: str) -> dict[str, Any] | None:
    """A training from its first step, or its last checkpoint, to its end, by one process of those that were started.

    Returns what `Training.finish` does, in the one process that prints and writes.
    """
    with import_engine(backend).processes(settings) as place:
        found = _epochs(kind(settings, backend, place))
        return found if place.main else None


def _epochs(training: Training[Any]) -> dict[str, Any]:
    """In a function of its own: what is left of a sharded model when its processes part keeps threads alive."""
    with training.run as run:
        for epoch in training.epochs:
            losses, rates = training.train(epoch)
            run.end_epoch(epoch, losses, rates, **training.validate())
            training.save(epoch)
    return training.finish()
