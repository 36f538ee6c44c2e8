"""Reading a checkpoint of any format: found, told apart by its content, and brought to canonical names and layout."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vit_core.config import CLASSES, AutoConfig, ViTConfig, config_class
from vit_core.family import ATTENTION_SCALE, FAMILIES, REGISTERS, Family, family_of, member_of
from vit_core.files import hub
from vit_core.files.documents import blaming
from vit_core.files.names import CONFIG_NAME, PREPROCESSOR_NAME, PRESET_BESIDE, PRESET_TASK_MODEL
from vit_core.files.saving import beside, find, listing, settled
from vit_core.files.tensor import Tensor
from vit_core.formats import FORMATS
from vit_core.formats.detect import container_of
from vit_core.formats.format import Format, Side, Tensors, first_match
from vit_core.formats.google import NPZ
from vit_core.formats.heads import renamed_head
from vit_core.formats.huggingface import (
    FLAX_MSGPACK,
    PYTORCH_BIN,
    SAFETENSORS,
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
from vit_core.formats.settle import folded, headless, settle
from vit_core.formats.side import json_beside
from vit_core.params import DIALECTS

StrPath = str | os.PathLike[str]
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".h5", ".msgpack", ".ckpt", ".pth.tar", ".pyth")
# Shards, and their index; a variant's name stands before the number, in older files behind it.
_SHARD = re.compile(r"([^.]+)(\.[\w.-]+)?-\d{5}-of-(?!00001)\d{5}(\.[\w.-]+)?(\.\w+)")
_INDEX = re.compile(r".+\.index(\.[\w.-]+)?\.json")
_FLAX_CHECKPOINT = re.compile(r"checkpoint_\d+")  # as flax.training.checkpoints names them
# What transformers' Trainer and accelerate save beside weights.
_OF_TRAINERS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|sampler|dl_state_dict|rng_state|random_states)(_\d+)?\."
)
# Folders that another library alone reads: files in them, its name, and what to do.
_SHARED_OUT = (
    (
        ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"),
        "Orbax",
        "restore its params with it, and save them as a checkpoint, model.save_pretrained(folder, params=params)",
    ),
    (
        (".metadata",),
        "torch.distributed.checkpoint",
        "make one file of it, python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt",
    ),
    (("zero_to_fp32.py",), "DeepSpeed", "make one file of it, with the zero_to_fp32.py that is in it"),
)
_BOOKKEEPING = (
    (r"(^|\.)n_averaged$", "how many models were averaged"),
    (r"(^|[./])(opt_state|optimizer)[./]", "the optimizer's state"),
    (r"(^|[./])step$", "the number of a step"),
    (r"(^|[./])relative_position_index$", "which row of a table each pair of tokens has, which the grid says"),
    (r"(^|[./])(\w*_)?rng(_key)?$", "the state of random numbers"),
)
# What no tensors of a whole model are called, and what to do about it.
_PARTS_OF_MODELS = (
    (
        r"\.(base_layer|lora_[AB]|modules_to_save)\.",
        "an adapter of PEFT, not merged: load it with peft and save model.merge_and_unload()",
    ),
    (r"(^|\.)_?flat_param$", "FSDP's shard of flattened parameters: save with StateDictType.FULL_STATE_DICT"),
    (
        r"\.(SCB|weight_format|qweight|qzeros|weight_(scale|scale_inv|packed)|zero_point)$"
        r"|\.weight\.(absmax|quant_map|quant_state)\b",
        "what a quantised layer is made of: load it with the library that quantised it, and save it dequantised",
    ),
    (
        r"\.(weight|bias)_(orig|mask)$",
        'what a pruning computes weights of: end it by torch.nn.utils.prune.remove(layer, "weight"), and save again',
    ),
)
_prepare = partial(renamed_head, place="classifier", name="classifier")  # for Hugging Face's names
# The names of Hugging Face's formats that stand once in a model, without the trunk's prefix.
_ONCE = [
    name
    for dialect in DIALECTS.values()
    for family in FAMILIES.values()
    for row in family.table
    for leaf in row.leaves
    for name in dialect.templates(row, leaf, family)
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
    use_safetensors: bool | None = None,
    config: ViTConfig | None = None,
    num_attention_heads: int | None = None,
    stored_image_size: int | tuple[int, int] | None = None,
    head: str = "keep",
    fold_layer_scale: bool = False,
    ignore_unknown: bool = False,
    family: Family | None = None,
    **hub_options: Any,
) -> Checkpoint:
    """Open a checkpoint of any format: a file, a folder or a hub id. No tensor is read yet.

    `filename` is the weights file within a folder or repository, `key` the state dict within a file that holds
    several, `prefix` what the names of the model's tensors begin with: by default that under which most of a model is
    found. Tensors outside of it are `unknown`. `formats` demands some of "pt", "tf", "flax" or a format's name;
    `use_safetensors` prefers files of that container, or with False those of others.
    `config`, `num_attention_heads` and `stored_image_size` (pixels) say what a source without a config.json does not.
    `head="drop"` leaves the head out, and with it what only the head is odd in; `head="fresh"` does so where there is
    such an oddity, and lists what it left out as `unknown`. `fold_layer_scale` multiplies layer scales, which most
    other programs' ViTs have no place for, into the layers before them; `ignore_unknown` leaves out what no model of
    the format has, which is an error otherwise. `family` is the member that a file is of which several could have
    written, and which does not say.

    Raises OSError for what can't be found or fetched, ValueError for what is damaged, or is no ViT: with the names of
    the tensors that make it something else.
    """
    given = {"num_attention_heads": num_attention_heads, "image_size": stored_image_size}
    local = Path(source).expanduser() / hub_options.get("subfolder", "") / (filename or "")

    def read_once() -> Checkpoint:
        path = _locate(source, filename, variant, formats, use_safetensors, hub_options)
        return _read(path, key, prefix, formats, config, given, head, fold_layer_scale, ignore_unknown, family)

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
    family: Family | None,
) -> Checkpoint:
    """What `read` makes of the weights file, or index, that it has found."""
    named, notes = _open(path, key, ignore_unknown)
    if parts := {name: reason for name in named.tensors if (reason := first_match(_PARTS_OF_MODELS, name))}:
        raise ValueError(f"{path} is no whole model:\n  " + "\n  ".join(_grouped(parts)))
    fmt, under = _format_of(named, prefix)
    tensors = under.inside
    format = fmt.name if fmt else recognise(tensors, named.format)[1]
    kept = {name: reason for name in named.tensors if (reason := first_match(_BOOKKEEPING, name))}
    notes += [f"left out {line}" for line in _grouped(kept)]
    if formats and format not in formats:
        raise ValueError(
            f"from_{next(iter(formats))}=True was given, but {path} has the format {format!r}: leave the argument "
            "out, every format is read without it."
        )
    stated = json_beside(path, CONFIG_NAME).text("model_type", "") in CLASSES
    processor: dict[str, Any] | None = json_beside(path, PREPROCESSOR_NAME) or None
    if fmt is None:
        _refuse_other_models(path)
        promised = {n: shard for n, shard in (named.weight_map or {}).items() if n not in named.tensors}
        checkpoint = as_checkpoint(replace(named, tensors=tensors, weight_map=named.weight_map and promised), family)
        if named.tensors and not checkpoint.tensors:
            raise ValueError(_no_vit(path, named.tensors, "none", prefix))
        _check_one_model(path, under)
        checkpoint = folded(checkpoint) if fold else checkpoint
        checkpoint = headless(checkpoint) if head == "drop" else checkpoint
        return replace(
            checkpoint,
            unknown=checkpoint.unknown | under.outside,
            config=checkpoint.config or config,
            processor=processor,
            notes=(*notes, *checkpoint.notes),
        )
    stored = AutoConfig.from_json_file(beside(path, CONFIG_NAME)) if stated else config
    side = fmt.read_side(path) if stored is None else Side(processor=fmt.read_side(path).processor)
    side.config |= {name: value for name, value in given.items() if value is not None}
    found, unknown, left = _canonical(path, fmt, tensors, head, ignore_unknown)
    left |= {name: reason for name in under.outside if (reason := first_match(fmt.left_out, name))}
    dropped = sorted(name for name in unknown if head == "drop" and fmt.in_head(name))
    unknown = {name: tensor for name, tensor in unknown.items() if name not in dropped}
    unknown |= {name: tensor for name, tensor in under.outside.items() if name not in left}
    notes += [f"left out {line}" for line in _grouped(left)]
    processor = processor or side.processor
    family = family or side.family or fmt.speaks_of(tensors)
    member, files = family_of(stored) if stored else member_of(found, fmt.families, family), named.files
    registers = found.get(REGISTERS)
    if registers is not None and (member.row_of(REGISTERS) is None or ATTENTION_SCALE.format(0) not in found):
        raise ValueError(
            f"{path} is no plain ViT ({fmt.title}):\n  {registers.source}: register tokens, which only DINOv2 has"
        )
    opened = Checkpoint(path, fmt.name, member, found, unknown, stored, processor, tuple(notes), files, tuple(dropped))
    whole = settle(opened, fmt, side, _heads(fmt, tensors), head=head, fold=fold)
    _check_one_model(path, under)
    return whole


def _check_one_model(path: Path, under: Under) -> None:
    """Raise ValueError where several models stand beside each other, and no word says which to take."""
    if under.rivals:
        names = ", ".join(map(repr, (under.prefix, *under.rivals)))
        raise ValueError(f"{path} holds several models, whose names begin with {names}: choose one with prefix=.")


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
    source: StrPath,
    filename: str | None,
    variant: str | None,
    formats: Collection[str],
    use_safetensors: bool | None,
    options: dict[str, Any],
) -> Path:
    """The weights file, or index, of a file, a folder or a hub id; what belongs to it lies beside it."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.name.endswith((*SUFFIXES, ".json")) and not path.is_dir():
        raise FileNotFoundError(f"There is no weights file {source}: check the path.")
    wanted = [filename] if filename else [*readable_names(variant, formats)]
    if use_safetensors is not None:
        wanted.sort(key=lambda name: (SAFETENSORS.suffix in name) != use_safetensors)
    if not filename and not variant:
        wanted.append(KERAS_H5.names()[0])
    if path.is_dir() and not filename and not variant:
        wanted += _only_weights(path / options.get("subfolder", ""), wanted)
    found = hub.resolve(source, wanted, **options)
    if found.name == KERAS_H5.names()[0] and not path.is_dir():
        hub.resolve(source, [found.name], optional=PRESET_BESIDE, **options)
    return found


