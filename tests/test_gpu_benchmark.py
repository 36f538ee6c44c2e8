"""`python -m benchmarks.gpu` on the CPU: that everything in it runs, and what it does when something does not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from command import HANGS, interruptible, process

from vit_core.config import ViTConfig

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--each", "0")
TIMED = {"ms", "p10", "p90", "rounds", "pictures_per_second", "tflops", "of_bf16_peak"}
FRAMEWORKS = {"torch": "torch", "jax": "flax"}
EVERYTHING = "^(?!inference, compiled, B/16 224, float32)"  # which is compiled as bfloat16 is

CHILD = """
import os
from benchmarks.gpu_cases import Case, Machine, serve

def fail():
    raise MemoryError("out of memory")

def cases(settings):
    yield Case("first", lambda: {"it": {"ms": 1.0}}, 0)
    yield Case("fails", fail, 0)
    yield Case("dies", lambda: os._exit(3), 0)
    yield Case("takes long", fail, 1e9)
    yield Case("last", lambda: {"it": {"ms": 2.0}}, 0)

nothing = lambda: None
serve(cases, lambda settings: Machine("Card 1", nothing, nothing, nothing, nothing, nothing, nothing), ["numpy"])
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    return import_module("benchmarks.gpu")


def command(*arguments: Any, **variables: str) -> Any:
    return process(*COMMAND, *arguments, cwd=ROOT, env={**os.environ, **variables})


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_everything_runs(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(FRAMEWORKS[framework])
    out = tmp_path / "results.json"
    done = command("--framework", framework, "--only", EVERYTHING, "--seconds", HANGS, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    found = document["gpu"]["CPU"][framework]
    assert found["versions"]
    names = list(found["cases"])
    assert names[0] == "correctness, small"
    for batch in (1, 2, 4, 8, 64, 256):
        for precision in ("float32", "tf32", "bfloat16", "float16"):
            assert f"inference, B/16 224, {precision}, batch {batch}" in names
    for name, result in found["cases"].items():
        rows = result["rows"]
        assert rows and result["took"] >= 0
        for what, row in rows.items():
            assert "error" not in row, f"{name}, {what}: {row}"
            if name.startswith("correctness"):
                assert row["ok"] is True
                assert all(0 <= each["error"] <= each["bound"] for each in row["errors"].values())
            elif name == "pictures to labels":
                assert row["pictures_per_second"] > 0
            else:
                assert row.keys() >= TIMED
                assert row["ms"] > 0 and row["p10"] <= row["ms"] <= row["p90"] and row["tflops"] > 0
        if name.startswith(("inference", "training")):
            first, *others = rows.values()
            assert others and "ratio" not in first and all(row["ratio"] > 0 for row in others)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_keeps_what_it_measured(number: signal.Signals, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = tmp_path / "results.json"
    command = [*COMMAND, "--framework", "torch", "--out", out]
    with interruptible():
        started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not out.exists():
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(number)
    started.communicate(timeout=HANGS)
    assert started.returncode == (-9 if number == signal.SIGKILL else 1)
    cases = json.loads(out.read_text())["gpu"]["CPU"]["torch"]["cases"]
    assert cases["correctness, small"]["rows"]
    assert "training step, B/16 224, bfloat16, batch 256" not in cases


def test_what_there_is_no_time_for_is_listed() -> None:
    pytest.importorskip("torch")
    done = command("--framework", "torch", "--seconds", 0, "--only", "correctness")
    assert done.returncode == 0
    assert "Not run, as less than 15 s were left: correctness, small." in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "["), "--only [ is no regular expression: unterminated character set"),
        (("--out", "missing/results.json"), "--out missing/results.json: there is no folder missing."),
        (("--merge", "missing.json"), "--merge missing.json is no file that --out wrote: FileNotFoundError"),
        (("--merge", "tests/measured_errors.json"), "is no file that --out wrote: KeyError('gpu')"),
    ],
)
def test_what_would_fail_later_is_said_at_once(arguments: tuple[str, ...], words: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())


def test_a_pattern_that_no_case_has_is_no_success() -> None:
    pytest.importorskip("torch")
    done = command("--framework", "torch", "--only", "inferense")
    assert done.returncode == 1
    assert "WRONG no case has a name with 'inferense'" in done.stderr


