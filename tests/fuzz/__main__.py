"""The fuzzer: `python tests/fuzz [FORMAT ...] [--cases N]` reads damaged and hostile files, N of each format.

To reach: no raw error, no hang, no memory beyond the files' size and 64 MB, nothing executed, nothing touched. Each
case is a function of its format and number. Those that fail are listed, and `--keep` adds them to regressions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from formats import FORMATS, case
from regressions import count, keep

_HANG = 60  # seconds without an answer
_CHUNK = 2000  # cases of one process
_BAD = ("raw", "vague", "hang", "memory", "touched", "acts", "crash")


def fuzz(name: str, first: int, last: int) -> list[dict[str, Any]]:
    """What became of the cases with these numbers."""
    results: list[dict[str, Any]] = []
    while first < last:
        with TemporaryDirectory() as root:
            found = _process(Path(root), name, first, min(last, first + _CHUNK))
        results += found
        first = found[-1]["index"] + 1
    return results


def _process(root: Path, name: str, first: int, last: int) -> list[dict[str, Any]]:
    """The answers of one process, until it has gone through, hangs or breaks down."""
    command = [sys.executable, str(Path(__file__).with_name("worker.py")), str(root), name, str(first), str(last)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    results: list[dict[str, Any]] = []
    with (
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0, start_new_session=True
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None and process.stderr is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(_HANG) and (line := process.stdout.readline()):
            results.append(json.loads(line))
        if len(results) == last - first:
            process.stdout.close()
            return results
        how = "hang" if not selector.select(0) else "crash"
        os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read().decode(errors="replace")[-2000:]
    if not results and how == "crash":
        raise RuntimeError(f"The process of the fuzzer did not start:\n{said}")
    return [*results, {"index": first + len(results), "outcome": how, "error": said}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"any of {', '.join(FORMATS)}; all of them")
    parser.add_argument("--cases", type=int, default=20_000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", action="store_true", help="add cases that failed to regressions.json")
    parser.add_argument("--regressions", action="store_true", help="also read the cases that are kept")
    arguments = parser.parse_args()
    failed = 0
    ranges = dict.fromkeys(arguments.formats or FORMATS, (arguments.first, arguments.first + arguments.cases))
    if arguments.regressions:
        ranges["regressions"] = (0, count())
    for name, (first, last) in ranges.items():
        began = time.monotonic()
        step = min(_CHUNK, -(-(last - first) // arguments.jobs))
        parts = [(name, i, min(i + step, last)) for i in range(first, last, step)]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = [result for part in pool.map(lambda part: fuzz(*part), parts) for result in part]
        counts = Counter(result["outcome"] for result in results)
        counts.update(kind for kind in ("memory", "touched", "acts") for result in results if kind in result)
        print(
            f"{name:15} {len(results):7} cases, {time.monotonic() - began:6.0f} s: {dict(sorted(counts.items()))}",
            flush=True,
        )
        bad = [result for result in results if any(kind == result["outcome"] or kind in result for kind in _BAD)]
        failed += len(bad)
        _report(name, bad, arguments.keep)
    return 1 if failed else 0


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
