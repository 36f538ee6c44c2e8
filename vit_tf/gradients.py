"""The gradients of a class in Keras: how a label's logit follows the tokens and the attentions of every layer."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow import Tensor

from vit_core import calls
from vit_core.outputs import ClassGradients


def class_gradients(model: Any, pixel_values: Tensor, label: int | str) -> ClassGradients:
    """The gradients of the logit of a label, its number or name, for pixels (B, C, H, W), each picture's of its own.

    Raises ValueError for a model without logits, and for a label that it has not.
    """
    pixels = tf.convert_to_tensor(pixel_values)
    with tf.GradientTape() as tape:
        tape.watch(pixels)  # so that a frozen model has gradients too
        output = model(pixels, output_attentions=True, output_hidden_states=True, return_dict=True)
        number = calls.explained(model.config, output, label)
        logit = tf.reduce_sum(output.logits[:, number])
    states, attentions = output.hidden_states[:-1], output.attentions
    found = tuple(tape.gradient(logit, [*states, *attentions]))
    return ClassGradients(states, attentions, found[: len(states)], found[len(states) :])
