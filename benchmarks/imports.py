"""What importing a backend costs beyond the framework it is written in: both in fresh processes, taken in turn.

python benchmarks/imports.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from functools import partial

from fresh_process import SWITCHES, python, time_and_peak
from harness import OURS, THEIRS, arguments, interleaved, ratio, report

FRAMEWORKS = {"vit_torch": "torch", "vit_tf": "tensorflow", "vit_flax": "flax.linen"}


def main() -> None:
    given = arguments(__doc__, rounds=10, seconds=5.0)
    results: dict[str, dict[str, float]] = {}
    for backend in SWITCHES:
        modules = {OURS: backend, THEIRS: FRAMEWORKS[backend]}
        candidates = {name: partial(time_and_peak, python(f"import {m}", ""), {}) for name, m in modules.items()}
        measured = interleaved(
            candidates, min_rounds=given.rounds, min_seconds=given.seconds, measure=lambda call: call()[0]
        )
        results[f"import {backend} / import {FRAMEWORKS[backend]}"] = ratio(measured[OURS], measured[THEIRS])
    report("Importing a backend, as a multiple of importing its framework", results, given.json)


if __name__ == "__main__":
    main()
