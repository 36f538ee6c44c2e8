"""The gradients of a class in PyTorch: how a label's logit follows the tokens and the attentions of every layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vit_core import calls
from vit_core.outputs import ClassGradients


@torch.enable_grad()
def class_gradients(model: Any, pixel_values: Tensor, label: int | str) -> ClassGradients:
    """The gradients of the logit of a label, its number or name, for pixels (B, C, H, W), each picture's of its own.

    Raises ValueError for a model without logits, and for a label that it has not.
    """
    pixels = pixel_values.detach().requires_grad_()  # so that a frozen model has gradients too
    output = model(pixels, output_attentions=True, output_hidden_states=True, return_dict=True)
    number = calls.explained(model.config, output, label)
    states, attentions = output.hidden_states[:-1], output.attentions
    found = torch.autograd.grad(output.logits[:, number].sum(), (*states, *attentions))
    states, attentions = (tuple(each.detach() for each in group) for group in (states, attentions))
    return ClassGradients(states, attentions, found[: len(states)], found[len(states) :])
