"""The table of parameters: every weight of every ViT model, once, and how each framework names and lays it out.

Names are canonical: those Hugging Face's PyTorch ViT has on disk, without the prefix `vit.` of models with a head.
Symbols of shapes: D hidden_size, F intermediate_size, C num_channels, P Q of a patch (height, width), S tokens
(patches + 1), O pooler width, K labels, R decoder channels. Paper: Dosovitskiy et al. 2021, equations 1 to 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from vit_core.config import ViTConfig, pair


@dataclass(frozen=True)
class Row:
    """One module, or bare array, of the table. `name` holds `{}` where the number of the layer goes."""

    name: str
    kind: str  # linear, conv, norm or raw
    shape: tuple[str | int, ...]  # of its weight, in PyTorch's order
    bias: bool | str = True  # True, False, or the field of the configuration that says so
    init: str = "normal"  # normal: truncated normal of std initializer_range; zeros; norm: ones (biases are zero)
    part: str = ""  # the optional part of a model it belongs to; "" for the trunk that every model has


LAYER = "encoder.layer.{}."
POSITIONS = "embeddings.position_embeddings"
NUMBER = "(0|[1-9][0-9]{0,5})"  # of a layer, in a name
OF_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")
TABLE = (
    Row("embeddings.cls_token", "raw", (1, 1, "D"), bias=False),
    Row("embeddings.mask_token", "raw", (1, 1, "D"), bias=False, init="zeros", part="mask_token"),
    Row("embeddings.position_embeddings", "raw", (1, "S", "D"), bias=False),
    Row("embeddings.patch_embeddings.projection", "conv", ("D", "C", "P", "Q")),
    Row(LAYER + "attention.attention.query", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.attention.key", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.attention.value", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.output.dense", "linear", ("D", "D")),
    Row(LAYER + "intermediate.dense", "linear", ("F", "D")),
    Row(LAYER + "output.dense", "linear", ("D", "F")),
    Row(LAYER + "layernorm_before", "norm", ("D",), init="norm"),
    Row(LAYER + "layernorm_after", "norm", ("D",), init="norm"),
    Row("layernorm", "norm", ("D",), init="norm"),
    Row("pooler.dense", "linear", ("O", "D"), part="pooler"),
    Row("classifier", "linear", ("K", "D"), part="classifier"),
    Row("decoder.0", "conv", ("R", "D", 1, 1), part="decoder"),
)
ALL_PARTS = frozenset(row.part for row in TABLE if row.part)
HEADS = ("classifier", "decoder")  # the parts that stand outside the trunk, without its prefix
PREFIX = "vit"

# The parts of each model class, by its PyTorch name, which is also what `architectures` holds.
PARTS = {
    "ViTModel": frozenset({"pooler"}),
    "ViTForImageClassification": frozenset({"classifier"}),
    "ViTForMaskedImageModeling": frozenset({"mask_token", "decoder"}),
}


@dataclass(frozen=True)
class Spec:
    """One array of one model: its canonical name, what it is, its PyTorch shape and how it is initialised."""

    name: str
    kind: str
    leaf: str  # weight or bias; "" for a raw array
    shape: tuple[int, ...]
    init: str
    part: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def specs(config: ViTConfig, parts: Iterable[str]) -> dict[str, Spec]:
    """Every parameter of the model with these optional parts, by canonical name, in the order of the model."""
    wanted = {"", *parts}
    unknown = wanted - {row.part for row in TABLE}
    if unknown:
        raise ValueError(f"Unknown parts {sorted(unknown)}: expected some of {sorted({r.part for r in TABLE} - {''})}.")
    if config.num_labels == 0:
        wanted.discard("classifier")
    sizes = symbol_sizes(config)
    found: dict[str, Spec] = {}
    for per_layer, group in groupby((row for row in TABLE if row.part in wanted), key=lambda row: "{}" in row.name):
        rows = tuple(group)
        for i in range(config.num_hidden_layers if per_layer else 1):
            found.update((spec.name, spec) for row in rows for spec in _row_specs(row, i, sizes, config))
    return found


def symbol_sizes(config: ViTConfig) -> dict[str, int]:
    """What each symbol of the table's shapes stands for in this configuration."""
    patch, stride = pair(config.patch_size), pair(config.encoder_stride)
    return {
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "C": config.num_channels,
        "P": patch[0],
        "Q": patch[1],
        "S": config.num_patches + 1,
        "O": config.pooler_size,
        "K": config.num_labels,
        "R": stride[0] * stride[1] * config.num_channels,
    }


