"""From the arrays of another format to a whole ViT: what has to be computed, the configuration, and what is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import numpy as np

from vit_core.config import VARIANTS, ViTConfig
from vit_core.family import (
    ATTENTION_SCALE,
    HEADS,
    LAYER,
    MASK_TOKEN,
    MLP_SCALE,
    POSITION_BIAS,
    POSITIONS,
    REGISTERS,
    SHARED_POSITION_BIAS,
    Dinov2Config,
    Family,
    has_mask_token,
    parted,
)
from vit_core.files.documents import blaming
from vit_core.files.tensor import Array, Tensor, in_turn
from vit_core.formats.format import Format, Side
from vit_core.formats.huggingface import Checkpoint, check_layers
from vit_core.formats.rules import POOLED_NORM, QUERY
from vit_core.params import spec_of, specs
from vit_core.position import relative_positions
from vit_core.pretrained_config import LABELS

_PROJECTION = "embeddings.patch_embeddings.projection"
_ATTENTION, _FIRST, _SECOND = (
    LAYER + name for name in ("attention.output.dense", "intermediate.dense", "output.dense")
)
_FIRST_SCALE = 1e-6  # what scales start at where the file does not say: DeiT III, section 3
_SCALES = {ATTENTION_SCALE: _ATTENTION, MLP_SCALE: _SECOND}


def settle(opened: Checkpoint, fmt: Format, side: Side, heads: int | None, *, head: str, fold: bool) -> Checkpoint:
    """The checkpoint with every tensor of a ViT and its configuration.

    Raises ValueError, with the reason, for what is no ViT.
    """
    drop_head = head == "drop" or (head == "fresh" and _has_odd_head(opened.tensors))
    if drop_head and head == "fresh":
        opened = opened.without([*HEADS, "pooler"])
    opened = folded(opened) if fold else opened
    tensors, notes = dict(opened.tensors), list(opened.notes)
    if opened.family.config.tokens and "embeddings.cls_token" not in tensors:
        raise ValueError(f"{opened.path} has no class token, which ViT's head and pooler are on ({fmt.title}).")
    rows = {name: opened.family.row_of(name) for name in tensors if drop_head and not name.startswith(POOLED_NORM)}
    head_names = [name for name, row in rows.items() if row and row.head]
    dropped = (*opened.dropped, *(tensors.pop(name).source for name in head_names))
    if side.config.get("pool") == "cls":
        tensors = _final_norm(tensors, [])  # a norm of what is pooled is one of the class token, as the final norm is
    if drop_head:
        tensors = _final_norm(tensors, notes)
    if _has_odd_head(tensors):
        raise ValueError(
            f"{opened.path} has a head on top of a pooler (pre_logits), which no ViT class has: pass head='drop' for "
            "the model below it."
        )
    positioned = POSITIONS in tensors or opened.family.rows[POSITIONS].when
    if not positioned or f"{_PROJECTION}.weight" not in tensors:
        raise ValueError(f"{opened.path} lacks position or patch embeddings, which every ViT of {fmt.title} has.")
    doubts: list[str] = []
    config = opened.config or _config(opened, fmt, side, tensors, heads, notes, doubts)
    check_layers(opened.path, config, tensors)
    if "layer_scale" in config.defaults and ATTENTION_SCALE.format(0) in tensors and not config.layer_scale:
        config = config.copy(layer_scale=_FIRST_SCALE)
    _add_mask_token(config, tensors, notes)
    _place_registers(config, tensors, notes)
    if POSITIONS in tensors:
        tensors[POSITIONS] = _with_class_row(tensors[POSITIONS], config, notes)
    layers = range(config.num_hidden_layers)
    of_layers = [module.format(i) for module in (_ATTENTION, _FIRST, _SECOND) for i in layers]
    add_zero_biases(tensors, [_PROJECTION, *of_layers, *linear_heads(opened.family)], notes)
    _widen_head(config, side.config.get("pool"), tensors, notes)
    parts = opened.family.parts_in(tensors)
    missing = sorted(set(specs(config, parts)) - set(tensors))
    heads_alone = all((row := opened.family.row_of(name)) is not None and row.head for name in missing)
    if missing and not (heads_alone and head == "fresh"):
        todo = ": pass head='drop' for the model below its head" if heads_alone else ""
        raise ValueError(f"{opened.path} lacks {', '.join(missing[:8])}, which every ViT of {fmt.title} has{todo}.")
    if strange := [tensor.source or name for name, tensor in tensors.items() if opened.family.row_of(name) is None]:
        raise ValueError(
            f"{opened.path} holds {', '.join(sorted(strange)[:8])}, which no {opened.family.title} has: it is another "
            "model, or parts of two."
        )
    architecture = opened.family.architecture_of(parts)
    if opened.config is None:
        config = config.copy(architectures=[architecture])
        notes += [*side.notes, _computes(config, fmt)]
    return replace(opened, tensors=tensors, config=config, notes=tuple(notes), doubts=tuple(doubts), dropped=dropped)


def _has_odd_head(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the head is one that no ViT class has: on top of a pooler."""
    return {"pooler.dense.weight", "classifier.weight"} <= tensors.keys()


