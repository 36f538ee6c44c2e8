"""The invertible tables that formats are made of: how a format names the arrays of a ViT, and how it lays them out.

A rule says how one array of a file is made of canonical ones, in PyTorch's layout. Reading runs it backwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from vit_core.family import DECODER_LAYER, LAYER, NUMBER
from vit_core.files.tensor import Tensor, in_turn
from vit_core.params import rank_of

QUERY, KEY, VALUE = (LAYER + f"attention.attention.{name}" for name in ("query", "key", "value"))
POOLED_NORM = "fc_norm"


class Step(Protocol):
    """A change of one array's layout that loses nothing."""

    def to_native(self, tensor: Tensor, heads: int) -> Tensor:
        """PyTorch's layout to the file's."""

    def to_canonical(self, tensor: Tensor) -> Tensor:
        """The file's layout to PyTorch's."""

    @property
    def added(self) -> int:
        """By how many axes the file's array has more than PyTorch's."""


@dataclass(frozen=True)
class Permute:
    """Axes permuted; `axes` takes PyTorch's array to the file's."""

    axes: tuple[int, ...]

    def to_native(self, tensor: Tensor, heads: int) -> Tensor:
        return tensor.transposed(self.axes)

    def to_canonical(self, tensor: Tensor) -> Tensor:
        return tensor.transposed(tuple(int(i) for i in np.argsort(self.axes)))

    @property
    def added(self) -> int:
        return 0


