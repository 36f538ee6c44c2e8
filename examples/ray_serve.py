"""Classify pictures over HTTP on Ray Serve: replicas of a model, on this machine or on a cluster, behind one address.

serve run examples.ray_serve:app model=my-model replicas=4
curl --data-binary @picture.png http://127.0.0.1:8000/

A picture is the body of a POST; the answer is its labels and scores, the best first. Requests that arrive together
share a batch.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

DEFAULTS = {"model": str(DIGITS), "backend": "torch", "batch": "16", "replicas": "1", "gpus": "0"}


@serve.deployment
class Classifier:
    """A replica: the pipeline, its model loaded once."""

    def __init__(self, model: str, backend: str, batch: int) -> None:
        self.classifier = pipeline(model=model, backend=backend, batch_size=batch)
        self.classify.set_max_batch_size(batch)

    @serve.batch(batch_wait_timeout_s=0.005)
    async def classify(self, pictures: list[bytes]) -> list[Any]:
        """Labels and scores of each picture, or the error of one that can't be read."""
        return list(self.classifier.stream(pictures))

    async def __call__(self, request: Request) -> Response:
        found = await self.classify(await request.body())
        if isinstance(found, Exception):
            return JSONResponse({"error": str(found)}, 400)
        return JSONResponse(found)


def app(arguments: dict[str, str]) -> serve.Application:
    """The application of `serve run`, whose arguments are those of `DEFAULTS`; gpus are of each replica."""
    if unknown := arguments.keys() - DEFAULTS.keys():
        raise ValueError(f"Arguments are {', '.join(DEFAULTS)}, got {', '.join(sorted(unknown))}.")
    given = DEFAULTS | arguments
    batch = int(given["batch"])
    deployment = Classifier.options(
        num_replicas=int(given["replicas"]),
        max_ongoing_requests=4 * batch,
        ray_actor_options={"num_gpus": float(given["gpus"])},
    )
    return deployment.bind(given["model"], given["backend"], batch)
