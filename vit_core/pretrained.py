"""The load and save methods of every model of every backend.

The core finds the files and fits their tensors to the model; a backend only takes arrays and gives arrays.
"""

from __future__ import annotations

import json
import os
import reprlib
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, overload

from vit_core import calls
from vit_core.channels import with_statistics
from vit_core.config import ViTConfig, pair
from vit_core.family import HEADS, PARTS, VIT, Family, family_of, has_head
from vit_core.files import hub
from vit_core.files.disk import write_atomically
from vit_core.files.names import CONFIG_NAME, PREPROCESSOR_NAME, PRESET_MODEL, PRESET_TASK_MODEL
from vit_core.files.saving import find, replacing_files
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import (
    CONTAINERS,
    OWN_CONTAINERS,
    SAFETENSORS,
    Checkpoint,
    Container,
    as_native,
    check_container,
    write_native,
)
from vit_core.keywords import one_device, understood
from vit_core.loading import LoadReport, fit, resolve_dtype
from vit_core.parameter_groups import ParameterGroup, parameter_groups
from vit_core.params import Spec, specs
from vit_core.pictures.processing import for_size
from vit_core.position import CALL_KERNELS
from vit_core.validation import dtype_name, keeps

StrPath = str | Path
# Options of `conversion.read` that a caller may give.
READING = ("filename", "key", "prefix", "stored_image_size", "fold_layer_scale", "ignore_unknown")


