"""The devices of this machine, by the names that callers give."""

from __future__ import annotations

from typing import Any

import torch


def torch_device(device: Any) -> torch.device:
    """The torch device of a name, a number, n for "cuda:n" and -1 for the CPU, or itself.

    Raises ValueError for one that this machine does not have, or that holds no numbers.
    """
    name = device
    if isinstance(device, int):
        name = "cpu" if device < 0 else f"cuda:{device}"
    try:
        found = torch.empty(0, device=name).device
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device={name!r} can't be used ({reason}): pass one that this machine has.") from error
    return found


def accelerator() -> str | None:
    """CUDA, where there is any."""
    return "cuda" if torch.cuda.is_available() else None
