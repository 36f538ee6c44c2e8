"""keras-hub's ViT: preset folders, and the `.weights.h5` of its backbone and its classifier.

Agrees with keras-hub 0.32 (`keras_hub/src/models/vit`): exact GELU, and a LayerNorm eps that its configuration states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vit_core.config import ViTConfig, pair
from vit_core.family import LAYER, PARTS, POSITIONS, has_head
from vit_core.files.names import (
    CONFIG_NAME,
    PRESET_BESIDE,
    PRESET_CONVERTER,
    PRESET_METADATA,
    PRESET_PREPROCESSOR,
    PRESET_TASK,
    PRESET_TASK_MODEL,
)
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Side, Tensors
from vit_core.formats.keras import KERAS_H5
from vit_core.formats.rules import (
    CONV,
    KEY,
    LINEAR,
    QUERY,
    VALUE,
    Heads,
    NoBatch,
    Rule,
    Step,
    module,
    raw,
    table,
)
from vit_core.formats.side import json_beside, statistics
from vit_core.pictures.others import of_keras_hub

_EMBEDDING, _ENCODER = "layers/vi_t_patching_and_embedding/", "layers/vi_t_encoder/"
_BLOCK = _ENCODER + "encoder_layers/vi_t_encoder_block{_}/"
_BACKBONE = "layers/vi_t_backbone/"  # before the names of the backbone in the file of a whole classifier
_HEAD, _BELOW_HEAD = "layers/dense/", "layers/pre_logits/"


def variables(native: str, canonical: str, *weight: Step, bias: tuple[Step, ...] = ()) -> tuple[Rule, ...]:
    """The weight and the bias of a layer, which Keras numbers."""
    return module(native + "/vars", canonical, leaves=("0", "1"), join="/", weight=weight, bias=bias)


def _projected(name: str, canonical: str) -> tuple[Rule, ...]:
    return variables(f"{_BLOCK}mha/{name}_dense", canonical, LINEAR, Heads(1), bias=(Heads(0),))


_RULES = table(
    raw(_EMBEDDING + "vars/0", "embeddings.cls_token"),
    raw(_EMBEDDING + "position_embedding/vars/0", POSITIONS, NoBatch()),
    variables(_EMBEDDING + "patch_embedding", "embeddings.patch_embeddings.projection", CONV),
    variables(_BLOCK + "layer_norm_1", LAYER + "layernorm_before"),
    _projected("query", QUERY),
    _projected("key", KEY),
    _projected("value", VALUE),
    variables(_BLOCK + "mha/output_dense", LAYER + "attention.output.dense", LINEAR, Heads(0)),
    variables(_BLOCK + "layer_norm_2", LAYER + "layernorm_after"),
    variables(_BLOCK + "mlp/dense_1", LAYER + "intermediate.dense", LINEAR),
    variables(_BLOCK + "mlp/dense_2", LAYER + "output.dense", LINEAR),
    variables(_ENCODER + "layer_norm", "layernorm"),
    variables("layers/pre_logits", "pooler.dense", LINEAR),
    variables("layers/dense", "classifier", LINEAR),
)


def _prepare(tensors: Tensors) -> Tensors:
    """Names without the backbone's own; of two dense layers the first is below the head."""
    found = {name.removeprefix(_BACKBONE): tensor for name, tensor in tensors.items()}
    above = _HEAD.replace("dense", "dense_1")
    if not any(name.startswith(above) for name in found):
        return found
    renamed = {name: name.replace(_HEAD, _BELOW_HEAD).replace(above, _HEAD) for name in found}
    return {renamed[name]: tensor for name, tensor in found.items()}


