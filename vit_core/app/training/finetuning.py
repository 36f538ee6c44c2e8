"""Fine-tuning: its own flags, what stands before the first step, and what is asked of a model in an epoch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer

from vit_core.app.auto import architecture_for
from vit_core.app.backends import import_backend, import_engine
from vit_core.app.opening import find_processor
from vit_core.app.training.batches import Batch, Loader, confusion, evaluate
from vit_core.app.training.dataset import Pictures, check_out, read_split
from vit_core.app.training.drawing import draw_confusion
from vit_core.app.training.libraries import check_libraries
from vit_core.app.training.loop import Place, Training
from vit_core.app.training.opening import architecture_of, open_loader, open_model, reading
from vit_core.config import ViTConfig, pair
from vit_core.family import ARCHITECTURES
from vit_core.pictures.processing import ViTImageProcessor
from vit_core.pictures.steps import Steps
from vit_core.training import Out, Settings

TASK = "ForImageClassification"
STUDENT = "DeiTForImageClassificationWithTeacher"  # the class that has a head for what a teacher says
KINDS = ("hard", "soft")  # of distillation, the default first
DRAWN = 100  # classes at most, of which a confusion matrix can be read


@dataclass(frozen=True, kw_only=True)
class FineTuning(Settings):
    """The flags of fine-tuning."""

    out: Out = Path("finetuned")
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
        for name in ("head", "pooler"):
            if (given := getattr(self, name)) not in ("keep", "drop"):
                raise ValueError(f"--{name} must be keep or drop, got {given}.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay must be above 0 and at most 1, got {self.layer_decay:g}.")
        if self.pool not in (None, "cls", "mean"):
            raise ValueError(f"--pool must be cls or mean, got {self.pool}.")
        if self.distillation not in (None, *KINDS):
            raise ValueError(f"--distillation must be {' or '.join(KINDS)}, got {self.distillation}.")
        if self.distillation and not self.teacher:
            raise ValueError(
                f"--distillation {self.distillation} says how to learn from a teacher, and there is none: pass "
                "--teacher FOLDER, or leave it out."
            )


class FineTuner(Training[FineTuning]):
    """A classifier, and the pictures of its classes."""

    drawing = "confusion.png", "Confusion matrix of the held-out pictures"

    def __init__(self, settings: FineTuning, backend: str, place: Place) -> None:
        engine, class_of = import_engine(backend), partial(getattr, import_backend(backend))
        model, teacher, loader, training, held_out = prepare(settings, class_of, place.rank, place.world)
        loss = partial(engine.distilled_loss, model.config) if teacher else engine.class_loss
        options = {"layer_decay": settings.layer_decay, "freeze": settings.freeze, "teacher": teacher}
        super().__init__(settings, backend, place, model, loader, training, held_out, loss, _logits_of, **options)

    def batches(self, epoch: int) -> Iterable[Batch]:
        return self.loader.mixed(self.pictures, epoch, self.settings.mixup, self.settings.label_smoothing)

    def validate(self) -> dict[str, float]:
        return evaluate(self.predict, self.loader.validation(self.held_out), self.place.total)

    def draw(self) -> None:
        classes = self.pictures.classes
        if len(classes) > DRAWN:
            self.run.say(f"No confusion matrix of {len(classes)} classes: one of more than {DRAWN} can't be read.")
            return
        counts = confusion(self.predict, self.loader.validation(self.held_out), len(classes), self.place.total)
        if self.place.main:
            draw_confusion(self.settings.out / self.drawing[0], counts, classes)

    def following(self) -> str:
        return f"vit classify PICTURES --model {shlex.quote(str(self.settings.out))}"


def _logits_of(network: Callable[..., Any], pixels: Any) -> Any:
    return network(pixels).logits


def prepare(
    settings: FineTuning, class_of: Callable[[str], Any], shard: int = 0, shards: int = 1
) -> tuple[Any, Any, Loader, Pictures, Pictures]:
    """(model, teacher or None, loader, pictures to train on, pictures to validate on); prints what they are.

    The model is of the class that its checkpoint is of, or, with a teacher, the one of its member that learns from
    such; `class_of` gives a class by its PyTorch name. Its head is drawn from the seed where the checkpoint has none
    for as many classes as the pictures have. Raises ValueError for pictures, or a checkpoint, that can't be
    trained on, for a folder that the run can't have, and for a teacher that does not fit.
    """
    check_libraries()
    check_out(settings)
    training, held_out = read_split(
        settings.pictures, settings.classes, settings.validation, settings.seed, settings.skip_bad, settings.out
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
            raise ValueError(f"--pool is for a ViT, and --model {settings.model} is a {family.title}.")
        changes |= {"pool": settings.pool, "fc_norm": settings.pool == "mean"}
    if settings.teacher:
        architecture = STUDENT
        if STUDENT not in family.models:
            raise ValueError(
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

    Raises ValueError for one that can't be read, has no head, takes other pixels, or knows other classes.
    """
    with reading("--teacher", name):
        teacher, report = class_of(architecture_for(name, TASK)).from_pretrained(name, output_loading_info=True)
        theirs = _pixels(teacher.config, find_processor(name, teacher.config))
    if report.missing_keys:
        raise ValueError(f"--teacher {name} lacks {', '.join(report.missing_keys)}: pass a classifier that is trained.")
    for what, ours in _pixels(loader.config, loader.processor).items():
        if theirs[what] != ours:
            raise ValueError(
                f"--teacher {name} takes pixels of {what} {theirs[what]}, and the model, which sees the same "
                f"pixels, of {ours}: pass two that agree."
            )
    labels = list(teacher.config.id2label.values())
    if labels != classes:
        found, wanted = next((a, b) for a, b in zip_longest(labels, classes, fillvalue="none") if a != b)
        raise ValueError(
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
