"""The process that serves: a socket, the signals that stop it, what HTTP allows a connection, and the log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from vit_core.app.serve.application import Limits, Service, log
from vit_core.app.serve.protocols import Served

_HEADERS_WITHIN = 15  # seconds for the headers of a request
_LAST_CHANCE = 1  # seconds for a request to arrive on a connection that was made before the stop


def listen(address: tuple[str, int]) -> socket.socket:
    """A socket that listens at a host and port. Raises OSError where they can't be had."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        raise OSError(f"{address[0]}:{address[1]} can't be listened at ({error}): choose another --port.") from error


def serve(served: Served, address: tuple[str, int], limits: Limits) -> int:
    """Serve until SIGTERM or Ctrl-C, answer what was taken, and return the exit code: 1 where that took too long.

    Raises OSError where the address can't be had.
    """
    routes = os.environ.get("AIP_HEALTH_ROUTE", "/health"), os.environ.get("AIP_PREDICT_ROUTE", "/predict")
    service = Service(served, limits, routes)
    service.batcher.warm_up()
    listening = listen(address)
    config = uvicorn.Config(
        service,
        http=_Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=limits.grace,
        backlog=1024,
    )
    server = _Server(config, service)
    host, port = listening.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    log.info("serving %s (%s) at %s", served.name, served.classifier.backend, where, extra={"url": where})
    server.run(sockets=[listening])
    service.batcher.close()
    log.info("stopped, %d requests not answered", service.dropped)
    return 1 if service.dropped else 0


class _Server(uvicorn.Server):
    """uvicorn's, which tells the service that it stops, and for which a signal to stop is no error."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()  # else the process would end by them now


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a limit to the time that the headers of a request take, and a stop that loses no request.

    When the server stops, uvicorn closes each connection without a request under way. Of a request that is arriving it
    would be lost; so such a connection, and one that is new, may bring it yet.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect(_HEADERS_WITHIN)

    def on_message_begin(self) -> None:
        self._expect(_HEADERS_WITHIN)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._expect(None)
        super().on_headers_complete()
        service: Any = self.config.app
        if service.stopping:
            self.cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._late:
            self._expect(_LAST_CHANCE)
        else:
            super().shutdown()

    def _expect(self, seconds: float | None) -> None:
        """Wait so long for headers, and no longer for those that were waited for before."""
        if self._late:
            self._late.cancel()
        self._late = self.loop.call_later(seconds, self.transport.abort) if seconds is not None else None


# ---- the log -----------------------------------------------------------------------------------------------------

_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class _JsonLines(logging.Formatter):
    """A JSON object a line: time, level, message, and what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        known = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**line, **known}, default=str)


LOGS: dict[str, logging.Formatter] = {
    "text": logging.Formatter("%(asctime)s %(levelname)s %(message)s"),
    "json": _JsonLines(),
}


def log_to_stderr(kind: str) -> None:
    """Write what this process logs, of libraries the warnings, to the standard error, as "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LOGS[kind])
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
