"""Pictures for training: a folder of class folders or a CSV, checked before the first step, in batches of NumPy arrays.

Every batch is a function of the seed, the epoch and its number, so that a run that is resumed, or shared out over
several processes, sees the pictures of the run that was not.
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import typer
from PIL import Image
from rich.progress import track
from sklearn.model_selection import train_test_split

from vit_core.app.auto import architecture_for
from vit_core.app.cli.common import SUFFIXES
from vit_core.app.opening import find_processor
from vit_core.config import ViTConfig, pair
from vit_core.pictures.images import as_rgb
from vit_core.pictures.processing import AutoImageProcessor, ViTImageProcessor, for_size, load_image

Batch = tuple[np.ndarray, np.ndarray]  # pixels (B, C, H, W) and what belongs to them (B, ...)
AHEAD = 2  # batches that are read while the model is busy
PADDING = -1  # the label of what fills a last batch up


@dataclass(frozen=True)
class Pictures:
    """Files, their class numbers (n,), and the names of the classes."""

    paths: list[Path]
    labels: np.ndarray
    classes: list[str]

    def __getitem__(self, index: np.ndarray) -> Pictures:
        """Some of them."""
        return Pictures([self.paths[i] for i in index], self.labels[index], self.classes)

    def split(self, share: float, seed: int) -> tuple[Pictures, Pictures]:
        """(training, validation), stratified by class. Raises typer.BadParameter where a class is too small."""
        numbers, classes = np.arange(len(self.paths)), self.labels if self.classes else None
        try:
            parts = train_test_split(numbers, test_size=share, stratify=classes, random_state=seed)
        except ValueError as error:
            raise typer.BadParameter(
                f"--validation {share:g} can't be held out of {len(numbers)} pictures: {error}"
            ) from error
        return self[parts[0]], self[parts[1]]


# ---- finding and checking ----------------------------------------------------------------------------------------

# Names of folders, best first.
_TRAINING = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing")


def read_split(
    source: Path, classes: str | None, share: float, seed: int, skip_bad: bool = False
) -> tuple[Pictures, Pictures]:
    """(pictures to train on, pictures to validate on): the folders that are called so, else `share` is held out.

    Raises as `read_pictures` does, for a class of the one folder that the other has not, and for folders to validate on
    alone.
    """
    folders = {path.name.lower(): path for path in _folders(source)} if source.is_dir() else {}
    train = next((folders[name] for name in _TRAINING if name in folders), None)
    held_out = next((folders[name] for name in _HELD_OUT if name in folders), None)
    others = folders.keys() - {*_TRAINING, *_HELD_OUT}
    if held_out and not train and not others and len(folders) > 1:
        raise typer.BadParameter(
            f"{source} holds {', '.join(path.name for path in folders.values())}, parts of a split, but none to train "
            f"on: expected {' or '.join(_TRAINING)} beside them."
        )
    if train is None or (others and held_out is None):  # a train beside a car is a class
        return read_pictures(source, classes, skip_bad).split(share, seed)
    if aside := [str(path) for path in folders.values() if path not in (train, held_out)]:
        print(f"Left aside: {', '.join(aside)}.")
    training = read_pictures(train, classes, skip_bad)
    if held_out is None:
        return training.split(share, seed)
    validation = read_pictures(held_out, classes, skip_bad)
    if different := set(training.classes) ^ set(validation.classes):
        raise typer.BadParameter(
            f"{train} and {held_out} must have the same class folders, one alone has {', '.join(sorted(different))}."
        )
    return training, validation


def read_pictures(source: Path, classes: str | None = None, skip_bad: bool = False) -> Pictures:
    """The pictures of a folder of class folders, or of a CSV with the columns file and label.

    A file is relative to the CSV. `classes`, names with commas between them, states which there are and in what order;
    a label may then be the number of a class. With `skip_bad`, pictures that can't be read are left out and listed on
    the standard output. Raises typer.BadParameter that lists all that is wrong.
    """
    stated = [name.strip() for name in classes.split(",")] if classes else None
    found, problems = (_from_folder if source.is_dir() else _from_csv)(source, stated)
    bad = _unreadable([path for path, _ in found])
    if skip_bad and bad:
        print(f"Left out {len(bad)} pictures that can't be read: {_told([*bad.values()])}")
        found = [(path, label) for path, label in found if path not in bad]
    names = stated or sorted({name for _, name in found}, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else n))
    numbers = {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    for path, label in found:
        if label and label not in numbers:
            problems.append(
                f"{path} has the label {label}, expected one of {', '.join(names)}, or 0 to {len(names) - 1}"
            )
    labels = np.array([numbers.get(label, PADDING) for _, label in found], np.int64)
    problems += [f"class {name} has no picture" for i, name in enumerate(names) if not (labels == i).any()]
    if len(names) < 2:
        problems.append(f"{source} has {len(names)} classes, expected two or more")
    if not skip_bad:
        problems += bad.values()
    if problems:
        raise typer.BadParameter(_told(problems))
    return Pictures([path for path, _ in found], labels, names)


def _told(problems: list[str]) -> str:
    """The first ten problems, and how many others there are."""
    more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
    return "; ".join(problems[:10]) + more + "."


def find_pictures(folder: Path) -> Pictures:
    """Every picture below a folder, without classes. Raises typer.BadParameter that lists all that is wrong."""
    paths = _pictures_below(folder)
    problems = list(_unreadable(paths).values()) if paths else [f"{folder} holds no picture ({', '.join(SUFFIXES)})"]
    if problems:
        raise typer.BadParameter(_told(problems))
    return Pictures(paths, np.zeros(len(paths), np.int64), [])


def _pictures_below(folder: Path) -> list[Path]:
    """The pictures below a folder at every level, hidden files and folders left out, sorted."""
    pictures = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(p for p in pictures if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _from_folder(folder: Path, classes: list[str] | None) -> tuple[list[tuple[Path, str]], list[str]]:
    found = {path: _pictures_below(path) for path in _folders(folder) if classes is None or path.name in classes}
    problems = [f"{path} holds no picture ({', '.join(SUFFIXES)})" for path, inside in found.items() if not inside]
    return [(path, parent.name) for parent, inside in found.items() for path in inside], problems


def _from_csv(source: Path, _: list[str] | None) -> tuple[list[tuple[Path, str]], list[str]]:
    text = _text(source)
    separator = max(",;\t", key=text.partition("\n")[0].count)  # of spreadsheets, by their language
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=separator)
    columns = reader.fieldnames or []
    if missing := sorted({"file", "label"} - set(columns)):
        held = f"the columns {', '.join(columns)}" if columns else "no columns"
        raise typer.BadParameter(
            f"{source} has {held}, but no {' and no '.join(missing)}: expected file and label in its first line."
        )
    rows, problems = [], []
    for row in reader:
        if row["file"]:
            rows.append((source.parent / row["file"], (row["label"] or "").strip()))
        else:
            problems.append(f"line {reader.line_num} of {source} has no file")
    return rows, problems + [f"{path} has no label" for path, label in rows if not label]


def _text(source: Path) -> str:
    """The text of a CSV in UTF-8, with a byte order mark or without, or in UTF-16, which has one."""
    content = source.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{source} is no text in {encoding.removesuffix('-sig').upper()} (byte {error.start}), it may be Latin-1: "
            "save it as UTF-8."
        ) from error


def _unreadable(paths: list[Path]) -> dict[Path, str]:
    """Why pictures can't be read, after all have been."""
    with ThreadPoolExecutor() as pool:
        checks = pool.map(_problem, paths)
        found = track(checks, "Checking the pictures", total=len(paths), transient=True)
        return {path: problem for path, problem in zip(paths, found, strict=True) if problem}


