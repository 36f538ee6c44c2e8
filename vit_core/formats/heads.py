"""Heads as people replace them: a linear layer in the place of the head, or one in a module that is there."""

from __future__ import annotations

import re

from vit_core.formats.format import Tensors


def renamed_head(tensors: Tensors, place: str, name: str) -> Tensors:
    """The tensors with the only layer in the `place` of a head by the `name` that the library's own head has."""
    pattern = re.compile(rf"{re.escape(place)}(\.(?!pre_logits)\w+)*\.(?P<leaf>weight|bias)")
    found = {each: match["leaf"] for each in tensors if (match := pattern.fullmatch(each))}
    others = [each for each in tensors if each.startswith(f"{place}.") and each not in found]
    if others or len({each.rpartition(".")[0] for each in found}) != 1:
        return tensors
    return {f"{name}.{found[each]}" if each in found else each: tensor for each, tensor in tensors.items()}
