"""The fuzzer: `python tests/fuzz [FORMAT ...] [--cases N]` reads damaged and hostile files, N of each format.

To reach: no raw error, no hang, no memory beyond the files' size and 64 MB, nothing executed, nothing touched. Each
case is a function of its format and number. Those that fail are listed, and `--keep` adds them to regressions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from formats import FORMATS, case
from regressions import count, keep
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_WORKER = Path(__file__).with_name("worker.py")
_CHUNK = 2000  # cases of one process
_BAD = ("raw", "vague", "hang", "memory", "touched", "acts", "crash")


Range = tuple[str, int, int]  # a format, and the numbers of its cases


def fuzz(ranges: list[Range]) -> list[dict[str, Any]]:
    """What became of the cases with these numbers."""
    results: list[dict[str, Any]] = []
    while ranges:
        with TemporaryDirectory() as root:
            results += _process(Path(root), ranges)
        name, index = results[-1]["format"], results[-1]["index"]
        at = next(i for i, part in enumerate(ranges) if part[0] == name and part[1] <= index < part[2])
        ranges = [(name, index + 1, ranges[at][2]), *ranges[at + 1 :]]
        ranges = [part for part in ranges if part[1] < part[2]]
    return results


def _process(root: Path, ranges: list[Range]) -> list[dict[str, Any]]:
    """The answers of one process, until it has gone through, hangs or breaks down."""
    cases = [f"{name}:{first}:{last}" for name, first, last in ranges]
    command = [sys.executable, str(_WORKER), str(root), *cases]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    expected = [(name, index) for name, first, last in ranges for index in range(first, last)]
    with TemporaryFile() as said:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=environment) as process:
            assert process.stdout is not None
            results = [json.loads(line) for line in process.stdout]
        if len(results) == len(expected):
            return results
        said.seek(0)
        words = said.read().decode(errors="replace")[-2000:]
    how = "hang" if -process.returncode in (signal.SIGXCPU, signal.SIGALRM) else "crash"
    if not results and how == "crash":
        raise RuntimeError(f"The process of the fuzzer broke down at once:\n{words}")
    name, index = expected[len(results)]
    return [*results, {"format": name, "index": index, "outcome": how, "error": words}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"any of {', '.join(FORMATS)}; all of them")
    parser.add_argument("--cases", type=int, default=20_000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="add cases that failed to regressions.json")
    parser.add_argument("--regressions", action="store_true", help="also read the cases that are kept")
    arguments, began = parser.parse_args(), time.monotonic()
    last = arguments.first + arguments.cases
    ranges: list[Range] = [(name, arguments.first, last) for name in arguments.formats or FORMATS]
    if arguments.regressions:
        ranges.append(("regressions", 0, count()))
    parts, results, bad = _parts(ranges, arguments.jobs), dict[str, list[dict[str, Any]]](), 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(arguments.jobs) as pool:
        bar = progress.add_task("cases", total=sum(last - first for _, first, last in ranges))
        for part in pool.map(fuzz, parts):
            progress.advance(bar, len(part))
            for result in part:
                results.setdefault(result["format"], []).append(result)
            for name, first, last in ranges:
                if len(results.get(name, ())) == last - first:  # as soon as a format is through, whatever comes after
                    bad += _show(name, results.pop(name), arguments.keep)
    total = sum(last - first for _, first, last in ranges)
    print(f"{total} cases, {bad} failed, in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


def _show(name: str, results: list[dict[str, Any]], kept: bool) -> int:
    """Print what became of the cases of a format, and how many failed."""
    bad = [result for result in results if any(kind == result["outcome"] or kind in result for kind in _BAD)]
    counts = Counter(result["outcome"] for result in results)
    counts.update(kind for kind in ("memory", "touched", "acts") for result in results if kind in result)
    print(f"{name:15} {len(results):7} cases: {dict(sorted(counts.items()))}", flush=True)
    _report(name, bad, kept)
    return len(bad)


def _parts(ranges: list[Range], jobs: int) -> list[list[Range]]:
    """The ranges for one process after the other: few where there are few cases, for a process takes time to start."""
    step = min(_CHUNK, -(-sum(last - first for _, first, last in ranges) // jobs))
    parts: list[list[Range]] = [[]]
    room = step
    for name, first, last in ranges:
        while first < last:
            end = min(last, first + room)
            parts[-1].append((name, first, end))
            room, first = room - (end - first), end
            if room == 0:
                parts.append([])
                room = step
    return [part for part in parts if part]


def _report(name: str, bad: list[dict[str, Any]], kept: bool) -> None:
    """A line for each kind of failure, with the smallest number of a case."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for result in bad:
        kind = " ".join(k for k in _BAD if k == result["outcome"] or k in result)
        kinds.setdefault(
            f"{kind} {result.get('at', '')} {str(result.get('error', '')).partition('(')[0][:60]}", []
        ).append(result)
    for kind, results in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(
            f"  {len(results):6} x {kind.strip()}: {name}/{results[0]['index']}: {json.dumps(results[0])[:400]}",
            flush=True,
        )
        if kept and name in FORMATS:
            keep(case(name, results[0]["index"]), f"{kind.strip()} ({name}/{results[0]['index']})")


if __name__ == "__main__":
    sys.exit(main())
