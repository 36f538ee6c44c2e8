"""What a table of parameters is made of, and what a member of the family is: data alone.

Canonical names are those Hugging Face's PyTorch ViT has on disk, without the prefix of the trunk, for every member;
what a member's own files call them stands in its rows. Symbols of shapes: D hidden_size, F intermediate_size, C
num_channels, P Q of a patch (height, width), S rows of the position embeddings, G registers, O pooler width, K labels,
R decoder channels, Dd decoder_hidden_size, Fd decoder_intermediate_size, PQC numbers of a patch, T rows and H columns
(heads) of a table of relative positions, V visual tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from vit_core.config import ViTConfig, pair
from vit_core.position import relative_positions

LAYER, DECODER_LAYER = "encoder.layer.{}.", "decoder.decoder_layers.{}."
NUMBER = "(0|[1-9][0-9]{0,5})"  # of a layer, in a name
_OF_LAYER = re.compile(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.")
MASK_TOKEN, POSITIONS = "embeddings.mask_token", "embeddings.position_embeddings"
REGISTERS = "embeddings.register_tokens"
PATCHES = "embeddings.patch_embeddings.projection"

SYMBOLS: dict[str, Callable[[ViTConfig], int]] = {
    "D": lambda config: config.hidden_size,
    "F": lambda config: config.intermediate_size,
    "C": lambda config: config.num_channels,
    "P": lambda config: pair(config.patch_size)[0],
    "Q": lambda config: pair(config.patch_size)[1],
    "S": lambda config: config.num_patches + config.position_prefix,
    "G": lambda config: config.num_register_tokens,
    "T": lambda config: relative_positions(*config.grid),
    "H": lambda config: config.num_attention_heads,
    "V": lambda config: config.vocab_size,
    "O": lambda config: config.pooler_size,
    "K": lambda config: config.num_labels,
    "2D": lambda config: 2 * config.hidden_size,
    "2F": lambda config: 2 * config.intermediate_size,
    "R": lambda config: pair(config.encoder_stride)[0] * pair(config.encoder_stride)[1] * config.num_channels,
    "Dd": lambda config: config.decoder.hidden_size,
    "Fd": lambda config: config.decoder.intermediate_size,
    "PQC": lambda config: math.prod(pair(config.patch_size)) * config.num_channels,
}


def parted(name: str) -> tuple[str, str]:
    """A canonical name with `{}` for the number of its layer, and that number; "" outside the layers."""
    match = _OF_LAYER.match(name)
    return (f"{match[1]}.{{}}.{name[match.end() :]}", match[2]) if match else (name, "")


@dataclass(frozen=True)
class Row:
    """One module, or bare array, of a table. `name` holds `{}` where the number of the layer goes."""

    name: str
    kind: str  # linear, conv, norm or raw
    shape: tuple[str | int, ...]  # of its weight, in PyTorch's order
    bias: bool | str = True  # True, False, or the field of the configuration that says so
    # normal: truncated normal of std initializer_range; untruncated: that normal; xavier: uniform, by the sizes of the
    # matrix; zeros; norm: ones; sincos: sines of MAE; or a field's value
    init: str = "normal"
    part: str = ""  # the optional part of a model it belongs to; "" for the trunk that every model has
    head: bool = False  # whether it stands outside the trunk, without its prefix
    when: str = ""  # the field, or property, of the configuration without which it is not there
    layers: str = "num_hidden_layers"  # the field that counts them, where the name has a number
    file: str = ""  # its name in the member's files, where that is another one
    also: str = ""  # a further name in files, which is read
    fixed: bool = False  # whether it stays as it starts, untrained

    @property
    def module(self) -> str:
        """Its name in files, and in a model."""
        return self.file or self.name

    @property
    def leaves(self) -> tuple[str, ...]:
        """What its arrays are called below its name."""
        return ("",) if self.kind == "raw" else ("weight", "bias")

    def rank(self, leaf: str) -> int:
        """The number of axes of one of its arrays."""
        return 1 if leaf == "bias" else len(self.shape)


@dataclass(frozen=True, eq=False)
class Family:
    """A member of the family: its configuration, its models, its parameters, and what its files say of it."""

    title: str
    config: type[ViTConfig]
    models: Mapping[str, frozenset[str]]  # the parts of each model class, by its PyTorch name; the bare one first
    table: tuple[Row, ...]
    in_memory: Mapping[str, str | tuple[str, ...]]  # what transformers >= 5.9 calls rows; several: one below the other
    trunk_name: str = ""  # where it is not the model_type
    also_read: tuple[str, ...] = ()  # what classes of the same models by other names call the trunk
    of_shapes: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]] = lambda shapes: {}  # fields they speak of

    @property
    def model_type(self) -> str:
        """The word for it in a config.json."""
        return self.config.model_type

    @property
    def trunk(self) -> str:
        """What stands before the names of the trunk in models with a head."""
        return self.trunk_name or self.model_type

    @property
    def trunks(self) -> tuple[str, ...]:
        """Every name of the trunk that is read."""
        return (self.trunk, *self.also_read)

    @property
    def bare(self) -> str:
        """The model class without a head."""
        return next(iter(self.models))

    @cached_property
    def rows(self) -> dict[str, Row]:
        """The table by the names of its rows."""
        return {row.name: row for row in self.table}

    @cached_property
    def all_parts(self) -> frozenset[str]:
        """Every optional part."""
        return frozenset(row.part for row in self.table if row.part)

    def row_of(self, name: str) -> Row | None:
        """The row of a parameter, by its canonical name; None where the member has no such parameter."""
        template, _ = parted(name)
        return self.rows.get(template) or self.rows.get(template.rpartition(".")[0])

    def parts(
        self, architecture: str, add_pooling_layer: bool | None = None, use_mask_token: bool = False
    ) -> frozenset[str]:
        """The optional parts of a model of a class that is built with these arguments, None for its default."""
        parts = set(self.models[architecture])
        if add_pooling_layer is not None:
            parts = parts | {"pooler"} if add_pooling_layer else parts - {"pooler"}
        return frozenset(parts | {"mask_token"} if use_mask_token else parts)

    def arguments(self, architecture: str, parts: Collection[str]) -> dict[str, bool]:
        """What a model class is built with, so that it has these parts."""
        taken = {"add_pooling_layer": "pooler", "use_mask_token": "mask_token"} if architecture == self.bare else {}
        return {name: part in parts for name, part in taken.items() if part in self.all_parts}

    def parts_in(self, names: Iterable[str]) -> frozenset[str]:
        """The optional parts that parameters, by canonical name, belong to."""
        rows = (self.row_of(name) for name in names)
        return frozenset(row.part for row in rows if row is not None and row.part)

    def architecture_of(self, parts: Collection[str]) -> str:
        """The model class whose heads are among these parts: the bare one where there is none."""
        heads = frozenset(row.part for row in self.table if row.head)
        found = (name for name, own in self.models.items() if own & heads and own & heads == heads & frozenset(parts))
        return next(found, self.bare)


def changed(table: tuple[Row, ...], changes: Mapping[str, Mapping[str, Any]]) -> tuple[Row, ...]:
    """A table with fields of some rows changed, by their names."""
    return tuple(replace(row, **changes.get(row.name, {})) for row in table)


def without(table: tuple[Row, ...], *names: str) -> tuple[Row, ...]:
    """A table without some rows, by their names."""
    return tuple(row for row in table if row.name not in names)


def after(table: tuple[Row, ...], name: str, *rows: Row) -> tuple[Row, ...]:
    """A table with rows put in after the one of this name."""
    place = 1 + next(i for i, row in enumerate(table) if row.name == name)
    return (*table[:place], *rows, *table[place:])
