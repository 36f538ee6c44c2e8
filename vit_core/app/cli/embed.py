"""`vit embed`: pictures to vectors, the features of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vit_core import calls
from vit_core.app.base import ImagePipeline
from vit_core.app.cli.common import (
    DEFAULT_MODEL,
    DEMO,
    AsJson,
    Backend,
    BatchSize,
    Devices,
    Images,
    Model,
    Overwrite,
    Processor,
    Revision,
    complain,
    import_for,
    pictures,
)
from vit_core.app.cli.many import Work, conclude, identity
from vit_core.app.cli.results import IDENTITY, Array, Journal, Row, check_target
from vit_core.app.cli.vectors import SUFFIXES, columns, writer
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.app.pipeline import pipeline

_POOLS = ("cls", "mean")
_EXAMPLE = "features.parquet"


def embed(
    images: Images,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write vectors to a .npy, .jsonl or .parquet file; the same command goes on with a run that stopped.",
        ),
    ],
    model: Model = None,
    backend: Backend = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(_POOLS),
            help="The CLS token, or the mean of the patches.",
            show_default="cls where the model has that token",
        ),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            metavar="N,N",
            help="After which layers: 0 is the embeddings, -1 the last layer; vectors of several are joined to one.",
        ),
    ] = "-1",
    batch_size: BatchSize = 16,
    devices: Devices = None,
    overwrite: Overwrite = False,
    image_processor: Processor = None,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Turn pictures into vectors, for search, clustering and small classifiers."""
    numbers = layer_numbers(layers)
    if pool not in (None, *_POOLS):
        raise ValueError(f"--pool must be one of {', '.join(_POOLS)}, got {pool!r}.")
    found = pictures(images)
    check_target(out, overwrite, _EXAMPLE, SUFFIXES)
    named = model or DEFAULT_MODEL
    import_for(backend, named, image_processor, revision, ImageFeatureExtractionPipeline.architecture)
    extractor = extractor_of(
        named,
        pool,
        numbers,
        backend=backend,
        image_processor=image_processor,
        revision=revision,
        device=devices.split(",") if devices is not None else None,
        batch_size=batch_size,
    )
    settings = settings_of(extractor, named, image_processor, revision)
    work = Work(extractor, "Embedding", "embedded", lambda result: [joined(result)])
    facts = {name: value for name, value in settings.items() if name != IDENTITY}
    with Journal(out, settings, columns(settings["dimensions"])) as journal:
        check_target(out, overwrite, _EXAMPLE, SUFFIXES)  # another run may have written it meanwhile
        failures = work.write(found, journal, writer(out, settings), facts if as_json else None)
    if model is None and not as_json:
        complain(DEMO)
    conclude(failures, len(found))


def extractor_of(model: str, pool: str | None, layers: Sequence[int], **options: Any) -> ImagePipeline[Any]:
    """The pipeline whose results `joined` makes vectors of."""
    task = ImageFeatureExtractionPipeline.task
    found: ImagePipeline[Any] = pipeline(
        task, model, features=pool, layers=list(layers), return_tensors="np", **options
    )
    return found


def joined(result: Sequence[Array]) -> Array:
    """One vector (L D,) of the features (1, D) of each layer, the first layer's at its beginning."""
    vector: Array = np.concatenate(result, axis=1)[0]
    return vector


def settings_of(extractor: ImagePipeline[Any], model: str, image_processor: str | None, revision: str | None) -> Row:
    """What vectors depend on, and how a query is embedded as they were."""
    config = extractor.model.config
    layers = calls.depths(config, extractor.defaults["layers"])
    return {
        "model": model,
        "backend": extractor.backend,
        IDENTITY: identity(extractor),
        "image_processor": image_processor,
        "revision": revision,
        "pool": calls.pooling(config, extractor.defaults["features"]),
        "layers": list(layers),
        "dimensions": config.hidden_size * len(layers),
    }


def layer_numbers(layers: str) -> list[int]:
    """The numbers in a text such as "3,-1". Raises ValueError for another."""
    try:
        return [int(number) for number in layers.split(",")]
    except ValueError:
        raise ValueError(
            f"layers must be numbers with commas between them, such as -1 or 3,-1: got {layers!r}."
        ) from None