def _computes(config: ViTConfig, fmt: Format) -> str:
    values = f"layer_norm_eps is {config.layer_norm_eps:g} and hidden_act {config.hidden_act!r}"
    return f"{values}, as {fmt.title} computes"


# ---- what has to be computed -------------------------------------------------------------------------------------


def folded(opened: Checkpoint) -> Checkpoint:
    """The checkpoint with its layer scales, if it has any, multiplied into the layers before them, which rounds.

    Raises ValueError for a scale that does not fit.
    """
    if "layer_scale" not in opened.family.config.defaults:
        raise ValueError(
            f"{opened.path} is a {opened.family.title}, which has scales of its own: leave fold_layer_scale out."
        )
    tensors = dict(opened.tensors)
    layers = {name: parted(name) for name in tensors}
    scales = {name: _SCALES[scale].format(layer) for name, (scale, layer) in layers.items() if scale in _SCALES}
    for scale, module in scales.items():
        gamma = tensors.pop(scale)
        before = {name: t for leaf in ("weight", "bias") if (t := tensors.get(name := f"{module}.{leaf}")) is not None}
        if not before or any(tensor.shape[:1] != gamma.shape for tensor in before.values()):
            shapes = ", ".join(str(tensor.shape) for tensor in before.values()) or "nothing"
            raise ValueError(
                f"{opened.path} has the layer scale {gamma.source!r} of shape {gamma.shape}, which does not fit what "
                f"is before it ({shapes})."
            )
        tensors |= {name: _folded(tensor, gamma) for name, tensor in before.items()}
    if not scales:
        return opened
    note = f"{len(scales)} layer scales are folded into weights and biases, rounded to their dtypes"
    config = opened.config and opened.config.copy(layer_scale=0.0)
    return replace(opened, tensors=tensors, config=config, notes=(*opened.notes, note))


def _folded(tensor: Tensor, gamma: Tensor) -> Tensor:
    def fold(array: Array) -> Array:
        factors = gamma.read().astype(np.float64).reshape(-1, *[1] * (array.ndim - 1))
        return (array.astype(np.float64) * factors).astype(array.dtype)

    folded = tensor.changed(("times", gamma.source), fold)
    return replace(folded, verify=in_turn((tensor.verify, gamma.verify)))


def headless(opened: Checkpoint) -> Checkpoint:
    """The checkpoint for a model without a head: a norm of the mean of the patches is its final norm."""
    notes: list[str] = []
    tensors = _final_norm(opened.tensors, notes)
    if not notes:
        return opened
    config = opened.config and opened.config.copy(fc_norm=False)
    return replace(opened, tensors=tensors, config=config, notes=(*opened.notes, *notes))


def _final_norm(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    pooled = {name: t for name, t in tensors.items() if name.startswith(POOLED_NORM)}
    if pooled:
        notes.append("the norm of the mean of the patches became the final norm, of every token")
    return {("layernorm" + n.removeprefix(POOLED_NORM) if n in pooled else n): t for n, t in tensors.items()}


def _with_class_row(positions: Tensor, config: ViTConfig, notes: list[str]) -> Tensor:
    """Position embeddings with a row for the class token: zeros where the format gives it none."""
    batch, rows, width = positions.shape
    if rows != config.num_patches or not config.tokens:
        return positions
    notes.append("the class token has no position of its own: row 0 of the position embeddings is zeros")

    def below_zeros(array: Array) -> Array:
        return np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)

    return positions.changed(("below a row of", "zeros"), below_zeros, shape=(batch, rows + 1, width))