def _only_weights(folder: Path, usual: Collection[str]) -> list[str]:
    """The one weights file, or index of shards, of a folder that has none of the usual names.

    Raises ValueError where there are several, and for a checkpoint that a training has shared out over many files;
    FileNotFoundError for shards without their index.
    """
    if any(find(folder, name).is_file() for name in usual):
        return []
    held = [name for name in listing(folder) if not _OF_TRAINERS.match(name)]
    found = [name for name in held if name.endswith(SUFFIXES) or _FLAX_CHECKPOINT.fullmatch(name)]
    for each in (folder, *([] if found else folder.iterdir())):
        for names, library, todo in _SHARED_OUT:
            if any((each / name).is_file() for name in names):
                raise ValueError(f"{each} is a checkpoint of {library}, which {library} alone reads: {todo}.")
    if found and all(map(_SHARD.fullmatch, found)):
        shards, found = found, [name for name in held if _INDEX.fullmatch(name)]
        if not found:
            index = _SHARD.sub(r"\1\4.index\2\3.json", shards[0])
            raise FileNotFoundError(
                f"{folder} holds shards, {', '.join(shards)}, without their index, {index}: fetch it, or save the "
                "model again."
            )
    if len(found) > 1:
        raise ValueError(f"{folder} holds several weights files, {', '.join(found)}: choose one with filename=.")
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
        key = _key_of_model(path, groups)
    if key not in groups:
        raise ValueError(f"{path} has no state dict {key!r}: choose with key= among {', '.join(map(repr, groups))}.")
    chosen = groups[key].checked(path, ignore_unknown)
    notes = [f"took the state dict {key!r} and left {', '.join(chosen.left_out)} out"] if chosen.left_out else []
    return Named(path, chosen, "pt"), notes