class PretrainedModel(ABC):
    """The load and save methods of every model of every backend."""

    architecture: ClassVar[str]  # the PyTorch name of the model class, a key of `family.PARTS`
    file_format: ClassVar[str]  # the format of the framework's own names and older file: pt, tf or flax
    weights_keyword: ClassVar[str] = ""  # of `save_pretrained`, in which a caller may hand weights over
    _choose: ClassVar[Callable[..., Any]]  # the implementation of attention of a name; ValueError where there is none
    config: ViTConfig
    preprocessor: dict[str, Any] | None = None  # the document that the model was loaded beside
    name_or_path: str = ""  # what it was loaded from
    config_class: ClassVar[type[ViTConfig]] = ViTConfig
    base_model_prefix: ClassVar[str] = VIT.trunk
    parts: frozenset[str]  # the optional parts of the table that the model has

    def __repr__(self) -> str:
        config = self.config
        size, patch = ("x".join(map(str, pair(edge))) for edge in (config.image_size, config.patch_size))
        number = sum(spec.size for spec in self.specs().values())
        return (
            f"{type(self).__name__}({config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{config.num_attention_heads} heads, images of {size}, patches of {patch}, {number:,} parameters)"
        )

    @classmethod
    def parts_of(
        cls, config: ViTConfig, add_pooling_layer: bool | None = None, use_mask_token: bool = False, **_: Any
    ) -> frozenset[str]:
        """The optional parts of the table that a model built with these arguments has.

        Raises ValueError for the configuration of another member.
        """
        cls._check_member(config)
        return cls.family().parts(cls.architecture, add_pooling_layer, use_mask_token)

    @classmethod
    def family(cls) -> Family:
        """The member of the family that the class is of."""
        return family_of(cls.config_class)

    @classmethod
    def _check_member(cls, config: Any) -> None:
        if not isinstance(config, ViTConfig):
            raise TypeError(
                f"{cls.__name__} takes a {cls.config_class.__name__} of this package, got {reprlib.repr(config)}: what "
                f"is in a folder, a file or a repository is loaded by {cls.__name__}.from_pretrained(...)."
            )
        if family_of(config) is not cls.family():
            raise ValueError(
                f"{cls.__name__} takes a {cls.config_class.__name__}, got a {type(config).__name__}, of model_type "
                f"{config.model_type!r}: use one of {', '.join(family_of(config).models)}."
            )

    @staticmethod
    @abstractmethod
    def _read(source: StrPath, **options: Any) -> Checkpoint:
        """The checkpoint of a folder or repository, in one of the `formats` where any is named: `conversion.read`."""

    @classmethod
    @abstractmethod
    def from_tensors(
        cls, config: ViTConfig, tensors: Mapping[str, Tensor], seed: int | None, **model_kwargs: Any
    ) -> Self:
        """A model in `config.dtype` of these tensors; what is missing among them is initialised."""

    @classmethod
    def from_config(cls, config: ViTConfig, **kwargs: Any) -> Self:
        """A new model of a configuration, with another `attn_implementation`, and in another `dtype`, where given.

        Other keywords are arguments of the class.
        """
        if (attn_implementation := kwargs.pop("attn_implementation", None)) is not None:
            config = config.copy(attn_implementation=attn_implementation)
        if (dtype := kwargs.pop("torch_dtype", None)) is not None:
            kwargs["dtype"] = dtype
        made: Any = cls
        model: Self = made(config, **kwargs)
        return model

    _from_config = from_config

    @staticmethod
    def _placed(device: Any) -> AbstractContextManager[Any]:
        """Where what is made comes to a device; "auto" is the one that is there. Raises ValueError for another."""
        if device in (None, "auto"):
            return nullcontext()
        raise ValueError(
            f"device_map={device!r} is for PyTorch: this framework takes the first accelerator that it sees, choose "
            "that with CUDA_VISIBLE_DEVICES."
        )

    def load_additions(self, tensors: Mapping[str, Tensor], report: LoadReport, strict: bool) -> LoadReport:
        """The report, after what a user has added to the model is loaded, by its names, where that can be added.

        Raises ValueError for a tensor of another shape, if `strict`.
        """
        return report

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """Every parameter by canonical name, in PyTorch's layout, converted one by one when read."""

    @abstractmethod
    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by the names that its framework gives them."""

    @classmethod
    def _arguments(cls) -> set[str]:
        """The names of what the class takes beside its configuration."""
        found: set[str] = set()
        for base in cls.__mro__:  # up to the first that passes nothing on
            parameters = signature(vars(base).get("__init__", lambda **_: None)).parameters.values()
            found |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
        return found - {"self", "config", "parts", "dtype"}

    def set_attn_implementation(self, attn_implementation: str | None) -> None:
        """Compute attention in another way, as `config.attn_implementation` does at first. Raises ValueError."""
        self._choose(attn_implementation, output_attentions=False)
        self.config.attn_implementation = attn_implementation

    def parameter_groups(self, layer_decay: float = 1.0, freeze: bool = False) -> list[ParameterGroup]:
        """The model's parameters, by the keys of `specs`, in groups that an optimizer treats alike.

        Layer by layer down from the head, learning rates fall by the factor `layer_decay`; with `freeze` the head alone
        is in a group. Raises ValueError for a `layer_decay` outside (0, 1], and for `freeze` without a head.
        """
        if freeze and not has_head(self.parts):
            raise ValueError(
                f"freeze=True trains the head alone, and {type(self).__name__} has none: pass a model with one."
            )
        return parameter_groups(self.specs(), self.config.num_hidden_layers, layer_decay, freeze)

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: StrPath,
        *,
        output_loading_info: Literal[False] = False,
        _do_init: Literal[True] = True,
        **options: Any,
    ) -> Self: ...

    @overload
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: StrPath,
        *,
        output_loading_info: Literal[True],
        _do_init: Literal[True] = True,
        **options: Any,
    ) -> tuple[Self, LoadReport]: ...

    @overload  # of a Flax model without its parameters, and of options that are computed
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: StrPath, **options: Any) -> Any: ...

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: StrPath,
        *,
        config: ViTConfig | StrPath | None = None,
        cache_dir: StrPath | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        use_safetensors: bool | None = None,
        device_map: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        position_kernel: str | None = None,
        seed: int | None = None,
        head: str = "keep",
        pooler: str = "keep",
        from_pt: bool = False,
        from_tf: bool = False,
        from_flax: bool = False,
        **overrides: Any,
    ) -> Any:
        """A model from a folder or a hub repository ("org/name"), in evaluation mode.

        `overrides` are fields of the configuration, such as `num_labels` or `image_size`, and arguments of the class.
        A head of another size is an error, unless `id2label`, `label2id` or `ignore_mismatched_sizes=True` asks for a
        fresh one, which also takes the place of a head that no ViT has: on top of a pooler, on the mean of the patches,
        or of several layers.
        `head="drop"` and `pooler="drop"` leave out those of the checkpoint, whatever their size. Another `image_size`
        resizes the position embeddings with `position_kernel`, by default the configuration's, which it becomes where
        the model can compute with it; another `num_channels` sums or repeats the patch projection, as timm does, and
        averages or repeats the mean and deviation that pictures are normalised with. A model without a head has a
        pooler where the checkpoint has one, or `add_pooling_layer=True` asks for a fresh one.
        `dtype` is float32 unless given; "auto" takes the file's. `seed` makes the initialisation of missing parameters
        the same in every framework.
        `from_pt`, `from_tf` and `from_flax` demand that format; without them any that `conversion` knows is read, from
        a single file as well, with those of its options that are needed: `filename`, `key`, `prefix`,
        `stored_image_size`, `fold_layer_scale`, `ignore_unknown`. `use_safetensors=True` demands that container,
        False another. `device_map`, of PyTorch, is the device of the whole model: its name, {"": name}, or "auto" for
        the one that is there. Other keywords of transformers are accepted where they change nothing.

        With `output_loading_info=True`: the tuple (model, LoadReport). Raises OSError for what can't be found or
        fetched, ValueError for what is damaged or does not fit, TypeError for a keyword that is not known.
        """
        overrides = understood({**overrides, "token": token}, "from_pretrained")
        options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": overrides.pop("token"),
            "revision": revision,
        }
        formats = [f for f, flag in (("pt", from_pt), ("tf", from_tf), ("flax", from_flax)) if flag]
        reading = {name: overrides.pop(name) for name in READING if name in overrides}
        if isinstance(config, str | Path):
            config = cls.config_class.from_pretrained(config, **options)
        reading["num_attention_heads"] = overrides.get(
            "num_attention_heads", getattr(config, "num_attention_heads", None)
        )
        drops = {"head": not keeps("head", head), "pooler": not keeps("pooler", pooler)}
        named = any(overrides.get(name) is not None for name in ("id2label", "label2id"))
        fresh_head = named or ignore_mismatched_sizes or drops["head"]
        headless = cls.architecture in PARTS and not has_head(PARTS[cls.architecture])
        reading["head"] = "drop" if headless else "fresh" if fresh_head else "keep"
        reading["family"] = cls.family()
        checkpoint = cls._read(
            pretrained_model_name_or_path,
            variant=variant,
            formats=formats,
            use_safetensors=use_safetensors,
            subfolder=subfolder,
            **reading,
            **options,
        )
        if use_safetensors is not None and use_safetensors != (SAFETENSORS.suffix in checkpoint.path.name):
            expected = "safetensors" if use_safetensors else "another kind"
            raise ValueError(
                f"use_safetensors={use_safetensors} was given, but the first weights found are {checkpoint.path}: pass "
                f"filename= with the name of a file of {expected}, or leave it out."
            )
        checkpoint = checkpoint.without([*HEADS] * drops["head"] + ["pooler"] * drops["pooler"])
        stored = checkpoint.config
        if checkpoint.family is not cls.family() and checkpoint.family.model_type not in cls.config_class.reads:
            raise ValueError(
                f"{checkpoint.path} is a model of the family {checkpoint.family.model_type!r}, no "
                f"{cls.family().title}: load it with one of {', '.join(checkpoint.family.models)}."
            )
        if config is None and stored is None:
            raise FileNotFoundError(
                f"No {CONFIG_NAME} beside {checkpoint.path}: pass config={cls.config_class.__name__}(...). "
                "transformers' Trainer writes none for this package's models: model.save_pretrained(folder) does."
            )
        if position_kernel in CALL_KERNELS:
            overrides["position_kernel"] = position_kernel
        overrides["dtype"] = resolve_dtype(dtype if torch_dtype is None else torch_dtype, checkpoint.dtypes)
        used, model_kwargs = cls.config_class.from_dict(vars(config or stored), return_unused_kwargs=True, **overrides)
        used.name_or_path = str(pretrained_model_name_or_path)
        if unknown := model_kwargs.keys() - (known := cls._arguments()):
            raise TypeError(
                f"{cls.__name__}.from_pretrained() got unexpected keywords: {', '.join(sorted(unknown))}. They are "
                f"neither fields of the configuration nor arguments of the class, which are {', '.join(sorted(known))}."
            )
        pooled = any(name.startswith("pooler.") for name in checkpoint.tensors)
        asked = "add_pooling_layer" in model_kwargs or "add_pooling_layer" not in known
        own = specs(used, {"pooler"} & PARTS.get(cls.architecture, frozenset())).values()
        unpooled = not asked and not pooled and any(spec.part == "pooler" for spec in own)
        if unpooled:
            model_kwargs["add_pooling_layer"] = False
        tensors, report = fit(
            checkpoint,
            used,
            cls.parts_of(used, **model_kwargs),
            stored_grid=stored.grid if stored else None,
            stored_channels=stored.num_channels if stored else None,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            fresh_head=named,
            kernel=position_kernel or used.position_kernel,
        )
        if unpooled:
            report.notes.append(
                f"{checkpoint.path} holds no pooler, so that pooler_output is None: take model.features(pixel_values), "
                "or pass add_pooling_layer=True for a fresh pooler to be trained."
            )
        if "image_size" in overrides and (note := calls.unseen(used)):
            report.notes.append(note)
        with cls._placed(one_device(device_map)):
            model = cls.from_tensors(used, tensors, seed, **model_kwargs)
        made = model[0] if isinstance(model, tuple) else model  # Flax's, with the parameters beside it
        report = made.load_additions(checkpoint.by_any_name(), report, strict=not ignore_mismatched_sizes)
        made.name_or_path = used.name_or_path
        made.preprocessor = _fitting(checkpoint.processor, stored, used)
        if output_loading_info:
            return model, report
        if message := report.warning(cls.__name__):
            warnings.warn(message, stacklevel=2)
        return model

    def save_pretrained(
        self,
        save_directory: StrPath,
        *,
        is_main_process: bool = True,
        state_dict: Any = None,
        params: Any = None,
        save_function: Any = None,
        max_shard_size: int | str = "5GB",
        dtype: Any = None,
        variant: str | None = None,
        safe_serialization: bool = True,
        save_format: str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub_options: Any,
    ) -> None:
        """Write config.json and the weights to a folder, all or nothing: a crash leaves what was there before.

        The weights of any model that were there go. A preprocessor that the model was loaded beside is written as well,
        where the folder has none. PyTorch's names in safetensors, which every library reads, are written unless
        `save_format`, "torch", "tf" or "flax", asks for those of another. `safe_serialization=False` writes a
        framework's own older file, by default this one's: pytorch_model.bin, flax_model.msgpack, or tf_model.h5, which
        has no bfloat16 and stores that as float32. `dtype` casts what is stored; `max_shard_size`, in bytes or as
        "200MB", splits it.

        `state_dict`, of a PyTorch model, or `params`, of a Flax model, is saved in place of the model's own weights.
        Nothing is written where `is_main_process` is false. `save_function` is accepted from callers of transformers;
        files are written by this package alone.
        With `push_to_hub=True` what was written is then uploaded to `repo_id` (by default the folder's name), with the
        options of `push_to_hub`. Raises OSError when the files can't be written, TypeError for an unknown keyword, and
        ValueError for weights that the format can't hold, by their names.
        """
        if hub_options.pop("saved_model", False):
            raise TypeError("saved_model=True: a SavedModel is written by model.export(folder), checkpoints by this.")
        options = hub.upload_options(hub_options, "save_pretrained", push_to_hub)
        if not is_main_process:
            return
        format, container = _format(save_format or ("torch" if safe_serialization else self.file_format))
        container = SAFETENSORS if safe_serialization else container
        check_container(container, variant)
        folder = Path(save_directory)
        given = {"state_dict": state_dict, "params": params}
        given = {name: weights for name, weights in given.items() if weights is not None}
        if foreign := given.keys() - {self.weights_keyword}:
            raise TypeError(f"{', '.join(foreign)} is no argument of {type(self).__name__}.save_pretrained().")
        if own := self.config.unknown_to_others:
            warnings.warn(
                f"transformers' {self.family().title} has no place for {' and '.join(own)}: this folder is for this "
                "package alone. For others, vit-convert it --to timm"
                f"{', or read it with fold_layer_scale=True and save that' * bool(self.config.layer_scale)}.",
                stacklevel=2,
            )
        tensors, added = self._weights(**given)
        if (added or self.architecture not in PARTS) and (format, container.format) != ("pt", "pt"):
            raise ValueError(
                f"{', '.join(added) or self.architecture} can't be saved in this format, which holds the weights of a "
                'ViT alone: leave out save_format, or pass save_format="torch".'
            )
        if dtype is not None:
            tensors, added = (
                {name: t if t.dtype.kind in "iub" else t.astype(dtype_name(dtype)) for name, t in each.items()}
                for each in (tensors, added)
            )
        wanted = {n: spec for n, spec in specs(self.config, self.family().all_parts).items() if n in tensors}
        _check_shapes(tensors, wanted)
        _check_folder(folder)
        patterns = weights_patterns(variant)
        stored = Counter(container.storable(t).dtype.name for t in tensors.values()).most_common(1)[0][0]
        config = self.config.copy(architectures=[self.architecture], dtype=stored)
        native = as_native(tensors, wanted, self.architecture, format, container) | added
        with replacing_files(folder, patterns) as stage:
            write_native(stage, native, self.architecture, format, container, max_shard_size, variant)
            config.to_json_file(stage / CONFIG_NAME)
            if self.preprocessor is not None and not find(folder, PREPROCESSOR_NAME).exists():
                write_atomically(stage / PREPROCESSOR_NAME, (json.dumps(self.preprocessor, indent=2) + "\n").encode())
            beside = (
                {PREPROCESSOR_NAME} if find(folder, PREPROCESSOR_NAME).exists() else set()
            )  # without which it guesses
            names = {*os.listdir(stage), *beside}
        if push_to_hub:
            hub.upload(folder, repo_id or folder.resolve().name, names=names, delete_patterns=patterns, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model to a hub repository, made when it is not there; returns the address of the commit.

        `options` are those of `save_pretrained` and, for the hub, `token`, `private`, `revision`, `create_pr`,
        `commit_message` and `commit_description`. Raises TypeError for others.
        """
        own = signature(PretrainedModel.save_pretrained).parameters
        saving = {name: options.pop(name) for name in own if name in options}
        patterns = weights_patterns(saving.get("variant"))
        return hub.push(partial(self.save_pretrained, **saving), repo_id, patterns, **options)

    def _weights(self, **given: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What is to be saved: the table's parameters by canonical name, and what a user has added, by its own names.

        Of what is `given` as `weights_keyword`, or of the model. Raises ValueError that names what can't be saved.
        """
        return self.to_tensors(), {}


def _fitting(document: dict[str, Any] | None, stored: ViTConfig | None, config: ViTConfig) -> dict[str, Any] | None:
    """A preprocessor's document, for the channels and the size of the model where they are not the `stored` ones."""
    if document is None:
        return None
    document = with_statistics(document, (stored or config).num_channels, config.num_channels)
    if stored is not None and config.image_size == stored.image_size:
        return document
    return for_size(document, *pair(config.image_size))


def _format(name: str) -> tuple[str, Container]:
    """The format of a name, torch, tf or flax, and the older container of its framework. Raises ValueError."""
    format = {"torch": "pt"}.get(name, name)
    if format not in OWN_CONTAINERS:
        raise ValueError(f"save_format must be one of torch, tf, flax, got {name!r}.")
    return format, OWN_CONTAINERS[format]


def weights_patterns(variant: str | None = None) -> tuple[str, ...]:
    """Patterns of the weights files that a save replaces: of a variant its own, else of every container."""
    return tuple(pattern for c in CONTAINERS if c.format == "pt" or not variant for pattern in c.patterns(variant))


def _check_folder(folder: Path) -> None:
    """Raise ValueError for a folder of another library, whose files would no longer belong together."""
    if there := [name for name in (PRESET_MODEL, PRESET_TASK_MODEL) if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {' and '.join(there)}, the weights of a keras-hub preset, and its other files: save to "
            "another folder, or remove them."
        )


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Spec]) -> None:
    if whole := [name for name in wanted if tensors[name].dtype.kind in "iub"]:
        raise ValueError(
            f"{len(whole)} parameters are whole numbers, as of quantised layers, which checkpoints do not hold: "
            f"{', '.join(whole[:8])}. Save the model before it is quantised."
        )
    wrong = [
        f"{n}: {tensors[n].shape}, {spec.shape} by the configuration"
        for n, spec in wanted.items()
        if tensors[n].shape != spec.shape
    ]
    if wrong:
        raise ValueError(
            "The model's parameters do not have the shapes of its configuration:\n  " + "\n  ".join(wrong) + "\nChange "
            "model.config (num_labels, for a new classifier) to what was built, then save again."
        )
