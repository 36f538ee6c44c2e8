"""ViT-B/16 at 224 on two photographs: float32 and half precision against float64, within the errors stored beside this.

`python tests/test_full_size.py` measures them anew and writes them here and into the README. What a card gives is bound
by rounding alone; `python -m benchmarks.gpu --record` stores it under the card's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from adapters import BACKENDS
from closeness import assert_within, relative_error
from compilation import AS_USERS

from vit_core.config import ViTConfig
from vit_core.family import PARTS
from vit_core.files.tensor import Tensor
from vit_core.initialization import draw
from vit_core.params import specs
from vit_core.pictures.processing import ViTImageProcessor

pytest.importorskip("torch")  # in float64, what all are compared with
datasets = pytest.importorskip("sklearn.datasets")

CLS = "ViTForImageClassification"
DTYPES = ("float32", "bfloat16", "float16")
# Twice the usual deviation of initial weights: scores of attention are then spread by more than one, not nearly equal.
CONFIG = ViTConfig.variant("B/16", num_labels=1000, initializer_range=0.04)
STORED = Path(__file__).parent / "measured_errors.json"
MARGIN = 1.5  # of what is stored, the largest of every instruction set and number of threads of `make portable`
README = Path(__file__).parent.parent / "README.md"
MARKED = re.compile(r"(?<=<!-- errors -->\n).*?(?=<!-- /errors -->)", re.DOTALL)
HEADINGS = {"torch": "PyTorch", "tf": "TensorFlow", "flax": "JAX"}
PACKAGES = ("torch", "tensorflow", "keras", "jax", "flax", "numpy")


@cache
def photographs() -> np.ndarray:
    """scikit-learn's two sample pictures as pixels (2, 3, 224, 224) in float32."""
    pixels: np.ndarray = ViTImageProcessor()(datasets.load_sample_images().images, return_tensors="np").pixel_values
    return pixels


@cache
def weights() -> dict[str, Tensor]:
    """The seeded weights by canonical name in float32, with biases and norms moved from where they start."""
    found = {}
    for i, (name, spec) in enumerate(specs(CONFIG, PARTS[CLS]).items()):
        array = draw(spec, CONFIG, seed=0)
        if spec.leaf == "bias" or spec.init == "norm":
            array += np.random.default_rng(i).standard_normal(spec.shape, np.float32) * np.float32(0.1)
        found[name] = Tensor.of(array)
    return found


def run(backend: Any, dtype: str) -> Any:
    """The output for the photographs of a model that computes in a dtype, with its 13 hidden states."""
    model = getattr(backend.package, backend.prefix + CLS).from_tensors(CONFIG.copy(dtype=dtype), weights(), None)
    if backend.name == "flax":  # compiled as for users, not as for the rest of the suite (compilation.py)
        jit, static = import_module("jax").jit, import_module("vit_flax.base").STATIC
        model._apply = jit(model._apply, static_argnames=static, compiler_options=AS_USERS)
    return backend.call(model, pixel_values=photographs(), output_hidden_states=True)


@cache
def truth() -> Any:
    """What torch computes in float64."""
    return run(BACKENDS["torch"](), "float64")


def errors(output: Any) -> dict[str, float]:
    """The error of the logits, and of the worst of the hidden states."""
    states = zip(output.hidden_states, truth().hidden_states, strict=True)
    return {
        "hidden states": max(relative_error(actual, expected) for actual, expected in states),
        "logits": relative_error(output.logits, truth().logits),
    }


def top_5(logits: np.ndarray) -> list[list[int]]:
    """The five best classes of every picture, the best one first."""
    best: list[list[int]] = np.argsort(-logits)[:, :5].tolist()
    return best


def table(stored: dict[str, Any]) -> str:
    """The stored errors as the README shows them."""
    rows = [["dtype", "of", *HEADINGS.values()]]
    for dtype, outputs in stored["errors"].items():
        rows += [[dtype, output, *(f"{found[name]:.1e}" for name in HEADINGS)] for output, found in outputs.items()]
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    versions = ", ".join(f"{package} {number}" for package, number in stored["versions"].items())
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body, "", f"Measured with {versions}.", ""])


def write() -> None:
    """Measure every backend and write the table, here and into the README.

    What the same versions gave on another processor stays where it is larger.
    """
    versions, before = {package: version(package) for package in PACKAGES}, json.loads(STORED.read_text())
    known = before["errors"] if before["versions"] == versions else {}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, dtype in product(BACKENDS, DTYPES):
        for output, error in errors(run(BACKENDS[name](), dtype)).items():
            elsewhere = known.get(dtype, {}).get(output, {}).get(name, 0.0)
            found.setdefault(dtype, {}).setdefault(output, {})[name] = max(float(f"{error:.1e}"), elsewhere)
    stored = {**before, "versions": versions, "errors": found}
    STORED.write_text(json.dumps(stored, indent=2) + "\n")
    README.write_text(MARKED.sub(lambda _: table(stored), README.read_text()))


@pytest.fixture
def optimised(backend: Any) -> Iterator[None]:
    """JAX compiles as for users, not as for the rest of the suite (compilation.py)."""
    if backend.name != "flax":
        yield
        return
    jax = import_module("jax")
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_those_stored(backend: Any, dtype: str, request: pytest.FixtureRequest) -> None:
    output, stored = run(backend, dtype), json.loads(STORED.read_text())
    for name, error in errors(output).items():
        if request.config.getoption("--device") != "cpu":
            assert_within(error, tolerances.rounding(CONFIG, dtype), name)
            continue
        known = stored["errors"][dtype][name][backend.name]
        assert MARGIN * known <= tolerances.rounding(CONFIG, dtype), f"{name}: {known:.1e} is more than rounding"
        # One that is meant: `python tests/test_full_size.py` measures all and writes them down.
        assert_within(error, MARGIN * known, f"{name}, {known:.1e} with {stored['versions']}")
    if dtype == "float32":
        assert top_5(output.logits) == top_5(truth().logits)


def test_errors_of_cards_are_no_more_than_rounding() -> None:
    for card, frameworks in json.loads(STORED.read_text()).get("cards", {}).items():
        for framework, found in frameworks.items():
            for precision, measures in found["errors"].items():
                for measure, known in measures.items():
                    bound = tolerances.rounding(CONFIG, precision, gradient=measure == "gradients")
                    assert_within(known, bound, f"{card}, {framework}, {precision}, {measure}")


def test_pictures_are_told_apart() -> None:
    first, second = top_5(truth().logits)
    assert not set(first) & set(second)


def test_readme_quotes_the_stored_errors() -> None:
    assert MARKED.findall(README.read_text()) == [table(json.loads(STORED.read_text()))], (
        "run `python tests/test_full_size.py`, which measures all and writes them down"
    )


if __name__ == "__main__":
    write()
