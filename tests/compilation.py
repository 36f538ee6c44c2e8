"""How JAX and TensorFlow compile in the suite: quickly, since tests compile much and compute little; and what JAX has
compiled, once for all processes.

`make portable` compiles as users do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from tempfile import TemporaryDirectory

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
