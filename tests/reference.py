"""ViT a fourth time, from the paper (Dosovitskiy et al. 2021), in NumPy and float64: plain loops, no backend's code.

The members of its family too: DeiT (Touvron et al. 2021, section 4), the scales of layers (CaiT, Touvron et al. 2021,
section 2), BEiT (Bao et al. 2022), DINOv2 (Oquab et al. 2023), its registers (Darcet et al. 2023) and its gate
(Shazeer 2020), MAE (He et al. 2022, section 3). Arrays go by their names in Hugging Face's PyTorch ViT, blocks by those
of the member, without the prefix of the trunk.
"""

from __future__ import annotations

import math

import numpy as np

from vit_core.config import ViTConfig, pair
from vit_core.family import BeitConfig, Dinov2Config

Arrays = dict[str, np.ndarray]
erf = np.vectorize(math.erf, otypes=[np.float64])


def linear(x: np.ndarray, p: Arrays, name: str) -> np.ndarray:
    """x W^T + b of (..., inputs); a weight of more axes is a kernel, which sees one patch at a time."""
    weight = p[f"{name}.weight"]
    return x @ weight.reshape(len(weight), -1).T + p.get(f"{name}.bias", 0.0)


def layer_norm(x: np.ndarray, p: Arrays, name: str, eps: float) -> np.ndarray:
    """Each token with mean 0 and variance 1, then scaled and shifted."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(x: np.ndarray, p: Arrays, mask: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Appendix A: context (B, S, D), probabilities (B, h, S, S); `mask` is a factor per head, `bias` adds to scores.

    The bias is (B or 1, h or 1, S or 1, S).
    """
    biases = np.broadcast_to(bias, (len(bias), len(mask), *bias.shape[2:])).transpose(1, 0, 2, 3)
    q, k, v = (np.split(linear(x, p, f"attention.attention.{n}"), len(mask), axis=2) for n in ("query", "key", "value"))
    scores = [qi @ ki.transpose(0, 2, 1) / math.sqrt(qi.shape[2]) + b for qi, ki, b in zip(q, k, biases, strict=True)]
    weights = [np.exp(s - s.max(-1, keepdims=True)) for s in scores]
    probs = [factor * w / w.sum(-1, keepdims=True) for factor, w in zip(mask, weights, strict=True)]
    return np.concatenate([a @ vi for a, vi in zip(probs, v, strict=True)], axis=2), np.stack(probs, axis=1)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def layer(x: np.ndarray, p: Arrays, eps: float, mask: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """The result of one layer, and its blocks by name; `probabilities` are no module of their own."""
    out = {"layernorm_before": layer_norm(x, p, "layernorm_before", eps)}
    context, out["probabilities"] = attention(out["layernorm_before"], p, mask, bias)
    out["attention.attention"] = context
    out["attention.output"] = linear(context, p, "attention.output.dense") * p.get("attention.output.scale", 1.0)
    x = x + out["attention.output"]  # equation 2
    out["layernorm_after"] = layer_norm(x, p, "layernorm_after", eps)
    out["intermediate"] = gelu(linear(out["layernorm_after"], p, "intermediate.dense"))
    out["output"] = x + linear(out["intermediate"], p, "output.dense") * p.get("output.scale", 1.0)  # equation 3
    return out["output"], out


def dinov2_layer(x: np.ndarray, p: Arrays, eps: float, mask: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """As `layer`, of DINOv2."""
    out = {"norm1": layer_norm(x, p, "layernorm_before", eps)}
    context, out["probabilities"] = attention(out["norm1"], p, mask, bias)
    out["attention.attention"], out["attention.output"] = context, linear(context, p, "attention.output.dense")
    out["layer_scale1"] = out["attention.output"] * p["attention.output.scale"]
    x = x + out["layer_scale1"]
    y = out["norm2"] = layer_norm(x, p, "layernorm_after", eps)
    if "mlp.weights_in.weight" in p:
        gate, y = np.split(linear(y, p, "mlp.weights_in"), 2, axis=2)
        out["mlp"] = linear(gate / (1 + np.exp(-gate)) * y, p, "mlp.weights_out")
    else:
        out["mlp"] = linear(gelu(linear(y, p, "intermediate.dense")), p, "output.dense")
    out["layer_scale2"] = out["mlp"] * p["output.scale"]
    return x + out["layer_scale2"], out


def kept(x: np.ndarray, order: list[list[int]], count: int) -> np.ndarray:
    """The CLS token and, of patches in an order of their own for each picture, the first so many."""
    return np.stack([tokens[[0, *(1 + i for i in row[:count])]] for tokens, row in zip(x, order, strict=True)])


def decoder(x: np.ndarray, order: list[list[int]], p: Arrays, config: ViTConfig) -> Arrays:
    """MAE's decoder, of the CLS token and the patches that come first in the order, and its blocks."""
    embedded = linear(x, p, "decoder.decoder_embed")
    y = np.tile(p["decoder.mask_token"], (len(x), len(order[0]) + 1, 1))
    y[:, 0] = embedded[:, 0]
    for tokens, seen, row in zip(y, embedded[:, 1:], order, strict=True):
        for token, i in zip(seen, row, strict=False):
            tokens[1 + i] = token
    y, out = y + p["decoder.decoder_pos_embed"], {"decoder.decoder_embed": embedded}
    heads, eps = np.ones(config.decoder_num_attention_heads), config.layer_norm_eps
    for i in range(config.decoder_num_hidden_layers):
        name = f"decoder.decoder_layers.{i}"
        own = {key.removeprefix(f"{name}."): array for key, array in p.items() if key.startswith(f"{name}.")}
        y, blocks = layer(y, own, eps, heads, np.zeros((1, 1, 1, 1)))
        out |= {f"{name}.{key}": array for key, array in blocks.items() if key != "probabilities"} | {name: y}
    out["decoder.decoder_norm"] = layer_norm(y, p, "decoder.decoder_norm", eps)
    out["decoder.decoder_pred"] = linear(out["decoder.decoder_norm"], p, "decoder.decoder_pred")
    return out | {"logits": out["decoder.decoder_pred"][:, 1:]}


def blocks_of(pixels: np.ndarray, config: ViTConfig) -> np.ndarray:
    """The numbers of each patch of pixels (B, C, H, W), channels last: (B, N, P Q C)."""
    ph, pw = pair(config.patch_size)
    rows, columns = range(0, pixels.shape[2] - ph + 1, ph), range(0, pixels.shape[3] - pw + 1, pw)
    found = [pixels[:, :, i : i + ph, j : j + pw].transpose(0, 2, 3, 1) for i in rows for j in columns]
    return np.stack([each.reshape(len(pixels), -1) for each in found], axis=1)


def loss_of_removed(
    predicted: np.ndarray, target: np.ndarray, order: list[list[int]], count: int, config: ViTConfig
) -> np.ndarray:
    """MAE's loss: the mean over the patches after the first `count` of the mean squared error of each."""
    errors = []
    for ours, theirs, row in zip(predicted, target, order, strict=True):
        for i in row[count:]:
            wanted = theirs[i]
            if config.norm_pix_loss:
                wanted = (wanted - wanted.mean()) / math.sqrt(wanted.var(ddof=1) + 1e-6)
            errors.append(((ours[i] - wanted) ** 2).mean())
    return np.array(sum(errors) / max(len(errors), 1))


def beit_layer(x: np.ndarray, p: Arrays, eps: float, mask: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """As `layer`, of BEiT, whose modules end before the scales of their branches."""
    out = {"layernorm_before": layer_norm(x, p, "layernorm_before", eps)}
    context, out["probabilities"] = attention(out["layernorm_before"], p, mask, bias)
    out["attention.attention"], out["attention.output"] = context, linear(context, p, "attention.output.dense")
    x = x + out["attention.output"] * p.get("attention.output.scale", 1.0)
    out["layernorm_after"] = layer_norm(x, p, "layernorm_after", eps)
    out["intermediate"] = gelu(linear(out["layernorm_after"], p, "intermediate.dense"))
    out["output"] = linear(out["intermediate"], p, "output.dense")
    return x + out["output"] * p.get("output.scale", 1.0), out


def position_bias(table: np.ndarray | None, rows: int, columns: int) -> np.ndarray | float:
    """BEiT's bias (1, h, S, S) of a table (T, h), for the CLS token and a grid of rows x columns; 0 of no table."""
    if table is None:
        return 0.0
    tokens = rows * columns + 1
    bias = np.zeros((1, table.shape[1], tokens, tokens))
    for i in range(tokens):
        for j in range(tokens):
            (ri, ci), (rj, cj) = divmod(i - 1, columns), divmod(j - 1, columns)
            entry = (ri - rj + rows - 1) * (2 * columns - 1) + ci - cj + columns - 1
            entry = {(True, True): -1, (True, False): -3, (False, True): -2}.get((i == 0, j == 0), entry)
            bias[0, :, i, j] = table[entry]
    return bias


def forward(p: Arrays, config: ViTConfig, pixels: np.ndarray, **masks: np.ndarray) -> dict[str, np.ndarray]:
    """Every block's output of pixels (B, C, H, W); masks as the models take them, heads as far as `p` has them."""
    ph, pw = pair(config.patch_size)
    rows, columns = range(0, pixels.shape[2] - ph + 1, ph), range(0, pixels.shape[3] - pw + 1, pw)
    patches = [pixels[:, :, i : i + ph, j : j + pw].reshape(len(pixels), -1) for i in rows for j in columns]
    x = linear(np.stack(patches, axis=1), p, "embeddings.patch_embeddings.projection")
    out = {"embeddings.patch_embeddings": x}
    if "bool_masked_pos" in masks:
        x = np.where(masks["bool_masked_pos"][..., None], p["embeddings.mask_token"], x)
    tokens = [p[f"embeddings.{name}"] for name in ("cls_token", "distillation_token") if f"embeddings.{name}" in p]
    x = np.concatenate([*(np.repeat(token, len(x), axis=0) for token in tokens), x], axis=1)
    x = x + p.get("embeddings.position_embeddings", 0.0)  # equation 1
    if "embeddings.register_tokens" in p:
        registers = np.repeat(p["embeddings.register_tokens"], len(x), axis=0)
        x = np.concatenate([x[:, : len(tokens)], registers, x[:, len(tokens) :]], axis=1)
    out["embeddings"] = x
    order = [sorted(range(len(row)), key=list(row).__getitem__) for row in masks.get("noise", ())]
    if order:
        out["kept"] = x = kept(x, order, int(len(order[0]) * (1 - config.mask_ratio)))
    bias = np.where(masks.get("attention_mask", np.ones(x.shape[:2])), 0.0, -np.inf)[:, None, None]
    table = "relative_position_bias.relative_position_bias_table"
    bias = bias + position_bias(p.get(f"encoder.{table}"), len(rows), len(columns))
    head_masks = masks.get("head_mask", np.ones(config.num_attention_heads))
    for i, mask in enumerate(np.broadcast_to(head_masks, (config.num_hidden_layers, config.num_attention_heads))):
        name = f"encoder.layer.{i}"
        own = {key.removeprefix(f"{name}."): array for key, array in p.items() if key.startswith(f"{name}.")}
        own_bias = bias + position_bias(own.get(f"attention.attention.{table}"), len(rows), len(columns))
        compute = {Dinov2Config: dinov2_layer, BeitConfig: beit_layer}
        compute_layer = next((compute[kind] for kind in compute if isinstance(config, kind)), layer)
        x, blocks = compute_layer(x, own, config.layer_norm_eps, mask, own_bias)
        out |= {f"{name}.{key}": array for key, array in blocks.items()} | {name: x}
    if "layernorm.weight" in p:
        x = layer_norm(x, p, "layernorm", config.layer_norm_eps)  # equation 4 is its first token
    out["layernorm"] = x
    if "decoder.mask_token" in p:
        out |= decoder(x, order, p, config)
        out["loss"] = loss_of_removed(out["logits"], blocks_of(pixels, config), order, x.shape[1] - 1, config)
    patches = x[:, config.num_prefix_tokens :]
    return out | heads(x, patches, p, config, (len(rows), len(columns)))


def heads(
    x: np.ndarray, patches: np.ndarray, p: Arrays, config: ViTConfig, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """What is made of the normalised tokens x, and of those of the patches: as far as `p` has arrays for it."""
    out = {}
    if "pooler.dense.weight" in p:
        out["pooler"] = np.tanh(linear(x[:, 0], p, "pooler.dense"))
    if isinstance(config, BeitConfig):
        mean, norm = patches.mean(1), "pooler.layernorm"
        out["pooler"] = layer_norm(mean, p, norm, config.layer_norm_eps) if f"{norm}.weight" in p else x[:, 0]
    for i, name in enumerate(("cls_classifier", "distillation_classifier")):
        if f"{name}.weight" in p:
            out[name] = linear(x[:, i], p, name)
    if "classifier.weight" in p:
        y = patches.mean(1) if config.pool == "mean" else x[:, 0]
        if isinstance(config, Dinov2Config):
            y = np.concatenate([y, patches.mean(1)], axis=1)
        if isinstance(config, BeitConfig):
            y = out["pooler"]
        if "fc_norm.weight" in p:
            y = layer_norm(y, p, "fc_norm", config.layer_norm_eps)
        out["logits"] = linear(y, p, "classifier")
    elif "cls_classifier" in out:
        out["logits"] = (out["cls_classifier"] + out["distillation_classifier"]) / 2
    if "lm_head.weight" in p:
        out["logits"] = linear(layer_norm(patches, p, "lm_head.layernorm", config.layer_norm_eps), p, "lm_head")
    if "decoder.0.weight" in p:
        y = linear(patches, p, "decoder.0").reshape(-1, *grid, config.num_channels, *pair(config.encoder_stride))
        out["reconstruction"] = np.block([[y[:, i, j] for j in range(grid[1])] for i in range(grid[0])])
    return out
