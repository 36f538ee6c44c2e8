"""`pytest --device cuda`: the suite on a card, and what of it makes no sense there.

PyTorch's default device becomes the card, so that models, read or built, are there, and the adapter of `adapters.py`
moves inputs to a model and outputs back. JAX takes a card by itself; with `JAX_PLATFORMS=cuda` a PyTorch that sees none
stays on the processor. Float32 is computed in float32, and not in TF32, as bounds are those of float32.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest

# Why the tests of a file are left out. Files that are not named run.
FILES = "reads, writes or serves files, and no model runs"
REPOSITORY = "is about the repository and its documents"
CORE = "is the core's arithmetic, in NumPy"
SCRIPTS = "trains by `vit` or the scripts of examples/, which choose their devices"
SEVERAL = "starts several processes, each of which would need a card"
PROCESSOR = "measures the processor, or runs there by itself"
TENSORFLOW = "is TensorFlow's, which this suite runs on the processor"
REASONS = {
    FILES: (
        "checkpoint checksums conversion convert_cli documents elsewhere fuzz h5 hub keras_h5 msgpack npz pytorch_bin "
        "saving"
    ),
    REPOSITORY: "guides mirror package readme reference_examples types",
    CORE: "config image_processing outputs params position",
    SCRIPTS: "equal_training finetune jax_examples train_cli",
    SEVERAL: "ray_example scale_jax scale_torch",
    PROCESSOR: "gpu_benchmark memory",
    TENSORFLOW: "keras_examples scale_keras tf",
}
LEFT_OUT = {f"test_{name}.py": reason for reason, names in REASONS.items() for name in names.split()}


def use_card() -> None:
    """Let models run on the card. Raises UsageError where PyTorch sees none, and JAX is not told to take one."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the frameworks share its memory
    os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
    if "jax" in sys.modules:  # a plugin has imported it
        sys.modules["jax"].config.update("jax_default_matmul_precision", "highest")
    if find_spec("torch") is None:
        return
    import torch

    if not torch.cuda.is_available():
        if "cuda" in os.environ.get("JAX_PLATFORMS", ""):
            return
        raise pytest.UsageError("--device cuda: PyTorch sees no CUDA device (JAX_PLATFORMS=cuda if JAX alone does).")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_default_device("cuda")


def left_out(item: pytest.Item) -> str | None:
    """Why a test is left out on a card: for its file, its backend, or by its mark; None for one that runs."""
    if reason := LEFT_OUT.get(item.path.name):
        return reason
    parameters = getattr(item, "callspec", None)
    backend = None if parameters is None else parameters.params.get("backend")
    if backend == "tf":
        return TENSORFLOW
    mark = item.get_closest_marker("processor")
    return str(mark.args[0]) if mark and mark.kwargs.get("backend") in (None, backend) else None
