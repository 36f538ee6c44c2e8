"""The README's Python runs as it stands, from top to bottom."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def test_python_blocks(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("torch")
    (tmp_path / "vit_core").mkdir()
    shutil.copytree(ROOT / "vit_core" / "assets", tmp_path / "vit_core" / "assets")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    picture = re.search(r"pictures/(\d)-", blocks[0])
    assert picture is not None
    assert printed[0] == picture[1]
    assert printed[1] == "[('classifier.weight', (10, 64), (2, 64)), ('classifier.bias', (10,), (2,))]"
    assert printed[2] == "[('vit.embeddings.position_embeddings', (6, 6), (8, 8), 'hf')]"
    assert f"'label': '{picture[1]}'" in printed[3]
    assert (tmp_path / "my-vit" / "model.safetensors.index.json").is_file()


def test_links_lead_somewhere() -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
            assert (ROOT / target).exists(), target
