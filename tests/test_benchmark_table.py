"""The benchmarks' results, by machine, and which of them the README quotes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks

ROW = {"ratio": 0.5, "p10": 0.4, "p90": 0.6}


def results(*names: str) -> dict[str, Any]:
    return {name: {"cases": {f"case of {name}": ROW}} for name in names}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Of an old machine, whose inference was measured."""
    path, readme = tmp_path / "results.json", tmp_path / "README.md"
    path.write_text(json.dumps({"machines": {"old": results("inference", "training")}, "gpu": {"card": {}}}))
    readme.write_text("before\n<!-- results -->\n\n<!-- end of results -->\nafter\n")
    monkeypatch.setattr(benchmarks, "RESULTS", path)
    monkeypatch.setattr(benchmarks, "README", readme)
    monkeypatch.setattr(benchmarks, "machine", lambda: "new")
    return path


def test_the_newest_result_of_each_until_a_machine_is_whole() -> None:
    machines = {"old": results(*benchmarks.NAMES), "new": results("inference")}
    assert benchmarks.quoted(machines) == {"old": machines["old"]}
    del machines["old"]["serve"]
    found = benchmarks.quoted(machines)
    assert list(found) == ["new", "old"]
    assert "inference" in found["new"] and "inference" not in found["old"] and "training" in found["old"]
    machines["newest"] = results(*benchmarks.NAMES)
    assert list(benchmarks.quoted(machines)) == ["newest"]


def test_what_was_measured_is_kept_where_another_fails(
    kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, quick: bool) -> dict[str, Any]:
        if name == "training":
            raise subprocess.CalledProcessError(3, name)
        return {"a row": ROW}

    monkeypatch.setattr(benchmarks, "run", run)
    monkeypatch.setattr("sys.argv", ["benchmarks", "inference", "training", "--quick"])
    with pytest.raises(SystemExit, match="Not measured: training"):
        benchmarks.main()
    assert "training failed with exit code 3." in capsys.readouterr().err
    document = json.loads(kept.read_text())
    assert document["gpu"] == {"card": {}}
    assert list(document["machines"]) == ["old", "new"]
    found = document["machines"]["new"]["inference"]
    assert (found["quick"], found["cases"]) == (True, {"a row": ROW})
    assert found["versions"]["numpy"]
    readme = benchmarks.README.read_text()
    assert readme.startswith("before\n") and readme.endswith("after\n")
    assert "Measured on new, in a few rounds:" in readme and "| a row | 0.50 | 0.40 to 0.60 |" in readme
    assert "Measured on old:" in readme and "case of training" in readme and "case of inference" not in readme


def test_which_had_a_few_rounds_is_said() -> None:
    found = {"inference": {"cases": {"a row": ROW}}, "int8": {"quick": True, "cases": {"a row": ROW}}}
    assert benchmarks.table({"new": found}).startswith("Measured on new, int8 in a few rounds:")


def test_rates_and_shares_stand_below_the_rows() -> None:
    row = {**ROW, benchmarks.RATE: 0.9, "shares": {"products": 0.75, "rest": 0.25}}
    training = {**ROW, "shares": {"products": 0.5, "optimizer": 0.5}}
    cases = {"inference": {"batch 1 (transformers)": row, "batch 1 (timm)": ROW}, "training": {"step (timm)": training}}
    lines = benchmarks.table({"new": {name: {"cases": found} for name, found in cases.items()}}).splitlines()
    assert "| batch 1 (timm) | 0.50 | 0.40 to 0.60 |" in lines
    assert "Arithmetic rate of ours as a fraction of the faster matrix product's: batch 1: 0.9." in lines
    start = lines.index("| where our time goes | products | rest | optimizer |")
    assert lines[start + 2 :] == ["| batch 1 | 0.75 | 0.25 |  |", "| step | 0.50 |  | 0.50 |"]


def test_a_server_under_load_has_a_table_of_its_own() -> None:
    ours, theirs = ({"a_second": x, "p50_ms": 30.0, "p99_ms": 100 / x} for x in (40.0, 20.0))
    cases = {"serve, digits": {**ROW, "ours": ours, "theirs": theirs}, "serve, memory": ROW}
    lines = benchmarks.table({"new": {"serve": {"cases": cases}}}).splitlines()
    start = lines.index("| ours / theirs | requests a second | median wait | 99th percentile of waits |")
    assert lines[start + 2 :] == ["| serve, digits | 2.00 | 1.00 | 0.50 |"]


def test_the_readme_quotes_what_is_kept() -> None:
    machines = json.loads(benchmarks.RESULTS.read_text())["machines"]
    assert benchmarks.table(machines) in benchmarks.README.read_text()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="another system names its processors elsewhere")
def test_a_machine_is_named_by_its_processor() -> None:
    assert " cores, " in benchmarks.machine()
