"""The losses, each a scalar mean, computed in float32 or wider."""

from __future__ import annotations

import tensorflow as tf
from tensorflow import Tensor

from vit_core.calls import (
    check_distillation,
    check_labels,
    check_reconstruction,
    check_visual_tokens,
    problem_type,
)
from vit_core.config import ViTConfig, pair


def wide(dtype: tf.DType) -> tf.DType:
    """float64 for float64, float32 for every narrower dtype."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def classification_loss(
    logits: Tensor, labels: Tensor, config: ViTConfig, sample_weight: Tensor | None = None
) -> Tensor:
    """Cross entropy, binary cross entropy or mean squared error of logits (B, K), by the problem type.

    `sample_weight` (B,) scales each image's loss, as Keras does, before the mean. Raises ValueError for labels that do
    not fit. Class labels out of range are found where values are visible, that is in eager calls; in a graph their loss
    is NaN.
    """
    integers = not labels.dtype.is_floating
    problem = problem_type(config, integers)
    if labels.shape.rank is None:  # of a generator without a signature: known by what they are
        classes = problem == "single_label_classification"
        labels = tf.reshape(labels, [-1]) if classes else tf.ensure_shape(labels, logits.shape)
    check_labels(tuple(labels.shape), tuple(logits.shape), problem, integers)
    logits = tf.cast(logits, wide(logits.dtype))
    divisor = tf.cast(tf.shape(logits)[0], logits.dtype)
    if problem == "single_label_classification":
        each, divisor = _cross_entropies(logits, tf.reshape(labels, [-1]))
    elif problem == "multi_label_classification":
        each = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(labels, logits.dtype), logits)
    else:
        each = tf.square(logits - tf.reshape(tf.cast(labels, logits.dtype), tf.shape(logits)))
    if each.shape.rank == 2:
        each = tf.reduce_mean(each, axis=1)
    if sample_weight is not None:
        each = each * tf.cast(tf.reshape(sample_weight, [-1]), each.dtype)
    return tf.reduce_sum(each) / divisor


def _cross_entropies(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy of each row, 0 where it is ignored and NaN where there is no such class; how many are not."""
    labels = tf.cast(labels, tf.int64)
    kept = labels != -100
    known = (labels >= 0) & (labels < logits.shape[1])
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(known, labels, 0), logits)
    each = _where_right(known | ~kept, tf.where(known, each, 0))
    return each, tf.reduce_sum(tf.cast(kept, logits.dtype))


def _where_right(right: Tensor, values: Tensor) -> Tensor:
    """Values where they are right, else NaN: computed, as `enable_check_numerics` reports NaN that nobody reads too."""
    return tf.where(right, values, 0) + tf.sqrt(tf.cast(right, values.dtype) - 1)


def visual_token_loss(logits: Tensor, mask: Tensor | None, labels: Tensor, config: ViTConfig) -> Tensor:
    """Cross entropy of the masked patches' visual tokens (Bao et al. 2022, BEiT, equation 2).

    Logits (B, N, V); mask (B, N), 1 where masked; labels (n_masked,). Raises ValueError for labels that do not fit.
    Their number and range are found where values are visible, that is in eager calls; in a graph the loss is NaN.
    """
    masked = None if mask is None else tf.cast(tf.reshape(tf.cast(mask, bool), [-1]), tf.int32)
    count = None if masked is None else tf.reduce_sum(masked)
    check_visual_tokens(tuple(labels.shape), not labels.dtype.is_floating, count, config)
    assert masked is not None
    given = tf.shape(labels)[0]
    nth = tf.minimum(tf.cumsum(masked), given) * masked  # of the masked patches, from 1; 0 for the others
    targets = tf.gather(tf.concat([[-100], tf.cast(labels, tf.int64)], axis=0), nth)
    logits = tf.reshape(tf.cast(logits, wide(logits.dtype)), (-1, logits.shape[2]))
    each, divisor = _cross_entropies(logits, targets)
    return _where_right(count == given, tf.reduce_sum(each) / divisor)