def _problem(path: Path) -> str:
    try:
        load_image(path).load()
    except (OSError, ValueError) as error:
        return str(error).rstrip(".")
    return ""


# ---- batches -----------------------------------------------------------------------------------------------------


def check_batch_size(batch_size: int, accumulate: int, devices: int) -> None:
    """Raise typer.BadParameter for a batch that can't be cut into as many parts for each of so many devices."""
    if batch_size % (parts := accumulate * devices):
        raise typer.BadParameter(
            f"--batch-size {batch_size} can't be cut into {parts} equal parts, --accumulate {accumulate} on {devices} "
            f"devices or processes: pass a multiple of {parts}."
        )


@dataclass(frozen=True)
class Loader:
    """Pictures as pixels, decoded and augmented by threads, some batches ahead of the model.

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

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size, self.accumulate, self.shards)

    def steps(self, pictures: Pictures) -> int:
        """Batches in an epoch, the remainder left out. Raises typer.BadParameter where there is none."""
        if len(pictures.paths) < self.batch_size:
            raise typer.BadParameter(
                f"{len(pictures.paths)} pictures to train on are fewer than --batch-size {self.batch_size}."
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
        """The pixels of numbered pictures, each part with what came with it, read `AHEAD` parts in advance."""
        waiting: deque[tuple[list[Future[np.ndarray]], Any]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for part in chain(parts, [None] * AHEAD):
                if part is not None:
                    jobs = {i: pool.submit(self.read, pictures.paths[i], int(i), epoch) for i in dict.fromkeys(part[0])}
                    waiting.append(([jobs[i] for i in part[0]], part[1]))
                if waiting and (len(waiting) > AHEAD or part is None):
                    futures, rest = waiting.popleft()
                    yield np.stack([future.result() for future in futures]), rest

    def read(self, path: Path, number: int, epoch: int | None = None) -> np.ndarray:
        """The pixels (C, H, W) of a picture as the model takes them, augmented unless `epoch` is None."""
        image = load_image(path)
        image = as_rgb(image, convert=True) if self.config.num_channels == 3 else image.convert("L")
        if epoch is not None and self.augment:
            image = augmented(image, np.random.default_rng((self.seed, epoch, number)), self.flip)
        pixels: np.ndarray = self.processor(image, return_tensors="np")["pixel_values"][0]
        return pixels


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


# What an error asks for that no script has a flag for.
_ASKED = re.compile(r"\b(key|prefix|num_attention_heads|stored_image_size|fold_layer_scale|ignore_unknown)=")


@contextmanager
def reading(flag: str, name: str) -> Iterator[None]:
    """Raise as typer.BadParameter, with the flag that names a checkpoint, what reading it raises."""
    try:
        yield
    except (OSError, ValueError) as error:
        hint = " Convert it with vit-convert first, which has flags for that." if _ASKED.search(str(error)) else ""
        raise typer.BadParameter(f"{flag} {name}: {error}{hint}") from error


def architecture_of(settings: Any, task: str) -> str:
    """The model class, by its PyTorch name, that reads the checkpoint of a training for a task.

    Raises typer.BadParameter for one that can't be read.
    """
    with reading("--model", settings.model):
        return architecture_for(settings.model, task)


def open_model(
    settings: Any,
    model_class: Any,
    shard: int,
    scratch: bool = False,
    config: ViTConfig | None = None,
    **overrides: Any,
) -> Any:
    """The model of a training's settings.

    `overrides` are fields of its configuration. With `scratch` all weights are drawn from the seed, and for a `config`
    where the checkpoint's is not to be taken. The first process says what was not in the checkpoint. Raises
    typer.BadParameter for a checkpoint that can't be read.
    """
    if settings.image_size is not None:
        overrides["image_size"] = settings.image_size
    if settings.drop_path is not None:
        overrides["drop_path_rate"] = settings.drop_path
    drawn, resized = ["everything"], []
    with reading("--model", settings.model):
        if config is None:
            model, report = model_class.from_pretrained(
                settings.model, seed=settings.seed, output_loading_info=True, **overrides
            )
            config, overrides, resized = model.config, {}, report.resized
            drawn = drawn if scratch else [name for name, *_ in report.mismatched_keys] + report.missing_keys
        if scratch:
            model = model_class(config.copy(**overrides), seed=settings.seed)
    if shard == 0:
        print(f"Drawn anew: {', '.join(drawn) or 'nothing'}. Resized: {', '.join(map(str, resized)) or 'nothing'}.")
    return model


def open_loader(settings: Any, config: ViTConfig, shard: int, shards: int) -> Loader:
    """What reads pictures for this process of a training, for a model of this configuration.

    Raises typer.BadParameter for a processor that can't be read.
    """
    with reading("--model", settings.model):
        processor = find_processor(settings.model, config)
    return Loader(
        AutoImageProcessor.from_dict(for_size(processor.to_dict(), *pair(config.image_size))),
        config,
        settings.batch_size,
        settings.seed,
        settings.accumulate,
        shard,
        shards,
        settings.augments,
        settings.flip,
        settings.workers,
    )


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
        losses = np.logaddexp.reduce(logits, axis=1) - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
        sums += losses.sum(), (logits.argmax(1) == labels).sum(), known.sum()
    loss, right, count = total(sums)
    return {"val_loss": float(loss / count), "val_accuracy": float(right / count)}
