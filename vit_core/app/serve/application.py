"""The application: what is asked at which address, and what every request goes through.

Nothing here waits for the model: requests are coroutines in one loop, pictures are prepared and computed in threads.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from random import getrandbits
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from vit_core.app.serve import protocols
from vit_core.app.serve.batching import Batcher, Full, Given
from vit_core.app.serve.looking import attention_over
from vit_core.app.serve.protocols import Asked, Served, checked_top_k

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PAGE = Path(__file__).with_name("page.html")
# The page is one file: it loads nothing from elsewhere, and sends pictures nowhere but here.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_GONE = 499  # in log and metrics: the client did not wait for the answer
_QUICK = 1 << 18  # bytes of a body that is read at once: a larger one in a thread
_LONGEST_MESSAGE = 400  # letters of an error: a message may quote what was sent
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)

log = logging.getLogger("vit.serve")


@dataclass(frozen=True)
class Limits:
    """What the server takes on: see `vit serve --help`."""

    batch_size: int
    max_queue: int  # pictures
    max_body: int  # bytes
    timeout: float  # seconds for a body to arrive, and for the answer
    grace: int  # seconds to answer what was taken, when it is stopped


@dataclass
class Facts:
    """What is known of a request, for its line in the log."""

    id: str
    protocol: str = "other"
    pictures: int = 0
    status: int = _GONE


class Metrics:
    """Counts and times, as Prometheus reads them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter(
            "vit_requests", "Requests by protocol and status.", ["protocol", "status"], registry=self.registry
        )
        seconds = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self.seconds = Histogram(
            "vit_request_seconds", "From headers to answer.", ["protocol"], buckets=seconds, registry=self.registry
        )
        sizes = [2**power for power in range(11)]
        self.batches = Histogram("vit_batch_pictures", "Pictures of a batch.", buckets=sizes, registry=self.registry)
        self.queued = Gauge("vit_queue_pictures", "Prepared pictures that wait for the model.", registry=self.registry)
        self.taken = Gauge("vit_taken_pictures", "Pictures taken, not yet answered.", registry=self.registry)
        self.in_flight = Gauge("vit_in_flight_requests", "Requests under way.", registry=self.registry)


