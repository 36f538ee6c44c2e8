"""What a conversion will write: the source's tensors with every change that was asked for, and the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vit_core.channels import PROJECTION, STATISTICS, with_channels, with_statistics
from vit_core.config import ViTConfig, pair
from vit_core.family import HEADS, POSITION_BIAS, POSITIONS, SHARED_POSITION_BIAS, family_of, parted
from vit_core.files.documents import blaming
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Checkpoint, check_floats
from vit_core.formats.settle import add_zero_biases, linear_heads
from vit_core.formats.side import stated
from vit_core.initialization import draw
from vit_core.loading import COMPUTE_DTYPES, is_absent_bias
from vit_core.params import Spec, specs
from vit_core.pictures.processing import AutoImageProcessor, for_size
from vit_core.position import (
    relative_positions,
    resize_matrix,
    resize_position_bias,
    resize_position_embeddings,
)
from vit_core.validation import dtype_name, keeps


@dataclass(frozen=True)
class Plan:
    """Tensors by canonical name, in PyTorch's layout, with the configuration and the class of their model."""

    tensors: dict[str, Tensor]
    specs: dict[str, Spec]
    config: ViTConfig
    architecture: str
    processor: dict[str, Any] | None
    notes: list[str]


def plan(
    checkpoint: Checkpoint,
    *,
    image_size: int | tuple[int, int] | None = None,
    position_kernel: str | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    num_channels: int | None = None,
    head: str = "keep",
    pooler: str = "keep",
    hidden_act: str | None = None,
    layer_norm_eps: float | None = None,
    ignore_unknown: bool = False,
) -> Plan:
    """The source's tensors with a head, a grid and a configuration as asked for.

    Raises ValueError for what can't be, or would be lost without being asked for.
    """
    keep_head, keep_pooler = keeps("head", head), keeps("pooler", pooler)
    config, notes = checkpoint.config, [*checkpoint.notes, *checkpoint.doubts]
    if config is None:
        raise FileNotFoundError(
            f"No config.json beside {checkpoint.path}: put it there, or pass config=ViTConfig(...)."
        )
    tensors = dict(checkpoint.tensors)
    check_floats(checkpoint.path, tensors)
    if checkpoint.unknown and not ignore_unknown:
        names = sorted(checkpoint.unknown)
        raise ValueError(
            f"{checkpoint.path} holds {len(names)} tensors that no ViT has: {', '.join(names[:8])}. Pass "
            "ignore_unknown=True to leave them out."
        )
    notes += [f"left out {name}: no tensor of a ViT" for name in sorted(checkpoint.unknown)]
    notes += [f"left out {name}, as asked" for name in checkpoint.dropped]
    values = {"hidden_act": hidden_act, "layer_norm_eps": layer_norm_eps}
    config = config.copy(**{name: value for name, value in values.items() if value is not None})
    dropped = (() if keep_head else (*HEADS, "mask_token")) + (() if keep_pooler else ("pooler",))
    rows = {name: checkpoint.family.row_of(name) for name in tensors}
    for part in dropped:
        gone = [name for name in tensors if (row := rows[name]) is not None and row.part == part]
        notes += [f"left out {name}, as asked" for name in gone]
        tensors = {name: tensor for name, tensor in tensors.items() if name not in gone}
    if image_size is not None:
        config = _resized(tensors, config, image_size, position_kernel, notes)
    if num_channels is not None and num_channels != config.num_channels:
        notes.append(
            f"the patch projection of {config.num_channels} channels is adapted to {num_channels}, as timm does"
        )
        config = config.copy(num_channels=num_channels)
        tensors[PROJECTION] = with_channels(tensors[PROJECTION], num_channels)
    if num_labels is not None:
        config = _with_head(tensors, config, num_labels, notes)
    if labels is not None:
        config = _named(tensors, config, labels)
    return _checked(checkpoint, tensors, config, notes)


def _resized(
    tensors: dict[str, Tensor],
    config: ViTConfig,
    image_size: int | tuple[int, int],
    kernel: str | None,
    notes: list[str],
) -> ViTConfig:
    """The configuration for pictures of another size, in pixels; what knows of positions is resized in `tensors`."""
    kernel = kernel or config.position_kernel
    source, resized = config.grid, config.copy(image_size=image_size)
    target = resized.grid
    if source == target:
        return resized
    tables = [name for name in tensors if parted(name)[0] in (POSITION_BIAS, SHARED_POSITION_BIAS)]
    for name in tables:
        tensors[name] = tensors[name].changed(
            ("resize", f"{source} to {target}, bilinear"),
            lambda array: resize_position_bias(array, source, target),
            shape=(relative_positions(*target), *tensors[name].shape[1:]),
        )
    if tables:
        notes.append(f"{len(tables)} tables of relative positions are resized from {source} to {target} patches")
    if POSITIONS not in tensors:
        return resized
    resize_matrix(source[0], target[0], kernel)  # a kernel that is not there is refused before anything is written
    notes.append(f"position embeddings are resized from {source} to {target} patches (kernel {kernel!r})")
    first = config.position_prefix
    shape = (1, first + resized.num_patches, tensors[POSITIONS].shape[2])
    change = ("resize", f"{source} to {target}, {kernel}")
    tensors[POSITIONS] = tensors[POSITIONS].changed(
        change, lambda array: resize_position_embeddings(array, source, target, kernel, first), shape=shape
    )
    return resized


