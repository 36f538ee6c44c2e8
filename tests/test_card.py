"""What `pytest --device cuda` leaves out, and says about it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import card
import pytest
from command import process

TESTS = Path(__file__).parent
LABELS = "ends PyTorch's work on the card by an assertion"


def collected(*arguments: Any, **variables: str) -> Any:
    return process(
        *(sys.executable, "-m", "pytest", "--collect-only", "-q", "--device", "cuda", *arguments),
        cwd=TESTS.parent,
        env={**os.environ, **variables},
    )


def test_files_that_are_left_out_are_there() -> None:
    assert {TESTS / name for name in card.LEFT_OUT} <= set(TESTS.glob("test_*.py"))


def test_a_machine_without_a_card_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a card")
    done = collected("tests/test_models.py", JAX_PLATFORMS="")
    assert done.returncode == 4
    assert done.stderr.startswith("ERROR: --device cuda: PyTorch sees no CUDA device")
    assert collected("tests/test_models.py", JAX_PLATFORMS="cuda").returncode == 0


def test_what_is_left_out_is_counted_by_its_reason(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "pretended.py").write_text("import card\ncard.use_card = lambda: None\n")
    path = f"{tmp_path}:{TESTS}"
    files = [f"tests/test_{name}.py" for name in ("models", "config", "h5", "torch")]
    done = collected("-p", "pretended", *files, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    ids, _, summary = done.stdout.partition("left out with --device cuda")
    reasons = dict(reversed(line.split(maxsplit=1)) for line in summary.splitlines() if line[:5].strip().isdigit())
    assert reasons.keys() == {card.CORE, card.FILES, card.TENSORFLOW, LABELS}
    assert int(reasons[LABELS]) == 3 and "[flax-label range]" in ids and "[torch-label range]" not in ids
    assert "test_h5.py" not in ids and "test_config.py" not in ids and "test_torch.py" in ids
    assert "[tf" not in ids
    assert int(reasons[card.TENSORFLOW]) == ids.count("[flax") == ids.count("[torch") + int(reasons[LABELS])
