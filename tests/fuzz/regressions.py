"""Inputs that failed once: what the fuzzer keeps of a case is what its files differ in from the seeds' files."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

from formats import GOLDEN, Case

_KEPT = Path(__file__).with_name("regressions.json")


def regression(index: int) -> Case:
    """One of the kept cases."""
    kept = json.loads(_KEPT.read_text())[index]
    files = {}
    for name, (seed, begin, middle, end) in kept["files"].items():
        data = (GOLDEN / seed).read_bytes() if seed else b""
        files[name] = data[:begin] + zlib.decompress(base64.b85decode(middle)) + data[len(data) - end :]
    return Case(files, kept["target"], kept["options"])


def count() -> int:
    """How many cases are kept."""
    return len(json.loads(_KEPT.read_text()))


def keep(case: Case, why: str) -> None:
    """Add a case to those that are kept."""
    kept: list[dict[str, Any]] = json.loads(_KEPT.read_text()) if _KEPT.is_file() else []
    files = {name: _difference(name, data) for name, data in case.files.items()}
    entry = json.loads(json.dumps({"why": why, "target": case.target, "options": case.options, "files": files}))
    if entry not in kept:
        _KEPT.write_text(json.dumps([*kept, entry], indent=1) + "\n")


def _difference(name: str, data: bytes) -> tuple[str, int, str, int]:
    """The seed, how many of its first bytes and of its last ones stay, and what stands between them."""
    seeds = [path for path in sorted(GOLDEN.rglob(name)) if path.is_file()]
    best = ("", 0, data, 0)
    for path in seeds:
        seed = path.read_bytes()
        begin = _common(seed, data)
        end = min(_common(seed[::-1], data[::-1]), min(len(seed), len(data)) - begin)
        if len(data) - begin - end < len(best[2]):
            best = (str(path.relative_to(GOLDEN)), begin, data[begin : len(data) - end], end)
    return best[0], best[1], base64.b85encode(zlib.compress(best[2], 9)).decode(), best[3]


def _common(first: bytes, second: bytes) -> int:
    """How many bytes two texts begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
