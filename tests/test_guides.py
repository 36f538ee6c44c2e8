"""The commands in the `sh` boxes of docs/finetune.md and docs/scale.md run as they stand, from top to bottom."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from test_readme import run_blocks
from trainings import EXAMPLES, FRAMEWORKS, ROOT, need

from vit_core.app.cli import main


def commands(document: str) -> list[str]:
    """The lines of the boxes of a guide."""
    boxes = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / document).read_text(), re.DOTALL)
    return [line.partition("  #")[0] for box in boxes for line in box.splitlines()]


def run(line: str, monkeypatch: Any) -> None:
    """Run one command in this process; one of a framework that is not installed is left out."""
    program, *arguments = shlex.split(line)
    if program == "vit":
        assert main(arguments) == 0, line
        return
    assert program == "python", line
    script = EXAMPLES / Path(arguments[0]).name
    assert arguments[0] == f"examples/{script.name}" and script.is_file(), line
    for name in FRAMEWORKS:
        if script.stem.endswith(f"_{name}"):
            try:
                need(name)
            except pytest.skip.Exception:
                return
    monkeypatch.setattr(sys, "argv", [str(script), *arguments[1:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert not ended.value.code, line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
def test_the_commands_of_the_fine_tuning_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    need("torch")
    monkeypatch.chdir(tmp_path)
    for line in commands("finetune.md"):
        run(line, monkeypatch)
    assert "Resized: ('vit.embeddings.position_embeddings', (6, 6), (12, 12), 'hf')" in capsys.readouterr().out
    for name in ("my-vit", "my-larger", "my-finetuned"):
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


def test_the_guide_names_every_flag() -> None:
    need("torch")
    from finetuning import FineTuning
    from pretraining import PreTraining

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
