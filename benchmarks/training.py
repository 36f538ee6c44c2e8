"""One training step of ViT-B/16 at 224 pixels on two threads: forward, loss, backward and AdamW, against transformers.

python benchmarks/training.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import OURS, THEIRS, arguments, interleaved, ratio, report
from models import CASES, pair, pixels


def training_step(model: Any, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that trains the model for one step and returns the loss."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(pixel_values=x, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(batch: int, dtype: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The ratio of times of one case."""
    x, labels = pixels(batch, dtype), torch.arange(batch)
    steps = {name: training_step(model, x, labels) for name, model in pair(dtype).items()}
    losses = {name: step() for name, step in steps.items()}
    torch.testing.assert_close(losses[OURS].float(), losses[THEIRS].float(), rtol=1e-2, atol=0)
    times = interleaved(steps, min_rounds=rounds, min_seconds=seconds)
    return ratio(times[OURS], times[THEIRS])


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=15.0)
    torch.set_num_threads(2)
    results = {
        f"training step, {dtype}, batch {batch}": measure(batch, dtype, given.rounds, given.seconds)
        for dtype, batch in CASES
    }
    report("Time of this package as a fraction of transformers'", results, given.json)


if __name__ == "__main__":
    main()
