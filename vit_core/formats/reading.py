"""Reading a checkpoint of any family: found, told apart by its content, and brought to canonical names and layout."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vit_core.config import CLASSES, AutoConfig, ViTConfig, config_class
from vit_core.family import FAMILIES, family_of, member_of
from vit_core.files import hub
from vit_core.files.documents import blaming
from vit_core.files.names import CONFIG_NAME, PREPROCESSOR_NAME, PRESET_BESIDE, PRESET_TASK_MODEL
from vit_core.files.saving import beside, find, listing, settled
from vit_core.files.tensor import Tensor
from vit_core.formats import FORMATS
from vit_core.formats.detect import container_of
from vit_core.formats.format import Format, Side, Tensors, first_match
from vit_core.formats.heads import renamed_head
from vit_core.formats.huggingface import (
    PYTORCH_BIN,
    Checkpoint,
    Named,
    as_checkpoint,
    checked_rank,
    read_named,
    readable_names,
    recognise,
)
from vit_core.formats.keras import KERAS_H5
from vit_core.formats.prefixes import Under, copy_rank, find_prefix, seen, unwrapped, unwrapped_name
from vit_core.formats.rules import Heads
from vit_core.formats.settle import folded, settle
from vit_core.formats.side import json_beside
from vit_core.params import DIALECTS

StrPath = str | os.PathLike[str]
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".h5", ".msgpack", ".ckpt", ".pth.tar", ".pyth")
_FLAX_CHECKPOINT = re.compile(r"checkpoint_\d+")  # as flax.training.checkpoints names them
_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt")
_BOOKKEEPING = (
    (r"(^|\.)n_averaged$", "how many models were averaged"),
    (r"^(opt_state|optimizer)[./]", "the optimizer's state"),
    (r"^step$", "the number of a step"),
)
_prepare = partial(renamed_head, place="classifier", name="classifier")  # for Hugging Face's names
# The names of Hugging Face's formats that stand once in a model, without the trunk's prefix.
_ONCE = [
    dialect.template(row, leaf)
    for dialect in DIALECTS.values()
    for family in FAMILIES.values()
    for row in family.table
    for leaf in row.leaves
    if "{}" not in row.name
]


def read(
    source: StrPath,
    *,
    filename: str | None = None,
    key: str | None = None,
    prefix: str | None = None,
    variant: str | None = None,
    formats: Collection[str] = (),
    config: ViTConfig | None = None,
    num_attention_heads: int | None = None,
    stored_image_size: int | tuple[int, int] | None = None,
    head: str = "keep",
    fold_layer_scale: bool = False,
    ignore_unknown: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Open a checkpoint of any family: a file, a folder or a hub id. No tensor is read yet.

    `filename` is the weights file within a folder or repository, `key` the state dict within a file that holds
    several, `prefix` what the names of the model's tensors begin with: by default that under which most of a model is
    found. Tensors outside of it are `unknown`. `formats` demands some of "pt", "tf", "flax" or a family's name.
    `config`, `num_attention_heads` and `stored_image_size` (pixels) say what a source without a config.json does not.
    `head="drop"` leaves the head out, and with it what only the head is odd in; `head="fresh"` does so where there is
    such an oddity, and lists what it left out as `unknown`. `fold_layer_scale` multiplies layer scales, which most
    other programs' ViTs have no place for, into the layers before them; `ignore_unknown` leaves out what no model of
    the format has, which is an error otherwise.

    Raises OSError for what can't be found or fetched, ValueError for what is damaged, or is no ViT: with the names of
    the tensors that make it something else.
    """
    given = {"num_attention_heads": num_attention_heads, "image_size": stored_image_size}
    local = Path(source).expanduser() / hub_options.get("subfolder", "") / (filename or "")

    def read_once() -> Checkpoint:
        path = _locate(source, filename, variant, formats, hub_options)
        return _read(path, key, prefix, formats, config, given, head, fold_layer_scale, ignore_unknown)

    return settled(local, read_once)


