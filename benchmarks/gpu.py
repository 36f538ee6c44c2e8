"""Speed and correctness on one GPU, in PyTorch and in JAX, in a few minutes.

python -m benchmarks.gpu [--framework torch] [--only PATTERN] [--out FILE] [--record]     from the root

Each framework runs in a process of its own, and its cases in order of worth until the time is over. Every result is
written when it is there, under the card's name: into benchmarks/results.json and the README beside it, or into --out,
for another machine to take over with --merge. The exit code is 1 when something was computed wrong.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from threading import Timer
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vit_core.files.disk import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS, README, ERRORS = HERE / "results.json", HERE / "README.md", ROOT / "tests" / "measured_errors.json"
QUOTED = re.compile(r"(?<=<!-- gpu results -->\n).*?(?=<!-- end of gpu results -->)", re.DOTALL)
SHARES = {"torch": 0.6, "jax": 0.4}  # of the time, where both run
NEEDS = {"torch": ("torch",), "jax": ("jax", "flax")}
MODULES = {"torch": "benchmarks.gpu_torch", "jax": "benchmarks.gpu_jax"}
GRACE = 15.0  # seconds that the last case has to end in
FULL_SIZE = "correctness, B/16 224"
MEASURES = ("hidden states", "logits", "gradients")
# The table of Hugging Face's pages: batch: ms eager, ms sdpa; ViT-B/16 on an A100 in float32.
PAGES = {1: (7, 6), 2: (8, 6), 4: (8, 6), 8: (8, 6)}

Document = dict[str, Any]


@dataclass
class Store:
    """What was measured, {card: {framework: {"versions", "cases"}}}, of this run and in the file it is kept in."""

    path: Path | None
    measured: Document = field(default_factory=dict)

    def begin(self, card: str, framework: str, versions: dict[str, str]) -> None:
        """A framework on a card. What other versions gave there is no longer kept."""
        self.measured.setdefault(card, {})[framework] = {"versions": versions, "cases": {}}

    def add(self, card: str, framework: str, case: str, result: Document) -> None:
        """The result of a case: "rows", or "error" or "not_run" with a reason."""
        self.measured[card][framework]["cases"][case] = result
        if self.path is not None:
            write(self.path, self.measured)


def write(path: Path, measured: Document) -> None:
    """Put what was measured into a file of results, beside what is there, whole or not at all."""
    before = json.loads(path.read_text()) if path.exists() else {}
    cards = before.setdefault("gpu", {})
    for card, frameworks in measured.items():
        for framework, found in frameworks.items():
            known = cards.setdefault(card, {}).get(framework)
            if known is None or known["versions"] != found["versions"]:
                known = cards[card][framework] = {"versions": found["versions"], "cases": {}}
            for case, result in found["cases"].items():
                if "rows" in result or "rows" not in known["cases"].get(case, {}):
                    known["cases"][case] = result
    write_atomically(path, (json.dumps(before, indent=2) + "\n").encode())


def quote(readme: Path, results: Path) -> None:
    """Put the table of all cards into the README."""
    cards = json.loads(results.read_text()).get("gpu", {})
    readme.write_text(QUOTED.sub(lambda _: markdown(cards), readme.read_text()))


def record(path: Path, cards: Document) -> None:
    """Write the largest errors of each card's full-size correctness to the file that the tests read."""
    stored = json.loads(path.read_text())
    for card, frameworks in cards.items():
        for framework, found in frameworks.items():
            rows = found["cases"].get(FULL_SIZE, {}).get("rows", {})
            errors: dict[str, dict[str, float]] = {}
            for name, row in rows.items():
                worst = errors.setdefault(name.partition(", ")[0], {})
                for measure, numbers in row.get("errors", {}).items():
                    worst[measure] = max(worst.get(measure, 0.0), float(f"{numbers['error']:.1e}"))
            if errors:
                entry = {"versions": found["versions"], "errors": errors}
                stored.setdefault("cards", {}).setdefault(card, {})[framework] = entry
    write_atomically(path, (json.dumps(stored, indent=2) + "\n").encode())


