"""The shared output classes, as pytrees: jit, grad, vmap and pmap return them intact, jax.export and Flax save them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
from flax import serialization
from jax import export

from vit_core.outputs import *  # noqa: F403
from vit_core.outputs import OUTPUTS, ModelOutput


def _to_state(output: ModelOutput[Any]) -> dict[str, Any]:
    return {name: serialization.to_state_dict(value) for name, value in output.items()}


def _from_state(output: ModelOutput[Any], state: Mapping[str, Any]) -> ModelOutput[Any]:
    """Raises ValueError for a state that has other fields than the output."""
    if state.keys() != output.keys():
        raise ValueError(f"The state of a {type(output).__name__} has {', '.join(state)}, not {', '.join(output)}.")
    found = output.replace()
    for name, value in state.items():
        found[name] = serialization.from_state_dict(output[name], value, name)
    return found


for _output in OUTPUTS:
    jax.tree_util.register_dataclass(_output, data_fields=[f.name for f in fields(_output)], meta_fields=[])
    serialization.register_serialization_state(_output, _to_state, _from_state)
    export.register_pytree_node_serialization(
        _output,
        serialized_name=f"vit_core.outputs.{_output.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )
