"""timm's BEiT, and that of its authors (microsoft/unilm), whose names it has: one array of q, k and v, no bias of k.

Agrees with timm 1.0.31 (`timm/models/beit.py`): LayerNorm eps 1e-6, exact GELU. Its tables of relative positions are in
the same order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vit_core.config import ViTConfig
from vit_core.family import (
    ATTENTION_SCALE,
    BEIT,
    LAYER,
    MASK_TOKEN,
    MLP_SCALE,
    PARTS,
    POSITION_BIAS,
    POSITIONS,
    SHARED_POSITION_BIAS,
    BeitConfig,
    has_head,
)
from vit_core.files.names import CONFIG_NAME
from vit_core.files.tensor import Tensor
from vit_core.formats.format import Format, Side, Tensors
from vit_core.formats.heads import renamed_head
from vit_core.formats.huggingface import SAFETENSORS
from vit_core.formats.rules import KEY, QUERY, VALUE, Rule, module, raw, table
from vit_core.formats.timm import POOLS, crop_of, described, read_side

_NORM_OF_TOKENS = "norm_of_tokens."  # what `norm` is called here below the head of visual tokens
_RULES = table(
    raw("cls_token", "embeddings.cls_token"),
    raw("mask_token", MASK_TOKEN),
    raw("pos_embed", POSITIONS),
    module("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    module("blocks.{}.norm1", LAYER + "layernorm_before"),
    (Rule("blocks.{}.attn.qkv.weight", (f"{QUERY}.weight", f"{KEY}.weight", f"{VALUE}.weight")),),
    raw("blocks.{}.attn.q_bias", f"{QUERY}.bias"),
    raw("blocks.{}.attn.v_bias", f"{VALUE}.bias"),
    raw("blocks.{}.attn.relative_position_bias_table", POSITION_BIAS),
    module("blocks.{}.attn.proj", LAYER + "attention.output.dense"),
    module("blocks.{}.norm2", LAYER + "layernorm_after"),
    module("blocks.{}.mlp.fc1", LAYER + "intermediate.dense"),
    module("blocks.{}.mlp.fc2", LAYER + "output.dense"),
    raw("blocks.{}.gamma_1", ATTENTION_SCALE),
    raw("blocks.{}.gamma_2", MLP_SCALE),
    raw("rel_pos_bias.relative_position_bias_table", SHARED_POSITION_BIAS),
    module("norm", "layernorm"),
    module("fc_norm", "pooler.layernorm"),
    module("head", "classifier"),
    module(_NORM_OF_TOKENS[:-1], "lm_head.layernorm"),
    module("lm_head", "lm_head"),
)


def _begun(tensors: Tensors, old: str, new: str) -> dict[str, Tensor]:
    """The tensors with another beginning of some names."""
    return {new + n.removeprefix(old) if n.startswith(old) else n: tensor for n, tensor in tensors.items()}


def _prepare(tensors: Tensors) -> Tensors:
    tensors = renamed_head(tensors, "head", "head")
    return _begun(tensors, "norm.", _NORM_OF_TOKENS) if "lm_head.weight" in tensors else tensors


def _finish(native: dict[str, Tensor], config: ViTConfig) -> dict[str, Tensor]:
    if f"{_NORM_OF_TOKENS}weight" in native and "norm.weight" in native:
        raise ValueError("BEiT's authors normalise once before the head of visual tokens: pass head='drop'.")
    return _begun(native, _NORM_OF_TOKENS, "norm.")


def _read_side(path: Path) -> Side:
    side = read_side(path)
    if side.config.get("pool") in POOLS.values():
        del side.config["pool"]  # which the norm says
    return replace(side, family=BEIT)


def _write_side(config: ViTConfig, architecture: str, processor: dict[str, Any] | None) -> dict[str, Any]:
    """timm's config.json: the base architecture with every argument that makes it this model."""
    assert isinstance(config, BeitConfig)
    arguments = {
        "use_abs_pos_emb": config.use_absolute_position_embeddings,
        "use_rel_pos_bias": config.use_relative_position_bias,
        "use_shared_rel_pos_bias": config.use_shared_relative_position_bias,
        "init_values": config.layer_scale_init_value,
        "global_pool": "avg" if config.use_mean_pooling else "token",
    }
    headed = has_head(PARTS[architecture])
    return {CONFIG_NAME: described(config, "beit_base_patch16_224", arguments, processor, ["head"] * headed)}


TIMM_BEIT = Format(
    "timm-beit",
    "timm's BEiT",
    SAFETENSORS,
    _RULES,
    families=(BEIT,),
    pools_mean=True,
    fixed_act=False,
    states_resample=True,
    states_crop=lambda processor: crop_of(processor) is not None,
    states_labels=True,
    prepare=_prepare,
    finish=_finish,
    read_side=_read_side,
    write_side=_write_side,
)
