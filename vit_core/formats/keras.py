"""Keras's `.weights.h5` of this package's vit_tf models, as `model.save_weights` writes it.

The variables of Keras's own layers stand there by number, the raw arrays by name; in older files those by number, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vit_core.config import ViTConfig
from vit_core.family import (
    ATTENTION_SCALE,
    DINOV2,
    FAMILIES,
    GATE,
    GATED,
    HEADS,
    LAYER,
    MAE,
    MASK_TOKEN,
    MLP_SCALE,
    MSN,
    POSITIONS,
    VIT,
    Dinov2Config,
    Family,
    family_of,
)
from vit_core.files.names import KERAS_WEIGHTS
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Tensors
from vit_core.formats.huggingface import Container
from vit_core.formats.rules import (
    CONV,
    KEY,
    LINEAR,
    POOLED_NORM,
    QUERY,
    VALUE,
    Rule,
    Step,
    module,
    of_decoder,
    raw,
    table,
)


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.files.keras_hdf5 import read_keras_h5  # h5py is loaded when it is needed

    return read_keras_h5(path), "keras"


def _write(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.keras_hdf5 import write_keras_h5

    write_keras_h5(path, tensors)


KERAS_H5 = Container("model", KERAS_WEIGHTS, "keras", _read, _write)

_BLOCK, _OF_DINOV2 = "encoder/layer/vi_t_layer{_}/", "encoder/layer/dinov2_layer{_}/"
_EMBEDDINGS = "embeddings/vars/"
_MASK_TOKEN = _EMBEDDINGS + "mask_token_of_dinov2"  # what that is called here: it has an axis less than the others
# Where models that have a head keep their trunk: Keras takes attributes by the alphabet, `layers` before `vit`.
_IN_LAYERS = {
    VIT.model_type: "layers/tf_vi_t_model/",
    MSN.model_type: "layers/tf_vi_tmsn_model/",
    MAE.model_type: "layers/tf_vi_tmae_model/",
}
_TRUNKS = {name: f"{family.trunk}/" for name, family in FAMILIES.items()}
_TRUNK = re.compile(f"^({'|'.join((*_IN_LAYERS.values(), *_TRUNKS.values()))})")
_HEADS = tuple(f"{name}/" for name in (*HEADS, POOLED_NORM))


def _variables(native: str, canonical: str, *weight: Step, also: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    older = [f"{name}/vars" for name in also]
    return module(native + "/vars", canonical, leaves=("0", "1"), join="/", weight=weight, also=older)


def _attention(block: str) -> tuple[Rule, ...]:
    return table(
        _variables(block + "attention/attention/query", QUERY, LINEAR),
        _variables(block + "attention/attention/key", KEY, LINEAR),
        _variables(block + "attention/attention/value", VALUE, LINEAR),
        _variables(block + "attention/output_/dense", LAYER + "attention.output.dense", LINEAR),
    )


_BLOCKS = table(
    _attention(_BLOCK),
    raw(_BLOCK + "attention/output_/vars/scale", ATTENTION_SCALE),
    _variables(_BLOCK + "intermediate/dense", LAYER + "intermediate.dense", LINEAR),
    _variables(_BLOCK + "output_/dense", LAYER + "output.dense", LINEAR),
    raw(_BLOCK + "output_/vars/scale", MLP_SCALE),
    _variables(_BLOCK + "layernorm_before", LAYER + "layernorm_before"),
    _variables(_BLOCK + "layernorm_after", LAYER + "layernorm_after"),
)
_RULES = table(
    raw(_EMBEDDINGS + "cls_token", "embeddings.cls_token"),
    raw(_EMBEDDINGS + "distillation_token", "embeddings.distillation_token"),
    raw(_EMBEDDINGS + "register_tokens", "embeddings.register_tokens"),
    raw(_EMBEDDINGS + "mask_token", MASK_TOKEN),
    (Rule(_MASK_TOKEN, (MASK_TOKEN,), axes=2),),
    raw(_EMBEDDINGS + "position_embeddings", POSITIONS),
    _variables("embeddings/patch_embeddings/projection", "embeddings.patch_embeddings.projection", CONV),
    _BLOCKS,
    _attention(_OF_DINOV2),
    raw(_OF_DINOV2 + "layer_scale1/vars/lambda1", ATTENTION_SCALE),
    _variables(_OF_DINOV2 + "mlp/fc1", LAYER + "intermediate.dense", LINEAR),
    _variables(_OF_DINOV2 + "mlp/fc2", LAYER + "output.dense", LINEAR),
    _variables(_OF_DINOV2 + "mlp/weights_in", GATE, LINEAR),
    _variables(_OF_DINOV2 + "mlp/weights_out", GATED, LINEAR),
    raw(_OF_DINOV2 + "layer_scale2/vars/lambda1", MLP_SCALE),
    _variables(_OF_DINOV2 + "norm1", LAYER + "layernorm_before"),
    _variables(_OF_DINOV2 + "norm2", LAYER + "layernorm_after"),
    _variables("layernorm", "layernorm"),
    _variables(POOLED_NORM, POOLED_NORM),
    _variables("layers/vi_t_pooler/dense", "pooler.dense", LINEAR, also=("layers/vi_t_dense/dense",)),
    _variables("classifier", "classifier", LINEAR),
    _variables("cls_classifier", "cls_classifier", LINEAR),
    _variables("distillation_classifier", "distillation_classifier", LINEAR),
    _variables("decoder/conv_", "decoder.0", CONV),
    raw("decoder/vars/mask_token", "decoder.mask_token"),
    raw("decoder/vars/decoder_pos_embed", "decoder.decoder_pos_embed"),
    _variables("decoder/decoder_embed", "decoder.decoder_embed", LINEAR),
    of_decoder(_BLOCKS, _BLOCK, "decoder/decoder_layers/vi_t_layer{_}/"),
    _variables("decoder/decoder_norm", "decoder.decoder_norm"),
    _variables("decoder/decoder_pred", "decoder.decoder_pred", LINEAR),
)


def _prepare(tensors: Tensors) -> Tensors:
    """Names without the trunk's own, and the arrays of the embeddings by name where a file has them by number."""
    found = {_TRUNK.sub("", name): tensor for name, tensor in tensors.items()}
    numbered = sorted(name for name in found if name.startswith(_EMBEDDINGS) and name[-1].isdecimal())
    names = ("cls_token", *["mask_token"] * (len(numbered) == 3), "position_embeddings")
    renamed = dict(zip(numbered, (_EMBEDDINGS + name for name in names), strict=False))
    if _is_dinov2(found):
        renamed[_EMBEDDINGS + "mask_token"] = _MASK_TOKEN
    return {renamed.get(name, name): tensor for name, tensor in found.items()}


