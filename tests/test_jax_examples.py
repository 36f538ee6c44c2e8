"""The JAX training scripts of examples/, run as a user runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from command import HANGS
from safetensors.numpy import load_file
from test_digits import LEARNT, ROOT, held_out  # noqa: F401  # a fixture
from tolerances import SAME_LOSS

from vit_core.config import ViTConfig
from vit_core.pictures.processing import ViTImageProcessor

for name in ("jax", "flax", "optax", "orbax.checkpoint", "sklearn"):
    pytest.importorskip(name)


def start(script: str | Path, *arguments: Any, dies: str = "", as_users: bool = False) -> subprocess.Popen[str]:
    """A script of examples/, or another by its path, on a model of one layer.

    `dies` is the function whose third call kills it; `as_users` compile, not as compilation.py says.
    """
    quick = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS") if as_users else ()
    env = {k: v for k, v in os.environ.items() if k not in quick}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "examples")]), "JAX_PLATFORMS": "cpu"}
    killer = [str(ROOT / "tests" / "dying.py"), dies, "3", "0"] if dies else []
    paths = [str(ROOT / "tests" / "one_layer.py"), str(ROOT / "examples" / script)]
    command = [sys.executable, "-W", "error", *killer, *paths, *map(str, arguments)]
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(script: str | Path, *arguments: Any, **how: Any) -> str:
    process = start(script, *arguments, **how)
    out, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    return out


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the scripts share as modules of this process, with a model of one layer."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(ViTConfig, "from_pretrained", partial(ViTConfig.from_pretrained, num_hidden_layers=1))
    config = import_module("jax").config
    x64 = config.jax_enable_x64  # which tests/adapters.py sets
    config.update("jax_enable_x64", False)
    yield
    config.update("jax_enable_x64", x64)


@pytest.mark.slow
def test_a_killed_training_ends_as_one_that_was_not(
    examples: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("jax_train.py", "--out", tmp_path / "killed", "--epochs", 3, "--batch", 128)
    # The second save waits for the first, which goes on beside the training.
    killed = start(*arguments, dies="orbax.checkpoint:CheckpointManager.save")
    _, err = killed.communicate(timeout=HANGS)
    assert killed.returncode == -signal.SIGKILL, err
    for out in ("whole", "killed"):
        import_module("jax_train").main(tmp_path / out, epochs=3, batch=128)
    resumed = re.search(r"Resumed after epoch (\d)", capsys.readouterr().out)
    assert resumed is not None and int(resumed[1]) in (1, 2)
    expected, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert expected.keys() == actual.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(actual[key], array, err_msg=key)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    print(run("jax_train.py", "--out", folder, "--epochs", 16, "--batch", 32, as_users=True))
    return folder


@pytest.mark.slow
def test_trained_to_the_end(backend: Any, trained: Path, held_out: Any) -> None:  # noqa: F811
    processor = ViTImageProcessor.from_pretrained(trained)
    model = backend.load("ViTForImageClassification", trained)
    pixels = processor(held_out.images(), return_tensors="np").pixel_values
    right = backend.call(model, pixel_values=pixels).logits.argmax(-1) == held_out.labels
    assert right.mean() >= LEARNT


# Both scripts in one process, in which JAX has eight devices.
BY_EIGHT = """
from jax_pmap import main as by_pmap
from jax_sharded import main as sharded
by_pmap(devices=8, steps=5)
print("==== sharded")
sharded(data=4, tensor=2, steps=5)
"""


def losses(output: str) -> np.ndarray:
    return np.array([float(value) for value in re.findall(r"^step \d+: loss (\S+)$", output, re.MULTILINE)])


@pytest.mark.slow
def test_eight_devices_have_the_losses_of_one(examples: None, tmp_path: Path) -> None:
    common, optax, seed, steps = import_module("jax_common"), import_module("optax"), 0, 5
    model, data = common.new_model(seed), common.load_digits()[0]
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(steps, 2e-3), weight_decay=0.05)
    state = {"params": model.params, "optimizer": optimizer.init(model.params)}
    step, expected = common.make_step(model.module, optimizer), []
    for each in islice(common.batches(data, 64, seed, epoch=0), steps):
        state, loss = step(state, each)
        expected.append(float(loss))
    (tmp_path / "by_eight.py").write_text(BY_EIGHT)
    pmapped, _, sharded = run(tmp_path / "by_eight.py").partition("==== sharded")
    assert_close(losses(pmapped), np.array(expected), SAME_LOSS, each=True)
    assert "Each device holds (64, 64) of an MLP kernel of (64, 128)" in sharded
    assert_close(losses(sharded), np.array(expected), SAME_LOSS, each=True)


def test_devices_that_do_not_divide_the_batch() -> None:
    process = start("jax_pmap.py", "--devices", 8, "--batch", 60)
    error = re.sub(r"[│\s]+", " ", process.communicate()[1])
    assert "--devices 8: give at most 8, and a divisor of --batch 60." in error
    assert process.returncode == 2
