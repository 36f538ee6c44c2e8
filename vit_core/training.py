"""What a training is told, whatever it trains and in which framework."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from vit_core.assets import DIGITS

LOSS_SCALE = 2.0**16  # by which a loss in float16 is multiplied at first; halved where gradients are not finite
Item = TypeVar("Item")
Out = Annotated[Path, typer.Option(help="Folder for the model, its checkpoints, metrics and curves.")]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of every training. Raises ValueError for a value that no training takes."""

    pictures: Annotated[
        Path, typer.Argument(metavar="FOLDER", exists=True, help="Of class folders, or a CSV of file and label.")
    ]
    out: Out
    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="Checkpoint to start from: file, folder or hub id.", show_default="the digits demo"
        ),
    ] = str(DIGITS)
    image_size: Annotated[int | None, typer.Option(help="Train at this size instead of the checkpoint's.")] = None
    epochs: Annotated[int, typer.Option(min=1)] = 10
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures a step, over all devices and processes.")] = 32
    rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 5e-4
    warmup: Annotated[float, typer.Option(min=0, max=1, help="Share of the steps in which the rate rises.")] = 0.1
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.05
    clip: Annotated[float, typer.Option(min=1e-9, help="Largest norm of the gradient.")] = 1.0
    accumulate: Annotated[int, typer.Option(min=1, help="Cut a batch into parts, to save memory.")] = 1
    ema: Annotated[float, typer.Option(min=0, max=1, help="Average the weights with this decay; 0: do not.")] = 0.0
    precision: Annotated[
        str, typer.Option(help="float32, or bfloat16 or float16: compute in that, over float32 weights.")
    ] = "float32"
    gradient_checkpointing: Annotated[bool, typer.Option(help="Recompute layers going back, to save memory.")] = False
    drop_path: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="How likely the last layer is skipped, the first ones less.")
    ] = None
    augment: Annotated[
        bool | None, typer.Option(help="Rotate, zoom and shift the pictures.", show_default="augment")
    ] = None
    flip: Annotated[bool, typer.Option(help="Mirror half of the pictures.")] = False
    keep: Annotated[str, typer.Option(help="last or best: the epoch whose model is kept.")] = "last"
    parallel: Annotated[str, typer.Option(help="How devices share the work; see docs/scale.md.")] = "none"
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that read pictures; 0: the main one.", show_default="by cores")
    ] = None
    prefetch: Annotated[int, typer.Option(min=0, help="Batches that are read ahead of the model.")] = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("precision", ("float32", "bfloat16", "float16")), ("keep", ("last", "best"))):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"--{name} must be {' or '.join(known)}, got {given}.")

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


def check_batch_size(batch_size: int, accumulate: int, devices: int) -> None:
    """Raise ValueError for a batch that can't be cut into as many parts for each of so many devices."""
    if batch_size % (parts := accumulate * devices):
        raise ValueError(
            f"--batch-size {batch_size} can't be cut into {parts} equal parts, --accumulate {accumulate} on {devices} "
            f"devices or processes: pass a multiple of {parts}."
        )


def check_loss_scale(scale: float) -> None:
    """Raise ValueError for a loss scale below 1: not even the loss as it is has finite gradients in float16."""
    if scale < 1:
        raise ValueError(
            f"--precision float16: gradients are not finite, even with a loss scale of {scale:g}, so that no step is "
            "taken: pass --precision bfloat16 or float32."
        )


def ahead(items: Iterable[Item], count: int) -> Iterator[Item]:
    """The items, each given when `count` more have been taken, or when there are no more."""
    waiting = deque[Item]()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting
