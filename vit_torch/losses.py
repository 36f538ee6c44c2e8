"""The losses, each a scalar mean, computed in float32 or wider."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vit_core.calls import (
    check_distillation,
    check_kind,
    check_labels,
    check_reconstruction,
    check_visual_tokens,
    label_out_of_range,
    problem_type,
)
from vit_core.config import ViTConfig, pair


def classification_loss(logits: Tensor, labels: Tensor, config: ViTConfig) -> Tensor:
    """Cross entropy, binary cross entropy or mean squared error of logits (B, K), by the problem type.

    Raises ValueError for labels that do not fit. Class labels out of range are found on the CPU; on an accelerator, and
    in compiled code, PyTorch's own assertion fires.
    """
    integers = _integers(labels)
    problem = problem_type(config, integers)
    check_labels(tuple(labels.shape), tuple(logits.shape), problem, integers)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if problem == "single_label_classification":
        return _cross_entropy(logits, labels.reshape(-1))
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.mse_loss(logits, labels.to(logits.dtype).reshape(logits.shape))


def _integers(labels: Tensor) -> bool:
    """Whether labels are whole numbers. Raises TypeError for what is no tensor."""
    check_kind("labels", labels, Tensor, "pt")
    return not labels.is_floating_point()


def _cross_entropy(logits: Tensor, labels: Tensor, field: str = "num_labels") -> Tensor:
    try:
        return F.cross_entropy(logits, labels.long())
    except IndexError as error:
        kept = labels[labels != -100]
        raise ValueError(label_out_of_range(int(kept.min()), int(kept.max()), logits.shape[1], field)) from error


def visual_token_loss(logits: Tensor, mask: Tensor | None, labels: Tensor, config: ViTConfig) -> Tensor:
    """Cross entropy of the masked patches' visual tokens (Bao et al. 2022, BEiT, equation 2).

    Logits (B, N, V); mask (B, N), 1 where masked; labels (n_masked,). Raises ValueError for labels that do not fit: for
    their number where it is known, not in compiled code.
    """
    integers = _integers(labels)
    masked = mask.flatten() != 0 if mask is not None else None
    count: Any = None if masked is None else masked.sum()
    count = count if count is None or torch.compiler.is_compiling() else int(count)
    check_visual_tokens(tuple(labels.shape), integers, count, config)
    assert masked is not None
    nth = masked.long().cumsum(0) - 1  # of the masked patches
    targets = F.pad(labels.long(), (0, 1), value=-100)[torch.where(masked, nth, -1)]  # the last is that of the others
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _cross_entropy(logits.flatten(0, 1), targets, "vocab_size")


def teacher_loss(distilled: Tensor, teacher_logits: Tensor, config: ViTConfig) -> Tensor:
    """The teacher's term of `distillation_loss`: how far `distilled` logits (B, K) are from a teacher's (B, K).

    DeiT, section 4: with the teacher's class, or as a divergence from its softened probabilities, a mean over images.
    """
    wide = torch.promote_types(distilled.dtype, torch.float32)
    student, teacher = distilled.to(wide), teacher_logits.to(wide)
    if config.distillation == "hard":
        return F.cross_entropy(student, teacher.argmax(1))
    tau = config.distillation_temperature
    student, teacher = F.log_softmax(student / tau, 1), F.log_softmax(teacher / tau, 1)
    return tau * tau * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def distillation_loss(
    logits: Tensor, distilled: Tensor, labels: Tensor | None, teacher_logits: Tensor, config: ViTConfig
) -> Tensor:
    """Cross entropy of `logits` with the labels, and `teacher_loss` of the `distilled` ones; all logits are (B, K).

    Raises ValueError for what does not fit.
    """
    check_kind("teacher_logits", teacher_logits, Tensor, "pt")
    problem = None if labels is None else problem_type(config, _integers(labels))
    check_distillation(problem, tuple(teacher_logits.shape), tuple(logits.shape), config)
    assert labels is not None
    weight, theirs = config.distillation_weight, teacher_loss(distilled, teacher_logits, config)
    return (1 - weight) * classification_loss(logits, labels, config) + weight * theirs


def masked_patch_loss(target: Tensor, pred: Tensor, mask: Tensor, config: ViTConfig) -> Tensor:
    """Mean squared error of the masked patches, of pixels (B, N, P Q C); mask (B, N), 1 where masked; 0 without any.

    He et al. 2022, MAE, section 3; with `norm_pix_loss`, each patch of the target is normalised by its own mean and
    unbiased variance, as in the authors' code.
    """
    wide = torch.promote_types(pred.dtype, torch.float32)
    target, pred, mask = target.to(wide), pred.to(wide), mask.to(wide)
    if config.norm_pix_loss:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (pred - target).square().mean(-1)  # (B, N)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def masked_reconstruction_loss(pixels: Tensor, reconstruction: Tensor, mask: Tensor, config: ViTConfig) -> Tensor:
    """Mean absolute error of the masked pixels (Xie et al. 2022, SimMIM, section 3.4); mask (B, N), 1 where masked."""
    check_reconstruction(config)
    wide = torch.promote_types(reconstruction.dtype, torch.float32)
    ph, pw = pair(config.patch_size)
    height, width = reconstruction.shape[2:]
    grid = mask.reshape(-1, height // ph, width // pw).to(wide)
    pixel_mask = grid.repeat_interleave(ph, 1).repeat_interleave(pw, 2)[:, None]  # (B, 1, H, W)
    error = (pixels[:, :, :height, :width].to(wide) - reconstruction.to(wide)).abs()
    return (error * pixel_mask).sum() / (pixel_mask.sum() + 1e-5) / config.num_channels
