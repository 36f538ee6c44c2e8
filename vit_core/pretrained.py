"""The load and save methods of every model of every backend.

The core finds the files and fits their tensors to the model; a backend only takes arrays and gives arrays.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

from vit_core import hub
from vit_core.checkpoint import OWN_CONTAINERS, SAFETENSORS, Checkpoint, Container, check_container, write_checkpoint
from vit_core.config import CONFIG_NAME, ViTConfig
from vit_core.loading import fit, resolve_dtype
from vit_core.parameter_groups import ParameterGroup, parameter_groups
from vit_core.params import ALL_PARTS, HEADS, PARTS, Spec, specs
from vit_core.safetensors_file import Tensor
from vit_core.saving import replacing_files
from vit_core.validation import dtype_name

StrPath = str | Path
# Options of `conversion.read` that a caller may give.
_READING = ("filename", "key", "stored_image_size", "fold_layer_scale", "ignore_unknown")


class PretrainedModel(ABC):
    """The load and save methods of every model of every backend."""

    architecture: ClassVar[str]  # the PyTorch name of the model class, a key of PARTS
    file_format: ClassVar[str]  # the format the backend saves in: pt, tf or flax
    config: ViTConfig
    parts: frozenset[str]  # the optional parts of the table that the model has

    @classmethod
    def parts_of(
        cls, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **_: Any
    ) -> frozenset[str]:
        """The optional parts of the table that a model built with these arguments has."""
        parts = set(PARTS[cls.architecture])
        if not add_pooling_layer:
            parts.discard("pooler")
        return frozenset(parts | {"mask_token"} if use_mask_token else parts)

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

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """Every parameter by canonical name, in PyTorch's layout, converted one by one when read."""

    @abstractmethod
    def specs(self) -> dict[str, Spec]:
        """The table's entries of this model's parameters, by the names that its framework gives them."""

    def parameter_groups(self, layer_decay: float = 1.0, freeze: bool = False) -> list[ParameterGroup]:
        """The model's parameters, by the keys of `specs`, in groups that an optimizer treats alike.

        Layer by layer down from the head, learning rates fall by the factor `layer_decay`; with `freeze` the head alone
        is in a group. Raises ValueError for a `layer_decay` outside (0, 1], and for `freeze` without a head.
        """
        if freeze and not self.parts & set(HEADS):
            raise ValueError(
                f"freeze=True trains the head alone, and {type(self).__name__} has none: pass a model with one."
            )
        return parameter_groups(self.specs(), self.config.num_hidden_layers, layer_decay, freeze)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: StrPath,
        *,
        config: ViTConfig | StrPath | None = None,
        cache_dir: StrPath | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = None,
        subfolder: str = "",
        variant: str | None = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        position_kernel: str = "hf",
        seed: int | None = None,
        from_pt: bool = False,
        from_tf: bool = False,
        from_flax: bool = False,
        **overrides: Any,
    ) -> Any:
        """A model from a folder or a hub repository ("org/name"), in evaluation mode.

        `overrides` are fields of the configuration, such as `num_labels` or `image_size`, and arguments of the class.
        A head of another size is an error, unless `id2label` or `ignore_mismatched_sizes=True` asks for a fresh one;
        another `image_size` resizes the position embeddings with `position_kernel`. `dtype` is float32 unless given;
        "auto" takes the file's. `seed` makes the initialisation of missing parameters the same in every framework.
        `from_pt`, `from_tf` and `from_flax` demand that format; without them any that `conversion` knows is read, from
        a single file as well, with those of its options that are needed: `filename`, `key`, `stored_image_size`,
        `fold_layer_scale`, `ignore_unknown`.

        With `output_loading_info=True`: the tuple (model, LoadReport). Raises OSError for what can't be found or
        fetched, ValueError for what is damaged or does not fit.
        """
        options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
        }
        formats = [f for f, flag in (("pt", from_pt), ("tf", from_tf), ("flax", from_flax)) if flag]
        reading = {name: overrides.pop(name) for name in _READING if name in overrides}
        reading["num_attention_heads"] = overrides.get("num_attention_heads")
        reading["head"] = "keep" if set(HEADS) & PARTS[cls.architecture] else "drop"
        checkpoint = cls._read(
            name_or_path, variant=variant, formats=formats, subfolder=subfolder, **reading, **options
        )
        stored = checkpoint.config
        if isinstance(config, str | Path):
            config = ViTConfig.from_pretrained(config, **options)
        if config is None and stored is None:
            raise FileNotFoundError(f"No {CONFIG_NAME} beside {checkpoint.path}: pass config=ViTConfig(...).")
        overrides["dtype"] = resolve_dtype(dtype if torch_dtype is None else torch_dtype, checkpoint)
        used, model_kwargs = ViTConfig.from_dict(vars(config or stored), return_unused_kwargs=True, **overrides)
        tensors, report = fit(
            checkpoint,
            used,
            cls.parts_of(used, **model_kwargs),
            stored_grid=stored.grid if stored else None,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            fresh_head="id2label" in overrides,
            kernel=position_kernel,
        )
        model = cls.from_tensors(used, tensors, seed, **model_kwargs)
        if output_loading_info:
            return model, report
        if message := report.warning(cls.__name__):
            warnings.warn(message, stacklevel=2)
        return model

    def save_pretrained(
        self,
        folder: StrPath,
        *,
        max_shard_size: int | str = "5GB",
        dtype: Any = None,
        variant: str | None = None,
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **hub_options: Any,
    ) -> None:
        """Write config.json and the weights to `folder`, all or nothing: a crash leaves what was there before.

        `dtype` casts what is stored; `max_shard_size`, in bytes or as "200MB", splits it. `safe_serialization=False`
        writes the framework's own older file in place of safetensors: pytorch_model.bin, flax_model.msgpack, or
        tf_model.h5, which has no bfloat16 and stores that as float32.
        With `push_to_hub=True` the folder is then uploaded to `repo_id` (by default the folder's name), with the
        options of `push_to_hub`. Raises OSError when the files can't be written.
        """
        container = self._container(safe_serialization)
        check_container(container, variant)
        folder = Path(folder)
        tensors = self.to_tensors()
        if dtype is not None:
            tensors = {name: t.astype(dtype_name(dtype)) for name, t in tensors.items()}
        wanted = {name: spec for name, spec in specs(self.config, ALL_PARTS).items() if name in tensors}
        _check_shapes(tensors, wanted)
        patterns = self._own_patterns(variant)
        stored = Counter(container.storable(t).dtype.name for t in tensors.values()).most_common(1)[0][0]
        config = self.config.copy(architectures=[self.architecture], dtype=stored)
        with replacing_files(folder, patterns) as stage:
            write_checkpoint(
                stage,
                tensors,
                wanted,
                self.architecture,
                format=self.file_format,
                container=container,
                max_shard_size=max_shard_size,
                variant=variant,
            )
            config.to_json_file(stage / CONFIG_NAME)
        if push_to_hub:
            hub.upload(folder, repo_id or folder.resolve().name, delete_patterns=patterns, **hub_options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        max_shard_size: int | str = "5GB",
        dtype: Any = None,
        variant: str | None = None,
        safe_serialization: bool = True,
        **hub_options: Any,
    ) -> str:
        """Upload the model to a hub repository, made when it is not there; returns the address of the commit.

        `hub_options`: `token`, `private`, `revision`, `create_pr`, `commit_message`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(
                folder,
                max_shard_size=max_shard_size,
                dtype=dtype,
                variant=variant,
                safe_serialization=safe_serialization,
            )
            return hub.upload(folder, repo_id, delete_patterns=self._own_patterns(variant), **hub_options)

    def _container(self, safe_serialization: bool) -> Container:
        return SAFETENSORS if safe_serialization else OWN_CONTAINERS[self.file_format]

    def _own_patterns(self, variant: str | None) -> tuple[str, ...]:
        containers = (SAFETENSORS, OWN_CONTAINERS[self.file_format])
        return tuple(pattern for c in containers if c.format == "pt" or not variant for pattern in c.patterns(variant))


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Spec]) -> None:
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
