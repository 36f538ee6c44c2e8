"""`vit verify` says that the backends agree where they do, and which of them does not, and where, where they don't."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CHECKPOINTS, GOLDEN
from safetensors.numpy import load_file, save_file

from vit_core.app.backends import BACKENDS, import_backend
from vit_core.app.cli import main
from vit_core.app.differences import Difference
from vit_core.assets import DIGITS

CLS, MIM, ONE_CHANNEL = (CHECKPOINTS / name / "pt_safetensors" for name in ("cls", "mim", "tiny_1_channel"))
PICTURES = sorted((DIGITS / "pictures").iterdir())
PAIRS = [["torch", "tf"], ["torch", "flax"], ["tf", "flax"]]
OUTPUTS = {
    "ViTModel": ["last_hidden_state", "pooler_output"],
    "ViTForImageClassification": ["logits"],
    "ViTForMaskedImageModeling": ["loss", "reconstruction"],
}
Run = Callable[..., tuple[int, str, str]]

missing = [n for n, modules in BACKENDS.items() if any(find_spec(module) is None for module in modules)]
needs_all = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command; gives its exit code and what it printed."""
    monkeypatch.delenv("COLUMNS", raising=False)  # a user's terminal would fold the tables

    def run(*arguments: Any) -> tuple[int, str, str]:
        return (main(["verify", *map(str, arguments)]), *capsys.readouterr())

    return run


