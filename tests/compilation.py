"""How JAX compiles in the suite: quickly, since tests compile much and compute little.

`make portable` compiles as users do.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

# XLA's older emitters of loops take half the time; an XLA that does not know a flag of XLA_FLAGS ends the process.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
AS_USERS = {"xla_cpu_use_fusion_emitters": True}  # compiler_options of jax.jit


def compile_quickly() -> None:
    """For this process and those that it starts; variables that are set stay."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if _release("jaxlib") >= (0, 10):
        os.environ.setdefault("XLA_FLAGS", QUICK)


def _release(package: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, version(package).split(".")[:2]))
    except PackageNotFoundError:
        return (0,)
