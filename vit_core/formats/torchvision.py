"""torchvision's VisionTransformer (vit_b_16 ... vit_h_14).

Agrees with torchvision 0.28 (`torchvision/models/vision_transformer.py`): LayerNorm eps 1e-6, exact GELU. Its published
files call the MLP's layers `linear_1` and `linear_2`; a model of today renames them when it loads them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vit_core.config import ViTConfig, pair
from vit_core.family import LAYER, POSITIONS
from vit_core.formats.format import Format, Side
from vit_core.formats.heads import renamed_head
from vit_core.formats.huggingface import Container, read_bin, write_bin
from vit_core.formats.rules import KEY, QUERY, VALUE, module, raw, table
from vit_core.formats.side import IMAGENET

PTH = Container("vit", ".pth", "pt", read_bin, write_bin)

_BLOCK = "encoder.layers.encoder_layer_{}."
_MLP = _BLOCK + "mlp."

_RULES = table(
    raw("class_token", "embeddings.cls_token"),
    module("conv_proj", "embeddings.patch_embeddings.projection"),
    raw("encoder.pos_embedding", POSITIONS),
    module(_BLOCK + "ln_1", LAYER + "layernorm_before"),
    module(_BLOCK + "self_attention.in_proj", QUERY, KEY, VALUE, join="_"),
    module(_BLOCK + "self_attention.out_proj", LAYER + "attention.output.dense"),
    module(_BLOCK + "ln_2", LAYER + "layernorm_after"),
    module(_MLP + "0", LAYER + "intermediate.dense", also=[_MLP + "linear_1"]),
    module(_MLP + "3", LAYER + "output.dense", also=[_MLP + "linear_2"]),
    module("encoder.ln", "layernorm"),
    module("heads.pre_logits", "pooler.dense"),
    module("heads.head", "classifier"),
)


def _read_side(path: Path) -> Side:
    """The preprocessing of torchvision's own weights; it stands in no file."""
    notes = [
        "pictures are normalised with ImageNet's mean and standard deviation, as torchvision does; it crops their "
        "centre, the preprocessor resizes the whole picture"
    ]
    return Side(processor={**IMAGENET, "resample": 2}, notes=notes)


def _check(config: ViTConfig, architecture: str, processor: dict[str, Any] | None) -> dict[str, Any]:
    """No documents: refuse, with ValueError, what no model of torchvision is built as."""
    square = all(height == width for height, width in map(pair, (config.image_size, config.patch_size)))
    if config.num_channels != 3 or not square:
        raise ValueError(
            "torchvision's ViT takes square pictures of 3 channels in square patches, this model has "
            f"num_channels={config.num_channels}, image_size={config.image_size}, patch_size={config.patch_size}: "
            "choose another format."
        )
    return {}


TORCHVISION = Format(
    "torchvision",
    "torchvision's VisionTransformer",
    PTH,
    _RULES,
    head="heads",
    refused=((r"^conv_proj\.\D+\.", "a stem of several convolutions, where ViT has one"),),
    absent={
        "embeddings.mask_token": "pass head='drop'",
        "decoder": "pass head='drop'",
        "pooler": "torchvision has one below a head alone: pass pooler='drop'",
    },
    prepare=partial(renamed_head, place="heads", name="heads.head"),
    read_side=_read_side,
    write_side=_check,
)
