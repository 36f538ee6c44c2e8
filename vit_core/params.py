"""Every parameter of a model, from its member's table, and how each framework names and lays it out.

Names are canonical (`vit_core.family.table`). Paper: Dosovitskiy et al. 2021, equations 1 to 4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_core.config import ViTConfig
from vit_core.family import FAMILIES, NUMBER, Family, Row, family_of, parted
from vit_core.family.table import SYMBOLS


@dataclass(frozen=True)
class Spec:
    """One array of one model: its canonical name, what it is, its PyTorch shape and how it is initialised."""

    name: str
    row: Row
    layer: str  # its number; "" outside the layers
    leaf: str  # weight or bias; "" for a raw array
    shape: tuple[int, ...]
    init: str
    family: Family

    @property
    def kind(self) -> str:
        """What its row is: linear, conv, norm or raw."""
        return self.row.kind

    @property
    def part(self) -> str:
        """The optional part of a model it belongs to; "" for the trunk."""
        return self.row.part

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def specs(config: ViTConfig, parts: Iterable[str]) -> dict[str, Spec]:
    """Every parameter of the model with these optional parts, by canonical name, in the order of the model.

    Raises ValueError for a part that its member has not.
    """
    family, wanted = family_of(config), {"", *parts}
    if unknown := wanted - {"", *family.all_parts}:
        raise ValueError(f"Unknown parts {sorted(unknown)}: expected some of {sorted(family.all_parts)}.")
    rows = [row for row in family.table if row.part in wanted and (not row.when or getattr(config, row.when))]
    if config.num_labels == 0:
        rows = [row for row in rows if "K" not in row.shape]
    found: dict[str, Spec] = {}
    for layers, group in groupby(rows, key=lambda row: row.layers if "{}" in row.name else ""):
        of_group = tuple(group)
        for layer in map(str, range(getattr(config, layers))) if layers else ("",):
            found.update((spec.name, spec) for row in of_group for spec in _row_specs(row, layer, family, config))
    return found


def _row_specs(row: Row, layer: str, family: Family, config: ViTConfig) -> Iterator[Spec]:
    name = row.name.replace("{}", layer)
    shape = tuple(SYMBOLS[s](config) if isinstance(s, str) else s for s in row.shape)
    for leaf in row.leaves:
        if leaf != "bias":
            yield Spec(f"{name}.{leaf}" if leaf else name, row, layer, leaf, shape, row.init, family)
        elif getattr(config, row.bias) if isinstance(row.bias, str) else row.bias:
            yield Spec(f"{name}.bias", row, layer, leaf, shape[:1], "zeros", family)


def spec_of(config: ViTConfig, name: str) -> Spec:
    """The parameter of this canonical name, which the configuration's member must have."""
    family, (_, layer) = family_of(config), parted(name)
    row = family.row_of(name)
    assert row is not None, name
    return next(spec for spec in _row_specs(row, layer, family, config) if spec.name == name)


def count(config: ViTConfig, parts: Iterable[str]) -> int:
    """Number of parameters of a model."""
    return sum(spec.size for spec in specs(config, parts).values())


# ---- dialects: how a framework's files name the table's arrays, and which axes they permute ----------------------


@dataclass(frozen=True, eq=False)
class Dialect:
    """The naming and layout of one framework's files.

    `axes` maps a kind to the permutation from PyTorch's weight to the native one; the inverse is its argsort.
    """

    format: str  # the value of "format" in the metadata of a safetensors file
    separator: str = "."
    layers: Mapping[str, str] = field(default_factory=dict)  # what modules with a number are called, where otherwise
    leaves: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (kind, leaf) -> native leaf
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    in_memory: bool = False  # by the names that transformers >= 5.9 has in memory
    suffix: str = ""
    always_prefixed: bool = False  # the trunk has its prefix even in models without a head

    def templates(self, row: Row, leaf: str, family: Family) -> tuple[str, ...]:
        """The native name of one array of a row, `{}` where the layer goes, the trunk without its prefix.

        Several where the array is in pieces, one below the other.
        """
        modules = family.in_memory.get(row.name, row.module) if self.in_memory else row.module
        return tuple(self.template(m, row, leaf) for m in ((modules,) if isinstance(modules, str) else modules))

    def template(self, module: str, row: Row, leaf: str) -> str:
        """The native name of one array of a row whose module has this name."""
        name, native = module.replace(".", self.separator), self.leaves.get((row.kind, leaf), leaf)
        for numbered, theirs in self.layers.items():
            name = name.replace(numbered, theirs)
        return name + (self.separator + native if native else "") + self.suffix

    def permutation(self, kind: str, leaf: str) -> tuple[int, ...] | None:
        """Axes that take PyTorch's array to the native one; None where nothing moves."""
        return self.axes.get(kind) if leaf == "weight" else None

    def inverse(self, kind: str, leaf: str) -> tuple[int, ...] | None:
        """Axes that take the native array to PyTorch's; None where nothing moves."""
        axes = self.permutation(kind, leaf)
        return None if axes is None else tuple(int(i) for i in np.argsort(axes))


