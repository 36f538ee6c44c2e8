"""Automatic classes: the model class that a checkpoint is of, by its config.json, or else by its tensors."""

from __future__ import annotations

import os
from typing import Any, Generic, Literal, TypeVar, overload

from vit_core.app.backends import import_backend
from vit_core.config import ViTConfig
from vit_core.family import FAMILIES, Family, family_of
from vit_core.files.hub import DOWNLOAD_OPTIONS
from vit_core.formats.reading import read
from vit_core.keywords import understood
from vit_core.loading import LoadReport
from vit_core.pretrained import READING

Model = TypeVar("Model")  # a class that all those are of
_OPENING = (*READING, *DOWNLOAD_OPTIONS, "variant", "use_safetensors")


def architecture_for(name: str | os.PathLike[str], task: str, **options: Any) -> str:
    """The model class, by its PyTorch name, that reads a checkpoint for a task: "Model", "ForImageClassification" ...

    Of the options of `from_pretrained` those matter that say where the checkpoint is, and how it is read. Where its
    member of the family has no such class, it is that of one which reads its files. Raises ValueError where there is
    none, and what `read` raises.
    """
    options = understood({"token": None, **options}, "from_pretrained")
    opening = {key: value for key, value in options.items() if key in _OPENING}
    head = "drop" if task in ("Model", "Backbone") else "fresh"
    checkpoint = read(name, head=head, num_attention_heads=options.get("num_attention_heads"), **opening)
    given = options.get("config")
    family = checkpoint.family
    readers = (each for each in FAMILIES.values() if family.model_type in each.config.reads)
    able = next((each for each in (family, *readers) if _for_task(each, task)), family)
    return _fitting(able, task, given if isinstance(given, ViTConfig) else checkpoint.config)


def _for_task(family: Family, task: str) -> list[str]:
    return [name for name in family.models if (name == family.bare if task == "Model" else task in name)]


def _fitting(family: Family, task: str, config: ViTConfig | None) -> str:
    """The class that the configuration names, if it is one for the task, else the member's first one."""
    fitting = _for_task(family, task)
    named = [name for name in (config and config.architectures) or () if name in fitting]
    if not fitting:
        raise ValueError(f"{family.title} has no model {task}: it has {', '.join(family.models)}.")
    return (named or fitting)[0]


class Auto(Generic[Model]):
    """`from_pretrained` and `from_config` of whatever class a checkpoint, or a configuration, is of."""

    backend: str
    task: str

    def __init__(self, *_: Any, **__: Any) -> None:
        raise TypeError(f"{type(self).__name__} is not made itself: use its from_pretrained(name), or from_config().")

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[False] = False,
        _do_init: Literal[True] = True,
        **options: Any,
    ) -> Model: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        output_loading_info: Literal[True],
        _do_init: Literal[True] = True,
        **options: Any,
    ) -> tuple[Model, LoadReport]: ...

    @overload  # of a Flax model without its parameters, and of options that are computed
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Any: ...

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """As that of the class; see `PretrainedModel.from_pretrained`."""
        architecture = architecture_for(pretrained_model_name_or_path, cls.task, **options)
        return getattr(import_backend(cls.backend), architecture).from_pretrained(
            pretrained_model_name_or_path, **options
        )

    @classmethod
    def from_config(cls, config: ViTConfig, **options: Any) -> Model:
        """A new model of the class that a configuration is for."""
        architecture = _fitting(family_of(config), cls.task, config)
        model: Model = getattr(import_backend(cls.backend), architecture).from_config(config, **options)
        return model


def auto(backend: str, task: str, prefix: str = "") -> type[Auto[Any]]:
    """The automatic class for a task in a backend."""
    name = f"{prefix}Auto{'' if task == 'Backbone' else 'Model'}{task.removeprefix('Model')}"
    return type(name, (Auto,), {"backend": backend, "task": task, "__doc__": Auto.__doc__})