def test_a_peer_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise ImportError('built for another card')")
    done = command(
        "--framework",
        "torch",
        "--only",
        "inference, B/16 224, bfloat16, batch 64",
        "--json",
        "--seconds",
        HANGS,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["gpu"]["CPU"]["torch"]["cases"]["inference, B/16 224, bfloat16, batch 64"]["rows"]
    assert rows["timm"] == {"error": "ImportError: built for another card"}
    assert rows["vit_trio sdpa"]["ms"] > 0


def test_a_case_that_fails_or_dies_costs_itself_alone(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setitem(gpu.MODULES, "torch", "child")
    out = tmp_path / "results.json"
    gpu.main(framework=["torch"], device="cpu", seconds=HANGS, out=out)
    cases = json.loads(out.read_text())["gpu"]["Card 1"]["torch"]["cases"]
    assert cases["first"]["rows"] == {"it": {"ms": 1.0}}
    assert cases["fails"]["error"] == "MemoryError: out of memory"
    assert cases["dies"] == {"error": "its process ended: 3"}
    assert cases["takes long"]["not_run"] == "less than 1000000000 s were left"
    assert cases["last"]["rows"] == {"it": {"ms": 2.0}}


def row(**numbers: float) -> dict[str, Any]:
    return {"rows": {"vit_trio sdpa": numbers}, "took": 1.0}


def test_results_of_another_machine_are_taken_over(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESULTS", "README", "ERRORS"):
        copied = shutil.copy(getattr(gpu, name), tmp_path)
        monkeypatch.setattr(gpu, name, Path(copied))
    before = json.loads(gpu.RESULTS.read_text())
    kept = json.loads(gpu.ERRORS.read_text())
    batch = "inference, B/16 224, float32, batch 1"
    error = {measure: {"error": 1.23e-6, "bound": 3e-5} for measure in gpu.MEASURES}
    both = {f"vit_trio {attention}": {"ms": ms} for attention, ms in (("sdpa", 2.0), ("eager", 3.0))}
    cases = {
        gpu.FULL_SIZE: {"rows": {"float32, sdpa": {"errors": error, "ok": True}}, "took": 1.0},
        batch: {"rows": both, "took": 1.0},
        "left": {"not_run": "no time"},
    }
    source = tmp_path / "card.json"

    def merge(version: str, cases: dict[str, Any]) -> dict[str, Any]:
        source.write_text(json.dumps({"gpu": {"Card 1": {"torch": {"versions": {"torch": version}, "cases": cases}}}}))
        gpu.main(merge=source, recorded=True)
        found: dict[str, Any] = json.loads(gpu.RESULTS.read_text())
        return found

    after = merge("1", cases)
    assert {name: value for name, value in after.items() if name != "gpu"} == {
        name: value for name, value in before.items() if name != "gpu"
    }
    assert after["gpu"]["Card 1"]["torch"]["cases"] == cases
    stored = json.loads(gpu.ERRORS.read_text())
    assert stored["cards"]["Card 1"]["torch"] == {
        "versions": {"torch": "1"},
        "errors": {"float32": dict.fromkeys(gpu.MEASURES, 1.2e-6)},
    }
    assert {name: stored[name] for name in ("versions", "errors")} == {n: kept[n] for n in ("versions", "errors")}
    (quoted,) = gpu.QUOTED.findall(gpu.README.read_text())
    assert quoted == gpu.markdown(after["gpu"])
    for text in ("### Card 1, torch", "| 1 | 7 / 6 = 1.17 |  | 3.00 / 2.00 = 1.50 |", "Not run, as no time: left."):
        assert text in quoted
    again = merge("1", {batch: {"error": "lost"}, "left": row(ms=1.0)})["gpu"]["Card 1"]["torch"]["cases"]
    assert again == {**cases, "left": row(ms=1.0)}
    assert merge("2", {"left": row(ms=1.0)})["gpu"]["Card 1"]["torch"]["cases"] == {"left": row(ms=1.0)}


def test_what_is_computed_wrong_makes_the_exit_code(gpu: Any, tmp_path: Path) -> None:
    bad = {"correctness, small": {"rows": {"float32, sdpa": {"error": "lost", "ok": False}}, "took": 1.0}}
    assert gpu.wrong({"Card 1": {"jax": {"cases": bad}}}) == ["jax: correctness, small: float32, sdpa"]
    assert gpu.wrong({"Card 1": {"jax": {"cases": {"correctness, small": {"error": "lost"}}}}})
    source = tmp_path / "card.json"
    source.write_text(json.dumps({"gpu": {"Card 1": {"jax": {"versions": {}, "cases": bad}}}}))
    done = process(*COMMAND[:3], "--merge", source, "--out", tmp_path / "out.json", cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "WRONG jax: correctness, small: float32, sdpa\n")


def test_the_readme_quotes_the_results(gpu: Any) -> None:
    cards = json.loads(gpu.RESULTS.read_text()).get("gpu", {})
    assert gpu.QUOTED.findall(gpu.README.read_text()) == [gpu.markdown(cards)], "gpu.quote writes it"


def test_peaks_are_found_by_a_cards_name(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peak_of = import_module("benchmarks.gpu_cases").peak_of
    found = {name: peak_of(name) for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-40GB")}
    assert list(found.values()) == [989.4, 756.5, 312.0]
    assert (peak_of("NVIDIA L40S"), peak_of("NVIDIA L4"), peak_of("NVIDIA A10G"), peak_of("CPU")) == (
        362,
        121,
        None,
        None,
    )


@pytest.mark.parametrize("image", [32, 48])
def test_operations_are_those_that_pytorch_counts(gpu: Any, image: int) -> None:
    torch = pytest.importorskip("torch")
    counter = import_module("torch.utils.flop_counter").FlopCounterMode
    harness = import_module("benchmarks.harness")
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=image,
        patch_size=8,
        num_labels=10,
        attn_implementation="eager",
    )
    model = import_module("vit_torch").ViTForImageClassification(config, seed=0)
    tokens = config.num_patches + 1
    for options, last in (({}, 1), ({"output_hidden_states": True}, tokens)):
        with counter(display=False) as counted, torch.no_grad():
            model(torch.zeros(2, 3, image, image), **options)
        assert harness.forward_flops(config, 2, last) == counted.get_total_flops()
    alone = import_module("benchmarks.parts").of(config, 2)
    products = sum(len(x) * kernel.size for x, kernel in alone["products"])
    attention = sum(2 * x.size * tokens for x in alone["attention"])
    assert 2 * (products + attention) == harness.forward_flops(config, 2)


def test_plain_jax_computes_the_same_function(gpu: Any) -> None:
    jax = pytest.importorskip("jax")
    cases, plain = import_module("benchmarks.gpu_jax"), import_module("benchmarks.jax_vit")
    vit_flax = import_module("vit_flax")
    before = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")}
    try:
        dtype = cases.use("float64")
        shape = cases.Shape("B/16", 224, 2, True)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), cases.moved(shape))
        x = shape.pixels(dtype)
        model, _ = vit_flax.FlaxViTForImageClassification(shape.config, dtype=dtype, _do_init=False)
        expected = model(x, params=params).logits
        actual = plain.classify(params, jax.numpy.asarray(x), shape.config, "xla")
        # JAX's attention computes its softmax in float32, whatever it is given.
        assert_close(actual, expected, tolerances.rounding(shape.config))
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_adamw_in_jax_is_optaxs(gpu: Any) -> None:
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    cases = import_module("benchmarks.gpu_jax")
    rng = np.random.default_rng(0)
    params = {"w": rng.standard_normal((4, 3), np.float32)}
    x, labels = rng.standard_normal((5, 4), np.float32), np.arange(5) % 3

    def logits(params: Any, x: Any) -> Any:
        return x @ params["w"]

    def loss_of(params: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), labels).mean()

    optimizer = optax.adamw(1e-5, weight_decay=0.01)
    theirs, state = params, optimizer.init(params)
    zeros = jax.tree.map(np.zeros_like, params)
    ours = (params, zeros, zeros, np.float32(0))
    for _ in range(3):
        loss, gradients = jax.value_and_grad(loss_of)(theirs)
        updates, state = optimizer.update(gradients, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
        found, ours = cases.adamw(logits, ours, x, labels)
        assert_close(found, loss, 8 * tolerances.UNIT_ROUNDOFF["float32"])
    moved, expected = (np.asarray(after["w"]) - params["w"] for after in (ours[0], theirs))
    assert_close(moved, expected, 1e-2)  # of three steps of 1e-5, in float32 numbers of 1
