"""How a framework is imported: in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, Python does not look for garbage, as it was within before.

    An import makes many objects and hardly any garbage; looking for it would take an eighth (PyTorch, JAX) to a fifth
    (TensorFlow) of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
