"""timm's VisionTransformer, and DeiT, DINO, DINOv2, I-JEPA and MSN, which have its names: one array of q, k and v.

Agrees with timm 1.0.31 (`timm/models/vision_transformer.py`): LayerNorm eps 1e-6, exact GELU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_core.config import VARIANTS, ViTConfig, pair
from vit_core.family import (
    ATTENTION_SCALE,
    DEIT,
    DINOV2,
    DINOV2_WITH_REGISTERS,
    GATE,
    GATED,
    IJEPA,
    LAYER,
    MASK_TOKEN,
    MLP_SCALE,
    MSN,
    PARTS,
    POSITIONS,
    REGISTERS,
    VIT,
    Dinov2Config,
    Family,
    family_of,
    has_head,
)
from vit_core.files.names import CONFIG_NAME
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Side, Tensors, first_match
from vit_core.formats.heads import renamed_head
from vit_core.formats.huggingface import SAFETENSORS
from vit_core.formats.rules import (
    KEY,
    POOLED_NORM,
    QUERY,
    VALUE,
    Rule,
    module,
    raw,
    table,
)
from vit_core.formats.side import json_beside, labels, one_name, statistics
from vit_core.pictures.others import of_timm, resized_by_timm, size_of_timm

_TITLE = "timm's VisionTransformer (DeiT, DINO, DINOv2)"
_HEAD_OF_TWO = "head_cls"  # what `head` is called here where there is a `head_dist` beside it
_FIRST_SCALE = 1e-5  # what timm's DINOv2 starts scales at
_MASK_TOKEN = "mask_token_of_dinov2"  # what that is called here: it has an axis less than MAE's
RULES = table(
    raw("cls_token", "embeddings.cls_token"),
    raw("dist_token", "embeddings.distillation_token"),
    raw("reg_token", REGISTERS, also=("register_tokens",)),
    (Rule(_MASK_TOKEN, (MASK_TOKEN,), axes=2),),
    raw("pos_embed", POSITIONS),
    module("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    module("blocks.{}.norm1", LAYER + "layernorm_before"),
    module("blocks.{}.attn.qkv", QUERY, KEY, VALUE),
    module("blocks.{}.attn.proj", LAYER + "attention.output.dense"),
    module("blocks.{}.norm2", LAYER + "layernorm_after"),
    module("blocks.{}.mlp.fc1", LAYER + "intermediate.dense"),
    module("blocks.{}.mlp.fc2", LAYER + "output.dense"),
    module("blocks.{}.mlp.w12", GATE),
    module("blocks.{}.mlp.w3", GATED),
    module("norm", "layernorm"),
    raw("blocks.{}.ls1.gamma", ATTENTION_SCALE),
    raw("blocks.{}.ls2.gamma", MLP_SCALE),
    module("fc_norm", POOLED_NORM),
    module("pre_logits.fc", "pooler.dense"),
    module("head", "classifier"),
    module(_HEAD_OF_TWO, "cls_classifier"),
    module("head_dist", "distillation_classifier"),
)
_REFUSED = (
    (r"\.(q_norm|k_norm)\.", "normalised queries and keys (qk_norm), which ViT does not have"),
    (r"^norm_pre\.", "a norm before the first layer (pre_norm, as in CLIP), which ViT does not have"),
    (r"\.(attn|mlp)\.norm\.", "a norm within attention or MLP, which ViT does not have"),
    (r"^attn_pool\.", "attention pooling (global_pool='map', as in SigLIP), which ViT does not have"),
    (r"\.rope\b|^rope", "rotary position embeddings, which ViT does not have"),
    (r"\.(fc1_g|fc1_x)\.", "a gated MLP in two arrays, which no member of the family has"),
)
_LEFT_OUT = (
    (r"(^|\.)(dino_|ibot_)?head\.(mlp|last_layer)\.", "the projection head of DINO's training"),
    (r"^(module\.)?linear\.", "a linear probe on several layers"),
    (r"(^|\.)fc\.(fc|bn)\d\.", "the projection head of MSN's training"),
    (r"(^|\.)masked_embed$", "the mask token of iBOT's training"),
)
_OLD_SCALES = re.compile(r"^(blocks\.\d+)\.gamma_([12])$")
_IN_CHUNKS = re.compile(r"^blocks\.\d+\.(\d+\.)")  # as DINOv2's training shares its layers out, by their own numbers
_GATED = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}  # timm's names of a gated MLP, and those of DINOv2's authors
_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu"}
POOLS = {"token": "cls", "avg": "mean"}
_NAMES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant", "G": "gigantic"}
# What names of architectures alone say: numbers of heads, the first that fits, SigLIP's activation, and of models whose
# arrays are called as a ViT's what else these compute.
_HEADS = (
    (r"vit_giant_.*(dinov2|tipsv2)", 24),
    (r"vit_base_patch16_gap_", 16),
    (r"vit_base_patch\d+_plus_", 14),
    (r"vit_betwixt_", 10),
    (r"(vit|deit3)_medium_", 8),
    (r"vit_(so400m|giantopt)_", 16),
    *((f"(vit|deit3?|flexivit|eva|beit|beitv2)_{word}(_|$)", VARIANTS[letter][3]) for letter, word in _NAMES.items()),
)
_BY_TANH = r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_gap_|vit_large_patch16_siglip_gap_512"
_NO_VIT = (
    (r"_rope_|dinov3|lingbot|sapiens|^vit_pe_|^eva02_(?!enormous)", "rotary position embeddings"),
    (r"^eva02_enormous_|_rpn_", "norms behind attention and MLP"),
)


def _prepare(tensors: Tensors) -> Tensors:
    """DeiT-3's own name of the layer scale becomes timm's, and that of a head put in the place of timm's."""
    tensors = renamed_head(tensors, "head", "head")
    if any(name.startswith("head_dist.") for name in tensors):
        tensors = {re.sub(r"^head\.", f"{_HEAD_OF_TWO}.", name): tensor for name, tensor in tensors.items()}
    if (mask := tensors.get("mask_token")) is not None and len(mask.shape) == 2:
        tensors = {_MASK_TOKEN if name == "mask_token" else name: tensor for name, tensor in tensors.items()}
    tensors = {_IN_CHUNKS.sub(r"blocks.\1", name): tensor for name, tensor in tensors.items()}
    if _is_packed(tensors):
        tensors = {_replaced(name, _GATED): tensor for name, tensor in tensors.items()}
    return {_OLD_SCALES.sub(r"\1.ls\2.gamma", name): tensor for name, tensor in tensors.items()}


