"""A sample of the fuzzer's cases, and all that failed once: nothing but sentences, limits kept, nothing touched."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FUZZER = Path(__file__).with_name("fuzz")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are read from /proc")


def test_a_sample_of_every_format_and_what_failed_once() -> None:
    command = [sys.executable, str(FUZZER), "--cases", "100", "--jobs", "2", "--regressions"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ", 0 failed, " in result.stdout


# ---- that it sees what it looks for ------------------------------------------------------------------------------


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A module of the fuzzer by its name."""
    monkeypatch.syspath_prepend(str(FUZZER))

    def loaded(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"fuzz_{name.strip('_')}", FUZZER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return loaded


def test_cases_are_functions_of_format_and_number(load: Callable[[str], ModuleType]) -> None:
    formats = load("formats")
    for name in formats.FORMATS:
        assert [formats.case(name, 7) == formats.case(name, i) for i in (7, 8)] == [True, False], name


def _keeps_quiet(folder: Path) -> None:
    raise ValueError(f"{folder} is damaged")


def _says_nothing(folder: Path) -> None:
    raise ValueError("it is damaged")


def _breaks(folder: Path) -> None:
    raise KeyError(folder)


def _writes(folder: Path) -> None:
    (folder.parent / "victim.txt").write_text("touched")


def _moves(folder: Path) -> None:
    os.rename(folder / "m", folder / "n")


def _runs(folder: Path) -> None:
    subprocess.run(["true"], check=True)


def _takes(folder: Path) -> None:
    bytearray(b"x") * (100 << 20)


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        (_keeps_quiet, {"refused"}),
        (_says_nothing, {"vague", "error", "at"}),
        (_breaks, {"raw", "error", "at"}),
        (_writes, {"accepted", "acts", "touched"}),
        (_moves, {"accepted", "acts", "touched"}),
        (_runs, {"accepted", "acts"}),
        (_takes, {"accepted", "memory"}),
    ],
)
def test_a_worker_sees_what_a_reader_does(
    load: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], None],
    seen: set[str],
) -> None:
    worker = load("worker")
    monkeypatch.setattr(worker, "case", lambda name, index: worker.Case(index, {"m": b"x"}, "m"))
    monkeypatch.setattr(worker, "_use", lambda folder, case: act(folder))
    (tmp_path / "victim.txt").write_bytes(b"untouched")
    result: dict[str, Any] = worker.tried(tmp_path, worker.Watch(), "npz", 0)
    assert {result.pop("outcome"), *result} == seen


@pytest.mark.parametrize(
    ("end", "outcome"), [("os.kill(os.getpid(), signal.SIGXCPU)", "hang"), ("os._exit(3)", "crash")]
)
def test_the_fuzzer_goes_on_after_a_process_that_does_not(
    load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, outcome: str
) -> None:
    """The worker answers once, then no more; it is started again behind the case that it did not answer."""
    main = load("__main__")
    (tmp_path / "worker.py").write_text(
        "import json, os, signal, sys\n"
        "name, first, last = sys.argv[2].split(':')\n"
        "print(json.dumps({'format': name, 'index': int(first), 'outcome': 'refused'}), flush=True)\n" + end
    )
    monkeypatch.setattr(main, "_WORKER", tmp_path / "worker.py")
    found = [(r["format"], r["index"], r["outcome"]) for r in main.fuzz([("npz", 3, 5), ("config", 0, 2)])]
    first, second = (("npz", 3, "refused"), ("npz", 4, outcome)), (("config", 0, "refused"), ("config", 1, outcome))
    assert found == [*first, *second]


def test_a_case_without_end_ends_the_process(
    load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; import worker\n"
        "worker._BUSY = 1; worker._warm_up = lambda root: None\n"
        "worker._use = lambda folder, case: all(itertools.count(1))\n"
        f"worker.run(Path({str(tmp_path)!r}), [('npz', 0)])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FUZZER), *sys.path])}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGXCPU, b"")


def test_a_case_is_kept_as_what_it_differs_in(
    load: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regressions, formats = load("regressions"), load("formats")
    monkeypatch.setattr(regressions, "_KEPT", tmp_path / "regressions.json")
    cases = [formats.case(name, 3) for name in ("npz", "config", "preset")]
    for case in (*cases, cases[0]):
        regressions.keep(case, "why")
    assert regressions.count() == 3
    found = [regressions.regression(i) for i in range(3)]
    assert [(c.number, c.files, c.target) for c in found] == [(c.number, c.files, c.target) for c in cases]
