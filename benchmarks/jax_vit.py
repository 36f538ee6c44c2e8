"""A ViT in plain JAX, the peer that this package's Flax models are measured against: no library but JAX's attention.

It takes the parameter tree of `FlaxViTForImageClassification` and computes every token in every layer.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vit_core.config import ViTConfig

Params = dict[str, Any]


def classify(params: Params, pixels: Array, config: ViTConfig, attention: str) -> Array:
    """Logits (B, K) of pixels (B, C, H, W), in the dtype of the pixels.

    `attention` is an implementation of `jax.nn.dot_product_attention`: "xla" or "cudnn".
    """
    params = jax.tree.map(lambda leaf: leaf.astype(pixels.dtype), params)
    vit = params["vit"]

    def block(x: Array, p: Params) -> Array:
        heads = (*x.shape[:2], config.num_attention_heads, -1)
        normal = layer_norm(x, p["layernorm_before"], config.layer_norm_eps)
        of = p["attention"]["attention"]
        q, k, v = (dense(normal, of[name]).reshape(heads) for name in ("query", "key", "value"))  # (B, S, h, d)
        context = jax.nn.dot_product_attention(q, k, v, implementation=attention).reshape(x.shape)
        x = x + dense(context, p["attention"]["output"]["dense"])
        normal = layer_norm(x, p["layernorm_after"], config.layer_norm_eps)
        hidden = jax.nn.gelu(dense(normal, p["intermediate"]["dense"]), approximate=False)
        return x + dense(hidden, p["output"]["dense"])

    x = embed(vit["embeddings"], pixels, config)
    for i in range(config.num_hidden_layers):
        x = block(x, vit["encoder"]["layer"][str(i)])
    return dense(layer_norm(x[:, 0], vit["layernorm"], config.layer_norm_eps), params["classifier"])


def embed(params: Params, pixels: Array, config: ViTConfig) -> Array:
    """The CLS token and the patches with their positions (B, S, D)."""
    patch, (rows, columns) = config.patch_size, config.grid
    x = pixels.reshape(-1, config.num_channels, rows, patch, columns, patch)
    x = x.transpose(0, 2, 4, 3, 5, 1).reshape(-1, rows * columns, patch * patch * config.num_channels)
    projection = params["patch_embeddings"]["projection"]
    x = x @ projection["kernel"].reshape(-1, config.hidden_size) + projection["bias"]
    token = jnp.broadcast_to(params["cls_token"], (x.shape[0], 1, config.hidden_size))
    return jnp.concatenate([token, x], axis=1) + params["position_embeddings"]


def dense(x: Array, params: Params) -> Array:
    """A linear layer."""
    return x @ params["kernel"] + params["bias"]


def layer_norm(x: Array, params: Params, eps: float) -> Array:
    """LayerNorm, in float32 or wider."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normal = (wide - wide.mean(-1, keepdims=True)) * jax.lax.rsqrt(wide.var(-1, keepdims=True) + eps)
    return (normal * params["scale"] + params["bias"]).astype(x.dtype)
