"""Classifying with ViT-B/16 at 224 pixels on two threads: this package against transformers and timm, weights equal.

Beside the ratio of times: the arithmetic rate of ours as a fraction of what a matrix product reaches, in the same
rounds, on the matrices of the MLP (batch * 197 x 768 by 768 x 3072), by MKL (torch.mm) or by oneDNN, whichever is
faster; and where our time goes.

python benchmarks/inference.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from harness import OURS, THEIRS, arguments, forward_flops, interleaved, ratio, report
from models import CASES, CONFIG, MLP, TOKENS, WIDTH, logits_of, models, pixels, shares


@torch.inference_mode()
def measure(found: dict[str, Any], batch: int, dtype: str, rounds: int, seconds: float) -> dict[str, Any]:
    """By rival, the ratio of times of one case; beside the first, our arithmetic rate and where our time goes."""
    x = pixels(batch, dtype)
    calls = {name: partial(logits_of, name, model, x) for name, model in found.items()}
    ours, *others = (call() for call in calls.values())
    for theirs in others:
        torch.testing.assert_close(ours, theirs)
    a, b = x.new_ones(batch * TOKENS, WIDTH), x.new_ones(MLP, WIDTH)
    products = {
        "MKL": lambda: torch.mm(a, b.t()),
        "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""),
    }
    times = interleaved({**calls, **products}, min_rounds=rounds, min_seconds=seconds)
    fastest = min(np.median(times[name]) for name in products)
    rate, limit = forward_flops(CONFIG, batch) / np.median(times[OURS]), 2 * a.numel() * MLP / fastest
    ratios = {name: ratio(times[OURS], times[name]) for name in found if name != OURS}
    ratios[THEIRS] |= {"fraction of a product's FLOP/s": round(float(rate / limit), 2), "shares": shares(calls[OURS])}
    return ratios


def main() -> None:
    given = arguments(__doc__, rounds=20, seconds=10.0)
    torch.set_num_threads(2)
    results = {}
    for dtype in dict.fromkeys(dtype for dtype, _ in CASES):
        found = {name: model.eval() for name, model in models(dtype).items()}
        for batch in (batch for case, batch in CASES if case == dtype):
            for name, row in measure(found, batch, dtype, given.rounds, given.seconds).items():
                results[f"inference, {dtype}, batch {batch} ({name})"] = row
    report("Time of this package as a fraction of", results, given.json)


if __name__ == "__main__":
    main()