def _with_head(tensors: dict[str, Tensor], config: ViTConfig, num_labels: int, notes: list[str]) -> ViTConfig:
    """A classifier of this many labels: the source's where it has as many, else one drawn as a new model's is."""
    stored = tensors.get("classifier.weight")
    if stored is not None and stored.shape[0] == num_labels:
        return config
    changed = config.copy(num_labels=num_labels)
    like = tensors[PROJECTION].dtype
    for name, spec in specs(changed, {"classifier"}).items():
        if spec.part == "classifier":
            tensors[name] = replace(Tensor.of(draw(spec, changed, seed=0)).astype(like), source="(drawn)")
    notes.append(f"the classifier of {num_labels} labels is newly initialised (seed 0): train it before you use it")
    return changed


def _named(tensors: dict[str, Tensor], config: ViTConfig, labels: Sequence[str]) -> ViTConfig:
    """The configuration with names of the classes. Raises ValueError where there are not as many, or no classifier."""
    if "classifier.weight" not in tensors:
        raise ValueError("labels name the classes of a classifier, and there is none: leave them out.")
    if len(labels) != config.num_labels:
        raise ValueError(
            f"labels must name {config.num_labels} classes, got {len(labels)}: pass as many, or "
            f"num_labels={len(labels)} for a new classifier."
        )
    return config.copy(id2label=dict(enumerate(labels)))


def _checked(checkpoint: Checkpoint, tensors: dict[str, Tensor], config: ViTConfig, notes: list[str]) -> Plan:
    """The plan, when the tensors are those of one model class and have its shapes."""
    family = checkpoint.family
    add_zero_biases(tensors, linear_heads(family), notes)
    parts = family.parts_in(tensors)
    architecture = family.architecture_of(parts)
    if not parts <= {*family.parts(architecture), "mask_token"}:
        raise ValueError(
            f"{checkpoint.path} has {' and '.join(sorted(parts - {'mask_token'}))}, which no model class has together: "
            "pass head='drop' or pooler='drop'."
        )
    wanted = specs(config, parts)
    absent = [name for name, tensor in tensors.items() if is_absent_bias(name, tensor, config)]
    if absent:
        notes.append(f"left out {len(absent)} biases of zeros that the configuration has not (qkv_bias=False)")
    tensors = {name: tensor for name, tensor in tensors.items() if name not in absent}
    wrong = [
        *(f"{name}: missing" for name in wanted if name not in tensors),
        *(f"{name}: not in a model of this configuration" for name in tensors if name not in wanted),
        *(
            f"{name}: {tensors[name].shape} in the file, {spec.shape} by the configuration"
            for name, spec in wanted.items()
            if name in tensors and tensors[name].shape != spec.shape
        ),
    ]
    if wrong:
        raise ValueError(
            f"{checkpoint.path} does not fit its configuration:\n  " + "\n  ".join(wrong[:12]) + "\n"
            "Mend the config.json beside it, or pass the options that say what it is."
        )
    config = config.copy(architectures=[architecture])
    ordered = {name: tensors[name] for name in wanted}
    return Plan(ordered, wanted, config, architecture, _for_pictures(checkpoint, config, notes), notes)


def _for_pictures(checkpoint: Checkpoint, config: ViTConfig, notes: list[str]) -> dict[str, Any] | None:
    """The preprocessor's document with the size and the channels of the model's pictures."""
    processor = checkpoint.processor
    if processor is None:
        return None
    document = with_statistics(processor, (checkpoint.config or config).num_channels, config.num_channels)
    if changed := [name for name in STATISTICS if document.get(name) != processor.get(name)]:
        how = "averaged" if config.num_channels == 1 else "repeated in turn"
        notes.append(f"{' and '.join(changed)} are {how} for pictures of {config.num_channels} channels")
    document = for_size({"image_processor_type": "ViTImageProcessor", **document}, *pair(config.image_size))
    with blaming(getattr(processor, "source", "the preprocessor")):
        AutoImageProcessor.from_dict(document)  # what it would refuse is refused before anything is written
        stated(document)  # also where a step that takes them is off
    return document


def cast(tensors: dict[str, Tensor], dtype: Any) -> dict[str, Tensor]:
    """The tensors in another dtype, when they are read; as they are where it is None.

    Raises ValueError for what is no floating-point dtype.
    """
    if dtype is None:
        return tensors
    name = dtype_name(dtype)
    if name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}.")
    return {n: tensor.astype(name) for n, tensor in tensors.items()}


def with_qkv_biases(planned: Plan, title: str) -> Plan:
    """The plan with biases of zeros for queries, keys and values, where a format's models always have them."""
    if planned.config.qkv_bias:
        return planned
    config = planned.config.copy(qkv_bias=True)
    wanted = specs(config, family_of(config).parts_in(planned.tensors))
    zeros = {
        name: replace(
            Tensor.of(np.zeros(spec.shape, planned.tensors[name.replace(".bias", ".weight")].dtype)), source="(zeros)"
        )
        for name, spec in wanted.items()
        if name not in planned.tensors
    }
    notes = [*planned.notes, f"{len(zeros)} biases of zeros are added, {title} always has them"]
    tensors = {name: planned.tensors.get(name) or zeros[name] for name in wanted}
    return replace(planned, tensors=tensors, specs=wanted, config=config, notes=notes)
