"""The members of the family, one module each: what their models, parameters and files are."""

from __future__ import annotations

from collections.abc import Iterable

from vit_core.config import ViTConfig
from vit_core.family.beit import BEIT, POSITION_BIAS, SHARED_POSITION_BIAS, BeitConfig
from vit_core.family.deit import DEIT, DeiTConfig
from vit_core.family.dinov2 import (
    DINOV2,
    DINOV2_WITH_REGISTERS,
    GATE,
    GATED,
    Dinov2Config,
    Dinov2WithRegistersConfig,
)
from vit_core.family.ijepa import IJEPA, IJepaConfig
from vit_core.family.mae import MAE, ViTMAEConfig
from vit_core.family.msn import MSN, ViTMSNConfig
from vit_core.family.table import (
    DECODER_LAYER,
    LAYER,
    MASK_TOKEN,
    NUMBER,
    PATCHES,
    POSITIONS,
    REGISTERS,
    Family,
    Row,
    parted,
)
from vit_core.family.vit import ATTENTION_SCALE, MLP_SCALE, VIT

__all__ = [
    "ARCHITECTURES", "ATTENTION_SCALE", "BEIT", "CLASSIFIERS", "DECODER_LAYER", "DEIT", "DINOV2",
    "DINOV2_WITH_REGISTERS", "FAMILIES", "GATE", "GATED", "HEADS", "IJEPA", "LAYER", "MAE", "MASK_TOKEN", "MLP_SCALE",
    "MSN", "NUMBER", "PARTS", "PATCHES", "POSITIONS", "POSITION_BIAS", "REGISTERS", "SHARED_POSITION_BIAS", "VIT",
    "BeitConfig", "DeiTConfig", "Dinov2Config", "Dinov2WithRegistersConfig", "Family", "IJepaConfig", "Row",
    "ViTMAEConfig", "ViTMSNConfig", "family_of", "has_head", "has_mask_token", "has_positions", "member_of", "parted",
]  # fmt: skip

_MEMBERS = (VIT, DEIT, BEIT, MAE, DINOV2, DINOV2_WITH_REGISTERS, IJEPA, MSN)
FAMILIES = {family.model_type: family for family in _MEMBERS}
ARCHITECTURES = {name: family for family in FAMILIES.values() for name in family.models}  # by PyTorch's name of a class
PARTS = {name: parts for family in FAMILIES.values() for name, parts in family.models.items()}
_HEADS = [row for family in FAMILIES.values() for row in family.table if row.head]
HEADS = frozenset(row.part for row in _HEADS)
CLASSIFIERS = frozenset(row.part for row in _HEADS if row.shape[0] == "K")


def family_of(config: ViTConfig | type[ViTConfig]) -> Family:
    """The member that a configuration, or a class of them, is of; of a user's own class that of its base."""
    classes = (config if isinstance(config, type) else type(config)).__mro__
    types = (getattr(cls, "model_type", "") for cls in classes)
    return next(FAMILIES[name] for name in types if name in FAMILIES)


def member_of(names: Iterable[str], families: Iterable[Family], asked: Family | None = None) -> Family:
    """Of these members the one that has most of these parameters, by canonical name, and needs no other token.

    Of several the one `asked` for, or the first.
    """
    known = set(names)

    def fits(family: Family) -> tuple[int, int]:
        tokens = (f"embeddings.{token}" in known for token in family.config.tokens)
        return sum(family.row_of(name) is not None for name in known), -sum(not there for there in tokens)

    return max(sorted(families, key=lambda family: family is not asked), key=fits)


def has_mask_token(config: ViTConfig, asked: bool) -> bool:
    """Whether a trunk has the mask token: as the configuration says, where it does, or else where it is `asked` for."""
    row = family_of(config).rows.get(MASK_TOKEN)
    if row is None:
        return False
    return asked if row.part else not row.when or bool(getattr(config, row.when))


def has_positions(config: ViTConfig) -> bool:
    """Whether the embeddings have positions."""
    row = family_of(config).rows[POSITIONS]
    return not row.when or bool(getattr(config, row.when))


def has_head(parts: Iterable[str]) -> bool:
    """Whether a model with these parts has a head, so that its trunk has a prefix."""
    return not HEADS.isdisjoint(parts)
