"""The methods of the pre-training scripts: what of a picture is hidden, and how far off what a model predicts is.

`SimMIM` is Xie et al. 2022, section 3: squares of pixels are hidden, and the loss is the mean absolute error of theirs.
`MAE` is He et al. 2022, section 3: the encoder sees a quarter of the patches, and the loss is the mean squared error of
the others. Both draw for each picture by the seed, the epoch and its number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from vit_core.calls import num_kept
from vit_core.config import ViTConfig, pair

HELD_OUT = 2**31 - 1  # the epoch whose masks held-out pictures get


class Method(Protocol):
    """What a method consists of, in NumPy."""

    task: str  # of the model class
    keyword: str  # of a model's call, for what is drawn
    field: str  # of a model's output, for what is predicted
    dtype: str  # of what is drawn, (B, N)

    def __call__(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        """What is drawn for numbered pictures (B,): (B, N)."""

    def hidden(self, drawn: np.ndarray) -> np.ndarray:
        """Masks (B, N), true where a patch is hidden."""

    def errors(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """The mean error (B, N) of each patch of a prediction of pixels (B, C, H, W)."""

    def picture(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """A prediction as pixels (B, C, H, W)."""


def loss_of(method: Method) -> Callable[..., Any]:
    """The loss of a model's call, as a function of the model, pixels and what is drawn."""
    return lambda network, pixels, drawn: network(pixels, **{method.keyword: drawn}).loss


def prediction_of(method: Method) -> Callable[..., Any]:
    """What a model's call predicts, as a function of the model, pixels and what is drawn."""
    return lambda model, pixels, drawn: model(pixels, **{method.keyword: drawn})[method.field]


@dataclass(frozen=True)
class SimMIM:
    """Squares of patches are hidden; all pixels are predicted."""

    config: ViTConfig
    seed: int
    ratio: float
    unit: tuple[int, int]  # patches, height x width, that are hidden together

    task: ClassVar[str] = "ForMaskedImageModeling"
    keyword: ClassVar[str] = "bool_masked_pos"
    field: ClassVar[str] = "reconstruction"
    dtype: ClassVar[str] = "bool"

    def __call__(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        return np.stack([self._mask(generator(self.seed, epoch, i)) for i in numbers])

    def _mask(self, random: np.random.Generator) -> np.ndarray:
        rows, columns = (g // u for g, u in zip(self.config.grid, self.unit, strict=True))
        hidden = np.zeros(rows * columns, bool)
        hidden[random.permutation(rows * columns)[: max(round(rows * columns * self.ratio), 1)]] = True
        return np.kron(hidden.reshape(rows, columns), np.ones(self.unit, bool)).reshape(-1)  # (N,)

    def hidden(self, drawn: np.ndarray) -> np.ndarray:
        return drawn

    def errors(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        return np.abs(patches_of(predicted - pixels, self.config)).mean(2)

    def picture(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        return predicted


@dataclass(frozen=True)
class MAE:
    """The patches of the least noise are seen; the others are predicted, each normalised where the model says so."""

    config: Any
    seed: int

    task: ClassVar[str] = "ForPreTraining"
    keyword: ClassVar[str] = "noise"
    field: ClassVar[str] = "logits"
    dtype: ClassVar[str] = "float32"

    def __call__(self, numbers: np.ndarray, epoch: int) -> np.ndarray:
        return np.stack([generator(self.seed, epoch, i).random(self.config.num_patches, np.float32) for i in numbers])

    def hidden(self, drawn: np.ndarray) -> np.ndarray:
        places = drawn.argsort(1, kind="stable").argsort(1)
        return places >= num_kept(self.config.num_patches, self.config)

    def errors(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        patches, (mean, deviation) = patches_of(pixels, self.config), self._scale(pixels)
        return np.square(predicted - (patches - mean) / deviation).mean(2)

    def picture(self, predicted: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        mean, deviation = self._scale(pixels)  # of the true patches, as in the paper's figures
        return pixels_of(predicted * deviation + mean, self.config)

    def _scale(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """The mean and deviation (B, N, 1) that the model's targets are free of."""
        if not self.config.norm_pix_loss:
            return 0.0, 1.0
        patches = patches_of(pixels, self.config)
        return patches.mean(2, keepdims=True), np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6)


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """What is drawn from for a picture in an epoch."""
    return np.random.default_rng((seed, epoch, int(number), 1))


def patches_of(pixels: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Pixels (B, C, H, W) patch by patch, channels last: (B, N, P Q C)."""
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    x = pixels.reshape(len(pixels), -1, rows, ph, columns, pw).transpose(0, 2, 4, 3, 5, 1)
    return x.reshape(len(pixels), rows * columns, -1)


def pixels_of(patches: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Patches (B, N, P Q C) as pixels (B, C, H, W)."""
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    x = patches.reshape(len(patches), rows, columns, ph, pw, -1).transpose(0, 5, 1, 3, 2, 4)
    return x.reshape(len(patches), -1, rows * ph, columns * pw)
