"""The shared output classes, as nests of Keras and of TensorFlow: fit, predict and tf.function return them intact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree

from vit_core.outputs import (
    OUTPUTS,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)

__all__ = ["BaseModelOutputWithPooling", "ImageClassifierOutput", "MaskedImageModelingOutput"]


def _register(output: Any) -> None:
    def flatten(value: ModelOutput) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        return value.keys(), value.values()

    def unflatten(_: Any, names: tuple[str, ...], values: Sequence[Any]) -> ModelOutput:
        result: ModelOutput = output(**dict(zip(names, values, strict=True)))
        return result

    output.__tf_flatten__ = flatten  # what tf.nest asks of a dataclass
    output.__tf_unflatten__ = classmethod(unflatten)
    optree.register_pytree_node(
        output,
        lambda value: (value.values(), value.keys()),
        lambda names, values: unflatten(output, names, values),
        namespace="keras",
    )


for _output in OUTPUTS:
    _register(_output)
