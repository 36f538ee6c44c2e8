"""The shared output classes, as nests of Keras: fit and predict return them intact. To TensorFlow's they are dicts."""

from __future__ import annotations

from typing import Any

import optree

from vit_core.outputs import *  # noqa: F403
from vit_core.outputs import OUTPUTS


def _register(output: Any) -> None:
    def flatten(value: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        return value.to_tuple(), tuple(value)

    def rebuild(names: Any, values: Any) -> Any:
        found = output()
        for name, value in zip(names, values, strict=True):
            found[name] = value  # None too, such as the names of outputs that have none
        return found

    optree.register_pytree_node(output, flatten, rebuild, namespace="keras")


for _output in OUTPUTS:
    _register(_output)