def _is_dinov2(tensors: Iterable[str]) -> bool:
    return any("/dinov2_layer" in name for name in tensors)


def _speaks_of(tensors: Tensors) -> Family | None:
    """DINOv2 where there are its layers; the other members have ViT's."""
    return DINOV2 if _is_dinov2(tensors) else None


def _finish(native: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Names of the member alone, with the trunk's own before them, in models that have a head."""
    others = _BLOCK if isinstance(config, Dinov2Config) else _OF_DINOV2
    foreign = (others.partition("{")[0], _MASK_TOKEN)
    native = {name: tensor for name, tensor in native.items() if not name.startswith(foreign)}
    if not any(name.startswith(_HEADS) for name in native):
        return native
    member = family_of(config).model_type
    trunk = _IN_LAYERS.get(member, _TRUNKS[member])
    return {name if name.startswith(_HEADS) else trunk + name: tensor for name, tensor in native.items()}


KERAS = Format(
    "keras",
    "vit_tf's .weights.h5",
    KERAS_H5,
    _RULES,
    families=tuple(FAMILIES.values()),
    pools_mean=True,
    layer_norm_eps=None,
    fixed_act=False,
    states_eps=True,
    has_qkv_bias=False,
    speaks_of=_speaks_of,
    prepare=_prepare,
    finish=_finish,
)
