"""The shared output classes, as pytrees: jit, grad, vmap and pmap return them intact."""

from dataclasses import fields

import jax

from vit_core.outputs import OUTPUTS, BaseModelOutputWithPooling, ImageClassifierOutput, MaskedImageModelingOutput

__all__ = ["BaseModelOutputWithPooling", "ImageClassifierOutput", "MaskedImageModelingOutput"]

for _output in OUTPUTS:
    jax.tree_util.register_dataclass(_output, data_fields=[f.name for f in fields(_output)], meta_fields=[])
