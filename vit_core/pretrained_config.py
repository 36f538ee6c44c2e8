"""A configuration in files and for other programs: its JSON, and the names by which transformers knows it.

The file format is that of `config.json` in Hugging Face repositories (agrees with transformers 4.57.6).
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

from vit_core.files.disk import write_atomically
from vit_core.files.documents import blaming, json_text, read_json_object
from vit_core.files.names import CONFIG_NAME
from vit_core.files.saving import save_document, settled
from vit_core.keywords import understood
from vit_core.validation import ACTIVATIONS

STAGES = {"out_features": "out_indices", "out_indices": "out_features"}  # each says what the other says
LABELS = ("num_labels", "id2label", "label2id")
# Of a model in memory, never written: how attention is computed, and what the model was loaded from.
RUNTIME_DEFAULTS: dict[str, Any] = {"attn_implementation": None, "name_or_path": ""}
OTHER_NAMES = {"torch_dtype": "dtype", **{f"_{name}": name for name in RUNTIME_DEFAULTS}}  # of transformers

_ASKED = {"_commit_hash": None, "is_encoder_decoder": False}


class PretrainedConfig:
    """The load and save methods of every configuration, and what programs ask of those of transformers."""

    model_type: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]  # of fields that a config.json holds where they differ
    id2label: dict[int, str]
    dtype: str | None
    attn_implementation: str | None
    name_or_path: str
    return_dict: bool

    @classmethod
    @cache
    def fields(cls) -> tuple[str, ...]:
        """The names of the fields that make an architecture: what the class, down to its member's, is made with."""
        found: list[str] = []
        for c in cls.__mro__:
            parameters = inspect.signature(vars(c).get("__init__", lambda: None)).parameters.items()
            found += [name for name, value in parameters if value.default is not value.empty]
            if found and "model_type" in vars(c) and c.__module__.startswith("vit_core."):
                break
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Every field, JSON-ready: strings as label keys, lists for pairs. Raises ValueError for a callable."""
        values = {k: copy.deepcopy(v) for k, v in vars(self).items() if k not in RUNTIME_DEFAULTS}
        for name in ("hidden_act", "pooler_act"):
            if callable(values.get(name)):
                raise ValueError(
                    f"{name} is the function {values[name]!r}, which JSON cannot hold: set it to one of "
                    f"{', '.join(ACTIVATIONS)} before saving."
                )
        values["id2label"] = {str(i): label for i, label in self.id2label.items()}
        if "out_features" in self.fields():  # as transformers writes them
            values |= {name: getattr(self, name) for name in (*STAGES, "stage_names")}
        return {"model_type": self.model_type, **values}

    def to_diff_dict(self) -> dict[str, Any]:
        """What `config.json` holds: the architecture in full, of the rest only what is not at its default."""
        values = self.to_dict()
        if self.id2label == {0: "LABEL_0", 1: "LABEL_1"}:
            values = {k: v for k, v in values.items() if k not in LABELS}
        left_out = {k for k, v in self.defaults.items() if values.get(k) == v} - {*self.fields()}
        return {k: v for k, v in values.items() if k not in left_out}

    def to_json_string(self, use_diff: bool = True) -> str:
        """JSON text: sorted keys, two spaces, a final newline. Raises ValueError for what could not be read again."""
        return json_text(self.to_diff_dict() if use_diff else self.to_dict(), "This configuration")

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write `to_json_string`, atomically."""
        write_atomically(Path(json_file_path), self.to_json_string(use_diff).encode())

    @overload
    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: Literal[False] = False, **overrides: Any
    ) -> Self: ...

    @overload
    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool, **overrides: Any) -> Any: ...

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """A configuration from a mapping, `overrides` on top.

        An override that is neither a field nor a key of the mapping is kept as an attribute, or handed back, in a
        tuple (config, unused), when `return_unused_kwargs` is true.
        """
        merged = dict(config_dict)
        made = cls._class_for(merged)
        known = {
            *made.fields(),
            *made.defaults,
            *RUNTIME_DEFAULTS,
            *LABELS,
            *OTHER_NAMES,
            *merged,
        }
        unused = {k: v for k, v in overrides.items() if k not in known} if return_unused_kwargs else {}
        used = {k: v for k, v in overrides.items() if k not in unused}
        stored = merged.get("id2label")
        stored_labels = len(stored) if stored and isinstance(stored, Mapping) else 2
        used = {k: v for k, v in used.items() if not (k in LABELS and v is None)}
        named = used.keys() & {"id2label", "label2id"}
        if named or used.get("num_labels", stored_labels) != stored_labels:
            merged = {k: v for k, v in merged.items() if k not in LABELS}
        if used.keys() & STAGES:
            merged = {k: v for k, v in merged.items() if k not in STAGES}
        for names in map(set, OTHER_NAMES.items()):
            if used.keys() & names:
                merged = {k: v for k, v in merged.items() if k not in names}
        config = made(**{**merged, **used})
        return (config, unused) if return_unused_kwargs else config

    @classmethod
    def from_json_file(cls, json_file: str | Path) -> Self:
        """Read one JSON file. Raises OSError when it is missing, ValueError when it is no configuration."""
        values = _read(Path(json_file))
        with blaming(json_file):
            return cls._class_for(values)(**values)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        return_unused_kwargs: Literal[True],
        **options: Any,
    ) -> tuple[Self, dict[str, Any]]: ...

    @overload
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        return_unused_kwargs: bool = False,
        **overrides: Any,
    ) -> Any:
        """The configuration of a folder, a JSON file or a hub repository, `overrides` on top.

        With `return_unused_kwargs=True`: the tuple (config, overrides that are no field of it).
        """
        overrides = understood({**overrides, "token": token}, "from_pretrained")
        options = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": overrides.pop("token"),
            "revision": revision,
        }
        path, values = _stored(pretrained_model_name_or_path, subfolder, options)
        with blaming(f"{path} with {', '.join(overrides)} as given" if overrides else path):
            return cls.from_dict(values, return_unused_kwargs, **overrides)

    @classmethod
    def _class_for(cls, values: Mapping[str, Any]) -> type[Self]:
        """The class of what a file holds: this one, which refuses what is another's."""
        return cls

    def save_pretrained(
        self, save_directory: str | Path, push_to_hub: bool = False, repo_id: str | None = None, **hub_options: Any
    ) -> None:
        """Write `config.json` into a folder, made when it is not there; then upload it, where asked to.

        `hub_options` are those of `push_to_hub`. Raises TypeError for others, and for any without an upload.
        """
        from vit_core.files import hub

        options = hub.upload_options(hub_options, "save_pretrained", push_to_hub)
        folder = Path(save_directory)
        save_document(folder / CONFIG_NAME, self.to_json_string().encode())
        if push_to_hub:
            hub.upload(folder, repo_id or folder.resolve().name, names=[CONFIG_NAME], **options)

    def push_to_hub(self, repo_id: str, **hub_options: Any) -> str:
        """Upload `config.json` to a hub repository, made when it is not there; returns the address of the commit."""
        from vit_core.files import hub

        return hub.push(self.save_pretrained, repo_id, **hub_options)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set attributes, each as by assignment."""
        for name, value in config_dict.items():
            setattr(self, name, value)

    def copy(self, **changes: Any) -> Self:
        """An independent copy with some fields changed."""
        config: Self = self.from_dict(copy.deepcopy(vars(self)), **changes)
        return config

    def is_still(self, seen: Mapping[str, Any]) -> bool:
        """Whether each value is the very one of `seen`, a copy that was made of `vars` before."""
        now = vars(self)
        return now.keys() == seen.keys() and all(value is seen[name] for name, value in now.items())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PretrainedConfig):
            return False
        return self._compared() == other._compared()

    __hash__ = None  # type: ignore[assignment]  # it is mutable

    def _compared(self) -> dict[str, Any]:
        """What equal configurations have in common."""
        return {**vars(self), "name_or_path": ""}

    def __repr__(self) -> str:
        shown = {k: v if not callable(v) else repr(v) for k, v in vars(self).items() if v is not None}
        return f"{type(self).__name__} {json.dumps(shown, indent=2, sort_keys=True, default=str)}"

    def __getattr__(self, name: str) -> Any:
        """What programs ask of every configuration of transformers, where a file does not say otherwise."""
        if name in _ASKED:
            return _ASKED[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def torch_dtype(self) -> str | None:
        """The name `dtype` had before transformers 4.56."""
        return self.dtype

    @property
    def _attn_implementation(self) -> str | None:
        """Hugging Face's name for `attn_implementation`."""
        return self.attn_implementation

    @_attn_implementation.setter
    def _attn_implementation(self, name: str | None) -> None:
        self.attn_implementation = name

    @property
    def _name_or_path(self) -> str:
        """Hugging Face's older name for `name_or_path`."""
        return self.name_or_path

    @_name_or_path.setter
    def _name_or_path(self, name: str) -> None:
        self.name_or_path = name

    @property
    def use_return_dict(self) -> bool:
        """Hugging Face's name for `return_dict`."""
        return self.return_dict


def _read(path: Path) -> dict[str, Any]:
    """What a config.json holds. Raises ValueError for one of another library, which says part of a model alone."""
    values = read_json_object(path)
    if "model_type" not in values and {"architecture", "registered_name"} & values.keys():
        raise ValueError(
            f"{path} is timm's or keras-hub's, and leaves to the weights what else a model is: take the configuration "
            "of the model, from_pretrained(folder).config."
        )
    return values


def _stored(source: str | Path, subfolder: str, options: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The path of a config.json, in a folder or a hub repository or by itself, and what it holds."""

    def read() -> tuple[Path, dict[str, Any]]:
        if Path(source).is_file():
            return Path(source), _read(Path(source))
        from vit_core.files import hub

        path = hub.cached_file(source, CONFIG_NAME, subfolder=subfolder, **options)
        return path, _read(path)

    return settled(Path(source) / subfolder, read)