def _is_packed(tensors: Tensors) -> bool:
    """Whether the MLP's first layer has room for a gate beside what its second one takes."""
    first, second = (tensors.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if first is None or second is None or len(first.shape) != 2 or len(second.shape) != 2:
        return False
    return first.shape[0] == 2 * second.shape[1]


def _replaced(name: str, words: Mapping[str, str]) -> str:
    for old, new in words.items():
        name = name.replace(old, new)
    return name


def _speaks_of(tensors: Tensors) -> Family | None:
    """DINOv2 where there is its mask token; a file without it has a ViT's names."""
    return DINOV2 if _MASK_TOKEN in tensors else None


def _finish(native: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    if "dist_token" in native and "head.weight" in native:
        raise ValueError("timm's distilled models have two heads, this one has one: pass head='drop'.")
    if _MASK_TOKEN in native and len(native[_MASK_TOKEN].shape) != 2:
        raise ValueError(f"{_TITLE} has no place for {MASK_TOKEN}: pass head='drop'.")
    if _MASK_TOKEN in native:  # by which timm knows a file of DINOv2's authors, which it reads
        names = {_MASK_TOKEN: "mask_token", "reg_token": "register_tokens"}
        return {names.get(name, name): tensor for name, tensor in native.items()}
    back = {new: old for old, new in _GATED.items()} | {f"{_HEAD_OF_TWO}.": "head."}
    return {_replaced(name, back): tensor for name, tensor in native.items()}


def read_side(path: Path) -> Side:
    """What timm's config.json beside the weights says."""
    stored = json_beside(path, CONFIG_NAME)
    if "architecture" not in stored:
        return Side(notes=["no timm config.json beside the weights: the preprocessing of the pictures is not known"])
    arguments, architecture = stored.object("model_args"), stored.text("architecture", "")
    if reason := first_match(_NO_VIT, architecture):
        raise ValueError(f"{path} is timm's {architecture}, which has {reason}, and no ViT here: load it with timm.")
    config = {"hidden_act": "gelu"} | _of_architecture(architecture)
    names = {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}
    config |= {ours: arguments.integer(theirs) for theirs, ours in names.items() if theirs in arguments}
    size = size_of_timm(stored)
    config["image_size"] = size[0] if isinstance(size, list) and size[0] == size[1] else size
    if activation := arguments.text("act_layer", ""):
        if activation not in _ACTIVATIONS:
            raise ValueError(f"{path} has act_layer={activation!r}, expected one of {', '.join(_ACTIVATIONS)}.")
        config["hidden_act"] = _ACTIVATIONS[activation]
    if pool := arguments.text("global_pool", "") or stored.text("global_pool", ""):
        config["pool"] = POOLS.get(pool, pool)
    side = Side(config | labels(stored.texts("label_names")), family=_named_member(architecture))
    side.processor, remark = of_timm(stored)
    side.notes += [remark] if remark else []
    return side


def crop_of(processor: dict[str, Any]) -> tuple[float, str] | None:
    """timm's crop_pct and crop_mode of what a preprocessor's document does; None for a crop that they can't state."""
    if not processor.get("do_center_crop") or processor["size"] == processor["crop_size"]:
        return 1.0, "squash"
    size, crop = processor["size"], processor["crop_size"]
    wanted, mode = crop["height"] / next(iter(size.values())), "center" if "shortest_edge" in size else "squash"
    for share in (wanted, math.nextafter(wanted, 0)):  # timm rounds the quotient down
        if resized_by_timm([crop["height"], crop["width"]], share, mode) == size and processor.get("do_resize", True):
            return share, mode
    return None


def _named_member(architecture: str) -> Family | None:
    """The member that timm's name of an architecture, with the tag of its weights, is of."""
    named = {"reg4_dinov2": DINOV2_WITH_REGISTERS, "dinov2": DINOV2, "ijepa": IJEPA}
    return next((family for word, family in named.items() if word in architecture), None)


def _of_architecture(name: str) -> dict[str, Any]:
    """What timm's name of an architecture alone says: how many heads, and another activation function."""
    heads = next((number for pattern, number in _HEADS if re.match(pattern, name)), None)
    found: dict[str, Any] = {} if heads is None else {"num_attention_heads": heads}
    return found | ({"hidden_act": "gelu_new"} if re.match(_BY_TANH, name) else {})


def _write_side(config: ViTConfig, architecture: str, processor: dict[str, Any] | None) -> dict[str, Any]:
    """timm's config.json: the base architecture with every argument that makes it this model."""
    headed = has_head(PARTS[architecture])
    if headed and isinstance(config, Dinov2Config):
        raise ValueError(
            "timm's DINOv2 has no head on the CLS token and the mean of the patches: pass head='drop' for the model "
            "below it."
        )
    heads = (["head", "head_dist"] if family_of(config) is DEIT else ["head"]) if headed else []
    arguments = {"qkv_bias": config.qkv_bias, **_of_member(config)}
    return {CONFIG_NAME: described(config, _architecture(config), arguments, processor, heads)}


def described(
    config: ViTConfig, architecture: str, own: dict[str, Any], processor: dict[str, Any] | None, heads: list[str]
) -> dict[str, Any]:
    """What timm's config.json says of a model with these `heads`; `own` are arguments that not every model has."""
    activation = next((theirs for theirs, ours in _ACTIVATIONS.items() if ours == one_name(config.hidden_act)), None)
    if activation is None:
        raise ValueError(f"timm's configuration can't name hidden_act={config.hidden_act!r}: pass another hidden_act.")
    arguments: dict[str, Any] = {
        "img_size": config.image_size, "patch_size": config.patch_size, "in_chans": config.num_channels,
        "embed_dim": config.hidden_size, "depth": config.num_hidden_layers, "num_heads": config.num_attention_heads,
        "mlp_ratio": _ratio(config.intermediate_size, config.hidden_size), **own,
    }  # fmt: skip
    if activation != "gelu":
        arguments["act_layer"] = activation
    mean, std, interpolation = statistics(processor, config.num_channels)
    share, mode = crop_of(processor or {}) or (1.0, "squash")
    height, width = pair(config.image_size)
    labels = config.num_labels if heads else 0
    return {
        "architecture": architecture,
        "num_classes": labels,
        "num_features": config.hidden_size,
        "global_pool": "avg" if config.pool == "mean" else "token",
        "model_args": arguments,
        **({"label_names": [config.id2label[i] for i in range(labels)]} if heads else {}),
        "pretrained_cfg": {
            "input_size": [config.num_channels, height, width], "fixed_input_size": True,
            "interpolation": interpolation, "crop_pct": share, "crop_mode": mode, "mean": mean, "std": std,
            "num_classes": labels, "pool_size": None,
            "first_conv": "patch_embed.proj", "classifier": heads if len(heads) > 1 else "head",
        },
    }  # fmt: skip


def _architecture(config: ViTConfig) -> str:
    """timm's name of the architecture of which arguments make the model."""
    if isinstance(config, Dinov2Config):
        size, registers = "giant" if config.use_swiglu_ffn else "small", "reg4_" * bool(config.num_register_tokens)
        return f"vit_{size}_patch14_{registers}dinov2"
    return "deit_base_distilled_patch16_224" if family_of(config) is DEIT else "vit_base_patch16_224"


def _of_member(config: ViTConfig) -> dict[str, Any]:
    """The arguments that not every model has."""
    if isinstance(config, Dinov2Config):
        width = (2 if config.use_swiglu_ffn else 1) * config.intermediate_size
        found: dict[str, Any] = {
            "init_values": config.layerscale_value or _FIRST_SCALE,
            "mlp_ratio": _ratio(width, config.hidden_size),
        }
        return found | ({"reg_tokens": config.num_register_tokens} if config.num_register_tokens else {})
    found = {"init_values": config.layer_scale} if config.layer_scale else {}
    if config.pool == "mean":
        found |= {"global_pool": "avg", "fc_norm": config.fc_norm}
    if not config.tokens:
        found |= {"class_token": False}
    return found


def _ratio(intermediate: int, hidden: int) -> float:
    """The ratio from which timm, which rounds the product down, finds the width of the MLP again."""
    ratio = intermediate / hidden
    return ratio if int(hidden * ratio) == intermediate else math.nextafter(ratio, math.inf)


TIMM = Format(
    "timm",
    _TITLE,
    SAFETENSORS,
    RULES,
    families=(VIT, DEIT, DINOV2, DINOV2_WITH_REGISTERS, IJEPA, MSN),
    pools_mean=True,
    fixed_act=False,
    states_resample=True,
    states_crop=lambda processor: crop_of(processor) is not None,
    states_labels=True,
    has_qkv_bias=False,
    refused=_REFUSED,
    left_out=_LEFT_OUT,
    finish=_finish,
    absent={
        "decoder": "pass head='drop'",
        "pooler": "timm has had no pooler (pre_logits) since 0.6: pass pooler='drop'",
    },
    speaks_of=_speaks_of,
    prepare=_prepare,
    read_side=read_side,
    write_side=_write_side,
)
