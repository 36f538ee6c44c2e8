"""One way to compare numbers, and a record of how near each comparison came to its bound.

With VIT_TRIO_COMPARISONS naming a file, every comparison adds a line to it: the test, what was compared, the error and
the bound. `make portable` reads them (tests/portable.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

RECORD = "VIT_TRIO_COMPARISONS"
SMALLEST = float(np.finfo(np.float32).tiny)  # that a difference is measured by: of zeros, none may differ


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every array of a nest of tuples, lists, dicts and outputs of any framework, by its path; None is nothing."""
    if isinstance(value, Mapping) or hasattr(value, "to_tuple"):
        for key, item in value.items():
            yield from leaves(item, f"{name}/{key}")
    elif isinstance(value, tuple | list):
        for i, item in enumerate(value):
            yield from leaves(item, f"{name}/{i}")
    elif value is not None:
        if hasattr(value, "detach"):  # PyTorch's, whose bfloat16 NumPy does not know
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        yield name, np.asarray(value)


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference of two arrays, relative to the largest expected value."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
    return float(difference / max(float(np.abs(expected).max(initial=0.0)), SMALLEST))


def assert_close(
    actual: Any, expected: Any, bound: float, what: str = "", each: bool = False, least: float = 0.0
) -> None:
    """Nests of equal structure, shapes and dtypes, no number further apart than `bound`, relative to the largest.

    That is the largest of the whole nest, or `least` where that is more; with `each`, every number is measured by
    itself. Python's own numbers have no dtype that would have to be equal.
    """
    found, wanted = dict(leaves(actual)), dict(leaves(expected))
    assert found.keys() == wanted.keys(), f"{what}: {sorted(found)}, expected {sorted(wanted)}"
    assert wanted, f"{what}: there is nothing to compare"
    largest = max((float(np.abs(array).max(initial=0.0)) for array in wanted.values()), default=0.0)
    typed = not (isinstance(actual, float | int | list) or isinstance(expected, float | int | list))
    errors = {}
    for name, array in wanted.items():
        assert found[name].shape == array.shape, f"{what}{name}: {found[name].shape}, expected {array.shape}"
        assert not typed or found[name].dtype == array.dtype, f"{what}{name}: {found[name].dtype}, not {array.dtype}"
        measure = np.maximum(np.abs(array.astype(np.float64)) if each else largest, max(least, SMALLEST))
        difference = np.abs(found[name].astype(np.float64) - array.astype(np.float64))
        errors[name] = float((difference / measure).max(initial=0.0))
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf))
    assert_within(errors[worst], bound, f"{what}{worst}")


def assert_within(error: float, bound: float, what: str = "") -> None:
    """An error that was measured is no more than its bound. Adds both to the record, where one is kept."""
    if path := os.environ.get(RECORD):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" ", 1)[0]
        with open(path, "a") as file:
            file.write(json.dumps({"test": test, "what": what, "error": error, "bound": bound}) + "\n")
    assert error <= bound, f"{what}: {error:.1e} apart, relative to the largest value; {bound:.1e} is allowed"
