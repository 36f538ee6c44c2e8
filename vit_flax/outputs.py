"""The shared output classes, as pytrees: jit, grad, vmap and pmap return them intact, and jax.export saves them."""

from dataclasses import fields

import jax
from jax import export

from vit_core.outputs import *  # noqa: F403
from vit_core.outputs import OUTPUTS

for _output in OUTPUTS:
    jax.tree_util.register_dataclass(_output, data_fields=[f.name for f in fields(_output)], meta_fields=[])
    export.register_pytree_node_serialization(
        _output,
        serialized_name=f"vit_core.outputs.{_output.__name__}",
        serialize_auxdata=lambda _: b"",
        deserialize_auxdata=lambda _: (),
    )
