"""`vit similar`: the pictures whose vectors are nearest to that of one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from PIL import Image
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from vit_core.app.cli.common import (
    AsJson,
    Backend,
    Picture,
    complain,
    console,
    drawing_format,
    import_for,
    one_line,
    one_picture,
    print_json,
)
from vit_core.app.cli.embed import extractor_of, joined
from vit_core.app.cli.many import identity
from vit_core.app.cli.results import IDENTITY, Array
from vit_core.app.cli.vectors import Vectors, read_vectors
from vit_core.app.contact_sheet import Cell, contact_sheet
from vit_core.app.features import ImageFeatureExtractionPipeline
from vit_core.app.sources import read_image
from vit_core.files.disk import atomic_file
from vit_core.pictures.images import as_rgb

_OF_THE_VECTORS = "that of the vectors"


class Neighbour(NamedTuple):
    """A picture, and the cosine distance of its vector: 0 for the same direction, 1 for a right angle, 2 at most."""

    file: str
    distance: float


def similar(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="A file's row, or a picture: file, http(s) address, or - for stdin.")
    ],
    source: Annotated[Path, typer.Option("--in", "-i", metavar="FILE", help="What `vit embed` wrote.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, metavar="N", help="Pictures to find.")] = 5,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="PATH_OR_ID",
            help="The model of the vectors, where it is elsewhere by now.",
            show_default=_OF_THE_VECTORS,
        ),
    ] = None,
    backend: Backend = None,
    image_processor: Annotated[
        str | None,
        typer.Option("--image-processor", metavar="PATH_OR_ID", help="As --model.", show_default=_OF_THE_VECTORS),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="As --model.", show_default=_OF_THE_VECTORS)
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="PICTURE.png", help="Draw the picture and those found, with distances.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the pictures that are most like one."""
    vectors = read_vectors(source)
    row = vectors.names.index(query) if query in vectors.names else None
    picture = Picture(query, query) if row is not None else _picture(query, vectors, source)
    if sheet is not None:
        kind = drawing_format(sheet, "similar.png", [picture.name], "--sheet")
    options = {"model": model, "backend": backend, "image_processor": image_processor, "revision": revision}
    given = {name: value for name, value in options.items() if value is not None}
    if row is not None and given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{query} is a row of {source}, and needs no model: leave out {flags}.")
    vector = vectors.values[row] if row is not None else _embedded(picture, vectors, source, given)
    found = nearest(vectors, vector, top_k, row)
    failures = _draw(sheet, kind, picture, found) if sheet is not None else []
    if as_json:
        document = {"query": picture.name, "in": str(source), "model": vectors.settings["model"]}
        print_json({**document, "neighbours": [each._asdict() for each in found]})
    else:
        _print_table(found)
    for error in failures:
        complain(f"--sheet: {error}")
    if failures:
        raise typer.Exit(1)


def _picture(query: str, vectors: Vectors, source: Path) -> Picture:
    """The picture that is asked about. Raises FileNotFoundError, or ValueError for several."""
    try:
        return one_picture(query, "similar takes one picture")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is neither a row nor an image file {query}: rows of {source} have names like {vectors.names[0]}."
        ) from error


def _embedded(picture: Picture, vectors: Vectors, source: Path, given: dict[str, Any]) -> Array:
    """The vector of a picture, made as those of a file. Raises ValueError where that was another model."""
    settings = vectors.settings
    stored = {} if "model" in given else {name: settings.get(name) for name in ("image_processor", "revision")}
    options = {"model": settings["model"], **stored, **given}
    named = options["model"], options.get("image_processor"), options.get("revision")
    import_for(options.get("backend"), *named, ImageFeatureExtractionPipeline.architecture)
    extractor = extractor_of(pool=settings["pool"], layers=settings["layers"], **options)
    if identity(extractor) != settings[IDENTITY]:
        raise ValueError(
            f"{options['model']} is not what {source} was made with, which was {settings['model']} with other weights, "
            "another configuration or another image processor: pass that one with --model, or embed the pictures again."
        )
    return joined(extractor(picture.source))


def nearest(vectors: Vectors, vector: Array, count: int, without: int | None = None) -> list[Neighbour]:
    """The nearest of the vectors by cosine distance, nearest first, that of a row left out.

    Raises ImportError that says what to install.
    """
    try:
        neighbors = import_module("sklearn.neighbors")
    except ImportError as error:
        raise ImportError(f'vit similar needs scikit-learn ({error}): pip install "vit-trio[similar]"') from error
    asked = min(count + (without is not None), len(vectors.names))
    index = neighbors.NearestNeighbors(n_neighbors=asked, metric="cosine").fit(vectors.values)
    (distances,), (rows,) = index.kneighbors(vector[None])
    found = [
        Neighbour(vectors.names[i], float(distance))
        for i, distance in zip(rows, distances, strict=True)
        if i != without
    ]
    return found[:count]


def _draw(sheet: Path, kind: str, query: Picture, found: list[Neighbour]) -> list[str]:
    """Write the contact sheet; what is returned is why pictures on it can't be read."""
    failures: list[str] = []

    def opened(source: Any) -> Image.Image | None:
        try:
            return as_rgb(read_image(source), convert=True)
        except (OSError, ValueError) as error:
            failures.append(str(error))
            return None

    cells = [Cell(opened(query.source), Path(query.name).name, "asked about")]
    cells += [Cell(opened(each.file), Path(each.file).name, f"distance {each.distance:.4f}") for each in found]
    drawing = contact_sheet(f"Nearest to {Path(query.name).name}", cells)
    with atomic_file(sheet) as file:
        drawing.save(file, kind, quality=92)
    return failures


def _print_table(found: list[Neighbour]) -> None:
    table = Table("File", "Distance", box=SIMPLE)
    table.columns[0].overflow, table.columns[1].justify = "fold", "right"
    for each in found:
        table.add_row(Text(one_line(each.file)), f"{each.distance:.4f}")
    console().print(table)
