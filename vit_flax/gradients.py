"""The gradients of a class in JAX: how a label's logit follows the tokens and the attentions of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.outputs import ClassGradients
from vit_flax.encoder import ViTSelfAttention


def class_gradients(model: Any, pixel_values: Array, label: int | str) -> ClassGradients:
    """The gradients of the logit of a label, its number or name, for pixels (B, C, H, W), each picture's of its own.

    Raises ValueError for a model without logits, for a label that it has not, and with `scan_layers`.
    """
    if model.module.scan_layers:
        raise ValueError("scan_layers=True makes one layer of all, whose gradients can't be told apart: load without.")
    output = model(pixel_values, output_attentions=True, output_hidden_states=True, return_dict=True)
    number = calls.explained(model.config, output, label)
    states, attentions = output.hidden_states[:-1], output.attentions

    def logit(params: Any, added: tuple[Sequence[Array], Sequence[Array]]) -> Array:
        adding = _Adding(model.module.trunk_class.layer_class, *map(iter, added))
        with nn.intercept_methods(adding):
            asked = {"output_attentions": True, "return_dict": True}
            found = model.module.apply({"params": params}, pixel_values, **asked)
        return found.logits[:, number].sum()

    zeros = jax.tree.map(jnp.zeros_like, (states, attentions))
    return ClassGradients(states, attentions, *jax.jit(jax.grad(logit, 1))(model.params, zeros))


class _Adding:
    """An interceptor that adds to what goes into each layer, and to its attentions, so that these have gradients."""

    def __init__(self, layer: type[nn.Module], to_states: Iterator[Array], to_attentions: Iterator[Array]) -> None:
        self.layer, self.to_states, self.to_attentions = layer, to_states, to_attentions

    def __call__(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
        module, called = context.module, context.method_name == "__call__"
        if called and isinstance(module, self.layer):
            return call(args[0] + next(self.to_states), *args[1:], **kwargs)
        if called and isinstance(module, ViTSelfAttention):
            attended, probs = call(*args, **kwargs)
            added = next(self.to_attentions)
            batch, heads, tokens, _ = added.shape
            values = module.value(args[0]).reshape(batch, tokens, heads, -1).swapaxes(1, 2)  # (B, h, S, d)
            return attended + (added @ values).swapaxes(1, 2).reshape(attended.shape), probs
        return call(*args, **kwargs)
