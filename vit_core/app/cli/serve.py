"""`vit serve`: a classifier behind HTTP, for one machine."""

from __future__ import annotations

import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import PurePath
from typing import Annotated

import typer
from PIL import Image

from vit_core.app.cli.common import Backend, BatchSize, Devices, Processor, Revision, import_for, telling
from vit_core.app.pipeline import pipeline

_LOGS = ("text", "json")
_ON_VERTEX = "AIP_HTTP_PORT"  # is set in containers of Vertex AI


def serve(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder, weights file or hub id.", envvar="AIP_STORAGE_URI")
    ],
    backend: Backend = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to listen.", show_default="127.0.0.1; 0.0.0.0 in Vertex AI"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0: any.", envvar=_ON_VERTEX)] = 8000,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="In addresses.", show_default="the last part of MODEL")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, metavar="N", help="Labels for each picture.")] = 5,
    batch_size: BatchSize = 16,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pictures under way; more are refused with 503.")
    ] = 128,
    max_body: Annotated[int, typer.Option(min=1, metavar="MB", help="Of a request; larger ones are refused.")] = 16,
    max_pixels: Annotated[int, typer.Option(min=1, metavar="MILLIONS", help="Of a picture, likewise.")] = 50,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="For a request to arrive, and for its answer.")
    ] = 30,
    grace: Annotated[
        int, typer.Option(min=1, metavar="SECONDS", help="To answer what was taken, once it is told to stop.")
    ] = 30,
    log: Annotated[str, typer.Option(metavar="|".join(_LOGS), help="A line for each request.")] = "text",
    devices: Devices = None,
    image_processor: Processor = None,
    revision: Revision = None,
) -> None:
    """Answer HTTP requests: TensorFlow Serving's, Vertex AI's, Open Inference Protocol's, and files; a page at /."""
    if log not in _LOGS:
        raise ValueError(f"--log must be one of {', '.join(_LOGS)}, got {log!r}.")
    if model.startswith("gs://"):
        raise ValueError(f"MODEL {model} can't be fetched: mount or copy it, and pass the folder.")
    name = name or PurePath(os.path.abspath(model) if os.path.exists(model) else model).name
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ValueError(f"--name must be of letters, digits, '.', '_' and '-', got {name!r}.")
    try:
        server = import_module("vit_core.app.serve.server")
    except ImportError as error:
        raise ImportError(f'vit serve needs more ({error}): pip install "vit-trio[serve]"') from error
    address = host or ("0.0.0.0" if _ON_VERTEX in os.environ else "127.0.0.1"), port
    server.listen(address).close()  # a port that is taken is told before the model is loaded
    places = devices.split(",") if devices is not None else None
    runners = ThreadPoolExecutor(len(places) if places else 1, "model")
    with telling() as tell:
        tell("Loading")
        import_for(backend, model, image_processor, revision)
        loading = runners.submit(
            pipeline, model=model, backend=backend, image_processor=image_processor, revision=revision, device=places
        )
        classifier = loading.result()
    Image.MAX_IMAGE_PIXELS = max_pixels * 10**6
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)  # refused, not warned of
    server.log_to_stderr(log)
    limits = server.Limits(batch_size, max_queue, max_body * 10**6, timeout, grace)
    if server.serve(server.Served(classifier, runners, name, top_k), address, limits):
        raise typer.Exit(1)
