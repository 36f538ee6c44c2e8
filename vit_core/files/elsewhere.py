"""A second process, with limits, for what can't be stopped in this one: a library that loops for ever on damage.

It is started when it is first needed, answers one question after the other, and ends when nothing was asked for a while
or this process ends. Where the system has no such limits (Windows), a question has a minute instead.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

try:
    import resource
except ImportError:
    resource = None  # type: ignore[assignment]

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vit_core.files.elsewhere import serve; serve()"
_READY = b"ready\n"
_SECONDS, _BYTES_A_SECOND = 3, 100_000_000  # of computing for any file, and a second more for so many bytes of it
_MEMORY = 64 << 20  # bytes that a question may take beside the size of its file
_IDLE = 10  # seconds without a question after which the process ends
_MINUTE, _WATCHDOG = 60, 1  # seconds, and the exit code after them


def elsewhere(function: Callable[[str], Any], path: Path) -> Any:
    """What a function of a module makes of a file, ready for JSON, in the second process.

    Raises ValueError with the words of any error there, or when its limits stopped it. A program that can't start
    Python, as a frozen one, asks the function itself.
    """
    folder = "" if path.is_absolute() else os.getcwd()  # which may have changed since the process was started
    answer = _process.ask([function.__module__, function.__name__, folder, str(path)])
    if answer is None:
        return function(str(path))
    if "error" in answer:
        raise ValueError(answer["error"])
    return answer["result"]


class _Process:
    """The second process, seen from the first."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, question: list[str]) -> dict[str, Any] | None:
        """The answer to a question, None where no process can be started."""
        with self._lock:
            try:
                for _ in range(2):  # one that was idle for too long has ended: another is asked
                    if not self._starts():
                        return None
                    if answer := self._answer(question):
                        found: dict[str, Any] = json.loads(answer)
                        return found
                    if code := self._ended():
                        return {"error": _why(question[-1], code)}
            except BaseException:  # Ctrl-C: what it has yet to say would be taken for the answer to the next question
                self._ended(kill=True)
                raise
        return None

    def _answer(self, question: list[str]) -> bytes:
        """A line, an empty one where the process has ended."""
        process = self._running
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""

    def _starts(self) -> bool:
        """Whether the process is there; it is started when it is not."""
        if self._running is not None:
            return True
        if not sys.executable or getattr(sys, "frozen", False):
            return False
        self._running = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # threads that are not needed take memory
        )
        assert self._running.stdout is not None
        if self._running.stdout.readline() != _READY:
            self._ended(kill=True)
            return False
        return True

    def _ended(self, kill: bool = False) -> int:
        """Close what leads to the process, and wait for its exit code."""
        process, self._running = self._running, None
        if process is None:
            return 0
        if kill:
            process.kill()
        with suppress(BrokenPipeError), process:
            pass
        return process.returncode

    def end(self) -> None:
        """End the process, where it is there."""
        with self._lock:
            self._ended(kill=True)  # a forked process may keep open what would tell it


def _why(path: str, code: int) -> str:
    """What the end of a process says of the file it was asked about."""
    endless = code in (_WATCHDOG, -getattr(signal, "SIGXCPU", 0))
    how = "never comes to an end with it" if endless else f"broke down on it ({code})"
    return f"{path} is damaged, the library that reads it {how}: fetch or save it again."


def _reset() -> None:
    """A forked process starts its own: two can't share the answers."""
    global _process
    _inherited.append(_process)
    _process = _Process()


_process = _Process()
_inherited: list[_Process] = []  # which are the parents' to end
atexit.register(lambda: _process.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


# ---- in the second process ---------------------------------------------------------------------------------------


def serve() -> None:
    """Answer the questions on the standard input, until it ends or nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends this one
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    answers.write(_READY)
    answers.flush()
    while (os.name == "nt" or select.select([sys.stdin], [], [], _IDLE)[0]) and (line := sys.stdin.readline()):
        module, name, folder, path = json.loads(line)
        try:
            os.chdir(folder or os.curdir)
            function = getattr(import_module(module), name)
            _limit(os.path.getsize(path))
            answer = {"result": function(path)}
        except Exception as error:
            answer = {"error": str(error) or type(error).__name__}
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def _limit(size: int) -> None:
    """Allow the time and the memory that a good file of this size needs."""
    if resource is None:
        faulthandler.dump_traceback_later(_MINUTE, exit=True)
        return
    seconds = int(time.process_time()) + _SECONDS + size // _BYTES_A_SECOND
    _lower(resource.RLIMIT_CPU, seconds)
    used = Path("/proc/self/statm")
    if used.is_file():
        pages = int(used.read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + size + _MEMORY)


def _lower(limit: int, value: int) -> None:
    """Set a limit of this process, which may not exceed what its user has set."""
    _, most = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))
