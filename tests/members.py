"""The members of the family, for tests that are written once for all of them."""

from __future__ import annotations

import math
from typing import Any

from vit_core.config import ViTConfig
from vit_core.family import ARCHITECTURES, BeitConfig, Dinov2Config, ViTMAEConfig, has_head

MODELS = tuple(ARCHITECTURES)  # every model class, by its PyTorch name
MASKED = tuple(name for name in MODELS if name.endswith("ForMaskedImageModeling"))
DECODERS = tuple(name for name in MASKED if "decoder" in ARCHITECTURES[name].models[name])  # of pixels
CLASSIFIERS = tuple(name for name in MODELS if "ForImageClassification" in name)
PRETRAINED = tuple(name for name in MODELS if issubclass(ARCHITECTURES[name].config, ViTMAEConfig))  # which mask
# What the other classes compute is made of what these do: embeddings, layers, poolers, heads and losses, each once.
DISTINCT = (
    "ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling", "DeiTForImageClassificationWithTeacher",
    "BeitForImageClassification", "BeitForMaskedImageModeling", "ViTMAEForPreTraining", "Dinov2Backbone",
    "Dinov2WithRegistersForImageClassification", "IJepaForImageClassification",
)  # fmt: skip
BACKBONES = tuple(name for name in MODELS if name.endswith("Backbone"))
BARE = tuple(name for name in MODELS if not has_head(ARCHITECTURES[name].models[name]) and name not in BACKBONES)
_OF_VIT = {*ViTConfig.fields(), *ViTConfig.defaults}


def config_for(architecture: str, **values: Any) -> ViTConfig:
    """A configuration of the member that a model class is of, from the values of a ViT's."""
    return of_member(ARCHITECTURES[architecture].config, values)


def of_member(made: type[ViTConfig], values: dict[str, Any]) -> ViTConfig:
    """A configuration of a member with a ViT's values, by its own names, without those that it has no field for."""
    given = dict(values)
    if issubclass(made, Dinov2Config):
        if "intermediate_size" in given:
            ratio = given["intermediate_size"] / given["hidden_size"]
            fits = int(given["hidden_size"] * ratio) == given["intermediate_size"]
            given["mlp_ratio"] = ratio if fits else math.nextafter(ratio, math.inf)
        if given.get("layer_scale"):
            given["layerscale_value"] = given["layer_scale"]
    if issubclass(made, ViTMAEConfig):
        given = _of_mae(given)
    if issubclass(made, BeitConfig):
        flags = ("use_mask_token", "use_relative_position_bias", "use_shared_relative_position_bias")
        given = {**dict.fromkeys(flags, True), "layer_scale_init_value": given.get("layer_scale", 0.1), **given}
        given.setdefault("use_mean_pooling", given.get("pool", "mean") == "mean")
    known = {*made.fields(), *made.defaults}
    return made(**{name: value for name, value in given.items() if name in known or name not in _OF_VIT})


def _of_mae(values: dict[str, Any]) -> dict[str, Any]:
    """Values with a decoder of a layer as the encoder's are, widths of sines, and half of the patches kept."""
    plain = ViTConfig(**{name: value for name, value in values.items() if name in _OF_VIT})
    width = plain.hidden_size if plain.hidden_size % 4 == 0 else 4 * plain.hidden_size
    decoder = {
        "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": plain.num_attention_heads,
        "intermediate_size": plain.intermediate_size,
    }  # fmt: skip
    own = {f"decoder_{name}": value for name, value in decoder.items()}
    return {**own, "mask_ratio": 0.5 if plain.num_patches > 1 else 0.0, **values, "hidden_size": width}


def field_of(architecture: str) -> str:
    """What the output of a model is called, or the first of what it consists of."""
    if architecture in BACKBONES:
        return "feature_maps"
    if architecture in BARE:
        return "last_hidden_state"
    return "reconstruction" if architecture in DECODERS else "logits"