def _read(
    path: Path,
    key: str | None,
    prefix: str | None,
    formats: Collection[str],
    config: ViTConfig | None,
    given: dict[str, Any],
    head: str,
    fold: bool,
    ignore_unknown: bool,
) -> Checkpoint:
    """What `read` makes of the weights file, or index, that it has found."""
    named, notes = _open(path, key, ignore_unknown)
    family, under = _family(named, prefix)
    tensors = under.inside
    format = family.name if family else recognise(tensors, named.format)[1]
    kept = {name: reason for name in named.tensors if (reason := first_match(_BOOKKEEPING, name))}
    notes += [f"left out {line}" for line in _grouped(kept)]
    if formats and format not in formats:
        raise ValueError(
            f"from_{next(iter(formats))}=True was given, but {path} has the format {format!r}: leave the argument "
            "out, every format is read without it."
        )
    stated = json_beside(path, CONFIG_NAME).text("model_type", "") in CLASSES
    processor: dict[str, Any] | None = json_beside(path, PREPROCESSOR_NAME) or None
    if family is None:
        _refuse_other_models(path)
        promised = {n: shard for n, shard in (named.weight_map or {}).items() if n not in named.tensors}
        checkpoint = as_checkpoint(replace(named, tensors=tensors, weight_map=named.weight_map and promised))
        if named.tensors and not checkpoint.tensors:
            raise ValueError(_no_vit(path, named.tensors))
        checkpoint = folded(checkpoint) if fold else checkpoint
        return replace(
            checkpoint,
            unknown=checkpoint.unknown | under.outside,
            config=checkpoint.config or config,
            processor=processor,
            notes=(*notes, *checkpoint.notes),
        )
    stored = AutoConfig.from_json_file(beside(path, CONFIG_NAME)) if stated else config
    side = family.read_side(path) if stored is None else Side(processor=family.read_side(path).processor)
    side.config |= {name: value for name, value in given.items() if value is not None}
    found, unknown, left = _canonical(path, family, tensors, ignore_unknown)
    left |= {name: reason for name in under.outside if (reason := first_match(family.left_out, name))}
    unknown |= {name: tensor for name, tensor in under.outside.items() if name not in left}
    notes += [f"left out {line}" for line in _grouped(left)]
    processor = processor or side.processor
    member = family_of(stored) if stored else member_of(found)
    opened = Checkpoint(path, family.name, member, found, unknown, stored, processor, tuple(notes), named.files)
    return settle(opened, family, side, _heads(family, tensors), head=head, fold=fold)


def _refuse_other_models(path: Path) -> None:
    """Raise ValueError where config.json says that the weights, by Hugging Face's names, are of another model."""
    stored = json_beside(path, CONFIG_NAME)
    try:
        config_class(kind := stored.text("model_type", ViTConfig.model_type))
    except ValueError as error:
        named = ", ".join(stored.texts("architectures")) or "its own class, which AutoModel finds"
        raise ValueError(
            f"{path} is a model of the family {kind!r} ({CONFIG_NAME} beside it), no ViT: load it with transformers' "
            f"class for it, {named}. {error}"
        ) from error


# ---- where the weights are ---------------------------------------------------------------------------------------


def _locate(
    source: StrPath, filename: str | None, variant: str | None, formats: Collection[str], options: dict[str, Any]
) -> Path:
    """The weights file, or index, of a file, a folder or a hub id; what belongs to it lies beside it."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.name.endswith((*SUFFIXES, ".json")) and not path.is_dir():
        raise FileNotFoundError(f"There is no weights file {source}: check the path.")
    wanted = [filename] if filename else [*readable_names(variant, formats), KERAS_H5.names()[0]]
    if path.is_dir() and not filename:
        wanted += _only_weights(path / options.get("subfolder", ""), wanted)
    found = hub.resolve(source, wanted, **options)
    if found.name == KERAS_H5.names()[0] and not path.is_dir():
        hub.resolve(source, [found.name], optional=PRESET_BESIDE, **options)
    return found


def _only_weights(folder: Path, usual: Collection[str]) -> list[str]:
    """The one weights file of a folder that has none of the usual names.

    Raises ValueError where there are several, and for a folder of Orbax, which other libraries can't read.
    """
    if any(find(folder, name).is_file() for name in usual):
        return []
    found = [name for name in listing(folder) if name.endswith(SUFFIXES) or _FLAX_CHECKPOINT.fullmatch(name)]
    if len(found) > 1:
        raise ValueError(f"{folder} holds several weights files, {', '.join(found)}: choose one with filename=.")
    orbax = [each for each in (folder, *folder.iterdir()) if any((each / name).is_file() for name in _ORBAX)]
    if orbax and not found:
        raise ValueError(
            f"{orbax[0]} is a checkpoint of Orbax, which Orbax alone reads: restore its params with it, and save them "
            "as a checkpoint, model.save_pretrained(folder, params=params)."
        )
    return found


# ---- what is in them ---------------------------------------------------------------------------------------------


def _open(path: Path, key: str | None, ignore_unknown: bool) -> tuple[Named, list[str]]:
    """The tensors of a file; of the state dicts in it, those of the model."""
    if path.suffix == ".json" or container_of(path) is not PYTORCH_BIN:
        named = read_named(path, container_of)
        head = beside(path, PRESET_TASK_MODEL)  # a preset of keras-hub has the head in a file of its own
        if path.name == KERAS_H5.names()[0] and head.is_file():
            tensors = {**read_named(head, container_of).tensors, **named.tensors}
            named = replace(named, tensors=tensors, shards=(path, head))
        return named, []
    from vit_core.files.pytorch import read_state_dicts  # loaded when it is needed

    groups = read_state_dicts(path)
    if key is None and len(groups) == 1:
        key = next(iter(groups))
    elif key is None:
        key = max(sorted(groups, key=copy_rank), key=lambda k: _score(groups[k]))  # the first that hold most of a ViT
    if key not in groups:
        raise ValueError(f"{path} has no state dict {key!r}: choose with key= among {', '.join(map(repr, groups))}.")
    chosen = groups[key].checked(path, ignore_unknown)
    notes = [f"took the state dict {key!r} and left {', '.join(chosen.left_out)} out"] if chosen.left_out else []
    return Named(path, chosen, "pt"), notes


def _score(tensors: Tensors) -> int:
    return max(under.score for under in _found(tensors, "pt").values())


def _found(tensors: Tensors, claimed: str, prefix: str | None = None) -> dict[str, Under]:
    """What each family finds of its names; "" for Hugging Face's formats."""
    names = unwrapped({n: t for n, t in tensors.items() if not first_match(_BOOKKEEPING, n)})
    own = find_prefix(names, _ONCE, _prepare, lambda inside: len(recognise(inside, claimed)[2]), prefix)
    if own.score == len(names):
        return {"": own}
    return {"": own} | {name: family.find(names, prefix) for name, family in FORMATS.items()}


