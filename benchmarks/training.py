"""One training step of ViT-B/16 at 224 pixels on two threads: forward, loss, backward and AdamW, against transformers
and timm; and where our time goes.

python benchmarks/training.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import OURS, THEIRS, arguments, interleaved, ratio, report
from models import CASES, logits_of, models, pixels, shares


def training_step(name: str, model: Any, x: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A function that trains the model for one step and returns the loss."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5)

    def step() -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits_of(name, model, x), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def measure(batch: int, dtype: str, rounds: int, seconds: float) -> dict[str, Any]:
    """By rival, the ratio of times of one case; beside the first, where our time goes."""
    x, labels = pixels(batch, dtype), torch.arange(batch)
    steps = {name: training_step(name, model, x, labels) for name, model in models(dtype).items()}
    losses = {name: step() for name, step in steps.items()}
    for loss in losses.values():
        torch.testing.assert_close(losses[OURS].float(), loss.float(), rtol=1e-2, atol=0)
    times = interleaved(steps, min_rounds=rounds, min_seconds=seconds)
    ratios = {name: ratio(times[OURS], times[name]) for name in steps if name != OURS}
    ratios[THEIRS] |= {"shares": shares(steps[OURS])}
    return ratios


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=15.0)
    torch.set_num_threads(2)
    results = {
        f"training step, {dtype}, batch {batch} ({name})": row
        for dtype, batch in CASES
        for name, row in measure(batch, dtype, given.rounds, given.seconds).items()
    }
    report("Time of this package as a fraction of", results, given.json)


if __name__ == "__main__":
    main()
