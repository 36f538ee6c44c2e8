"""The drawings of a run: its curves, what a classifier takes for what, and pictures side by side."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_core.app.training.libraries import library

CELL, LETTER, ROOM, LEAST = 0.28, 0.115, 0.9, 3.0  # inches of a class, of a letter, of what else there is; of a side
LETTERS = 24  # of a class's name at most


def draw_curves(path: Path, steps: list[dict[str, Any]], epochs: list[dict[str, Any]], per_epoch: int) -> None:
    """Draw losses, metrics and the learning rate over the steps of a run."""
    metrics = [name for name in epochs[0] if name not in ("epoch", "loss", "val_loss")]
    figure = _figure(4.5 * (2 + len(metrics)), 3.5)
    axes = figure.subplots(1, 2 + len(metrics))
    numbers = [row["step"] for row in steps]
    ends = [row["epoch"] * per_epoch for row in epochs]
    axes[0].plot(numbers, [row["loss"] for row in steps], linewidth=1, label="training")
    if "val_loss" in epochs[0]:
        axes[0].plot(ends, [row["val_loss"] for row in epochs], marker="o", label="validation")
    axes[0].set_title("loss")
    axes[0].legend()
    for axis, name in zip(axes[1:], metrics, strict=False):
        axis.plot(ends, [row[name] for row in epochs], marker="o", color="C1")
        axis.set_title(name)
    axes[-1].plot(numbers, [row["learning_rate"] for row in steps], color="C2")
    axes[-1].set_title("learning rate")
    for axis in axes:
        axis.set_xlabel("step")
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        axis.grid(alpha=0.3)
    _save(figure, path)


def draw_confusion(path: Path, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw how many pictures of each class (rows) were taken for which (columns): counts (K, K).

    A cell is as dark as its share of the row. A character that the font has not is drawn as a box, and
    what is no text in a folder's name as a question mark.
    """
    classes = [name.encode(errors="surrogateescape").decode(errors="replace") for name in classes]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}\u2026" for name in classes]
    side = max(CELL * len(names) + LETTER * max(map(len, names)) + ROOM, LEAST)
    figure = _figure(side, side)
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, f"{counts[row, column]:g}", ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    for lines in (axis.set_xticks, axis.set_yticks):
        lines(np.arange(len(names) + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="0.9", linewidth=0.5)
    axis.tick_params(which="minor", length=0)
    axis.set_xlabel("taken for")
    axis.set_ylabel("class")
    axis.set_title(f"{counts.trace():g} of {counts.sum():g} right", fontsize=10)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        _save(figure, path)


def draw_columns(path: Path, columns: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Draw columns of pictures (H, W, 3) of colours from 0 to 1, each below its title."""
    rows = len(next(iter(columns.values())))
    figure = _figure(2 * len(columns), 2 * rows)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for axes, (name, pictures) in zip(grid.T, columns.items(), strict=True):
        axes[0].set_title(name)
        for axis, picture in zip(axes, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """A figure of this size in inches, whatever is set for those that are shown on a screen."""
    return library("matplotlib.figure").Figure(figsize=(width, height), dpi=100, layout="constrained")


def _save(figure: Any, path: Path) -> None:
    """Draw a figure into a file, once: `savefig` draws it twice."""
    canvas = library("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).save(path)