def _family(named: Named, prefix: str | None) -> tuple[Format | None, Under]:
    """The family whose names explain most, None for Hugging Face's formats, and the tensors under its prefix."""
    prefix = prefix and unwrapped_name(prefix)
    if prefix and not any(name.startswith(prefix) for name in unwrapped(named.tensors)):
        raise ValueError(f"{named.path} has no names that begin with {prefix!r}, but {seen(named.tensors)}.")
    found = _found(named.tensors, named.format, prefix)
    best = max(found, key=lambda name: found[name].score)
    name = "" if found[best].score == found[""].score else best
    return FORMATS.get(name), found[name]


def _no_vit(path: Path, tensors: Tensors) -> str:
    shown = ", ".join(sorted(tensors)[:5])
    families = ", ".join(["Hugging Face's ViT", *(family.title for family in FORMATS.values())])
    return (
        f"{path} holds {len(tensors)} tensors ({shown} ...), none of a ViT: expected the names of {families}, with "
        f"one prefix or none. Its names begin with {seen(tensors)}."
    )


def _canonical(
    path: Path, family: Format, tensors: Tensors, ignore_unknown: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Tensors by canonical name, those that are unknown, and what is left out with the reason."""
    matched, left = family.match(tensors)
    unknown = {name: tensor for name, tensor in tensors.items() if name not in matched and name not in left}
    odd = {name: reason for name in unknown if (reason := first_match(family.refused, name))}
    if odd:
        raise ValueError(f"{path} is no plain ViT ({family.title}):\n  " + "\n  ".join(_grouped(odd)))
    if unknown and not ignore_unknown:
        raise ValueError(
            f"{path} holds what no ViT of {family.title} has: {', '.join(sorted(unknown)[:8])}. Pass "
            "ignore_unknown=True to leave that out, if it has no part in what the model computes."
        )
    found: dict[str, Tensor] = {}
    for native, (rule, layer) in matched.items():
        array = replace(checked_rank(path, native, tensors[native], rule.rank), source=native)
        with blaming(path):
            parts = list(rule.to_canonical(array, layer))
        for name, tensor in parts:
            if name in found:
                raise ValueError(f"{path} holds {name} twice, as {found[name].source!r} and {native!r}: remove one.")
            found[name] = tensor
    return found, unknown, left


def _grouped(reasons: dict[str, str]) -> list[str]:
    """A line for each reason, with the first of the names it is given for."""
    names: dict[str, list[str]] = {}
    for name in sorted(reasons):
        names.setdefault(reasons[name], []).append(name)
    return [f"{found[0]}{f' and {len(found) - 1} more' * (len(found) > 1)}: {why}" for why, found in names.items()]


def _heads(family: Format, tensors: Tensors) -> int | None:
    """The number of heads, where the arrays have an axis for it."""
    for name, (rule, _) in family.match(tensors)[0].items():
        if rule.steps and isinstance(rule.steps[-1], Heads):
            return tensors[name].shape[rule.steps[-1].axis]
    return None