class Service:
    """What answers requests of a classifier."""

    def __init__(self, served: Served, limits: Limits, vertex_routes: tuple[str, str]) -> None:
        self.served, self.limits, self.metrics = served, limits, Metrics()
        self.stopping, self.dropped = False, 0
        self.batcher = Batcher(
            served.classifier, served.runners, limits.batch_size, limits.max_queue, self.metrics.batches.observe
        )
        self.metrics.queued.set_function(self.batcher.waiting.qsize)
        self.metrics.taken.set_function(lambda: self.batcher.taken)
        health, predict = vertex_routes
        model, versioned = "/v1/models/{name}", f"/v1/models/{{name}}/versions/{protocols.VERSION}"
        v2, v2_versioned = "/v2/models/{name}", f"/v2/models/{{name}}/versions/{protocols.VERSION}"
        gets: list[tuple[str, str, Callable[[Request], Response]]] = [
            ("/", "page", self.page),
            ("/metrics", "metrics", self.prometheus),
            (health, "vertex", self.health),
            *((path, "tensorflow", self.status) for path in (model, versioned)),
            *((f"{path}/metadata", "tensorflow", self.signature) for path in (model, versioned)),
            ("/v2", "v2", self.server_metadata),
            ("/v2/health/live", "v2", lambda _: JSONResponse({"live": True})),
            ("/v2/health/ready", "v2", self.ready),
            *((path, "v2", self.model_metadata) for path in (v2, v2_versioned)),
            *((f"{path}/ready", "v2", self.model_ready) for path in (v2, v2_versioned)),
        ]
        posts: list[tuple[str, str, Callable[[Request], Coroutine[Any, Any, Response]]]] = [
            ("/classify", "classify", self.classify),
            ("/attention", "attention", self.attention),
            (predict, "vertex", self._reading(protocols.vertex)),
            *((f"{path}:predict", "tensorflow", self._reading(protocols.tensorflow)) for path in (model, versioned)),
            *((f"{path}/infer", "v2", self._reading(protocols.open_inference)) for path in (v2, v2_versioned)),
        ]
        self.app = Starlette(
            routes=[Route(path, self._asked(name, function), methods=["POST"]) for path, name, function in posts]
            + [Route(path, self._told(name, function), methods=["GET"]) for path, name, function in gets],
            exception_handlers={
                HTTPException: _refusal,
                Full: _full,
                ClientDisconnect: lambda *_: Response(status_code=_GONE),  # which nobody reads
                Exception: _failure,
            },
            lifespan=self._running,
        )

    @asynccontextmanager
    async def _running(self, _: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.batcher.work(model)) for model in self.batcher.models]
        yield
        for task in tasks:
            task.cancel()

    # ---- what every request goes through --------------------------------------------------------------------------

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The ASGI application: a number and limits for each request, a line in the log and a count."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, size, whole = perf_counter(), 0, False
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        facts = scope["state"]["facts"] = Facts(given if _ID.fullmatch(given) else f"{getrandbits(64):016x}")

        async def limited() -> Message:
            """The next part of the body. Raises HTTPException for one that is too large, or too long in coming."""
            nonlocal size, whole
            if whole:
                return await receive()  # which is the client's going
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                words = f"The request took more than {self.limits.timeout:g} seconds to arrive."
                raise HTTPException(408, words, {"connection": "close"}) from None
            size, whole = size + len(message.get("body", b"")), not message.get("more_body", False)
            if size > self.limits.max_body:
                raise self._too_large()
            return message

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", facts.id.encode())]
            await send(message)

        with self.metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, limited, noting)
            except asyncio.CancelledError:  # the grace of a stop is over
                self.dropped += 1
                raise
            except Exception:
                log.exception("request %s failed", facts.id, extra={"id": facts.id})
            finally:
                seconds = perf_counter() - start
                self.metrics.requests.labels(facts.protocol, str(facts.status)).inc()
                self.metrics.seconds.labels(facts.protocol).observe(seconds)
                method, path = scope["method"], scope["raw_path"].decode("ascii", "replace")
                log.info(
                    "%s %s: %d, pictures: %d, %.1f ms, %s",
                    *(method, path, facts.status, facts.pictures, 1000 * seconds, facts.id),
                    extra={**vars(facts), "method": method, "path": path, "ms": round(1000 * seconds, 2)},
                )

    def _told(self, protocol: str, function: Callable[[Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of what is told at once."""

        async def endpoint(request: Request) -> Response:
            request.state.facts.protocol = protocol
            self._check_name(request)
            return function(request)

        return endpoint

    def _asked(
        self, protocol: str, function: Callable[[Request], Coroutine[Any, Any, Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of what a request with a body asks for."""

        async def endpoint(request: Request) -> Response:
            request.state.facts.protocol = protocol
            self._check_name(request)
            stated = request.headers.get("content-length", "")
            if stated.isdecimal() and int(stated) > self.limits.max_body:
                raise self._too_large()
            with self.batcher.place() as take:
                take(1)  # whatever is in the body
                request.state.take = take
                return await function(request)

        return endpoint

    def _check_name(self, request: Request) -> None:
        name = request.path_params.get("name", self.served.name)
        if name != self.served.name:
            raise HTTPException(404, f"There is no model {name!r} here, but {self.served.name!r}.")

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"The request is larger than {self.limits.max_body} bytes.")

    async def _answered(self, request: Request, given: list[Given]) -> list[Any]:
        """The logits (K,) of each picture, or why it can't be read."""
        if len(given) > self.limits.max_queue:
            raise HTTPException(413, f"A request may have {self.limits.max_queue} pictures, got {len(given)}.")
        request.state.take(len(given) - 1)
        request.state.facts.pictures = len(given)
        found: list[Any] = await self._waited(request, self.batcher.logits(given))
        return found

    async def _waited(self, request: Request, work: Coroutine[Any, Any, Any]) -> Any:
        """What work gives, which ends when the time is up, and when the client is gone."""
        task, gone = asyncio.create_task(work), asyncio.create_task(_gone(request.receive))
        try:
            await asyncio.wait({task, gone}, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientDisconnect
            raise HTTPException(504, f"There was no answer within {self.limits.timeout:g} seconds.")
        finally:
            task.cancel()
            gone.cancel()

    # ---- pictures ---------------------------------------------------------------------------------------------------

    def _reading(self, reader: Callable[[bytes, Served], Asked]) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers the bodies of a protocol."""

        async def answer(request: Request) -> Response:
            body = await request.body()
            try:
                in_a_thread = len(body) > _QUICK
                asked = await asyncio.to_thread(reader, body, self.served) if in_a_thread else reader(body, self.served)
            except ValueError as error:
                raise HTTPException(400, str(error)) from error
            found = await self._answered(request, [*asked.given])
            for number, each in enumerate(found):
                if isinstance(each, Exception):
                    where = f"Picture {number}: " if len(found) > 1 else ""
                    raise HTTPException(400, f"{where}{each}")
            return JSONResponse(asked.answer(found))

        return answer

    async def classify(self, request: Request) -> Response:
        """Files as pictures: a form's, or the body itself; the answer is that of `vit classify --json`."""
        files, fields = await self._sent(request, "top_k")
        asked = fields.get("top_k")
        try:
            top_k = checked_top_k(int(asked)) if asked is not None else None
        except ValueError:
            raise HTTPException(400, f"top_k must be a whole number from 1, got {asked!r}.") from None
        found = await self._answered(request, [content for _, content in files])
        images, failed = [], []
        for (name, _), each in zip(files, found, strict=True):
            if isinstance(each, Exception):
                failed.append({"file": name, "error": _short(each)})
            else:
                pairs = zip(*self.served.best(each, top_k), strict=True)
                predictions = [{"label": label, "score": score} for label, score in pairs]
                images.append({"file": name, "predictions": predictions})
        document = {"model": self.served.name, "backend": self.served.classifier.backend}
        return JSONResponse({**document, "images": images, "failed": failed}, 200 if images else 400)

    async def attention(self, request: Request) -> Response:
        """Where the model looks, over the one picture of a request, in PNG."""
        files, _ = await self._sent(request)
        if len(files) != 1:
            raise HTTPException(400, f"/attention takes one picture, got {len(files)}.")
        request.state.facts.pictures = 1
        work = self.batcher.alone(attention_over, self.served.classifier, files[0][1])
        try:
            return Response(await self._waited(request, work), media_type="image/png")
        except (OSError, ValueError) as error:
            raise HTTPException(400, str(error)) from error

    async def _sent(self, request: Request, *known: str) -> tuple[list[tuple[str, bytes]], dict[str, str]]:
        """Names and contents of the files of a form, or of the body, and the fields of the address and the form.

        All of them must be known.
        """

        def check(name: str, where: str) -> None:
            if name not in known:
                there = f"there is {', '.join(known)}" if known else "there are none"
                raise HTTPException(400, f"The {where} has a field {name!r}, which is not known here: {there}.")

        fields = dict(request.query_params)
        for name in fields:
            check(name, "address")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/") or kind == "application/octet-stream":
            return [("-", await request.body())], fields
        if kind != "multipart/form-data":
            raise HTTPException(415, f"Send multipart/form-data, or a picture as image/... itself, got {kind!r}.")
        files = []
        async with request.form(max_files=self.limits.max_queue) as form:
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    files.append((value.filename or "-", await value.read()))
                else:
                    check(name, "form")
                    fields[name] = value
        if not files:
            raise HTTPException(400, "There is no file in the form.")
        return files, fields

    # ---- what is told at once ---------------------------------------------------------------------------------------

    def page(self, _: Request) -> Response:
        """What a person sees."""
        return HTMLResponse(
            PAGE.read_text(encoding="utf-8").replace("{{model}}", self.served.name),
            headers={"content-security-policy": _POLICY},
        )

    def prometheus(self, _: Request) -> Response:
        """The metrics."""
        return Response(generate_latest(self.metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})

    def health(self, _: Request) -> Response:
        """Whether pictures are taken, for Vertex AI."""
        return JSONResponse({"status": "stopping" if self.stopping else "ok"}, self._ready_status)

    def ready(self, _: Request) -> Response:
        """Whether pictures are taken."""
        return JSONResponse({"ready": not self.stopping}, self._ready_status)

    def model_ready(self, _: Request) -> Response:
        """Whether pictures are taken by the model."""
        return JSONResponse({"name": self.served.name, "ready": not self.stopping}, self._ready_status)

    @property
    def _ready_status(self) -> int:
        return 503 if self.stopping else 200

    def server_metadata(self, _: Request) -> Response:
        """What the server is, in the Open Inference Protocol."""
        return JSONResponse({"name": "vit-trio", "version": version("vit-trio"), "extensions": []})

    def model_metadata(self, _: Request) -> Response:
        """What the model takes and gives, in the Open Inference Protocol."""
        return JSONResponse(protocols.open_inference_metadata(self.served))

    def status(self, _: Request) -> Response:
        """Whether the model is there, as TensorFlow Serving says it."""
        return JSONResponse(protocols.model_status())

    def signature(self, _: Request) -> Response:
        """What the model takes and gives, as TensorFlow Serving says it."""
        return JSONResponse(protocols.signature(self.served))


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _short(message: object) -> str:
    text = str(message)
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 3]}..."


def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": _short(error.detail)}, error.status_code, error.headers)


def _full(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "The server is busy: try again."}, 503, {"retry-after": "1"})


def _failure(request: Request, _: Exception) -> Response:
    """What a client sees of an error of ours; the rest is in the log, under the same number."""
    number = request.state.facts.id
    return JSONResponse({"error": f"Something went wrong here, not with the request: {number} in the log."}, 500)