# ---- running -------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """One framework, in one process after another: a process that dies costs the case it was in."""

    framework: str
    store: Store
    settings: Document
    until: float  # time.time()
    card: str = ""
    cases: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    running: str | None = None

    def run(self, tell: Console) -> str | None:
        """Run all cases; returns why none could be."""
        while True:
            before = len(self.done)
            code = self._process(tell)
            if not self.card:
                return f"ended with {code} before it began"
            if self.running is not None:
                over = time.time() >= self.until
                self._add(
                    self.running, {"not_run": "the time was over"} if over else {"error": f"its process ended: {code}"}
                )
            left = [case for case in self.cases if case not in self.done]
            if left and time.time() < self.until and len(self.done) > before:
                continue
            for case in left:
                self._add(case, {"not_run": "the time was over" if time.time() >= self.until else "its process ended"})
            return None

    def _process(self, tell: Console) -> int:
        settings = {**self.settings, "until": self.until, "done": self.done}
        command = [sys.executable, "-m", MODULES[self.framework], json.dumps(settings)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self._environment(), stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        timer = Timer(max(self.until - time.time(), 0) + GRACE, lambda: kill(process))
        timer.start()
        assert process.stdout is not None
        try:
            with process.stdout:
                for line in process.stdout:
                    self._take(json.loads(line), tell)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            timer.cancel()
            if process.poll() is None:
                kill(process)
        return process.wait()

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_PLATFORMS": "cuda,cpu" if self.settings["device"] == "cuda" else "cpu",
        }
        if self.settings["tiny"]:  # compiling, and threads that wait for each other, are all that takes time
            own |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}
        return {**os.environ, **own}

    def _take(self, event: Document, tell: Console) -> None:
        if "card" in event:
            if not self.card:
                self.store.begin(event["card"], self.framework, event["versions"])
            self.card, self.cases = event["card"], event["cases"]
        elif "begin" in event:
            self.running = event["begin"]
        else:
            self._add(event.pop("case"), event)
            tell.print(f"{self.framework}: {self.done[-1]}: {said(event)}", highlight=False, markup=False)

    def _add(self, case: str, result: Document) -> None:
        self.store.add(self.card, self.framework, case, result)
        self.done.append(case)
        self.running = None


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and those it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def said(result: Document) -> str:
    """A result in one line."""
    if "not_run" in result:
        return f"not run, {result['not_run']}"
    if "error" in result:
        return f"FAILED, {result['error']}"
    bad = [name for name, row in result["rows"].items() if "error" in row or row.get("ok") is False]
    return f"{result['took']} s" + (f", FAILED: {'; '.join(bad)}" if bad else "")


# ---- showing -------------------------------------------------------------------------------------------------------

COLUMNS = ("case", "what", "ms", "10th to 90th", "ours / it", "pictures/s", "TFLOP/s", "of bf16 peak", "GB at most")


def lines(found: Document) -> Iterator[list[str]]:
    """The rows of the table of speed: what failed says so in place of numbers."""
    for case, result in found["cases"].items():
        if "error" in result:
            yield [case, f"failed: {result['error']}", *[""] * (len(COLUMNS) - 2)]
        for name, row in result.get("rows", {}).items():
            if "errors" in row or "ok" in row:
                continue
            if "error" in row:
                yield [case, f"{name} failed: {row['error']}", *[""] * (len(COLUMNS) - 2)]
                continue
            limit = f" (limit: {row['limit']})" if "limit" in row else ""
            spread = f"{milliseconds(row['p10'])} to {milliseconds(row['p90'])}" if "p10" in row else ""
            share = row.get("of_bf16_peak")
            yield [
                case,
                name + limit,
                milliseconds(row["ms"]) if "ms" in row else "",
                spread,
                number(row.get("ratio"), ".2f"),
                number(row.get("pictures_per_second"), ".0f"),
                number(row.get("tflops"), ".3g"),
                "" if share is None else f"{100 * share:.1f} %",
                number(row.get("peak_memory_gb"), ".2f"),
            ]


