"""The shared output classes, as nests of Keras and of TensorFlow: fit, predict and tf.function return them intact."""

from __future__ import annotations

from typing import Any

import optree

from vit_core.outputs import (
    OUTPUTS,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)

__all__ = ["BaseModelOutputWithPooling", "ImageClassifierOutput", "MaskedImageModelingOutput"]


def _register(output: Any) -> None:
    def names_and_values(value: Any) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        return value.keys(), value.values()

    def values_and_names(value: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        return value.values(), value.keys()

    def rebuild(names: Any, values: Any) -> Any:
        return output(**dict(zip(names, values, strict=True)))

    output.__tf_flatten__ = names_and_values  # what tf.nest asks of a dataclass
    output.__tf_unflatten__ = staticmethod(rebuild)
    optree.register_pytree_node(output, values_and_names, rebuild, namespace="keras")


for _output in OUTPUTS:
    _register(_output)
