"""BEiT-B/16 at 224 pixels, float32, on two threads: what a table of relative positions in each layer costs.

In every framework against the same model without them, and in PyTorch against transformers' BEiT with the same weights.

python benchmarks/beit.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from harness import OURS, THEIRS, arguments, interleaved, ratio, report

import vit_flax
import vit_tf
import vit_torch

WITHOUT = "without"
Calls = dict[str, Callable[[], Any]]


def config(biased: bool) -> Any:
    """BEiT-B/16, with a table of relative positions in each layer or without any."""
    return vit_torch.BeitConfig(num_labels=1000, use_relative_position_bias=biased)


def in_torch(x: np.ndarray, folder: str) -> Calls:
    """Logits of the models without and with relative positions, and of transformers' with them."""
    ours, bare = (vit_torch.BeitForImageClassification(config(biased), seed=0).eval() for biased in (True, False))
    ours.save_pretrained(folder)
    theirs = transformers.BeitForImageClassification.from_pretrained(folder).eval()
    pixels = torch.from_numpy(x)

    @torch.inference_mode()
    def logits(model: Any) -> Any:
        return model(pixels).logits

    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-3, atol=1e-4)
    return {name: partial(logits, model) for name, model in ((OURS, ours), (WITHOUT, bare), (THEIRS, theirs))}


def in_tf(x: np.ndarray, folder: str) -> Calls:
    """Logits in a tf.function."""
    import tensorflow as tf

    def of(biased: bool) -> Callable[[], Any]:
        model, pixels = vit_tf.TFBeitForImageClassification(config(biased), seed=0), tf.constant(x)
        logits = tf.function(lambda pixels: model(pixels, training=False).logits)
        return lambda: logits(pixels).numpy()

    return {OURS: of(True), WITHOUT: of(False)}


def in_jax(x: np.ndarray, folder: str) -> Calls:
    """Logits of the wrapper's compiled call."""

    def of(biased: bool) -> Callable[[], Any]:
        model = vit_flax.FlaxBeitForImageClassification(config(biased), seed=0)
        return lambda: np.asarray(model(x).logits)

    return {OURS: of(True), WITHOUT: of(False)}


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=8.0)
    found: dict[str, Any] = {}
    for name, calls in {"": in_torch, "tf, ": in_tf, "flax, ": in_jax}.items():
        for batch in (1, 8):
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)
            with TemporaryDirectory() as folder:
                times = interleaved(calls(x, folder), min_rounds=given.rounds, min_seconds=given.seconds)
            title = f"{name}BEiT B/16, batch {batch}"
            found[f"{title}, against itself without relative positions"] = ratio(times[OURS], times[WITHOUT])
            if THEIRS in times:
                found[title] = ratio(times[OURS], times[THEIRS])
    report("This package as a fraction of transformers'", found, given.json)


if __name__ == "__main__":
    main()
