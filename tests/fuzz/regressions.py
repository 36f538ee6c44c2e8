"""Inputs that failed once: what the fuzzer keeps of a case is what its files differ in from the seeds' files."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

from formats import GOLDEN, Case

_WINDOW = 1 << 15  # bytes that zlib looks back
_KEPT = Path(__file__).with_name("regressions.json")


def regression(index: int) -> Case:
    """One of the kept cases."""
    kept = json.loads(_KEPT.read_text())[index]
    files = {}
    for name, (seed, begin, middle, end) in kept["files"].items():
        data = (GOLDEN / seed).read_bytes() if seed else b""
        known = data[begin : len(data) - end][:_WINDOW]
        changed = zlib.decompressobj(zdict=known).decompress(base64.b85decode(middle))
        files[name] = data[:begin] + changed + data[len(data) - end :]
    return Case(kept["number"], files, kept["target"], kept["options"])


def count() -> int:
    """How many cases are kept."""
    return len(json.loads(_KEPT.read_text()))


def keep(case: Case, why: str) -> None:
    """Add a case to those that are kept."""
    kept: list[dict[str, Any]] = json.loads(_KEPT.read_text()) if _KEPT.is_file() else []
    files = {name: _difference(name, data) for name, data in case.files.items()}
    values = {"why": why, "number": case.number, "target": case.target, "options": case.options, "files": files}
    entry = json.loads(json.dumps(values))
    if entry not in kept:
        _KEPT.write_text(json.dumps([*kept, entry], indent=1) + "\n")


def _difference(name: str, data: bytes) -> tuple[str, int, str, int]:
    """The seed, how many of its first bytes and of its last ones stay, and what stands between them, packed.

    The seed is the file of that name from which least has to be kept; its own middle is what the packer knows.
    """
    found = []
    for path in ("", *(str(path.relative_to(GOLDEN)) for path in sorted(GOLDEN.rglob(name)))):
        seed = (GOLDEN / path).read_bytes() if path else b""
        begin = _common(seed, data)
        end = min(_common(seed[::-1], data[::-1]), min(len(seed), len(data)) - begin)
        packer = zlib.compressobj(9, zdict=seed[begin : len(seed) - end][:_WINDOW])
        middle = packer.compress(data[begin : len(data) - end]) + packer.flush()
        found.append((path, begin, base64.b85encode(middle).decode(), end))
    return min(found, key=lambda each: len(each[2]))


def _common(first: bytes, second: bytes) -> int:
    """How many bytes two texts begin with alike."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
