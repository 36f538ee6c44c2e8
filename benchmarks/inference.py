"""Classifying with ViT-B/16 at 224 pixels on two threads: this package against transformers, weights equal.

Beside the ratio of times: the arithmetic rate of ours as a fraction of what torch.mm reaches, in the same rounds, on
the matrices of the MLP (batch * 197 x 768 by 768 x 3072).

python benchmarks/inference.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from harness import OURS, THEIRS, arguments, forward_flops, interleaved, ratio, report
from models import CASES, CONFIG, MLP, TOKENS, WIDTH, pair, pixels


@torch.inference_mode()
def measure(models: dict[str, Any], batch: int, dtype: str, rounds: int, seconds: float) -> dict[str, Any]:
    """The ratio of times of one case, and our arithmetic rate."""
    x = pixels(batch, dtype)
    logits = {name: model(pixel_values=x).logits for name, model in models.items()}
    torch.testing.assert_close(logits[OURS], logits[THEIRS])
    a, b = x.new_ones(batch * TOKENS, WIDTH), x.new_ones(WIDTH, MLP)
    calls = {name: (lambda model=model: model(pixel_values=x)) for name, model in models.items()}
    times = interleaved({**calls, "mm": lambda: torch.mm(a, b)}, min_rounds=rounds, min_seconds=seconds)
    mm_rate = 2 * a.numel() * MLP / np.median(times["mm"])
    rate = forward_flops(CONFIG, batch) / np.median(times[OURS])
    return {**ratio(times[OURS], times[THEIRS]), "fraction of mm's FLOP/s": round(float(rate / mm_rate), 2)}


def main() -> None:
    given = arguments(__doc__, rounds=20, seconds=10.0)
    torch.set_num_threads(2)
    results = {}
    for dtype in dict.fromkeys(dtype for dtype, _ in CASES):
        models = {name: model.eval() for name, model in pair(dtype).items()}
        for batch in (batch for case, batch in CASES if case == dtype):
            results[f"inference, {dtype}, batch {batch}"] = measure(models, batch, dtype, given.rounds, given.seconds)
    report("Time of this package as a fraction of transformers'", results, given.json)


if __name__ == "__main__":
    main()
