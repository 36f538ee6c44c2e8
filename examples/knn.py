"""How good frozen features are: k nearest neighbours and a linear probe on them, of any model in any framework.

The weighted neighbours are those of DINO: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision
Transformers", section 3.2 and appendix F.1, after Wu et al. 2018: each votes with exp(cosine similarity / temperature).

python examples/knn.py                                                  the digits
python examples/knn.py my-pictures --model PATH_OR_ID --weighted        a folder of class folders
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from digits import load_split
from rich.console import Console
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vit_core.app.base import ImagePipeline
from vit_core.app.cli.common import print_json, script
from vit_core.app.cli.embed import extractor_of, joined, layer_numbers
from vit_core.app.training.dataset import read_split
from vit_core.app.training.opening import reading
from vit_core.assets import DIGITS

Labelled = tuple[list[Any], np.ndarray]  # pictures, as a pipeline takes them, and their classes (n,)


def main(
    pictures: Annotated[
        Path | None, typer.Argument(help="Folder of class folders, or a CSV of file and label; the digits if none.")
    ] = None,
    model: Annotated[str, typer.Option(help="Folder or hub id.")] = str(DIGITS),
    backend: Literal["torch", "tf", "flax"] = "torch",
    pool: Annotated[Literal["cls", "mean"] | None, typer.Option(help="By default the model's own.")] = None,
    layers: Annotated[str, typer.Option(help="After which layers, with commas between them; -1 is the last.")] = "-1",
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours that vote.")] = 20,
    weighted: Annotated[bool, typer.Option("--weighted", help="Nearer neighbours have more of a vote.")] = False,
    temperature: Annotated[float, typer.Option(min=0.01, help="Of the weights: the lower, the fewer count.")] = 0.07,
    strength: Annotated[float, typer.Option(help="Inverse of the probe's regularisation, C.")] = 1.0,
    validation: Annotated[float, typer.Option(help="Share that is held out where no folder is for that.")] = 0.2,
    batch_size: int = 64,
    seed: int = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Embed pictures with a model that stays as it is, and say how well their classes can be told from that."""
    training, held_out = _digits() if pictures is None else _folder(pictures, validation, seed)
    if k > len(training[1]):
        raise ValueError(f"-k {k} is more than the {len(training[1])} pictures to look among: take fewer.")
    with reading("--layers", layers):
        numbers = layer_numbers(layers)
    with reading("--model", model):
        extractor = extractor_of(model, pool, numbers, backend=backend, batch_size=batch_size)
    known, asked = (embedded(extractor, each[0]) for each in (training, held_out))

    neighbours = nearest(k, temperature if weighted else None).fit(known, training[1])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000)).fit(known, training[1])
    found = {
        "model": model, "backend": backend, "training": len(known), "held_out": len(asked),
        "dimensions": known.shape[1], "k": k, "weighted": weighted,
        "knn_accuracy": neighbours.score(asked, held_out[1]), "linear_accuracy": probe.score(asked, held_out[1]),
    }  # fmt: skip
    if as_json:
        print_json(found)
    else:
        print(f"{len(known)} pictures to learn from, {len(asked)} held out, {known.shape[1]} features each")
        print(f"{k} nearest neighbours{', weighted' * weighted}: {100 * found['knn_accuracy']:.2f} %")
        print(f"Linear probe: {100 * found['linear_accuracy']:.2f} %")


def nearest(k: int, temperature: float | None = None) -> KNeighborsClassifier:
    """A classifier by the k nearest neighbours by cosine, one vote each, or DINO's weights of this temperature."""
    weights = "uniform" if temperature is None else lambda distances: np.exp((1 - distances) / temperature)
    return KNeighborsClassifier(k, metric="cosine", weights=weights)


def embedded(extractor: ImagePipeline, pictures: list[Any]) -> np.ndarray:
    """Features (n, D) of pictures. Raises what can't be read."""
    rows = []
    shown = {"console": Console(stderr=True), "disable": not sys.stderr.isatty(), "transient": True}
    for result in track(extractor.stream(pictures), "Embedding", len(pictures), **shown):
        if isinstance(result, Exception):
            raise result
        rows.append(joined(result))
    return np.stack(rows)


def _digits() -> tuple[Labelled, Labelled]:
    training, held_out = load_split()
    return (training.images(), training.labels), (held_out.images(), held_out.labels)


def _folder(source: Path, validation: float, seed: int) -> tuple[Labelled, Labelled]:
    training, held_out = read_split(source, None, validation, seed)
    return (list(training.paths), training.labels), (list(held_out.paths), held_out.labels)


if __name__ == "__main__":
    script(main)
