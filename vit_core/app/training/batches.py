"""Pictures in batches of NumPy arrays, and what is measured on them.

Every batch is a function of the seed, the epoch and its number, so that a run that is resumed, or shared out over
several processes, sees the pictures of the run that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_core.app.training.dataset import PADDING, Pictures
from vit_core.config import ViTConfig
from vit_core.files.documents import blaming
from vit_core.pictures.images import LAST, in_channels, in_mode
from vit_core.pictures.processing import ViTImageProcessor, load_image
from vit_core.training import Settings, ahead, check_batch_size

Batch = tuple[np.ndarray, np.ndarray]  # pixels (B, C, H, W) and what belongs to them (B, ...)


@dataclass(frozen=True)
class Loader:
    """Pictures as pixels, decoded and augmented by `workers` threads, `prefetch` parts of batches ahead of the model.

    By default as many threads as suit the cores; with none in the one that asks.

    A batch of `batch_size` pictures is cut into `accumulate` parts that follow each other, and each of those into
    `shards`, of which this process reads the one with the number `shard`.
    """

    processor: ViTImageProcessor
    config: ViTConfig
    batch_size: int
    seed: int
    accumulate: int = 1
    shard: int = 0
    shards: int = 1
    augment: bool = False
    flip: bool = False
    workers: int | None = None
    prefetch: int = Settings.prefetch

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.accumulate, self.shards)

    def steps(self, pictures: Pictures) -> int:
        """Batches in an epoch, the remainder left out. Raises ValueError where there is none."""
        if len(pictures.paths) < self.batch_size:
            raise ValueError(
                f"{len(pictures.paths)} pictures to train on are fewer than --batch-size {self.batch_size}: pass a "
                "smaller one."
            )
        return len(pictures.paths) // self.batch_size

    def order(self, pictures: Pictures, epoch: int) -> Iterator[np.ndarray]:
        """The numbers of the pictures of each batch of an epoch, in its order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(pictures.paths))
        yield from order[: self.steps(pictures) * self.batch_size].reshape(-1, self.batch_size)

    def own(self, batch: np.ndarray) -> list[np.ndarray]:
        """The parts of a whole batch that this process works on, one after the other."""
        return list(batch.reshape(self.accumulate, self.shards, -1)[:, self.shard])

    def pixels(self, pictures: Pictures, epoch: int) -> Iterator[Batch]:
        """The pixels of each part of an epoch, and the numbers (B,) of its pictures."""
        parts = (part for batch in self.order(pictures, epoch) for part in self.own(batch))
        yield from self._ahead(pictures, ((part, part) for part in parts), epoch)

    def mixed(
        self, pictures: Pictures, epoch: int, mixup: float = 0.0, label_smoothing: float = 0.0
    ) -> Iterator[Batch]:
        """Pixels and targets (B, K), the shares of each class, of each part of an epoch.

        mixup: each picture is blended with another of its batch, with a weight from Beta(mixup, mixup) (Zhang et al.
        2018, "mixup"). label_smoothing: this share of a target is spread over all classes (Szegedy et al. 2016).
        """
        count = len(pictures.classes)
        targets = np.eye(count, dtype=np.float32) * (1 - label_smoothing) + label_smoothing / count
        if not mixup:
            for pixels, part in self.pixels(pictures, epoch):
                yield pixels, targets[pictures.labels[part]]
            return
        for pixels, (part, partners, weight) in self._ahead(pictures, self._blends(pictures, epoch, mixup), epoch):
            both, size = targets[pictures.labels[np.concatenate([part, partners])]], len(part)
            yield tuple(weight * each[:size] + (1 - weight) * each[size:] for each in (pixels, both))

    def _blends(self, pictures: Pictures, epoch: int, mixup: float) -> Iterator[tuple[np.ndarray, Any]]:
        for step, batch in enumerate(self.order(pictures, epoch)):
            random = np.random.default_rng((self.seed, epoch, step))
            weight, partners = np.float32(random.beta(mixup, mixup)), random.permutation(batch)
            for part, others in zip(self.own(batch), self.own(partners), strict=True):
                yield np.concatenate([part, others]), (part, others, weight)

    def validation(self, pictures: Pictures) -> Iterator[Batch]:
        """Pixels and labels (B,) of this process's share of all pictures, not augmented; the last batch is filled up.

        What fills it is labelled `PADDING`. Every process has as many batches, all of one size.
        """
        size = self.batch_size // self.accumulate
        numbers = np.arange(-(-len(pictures.paths) // size) * size) % len(pictures.paths)
        labels = np.where(np.arange(len(numbers)) < len(pictures.paths), pictures.labels[numbers], PADDING)
        shares = [part.reshape(-1, self.shards, size // self.shards)[:, self.shard] for part in (numbers, labels)]
        yield from self._ahead(pictures, zip(*shares, strict=True), None)

    def whole(self, pictures: Pictures) -> Iterator[Batch]:
        """Pixels and numbers (B,) of all pictures, not augmented, in every process; the last batch may be smaller."""
        numbers = np.arange(len(pictures.paths))
        parts = (numbers[i : i + self.batch_size] for i in range(0, len(numbers), self.batch_size))
        yield from self._ahead(pictures, ((part, part) for part in parts), None)

    def _ahead(
        self, pictures: Pictures, parts: Iterable[tuple[np.ndarray, Any]], epoch: int | None
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """The pixels of numbered pictures, each part with what came with it, read `prefetch` parts in advance."""
        with _AtOnce() if self.workers == 0 else ThreadPoolExecutor(self.workers) as pool:

            def begun(part: tuple[np.ndarray, Any]) -> tuple[list[Future[np.ndarray]], Any]:
                numbers, rest = part
                jobs = {i: pool.submit(self.read, pictures.paths[i], int(i), epoch) for i in dict.fromkeys(numbers)}
                return [jobs[i] for i in numbers], rest

            for futures, rest in ahead(map(begun, parts), self.prefetch):
                yield np.stack([future.result() for future in futures]), rest

    def read(self, path: Path, number: int, epoch: int | None = None) -> np.ndarray:
        """The pixels (C, H, W) of a picture as the model takes them, augmented unless `epoch` is None."""
        channels = self.config.num_channels
        image = in_mode(load_image(path), channels)
        if epoch is not None and self.augment:
            image = augmented(image, np.random.default_rng((self.seed, epoch, number)), self.flip)
        with blaming(path):
            taken = in_channels(image, channels)
            pixels: np.ndarray = self.processor(taken, input_data_format=LAST, return_tensors="np")["pixel_values"][0]
        return pixels


class _AtOnce(Executor):
    """Without threads: what is submitted is done there and then."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args, **kwargs))
        return done


def colours(pixels: np.ndarray, processor: ViTImageProcessor) -> np.ndarray:
    """Pixels (..., C, H, W) as they were before a processor normalised them, from 0 to 1."""
    mean, std = (np.reshape(v, (-1, 1, 1)).astype(pixels.dtype) for v in (processor.image_mean, processor.image_std))
    return pixels * std + mean if processor.do_normalize else pixels


def augmented(image: Image.Image, random: np.random.Generator, flip: bool) -> Image.Image:
    """A picture rotated by up to 12 degrees, zoomed and shifted by up to 12 %, with `flip` mirrored half the time."""
    turn, zoom, right, down = random.uniform(-0.12, 0.12, 4)
    cos, sin = ((1 + zoom) * f(turn * math.pi / 1.8) for f in (math.cos, math.sin))
    mirror = -1 if flip and random.random() < 0.5 else 1
    x, y = (image.width - 1) / 2, (image.height - 1) / 2
    rows = (cos * mirror, -sin), (sin * mirror, cos)
    shifts = x * (1 + 2 * right), y * (1 + 2 * down)
    matrix = [value for (a, b), shift in zip(rows, shifts, strict=True) for value in (a, b, shift - a * x - b * y)]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


# ---- measuring ---------------------------------------------------------------------------------------------------


def evaluate(
    logits_of: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[Batch],
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> dict[str, float]:
    """Mean cross entropy and accuracy on batches of `Loader.validation`; `total` adds up the sums of all processes."""
    sums = np.zeros(3)  # loss, right, pictures
    for pixels, labels in batches:
        known = labels != PADDING
        logits = np.asarray(logits_of(pixels), np.float64)[known]
        labels = labels[known]
        with np.errstate(invalid="ignore"):  # of a training that diverged
            losses = np.logaddexp.reduce(logits, axis=1) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        sums += losses.sum(), (logits.argmax(1) == labels).sum(), known.sum()
    loss, right, count = total(sums)
    return {"val_loss": float(loss / count), "val_accuracy": float(right / count)}


def confusion(
    logits_of: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[Batch],
    classes: int,
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> np.ndarray:
    """How many pictures of each class (rows) are taken for which (columns): counts (K, K), of the same batches."""
    counts = np.zeros((classes, classes))
    for pixels, labels in batches:
        known = labels != PADDING
        np.add.at(counts, (labels[known], logits_of(pixels).argmax(1)[known]), 1)
    return total(counts)