def _key_of_model(path: Path, groups: Mapping[str, Tensors]) -> str:
    """The key of the first state dict that holds most of a ViT. Raises ValueError where no word says which is first."""
    places = {key: (-_score(tensors), copy_rank(key)) for key, tensors in groups.items()}
    best = min(places.values())
    equal = [key for key, place in places.items() if place == best]
    if len(equal) > 1 and best[0]:
        names = ", ".join(map(repr, equal))
        raise ValueError(f"{path} holds several models, the state dicts {names}: choose one with key=.")
    return equal[0]


def _score(tensors: Tensors) -> int:
    return max(under.score for under in _found(tensors, "pt").values())


def _found(tensors: Tensors, claimed: str, prefix: str | None = None) -> dict[str, Under]:
    """What each format finds of its names; "" for Hugging Face's formats.

    Flax's trees are joined by dots in msgpack, by slashes in .npz, whosever names they hold, and by either elsewhere.
    """
    names = unwrapped({n: t for n, t in tensors.items() if not first_match(_BOOKKEEPING, n)})

    def joined(separator: str) -> tuple[dict[str, Tensor], str | None]:
        other = {".": "/", "/": "."}[separator]
        return {n.replace(other, separator): t for n, t in names.items()}, prefix and prefix.replace(other, separator)

    tree = claimed == NPZ.format or (any("/" in name for name in names) and not any("." in name for name in names))
    dotted, before = joined(".") if tree else (names, prefix)
    own = find_prefix(dotted, _ONCE, _prepare, lambda inside: len(recognise(inside, claimed)[2]), before)
    if own.score == len(names):
        return {"": own}
    slashed = joined("/") if claimed == FLAX_MSGPACK.format else (names, prefix)
    return {"": own} | {
        name: fmt.find(*(slashed if fmt.container is NPZ else (names, prefix))) for name, fmt in FORMATS.items()
    }


