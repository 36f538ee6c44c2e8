"""`vit diff` finds what differs between two checkpoints, and nothing where they are the same in another format."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from command import PEAK, Command, process
from conftest import CHECKPOINTS
from hub_server import HubServer, Repo, client_environment
from safetensors.numpy import load_file, save_file

from conversion import convert
from vit_core.app.cli import main
from vit_core.assets import DIGITS
from vit_core.config import AutoConfig

PICTURES = sorted((DIGITS / "pictures").iterdir())[:2]
BIAS, KERNEL = "classifier.bias", "vit.encoder.layer.1.output.dense.weight"
CLS = CHECKPOINTS / "cls" / "pt_safetensors"


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("COLUMNS", raising=False)  # a user's terminal would fold the tables
    return Command("vit", main, capsys)


def changed(folder: Path, change: Callable[[dict[str, np.ndarray]], object], **fields: Any) -> Path:
    """A copy of the digits model whose tensors, by name, were changed, and fields of its configuration."""
    folder.mkdir()
    tensors = load_file(DIGITS / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    AutoConfig.from_pretrained(DIGITS).copy(**fields).save_pretrained(folder)
    shutil.copy(DIGITS / "preprocessor_config.json", folder)
    return folder


def disagreement(vit: Command, *arguments: Any) -> dict[str, Any]:
    """The document of two that differ."""
    vit("diff", *arguments, "--json")
    assert (vit.code, vit.err) == (1, "")
    document: dict[str, Any] = json.loads(vit.out)
    assert not document["agree"]
    return document


@pytest.mark.parametrize("to", ["timm", "flax", "tf"])
def test_another_format_is_the_same(vit: Command, tmp_path: Path, to: str) -> None:
    convert(DIGITS, tmp_path / to, to=to)
    vit("diff", DIGITS, tmp_path / to)
    assert (vit.code, vit.out, vit.err) == (0, "the same: 88 tensors, the configuration\n", "")
    document = vit.json("diff", DIGITS, tmp_path / to)
    assert (document["agree"], document["compared"], document["tensors"], document["config"]) == (True, 88, [], {})


def test_what_differs_is_told(vit: Command, tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[BIAS] = np.append(tensors[BIAS], np.float32(0))
        tensors[KERNEL][3, 2] += 0.5
        del tensors["vit.layernorm.bias"]
        tensors["odd"] = np.zeros(1, np.float32)

    other = changed(tmp_path / "other", change, hidden_act="relu")
    document = disagreement(vit, DIGITS, other)
    found = {each.pop("name"): each for each in document["tensors"]}
    kernel = found.pop(KERNEL.removeprefix("vit."))
    largest = max(np.abs(load_file(folder / "model.safetensors")[KERNEL]).max() for folder in (DIGITS, other))
    assert kernel["absolute"] == pytest.approx(0.5, rel=1e-6)
    assert kernel["relative"] == pytest.approx(0.5 / float(largest), rel=1e-6)
    none = {"absolute": None, "relative": None, "ok": False}
    assert found == {
        "layernorm.bias": {"shapes": [[64], None], "dtypes": ["float32", None], **none},
        BIAS: {"shapes": [[10], [11]], "dtypes": ["float32", "float32"], **none},
        "odd": {"shapes": [None, [1]], "dtypes": [None, "float32"], **none},
    }
    assert document["config"] == {"hidden_act": ["gelu", "relu"]}
    vit("diff", DIGITS, other)
    assert (vit.code, vit.err) == (1, "")
    assert vit.out.splitlines()[-1] == "DIFFER: 4 of 89 tensors, 1 field of the configuration"
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in vit.out.splitlines() if line.strip()}
    assert lines["layernorm.bias"] == "64 float32 only in A"
    assert lines[BIAS] == "10, 11 float32 differs"
    assert lines["odd"] == "1 float32 only in B"
    assert lines["hidden_act"] == "gelu relu"


def test_a_tolerance_is_relative_and_a_dtype_alone_no_difference(vit: Command, tmp_path: Path) -> None:
    convert(DIGITS, tmp_path / "half", to="torch", dtype="bfloat16")
    document = disagreement(vit, DIGITS, tmp_path / "half")
    worst = max(each["relative"] for each in document["tensors"])
    assert 1e-4 < worst <= 2**-8
    document = vit.json("diff", DIGITS, tmp_path / "half", "--tolerance", worst)
    assert {tuple(each["dtypes"]) for each in document["tensors"]} == {("float32", "bfloat16")}
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert half[BIAS].dtype == ml_dtypes.bfloat16
    full = changed(tmp_path / "full", lambda t: t.update((n, a.astype(np.float32)) for n, a in half.items()))
    vit("diff", tmp_path / "half", full)
    assert (vit.code, vit.out.splitlines()[-1]) == (0, "the same: 88 tensors, the configuration")
    assert "bfloat16, float32" in vit.out


def test_what_is_no_number_in_both_is_the_same(vit: Command, tmp_path: Path) -> None:
    odd = [np.nan, np.inf, -np.inf]
    one = changed(tmp_path / "one", lambda t: t[BIAS].__setitem__(slice(3), odd))
    vit.json("diff", one, one)
    for name, values in (("nan", [0, np.inf, -np.inf]), ("infinity", [np.nan, -np.inf, -np.inf])):
        other = changed(tmp_path / name, lambda t, values=values: t[BIAS].__setitem__(slice(3), values))
        (found,) = disagreement(vit, one, other, "--tolerance", "10")["tensors"]
        assert (found["name"], found["absolute"]) == (BIAS, None)


def test_large_tensors_are_compared_block_by_block(
    vit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_core.app.cli.diff._BLOCK", 100)
    other = changed(tmp_path / "other", lambda t: t[KERNEL].__setitem__((-1, -1), 7))
    (found,) = disagreement(vit, DIGITS, other)["tensors"]
    last = load_file(DIGITS / "model.safetensors")[KERNEL][-1, -1]
    assert found["absolute"] == pytest.approx(7 - float(last))


def test_no_model_is_held_and_no_framework_imported(tmp_path: Path) -> None:
    """32 tensors of 8 MiB in each of two files."""
    config = AutoConfig.from_pretrained(DIGITS)
    tensors = load_file(DIGITS / "model.safetensors") | {f"odd.{i}": np.ones(1 << 21, np.float32) for i in range(32)}
    for name in ("one", "other"):
        config.save_pretrained(tmp_path / name)
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    code = PEAK + (
        "import sys; from vit_core.app.cli import main\n"
        f"main(['diff', {str(DIGITS)!r}, {str(DIGITS)!r}]); before = peak()\n"
        f"main(['diff', {str(tmp_path / 'one')!r}, {str(tmp_path / 'other')!r}])\n"
        "print(peak() - before, {'torch', 'tensorflow', 'jax'} & set(sys.modules), sep='|')"
    )
    first, second, last = process(sys.executable, "-c", code).stdout.splitlines()
    more, imported = last.split("|")
    assert (first, second) == ("the same: 88 tensors, the configuration", "the same: 120 tensors, the configuration")
    assert int(more) < 100 * 1024
    assert imported == "set()"


def test_outputs(vit: Command, tmp_path: Path, backend: Any) -> None:
    other = changed(tmp_path / "other", lambda t: t[BIAS].__setitem__(9, 100))
    options = ("--pictures", PICTURES[0], "--pictures", PICTURES[1], "--backend", backend.name)
    outputs = disagreement(vit, DIGITS, other, *options)["outputs"]
    assert (outputs["backend"], outputs["agree"]) == (backend.name, False)
    assert [each["labels"] for each in outputs["pictures"]] == [{"A": path.name[0], "B": "9"} for path in PICTURES]
    assert [each["output"] for each in outputs["differences"] if not each["ok"]] == ["logits"]
    vit("diff", DIGITS, other, *options)
    assert vit.out.splitlines()[-1] == "DIFFER: 1 of 88 tensors, outputs"
    vit("diff", DIGITS, DIGITS, *options)
    assert (vit.code, vit.out.splitlines()[-1]) == (0, "the same: 88 tensors, the configuration, outputs")


def test_revisions(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    other = changed(tmp_path / "other", lambda t: t[BIAS].__setitem__(9, 100))
    code = (
        "import sys; from vit_core.app.cli import main\n"
        "diff = ['diff', 'org/vit', 'org/vit', '--backend', 'torch', '--pictures', sys.argv[1]]\n"
        "codes = [main([*diff, '--revision', 'old']), main([*diff, '--revision', 'old', '--revision', 'main'])]\n"
        "print(codes)"
    )
    with HubServer() as server:
        repo = server.repos["org/vit"] = Repo()
        for folder, branch in ((DIGITS, "old"), (other, "main")):
            repo.commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}, branch)
        environment = client_environment(server, tmp_path / "home")
        result = process(sys.executable, "-c", code, PICTURES[0], env=environment)
    told = [line for line in result.stdout.splitlines() if line.startswith(("the same", "DIFFER", "["))]
    same = "the same: 88 tensors, the configuration, outputs"
    assert told == [same, "DIFFER: 1 of 88 tensors, outputs", "[0, 1]"], result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([DIGITS], "Missing argument 'B'"),
        ([DIGITS, "./nope"], "The folder './nope' does not exist"),
        ([DIGITS, DIGITS, "--tolerance", "-1"], "Invalid value for '--tolerance'"),
        ([DIGITS, DIGITS, *["--revision", "x"] * 3], "pass it once for both, or twice, got ['x', 'x', 'x']."),
        ([DIGITS, DIGITS, "--backend", "torch"], "--backend runs the models on --pictures: name some"),
        ([DIGITS, CLS, "--pictures", PICTURES[0]], "the same pixels, but image_size is 24 in A and 32 in B."),
        (
            [DIGITS, CHECKPOINTS / "base" / "pt_safetensors", "--pictures", PICTURES[0]],
            "A is a ViTForImageClassification, B a ViTModel.",
        ),
        ([DIGITS, DIGITS, "--pictures", "nope.png"], "There is no image file nope.png"),
    ],
)
def test_bad_input_is_one_line(vit: Command, arguments: list[Any], message: str) -> None:
    assert message in vit.refused("diff", *arguments)
