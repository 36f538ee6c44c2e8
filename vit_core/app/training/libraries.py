"""The libraries that training alone needs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

LIBRARIES = ("sklearn", "matplotlib", "tensorboardX")


def library(name: str) -> Any:
    """A module of one of `LIBRARIES`. Raises ImportError that says what to install."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'Training needs {", ".join(LIBRARIES)} ({error}): pip install "vit-trio[train]"') from error


def check_libraries() -> None:
    """Raise ImportError, before the first step, for a library that is asked for later."""
    for name in LIBRARIES:
        library(name)
