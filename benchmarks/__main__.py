"""Runs the benchmarks one after another, writes results.json and quotes it in the README beside it.

python -m benchmarks [name ...]     e.g. inference fresh_process; those not named keep their results
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
# Memory that is freed stays with the process: else how often it goes back to the system, and by what accident, is
# measured as well. The other benchmarks are measured as users have it.
STEADY_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "30000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
NAMES = (
    "fresh_process", "image_processing", "inference", "training", "mae", "dinov2", "beit", "tf_vit", "tf_dinov2",
    "flax_vit", "convert", "imports", "int8", "serve",
)  # fmt: skip
STEADY = ("inference", "training", "mae", "dinov2", "beit", "tf_vit", "tf_dinov2", "flax_vit", "int8")
# What transformers is told not to import; tf_vit and fresh_process tell it themselves.
ALONE = {
    "image_processing": ("USE_TF", "USE_FLAX"),
    "inference": ("USE_TF", "USE_FLAX"),
    "training": ("USE_TF", "USE_FLAX"),
    "mae": ("USE_FLAX",),
    "dinov2": ("USE_TF", "USE_FLAX"),
    "beit": ("USE_TF", "USE_FLAX"),
    "flax_vit": ("USE_TF", "USE_TORCH"),
}
QUOTED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


def run(name: str) -> dict[str, Any]:
    """The results of one benchmark, run in a process of its own."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json"]
    memory = STEADY_MEMORY if name in STEADY else {}
    alone = dict.fromkeys(ALONE.get(name, ()), "0")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), **memory, **alone}
    found = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    compared = {case: row for case, row in found.items() if "transformers" in row.get("median_ms", "transformers")}
    return {case: _as_fraction(row) for case, row in compared.items()}


def _as_fraction(row: dict[str, Any]) -> dict[str, Any]:
    """Ours by theirs, of a row that says how many times faster ours is."""
    if "ratio_p10_p90" not in row:
        return row
    values = {"ratio": row["ratio"], "p10": row["ratio_p10_p90"][1], "p90": row["ratio_p10_p90"][0]}
    return {name: round(1 / value, 3) for name, value in values.items()}


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, a table for each machine that they were measured on."""
    lines = []
    for machine in sorted({results[name]["machine"] for name in NAMES if name in results}):
        lines += [f"Measured on {machine}:", "", "| case | ours / theirs | 10th to 90th percentile |", "|---|---|---|"]
        for name in NAMES:
            if name in results and results[name]["machine"] == machine:
                for case, row in results[name]["cases"].items():
                    lines.append(f"| {case} | {row['ratio']:.2f} | {row['p10']:.2f} to {row['p90']:.2f} |")
        lines.append("")
    rates = [
        f"{case.removeprefix('inference, ')}: {row[key]}"
        for case, row in results.get("inference", {"cases": {}})["cases"].items()
        for key in row
        if key.startswith("fraction")
    ]
    return "\n".join([*lines, f"Arithmetic rate of ours as a fraction of torch.mm's: {'; '.join(rates)}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name", help=f"some of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = f"{torch.get_num_threads()} CPU cores with {torch.backends.cpu.get_cpu_capability()}"
    for name in names:
        print(f"{name} ...", flush=True)
        results[name] = {"machine": machine, "cases": run(name)}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    README.write_text(QUOTED.sub(lambda _: table(results), README.read_text()))
    print(table(results))


if __name__ == "__main__":
    main()
