"""Keras's `.weights.h5` of this package's vit_tf models, as `model.save_weights` writes it.

The variables of Keras's own layers stand there by number, the raw arrays by name; in older files those by number, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from vit_core.family import ATTENTION_SCALE, DEIT, FAMILIES, HEADS, LAYER, MLP_SCALE, POSITIONS
from vit_core.files.names import KERAS_WEIGHTS
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Tensors
from vit_core.formats.huggingface import Container
from vit_core.formats.rules import (
    CONV,
    KEY,
    LINEAR,
    QUERY,
    VALUE,
    Rule,
    Step,
    module,
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

_BLOCK = "encoder/layer/vi_t_layer{_}/"
_EMBEDDINGS = "embeddings/vars/"
_DISTILLATION = _EMBEDDINGS + "distillation_token"
# Where models that have a head keep their trunk: Keras takes attributes by the alphabet, `layers` before `vit`.
_IN_LAYERS = "layers/tf_vi_t_model/"
_TRUNK = re.compile(f"^({_IN_LAYERS}|{'|'.join(f'{family.trunk}/' for family in FAMILIES.values())})")
_HEADS = tuple(f"{name}/" for name in HEADS)


def _variables(native: str, canonical: str, *weight: Step, also: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    older = [f"{name}/vars" for name in also]
    return module(native + "/vars", canonical, leaves=("0", "1"), join="/", weight=weight, also=older)


_RULES = table(
    raw(_EMBEDDINGS + "cls_token", "embeddings.cls_token"),
    raw(_DISTILLATION, "embeddings.distillation_token"),
    raw(_EMBEDDINGS + "mask_token", "embeddings.mask_token"),
    raw(_EMBEDDINGS + "position_embeddings", POSITIONS),
    _variables("embeddings/patch_embeddings/projection", "embeddings.patch_embeddings.projection", CONV),
    _variables(_BLOCK + "attention/attention/query", QUERY, LINEAR),
    _variables(_BLOCK + "attention/attention/key", KEY, LINEAR),
    _variables(_BLOCK + "attention/attention/value", VALUE, LINEAR),
    _variables(_BLOCK + "attention/output_/dense", LAYER + "attention.output.dense", LINEAR),
    raw(_BLOCK + "attention/output_/vars/scale", ATTENTION_SCALE),
    _variables(_BLOCK + "intermediate/dense", LAYER + "intermediate.dense", LINEAR),
    _variables(_BLOCK + "output_/dense", LAYER + "output.dense", LINEAR),
    raw(_BLOCK + "output_/vars/scale", MLP_SCALE),
    _variables(_BLOCK + "layernorm_before", LAYER + "layernorm_before"),
    _variables(_BLOCK + "layernorm_after", LAYER + "layernorm_after"),
    _variables("layernorm", "layernorm"),
    _variables("layers/vi_t_pooler/dense", "pooler.dense", LINEAR, also=("layers/vi_t_dense/dense",)),
    _variables("classifier", "classifier", LINEAR),
    _variables("cls_classifier", "cls_classifier", LINEAR),
    _variables("distillation_classifier", "distillation_classifier", LINEAR),
    _variables("decoder/conv_", "decoder.0", CONV),
)


def _prepare(tensors: Tensors) -> Tensors:
    """Names without the trunk's own, and the arrays of the embeddings by name where a file has them by number."""
    found = {_TRUNK.sub("", name): tensor for name, tensor in tensors.items()}
    numbered = sorted(name for name in found if name.startswith(_EMBEDDINGS) and name[-1].isdecimal())
    names = ("cls_token", *["mask_token"] * (len(numbered) == 3), "position_embeddings")
    renamed = dict(zip(numbered, (_EMBEDDINGS + name for name in names), strict=False))
    return {renamed.get(name, name): tensor for name, tensor in found.items()}


def _finish(native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names with the trunk's own before them, in models that have a head."""
    if not any(name.startswith(_HEADS) for name in native):
        return native
    trunk = f"{DEIT.trunk}/" if _DISTILLATION in native else _IN_LAYERS
    return {name if name.startswith(_HEADS) else trunk + name: tensor for name, tensor in native.items()}


KERAS = Format(
    "keras",
    "vit_tf's .weights.h5",
    KERAS_H5,
    _RULES,
    families=tuple(FAMILIES.values()),
    pools_mean=True,
    layer_norm_eps=1e-12,
    fixed_act=False,
    states_eps=True,
    has_qkv_bias=False,
    prepare=_prepare,
    finish=_finish,
)