def errors(found: Document) -> Iterator[list[str]]:
    """The rows of the table of correctness: each error, and in brackets what part of its bound that is."""
    for case, result in found["cases"].items():
        for name, row in result.get("rows", {}).items():
            if "errors" in row:
                parts = (row["errors"][measure] for measure in MEASURES)
                shown = (f"{p['error']:.1e} ({p['error'] / p['bound']:.2f})" for p in parts)
                yield [case, name, *shown, "yes" if row["ok"] else "NO"]
            elif "ok" in row:
                yield [case, f"{name} failed: {row['error']}", "", "", "", "NO"]


def pages(found: Document) -> Iterator[list[str]]:
    """The table of Hugging Face's pages, with what was measured beside it; nothing without those cases."""
    for batch, (eager, sdpa) in PAGES.items():
        rows = found["cases"].get(f"inference, B/16 224, float32, batch {batch}", {}).get("rows", {})
        cells = [str(batch), f"{eager} / {sdpa} = {eager / sdpa:.2f}"]
        for kind in ("transformers", "vit_trio"):
            times = [rows.get(f"{kind} {attention}", {}).get("ms") for attention in ("eager", "sdpa")]
            known = None not in times
            cells.append(f"{times[0]:.2f} / {times[1]:.2f} = {times[0] / times[1]:.2f}" if known else "")
        if any(cells[2:]):
            yield cells


def not_run(found: Document) -> list[str]:
    """The cases that were not run, by the reason."""
    by_reason: dict[str, list[str]] = {}
    for case, result in found["cases"].items():
        if "not_run" in result:
            by_reason.setdefault(result["not_run"], []).append(case)
    return [f"Not run, as {reason}: {'; '.join(cases)}." for reason, cases in by_reason.items()]