def _place_registers(config: ViTConfig, tensors: dict[str, Tensor], notes: list[str]) -> None:
    """Registers with the positions that a file has for them, which it then has no more: DINOv2 has none for its."""
    count, first = config.num_register_tokens, config.position_prefix
    registers, positions = tensors.get(REGISTERS), tensors.get(POSITIONS)
    if registers is None or positions is None or positions.shape[1] != first + count + config.num_patches:
        return

    def placed(array: Array) -> Array:
        return array + positions.read()[:, first : first + count]

    def without(array: Array) -> Array:
        return np.delete(array, np.s_[first : first + count], axis=1)

    changed = registers.changed(("plus rows of", positions.source), placed)
    tensors[REGISTERS] = replace(changed, verify=in_turn((registers.verify, positions.verify)))
    shape = (1, first + config.num_patches, positions.shape[2])
    tensors[POSITIONS] = positions.changed(("without rows of", registers.source), without, shape=shape)
    notes.append("the registers' rows of the position embeddings are added to the registers")


def _widen_head(config: ViTConfig, pool: str | None, tensors: dict[str, Tensor], notes: list[str]) -> None:
    """The head of a DINOv2, which reads the class token and the mean of the patches, of one that reads one of them."""
    head, width = tensors.get("classifier.weight"), config.hidden_size
    if not isinstance(config, Dinov2Config) or head is None or head.shape[1:] != (width,):
        return
    zeros = ((0, 0), (width, 0) if pool == "mean" else (0, width))
    shape = (head.shape[0], 2 * width)
    tensors["classifier.weight"] = head.changed(("beside", "zeros"), lambda array: np.pad(array, zeros), shape=shape)
    read = "the mean of the patches" if pool == "mean" else "the class token"
    notes.append(f"zeros stand beside the weights of the head, which reads {read} alone")


def _add_mask_token(config: ViTConfig, tensors: dict[str, Tensor], notes: list[str]) -> None:
    """The mask token that every model of a member has, as zeros: formats of trained models leave it out."""
    if has_mask_token(config, asked=False) and MASK_TOKEN not in tensors:
        dtype = tensors[f"{_PROJECTION}.weight"].dtype
        zeros = Tensor.of(np.zeros(spec_of(config, MASK_TOKEN).shape, dtype))
        tensors[MASK_TOKEN] = replace(zeros, source="(zeros)", changes=(("zeros", config.hidden_size),))
        notes.append("zeros stand for the mask token, which the file has not")


def linear_heads(family: Family) -> list[str]:
    """The linear layers of a member's heads."""
    return [row.name for row in family.table if row.head and row.kind == "linear" and "{}" not in row.name]


def add_zero_biases(tensors: dict[str, Tensor], modules: Iterable[str], notes: list[str]) -> None:
    """Biases of these modules that a model was built without, as zeros."""
    lacking = [m for m in modules if f"{m}.weight" in tensors and f"{m}.bias" not in tensors]
    for name in lacking:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.bias"] = replace(
            Tensor.of(np.zeros(weight.shape[0], weight.dtype)), source="(zeros)", changes=(("zeros", weight.shape[0]),)
        )
    if lacking:
        notes.append(f"zeros stand for the biases that the model was built without ({lacking[0]}.bias ...)")


# ---- the configuration -------------------------------------------------------------------------------------------


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes by canonical name. Raises ValueError for one that is not there."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise ValueError(f"{name} is not there, without which nobody knows how wide the model is: save it again.")


