"""Runs the benchmarks one after another, writes results.json and quotes it in the README beside it.

python -m benchmarks [name ...]     e.g. inference fresh_process; those not named keep their results
python -m benchmarks --quick        every row, in a few rounds and with wider spreads

Results are kept by machine. The README quotes the newest machine that has them all; until one has, of each benchmark
the newest result. What was measured is kept after each benchmark, so a run that is interrupted loses one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from vit_core.files.disk import write_atomically

Document = dict[str, Any]

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
# Memory that is freed stays with the process: else how often it goes back to the system, and by what accident, is
# measured as well. The other benchmarks are measured as users have it.
STEADY_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "30000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}
NAMES = (
    "fresh_process", "memory", "image_processing", "inference", "compiled", "training", "mae", "dinov2", "beit",
    "tf_vit", "tf_dinov2", "flax_vit", "convert", "imports", "int8", "serve",
)  # fmt: skip
STEADY = ("inference", "compiled", "training", "mae", "dinov2", "beit", "tf_vit", "tf_dinov2", "flax_vit", "int8")
# What transformers is told not to import; tf_vit and fresh_process tell it themselves.
ALONE = {
    "image_processing": ("USE_TF", "USE_FLAX"),
    "inference": ("USE_TF", "USE_FLAX"),
    "compiled": ("USE_TF", "USE_FLAX"),
    "training": ("USE_TF", "USE_FLAX"),
    "mae": ("USE_FLAX",),
    "dinov2": ("USE_TF", "USE_FLAX"),
    "beit": ("USE_TF", "USE_FLAX"),
    "flax_vit": ("USE_TF", "USE_TORCH"),
}
QUICK = ("--rounds", "2", "--seconds", "1")
LIBRARIES = (
    "vit-trio", "torch", "tensorflow", "keras", "jax", "flax", "numpy", "pillow", "transformers", "timm", "keras-hub",
    "torchvision", "torchao", "onnxruntime", "openvino", "litserve",
)  # fmt: skip
SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # that speed depends on
RATE = "fraction of a product's FLOP/s"
UNDER_LOAD = {"a_second": "requests a second", "p50_ms": "median wait", "p99_ms": "99th percentile of waits"}
QUOTED = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


def run(name: str, quick: bool) -> dict[str, Any]:
    """The results of one benchmark, run in a process of its own. Raises CalledProcessError where it fails."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *(QUICK if quick else ())]
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


def machine() -> str:
    """The processor, its cores and its instruction sets, as the system names them."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = [name.upper().replace("_", "-") for name in SETS if name in said["flags"].split()]
    kind = f"family {said['cpu family']}, model {said['model']}"
    return f"{said['model name']} ({kind}), {len(os.sched_getaffinity(0))} cores, {', '.join(flags)}"


def versions() -> dict[str, str]:
    """Of what is measured, and of what it is measured against."""
    return {name: version(name) for name in LIBRARIES if any(distributions(name=name))}


def quoted(machines: Document) -> Document:
    """By machine, the results that the README quotes; `machines` are in the order in which they were measured."""
    for name, results in reversed(machines.items()):
        if set(NAMES) <= results.keys():
            return {name: results}
    left, found = set(NAMES), {}
    for name, results in reversed(machines.items()):
        found[name] = {benchmark: results[benchmark] for benchmark in NAMES if benchmark in results.keys() & left}
        left -= results.keys()
    return {name: results for name, results in found.items() if results}


def table(machines: Document) -> str:
    """The results as Markdown, a table for each machine that is quoted."""
    lines = []
    for name, results in quoted(machines).items():
        quick = [benchmark for benchmark, found in results.items() if found.get("quick")]
        which = ", ".join(quick) + " " if len(quick) < len(results) else ""
        few = f", {which}in a few rounds" if quick else ""
        lines += [
            f"Measured on {name}{few}:",
            "",
            "| case | ours / theirs | 10th to 90th percentile |",
            "|---|---|---|",
        ]
        for found in results.values():
            for case, row in found["cases"].items():
                lines.append(f"| {case} | {row['ratio']:.2f} | {row['p10']:.2f} to {row['p90']:.2f} |")
        lines.append("")
        rows = [(_short(case), row) for found in results.values() for case, row in found["cases"].items()]
        rates = [f"{case}: {row[RATE]}" for case, row in rows if RATE in row]
        if rates:
            lines += [f"Arithmetic rate of ours as a fraction of the faster matrix product's: {'; '.join(rates)}.", ""]
        spent = {case: row["shares"] for case, row in rows if "shares" in row}
        if spent:
            kinds = list(dict.fromkeys(kind for row in spent.values() for kind in row))
            lines += [f"| where our time goes | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
            for case, row in spent.items():
                lines.append(
                    f"| {case} | " + " | ".join(f"{row[kind]:.2f}" if kind in row else "" for kind in kinds) + " |"
                )
            lines.append("")
        if under_load := {case: row for case, row in rows if "theirs" in row}:
            lines += [f"| ours / theirs | {' | '.join(UNDER_LOAD.values())} |", "|---" * (len(UNDER_LOAD) + 1) + "|"]
            for case, row in under_load.items():
                ratios = [f"{row['ours'][name] / row['theirs'][name]:.2f}" for name in UNDER_LOAD]
                lines.append(f"| {case} | {' | '.join(ratios)} |")
            lines.append("")
    return "\n".join(lines)


def _short(case: str) -> str:
    """The name of a case without what it is measured against."""
    return case.partition(" (")[0]


def keep(name: str, found: Document) -> None:
    """Put the results of a benchmark on this machine beside what is there, and quote them."""
    results = json.loads(RESULTS.read_text())
    here = machine()
    results["machines"][here] = results["machines"].pop(here, {}) | {name: found}  # the newest last
    write_atomically(RESULTS, (json.dumps(results, indent=2) + "\n").encode())
    readme = QUOTED.sub(lambda _: table(results["machines"]), README.read_text())
    write_atomically(README, readme.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="name", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a few rounds of each")
    given = parser.parse_args()
    failed = []
    for name in given.names or NAMES:
        print(f"{name} ...", flush=True)
        try:
            cases = run(name, given.quick)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed with exit code {error.returncode}.", file=sys.stderr)
            failed.append(name)
            continue
        keep(name, {"measured": str(date.today()), "quick": given.quick, "versions": versions(), "cases": cases})
    print(table(json.loads(RESULTS.read_text())["machines"]))
    if failed:
        raise SystemExit(f"Not measured: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
