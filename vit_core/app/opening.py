"""A model and its image processor by name: what a task begins with."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vit_core.app.auto import architecture_for
from vit_core.app.backends import accelerator, bare, first_installed, import_backend, place
from vit_core.config import ViTConfig, pair
from vit_core.files.hub import DOWNLOAD_OPTIONS, NotCachedError, cached_file
from vit_core.files.names import PREPROCESSOR_NAME
from vit_core.files.saving import settled
from vit_core.formats.reading import read
from vit_core.loading import LoadReport
from vit_core.pictures.processing import AutoImageProcessor, ViTImageProcessor, for_size


def load(
    name: str | os.PathLike[str],
    backend: str | None = None,
    device: Any = None,
    *,
    task: str = "ForImageClassification",
    **options: Any,
) -> tuple[Any, LoadReport]:
    """A model by name, of the class that reads it for a task, and what loading it did; arguments of `pipeline`.

    task: as `architecture_for` takes it.
    """
    backend = backend or first_installed()
    cls = getattr(import_backend(backend), architecture_for(name, task, **options))
    model, report = cls.from_pretrained(name, **{**options, "output_loading_info": True})
    if device is None and options.get("device_map") is None:
        device = accelerator(backend)
    if device is not None:
        place(model, device)
    return model, report


def beside(model: Any) -> dict[str, Any] | None:
    """What the preprocessor_config.json says, or what stood for it, that a model was loaded beside, for its size."""
    found: dict[str, Any] | None = json.loads(json.dumps(bare(model).preprocessor))  # Keras wraps a dict in its classes
    return found


def find_processor(
    name: str | os.PathLike[str] | None,
    config: ViTConfig,
    given: ViTImageProcessor | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    use_fast: bool | None = None,
    /,
    **options: Any,
) -> ViTImageProcessor:
    """The processor given, itself, its values or its name, or that of the model, of whatever format it is.

    Where that does not say how its pictures are prepared, the default and a warning; an error where, offline, nobody
    knows whether it does. use_fast: as `AutoImageProcessor.from_pretrained` takes it. Raises TypeError for a processor
    of another library.
    """
    if isinstance(given, ViTImageProcessor):
        return given
    options = {key: options[key] for key in DOWNLOAD_OPTIONS if key in options}
    fast: dict[str, Any] = {} if use_fast is None else {"backend": "torchvision" if use_fast else "pil"}
    if isinstance(given, Mapping):
        return AutoImageProcessor.from_dict(given, **fast)
    if isinstance(given, str | os.PathLike):
        return AutoImageProcessor.from_pretrained(given, **fast, **options)
    if given is not None:
        raise TypeError(
            f"image_processor must be one of this package, its values or its name, got a {type(given).__module__}."
            f"{type(given).__name__}: pass its to_dict()."
        )
    missing = None
    if name is not None:
        if not os.path.isfile(name):
            stated = partial(cached_file, name, PREPROCESSOR_NAME, **options)
            try:
                folder = Path(name) / options.get("subfolder", "")
                return settled(folder, lambda: AutoImageProcessor.from_pretrained(stated(), **fast))
            except FileNotFoundError as error:
                missing = error
        heads = config.num_attention_heads  # which the files of some families do not state
        if stored := read(name, num_attention_heads=heads, head="drop", config=config, **options).processor:
            return AutoImageProcessor.from_dict(for_size(stored, *pair(config.image_size)), **fast)
    if isinstance(missing, NotCachedError):
        raise missing
    return _default_processor("The model" if name is None else str(name), config)


def _default_processor(name: str, config: ViTConfig) -> ViTImageProcessor:
    """The processor of a model that comes with none, and a warning that says what it does."""
    (height, width), half = pair(config.image_size), [0.5] * config.num_channels
    warnings.warn(
        f"{name} has no preprocessor_config.json: images are resized to {height}x{width} and normalised with mean and "
        "std 0.5. Pass image_processor=, or --image-processor, if the model was trained with others.",
        stacklevel=4,
    )
    return ViTImageProcessor(size={"height": height, "width": width}, image_mean=half, image_std=half)
