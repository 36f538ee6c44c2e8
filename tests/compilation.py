"""How JAX and TensorFlow compile in the suite: quickly, since tests compile much and compute little; and what JAX has
compiled, once for all processes.

`make portable` compiles as users do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory
from typing import Any

# An XLA that does not know a flag of XLA_FLAGS ends the process. The first two are what JAX tells its own.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Older emitters of loops, which take half the time.
EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
AS_USERS = {"xla_cpu_use_fusion_emitters": True}  # compiler_options of jax.jit


def compile_quickly() -> None:
    """For this process and those that it starts; variables that are set stay."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ.setdefault("XLA_FLAGS", f"{QUICK} {EMITTERS}" if _release("jaxlib") >= (0, 10) else QUICK)


def leave_graphs() -> None:
    """TensorFlow, where it has been imported, runs graphs as they were traced, without what rewrites them first."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow and os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") == "1":
        tensorflow.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def remember_shapes() -> None:
    """Linen, where Flax has been imported, traces an initialiser once, not in every call that asks for its shape.

    A parameter that has another shape, or is not there, is left to Linen.
    """
    linen = sys.modules.get("flax.core.scope")
    if linen is None or os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") != "1" or hasattr(linen.Scope, "plain_param"):
        return
    import jax

    @cache
    def shape_of(*initialiser: Any) -> Any:
        init, *given = initialiser
        return getattr(jax.eval_shape(lambda: init(jax.random.key(0), *given)), "shape", None)

    def param(scope: Any, name: str, *initialiser: Any, **others: Any) -> Any:
        value = scope.get_variable("params", name)
        shape = getattr(value, "shape", None)  # none of what is not there, or is more than an array
        with suppress(TypeError):  # of what can't be remembered: a shape in a list
            if shape is not None and shape == shape_of(*initialiser):
                scope.reserve(name, "params")
                return value
        return scope.plain_param(name, *initialiser, **others)

    linen.Scope.plain_param, linen.Scope.param = linen.Scope.param, param


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within, what this process or one that it starts has compiled, none of them compiles again."""
    if _release("jaxlib") < (0, 10) or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="vit-trio-jax-") as folder:
        # However small it is, and however short it took.
        kept = {"COMPILATION_CACHE_DIR": folder, "PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        kept["PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        os.environ.update({f"JAX_{name}": value for name, value in kept.items()})
        yield


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, version(package).split(".")[:2]))
    except PackageNotFoundError:
        return (0,)
