"""Tensor parallelism: which axis of each parameter is split over the devices of a mesh, from the table of parameters.

Shoeybi et al. 2019, "Megatron-LM", section 3: the first matrix of a block (query, key, value; the first of the MLP) is
split by its outputs, the second (the projection of the attention; the second of the MLP) by its inputs, so that a block
needs one sum over the devices. Everything else is on all of them.
"""

from __future__ import annotations

from jax.sharding import PartitionSpec

from vit_core.params import Spec
from vit_flax.base import FlaxViTPreTrainedModel, Params

BY_OUTPUTS = (
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "intermediate.dense",
    "mlp.weights_in",
)  # fmt: skip
BY_INPUTS = ("attention.output.dense", "output.dense", "mlp.weights_out")


def partition_specs(model: FlaxViTPreTrainedModel, axis: str = "model") -> Params:
    """A tree like `model.params` with the PartitionSpec of each parameter; `axis` is the mesh's name for the devices.

    The model may be one of `_do_init=False`. The number of heads and `intermediate_size` should be multiples of the
    number of devices along `axis`: jax.device_put refuses widths that can't be divided, and a head that is cut costs
    communication.
    """
    flat = {path: _partition_spec(spec, axis) for path, spec in model.specs().items()}
    return model._tree(flat, lambda layers: PartitionSpec(None, *layers[0]))


def _partition_spec(spec: Spec, axis: str) -> PartitionSpec:
    module = spec.row.name.partition("{}.")[2]  # the name within its layer
    if module not in (*BY_OUTPUTS, *BY_INPUTS):
        return PartitionSpec()
    if module in BY_OUTPUTS:
        return PartitionSpec(None, axis) if spec.leaf == "weight" else PartitionSpec(axis)
    return PartitionSpec(axis, None) if spec.leaf == "weight" else PartitionSpec()
