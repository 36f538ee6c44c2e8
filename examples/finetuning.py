"""What the fine-tuning scripts share: their own flags, and what stands before the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pictures import Loader, Pictures, open_model, read_split
from training import Settings


@dataclass(frozen=True, kw_only=True)
class FineTuning(Settings):
    """The flags of the fine-tuning scripts."""

    classes: Annotated[str | None, typer.Option(help="Names of the classes, with commas, in their order.")] = None
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of pictures to validate on.")] = 0.2
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that can't be read.")] = False
    head: Annotated[str, typer.Option(help="keep, where the checkpoint's has as many classes, or drop.")] = "keep"
    pooler: Annotated[str, typer.Option(help="keep or drop: no classifier takes the checkpoint's.")] = "keep"
    freeze: Annotated[bool, typer.Option(help="Train the head alone.")] = False
    layer_decay: Annotated[float, typer.Option(help="Factor of the rate from a layer to the one below.")] = 0.75
    mixup: Annotated[float, typer.Option(min=0, help="Blend pictures by weights from Beta(mixup, mixup).")] = 0.0
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="Share of a target over all classes.")] = 0.1


def prepare(
    settings: FineTuning, model_class: Any, shard: int = 0, shards: int = 1
) -> tuple[Any, Loader, Pictures, Pictures]:
    """(model, loader, pictures to train on, pictures to validate on), and a line that says what they are.

    The model's head is drawn from the seed where the checkpoint has none for as many classes as the pictures have.
    Raises typer.BadParameter for pictures, or a checkpoint, that can't be trained on.
    """
    training, held_out = read_split(
        settings.pictures, settings.classes, settings.validation, settings.seed, settings.skip_bad
    )
    classes = training.classes
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    fresh = {"head": settings.head, "pooler": settings.pooler}
    model, loader = open_model(settings, model_class, shard, shards, **fresh, **labels)
    loader.steps(training)
    if shard == 0:
        print(f"{len(training.paths)} pictures to train on, {len(held_out.paths)} to validate on, in "
              f"{len(classes)} classes: {', '.join(classes)}")  # fmt: skip
    return model, loader, training, held_out
