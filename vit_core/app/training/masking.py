"""The methods of pre-training: what of a picture is hidden, and how far off what a model predicts is.

`SimMIM` is Xie et al. 2022, section 3: squares of pixels are hidden, and the loss is the mean absolute error of theirs.
`MAE` is He et al. 2022, section 3: the encoder sees a quarter of the patches, and the loss is the mean squared error of
the others. `BEiT` is Bao et al. 2022, section 2: blocks of patches are hidden, and the loss is the cross entropy of
their visual tokens. All draw for each picture by the seed, the epoch and its number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from vit_core.calls import num_kept
from vit_core.config import ViTConfig, pair

HELD_OUT = 2**31 - 1  # the epoch whose masks held-out pictures get
Drawn = tuple[np.ndarray, ...]  # for a batch: what hides patches, (B, N), and what else the loss takes


class Method(Protocol):
    """What a method consists of, in NumPy."""

    field: ClassVar[str]  # of a model's output, for what is predicted

    @property
    def inputs(self) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """The keywords of a model's call for what is drawn: the shape for a batch of one picture, and the dtype."""

    def __call__(self, numbers: np.ndarray, epoch: int, pixels: np.ndarray, paths: Sequence[Path], /) -> Drawn:
        """What is drawn for numbered pictures (B,) in an epoch, given as pixels (B, C, H, W) and by their files."""

    def hidden(self, *drawn: np.ndarray) -> np.ndarray:
        """Masks (B, N), true where a patch is hidden."""

    def errors(self, predicted: np.ndarray, pixels: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        """The mean error (B, N) of each hidden patch of a prediction."""

    def picture(self, predicted: np.ndarray, pixels: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        """A prediction as pixels (B, C, H, W), of what is `seen` of a picture."""


class Tokenizer(Protocol):
    """What says the visual tokens of pictures, in NumPy."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""

    def __call__(self, pixels: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
        """The token of each patch, (B, N), of pictures given as pixels (B, C, H, W) and by their files."""

    def patches(self, tokens: np.ndarray) -> np.ndarray | None:
        """Tokens (B, N) as patches (B, N, P Q C), where they can be drawn."""


def loss_of(method: Method) -> Callable[..., Any]:
    """The loss of a model's call, as a function of the model, pixels and what is drawn."""
    return lambda network, pixels, *drawn: network(pixels, **dict(zip(method.inputs, drawn, strict=True))).loss


def prediction_of(method: Method) -> Callable[..., Any]:
    """What a model's call predicts, as a function of the model, pixels and what hides patches."""
    return lambda model, pixels, hiding: model(pixels, **{next(iter(method.inputs)): hiding})[method.field]


@dataclass(frozen=True)
class SimMIM:
    """Squares of patches are hidden; all pixels are predicted."""

    config: ViTConfig
    seed: int
    ratio: float
    unit: tuple[int, int]  # patches, height x width, that are hidden together

    field: ClassVar[str] = "reconstruction"

    @property
    def inputs(self) -> dict[str, Any]:
        return {"bool_masked_pos": ((1, self.config.num_patches), "bool")}

    def __call__(self, numbers: np.ndarray, epoch: int, *_: Any) -> Drawn:
        return (np.stack([self._mask(generator(self.seed, epoch, i)) for i in numbers]),)

    def _mask(self, random: np.random.Generator) -> np.ndarray:
        rows, columns = (g // u for g, u in zip(self.config.grid, self.unit, strict=True))
        hidden = np.zeros(rows * columns, bool)
        hidden[random.permutation(rows * columns)[: share(rows * columns, self.ratio)]] = True
        return np.kron(hidden.reshape(rows, columns), np.ones(self.unit, bool)).reshape(-1)  # (N,)

    def hidden(self, *drawn: np.ndarray) -> np.ndarray:
        return drawn[0]

    def errors(self, predicted: np.ndarray, pixels: np.ndarray, *_: np.ndarray) -> np.ndarray:
        patches = patches_of(pixels, self.config)
        errors: np.ndarray = np.abs(patches_of(predicted.astype(np.float64), self.config) - patches).mean(2)
        return errors

    def picture(self, predicted: np.ndarray, pixels: np.ndarray, *_: np.ndarray) -> np.ndarray:
        return predicted


@dataclass(frozen=True)
class MAE:
    """The patches of the least noise are seen; the others are predicted, each normalised where the model says so."""

    config: Any
    seed: int

    field: ClassVar[str] = "logits"

    @property
    def inputs(self) -> dict[str, Any]:
        return {"noise": ((1, self.config.num_patches), "float32")}

    def __call__(self, numbers: np.ndarray, epoch: int, *_: Any) -> Drawn:
        patches = self.config.num_patches
        return (np.stack([generator(self.seed, epoch, i).random(patches, np.float32) for i in numbers]),)

    def hidden(self, *drawn: np.ndarray) -> np.ndarray:
        places = drawn[0].argsort(1, kind="stable").argsort(1)
        return places >= num_kept(self.config.num_patches, self.config)

    def errors(self, predicted: np.ndarray, pixels: np.ndarray, *_: np.ndarray) -> np.ndarray:
        patches, (mean, deviation) = patches_of(pixels, self.config), self._scale(pixels)
        errors: np.ndarray = np.square(predicted.astype(np.float64) - (patches - mean) / deviation).mean(2)
        return errors

    def picture(self, predicted: np.ndarray, pixels: np.ndarray, *_: np.ndarray) -> np.ndarray:
        mean, deviation = self._scale(pixels)  # of the true patches, as in the paper's figures
        return pixels_of(predicted * deviation + mean, self.config)

    def _scale(self, pixels: np.ndarray) -> tuple[Any, Any]:
        """The mean and deviation (B, N, 1) that the model's targets are free of."""
        if not self.config.norm_pix_loss:
            return 0.0, 1.0
        patches = patches_of(pixels, self.config)
        return patches.mean(2, keepdims=True), np.sqrt(patches.var(2, ddof=1, keepdims=True) + 1e-6)


@dataclass(frozen=True)
class BEiT:
    """Blocks of patches are hidden, as many patches in every picture; their visual tokens are predicted."""

    config: ViTConfig
    seed: int
    ratio: float
    tokenizer: Tokenizer

    field: ClassVar[str] = "logits"

    @property
    def count(self) -> int:
        """How many patches of a picture are hidden."""
        return share(self.config.num_patches, self.ratio)

    @property
    def inputs(self) -> dict[str, Any]:
        masks = ((1, self.config.num_patches), "bool")
        return {"bool_masked_pos": masks, "labels": ((self.count,), "int32")}  # labels of all pictures in a row

    def __call__(self, numbers: np.ndarray, epoch: int, pixels: np.ndarray, paths: Sequence[Path]) -> Drawn:
        masks = np.stack([self._mask(generator(self.seed, epoch, i)) for i in numbers])
        return masks, self.tokenizer(pixels, paths)[masks].astype(np.int32)

    def _mask(self, random: np.random.Generator) -> np.ndarray:
        """Algorithm 1; of the last block, no more patches than are missing, in the order of reading.

        A block has 16 patches or more, or a quarter of what is to be hidden where that is less, and is 0.3 to 1 / 0.3
        times as high as wide.
        """
        rows, columns = self.config.grid
        least = max(min(16, self.count // 4), 1)
        hidden = np.zeros((rows, columns), bool)
        while missing := self.count - int(hidden.sum()):
            size = random.uniform(least, max(missing, least))
            shape = math.exp(random.uniform(math.log(0.3), -math.log(0.3)))  # a lying block is as likely as a standing
            height = min(max(round(math.sqrt(size * shape)), 1), rows)
            width = min(max(round(math.sqrt(size / shape)), 1), columns)
            top, left = random.integers(rows - height + 1), random.integers(columns - width + 1)
            block = np.zeros_like(hidden)
            block[top : top + height, left : left + width] = True
            hidden.flat[np.flatnonzero(block & ~hidden)[:missing]] = True
        return hidden.reshape(-1)  # (N,)

    def hidden(self, *drawn: np.ndarray) -> np.ndarray:
        return drawn[0]

    def errors(self, predicted: np.ndarray, pixels: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        masks, labels = drawn
        logits, found = predicted[masks].astype(np.float64), np.zeros(masks.shape)
        logits -= logits.max(1, keepdims=True)
        found[masks] = np.log(np.exp(logits).sum(1)) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        return found

    def picture(self, predicted: np.ndarray, pixels: np.ndarray, *drawn: np.ndarray) -> np.ndarray:
        """Where tokens can't be drawn, patches whose token is right are white, and the others black."""
        (masks, labels), tokens = drawn, predicted.argmax(2)
        patches = self.tokenizer.patches(tokens)
        if patches is None:
            right = np.zeros(masks.shape, bool)
            right[masks] = tokens[masks] == labels
            patches = np.where(right[..., None], np.inf, np.full_like(patches_of(pixels, self.config), -np.inf))
        return pixels_of(patches, self.config)


def share(count: int, ratio: float) -> int:
    """How many of so many make up this ratio, at least one."""
    return max(round(count * ratio), 1)


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """What is drawn from for a picture in an epoch."""
    return np.random.default_rng((seed, epoch, int(number), 1))


def seen(pixels: np.ndarray, config: ViTConfig) -> np.ndarray:
    """The part of pixels (B, C, H, W) that whole patches cover."""
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    return pixels[:, :, : rows * ph, : columns * pw]


def patches_of(pixels: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Pixels (B, C, H, W) patch by patch, channels last: (B, N, P Q C)."""
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    x = seen(pixels, config).reshape(len(pixels), -1, rows, ph, columns, pw).transpose(0, 2, 4, 3, 5, 1)
    return x.reshape(len(pixels), rows * columns, -1)


def pixels_of(patches: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Patches (B, N, P Q C) as pixels (B, C, H, W)."""
    (rows, columns), (ph, pw) = config.grid, pair(config.patch_size)
    x = patches.reshape(len(patches), rows, columns, ph, pw, -1).transpose(0, 5, 1, 3, 2, 4)
    return x.reshape(len(patches), -1, rows * ph, columns * pw)