@dataclass(frozen=True)
class Heads:
    """An axis of width D in PyTorch's array, after the steps before, is split into (heads, D / heads)."""

    axis: int

    def to_native(self, tensor: Tensor, heads: int) -> Tensor:
        before, width, after = tensor.shape[: self.axis], tensor.shape[self.axis], tensor.shape[self.axis + 1 :]
        return tensor.reshaped((*before, heads, width // heads, *after))

    def to_canonical(self, tensor: Tensor) -> Tensor:
        before, (heads, size), after = np.split(np.array(tensor.shape), (self.axis, self.axis + 2))
        return tensor.reshaped(tuple(int(n) for n in (*before, heads * size, *after)))

    @property
    def added(self) -> int:
        return 1


@dataclass(frozen=True)
class NoBatch:
    """The leading axis, of length 1, is left out."""

    def to_native(self, tensor: Tensor, heads: int) -> Tensor:
        return tensor.reshaped(tensor.shape[1:])

    def to_canonical(self, tensor: Tensor) -> Tensor:
        return tensor.reshaped((1, *tensor.shape))

    @property
    def added(self) -> int:
        return -1


@dataclass(frozen=True)
class Rule:
    """One array of a file. Names hold `{}` for the number of the layer, or `{_}` where Keras counts "", "_1", "_2"."""

    native: str
    canonical: tuple[str, ...]  # several: the array is made of them, one below the other
    steps: tuple[Step, ...] = ()
    also: tuple[str, ...] = ()  # other names that are read
    axes: int | None = None  # of the canonical array, where those of the first member that has it are others

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """What matches the names that are read; the group is the number of the layer."""
        number = {r"\{\}": NUMBER, r"\{_\}": NUMBER.replace("(0|", "(|_")}
        spellings = []
        for name in (self.native, *self.also):
            escaped = re.escape(name)
            for placeholder, group in number.items():
                escaped = escaped.replace(placeholder, group)
            spellings.append(escaped)
        return re.compile("|".join(spellings))

    @property
    def rank(self) -> int:
        """The number of axes of the file's array."""
        return (self.axes or rank_of(self.canonical[0])) + sum(step.added for step in self.steps)

    def layer_of(self, native: str) -> str | None:
        """The number of the layer in a name, "" where it has none; None for a name that is no array of this rule."""
        match = self.pattern.fullmatch(native)
        if match is None:
            return None
        number = next((group for group in match.groups() if group is not None), None)
        return (number.lstrip("_") or "0") if number is not None else ""

    def name(self, layer: str) -> str:
        """The array's name in the file."""
        return self.native.replace("{_}", "" if layer in ("", "0") else f"_{layer}").replace("{}", layer)

    def to_canonical(self, tensor: Tensor, layer: str) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, tensor in PyTorch's layout) of everything in the file's array."""
        for step in reversed(self.steps):
            tensor = step.to_canonical(tensor)
        count = len(self.canonical)
        if count > 1 and tensor.shape[0] % count:
            raise ValueError(f"{tensor.source!r} has {tensor.shape[0]} rows, expected a multiple of {count}")
        rows = tensor.shape[0] // count if count > 1 else 0
        for i, name in enumerate(self.canonical):
            part = _rows(tensor, i * rows, (i + 1) * rows) if count > 1 else tensor
            yield name.replace("{}", layer), part

    def to_native(self, tensors: Mapping[str, Tensor], layer: str, heads: int) -> Tensor | None:
        """The file's array, made of canonical ones; None where they are not there."""
        parts = [tensors.get(name.replace("{}", layer)) for name in self.canonical]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        tensor = below_each_other(found) if len(found) > 1 else found[0]
        for step in self.steps:
            tensor = step.to_native(tensor, heads)
        return tensor


def _rows(tensor: Tensor, begin: int, end: int) -> Tensor:
    shape = (end - begin, *tensor.shape[1:])
    return tensor.changed(("rows", (begin, end)), lambda array: array[begin:end], shape=shape)


def below_each_other(parts: Sequence[Tensor]) -> Tensor:
    """The concatenation of tensors along their first axis. Raises ValueError unless they have one dtype."""
    names = ", ".join(part.source for part in parts)
    if len({part.dtype for part in parts}) > 1:
        dtypes = ", ".join(part.dtype.name for part in parts)
        raise ValueError(f"{names} become one array, but are {dtypes}: pass a dtype.")
    first = parts[0]
    return replace(
        first,
        shape=(sum(part.shape[0] for part in parts), *first.shape[1:]),
        read=lambda: np.concatenate([part.read() for part in parts]),
        release=in_turn(part.release for part in parts),
        verify=in_turn(part.verify for part in parts),
        source=names,
        changes=(("concatenate", tuple(describe(part) for part in parts)),),
    )


def describe(tensor: Tensor) -> str:
    """What reading does to the array in the file, in words; "" where it is taken as it is."""
    words: list[tuple[str, object]] = []
    for kind, value in tensor.changes:
        if words and words[-1][0] == kind == "transpose":
            before = words.pop()[1]
            assert isinstance(before, tuple)
            value = tuple(before[i] for i in value)
            if value == tuple(sorted(value)):
                continue
        elif words and words[-1][0] == kind == "reshape":
            words.pop()
        words.append((kind, value))
    return ", ".join(_in_words(kind, value) for kind, value in words)


def _in_words(kind: str, value: object) -> str:
    if kind == "rows":
        return "rows {} to {}".format(*value)  # type: ignore[misc]
    if kind == "concatenate":
        inner = [text for text in value if text]  # type: ignore[attr-defined]
        return "concatenate" + (f" ({'; '.join(dict.fromkeys(inner))})" if inner else "")
    return f"{kind} {value}"


# ---- short ways to write the rows of a table ---------------------------------------------------------------------

LINEAR, CONV = Permute((1, 0)), Permute((2, 3, 1, 0))
TORCH_LEAVES = ("weight", "bias")


def raw(native: str, canonical: str, *steps: Step, also: Sequence[str] = ()) -> tuple[Rule, ...]:
    """An array that is no module's weight or bias."""
    return (Rule(native, (canonical,), steps, tuple(also)),)


def module(
    native: str,
    *canonical: str,
    leaves: tuple[str, str] = TORCH_LEAVES,
    weight: Sequence[Step] = (),
    bias: Sequence[Step] = (),
    also: Sequence[str] = (),
    join: str = ".",
) -> tuple[Rule, ...]:
    """The weight and the bias of a module; several canonical modules are fused into one."""
    return tuple(
        Rule(
            native + join + leaf,
            tuple(f"{name}.{ours}" for name in canonical),
            tuple(steps),
            tuple(name + join + leaf for name in also),
        )
        for leaf, ours, steps in zip(leaves, TORCH_LEAVES, (weight, bias), strict=True)
    )


def of_decoder(rules: Sequence[Rule], before: str, after: str) -> tuple[Rule, ...]:
    """The rules of a decoder's layers: those of the encoder's, whose names begin with `after` in place of `before`."""
    return tuple(
        Rule(
            after + rule.native.removeprefix(before),
            tuple(name.replace(LAYER, DECODER_LAYER) for name in rule.canonical),
            rule.steps,
        )
        for rule in rules
        if rule.native.startswith(before)
    )


def table(*rows: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """The rules of a format."""
    return tuple(rule for row in rows for rule in row)