def tamper(monkeypatch: pytest.MonkeyPatch, backend: str, architecture: str, name: str) -> None:
    """Let a backend load a parameter a little larger than it is."""
    cls = getattr(import_backend(backend), architecture)
    genuine = cls.from_tensors

    def from_tensors(config: Any, tensors: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        larger = tensors[name].changed(("plus", 0.01), lambda array: array + np.float32(0.01))
        return genuine(config, tensors | {name: larger}, *arguments, **options)

    monkeypatch.setattr(cls, "from_tensors", from_tensors)


def changed(folder: Path, source: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    """A copy of a checkpoint whose tensors, by name, were changed."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---- where they agree -------------------------------------------------------------------------------------------


@needs_all
@pytest.mark.parametrize(
    ("model", "architecture", "dtype", "tolerance"),
    [
        (CHECKPOINTS / "cls" / "flax_msgpack", "ViTForImageClassification", "float32", 1e-5),
        (CHECKPOINTS / "base" / "tf_h5", "ViTModel", "float32", 1e-5),
        (MIM, "ViTForMaskedImageModeling", "float64", 1e-10),
        (GOLDEN / "families" / "timm", "ViTForImageClassification", "float32", 1e-5),
    ],
    ids=["cls", "base", "mim", "timm"],
)
def test_golden_checkpoints(verify: Run, model: Path, architecture: str, dtype: str, tolerance: float) -> None:
    code, out, err = verify(model, "--dtype", dtype, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    facts = ("model", "architecture", "dtype", "tolerance", "backends", "skipped", "agree")
    expected = [str(model), architecture, dtype, tolerance, list(BACKENDS), [], True]
    assert [document[name] for name in facts] == expected
    states = [f"hidden_states[{i}]" for i in range(3)]
    compared = [(each["backends"], each["output"]) for each in document["differences"]]
    assert compared == [(pair, output) for pair in PAIRS for output in (*states, *OUTPUTS[architecture])]
    assert all(each["ok"] for each in document["differences"])
    assert 0 < max(each["relative"] for each in document["differences"]) < (3e-6 if dtype == "float32" else 1e-13)
    assert [each["file"] for each in document["pictures"]] == ["noise 1", "noise 2"]


@needs_all
def test_float32_is_not_tf32(verify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX and TensorFlow are told so while they compute, and only then."""
    jax, tf, module = map(import_module, ("jax", "tensorflow", "vit_core.app.cli.comparing"))
    genuine, seen = module._outputs, []

    def told() -> tuple[str | None, bool]:
        return jax.config.jax_default_matmul_precision, tf.config.experimental.tensor_float_32_execution_enabled()

    def outputs(*arguments: Any) -> Any:
        seen.append(told())
        return genuine(*arguments)

    monkeypatch.setattr(module, "_outputs", outputs)
    before = told()
    assert verify(CHECKPOINTS / "cls" / "flax_msgpack")[0] == 0
    assert set(seen) == {("highest", False)}
    assert told() == before


@needs_all
def test_the_digits_are_compared_on_their_pictures_and_told_apart(verify: Run) -> None:
    code, out, _ = verify(DIGITS, "--backends", "torch,tf", "--json")
    assert code == 0
    right = [{"file": str(path), "labels": dict.fromkeys(("torch", "tf"), path.name[0])} for path in PICTURES]
    assert json.loads(out)["pictures"] == right


@needs_all
def test_the_table(verify: Run) -> None:
    code, out, err = verify(CLS)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines() if " ok " in line]
    assert [line[:2] for line in lines] == [[f"{pair[0]},", pair[1]] for pair in PAIRS for _ in range(2)]
    assert [line[2].partition("[")[0] for line in lines] == ["hidden_states", "logits"] * 3
    assert "the worst of 3" in out
    what = "ViTForImageClassification in float32 on 2 pictures of noise, top-1 labels the same on 2"
    assert out.splitlines()[-1] == f"agreed: torch, tf, flax, {what}"


def test_pictures_fit_a_model_without_a_preprocessor(verify: Run) -> None:
    found = [name for name in BACKENDS if name not in missing]
    code, out, err = verify(ONE_CHANNEL, *PICTURES[:2], "--backends", found[-1], "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert "has no preprocessor_config.json" in err
    document = json.loads(out)
    assert [each["file"] for each in document["pictures"]] == list(map(str, PICTURES[:2]))
    assert (document["agree"], document["differences"]) == (None, [])  # with one backend


# ---- where they don't -------------------------------------------------------------------------------------------


@needs_all
@pytest.mark.parametrize(
    ("backend", "architecture", "parameter", "first"),
    [
        ("tf", "ViTForImageClassification", "encoder.layer.1.output.dense.bias", "hidden_states[2]"),
        ("flax", "ViTForMaskedImageModeling", "embeddings.mask_token", "hidden_states[0]"),
        ("torch", "ViTForImageClassification", "classifier.bias", "logits"),
    ],
)
def test_a_wrong_weight_is_found(
    verify: Run, monkeypatch: pytest.MonkeyPatch, backend: str, architecture: str, parameter: str, first: str
) -> None:
    tamper(monkeypatch, backend, architecture, parameter)
    model = MIM if "Masked" in architecture else CLS
    code, out, err = verify(model)
    wrong = [pair for pair in PAIRS if backend in pair]
    assert code == 1
    assert err.splitlines() == [
        f"vit: {' and '.join(pair)} do not agree, {first} is the first output that differs." for pair in wrong
    ]
    assert out.splitlines()[-1].startswith("DISAGREE: torch, tf, flax")
    found = [line for line in out.splitlines() if "differs" in line]
    assert sorted({line.split("  ")[1].strip() for line in found}) == sorted(", ".join(pair) for pair in wrong)
    assert any("hidden_states" in line for line in found) == first.startswith("hidden_states")


@needs_all
def test_json_of_a_disagreement(verify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tamper(monkeypatch, "flax", "ViTForImageClassification", "classifier.bias")
    code, out, err = verify(CLS, "--json", "--backends", "flax,torch")
    document = json.loads(out)
    assert (code, document["agree"], err.count("\n")) == (1, False, 1)
    assert [each["output"] for each in document["differences"] if not each["ok"]] == ["logits"]
    assert document["differences"][-1]["absolute"] == pytest.approx(0.01, rel=1e-3)


@needs_all
def test_not_a_number_agrees_with_nothing(verify: Run, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["classifier.bias"][0] = np.nan

    code, out, _ = verify(changed(tmp_path, CLS, spoil), "--backends", "torch,flax", "--json")
    *states, logits = json.loads(out)["differences"]
    assert code == 1
    assert all(each["ok"] for each in states)
    assert (logits["output"], logits["ok"], logits["absolute"], logits["relative"]) == ("logits", False, None, None)


@needs_all
def test_a_smaller_tolerance(verify: Run) -> None:
    assert verify(CLS, "--backends", "torch,flax", "--tolerance", "1e-9")[0] == 1


def test_a_difference_is_the_largest_of_all_batches() -> None:
    difference = Difference(("torch", "tf"), "logits", 0.1)
    for ours, theirs in (([2.0, 4.0], [2.0, 4.5]), ([1.0, 9.0], [1.25, 9.0]), ([-10.0, 0.0], [-10.0, 0.0])):
        difference.add(np.array(ours), np.array(theirs))
    assert (difference.absolute, difference.largest, difference.relative, difference.ok) == (0.5, 10.0, 0.05, True)
    for odd in ([np.inf, 0.0], [np.nan, 0.0], [0.0]):
        spoilt = Difference(("torch", "tf"), "logits", 0.1)
        spoilt.add(np.array(odd), np.array([np.inf, 0.0]))
        spoilt.add(np.zeros(2), np.zeros(2))
        assert not spoilt.ok
    silent = Difference(("torch", "tf"), "logits", 0.1)
    silent.add(np.zeros(2), np.zeros(2))
    assert silent.ok


# ---- what is installed, and bad input ---------------------------------------------------------------------------


def test_one_backend_has_nothing_to_be_compared_with(verify: Run, backend: Any) -> None:
    code, out, err = verify(CLS, "--backends", backend.name)
    assert (code, out, err) == (0, f"nothing to compare: {backend.name} is the only backend\n", "")


@needs_all
def test_a_backend_that_is_not_installed(verify: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in BACKENDS["tf"]:
        monkeypatch.setitem(sys.modules, module, None)  # which hides it
    code, out, _ = verify(CLS)
    assert code == 0
    assert out.splitlines()[-1].startswith("agreed: torch, flax, ")
    assert out.splitlines()[-1].endswith("; not installed: tf")
    code, out, err = verify(CLS, "--backends", "torch,tf")
    assert (code, out) == (2, "")
    assert err.startswith("vit: The backend tf is not installed (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'MODEL'"),
        (["./nope"], "The folder './nope' does not exist"),
        (["nope.safetensors"], "There is no weights file nope.safetensors"),
        (
            [CLS, "--backends", "torch,jax"],
            "must be some of torch,tf,flax, with commas between, got 'torch,jax'",
        ),
        ([CLS, "--backends", ""], "with commas between, got ''"),
        ([CLS, "--dtype", "int8"], "--dtype must be one of float32, float64, got 'int8'"),
        ([CLS, "--tolerance", "-1"], "Invalid value for '--tolerance'"),
        ([DIGITS, "nope.png"], "There is no image file nope.png"),
        ([GOLDEN / "families" / "timm_map"], "attention pooling"),
    ],
)
def test_bad_input_is_one_line(verify: Run, arguments: list[Any], message: str) -> None:
    code, out, err = verify(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_checkpoint_without_its_configuration_or_a_parameter(verify: Run, tmp_path: Path) -> None:
    folder = changed(tmp_path / "headless", CLS, lambda tensors: tensors.pop("classifier.bias"))
    code, out, err = verify(folder)
    assert (code, out) == (2, "")
    assert "newly initialised: classifier.bias" in err
    (folder / "config.json").unlink()
    code, out, err = verify(folder)
    assert (code, out) == (2, "")
    assert "No config.json beside " in err


@needs_all
def test_what_no_model_takes_is_named_once(verify: Run, tmp_path: Path) -> None:
    folder = changed(tmp_path, CLS, lambda tensors: tensors.update(odd=np.zeros(1, np.float32)))
    code, _, err = verify(folder, "--backends", "torch,flax")
    assert code == 0
    assert err.startswith("vit: warning: 1 tensors of ")
    assert err.count("\n") == 1
