"""What the fine-tuning scripts share: their own flags, and what stands before the first step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, Any

import typer
from pictures import Loader, Pictures, architecture_of, open_loader, open_model, read_split, reading
from training import Settings

from vit_core.app.auto import architecture_for
from vit_core.app.opening import find_processor
from vit_core.config import ViTConfig, pair
from vit_core.family import ARCHITECTURES
from vit_core.pictures.processing import ViTImageProcessor
from vit_core.pictures.steps import Steps

TASK = "ForImageClassification"
STUDENT = "DeiTForImageClassificationWithTeacher"  # the class that has a head for what a teacher says
KINDS = ("hard", "soft")  # of distillation, the default first


@dataclass(frozen=True, kw_only=True)
class FineTuning(Settings):
    """The flags of the fine-tuning scripts."""

    classes: Annotated[str | None, typer.Option(help="Names of the classes, with commas, in their order.")] = None
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of pictures to validate on.")] = 0.2
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out pictures that can't be read.")] = False
    head: Annotated[str, typer.Option(help="keep, where the checkpoint's has as many classes, or drop.")] = "keep"
    pooler: Annotated[str, typer.Option(help="keep or drop: no classifier takes the checkpoint's.")] = "keep"
    pool: Annotated[
        str | None,
        typer.Option(help="cls or mean, normalised: the tokens that the head reads.", show_default="the checkpoint's"),
    ] = None
    freeze: Annotated[bool, typer.Option(help="Train the head alone.")] = False
    layer_decay: Annotated[float, typer.Option(help="Factor of the rate from a layer to the one below.")] = 0.75
    mixup: Annotated[float, typer.Option(min=0, help="Blend pictures by weights from Beta(mixup, mixup).")] = 0.0
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.99, help="Share of a target over all classes.")] = 0.1
    teacher: Annotated[str | None, typer.Option(help="Classifier that a DeiT learns from: as --model.")] = None
    distillation: Annotated[
        str | None, typer.Option(help="hard: the teacher's class, or soft: its probabilities.", show_default=KINDS[0])
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool not in (None, "cls", "mean"):
            raise typer.BadParameter(f"--pool must be cls or mean, got {self.pool}.")
        if self.distillation not in (None, *KINDS):
            raise typer.BadParameter(f"--distillation must be {' or '.join(KINDS)}, got {self.distillation}.")
        if self.distillation and not self.teacher:
            raise typer.BadParameter(
                f"--distillation {self.distillation} says how to learn from a teacher, and there is none: pass "
                "--teacher FOLDER, or leave it out."
            )


def prepare(
    settings: FineTuning, class_of: Callable[[str], Any], shard: int = 0, shards: int = 1
) -> tuple[Any, Any, Loader, Pictures, Pictures]:
    """(model, teacher or None, loader, pictures to train on, pictures to validate on); prints what they are.

    The model is of the class that its checkpoint is of, or, with a teacher, the one of its member that learns from
    such; `class_of` gives a class by its PyTorch name. Its head is drawn from the seed where the checkpoint has none
    for as many classes as the pictures have. Raises typer.BadParameter for pictures, or a checkpoint, that can't be
    trained on, and for a teacher that does not fit.
    """
    training, held_out = read_split(
        settings.pictures, settings.classes, settings.validation, settings.seed, settings.skip_bad
    )
    classes = training.classes
    changes: dict[str, Any] = {
        "head": settings.head,
        "pooler": settings.pooler,
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    architecture = architecture_of(settings, TASK)
    family = ARCHITECTURES[architecture]
    if settings.pool:
        if "pool" not in family.config.defaults:
            raise typer.BadParameter(f"--pool is for a ViT, and --model {settings.model} is a {family.title}.")
        changes |= {"pool": settings.pool, "fc_norm": settings.pool == "mean"}
    if settings.teacher:
        architecture = STUDENT
        if STUDENT not in family.models:
            raise typer.BadParameter(
                f"--teacher {settings.teacher} teaches a model with a distillation token, and --model {settings.model} "
                f"is a {family.title}, without one: pass a DeiT as --model, or leave --teacher out."
            )
        changes["distillation"] = settings.distillation or KINDS[0]
    model = open_model(settings, class_of(architecture), shard, **changes)
    loader = open_loader(settings, model.config, shard, shards)
    teacher = open_teacher(settings.teacher, class_of, loader, classes) if settings.teacher else None
    loader.steps(training)
    if shard == 0:
        print(f"{len(training.paths)} pictures to train on, {len(held_out.paths)} to validate on, in "
              f"{len(classes)} classes: {', '.join(classes)}")  # fmt: skip
    return model, teacher, loader, training, held_out


def open_teacher(name: str, class_of: Callable[[str], Any], loader: Loader, classes: list[str]) -> Any:
    """The classifier of a checkpoint, for the pixels and the classes of a training.

    Raises typer.BadParameter for one that can't be read, has no head, takes other pixels, or knows other classes.
    """
    with reading("--teacher", name):
        teacher, report = class_of(architecture_for(name, TASK)).from_pretrained(name, output_loading_info=True)
        theirs = _pixels(teacher.config, find_processor(name, teacher.config))
    if report.missing_keys:
        raise typer.BadParameter(
            f"--teacher {name} lacks {', '.join(report.missing_keys)}: pass a classifier that is trained."
        )
    for what, ours in _pixels(loader.config, loader.processor).items():
        if theirs[what] != ours:
            raise typer.BadParameter(
                f"--teacher {name} takes pixels of {what} {theirs[what]}, and the model, which sees the same "
                f"pixels, of {ours}: pass two that agree."
            )
    labels = list(teacher.config.id2label.values())
    if labels != classes:
        found, wanted = next((a, b) for a, b in zip_longest(labels, classes, fillvalue="none") if a != b)
        raise typer.BadParameter(
            f"--teacher {name} has {len(labels)} classes, the pictures {len(classes)}, and the first that differs is "
            f"{found}, not {wanted}: pass a teacher of these classes, or its names in its order as --classes."
        )
    return teacher


def _pixels(config: ViTConfig, processor: ViTImageProcessor) -> dict[str, Any]:
    """What two models must agree on to take the same pixels."""
    steps = Steps.checked(vars(processor))
    return {
        "height and width": pair(config.image_size),
        "channels": config.num_channels,
        "rescaling": steps.scale,
        "mean": steps.mean,
        "deviation": steps.std,
    }
