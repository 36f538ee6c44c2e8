"""keras-hub's DINOv2, with registers and without: preset folders, which are read and not written.

Agrees with keras-hub 0.32 (`keras_hub/src/models/dinov2`).
"""

from __future__ import annotations

import re
from pathlib import Path

from vit_core.family import (
    ATTENTION_SCALE,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    GATE,
    GATED,
    LAYER,
    MASK_TOKEN,
    MLP_SCALE,
    POSITIONS,
    REGISTERS,
)
from vit_core.files.names import CONFIG_NAME, PRESET_CONVERTER
from vit_core.formats.format import Format, Side, Tensors
from vit_core.formats.keras import KERAS_H5
from vit_core.formats.keras_hub import variables
from vit_core.formats.rules import CONV, KEY, LINEAR, QUERY, VALUE, Heads, Rule, raw, table
from vit_core.formats.side import json_beside
from vit_core.pictures.others import of_keras_hub

_EMBEDDING, _BLOCK = "layers/dinov2_embedding/", "layers/dinov2_encoder/layers/dinov2_layer{_}/"
_ATTENTION = _BLOCK + "attention/attention/"
_INTERPOLATED = "interpolated_position_embeddings"


def _projected(name: str, canonical: str) -> tuple[Rule, ...]:
    return variables(f"{_ATTENTION}{name}_dense", canonical, LINEAR, Heads(1), bias=(Heads(0),))


_RULES = table(
    raw(_EMBEDDING + "cls_token", "embeddings.cls_token"),
    (Rule(_EMBEDDING + "mask_token", (MASK_TOKEN,), axes=2),),
    raw(_EMBEDDING + "register_tokens", REGISTERS),
    raw(_EMBEDDING + "position_embeddings", POSITIONS),
    variables(_EMBEDDING + "patch_embeddings/projection", "embeddings.patch_embeddings.projection", CONV),
    variables(_BLOCK + "norm1", LAYER + "layernorm_before"),
    _projected("query", QUERY),
    _projected("key", KEY),
    _projected("value", VALUE),
    variables(_ATTENTION + "output_dense", LAYER + "attention.output.dense", LINEAR, Heads(0)),
    raw(_BLOCK + "layer_scale1/vars/0", ATTENTION_SCALE),
    variables(_BLOCK + "norm2", LAYER + "layernorm_after"),
    variables(_BLOCK + "mlp/fc1", LAYER + "intermediate.dense", LINEAR),
    variables(_BLOCK + "mlp/fc2", LAYER + "output.dense", LINEAR),
    variables(_BLOCK + "mlp/weights_in", GATE, LINEAR),
    variables(_BLOCK + "mlp/weights_out", GATED, LINEAR),
    raw(_BLOCK + "layer_scale2/vars/0", MLP_SCALE),
    variables("layers/layer_normalization", "layernorm"),
)


def _prepare(tensors: Tensors) -> Tensors:
    """The arrays of the embeddings, which the file numbers, by what they are.

    The positions that are used stand before those that they are interpolated from, which come last; of the others the
    mask token alone has two axes.
    """
    numbered = [name for name in tensors if re.fullmatch(_EMBEDDING + r"vars/\d+", name)]
    numbered.sort(key=lambda name: int(name.rpartition("/")[2]))
    if len(numbered) < 3:
        return tensors
    first, *others, interpolated, positions = numbered
    found = {first: "cls_token", interpolated: _INTERPOLATED, positions: "position_embeddings"}
    found |= {name: "mask_token" if len(tensors[name].shape) == 2 else "register_tokens" for name in others}
    return {_EMBEDDING + found[name] if name in found else name: tensor for name, tensor in tensors.items()}


_FIELDS = {
    "num_heads": "num_attention_heads", "layer_scale_init_value": "layerscale_value",
    "dropout_rate": "hidden_dropout_prob", "drop_path_rate": "drop_path_rate",
}  # fmt: skip


def _read_side(path: Path) -> Side:
    backbone = json_beside(path, CONFIG_NAME).object("config")
    side = Side({ours: backbone.number(theirs) for theirs, ours in _FIELDS.items() if theirs in backbone})
    size = backbone.lengths("position_embedding_shape", [2, 3])
    if isinstance(size, list):
        height, width = size[:2]
        side.config["image_size"] = height if height == width else (height, width)
    if "antialias_in_interpolation" in backbone:
        side.config["position_kernel"] = "timm" if backbone["antialias_in_interpolation"] else "hf"
        side.notes.append("keras-hub resizes positions by kernels of its own, this package as transformers does")
    if converter := json_beside(path, PRESET_CONVERTER).object("config"):
        side.processor = of_keras_hub(converter, None, 3)
    return side


KERAS_HUB_DINOV2 = Format(
    "keras-hub-dinov2",
    "keras-hub's DINOv2",
    KERAS_H5,
    _RULES,
    families=(DINOV2, DINOV2_WITH_REGISTERS),
    written=False,
    left_out=((_INTERPOLATED + "$", "positions that follow from those that are read"),),
    prepare=_prepare,
    read_side=_read_side,
)
