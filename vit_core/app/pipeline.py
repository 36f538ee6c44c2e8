"""A task in one call, with any backend: pictures in, labels and scores or features out.

Arguments and results are those of Hugging Face's `pipeline`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial, update_wrapper
from typing import Any, Literal, TypeVar, cast, overload

from vit_core.app.backends import backend_of, bare, place, replica
from vit_core.app.base import ImagePipeline
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.app.opening import beside, find_processor, load
from vit_core.assets import DIGITS
from vit_core.keywords import understood
from vit_core.pictures.processing import ViTImageProcessor

TASKS: dict[str, type[ImagePipeline[Any]]] = {
    each.task: each for each in (ImageClassificationPipeline, ImageFeatureExtractionPipeline)
}

Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def pipeline(
    task: Literal["image-classification"] = "image-classification", model: Any = None, **options: Any
) -> ImageClassificationPipeline: ...


@overload
def pipeline(
    task: Literal["image-feature-extraction"], model: Any = None, **options: Any
) -> ImageFeatureExtractionPipeline: ...


@overload
def pipeline(task: str, model: Any = None, **options: Any) -> ImagePipeline[Any]: ...


def pipeline(
    task: str = ImageClassificationPipeline.task,
    model: Any = None,
    *,
    backend: str | None = None,
    image_processor: ViTImageProcessor | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    device: Any = None,
    batch_size: int = 1,
    num_workers: int | None = None,
    timeout: float | None = None,
    **options: Any,
) -> Any:
    """What does a task: "image-classification" or "image-feature-extraction".

    model: a folder, a hub id or a model of any backend, also in what torch.compile, DataParallel or PEFT makes of it;
    the digits model of the package if None.
    backend: torch, tf or flax; the first of them that is installed if None.
    image_processor: itself, its values or its name; the model's own if None; without a preprocessor_config.json, one
    for the model's size, and a warning.
    device, for torch: a torch device, its name, n for "cuda:n" or -1 for the CPU; if None, a model given by name goes
    to CUDA where there is any. With a list of them the model is copied to each, and a batch goes to one that is free.
    options: those of the task, which calls have then that give none of their own (`ImageClassificationPipeline`,
    `ImageFeatureExtractionPipeline`), as batch_size, num_workers and timeout are; and those of `from_pretrained`, such
    as dtype and revision, for a model given by name, also as model_kwargs; framework (pt, tf, flax) and
    feature_extractor are older names of backend and image_processor.

    Raises ImportError that says what to install, OSError for what can't be found or fetched, and ValueError for
    anything else, for classification a checkpoint without a classifier included.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}.")
    cls = TASKS[task]
    own = {name: options.pop(name) for name in cls.options if name in options}
    more = options.pop("model_kwargs", None) or {}
    options = {**options, **more}
    use_fast = options.pop("use_fast", None)
    options = understood(options, "pipeline")
    if options.get("tokenizer", 0) is None:
        del options["tokenizer"]
    framework, extractor = options.pop("framework", None), options.pop("feature_extractor", None)
    backend = _one("backend", backend, "framework", "torch" if framework == "pt" else framework)
    image_processor = _one("image_processor", image_processor, "feature_extractor", extractor)
    device, *others = device if isinstance(device, list | tuple) and device else [device]
    if model is None or isinstance(model, str | os.PathLike):
        name = DIGITS if model is None else model
        loaded, report = load(name, backend, device, task=cls.architecture, **options)
        if report.missing_keys or report.mismatched_keys:
            raise ValueError(report.warning(type(loaded).__name__))
        given = beside(loaded) if image_processor is None else image_processor
        processor = find_processor(name, loaded.config, given, use_fast, **options)
    else:
        wrong = [name for name, value in options.items() if value is not None]
        wrong = [*wrong, *(["backend"] if backend not in (None, backend_of(model)) else [])]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} can't be set for a model that is loaded: pass its name instead.")
        if device is not None:
            place(model, device)
        given = beside(model) if image_processor is None else image_processor
        loaded, processor = model, find_processor(None, bare(model).config, given, use_fast)
    replicas = [replica(loaded, each) for each in others]
    return cls(
        loaded, processor, replicas=replicas, batch_size=batch_size, num_workers=num_workers, timeout=timeout, **own
    )


def of_backend(backend: str, function: Function) -> Function:
    """A function with this backend where a call names no other, for the front door of that backend."""
    return cast(Function, update_wrapper(partial(function, backend=backend), function))


def _one(name: str, value: Any, older: str, other: Any) -> Any:
    """The value given by a name or by its older one. Raises ValueError where the two say otherwise."""
    if value is not None and other is not None and value != other:
        raise ValueError(f"{older}={other!r} is the older name of {name}, which is {value!r}: pass one of them.")
    return other if value is None else value
