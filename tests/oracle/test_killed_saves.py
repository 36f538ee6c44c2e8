"""What saves that died leave to transformers: the old checkpoint or the new one, and where names of files don't allow
that an error; never a mixture."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from saves import NEW, OLD, SAVES, TARGETS, Model, deaths, loaded

from conversion import convert, read
from vit_core.pictures.processing import ViTImageProcessor

KINDS = list(itertools.product(SAVES, SAVES))
# Forks a process that saves without end, in turn the one model and the other, in every kind, and kills it.
SAVER = """
import itertools, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conversion import convert
from saves import NEW, OLD, SAVES, TARGETS, Model
def saving(begin):
    told = None if sys.argv[3] == "None" else float(sys.argv[3])
    turns = itertools.product(SAVES.values(), (NEW, OLD), SAVES.values())
    for kind, value, other in itertools.cycle(itertools.islice(turns, begin, None)):
        Model.of(value, told).save_pretrained(folder, **kind)
        Model.of(OLD + NEW - value, told).save_pretrained(folder, **other)
def converting(begin):
    for source in itertools.cycle(("one", "other") if begin % 2 else ("other", "one")):
        convert(folder.parent / source, folder, **TARGETS[sys.argv[3]])
folder = Path(sys.argv[2])
for line in sys.stdin:
    begin, delay = line.split()
    child = os.fork()
    if not child:
        (converting if sys.argv[3] in TARGETS else saving)(int(begin))
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


def kills(folder: Path, what: str, number: int) -> Iterator[None]:
    """Kill a process that saves to a folder, `number` times at random moments; after each, what is left can be read."""
    command, chance = [sys.executable, "-c", SAVER, Path(__file__).parents[1], folder, what], random.Random(0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as saver:
        assert saver.stdin is not None and saver.stdout is not None
        for _ in range(number):
            print(chance.randrange(32), chance.uniform(0, 0.3), file=saver.stdin, flush=True)
            assert saver.stdout.readline() == "\n"
            yield
        saver.stdin.close()


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
def test_random_kills(tmp_path: Path, told: float | None) -> None:
    """A hundred, of a process that saves in every kind over every other."""
    Model.of(OLD, told).save_pretrained(tmp_path)
    found: list[Any] = []
    for _ in kills(tmp_path, str(told), 100):
        said, value = loaded(tmp_path)
        assert said == (told or value)
        found.append(opened(tmp_path))
        assert found[-1] in (None, (said, value))
    print(f"{found.count(None)} refused")


@pytest.mark.parametrize("target", TARGETS)
def test_random_kills_of_conversions(tmp_path: Path, target: str) -> None:
    """Fifty of each target: what is left is one source's, whole, with the preprocessor that belongs to it."""
    for source, value in (("one", OLD), ("other", NEW)):
        Model.of(value).save_pretrained(tmp_path / source)
        ViTImageProcessor(size={"height": 4, "width": 4}, image_mean=[value] * 3).save_pretrained(tmp_path / source)
    folder = tmp_path / "target"
    convert(tmp_path / "one", folder, **TARGETS[target])
    found = []
    for _ in kills(folder, target, 50):
        checkpoint = read(folder, num_attention_heads=2, stored_image_size=4)
        (value,) = {float(number) for tensor in checkpoint.tensors.values() for number in tensor.read().ravel()}
        assert checkpoint.processor is not None
        assert checkpoint.processor["image_mean"][0] == pytest.approx(value)
        if TARGETS[target]["to"] == "torch":
            found.append(opened(folder))
            assert found[-1] in (None, (value, value))
    print(f"{found.count(None)} refused by transformers")
