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
    BEIT,
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
    POSITION_BIAS,
    POSITIONS,
    REGISTERS,
    SHARED_POSITION_BIAS,
    VIT,
    BeitConfig,
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

    tensors = read_keras_h5(path)
    if any(name.startswith("model_weights/") for name in tensors):
        raise ValueError(
            f"{path} is a whole model of Keras (model.save): load it with Keras, and save the "
            "model by save_pretrained()."
        )
    return tensors, "keras"


def _write(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.keras_hdf5 import write_keras_h5

    write_keras_h5(path, tensors)


KERAS_H5 = Container("model", KERAS_WEIGHTS, "keras", _read, _write)

_BLOCK, _OF_BEIT, _OF_DINOV2 = (f"encoder/layer/{name}_layer{{_}}/" for name in ("vi_t", "beit", "dinov2"))
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
_LM_HEAD = "layers/dense"  # whose norm is called `layernorm`, as a trunk's is: here with lm_head/ before it
_HEADS = tuple(f"{name}/" for name in (*HEADS, POOLED_NORM, _LM_HEAD))


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


def _layer(block: str) -> tuple[Rule, ...]:
    return table(
        _attention(block),
        _variables(block + "intermediate/dense", LAYER + "intermediate.dense", LINEAR),
        _variables(block + "output_/dense", LAYER + "output.dense", LINEAR),
        _variables(block + "layernorm_before", LAYER + "layernorm_before"),
        _variables(block + "layernorm_after", LAYER + "layernorm_after"),
    )


_BLOCKS = table(
    _layer(_BLOCK),
    raw(_BLOCK + "attention/output_/vars/scale", ATTENTION_SCALE),
    raw(_BLOCK + "output_/vars/scale", MLP_SCALE),
)
_RULES = table(
    raw(_EMBEDDINGS + "cls_token", "embeddings.cls_token"),
    raw(_EMBEDDINGS + "distillation_token", "embeddings.distillation_token"),
    raw(_EMBEDDINGS + "register_tokens", REGISTERS),
    raw(_EMBEDDINGS + "mask_token", MASK_TOKEN),
    (Rule(_MASK_TOKEN, (MASK_TOKEN,), axes=2),),
    raw(_EMBEDDINGS + "position_embeddings", POSITIONS),
    _variables("embeddings/patch_embeddings/projection", "embeddings.patch_embeddings.projection", CONV),
    _BLOCKS,
    _layer(_OF_BEIT),
    raw(_OF_BEIT + "attention/attention/relative_position_bias/vars/relative_position_bias_table", POSITION_BIAS),
    raw(_OF_BEIT + "vars/lambda_1", ATTENTION_SCALE),
    raw(_OF_BEIT + "vars/lambda_2", MLP_SCALE),
    raw("encoder/relative_position_bias/vars/relative_position_bias_table", SHARED_POSITION_BIAS),
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
    _variables("layers/beit_pooler/layernorm", "pooler.layernorm"),
    _variables("lm_head/layernorm", "lm_head.layernorm"),
    _variables(_LM_HEAD, "lm_head", LINEAR),
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
    if f"{_LM_HEAD}/vars/0" in tensors:
        tensors = {f"lm_head/{name}" if name.startswith("layernorm/") else name: t for name, t in tensors.items()}
    found = {_TRUNK.sub("", name): tensor for name, tensor in tensors.items()}
    numbered = sorted(name for name in found if name.startswith(_EMBEDDINGS) and name[-1].isdecimal())
    names = ("cls_token", *["mask_token"] * (len(numbered) == 3), "position_embeddings")
    renamed = dict(zip(numbered, (_EMBEDDINGS + name for name in names), strict=False))
    if _speaks_of(found) is DINOV2:
        renamed[_EMBEDDINGS + "mask_token"] = _MASK_TOKEN
    return {renamed.get(name, name): tensor for name, tensor in found.items()}


def _speaks_of(tensors: Iterable[str]) -> Family | None:
    """DINOv2, or BEiT, where there are its layers; the other members have ViT's."""
    layers = {DINOV2: "/dinov2_layer", BEIT: "/beit_layer"}
    return next((family for family, layer in layers.items() if any(layer in name for name in tensors)), None)


def _finish(native: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    """Names of the member alone, with the trunk's own before them, in models that have a head."""
    kinds = {Dinov2Config: _OF_DINOV2, BeitConfig: _OF_BEIT, ViTConfig: _BLOCK}
    own = next(block for kind, block in kinds.items() if isinstance(config, kind))
    foreign = (*(block.partition("{")[0] for block in kinds.values() if block != own), _MASK_TOKEN)
    native = {name: tensor for name, tensor in native.items() if not name.startswith(foreign)}
    if not any(name.startswith(_HEADS) for name in native):
        return native
    member = family_of(config).model_type
    trunk = _IN_LAYERS.get(member, _TRUNKS[member])
    headed = {name if name.startswith(_HEADS) else trunk + name: tensor for name, tensor in native.items()}
    return {name.removeprefix("lm_head/"): tensor for name, tensor in headed.items()}


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