def _row_specs(row: Row, layer: int, sizes: Mapping[str, int], config: ViTConfig) -> Iterator[Spec]:
    name = row.name.format(layer)
    shape = tuple(sizes[s] if isinstance(s, str) else s for s in row.shape)
    if row.kind == "raw":
        yield Spec(name, row.kind, "", shape, row.init, row.part)
        return
    yield Spec(f"{name}.weight", row.kind, "weight", shape, row.init, row.part)
    if getattr(config, row.bias) if isinstance(row.bias, str) else row.bias:
        yield Spec(f"{name}.bias", row.kind, "bias", shape[:1], "zeros", row.part)


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
    layer: str = "layer.{}"
    leaves: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (kind, leaf) -> native leaf
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)  # renamed modules, by their name in the table
    suffix: str = ""
    always_prefixed: bool = False  # the trunk stands under `vit` even in models without a head

    def template(self, row: Row, leaf: str) -> str:
        """The native name of one array of a row, `{}` where the layer goes, the trunk without its prefix."""
        module = self.modules.get(row.name, row.name).replace(".", self.separator)
        module = module.replace(f"layer{self.separator}{{}}", self.layer)
        native = self.leaves.get((row.kind, leaf), leaf)
        return module + (self.separator + native if native else "") + self.suffix

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
    layer="layer_._{}",
    leaves={**_KERNELS, ("norm", "weight"): "gamma", ("norm", "bias"): "beta"},
    axes=_KERNEL_AXES,
    suffix=":0",
    always_prefixed=True,
)
FLAX = Dialect("flax", leaves={**_KERNELS, ("norm", "weight"): "scale"}, axes=_KERNEL_AXES)
# What transformers >= 5.9 calls the modules in memory, and so in raw state dicts.
TORCH_V5 = Dialect(
    "pt",
    modules={
        LAYER + old: "layers.{}." + new
        for old, new in {
            "attention.attention.query": "attention.q_proj",
            "attention.attention.key": "attention.k_proj",
            "attention.attention.value": "attention.v_proj",
            "attention.output.dense": "attention.o_proj",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_before": "layernorm_before",
            "layernorm_after": "layernorm_after",
        }.items()
    },
)
DIALECTS = {"pt": TORCH, "tf": TF, "flax": FLAX}


def native_name(spec: Spec, dialect: Dialect, prefixed: bool) -> str:
    """What a file of this dialect calls a parameter; `prefixed` for models that have a head."""
    layer = OF_LAYER.match(spec.name)
    module = spec.name.removesuffix(f".{spec.leaf}") if spec.leaf else spec.name
    row = _ROWS[LAYER + module[layer.end() :] if layer else module]
    name = dialect.template(row, spec.leaf).replace("{}", layer[1] if layer else "")
    if row.part in HEADS or not (prefixed or dialect.always_prefixed):
        return name
    return f"{PREFIX}{dialect.separator}{name}"


def to_native(array: npt.NDArray[Any], spec: Spec, dialect: Dialect) -> npt.NDArray[Any]:
    """PyTorch's array in the layout of a dialect: a view."""
    return array.transpose(dialect.permutation(spec.kind, spec.leaf) or range(array.ndim))


def _rank(row: Row, leaf: str) -> int:
    return 1 if leaf == "bias" else len(row.shape)


def rank_of(name: str) -> int:
    """The number of axes of a parameter, by its canonical name or the table's; 1 for one that is in no row."""
    module, _, leaf = OF_LAYER.sub(LAYER, name).rpartition(".")
    row = _ROWS.get(f"{module}.{leaf}") or _ROWS.get(module)
    return 1 if row is None else _rank(row, leaf)


_ROWS = {row.name: row for row in TABLE}


@cache
def _patterns(dialect: Dialect) -> tuple[tuple[re.Pattern[str], Row, str], ...]:
    found = []
    for row in TABLE:
        prefix = "" if row.part in HEADS else f"(?:{PREFIX}{re.escape(dialect.separator)})?"
        for leaf in ("",) if row.kind == "raw" else ("weight", "bias"):
            escaped = re.escape(dialect.template(row, leaf)).replace(r"\{\}", NUMBER)
            found.append((re.compile(prefix + escaped), row, leaf))
    return tuple(found)


@dataclass(frozen=True)
class Parsed:
    """What a native name stands for: the canonical name, and the axes that bring its array to PyTorch's layout."""

    name: str
    axes: tuple[int, ...] | None
    rank: int  # the number of axes, the same in every layout


def parse_name(native: str, *dialects: Dialect) -> Parsed | None:
    """The parameter a native name stands for in the first dialect that knows it; None when none does."""
    for dialect in dialects:
        for pattern, row, leaf in _patterns(dialect):
            match = pattern.fullmatch(native)
            if match:
                name = row.name.format(*match.groups()) + (f".{leaf}" if leaf else "")
                return Parsed(name, dialect.inverse(row.kind, leaf), _rank(row, leaf))
    return None
