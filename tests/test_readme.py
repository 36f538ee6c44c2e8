"""The Python of the README and the guides runs as it stands, from top to bottom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = (
    "docs/finetune.md",
    "docs/scale.md",
    "docs/features.md",
    "docs/quantize.md",
    "docs/deploy.md",
    "docs/serve.md",
)


def run_blocks(document: str, tmp_path: Path, monkeypatch: Any, capsys: Any) -> list[str]:
    """What the Python blocks of a document print, run one after another beside the assets."""
    (tmp_path / "vit_core").mkdir()
    shutil.copytree(ROOT / "vit_core" / "assets", tmp_path / "vit_core" / "assets")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL):
        exec(compile(block, document, "exec"), names)
    printed: list[str] = capsys.readouterr().out.splitlines()
    return printed


def test_readme(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("torch")
    printed = run_blocks("README.md", tmp_path, monkeypatch, capsys)
    picture = re.search(r"pictures/(\d)-", (ROOT / "README.md").read_text())
    assert picture is not None
    assert printed[0] == picture[1]
    assert printed[1] == "[('classifier.weight', (10, 64), (2, 64)), ('classifier.bias', (10,), (2,))]"
    assert printed[2] == "[('vit.embeddings.position_embeddings', (6, 6), (8, 8), 'hf')]"
    assert f"'label': '{picture[1]}'" in printed[3]
    assert (tmp_path / "my-vit" / "model.safetensors.index.json").is_file()


def test_jax_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("flax")
    printed = run_blocks("docs/jax.md", tmp_path, monkeypatch, capsys)
    picture = re.search(r"pictures/(\d)-", (ROOT / "docs" / "jax.md").read_text())
    assert picture is not None
    assert printed == [f"Predicted class: {picture[1]}", "True", "(1, 37, 64)", "632,404,480 parameters"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
def test_keras_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("vit_tf")
    printed = run_blocks("docs/keras.md", tmp_path, monkeypatch, capsys)
    picture = re.search(r"pictures/(\d)-", (ROOT / "docs" / "keras.md").read_text())
    assert picture is not None
    assert printed == [
        f"Predicted class: {picture[1]}",
        "Right: 1.0",
        "The same loss: True",
        "(12, 10)",
        "(12, 10)",
        "(12, 10)",
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
    ]


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md", "docs/jax.md", "docs/keras.md", "docs/convert.md", *GUIDES):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / document).parent.joinpath(target).exists(), target
