"""Parameters that train alike, read off the parameter table: layer-wise learning rates, weight decay, frozen trunks.

Layer-wise learning-rate decay: Clark et al. 2020, "ELECTRA", section 3.1; for ViT, Bao et al. 2022, "BEiT", appendix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vit_core.family import LAYER, MASK_TOKEN
from vit_core.params import Spec


@dataclass(frozen=True)
class ParameterGroup:
    """Names of parameters, the factor of their learning rate, and whether weight decay applies to them."""

    names: tuple[str, ...]
    scale: float
    decay: bool


def parameter_groups(
    specs: Mapping[str, Spec], num_layers: int, layer_decay: float = 1.0, freeze: bool = False
) -> list[ParameterGroup]:
    """The groups of a model's parameters, those nearest the pixels first.

    The head and the final LayerNorm learn at the full rate, each layer below at `layer_decay` times the rate of the one
    above, the embeddings below the first layer. Weight decay is for the matrices of linear layers and convolutions.
    With `freeze`, the head alone is in a group; what is never trained is in none. Raises ValueError for a `layer_decay`
    outside (0, 1].
    """
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must be above 0 and at most 1, got {layer_decay!r}.")
    found: dict[tuple[int, bool], list[str]] = {}
    for name, spec in specs.items():
        if (not freeze or spec.row.head) and not spec.row.fixed:
            decay = spec.kind in ("linear", "conv") and spec.leaf == "weight"
            found.setdefault((_depth(spec, num_layers), decay), []).append(name)
    return [
        ParameterGroup(tuple(names), layer_decay ** (num_layers + 1 - depth), decay)
        for (depth, decay), names in sorted(found.items())
    ]


def trained_groups(model: Any, layer_decay: float = 1.0, freeze: bool = False) -> list[ParameterGroup]:
    """The groups of what a training moves: a classifier's mask token is in none, as no gradient ever comes to it."""
    classifies = "ForImageClassification" in model.architecture
    unread = {name for name, spec in model.specs().items() if classifies and spec.name == MASK_TOKEN}
    groups = model.parameter_groups(layer_decay, freeze)
    return [replace(each, names=tuple(name for name in each.names if name not in unread)) for each in groups]


def _depth(spec: Spec, num_layers: int) -> int:
    """0 for the embeddings, i + 1 for layer i, one more than the last layer's for what comes after it."""
    if spec.name.startswith("embeddings."):
        return 0
    return int(spec.layer) + 1 if spec.row.name.startswith(LAYER) else num_layers + 1
