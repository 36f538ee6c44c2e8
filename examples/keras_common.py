"""What the Keras training scripts share: the schedule, the callbacks and the picture of a training."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import keras
import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LOG, CURVES, BACKUP = "history.csv", "history.png", "backup"  # in the folder of the model
VERBOSE = 1 if sys.stdout.isatty() else 2  # of fit: a bar, or a line an epoch


def schedule(rate: float, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """A linear warmup over a tenth of the steps to `rate`, then half a cosine down to zero."""
    warmup = max(steps // 10, 1)
    return keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, warmup_target=rate, warmup_steps=warmup)


def callbacks(out: Path, patience: int) -> list[keras.callbacks.Callback]:
    """A log of every epoch, a backup from which a stopped run goes on, and an end when the loss no longer falls."""
    out.mkdir(parents=True, exist_ok=True)
    return [
        keras.callbacks.EarlyStopping("val_loss", patience=patience),
        keras.callbacks.CSVLogger(out / LOG, append=(out / BACKUP).exists()),
        keras.callbacks.BackupAndRestore(out / BACKUP, double_checkpoint=True),
    ]


def plot(out: Path) -> None:
    """Draw the log as a picture beside it: loss and accuracy by epoch, of training and of validation."""
    with (out / LOG).open() as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) + 1 for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name in zip(axes, ("loss", "accuracy"), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            axis.plot(epochs, [float(row[key]) for row in rows], marker=".", label=label)
        axis.set(xlabel="epoch", title=name)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out / CURVES, dpi=120)
    plt.close(figure)
