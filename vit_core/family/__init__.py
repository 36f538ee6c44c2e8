"""The members of the family, one module each: what their models, parameters and files are."""

from __future__ import annotations

from collections.abc import Iterable

from vit_core.config import ViTConfig
from vit_core.family.deit import DEIT, DeiTConfig
from vit_core.family.table import LAYER, NUMBER, OF_LAYER, POSITIONS, Family, Row
from vit_core.family.vit import VIT

__all__ = [
    "ARCHITECTURES", "DEIT", "FAMILIES", "HEADS", "LAYER", "NUMBER", "OF_LAYER", "PARTS", "POSITIONS", "VIT",
    "DeiTConfig", "Family", "Row", "family_of", "has_head", "member_of",
]  # fmt: skip

FAMILIES = {family.model_type: family for family in (VIT, DEIT)}
ARCHITECTURES = {name: family for family in FAMILIES.values() for name in family.models}  # by PyTorch's name of a class
PARTS = {name: parts for family in FAMILIES.values() for name, parts in family.models.items()}
HEADS = frozenset(row.part for family in FAMILIES.values() for row in family.table if row.head)


def family_of(config: ViTConfig | type[ViTConfig]) -> Family:
    """The member that a configuration, or a class of them, is of; of a user's own class that of its base."""
    classes = (config if isinstance(config, type) else type(config)).__mro__
    types = (getattr(cls, "model_type", "") for cls in classes)
    return next(FAMILIES[name] for name in types if name in FAMILIES)


def member_of(names: Iterable[str]) -> Family:
    """The member that has most of these parameters, by canonical name; the first of several."""
    known = list(names)
    return max(FAMILIES.values(), key=lambda family: sum(family.row_of(name) is not None for name in known))


def has_head(parts: Iterable[str]) -> bool:
    """Whether a model with these parts has a head, so that its trunk has a prefix."""
    return not HEADS.isdisjoint(parts)
