"""The model of a training, and what reads pictures for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vit_core import calls
from vit_core.app.auto import architecture_for
from vit_core.app.opening import find_processor
from vit_core.app.training.batches import Loader
from vit_core.assets import is_digits
from vit_core.config import ViTConfig, pair
from vit_core.params import count
from vit_core.pictures.processing import AutoImageProcessor, for_size
from vit_core.training import Settings

# What an error asks for that no training has a flag for.
_ASKED = re.compile(r"\b(key|prefix|num_attention_heads|stored_image_size|fold_layer_scale|ignore_unknown)=")


@contextmanager
def reading(flag: str, name: str) -> Iterator[None]:
    """Raise as ValueError, with the flag that names a checkpoint, what reading it raises."""
    try:
        yield
    except (OSError, ValueError) as error:
        hint = " Convert it with vit-convert first, which has flags for that." if _ASKED.search(str(error)) else ""
        raise ValueError(f"{flag} {name}: {error}{hint}") from error


def architecture_of(settings: Settings, task: str) -> str:
    """The model class, by its PyTorch name, that reads the checkpoint of a training for a task.

    Raises ValueError for one that can't be read.
    """
    with reading("--model", settings.model):
        return architecture_for(settings.model, task)


def open_model(
    settings: Settings,
    model_class: Any,
    shard: int,
    scratch: bool = False,
    config: ViTConfig | None = None,
    **overrides: Any,
) -> Any:
    """The model of a training's settings.

    `overrides` are fields of its configuration. With `scratch` all weights are drawn from the seed, and for a `config`
    where the checkpoint's is not to be taken. The first process says which model it is, how large, and what of it was
    not in the checkpoint. Raises ValueError for a checkpoint that can't be read.
    """
    if settings.image_size is not None:
        overrides["image_size"] = settings.image_size
    if settings.drop_path is not None:
        overrides["drop_path_rate"] = settings.drop_path
    drawn, resized = ["everything"], list[str]()
    with reading("--model", settings.model):
        if config is None:
            model, report = model_class.from_pretrained(
                settings.model, seed=settings.seed, output_loading_info=True, **overrides
            )
            config, overrides = model.config, {}
            resized = [f"{name} from {_size(old)} to {_size(new)}" for name, old, new, _ in report.resized]
            drawn = drawn if scratch else [name for name, *_ in report.mismatched_keys] + report.missing_keys
        if scratch:
            model = model_class(config.copy(**overrides), seed=settings.seed)
    if shard == 0:
        demo = is_digits(settings.model)
        name = "the digits demo (choose another with --model PATH_OR_ID)" if demo else settings.model
        parameters, size = count(model.config, model.parts), _size(pair(model.config.image_size))
        print(f"Model: {name}, {model.architecture}, {parameters:,} parameters, {size} pixels")
        print(f"Drawn anew: {', '.join(drawn) or 'nothing'}. Resized: {', '.join(resized) or 'nothing'}.", flush=True)
        if note := calls.unseen(model.config):
            print(note, flush=True)
    return model


def _size(sides: tuple[int, int]) -> str:
    return "{}x{}".format(*sides)


def open_loader(settings: Settings, config: ViTConfig, shard: int, shards: int) -> Loader:
    """What reads pictures for this process of a training, for a model of this configuration.

    Raises ValueError for a processor that can't be read.
    """
    with reading("--model", settings.model):
        processor = find_processor(settings.model, config)
    return Loader(
        AutoImageProcessor.from_dict(for_size(processor.to_dict(), *pair(config.image_size))),
        config,
        settings.batch_size,
        settings.seed,
        settings.accumulate,
        shard,
        shards,
        settings.augments,
        settings.flip,
        settings.workers,
        settings.prefetch,
    )