def milliseconds(value: float) -> str:
    """A time with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def number(value: float | None, form: str) -> str:
    """A number in a table; nothing of None."""
    return "" if value is None else format(value, form)


TABLES = (
    (pages, ("batch", "pages, A100: eager / sdpa, ms", "transformers here", "this package here")),
    (errors, ("case", "precision, attention", *(f"{measure} (of bound)" for measure in MEASURES), "within")),
    (lines, COLUMNS),
)


def markdown(cards: Document) -> str:
    """All that is known of all cards, as the README shows it."""
    text = [] if cards else ["No figures yet: no GPU has been at hand.", ""]
    for card, frameworks in sorted(cards.items()):
        for framework, found in frameworks.items():
            versions = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
            text += [f"### {card}, {framework}", "", f"With {versions}.", ""]
            for rows_of, columns in TABLES:
                if rows := list(rows_of(found)):
                    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
                    text += [*head, *("| " + " | ".join(c.replace("|", "/") for c in row) + " |" for row in rows), ""]
            text += [line for left in not_run(found) for line in (left, "")]
    return "\n".join(text)


def show(cards: Document, console: Console) -> None:
    """The same tables in a terminal."""
    for card, frameworks in cards.items():
        for framework, found in frameworks.items():
            for rows_of, columns in TABLES:
                if rows := list(rows_of(found)):
                    table = Table(*columns, title=f"{card}, {framework}")
                    for row in rows:
                        table.add_row(*row)
                    console.print(table, markup=False)
            for left in not_run(found):
                console.print(f"{framework}: {left}", markup=False, highlight=False)


def wrong(cards: Document) -> list[str]:
    """What was not computed right, and correctness that failed to be measured."""
    found = []
    for frameworks in cards.values():
        for framework, each in frameworks.items():
            for case, result in each["cases"].items():
                if case.startswith("correctness"):
                    bad = [name for name, row in result.get("rows", {}).items() if not row["ok"]]
                    failed = [result["error"]] if "error" in result else []
                    found += [f"{framework}: {case}: {what}" for what in bad + failed]
    return found


# ---- the command ---------------------------------------------------------------------------------------------------


def main(
    *,
    framework: Annotated[
        list[str] | None, typer.Option(metavar="torch|jax", help="By default what is installed.")
    ] = None,
    only: Annotated[str, typer.Option(metavar="PATTERN", help="Cases whose name has this regular expression.")] = "",
    seconds: Annotated[float, typer.Option(min=0, help="For all, compiling included.")] = 330.0,
    device: Annotated[str, typer.Option(metavar="cuda|cpu", help="Where to run.")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="Small models: to see that everything runs, not how fast.")] = False,
    each: Annotated[float, typer.Option(min=0, help="Seconds that a candidate is timed, at least.")] = 0.5,
    out: Annotated[Path | None, typer.Option(help="Write here, not to results.json and the README.")] = None,
    merge: Annotated[
        Path | None, typer.Option(help="Run nothing: take over what --out wrote on another machine.")
    ] = None,
    recorded: Annotated[bool, typer.Option("--record", help="Write the errors to tests/measured_errors.json.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Measure this package on a GPU."""
    chosen = framework or [name for name, needs in NEEDS.items() if all(map(find_spec, needs))]
    if unknown := [name for name in chosen if name not in NEEDS]:
        raise typer.BadParameter(f"--framework must be one of {', '.join(NEEDS)}, got {', '.join(unknown)}.")
    if device not in ("cuda", "cpu"):
        raise typer.BadParameter(f"--device must be cuda or cpu, got {device}.")
    try:
        re.compile(only)
    except re.error as error:
        raise typer.BadParameter(f"--only {only} is no regular expression: {error}.") from error
    if out is not None and not out.parent.is_dir():
        raise typer.BadParameter(f"--out {out}: there is no folder {out.parent}.")
    path = out or (RESULTS if device == "cuda" else None)  # a CPU's times are told by the other benchmarks
    tell, failed = Console(stderr=True), []
    if merge is not None:
        measured = taken_over(merge)
        write(out or RESULTS, measured)
    else:
        store = Store(path)
        settings = {"device": device, "tiny": tiny, "only": only, "seconds": each}
        failed = run_all(chosen, store, settings, seconds, tell)
        measured = store.measured
        if not failed and not any(found["cases"] for each in measured.values() for found in each.values()):
            failed.append(f"no case has a name with {only!r}")
    if path == RESULTS:
        quote(README, RESULTS)
    if recorded:
        record(ERRORS, measured)
    if as_json:
        print(json.dumps({"gpu": measured}, indent=2))
    else:
        show(measured, Console(width=None if sys.stdout.isatty() else 170))
    bad = [*failed, *wrong(measured)]
    for each_bad in bad:
        tell.print(f"WRONG {each_bad}", markup=False, highlight=False)
    if bad or not measured:
        raise typer.Exit(1)


def taken_over(path: Path) -> Document:
    """What was measured, from the file that --out wrote. Raises BadParameter for another."""
    try:
        found: Document = json.loads(path.read_text())["gpu"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise typer.BadParameter(f"--merge {path} is no file that --out wrote: {error!r}.") from error
    return found


def run_all(chosen: list[str], store: Store, settings: Document, seconds: float, tell: Console) -> list[str]:
    """Run each framework until its share of the time is over; returns those that could not be run, with the reason.

    Stopped by Ctrl-C or SIGTERM, it ends with what was measured.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start, failed = time.time(), []
    try:
        for i, name in enumerate(chosen):
            share = SHARES[name] / sum(SHARES[other] for other in chosen[i:])
            until = time.time() + share * (start + seconds - time.time())
            if problem := Child(name, store, settings, until).run(tell):
                failed.append(f"{name} {problem}")
    except KeyboardInterrupt:
        failed.append("stopped before the end")
    return failed


if __name__ == "__main__":
    typer.run(main)
