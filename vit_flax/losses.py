"""The losses, each a scalar mean, computed in float32 or wider."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vit_core.calls import (
    check_distillation,
    check_labels,
    check_reconstruction,
    check_visual_token_values,
    check_visual_tokens,
    problem_type,
)
from vit_core.config import ViTConfig, pair
from vit_flax.layers import wider


def classification_loss(logits: Array, labels: Array, config: ViTConfig) -> Array:
    """Cross entropy, binary cross entropy or mean squared error of logits (B, K), by the problem type.

    Raises ValueError for labels that do not fit. Class labels out of range are found where values are visible, that is
    by the wrapper classes outside jit; in traced code their loss is NaN.
    """
    integers = not jnp.issubdtype(labels.dtype, jnp.floating)
    problem = problem_type(config, integers)
    check_labels(labels.shape, logits.shape, problem, integers)
    logits = logits.astype(wider(logits.dtype))
    if problem == "single_label_classification":
        return _cross_entropy(logits, labels.reshape(-1))
    if problem == "multi_label_classification":
        return (jax.nn.softplus(logits) - labels.astype(logits.dtype) * logits).mean()
    return jnp.square(logits - labels.astype(logits.dtype).reshape(logits.shape)).mean()


def _cross_entropy(logits: Array, labels: Array) -> Array:
    kept = labels != -100
    places = jnp.where(labels < 0, jnp.where(kept, logits.shape[1], 0), labels)  # what lies outside is filled with NaN
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), places[:, None], axis=1, mode="fill")[:, 0]
    each = jnp.where(kept, -picked, 0.0)
    return each.sum() / kept.sum().astype(each.dtype)


def visual_token_loss(logits: Array, mask: Array | None, labels: Array, config: ViTConfig) -> Array:
    """Cross entropy of the masked patches' visual tokens (Bao et al. 2022, BEiT, equation 2).

    Logits (B, N, V); mask (B, N), 1 where masked; labels (n_masked,). Raises ValueError for labels that do not fit: for
    their number and values where they are visible; in traced code the loss is NaN.
    """
    check_visual_token_labels(mask, labels, config)
    assert mask is not None
    masked = mask.reshape(-1).astype(bool)
    place = jnp.where(masked, jnp.cumsum(masked) - 1, labels.shape[0])  # of a patch's label: the last is for the others
    targets = jnp.append(labels.astype(jnp.int32), -100)[place]
    logits = logits.astype(wider(logits.dtype))
    targets = jnp.where(masked.sum() == labels.shape[0], targets, logits.shape[2])  # no token: the loss is NaN
    return _cross_entropy(logits.reshape(-1, logits.shape[2]), targets)


def check_visual_token_labels(mask: Any, labels: Any, config: ViTConfig) -> None:
    """Raises ValueError for labels (n_masked,) that do not fit a mask (B, N), as far as the values of both are visible.

    Ignored are labels of -100.
    """
    count = None if mask is None else mask.astype(bool).sum()
    count = count if count is None or isinstance(count, jax.core.Tracer) else int(count)
    check_visual_tokens(labels.shape, not jnp.issubdtype(labels.dtype, jnp.floating), count, config)
    if not isinstance(labels, jax.core.Tracer):
        check_visual_token_values(np.asarray(labels), config)


def teacher_loss(distilled: Array, teacher_logits: Array, config: ViTConfig) -> Array:
    """The teacher's term of `distillation_loss`: how far `distilled` logits (B, K) are from a teacher's (B, K).

    DeiT, section 4: with the teacher's class, or as a divergence from its softened probabilities, a mean over images.
    """
    wide = wider(distilled.dtype)
    student, teacher = distilled.astype(wide), teacher_logits.astype(wide)
    if config.distillation == "hard":
        return -jnp.take_along_axis(jax.nn.log_softmax(student), teacher.argmax(1)[:, None], axis=1).mean()
    tau = config.distillation_temperature
    student, teacher = jax.nn.log_softmax(student / tau), jax.nn.log_softmax(teacher / tau)
    return tau * tau * (jnp.exp(teacher) * (teacher - student)).sum(1).mean()


def distillation_loss(
    logits: Array, distilled: Array, labels: Array | None, teacher_logits: Array, config: ViTConfig
) -> Array:
    """Cross entropy of `logits` with the labels, and `teacher_loss` of the `distilled` ones; all logits are (B, K).

    Raises ValueError for what does not fit.
    """
    problem = None if labels is None else problem_type(config, not jnp.issubdtype(labels.dtype, jnp.floating))
    check_distillation(problem, teacher_logits.shape, logits.shape, config)
    assert labels is not None
    weight, theirs = config.distillation_weight, teacher_loss(distilled, teacher_logits, config)
    return (1 - weight) * classification_loss(logits, labels, config) + weight * theirs


def masked_patch_loss(target: Array, pred: Array, mask: Array, config: ViTConfig) -> Array:
    """Mean squared error of the masked patches, of pixels (B, N, P Q C); mask (B, N), 1 where masked; 0 without any.

    He et al. 2022, MAE, section 3; with `norm_pix_loss`, each patch of the target is normalised by its own mean and
    unbiased variance, as in the authors' code.
    """
    wide = wider(pred.dtype)
    target, pred, mask = target.astype(wide), pred.astype(wide), mask.astype(wide)
    if config.norm_pix_loss:
        variance = target.var(-1, keepdims=True, ddof=1)
        target = (target - target.mean(-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)
    error = jnp.square(pred - target).mean(-1)  # (B, N)
    return (error * mask).sum() / jnp.maximum(mask.sum(), 1)


def masked_reconstruction_loss(
    pixels: Array, reconstruction: Array, mask: Array, config: ViTConfig, channels_axis: int
) -> Array:
    """Mean absolute error of the masked pixels (Xie et al. 2022, SimMIM, section 3.4); mask (B, N), 1 where masked."""
    check_reconstruction(config)
    wide = wider(reconstruction.dtype)
    ph, pw = pair(config.patch_size)
    if channels_axis == 3:
        pixels, reconstruction = (x.transpose(0, 3, 1, 2) for x in (pixels, reconstruction))
    height, width = reconstruction.shape[2:]
    grid = mask.reshape(-1, height // ph, width // pw).astype(wide)
    pixel_mask = grid.repeat(ph, 1).repeat(pw, 2)[:, None]  # (B, 1, H, W)
    error = jnp.abs(pixels[:, :, :height, :width].astype(wide) - reconstruction.astype(wide))
    return (error * pixel_mask).sum() / (pixel_mask.sum() + 1e-5) / config.num_channels
