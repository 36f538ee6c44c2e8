"""Candidates in a process each, in which nothing else has threads, and which are called in turn."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from harness import seconds_of

THREADS = 2
Call = Callable[[np.ndarray], Any]
Candidates = Mapping[str, Callable[[Path], Call]]  # each opens what a folder holds


@contextmanager
def apart(write: Callable[[Path], None], candidates: Candidates, folder: Path) -> Iterator[dict[str, Any]]:
    """For each candidate what gives the seconds of a call with a batch size, after a process has written the folder."""
    os.environ |= {"OMP_NUM_THREADS": str(THREADS), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    warnings.simplefilter("ignore")
    spawn = get_context("spawn")
    writer = spawn.Process(target=write, args=(folder,))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise RuntimeError("The files could not be written: the error stands above.")
    pipes, processes = {}, []
    for name, candidate in candidates.items():
        pipes[name], other = spawn.Pipe()
        processes.append(spawn.Process(target=_serve, args=(candidate, folder, other), daemon=True))
        processes[-1].start()
    yield {name: partial(_ask, pipe) for name, pipe in pipes.items()}
    for pipe in pipes.values():
        pipe.send(0)
    for process in processes:
        process.join()


def _serve(candidate: Callable[[Path], Call], folder: Path, pipe: Any) -> None:
    """Seconds of a call for each batch size that comes in, or what was raised."""
    call: Call | None = None
    while batch := pipe.recv():
        try:
            call = call or candidate(folder)
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
            pipe.send(seconds_of(partial(call, x)))
        except Exception as error:
            pipe.send(error)


def _ask(pipe: Any, batch: int) -> float:
    pipe.send(batch)
    found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return float(found)
