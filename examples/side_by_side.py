"""The same pictures through every backend that is installed, side by side, with the largest difference of the logits.

python examples/side_by_side.py [PICTURE...]
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from vit_core.backends import BACKENDS, DIGITS, import_backend, run
from vit_core.image_processing import ViTImageProcessor


def main(
    pictures: Annotated[list[Path] | None, typer.Argument(help="Pictures; the shipped digits by default.")] = None,
    model: Annotated[str, typer.Option(help="Folder or hub id.")] = str(DIGITS),
) -> None:
    """Compare the backends on the same pictures."""
    paths = pictures or sorted((DIGITS / "pictures").glob("*.png"))
    pixels = ViTImageProcessor.from_pretrained(model)(paths, return_tensors="np").pixel_values
    names = [name for name, modules in BACKENDS.items() if all(find_spec(module) for module in modules)]
    models = {n: import_backend(n).ViTForImageClassification.from_pretrained(model) for n in names}
    logits = {name: run(model, pixels)["logits"] for name, model in models.items()}
    labels = next(iter(models.values())).config.id2label
    table = Table("Picture", *names, "Largest difference of logits", box=None)
    for i, path in enumerate(paths):
        answers = [f"{labels[int(logits[n][i].argmax())]} ({logits[n][i].max():.4f})" for n in names]
        spread = np.ptp([logits[n][i] for n in names], axis=0).max()
        table.add_row(path.name, *answers, f"{spread:.1e}")
    Console().print(table)
    largest = max(np.ptp([logits[n] for n in names], axis=0).max(), 0.0)
    print(f"{' and '.join(names)}: the largest difference over all pictures is {largest:.1e}.")


if __name__ == "__main__":
    typer.run(main)