def _files(native: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A preset's files: the backbone's, and the head's where there is one."""
    head = {name: tensor for name, tensor in native.items() if name.startswith(_HEAD)}
    trunk = {name: tensor for name, tensor in native.items() if name not in head}
    return {KERAS_H5.names()[0]: trunk} | ({PRESET_TASK_MODEL: head} if head else {})


# ---- the preset's documents --------------------------------------------------------------------------------------

_FIELDS = {
    "num_heads": "num_attention_heads",
    "layer_norm_epsilon": "layer_norm_eps",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}


def _read_side(path: Path) -> Side:
    backbone = json_beside(path, CONFIG_NAME).object("config")
    task = json_beside(path, PRESET_TASK).object("config")
    if task.text("pooling", "token") != "token":
        raise ValueError(
            f"{path} is a classifier on the mean of the patches (pooling={task['pooling']!r} in task.json), where "
            "ViT's head is on the class token: convert the backbone's preset."
        )
    side = Side({ours: backbone.number(theirs) for theirs, ours in _FIELDS.items() if theirs in backbone})
    shape, size, channels = backbone.lengths("image_shape", [3]), None, 3
    if isinstance(shape, list):
        *size, channels = shape
        side.config["image_size"] = size[0] if size[0] == size[1] else tuple(size)
    if converter := json_beside(path, PRESET_CONVERTER).object("config"):
        side.processor = of_keras_hub(converter, size, channels)
        if side.processor is None:
            side.notes.append(
                f"{converter.source} names no size of pictures: how they are prepared is not carried over"
            )
    if converter.get("crop_to_aspect_ratio"):
        side.notes.append("keras-hub crops pictures to the aspect ratio; the preprocessor resizes the whole picture")
    return side


def _write_side(config: ViTConfig, architecture: str, processor: dict[str, Any] | None) -> dict[str, Any]:
    backbone = _object("vit_backbone", "ViTBackbone", _backbone(config))
    converter = _object("vit_image_converter", "ViTImageConverter", _converter(config, processor))
    documents = {CONFIG_NAME: backbone, PRESET_CONVERTER: converter}
    tasks = []
    if has_head(PARTS[architecture]):
        values = {"image_converter": converter, "config_file": PRESET_PREPROCESSOR}
        documents[PRESET_PREPROCESSOR] = _object(
            "vit_image_classifier_preprocessor", "ViTImageClassifierPreprocessor", values
        )
        documents[PRESET_TASK] = _object(
            "vit_image_classifier",
            "ViTImageClassifier",
            {
                "backbone": backbone, "preprocessor": documents[PRESET_PREPROCESSOR], "num_classes": config.num_labels,
                "pooling": "token", "intermediate_dim": None, "activation": None, "dropout": 0.0,
            },
        )  # fmt: skip
        tasks = ["ImageClassifier"]
    versions = {"keras_version": "3.15.1", "keras_hub_version": "0.32.0"}  # whose documents these are
    return {**documents, PRESET_METADATA: {**versions, "tasks": tasks}}


def _backbone(config: ViTConfig) -> dict[str, Any]:
    if config.hidden_act != "gelu":
        raise ValueError(f"keras-hub's ViT has hidden_act='gelu', this model {config.hidden_act!r}: pass hidden_act.")
    height, width = pair(config.image_size)
    return {
        "name": "vi_t_backbone", "trainable": True, "image_shape": [height, width, config.num_channels],
        "patch_size": list(pair(config.patch_size)), "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads, "hidden_dim": config.hidden_size, "mlp_dim": config.intermediate_size,
        "dropout_rate": config.hidden_dropout_prob, "attention_dropout": config.attention_probs_dropout_prob,
        "layer_norm_epsilon": config.layer_norm_eps, "use_mha_bias": True, "use_mlp_bias": True,
        "use_class_token": True, "use_patch_bias": True,
    }  # fmt: skip


def _converter(config: ViTConfig, processor: dict[str, Any] | None) -> dict[str, Any]:
    mean, std, interpolation = statistics(processor, config.num_channels)
    return {
        "name": "vi_t_image_converter", "trainable": True, "image_size": list(pair(config.image_size)),
        "scale": [1 / (255 * s) for s in std], "offset": [-m / s for m, s in zip(mean, std, strict=True)],
        "interpolation": interpolation, "antialias": True, "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False,
    }  # fmt: skip


def _object(module_name: str, class_name: str, values: dict[str, Any]) -> dict[str, Any]:
    """An object as Keras serialises it."""
    return {
        "module": f"keras_hub.src.models.vit.{module_name}", "class_name": class_name, "config": values,
        "registered_name": f"keras_hub>{class_name}",
    }  # fmt: skip


KERAS_HUB = Format(
    "keras-hub",
    "keras-hub's ViT",
    KERAS_H5,
    _RULES,
    states_eps=True,
    states_resample=True,
    absent={
        "embeddings.mask_token": "pass head='drop'",
        "decoder": "pass head='drop'",
        "pooler": "it has no pooler: pass pooler='drop'",
    },
    prepare=_prepare,
    files=_files,
    beside=PRESET_BESIDE,
    read_side=_read_side,
    write_side=_write_side,
)
