"""What saves that died leave to transformers: the old checkpoint or the new one, and where names of files don't allow
that an error; never a mixture."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from saves import NEW, OLD, SAVES, Model, deaths, loaded

KINDS = list(itertools.product(SAVES, SAVES))
# Forks a process that saves without end, in turn the one model and the other, in every kind, and kills it.
SAVER = """
import itertools, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from saves import NEW, OLD, SAVES, Model
folder, told = Path(sys.argv[2]), None if sys.argv[3] == "None" else float(sys.argv[3])
for line in sys.stdin:
    begin, delay = line.split()
    child = os.fork()
    if not child:
        turns = itertools.product(SAVES.values(), (NEW, OLD), SAVES.values())
        for kind, value, other in itertools.cycle(itertools.islice(turns, int(begin), None)):
            Model.of(value, told).save_pretrained(folder, **kind)
            Model.of(OLD + NEW - value, told).save_pretrained(folder, **other)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(flush=True)
"""


def opened(folder: Path) -> tuple[float, float] | None:
    """What transformers finds: what the configuration says and the number in every parameter; None if it refuses."""
    try:
        model, report = transformers.ViTForImageClassification.from_pretrained(folder, output_loading_info=True)
    except OSError:
        return None
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    (value,) = {float(number) for tensor in model.state_dict().values() for number in tensor.unique()}
    return model.config.initializer_range, value


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
@pytest.mark.parametrize(("before", "after"), KINDS)
def test_every_step(tmp_path: Path, before: str, after: str, told: float | None) -> None:
    Model.of(OLD, told).save_pretrained(tmp_path / "template", **SAVES[before])
    old, new = (told or OLD, OLD), (told or NEW, NEW)
    found = []
    for folder, _ in deaths(
        tmp_path / "template", lambda folder: Model.of(NEW, told).save_pretrained(folder, **SAVES[after])
    ):
        found.append(opened(folder))
        assert found[-1] in (None, old, new)
        assert loaded(folder) in (old, new)
        assert found[-1] in (None, loaded(folder))
    assert found[-1] == new
    by_one_rename = told is not None and not ("shards" in after and before == after)
    assert (None in found) == (not by_one_rename)
    print(*(f"{found.count(result)} {name}" for name, result in (("old", old), ("new", new), ("refused", None))))


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
def test_random_kills(tmp_path: Path, told: float | None) -> None:
    """A hundred, of a process that saves in every kind over every other."""
    Model.of(OLD, told).save_pretrained(tmp_path)
    arguments = [str(Path(__file__).parents[1]), str(tmp_path), str(told)]
    command, chance = [sys.executable, "-c", SAVER, *arguments], random.Random(0)
    found: list[Any] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdin is not None and saver.stdout is not None
        for _ in range(100):
            print(chance.randrange(32), chance.uniform(0, 0.3), file=saver.stdin, flush=True)
            assert saver.stdout.readline() == "\n"
            said, value = loaded(tmp_path)
            assert said == (told or value)
            found.append(opened(tmp_path))
            assert found[-1] in (None, (said, value))
        saver.stdin.close()
    print(f"{found.count(None)} refused")