def _format_of(named: Named, prefix: str | None) -> tuple[Format | None, Under]:
    """The format whose names explain most, None for Hugging Face's formats, and the tensors under its prefix."""
    names = unwrapped(named.tensors)
    prefix = prefix and unwrapped_name(prefix)
    if prefix and not prefix.endswith((".", "/")):  # "model" is meant for "model."
        whole = (f"{prefix}{separator}" for separator in "./")
        prefix = next((each for each in whole if any(name.startswith(each) for name in names)), prefix)
    if prefix and not any(name.startswith(prefix) for name in names):
        raise ValueError(f"{named.path} has no names that begin with {prefix!r}, but {seen(named.tensors)}.")
    found = _found(named.tensors, named.format, prefix)
    best = max(found, key=lambda name: found[name].score)
    name = "" if found[best].score == found[""].score else best
    return FORMATS.get(name), found[name]


def _no_vit(path: Path, tensors: Tensors, known: str, prefix: str | None = None) -> str:
    shown = ", ".join(sorted(tensors)[:5])
    formats = ", ".join(["Hugging Face's ViT", *(fmt.title for fmt in FORMATS.values())])
    return (
        f"{path} holds {len(tensors)} tensors ({shown} ...), {known} of a ViT"
        f"{'' if prefix is None else f' under the prefix {prefix!r}'}: expected the names of {formats}, with one "
        f"prefix or none. Its names begin with {seen(tensors)}: pass prefix= with what a ViT's begin with, if one does."
    )


def _canonical(
    path: Path, fmt: Format, tensors: Tensors, head: str, ignore_unknown: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """Tensors by canonical name, those that are unknown, and what is left out with the reason."""
    matched, left = fmt.match(tensors)
    unknown = {name: tensor for name, tensor in tensors.items() if name not in matched and name not in left}
    odd = {name: reason for name in unknown if (reason := first_match(fmt.refused, name))}
    if odd:
        raise ValueError(f"{path} is no plain ViT ({fmt.title}):\n  " + "\n  ".join(_grouped(odd)))
    in_head = set(filter(fmt.in_head, unknown))
    if head == "keep" and in_head and not ignore_unknown:
        raise ValueError(
            f"{path} has a head of other layers than ViT's, which no ViT class has: {', '.join(sorted(in_head)[:8])}. "
            "Pass head='drop' for the model below it."
        )
    if unknown.keys() - in_head and not ignore_unknown:
        if len(unknown.keys() - in_head) > len(matched) and not any(layer for _, layer in matched.values()):
            raise ValueError(_no_vit(path, tensors, "few"))
        raise ValueError(
            f"{path} holds what no ViT of {fmt.title} has: {', '.join(sorted(unknown.keys() - in_head)[:8])}. Pass "
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


def _heads(fmt: Format, tensors: Tensors) -> int | None:
    """The number of heads, where the arrays have an axis for it."""
    for name, (rule, _) in fmt.match(tensors)[0].items():
        if rule.steps and isinstance(rule.steps[-1], Heads):
            return tensors[name].shape[rule.steps[-1].axis]
    return None