def _config(
    opened: Checkpoint,
    fmt: Format,
    side: Side,
    tensors: dict[str, Tensor],
    heads: int | None,
    notes: list[str],
    doubts: list[str],
) -> ViTConfig:
    """What the shapes say of a model, and what the files beside it say of the rest."""
    width, channels, *patch = tensors[f"{_PROJECTION}.weight"].shape
    norms = [name for name in tensors if parted(name)[0] == LAYER + "layernorm_before.weight"]
    pooled = any(name.startswith(POOLED_NORM) for name in tensors)
    with blaming(opened.path):
        of_shapes = opened.family.of_shapes(_Shapes((name, tensor.shape) for name, tensor in tensors.items()))
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": _one_or_two(patch),
        "num_hidden_layers": len(norms),
        "qkv_bias": f"{QUERY.format(0)}.bias" in tensors,
        "hidden_act": fmt.hidden_act,
        **({"layer_norm_eps": fmt.layer_norm_eps} if fmt.layer_norm_eps is not None else {}),
        **({"pool": "mean", "fc_norm": True} if pooled else {}),
        **side.config,
        **of_shapes,
    }
    if (first := tensors.get(f"{_FIRST.format(0)}.weight")) is not None:
        values["intermediate_size"] = first.shape[0]
    if values.get("image_size") is None:
        values["image_size"] = _image_size(opened, tensors, patch)
    if not (heads := heads or values.get("num_attention_heads")):
        heads = _guessed_heads(opened, (width, len(norms), values.get("intermediate_size")), notes, doubts)
    values["num_attention_heads"] = heads
    head = tensors.get("classifier.weight", tensors.get("cls_classifier.weight"))
    if head is not None and len(values.get("id2label", ())) != head.shape[0]:
        values.pop("id2label", None)
        values["num_labels"] = head.shape[0]
    if (pooler := tensors.get("pooler.dense.weight")) is not None and pooler.shape[0] != width:
        values["pooler_output_size"] = pooler.shape[0]
    decoder = tensors.get("decoder.0.weight")
    values["encoder_stride"] = isqrt(decoder.shape[0] // channels) if decoder is not None else _one_or_two(patch)
    made = opened.family.config
    headed = any(name.partition(".")[0] in HEADS for name in tensors)
    if values.get("pool", "cls") not in ("cls", "mean"):
        if headed:
            raise ValueError(
                f"{opened.path} has a head on global_pool={values['pool']!r}, which no ViT class has: pass head='drop' "
                "for the model below it."
            )
        del values["pool"]
    pools = "pool" in made.defaults or made.pool == "mean" or issubclass(made, Dinov2Config)
    if headed and values.get("pool") == "mean" and not pools:
        raise ValueError(
            f"{opened.path} has a head on the mean of the patches, where {opened.family.title}'s is on its tokens: "
            "pass head='drop' for the model below it."
        )
    values = {name: value for name, value in values.items() if name in (*made.fields(), *made.defaults, *LABELS)}
    with blaming(f"{opened.path}, with the documents beside it"):
        return made(**values)


def _one_or_two(sizes: list[int]) -> int | tuple[int, int]:
    return sizes[0] if sizes[0] == sizes[1] else (sizes[0], sizes[1])


def _image_size(opened: Checkpoint, tensors: Mapping[str, Tensor], patch: list[int]) -> int | tuple[int, int]:
    """The size of the pictures, where the patches are a square: with rows of the tokens before them or without."""
    before = len(opened.family.config.tokens)  # those that have positions
    tables = (tensors.get(name) for name in (POSITION_BIAS.format(0), SHARED_POSITION_BIAS))
    if POSITIONS in tensors:
        rows = tensors[POSITIONS].shape[1]
        more = before + (tensors[REGISTERS].shape[1] if REGISTERS in tensors else 0)  # timm's may have positions
        side = next((isqrt(n) for n in (rows - before, rows, rows - more) if n > 0 and isqrt(n) ** 2 == n), None)
    elif (table := next((table for table in tables if table is not None), None)) is not None:
        rows = table.shape[0]
        side = (isqrt(max(rows - 3, 0)) + 1) // 2
        side = side if relative_positions(side, side) == rows else None
    else:
        rows, side = 0, None
    if side is None:
        raise ValueError(
            f"{opened.path} has {rows} position embeddings, no square of patches, and does not say what size its "
            "pictures have: pass stored_image_size=(height, width)."
        )
    return _one_or_two([side * patch[0], side * patch[1]])


def usual_heads(width: int) -> int | None:
    """The number of heads of the named variants of this width, else one for each 64 of it; None where it has none."""
    named = {heads for w, _, _, heads in VARIANTS.values() if w == width}
    return named.pop() if len(named) == 1 else None if width % 64 else width // 64


def _guessed_heads(opened: Checkpoint, sizes: tuple[int, int, int | None], notes: list[str], doubts: list[str]) -> int:
    """The usual number of heads; a doubt unless the width, the depth and the MLP are those of a named variant."""
    width = sizes[0]
    if (heads := usual_heads(width)) is None:
        raise ValueError(
            f"{opened.path} does not say how many heads it has, and its width {width} is no multiple of 64, the usual "
            "width of a head: pass num_attention_heads=."
        )
    if name := next((name for name, (*of_name, _) in VARIANTS.items() if tuple(of_name) == sizes), None):
        notes.append(f"num_attention_heads is {heads}, as ViT-{name} has: the file does not say")
    else:
        doubts.append(
            f"{opened.path} does not say how many heads it has, {heads} are taken, as is usual for its width {width}: "
            "if it has others, pass num_attention_heads=, or convert it with vit-convert --heads."
        )
    return heads
