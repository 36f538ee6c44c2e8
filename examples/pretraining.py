"""What the pre-training scripts share: masks, flags, the loss on held-out pictures, and a picture of reconstructions.

Masked image modelling as Xie et al. 2022, "SimMIM", section 3: squares of pixels are hidden, each independently of the
others, and the model predicts them; the loss is the mean absolute error of what was hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib import pyplot as plt
from pictures import PADDING, Batch, Loader, Pictures, architecture_of, find_pictures, open_model
from training import Settings

from vit_core.config import ViTConfig, pair

RECONSTRUCTIONS = "reconstructions.png"
ROWS = 6  # pictures in it
HELD_OUT = 2**31 - 1  # the epoch whose masks held-out pictures get
Reconstruct = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pixels (B, C, H, W) and masks (B, N) to pixels


@dataclass(frozen=True, kw_only=True)
class PreTraining(Settings):
    """The flags of the pre-training scripts."""

    scratch: Annotated[bool, typer.Option(help="Take the checkpoint's configuration alone, not its weights.")] = False
    mask_ratio: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of a picture to hide.")] = 0.6
    mask_unit: Annotated[
        int | None, typer.Option(help="Side of the squares to hide, in pixels.", show_default="32, or a patch")
    ] = None
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of pictures to validate on.")] = 0.1


@dataclass(frozen=True)
class Masks:
    """Which patches of a picture are hidden: a function of the seed, the epoch and the picture's number."""

    config: ViTConfig
    ratio: float
    unit: tuple[int, int]  # patches, height x width, that are hidden together
    seed: int

    @classmethod
    def of(cls, settings: PreTraining, config: ViTConfig) -> Masks:
        """The masks of a run. Raises typer.BadParameter for a unit that is not of whole patches or tiles no picture."""
        size, patch = pair(config.image_size), pair(config.patch_size)
        side = settings.mask_unit
        if side is None:
            fits = all(s % 32 == 0 and 32 % p == 0 for s, p in zip(size, patch, strict=True))
            unit = (32 // patch[0], 32 // patch[1]) if fits else (1, 1)
        elif any(s % side or side % p for s, p in zip(size, patch, strict=True)):
            raise typer.BadParameter(
                f"--mask-unit {side} must be a multiple of the patches, {patch[0]}x{patch[1]}, that divides pictures "
                f"of {size[0]}x{size[1]}."
            )
        else:
            unit = (side // patch[0], side // patch[1])
        return cls(config, settings.mask_ratio, unit, settings.seed)

    def __call__(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        """Masks (B, N) of numbered pictures, true where a patch is hidden."""
        return np.stack([self._mask(np.random.default_rng((self.seed, epoch, int(i), 1))) for i in numbers])

    def _mask(self, random: np.random.Generator) -> np.ndarray:
        rows, columns = (g // u for g, u in zip(self.config.grid, self.unit, strict=True))
        hidden = np.zeros(rows * columns, bool)
        hidden[random.permutation(rows * columns)[: max(round(rows * columns * self.ratio), 1)]] = True
        return np.kron(hidden.reshape(rows, columns), np.ones(self.unit, bool)).reshape(-1)  # (N,)

    def pixels(self, masks: np.ndarray) -> np.ndarray:
        """Masks (B, N) of patches as masks (B, 1, H, W) of pixels."""
        grid = masks.reshape(-1, 1, *self.config.grid)
        return np.kron(grid, np.ones((1, 1, *pair(self.config.patch_size)), bool))


def prepare(
    settings: PreTraining, class_of: Callable[[str], Any], shard: int = 0, shards: int = 1
) -> tuple[Any, Loader, Masks, Pictures, Pictures]:
    """(model, loader, masks, pictures to train on, pictures to validate on).

    The model is of the member of the family that its checkpoint is of; `class_of` gives a class by its PyTorch name.
    Raises typer.BadParameter for pictures, or a checkpoint, that can't be trained on.
    """
    training, held_out = find_pictures(settings.pictures).split(settings.validation, settings.seed)
    model_class = class_of(architecture_of(settings, "ForMaskedImageModeling"))
    model, loader = open_model(settings, model_class, shard, shards, scratch=settings.scratch)
    loader.steps(training)
    return model, loader, Masks.of(settings, loader.config), training, held_out


def masked(loader: Loader, masks: Masks, pictures: Pictures, epoch: int) -> Iterator[Batch]:
    """Pixels and masks of each part of an epoch."""
    for pixels, numbers in loader.pixels(pictures, epoch):
        yield pixels, masks(numbers, epoch)


def held_out_batches(loader: Loader, masks: Masks, pictures: Pictures) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pixels and masks of this process's share of held-out pictures; a mask of nothing where a batch is filled up."""
    numbered = Pictures(pictures.paths, np.arange(len(pictures.paths)), pictures.classes)
    for pixels, numbers in loader.validation(numbered):
        yield pixels, masks(np.maximum(numbers, 0), HELD_OUT) & (numbers != PADDING)[:, None]


def evaluate(
    reconstruct: Reconstruct,
    batches: Iterator[tuple[np.ndarray, np.ndarray]],
    masks: Masks,
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> dict[str, float]:
    """The mean absolute error of hidden pixels; `total` adds up the sums of all processes."""
    sums = np.zeros(2)  # error, pixels
    for pixels, hidden in batches:
        error = np.abs(reconstruct(pixels, hidden).astype(np.float64) - pixels)
        where = np.broadcast_to(masks.pixels(hidden), error.shape)
        sums += error[where].sum(), where.sum()
    error, count = total(sums)
    return {"val_loss": float(error / count)}


def draw_reconstructions(
    path: Path | None, reconstruct: Reconstruct, batch: Batch, loader: Loader, masks: Masks
) -> None:
    """Draw pictures, each as it is, as the model saw it, and as it completed it; without a path, draw nothing."""
    pixels, hidden = batch
    where = masks.pixels(hidden)
    predicted = np.where(where, reconstruct(pixels, hidden), pixels)
    if path is None:
        return
    shown = range(min(ROWS, int(hidden.any(1).sum())))
    figure, axes = plt.subplots(len(shown), 3, figsize=(6, 2 * len(shown)), layout="constrained", squeeze=False)
    columns = {"input": pixels, "masked": np.where(where, np.nan, pixels), "predicted": predicted}
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axis, i in zip(column, shown, strict=True):
            axis.imshow(_picture(images[i], loader), interpolation="nearest")
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _picture(pixels: np.ndarray, loader: Loader) -> np.ndarray:
    """Pixels (C, H, W) as they were before they were normalised, (H, W, 3), grey where there are none."""
    processor = loader.processor
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (processor.image_mean, processor.image_std))
    image = pixels * std + mean if processor.do_normalize else pixels
    image = np.where(np.isnan(image), 0.5, image.clip(0, 1)).transpose(1, 2, 0)
    return np.broadcast_to(image, (*image.shape[:2], 3))
