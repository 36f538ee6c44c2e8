"""A LiteRT file whose linear layers compute in 8-bit integers, by TensorFlow's converter.

Weights have a scale for each output channel. GELU, softmax, LayerNorm, residuals and the products of attention stay in
float32: LiteRT's int8 softmax has steps of 1/256, and a patch of 196 has less than that of an even attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vit_core.exports import INPUT, Exported

# What is not a linear layer or the projection of patches, of all members; moving values about follows what is moved.
FLOAT = (
    "ADD", "BATCH_MATMUL", "CONCATENATION", "DIV", "GELU", "LOGISTIC", "MEAN", "MUL", "RSQRT", "SOFTMAX",
    "SQUARED_DIFFERENCE", "SUB", "SUM", "TANH",
)  # fmt: skip
SMALLEST = 1024  # values of a weight that the converter quantises without calibration


def quantise(converter: Any, path: Path, wanted: Exported) -> tuple[int, int]:
    """Write a converter's model with its linear layers, and the patches, in int8.

    Returns how many linear layers of how many are in int8. Raises ValueError where any is not that should be.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    def pictures() -> Iterator[dict[str, Any]]:
        for i in range(len(wanted.calibration)):
            yield {INPUT: wanted.calibration[i : i + 1]}

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if wanted.calibration is None:
        content = converter.convert()
    else:
        converter.representative_dataset = pictures
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(FLOAT))
        quantiser = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_options=options)
        content = quantiser.get_nondebug_quantized_model()
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    weights = [
        graph.tensors[operator.inputs[1]]
        for graph in model.subgraphs
        for operator in graph.operators
        if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) == "FULLY_CONNECTED"
    ]
    left = [each for each in weights if flatbuffer_utils.type_to_name(each.type) != "INT8"]
    smallest = SMALLEST if wanted.calibration is None else 0
    if any(np.prod(each.shape) >= smallest for each in left) or len(left) == len(weights):
        names = ", ".join(each.name.decode() for each in left)
        raise ValueError(f"{len(weights) - len(left)} of {len(weights)} linear layers are in int8; not {names}")
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = None  # of which runtimes know nothing; a sixth of a small file
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    return len(weights) - len(left), len(weights)
