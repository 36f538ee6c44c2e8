"""Write the handwritten digits as a folder of class folders, and a CSV beside them: pictures to try the scripts on.

python examples/digits_folder.py my-digits [--per-class 50]
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from digits import load_split


def main(
    out: Path, per_class: Annotated[int, typer.Option(min=1, help="Pictures of each digit, at most.")] = 200
) -> None:
    """Write the training part of the digits, 8 x 8 pixels each; the held-out fifth stays out."""
    training, _ = load_split()
    written = [0] * 10
    rows = []
    for image, label, number in zip(training.images(), training.labels, training.numbers, strict=True):
        if written[label] < per_class:
            written[label] += 1
            path = Path(str(label), f"{number:04d}.png")
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            image.save(out / path)
            rows.append((path.as_posix(), label))
    with (out / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])
    print(f"{len(rows)} pictures in {out}")


if __name__ == "__main__":
    typer.run(main)
