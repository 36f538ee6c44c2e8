"""The Python of the README and the guides runs as it stands, from top to bottom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from vit_core.assets import DIGITS

ROOT = Path(__file__).parent.parent


def run_blocks(
    document: str, tmp_path: Path, monkeypatch: Any, capsys: Any, library: str = "", digits: Path = DIGITS
) -> list[str]:
    """What the Python blocks of a document print, run one after another beside the assets, with `digits` as the model.

    Those that need a `library` which the suite has not are titled with its name, and run only where they are asked for.
    """
    shutil.copytree(ROOT / "vit_core" / "assets", tmp_path / "vit_core" / "assets")
    shutil.copytree(digits, tmp_path / "vit_core" / "assets" / "digits", dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    title = f' title="With {library}"' if library else ""
    for block in re.findall(rf"```python{title}\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        exec(compile(block, document, "exec"), names)
    printed: list[str] = capsys.readouterr().out.splitlines()
    return printed


def test_readme(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("torch")
    printed = run_blocks("README.md", tmp_path, monkeypatch, capsys)
    picture = re.search(r"pictures/(\d)-", (ROOT / "README.md").read_text())
    assert picture is not None
    assert printed[0].startswith(f"[{{'label': '{picture[1]}'")
    assert printed[1] == picture[1]
    assert printed[2] == "[('classifier.weight', (10, 64), (2, 64)), ('classifier.bias', (10,), (2,))]"
    assert printed[3] == "[('vit.embeddings.position_embeddings', (6, 6), (8, 8), 'hf')]"
    assert (tmp_path / "my-vit" / "model.safetensors.index.json").is_file()


def test_torch_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("torch")
    assert run_blocks("docs/torch.md", tmp_path, monkeypatch, capsys) == [
        "Predicted class: 2",
        "['classifier.weight', 'classifier.bias']",
        "The loss fell: True",
        "odd",
        "0.000 1.000",
        "True",
        "(1, 2)",
        "['classifier.weight', 'classifier.bias']",
        "14 0.0005",
        "(1, 37, 64)",
        "(1, 4, 37, 37)",
    ]


@pytest.mark.parametrize("library", ["transformers", "lightning", "peft"])
@pytest.mark.filterwarnings("ignore")  # of that library
def test_torch_guide_with(library: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip(library)
    printed = run_blocks("docs/torch.md", tmp_path, monkeypatch, capsys, library)
    expected = {"transformers": "['epoch', 'eval_loss']", "lightning": "True", "peft": "trainable params: 10,890"}
    assert any(line.startswith(expected[library]) for line in printed), printed


def test_jax_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("flax")
    pytest.importorskip("optax")
    printed = run_blocks("docs/jax.md", tmp_path, monkeypatch, capsys)
    picture = re.search(r"pictures/(\d)-", (ROOT / "docs" / "jax.md").read_text())
    assert picture is not None
    assert printed == [
        f"Predicted class: {picture[1]}",
        "True",
        "(1, 37, 64)",
        "632,404,480 parameters",
        "True",
        "14 groups",
        "On each device: {(2, 10)}",
    ]
    assert (tmp_path / "my-vit" / "preprocessor_config.json").is_file()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
def test_keras_guide(shallow: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """On a model of one layer."""
    pytest.importorskip("vit_tf")
    printed = run_blocks("docs/keras.md", tmp_path, monkeypatch, capsys, digits=shallow)
    picture = re.search(r"pictures/(\d)-", (ROOT / "docs" / "keras.md").read_text())
    assert picture is not None
    assert printed == [
        f"Predicted class: {picture[1]}",
        "Right: 1.0",
        "The same loss: True",
        "(12, 10)",
        "Loss: 0.1 3 rates",
        "(12, 10)",
        "(12, 10)",
        "One-hot: 1.0",
        "True",
        "(12, 37, 64)",
        "(12, 37, 64)",
        "True",
        "(12, 37, 64)",
        "['config.json', 'preprocessor_config.json', 'tf_model.h5']",
        "True",
        "bfloat16 float32 bfloat16",
        "Loss: 0.1",
        "1.0",
        "(12, 10)",
    ]


def test_links_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert document.parent.joinpath(target).exists(), f"{document.name}: {target}"
