"""The commands in the `sh` boxes of the guides in docs/ run as they stand, from top to bottom, and their code."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from test_export import in_this_process  # noqa: F401
from test_readme import run_blocks
from trainings import EXAMPLES, FRAMEWORKS, ROOT, need

from vit_core import keywords
from vit_core.app.backends import is_installed
from vit_core.app.cli import main
from vit_core.assets import DIGITS
from vit_core.pretrained import READING


def commands(document: str) -> list[str]:
    """The lines of the boxes of a guide."""
    boxes = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    return [line.partition("  #")[0] for box in boxes for line in box.splitlines()]


def run(line: str, monkeypatch: Any) -> None:
    """Run one command in this process; one of a framework that is not installed is left out."""
    program, *arguments = shlex.split(line)
    if program == "mkdir":
        Path(arguments[-1]).mkdir()
        return
    if program == "vit":
        if "--backend" in arguments and not is_installed(arguments[arguments.index("--backend") + 1]):
            return
        assert main(arguments) == 0, line
        return
    assert program == "python", line
    script = EXAMPLES / Path(arguments[0]).name
    assert arguments[0] == f"examples/{script.name}" and script.is_file(), line
    monkeypatch.setattr(sys, "argv", [str(script), *arguments[1:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code, line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:transformers' ViT has no place for a head on the mean")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
def test_the_commands_of_the_fine_tuning_guide(shallow: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """On a model of one layer where they name none."""
    need("torch")
    monkeypatch.chdir(tmp_path)
    for line in commands("finetune.md"):
        demo = line.startswith(("vit finetune", "vit pretrain")) and "--model" not in line
        run(f"{line} --model {shallow}" if demo else line, monkeypatch)
    assert "Resized: vit.embeddings.position_embeddings from 6x6 to 12x12." in capsys.readouterr().out
    for name in ("my-vit", "my-larger", "my-finetuned", "my-beit-finetuned"):
        assert (tmp_path / name / "model.safetensors").is_file()
    assert (tmp_path / "my-pretrained" / "reconstructions.png").is_file()


def test_the_code_of_the_fine_tuning_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    need("torch")
    printed = run_blocks("docs/finetune.md", tmp_path, monkeypatch, capsys)
    assert printed == [
        "0.178 False vit.embeddings.cls_token",
        "0.178 True vit.embeddings.patch_embeddings.projection.weight",
        "['head.weight', 'head.bias'] ['classifier.bias', 'classifier.weight']",
    ]


def test_the_page_of_the_family_is_what_the_package_says() -> None:
    for name in ("torch", "tensorflow", "jax"):
        pytest.importorskip(name)
    from family_page import PAGE, page

    assert PAGE.read_text() == page(), "write it again: python tests/family_page.py"


def test_the_guide_names_every_flag() -> None:
    need("torch")
    from vit_core.app.training.finetuning import FineTuning
    from vit_core.app.training.pretraining import PreTraining

    text = (ROOT / "docs" / "finetune.md").read_text()
    fields = {name for kind in (FineTuning, PreTraining) for name in kind.__dataclass_fields__} - {"pictures"}
    assert not [name for name in sorted(fields) if f"`--{name.replace('_', '-')}" not in text]


@pytest.mark.slow
def test_the_commands_of_the_scaling_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    need("torch")
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for line in commands("scale.md"):
        run(line, monkeypatch)
    assert "Epoch 1 is in my-gathered" in capsys.readouterr().out
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 101
    assert (tmp_path / "results.parquet").is_file()


@pytest.mark.slow
def test_the_commands_of_the_guide_to_features(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    need("torch")
    pytest.importorskip("pyarrow")
    shutil.copytree(ROOT / "vit_core" / "assets", tmp_path / "vit_core" / "assets")
    monkeypatch.chdir(tmp_path)
    for line in commands("features.md"):
        run(line, monkeypatch)
    printed = capsys.readouterr().out
    assert "200 embedded" in printed
    assert printed.count("Linear probe: ") == 2
    assert float(printed.rpartition("objects 2, j ")[2].split()[0]) >= 0.7
    drawn = ("similar.png", "attention.png", "components.png", "for-4.png", "nine.png", "my-found/007.png")
    for name in ("features.npy", "features.npy.json", "features.parquet", *drawn):
        assert (tmp_path / name).is_file()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
@pytest.mark.filterwarnings("ignore:2 tensors of .* are not used by ViTBackbone")
def test_the_code_of_the_guide_to_features(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for framework in FRAMEWORKS:
        need(framework)
    assert run_blocks("docs/features.md", tmp_path, monkeypatch, capsys) == [
        "(1, 64)",
        "(1, 64, 6, 6)",
        "Keras is as PyTorch: True",
        "JAX is as PyTorch: True",
        "['stage2', 'stage5'] [(1, 64, 6, 6), (1, 64, 6, 6)]",
        "37 64",
        "(1, 64) float32",
    ]


def test_the_numbers_of_the_guide_to_features(capsys: Any) -> None:
    """A picture or two on the edge may fall either way on another processor."""
    need("torch")
    import_module("torch").set_num_threads(1)  # the model is tiny: a second thread only waits
    text = (ROOT / "docs" / "features.md").read_text()
    stated = re.search(r"digits: ([\d.]+) %, weighted ([\d.]+) %, linear ([\d.]+) %", text)
    assert stated is not None
    found = []
    for weighted in (False, True):
        import_module("knn").main(weighted=weighted, as_json=True)
        found.append(json.loads(capsys.readouterr().out))
    accuracies = [found[0]["knn_accuracy"], found[1]["knn_accuracy"], found[0]["linear_accuracy"]]
    for number, accuracy in zip(stated.groups(), accuracies, strict=True):
        assert float(number) == pytest.approx(100 * accuracy, abs=0.6)


def test_the_numbers_of_the_guide_to_videos(tmp_path: Path, capsys: Any) -> None:
    """A pixel on the edge may fall either way on another processor."""
    need("torch")
    import_module("torch").set_num_threads(1)
    text = (ROOT / "docs" / "features.md").read_text()
    stated = re.search(r"J = ([\d.]+) at `--size 144`, ([\d.]+) at the 96 pixels", text)
    assert stated is not None
    import_module("moving_shape").main(tmp_path)
    masks = tmp_path / "masks"
    for number, size in zip(stated.groups(), (144, None), strict=True):
        capsys.readouterr()
        arguments = (tmp_path / "frames", masks / "000.png", tmp_path / "found")
        import_module("segment").main(*arguments, truth=masks, size=size, as_json=True)
        assert float(number) == pytest.approx(json.loads(capsys.readouterr().out)["j"], abs=0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of tf.lite.Interpreter, in this process
def test_the_guide_to_deployment(shallow: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """On a model of one layer."""
    pytest.importorskip("onnxruntime")
    for framework in FRAMEWORKS:
        need(framework)
    assert run_blocks("docs/deploy.md", tmp_path, monkeypatch, capsys, digits=shallow) == ["True 1 of 1", "2", "2"]
    for line in commands("deploy.md"):
        run(line, monkeypatch)
    found = {path.name for path in tmp_path.iterdir()}
    assert found >= {"digits", "digits.onnx", "digits.pt2", "digits.tflite", "digits.stablehlo", "digits.labels.txt"}
    assert found >= {"int8.onnx", "dynamic.tflite"}


def test_the_commands_of_the_guide_to_installing(monkeypatch: Any, capsys: Any) -> None:
    need("torch")
    monkeypatch.chdir(ROOT)
    for line in commands("install.md"):
        run(line, monkeypatch)
    assert "2-1466.png" in capsys.readouterr().out


def test_the_page_for_users_of_transformers_has_every_keyword() -> None:
    page = (ROOT / "docs" / "from-transformers.md").read_text()
    names = {name for name in (*keywords._ANYWAY, *keywords._INSTEAD) if not name.startswith("_")}
    assert not [name for name in sorted({*names, *READING}) if f"`{name}`" not in page]


@pytest.mark.filterwarnings("ignore")  # of fresh heads, of those that are left out, and of Keras
@pytest.mark.parametrize(("framework", "package"), [("torch", "vit_torch"), ("keras", "vit_tf")])
def test_what_does_here_what_timm_and_keras_hub_do(framework: str, package: str) -> None:
    """The first code of each line runs, on the digits."""
    need(framework)
    here = import_module(package)
    processor = here.AutoImageProcessor.from_pretrained(DIGITS)
    kind = "pt" if framework == "torch" else "tf"
    x = processor(DIGITS / "pictures" / "2-1466.png", return_tensors=kind).pixel_values
    model = here.AutoModelForImageClassification.from_pretrained(DIGITS)
    names = {**vars(here), "path": DIGITS, "processor": processor, "model": model, "x": x}
    names["features"] = model.base_model(x).last_hidden_state
    page = (ROOT / "docs" / "from-transformers.md").read_text()
    (table,) = re.findall(rf"\| in `{package}` \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    for line in table.splitlines():
        code = re.findall("`([^`]+)`", line.split(" | ")[1])[0]
        if not code.startswith(("vit-convert", "model.quantize")):  # which have tests of their own
            eval(code, names)


def test_every_error_of_the_page_about_them_is_one(monkeypatch: Any) -> None:
    """Its box raises it, or it is in the source of the package; what pip, CUDA and Keras say has no box."""
    for framework in ("torch", "jax"):
        need(framework)
    monkeypatch.chdir(ROOT)
    said = messages()
    elsewhere = {"No matching distribution found for vit-trio", "CUDA out of memory"}
    elsewhere |= {"Could not locate class 'TFViTForImageClassification'"}
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = re.findall(r"^### `([^\n]+)`\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    assert len(entries) == page.count("\n### ")
    for error, text in entries:
        if box := re.search(r"```python\n(.*?)```", text, re.DOTALL):
            with pytest.raises(Exception) as raised:  # noqa: PT011
                exec(compile(box[1], error, "exec"), {})
            assert quotes(error, str(raised.value)), error
        else:
            assert error in elsewhere or any(quotes(error, each) for each in said), error


def quotes(error: str, text: str) -> bool:
    """Whether the words of an error, which has three dots for values, stand in a text in their order."""
    end = 0
    for part in error.split("..."):
        if (start := text.find(part, end)) < 0:
            return False
        end = start + len(part)
    return True


def messages() -> list[str]:
    """The texts in the source of the packages, with three dots where values are put in."""
    found = []
    for package in ("vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found
