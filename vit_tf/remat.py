"""Gradient checkpointing: a layer whose activations are recomputed in the backward pass (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow import Tensor

from vit_core import calls


def rematerialized(layer: keras.layers.Layer) -> Callable[..., Any]:
    """`layer` by Keras's remat: a function of its tensors, in which dropout draws the same masks both times.

    Its random seeds stand where they stood before, so that recomputing starts where computing did; they move on once,
    outside.
    """
    weights = {id(v) for v in layer.weights}
    seeds = [v for v in layer.variables if id(v) not in weights]  # the state of its random numbers is no weight

    def call(*inputs: Any, options: calls.Options, training: bool) -> Any:
        flat = tf.nest.flatten(inputs)  # inputs are tensors, None, or tuples of them
        given = [i for i, tensor in enumerate(flat) if tensor is not None and tensor.dtype.is_floating]
        states = [(seed, tf.identity(seed.value)) for seed in seeds]

        def run(*present: Tensor) -> Any:
            tensors: list[Tensor | None] = list(flat)
            for i, tensor in zip(given, present, strict=True):
                tensors[i] = tensor
            with keras.StatelessScope(state_mapping=states):
                return layer(*tf.nest.pack_sequence_as(inputs, tensors), options=options, training=training)

        result = keras.remat(run)(*(flat[i] for i in given))
        for seed in seeds:
            seed.assign_add([0, 1])
        return result

    return call
