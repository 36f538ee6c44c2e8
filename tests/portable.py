"""Does the suite pass on other machines? Its comparisons under other instruction sets, numbers of threads and inputs.

python tests/portable.py [--only avx2] [--perturb 3] [--json]     or: make portable

The first run is of every comparison, as this processor is. The others are of those tests alone in which an error came
to a thousandth of its bound: what is compared in float64 does not. Every comparison that comes to half of its bound
anywhere is listed, and is to be looked at. The exit code is 1 when a test fails; Ctrl-C shows what is known by then.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from closeness import RECORD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

ROOT = Path(__file__).parent.parent
PERTURB = "VIT_TRIO_PERTURB"  # the number of other random inputs, and of ulps in golden ones (tests/conftest.py)
NEAR, FAR = 0.5, 1e-3  # of a bound: worth a look, and not worth a second run
# What PyTorch, oneDNN, MKL, OpenBLAS and XLA are to keep to. TensorFlow goes without oneDNN, which it asks for half
# precision wherever the processor has it, whatever oneDNN is to keep to.
INSTRUCTIONS = {
    "sse": ("default", "SSE41", "SSE4_2", "Nehalem", "SSE4_2", "0"),
    "avx2": ("avx2", "AVX2", "AVX2", "Haswell", "AVX2", "0"),
    "avx512": ("avx512", "AVX512_CORE", "AVX512", "SkylakeX", "AVX512", ""),
}
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OPENBLAS_CORETYPE",
    "XLA_FLAGS",
    "TF_ENABLE_ONEDNN_OPTS",
)


@dataclass
class Run:
    """One way to run the suite, and what came of it."""

    name: str
    threads: int
    variables: dict[str, str] = field(default_factory=dict)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def flags() -> set[str]:
    """What this processor can do, as Linux has it; nothing where it does not say."""
    stated = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", stated.read_text(), re.MULTILINE) if stated.exists() else None
    return set(found[1].split()) if found else set()


def instructions(name: str) -> dict[str, str]:
    """The environment in which libraries keep to an instruction set."""
    found = dict(zip(VARIABLES, INSTRUCTIONS[name], strict=True))
    found["XLA_FLAGS"] = f"--xla_cpu_max_isa={found['XLA_FLAGS']}"
    return {variable: value for variable, value in found.items() if value}


def runs(only: list[str], perturb: int) -> Iterator[Run]:
    """All that this processor can do, each on one thread and on two."""
    names = {"sse": "sse4_2", "avx2": "avx2", "avx512": "avx512f"}
    ways: dict[str, dict[str, str]] = {"as it is": {}}
    ways |= {name: instructions(name) for name, flag in names.items() if flag in flags()}
    ways |= {f"perturbed {i}": {PERTURB: str(i)} for i in range(1, perturb + 1)}
    for name, variables in ways.items():
        for threads in (1,) if name.startswith("perturbed") else (1, 2):
            if name == "as it is" or not only or any(part in name for part in only):
                yield Run(name, threads, variables)


def numerical() -> list[str]:
    """The files that compare numbers."""
    return [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "closeness" in path.read_text()]


def execute(run: Run, tests: list[str]) -> None:
    """Run tests with the record of their comparisons."""
    cores = sorted(os.sched_getaffinity(0))[: run.threads] if hasattr(os, "sched_getaffinity") else []

    def on_its_cores() -> None:
        if cores:
            os.sched_setaffinity(0, cores)

    with tempfile.TemporaryDirectory() as folder:
        record, chosen = Path(folder) / "record", Path(folder) / "tests"
        chosen.write_text("\n".join(tests))
        env = os.environ | run.variables | {RECORD: str(record), "OMP_NUM_THREADS": str(run.threads)}
        env["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")  # whose kernels are for one instruction set
        env["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"  # as users have it, which compilation.py does not
        env.setdefault("XLA_FLAGS", "")
        command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", f"@{chosen}"]
        done = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, preexec_fn=on_its_cores)
        if record.exists():
            run.comparisons = [json.loads(line) for line in record.read_text().splitlines()]
        run.failed = re.findall(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.MULTILINE)
        if done.returncode and not run.failed:
            raise SystemExit(f"pytest did not run ({run.name}):\n{(done.stdout + done.stderr)[-2000:]}")


def ratio(comparison: dict[str, Any]) -> float:
    """The error over its bound; 0 where nothing may differ, and nothing does."""
    return comparison["error"] / comparison["bound"] if comparison["bound"] else float(comparison["error"] > 0)


def worst(done: list[Run]) -> list[dict[str, Any]]:
    """For each test the comparison that came nearest to its bound, in whichever run, the nearest first."""
    found: dict[str, dict[str, Any]] = {}
    for run in done:
        for each in run.comparisons:
            row = {**each, "ratio": ratio(each), "run": run.name, "threads": run.threads}
            if row["ratio"] > found.get(each["test"], {"ratio": -1.0})["ratio"]:
                found[each["test"]] = row
    return sorted(found.values(), key=lambda row: -row["ratio"])


def main(
    only: Annotated[list[str] | None, typer.Option(help="Part of the names of the runs after the first.")] = None,
    perturb: Annotated[int, typer.Option(min=0, help="How many runs with other inputs.")] = 3,
    tests: Annotated[list[str] | None, typer.Option(help="Files or tests to run instead of all that compare.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every test's worst comparison for a program.")] = False,
) -> None:
    """Run the suite's comparisons under every instruction set of this processor, on one thread and two, perturbed."""
    planned, done = list(runs(only or [], perturb)), []
    chosen = tests or numerical()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, suppress(KeyboardInterrupt):
        bar = progress.add_task("runs", total=len(planned))
        for run in planned:
            progress.update(bar, description=f"{run.name}, threads: {run.threads}")
            execute(run, chosen)
            done.append(run)
            chosen = sorted({each["test"] for each in done[0].comparisons if ratio(each) > FAR})
            progress.advance(bar)
    show(done, as_json)
    if any(run.failed for run in done):
        raise SystemExit(1)


def show(done: list[Run], as_json: bool) -> None:
    """Print what failed, and what came near to its bound."""
    rows = worst(done)
    failed = [f"{run.name}, threads: {run.threads}: {test}" for run in done for test in run.failed]
    if as_json:
        print(json.dumps({"comparisons": rows, "failed": failed}, indent=2))
        return
    table = Table(Column("Test", overflow="fold"), "compared", "error", "bound", "of it", "under", box=None)
    for row in rows:
        if row["ratio"] >= NEAR:
            numbers = (f"{row['error']:.1e}", f"{row['bound']:.1e}", f"{row['ratio']:.2f}")
            under = f"{row['run']}, threads: {row['threads']}"
            table.add_row(escape(row["test"]), escape(row["what"]), *numbers, under)
    Console().print(table)
    counted = sum(len(run.comparisons) for run in done)
    print(f"{counted} comparisons in {len(done)} runs; {table.row_count} tests came to half of a bound or more.")
    print("\n".join(["Failed:", *failed] if failed else ["No test failed."]))


if __name__ == "__main__":
    typer.run(main)