def teacher_loss(distilled: Tensor, teacher_logits: Tensor, config: ViTConfig) -> Tensor:
    """The teacher's term of `distillation_loss`: how far `distilled` logits (B, K) are from a teacher's (B, K).

    DeiT, section 4: with the teacher's class, or as a divergence from its softened probabilities, a mean over images.
    """
    student, teacher = (tf.cast(x, wide(distilled.dtype)) for x in (distilled, teacher_logits))
    if config.distillation == "hard":
        each = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.argmax(teacher, axis=1), student)
    else:
        tau = config.distillation_temperature
        student, teacher = tf.nn.log_softmax(student / tau), tf.nn.log_softmax(teacher / tau)
        each = tau * tau * tf.reduce_sum(tf.exp(teacher) * (teacher - student), axis=1)
    return tf.reduce_mean(each)


def distillation_loss(
    logits: Tensor, distilled: Tensor, labels: Tensor | None, teacher_logits: Tensor, config: ViTConfig
) -> Tensor:
    """Cross entropy of `logits` with the labels, and `teacher_loss` of the `distilled` ones; all logits are (B, K).

    Raises ValueError for what does not fit.
    """
    problem = None if labels is None else problem_type(config, not labels.dtype.is_floating)
    check_distillation(problem, tuple(teacher_logits.shape), tuple(logits.shape), config)
    assert labels is not None
    weight, theirs = config.distillation_weight, teacher_loss(distilled, teacher_logits, config)
    return (1 - weight) * classification_loss(logits, labels, config) + weight * theirs


def masked_patch_loss(target: Tensor, pred: Tensor, mask: Tensor, config: ViTConfig) -> Tensor:
    """Mean squared error of the masked patches, of pixels (B, N, P Q C); mask (B, N), 1 where masked; 0 without any.

    He et al. 2022, MAE, section 3; with `norm_pix_loss`, each patch of the target is normalised by its own mean and
    unbiased variance, as in the authors' code.
    """
    target, pred, mask = (tf.cast(x, wide(pred.dtype)) for x in (target, pred, mask))
    if config.norm_pix_loss:
        target -= tf.reduce_mean(target, axis=-1, keepdims=True)
        variance = tf.reduce_sum(tf.square(target), axis=-1, keepdims=True) / (target.shape[-1] - 1)
        target /= tf.sqrt(variance + 1e-6)
    error = tf.reduce_mean(tf.square(pred - target), axis=-1)  # (B, N)
    return tf.reduce_sum(error * mask) / tf.maximum(tf.reduce_sum(mask), 1)


def masked_reconstruction_loss(
    pixels: Tensor, reconstruction: Tensor, mask: Tensor, config: ViTConfig, channels_axis: int
) -> Tensor:
    """Mean absolute error of the masked pixels (Xie et al. 2022, SimMIM, section 3.4); mask (B, N), 1 where masked."""
    check_reconstruction(config)
    dtype = wide(reconstruction.dtype)
    ph, pw = pair(config.patch_size)
    if channels_axis == 1:
        pixels, reconstruction = (tf.transpose(x, (0, 2, 3, 1)) for x in (pixels, reconstruction))  # (B, H, W, C)
    height, width = tf.shape(reconstruction)[1], tf.shape(reconstruction)[2]
    grid = tf.reshape(tf.cast(mask, dtype), (-1, height // ph, width // pw))
    pixel_mask = tf.repeat(tf.repeat(grid, ph, axis=1), pw, axis=2)[..., None]  # (B, H, W, 1)
    error = tf.abs(tf.cast(pixels[:, :height, :width], dtype) - tf.cast(reconstruction, dtype))
    return tf.reduce_sum(error * pixel_mask) / (tf.reduce_sum(pixel_mask) + 1e-5) / config.num_channels