_KERNELS = {("linear", "weight"): "kernel", ("conv", "weight"): "kernel"}
_KERNEL_AXES = {"linear": (1, 0), "conv": (2, 3, 1, 0)}

TORCH = Dialect("pt")
TF = Dialect(
    "tf",
    separator="/",
    layers={"layer/{}": "layer_._{}", "decoder_layers/{}": "decoder_layers.{}"},
    leaves={**_KERNELS, ("norm", "weight"): "gamma", ("norm", "bias"): "beta"},
    axes=_KERNEL_AXES,
    suffix=":0",
    always_prefixed=True,
)
FLAX = Dialect("flax", leaves={**_KERNELS, ("norm", "weight"): "scale"}, axes=_KERNEL_AXES)
TORCH_V5 = Dialect("pt", in_memory=True)  # and so in raw state dicts
DIALECTS = {"pt": TORCH, "tf": TF, "flax": FLAX}


def native_name(spec: Spec, dialect: Dialect, prefixed: bool) -> str:
    """What a file of this dialect calls a parameter, whole; `prefixed` for models that have a head."""
    return native_names(spec, dialect, prefixed)[0]


def native_names(spec: Spec, dialect: Dialect, prefixed: bool) -> tuple[str, ...]:
    """As `native_name`, of every piece of the parameter."""
    prefix = spec.family.trunk + dialect.separator
    prefix = prefix if (prefixed or dialect.always_prefixed) and not spec.row.head else ""
    return tuple(
        prefix + name.replace("{}", spec.layer) for name in dialect.templates(spec.row, spec.leaf, spec.family)
    )


def to_native(array: npt.NDArray[Any], spec: Spec, dialect: Dialect) -> npt.NDArray[Any]:
    """PyTorch's array in the layout of a dialect: a view."""
    return array.transpose(dialect.permutation(spec.kind, spec.leaf) or range(array.ndim))


def rank_of(name: str) -> int:
    """The number of axes of a parameter, by its canonical name or the table's; 1 for one that is in no table."""
    rows = (family.row_of(name) for family in FAMILIES.values())
    row = next((row for row in rows if row is not None), None)
    return 1 if row is None else row.rank(name.rpartition(".")[2])


@cache
def _patterns(dialect: Dialect, family: Family) -> tuple[tuple[re.Pattern[str], Row, str, tuple[int, int]], ...]:
    found, trunks = [], "|".join(family.trunks)
    for row in family.table:
        prefix = "" if row.head else f"(?:(?:{trunks}){re.escape(dialect.separator)})?"
        for leaf in row.leaves:
            names = dialect.templates(row, leaf, family)
            spelled = [(name, (i, len(names))) for i, name in enumerate(names)]
            spelled += [(dialect.template(row.also, row, leaf), (0, 1))] * bool(row.also)
            for name, piece in spelled:
                pattern = re.compile(prefix + re.escape(name).replace(r"\{\}", NUMBER))
                found.append((pattern, row, leaf, piece))
    return tuple(found)


@dataclass(frozen=True)
class Parsed:
    """What a native name stands for: the canonical name, and the axes that bring its array to PyTorch's layout."""

    name: str
    axes: tuple[int, ...] | None
    rank: int  # the number of axes, the same in every layout
    file: str  # its name in files, and in a model, without the prefix of the trunk
    piece: tuple[int, int] = (0, 1)  # which of how many, one below the other, the array is


def parse_names(natives: Iterable[str], family: Family, *dialects: Dialect) -> dict[str, Parsed]:
    """What the native names of one model stand for, those that stand for anything.

    A name without a prefix that a row of a head and one of the trunk have is the head's, where the model has that head.
    """
    found = {name: known for name in natives if (known := parse_name(name, family, *dialects))}
    renamed = [row for row in family.table if row.head and row.file]
    parts = family.parts_in(known.name for known in found.values()) if renamed else ()
    for row in (row for row in renamed if row.part in parts):
        for dialect, leaf in ((dialect, leaf) for dialect in dialects for leaf in row.leaves):
            (native,) = dialect.templates(row, leaf, family)
            if native in found:
                found[native] = replace(found[native], name=f"{row.name}.{leaf}")
    return found


@lru_cache(1 << 14)  # a conversion asks for each name again and again
def parse_name(native: str, family: Family, *dialects: Dialect) -> Parsed | None:
    """The parameter of a member that a native name stands for in the first dialect that knows it; None in none."""
    for dialect in dialects:
        for pattern, row, leaf, piece in _patterns(dialect, family):
            match = pattern.fullmatch(native)
            if match:
                last = f".{leaf}" if leaf else ""
                name, file = (name.format(*match.groups()) + last for name in (row.name, row.module))
                return Parsed(name, dialect.inverse(row.kind, leaf), row.rank(leaf), file, piece)
    return None
