"""Running the commands in tests: in this process, or in one of their own."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HANGS = 1800  # seconds after which a process is given up: a guard, which says nothing of how long it should take

# Before a program: how many KiB it held at most, itself. What getrusage tells begins at the peak of who started it.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0])
"""


@contextmanager
def interruptible() -> Iterator[None]:
    """Children that begin in the block are ended by Ctrl-C: a suite that runs in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Command:
    """Runs a command in this process; `code`, `out` and `err` are what the last run left."""

    def __init__(self, name: str, main: Callable[[list[str]], int], capture: pytest.CaptureFixture[str]) -> None:
        self.name, self.main, self.capture = name, main, capture

    def __call__(self, *arguments: Any) -> Command:
        self.capture.readouterr()
        self.code = self.main([str(argument) for argument in arguments])
        self.out, self.err = self.capture.readouterr()
        return self

    def json(self, *arguments: Any) -> dict[str, Any]:
        """The one document on the standard output of a run that succeeds and has nothing to complain of."""
        self(*arguments, "--json")
        assert (self.code, self.err) == (0, "")
        document: dict[str, Any] = json.loads(self.out)
        return document

    def refused(self, *arguments: Any) -> str:
        """The one line on the standard error of a run that is refused."""
        self(*arguments)
        assert (self.code, self.out) == (2, "")
        assert self.err.startswith(f"{self.name}: ")
        assert self.err.count("\n") == 1
        return self.err


def process(*command: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own."""
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=HANGS, **options
    )
