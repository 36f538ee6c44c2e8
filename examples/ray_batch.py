"""Classify a folder of pictures on Ray Data: every actor holds a model, on this machine or on a cluster of them. A file
that is no picture becomes a row with an error.

python examples/ray_batch.py pictures/ --out results
RAY_ADDRESS=auto python examples/ray_batch.py s3://bucket/pictures/ --out s3://bucket/results --actors 16 --gpus 1
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pyarrow as pa
import ray
import typer
from ray.data import ActorPoolStrategy

from vit_core.app.cli.common import SUFFIXES
from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

BATCHES = 8  # an actor gets at once: it prepares the next while its model is at work
SCHEMA = pa.schema({"file": pa.string(), "label": pa.string(), "score": pa.float64(), "error": pa.string()})


class Classifier:
    """What an actor holds: the pipeline, its model loaded once."""

    def __init__(self, **options: Any) -> None:
        self.classifier = pipeline(top_k=1, **options)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row for each picture, read or not, of a batch with the columns path and bytes."""
        pictures = batch["bytes"].to_pylist()
        rows = []
        for path, result in zip(batch["path"].to_pylist(), self.classifier.stream(pictures), strict=True):
            answer = {"error": str(result)} if isinstance(result, Exception) else result[0]
            rows.append({"file": path, **answer})
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def main(
    pictures: Annotated[str, typer.Argument(help="Folder or address of pictures, on every machine the same.")],
    out: Annotated[str, typer.Option(help="Folder or address for the files of results.")],
    format: Annotated[Literal["parquet", "csv", "json"], typer.Option(help="Of those files.")] = "parquet",
    model: str = str(DIGITS),
    backend: Literal["torch", "tf", "flax"] = "torch",
    actors: Annotated[int, typer.Option(help="Copies of the model, with a CPU each.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each, or the part of one.")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures a model sees at once.")] = 32,
    cpus: Annotated[int | None, typer.Option(help="Of a Ray that is started here.", show_default="all")] = None,
) -> None:
    """Read, classify and write, as a stream: only some batches are in memory."""
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    if actors >= (there := ray.cluster_resources().get("CPU", 0)):  # Ray would wait for one to read with, for ever
        raise typer.BadParameter(f"--actors {actors} leaves no CPU of {there:g} to read with: take fewer.")
    files = ray.data.read_binary_files(
        pictures, include_paths=True, file_extensions=[suffix.removeprefix(".") for suffix in SUFFIXES]
    )
    results = files.map_batches(
        Classifier,
        fn_constructor_kwargs={"model": model, "backend": backend, "batch_size": batch},
        batch_size=BATCHES * batch,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=gpus,
    )
    getattr(results, f"write_{format}")(out)


if __name__ == "__main__":
    typer.run(main)
