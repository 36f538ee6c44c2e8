"""The shared output classes, as pytrees: torch.export and torch.func see the tensors in them."""

import torch

from vit_core.outputs import *  # noqa: F403
from vit_core.outputs import OUTPUTS

for _output in OUTPUTS:
    torch.export.register_dataclass(_output, serialized_type_name=f"vit_core.outputs.{_output.__name__}")
