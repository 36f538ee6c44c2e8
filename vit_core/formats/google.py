"""The .npz files of google-research's vit_jax and of big_vision: arrays as Flax had them, heads on axes of their own.

Agrees with vit_jax (`models_vit.py`) and big_vision (`models/vit.py`): LayerNorm eps 1e-6, GELU by tanh.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path

from vit_core.family import LAYER, POSITIONS
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Side, Tensors
from vit_core.formats.huggingface import Container
from vit_core.formats.rules import CONV, KEY, LINEAR, QUERY, VALUE, Heads, Rule, Step, module, raw, table


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.files.npz import read_npz  # loaded when it is needed

    return read_npz(path), "google"


def _write(path: Path, tensors: Tensors, format: str, shard: bool) -> None:
    from vit_core.files.npz import write_npz

    write_npz(path, tensors)


NPZ = Container("vit", ".npz", "google", _read, _write)

_BLOCK = "Transformer/encoderblock_{}/"
# Linen counts the modules of a block class by class; published files count them all, as its predecessor did.
_LINEN = {"attention": "MultiHeadDotProductAttention_0", "norm": "LayerNorm_1", "mlp": "MlpBlock_0"}
_PUBLISHED = {"attention": "MultiHeadDotProductAttention_1", "norm": "LayerNorm_2", "mlp": "MlpBlock_3"}


def _norm(native: str, canonical: str, *also: str) -> tuple[Rule, ...]:
    return module(native, canonical, leaves=("scale", "bias"), join="/", also=also)


def _kernel(native: str, canonical: str, *weight: Step, bias: Sequence[Step] = (), also: str = "") -> tuple[Rule, ...]:
    others = (also,) if also else ()
    return module(native, canonical, leaves=("kernel", "bias"), join="/", weight=weight, bias=bias, also=others)


def _rules(positions: tuple[str, ...], numbers: Mapping[str, str], others: Mapping[str, str]) -> tuple[Rule, ...]:
    attention, also = (f"{_BLOCK}{n['attention']}/" for n in (numbers, others))
    mlp, also_mlp = (f"{_BLOCK}{n['mlp']}/" for n in (numbers, others))
    heads = {"bias": (Heads(0),)}
    return table(
        raw("cls", "embeddings.cls_token"),
        raw(positions[0], POSITIONS, also=positions[1:]),
        _kernel("embedding", "embeddings.patch_embeddings.projection", CONV),
        _norm(_BLOCK + "LayerNorm_0", LAYER + "layernorm_before"),
        _kernel(attention + "query", QUERY, LINEAR, Heads(1), **heads, also=also + "query"),
        _kernel(attention + "key", KEY, LINEAR, Heads(1), **heads, also=also + "key"),
        _kernel(attention + "value", VALUE, LINEAR, Heads(1), **heads, also=also + "value"),
        _kernel(attention + "out", LAYER + "attention.output.dense", LINEAR, Heads(0), also=also + "out"),
        _norm(_BLOCK + numbers["norm"], LAYER + "layernorm_after", _BLOCK + others["norm"]),
        _kernel(mlp + "Dense_0", LAYER + "intermediate.dense", LINEAR, also=also_mlp + "Dense_0"),
        _kernel(mlp + "Dense_1", LAYER + "output.dense", LINEAR, also=also_mlp + "Dense_1"),
        _norm("Transformer/encoder_norm", "layernorm"),
        _kernel("pre_logits", "pooler.dense", LINEAR),
        _kernel("head", "classifier", LINEAR),
    )


def _read_side(path: Path) -> Side:
    """The preprocessing that both projects use; it stands in no file."""
    notes = ["pictures are scaled to [-1, 1], as the training code of these files does"]
    return Side(processor={"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}, notes=notes)


_REFUSED = (
    (r"(^|/)(conv_root|gn_root|block\d+/)", "a ResNet before the transformer (hybrid), which ViT does not have"),
    (r"(^|/)MAPHead_0/", "attention pooling (MAPHead, as in SigLIP), which ViT does not have"),
)
_LEFT_OUT = (
    (r"^opt/(?!target/)", "the optimizer's state"),
    (r"^chrono/", "the clock of a training"),
    (r"^(params/)?(txt/|t$|b$)", "the other tower of a model of two"),
)
_ABSENT = {"embeddings.mask_token": "pass head='drop'", "decoder": "pass head='drop'"}

GOOGLE = Format(
    "google",
    "vit_jax's .npz",
    NPZ,
    _rules(("Transformer/posembed_input/pos_embedding",), _PUBLISHED, _LINEN),
    hidden_act="gelu_new",
    refused=_REFUSED,
    left_out=_LEFT_OUT,
    absent=_ABSENT,
    read_side=_read_side,
)


_MOST_LAYERS = 1000  # of a stack; longer ones are no layers
_STACKED = re.compile(r"^Transformer/encoderblock/(.+)$")


def _unstacked(tensors: Tensors) -> Tensors:
    """The blocks of a model that scans over its layers, which are one array for all layers, one by one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _STACKED.match(name)
        if match is None or len(tensor.shape) < 2 or tensor.shape[0] > _MOST_LAYERS:
            found[name] = tensor
            continue
        for i in range(tensor.shape[0]):
            layer = tensor.changed(("layer", i), operator.itemgetter(i), shape=tensor.shape[1:])
            found[f"Transformer/encoderblock_{i}/{match[1]}"] = layer
    return found


def _without_class_row(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Positions as big_vision has them, none for the class token, where that is the zeros it amounts to."""
    positions = native["pos_embedding"]
    if positions.read()[:, 0].any():
        if isqrt(positions.shape[1] - 1) ** 2 != positions.shape[1] - 1:
            raise ValueError(
                f"big_vision's .npz has no place for the class token's row of {POSITIONS} beside patches that are no "
                "square: choose to='google'."
            )
        return native  # big_vision adds the row to the class token when it reads the file
    shape = (1, positions.shape[1] - 1, positions.shape[2])
    changed = positions.changed(("without row", 0), lambda array: array[:, 1:], shape=shape)
    return {**native, "pos_embedding": changed}


BIG_VISION = Format(
    "big_vision",
    "big_vision's .npz",
    NPZ,
    _rules(("pos_embedding", "Transformer/pos_embedding"), _LINEN, _PUBLISHED),
    hidden_act="gelu_new",
    refused=_REFUSED,
    left_out=_LEFT_OUT,
    absent=_ABSENT,
    prepare=_unstacked,
    finish=lambda native, config: {f"params/{name}": tensor for name, tensor in _without_class_row(native).items()},
    read_side=_read_side,
)
