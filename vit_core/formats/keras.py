"""Keras's `.weights.h5` of this package's vit_tf models, as `model.save_weights` writes it: variables by number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vit_core.family import LAYER, POSITIONS
from vit_core.files.names import KERAS_WEIGHTS
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Tensors
from vit_core.formats.huggingface import Container
from vit_core.formats.rules import CONV, KEY, LINEAR, QUERY, VALUE, Rule, Step, module, raw, table


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    from vit_core.files.keras_hdf5 import read_keras_h5  # h5py is loaded when it is needed

    return read_keras_h5(path), "keras"


def _write(path: Path, tensors: Mapping[str, Tensor], format: str, shard: bool) -> None:
    from vit_core.files.keras_hdf5 import write_keras_h5

    write_keras_h5(path, tensors)


KERAS_H5 = Container("model", KERAS_WEIGHTS, "keras", _read, _write)

_BLOCK = "encoder/layer/vi_t_layer{_}/"
_TRUNK = "layers/tf_vi_t_model/"  # before the names of everything but the heads, in models that have one
_HEADS = ("classifier/", "decoder/", "layers/vi_t_dense/")


def _variables(native: str, canonical: str, *weight: Step) -> tuple[Rule, ...]:
    return module(native + "/vars", canonical, leaves=("0", "1"), join="/", weight=weight)


_RULES = table(
    raw("embeddings/cls_token", "embeddings.cls_token"),
    raw("embeddings/mask_token", "embeddings.mask_token"),
    raw("embeddings/position_embeddings", POSITIONS),
    _variables("embeddings/patch_embeddings/projection", "embeddings.patch_embeddings.projection", CONV),
    _variables(_BLOCK + "attention/attention/query", QUERY, LINEAR),
    _variables(_BLOCK + "attention/attention/key", KEY, LINEAR),
    _variables(_BLOCK + "attention/attention/value", VALUE, LINEAR),
    _variables(_BLOCK + "attention/output_/dense", LAYER + "attention.output.dense", LINEAR),
    _variables(_BLOCK + "intermediate/dense", LAYER + "intermediate.dense", LINEAR),
    _variables(_BLOCK + "output_/dense", LAYER + "output.dense", LINEAR),
    _variables(_BLOCK + "layernorm_before", LAYER + "layernorm_before"),
    _variables(_BLOCK + "layernorm_after", LAYER + "layernorm_after"),
    _variables("layernorm", "layernorm"),
    _variables("layers/vi_t_dense/dense", "pooler.dense", LINEAR),
    _variables("classifier", "classifier", LINEAR),
    _variables("decoder/conv_", "decoder.0", CONV),
)
_EMBEDDINGS = ("cls_token", "mask_token", "position_embeddings")  # numbered in this order, those that are there


def _prepare(tensors: Tensors) -> Tensors:
    """Names without the trunk's own, and the arrays of the embeddings by name."""
    found = {name.removeprefix(_TRUNK): tensor for name, tensor in tensors.items()}
    numbered = sorted(name for name in found if name.startswith("embeddings/vars/"))
    names = _EMBEDDINGS if len(numbered) == 3 else (_EMBEDDINGS[0], _EMBEDDINGS[2])
    renamed = dict(zip(numbered, (f"embeddings/{name}" for name in names), strict=False))
    return {renamed.get(name, name): tensor for name, tensor in found.items()}


def _finish(native: dict[str, Tensor]) -> dict[str, Tensor]:
    arrays = [f"embeddings/{name}" for name in _EMBEDDINGS if f"embeddings/{name}" in native]
    numbered = {name: f"embeddings/vars/{i}" for i, name in enumerate(arrays)}
    trunk = _TRUNK if any(name.startswith(_HEADS[:2]) for name in native) else ""
    return {
        ("" if name.startswith(_HEADS) else trunk) + numbered.get(name, name): tensor for name, tensor in native.items()
    }


KERAS = Format(
    "keras",
    "vit_tf's .weights.h5",
    KERAS_H5,
    _RULES,
    layer_norm_eps=1e-12,
    fixed_act=False,
    states_eps=True,
    has_qkv_bias=False,
    prepare=_prepare,
    finish=_finish,
)
