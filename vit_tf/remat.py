"""Gradient checkpointing: a layer whose activations are recomputed in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from tensorflow import Tensor


def rematerialized(layer: keras.layers.Layer) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """`layer` by Keras's remat: a function of its tensors, in which dropout draws the same masks both times.

    The states of its random seeds go in as arguments, so that recomputing starts where computing did; they move on
    once, outside.
    """
    seeds = [v for v in layer.non_trainable_variables if v.dtype == "uint32"]

    def call(*tensors: Tensor | None, output_attentions: bool = False, **options: Any) -> tuple[Tensor, Tensor | None]:
        given = [i for i, tensor in enumerate(tensors) if tensor is not None]

        def run(states: list[Tensor], *present: Tensor) -> Any:
            inputs: list[Tensor | None] = [None] * len(tensors)
            for i, tensor in zip(given, present, strict=True):
                inputs[i] = tensor
            with keras.StatelessScope(state_mapping=list(zip(seeds, states, strict=True))):
                x, probs = layer(*inputs, output_attentions=output_attentions, **options)
            return (x, probs) if output_attentions else x

        result = keras.remat(run)([seed.value for seed in seeds], *(tensors[i] for i in given))
        for seed in seeds:
            seed.assign_add([0, 1])
        return result if output_attentions else (result, None)

    return call
