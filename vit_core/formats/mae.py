"""MAE as its authors save it: timm's names, and in them a decoder; the state dict stands under "model".

Agrees with `models_mae.py` of https://github.com/facebookresearch/mae: LayerNorm eps 1e-6, exact GELU. A file of the
encoder alone has timm's names, and is a ViT.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vit_core.family import MAE
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Side
from vit_core.formats.huggingface import Container, read_bin
from vit_core.formats.rules import module, of_decoder, raw, table
from vit_core.formats.side import IMAGENET
from vit_core.formats.timm import RULES as _OF_TIMM


def _write(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.pytorch import write_pytorch_bin  # loaded when it is needed

    write_pytorch_bin(path, tensors, key="model")


PTH = Container("vit", ".pth", "pt", read_bin, _write)
_ENCODER = tuple(rule for rule in _OF_TIMM if MAE.row_of(rule.canonical[0]))
_RULES = table(
    _ENCODER,
    raw("mask_token", "decoder.mask_token"),
    raw("decoder_pos_embed", "decoder.decoder_pos_embed"),
    module("decoder_embed", "decoder.decoder_embed"),
    of_decoder(_ENCODER, "blocks.{}.", "decoder_blocks.{}."),
    module("decoder_norm", "decoder.decoder_norm"),
    module("decoder_pred", "decoder.decoder_pred"),
)


def _read_side(path: Path) -> Side:
    """What stands in the authors' code and in no file."""
    notes = [
        "decoder_num_attention_heads is 16, mask_ratio 0.75 and norm_pix_loss False, as the authors' code has them by "
        "default: the file does not say",
        "pictures are normalised with ImageNet's mean and standard deviation, as the authors' code does",
    ]
    return Side(processor={**IMAGENET, "resample": 3}, notes=notes)


MAE_FORMAT = Format("mae", "MAE's own code", PTH, _RULES, families=(MAE,), read_side=_read_side)
