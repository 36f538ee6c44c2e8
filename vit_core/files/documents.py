"""JSON documents of anybody: read with limits, asked field by field; what is wrong names document and field."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vit_core.files.disk import refuse_stand_in

_MAX_BYTES = 1 << 26  # of a file; three tables of a million labels fit
_MAX_DEPTH = 64  # of objects and lists, far below what Python's own recursion allows
_MAX_BITS = 1000  # of a whole number, which then is a float's as well


class Document(dict[str, Any]):
    """A JSON object that knows where it stands. What a method can't give it refuses with ValueError that says so.

    A field that is absent, or null, is the default.
    """

    def __init__(self, values: Mapping[str, Any], source: str, path: str = "") -> None:
        super().__init__(values)
        self.source, self._path = source, path

    def object(self, name: str) -> Document:
        """The object in a field, an empty one by default."""
        value = self._value(name, {}, isinstance(self.get(name), dict), "an object")
        return Document(value, self.source, f"{self._path}{name}.")

    def text(self, name: str, default: str) -> str:
        return str(self._value(name, default, isinstance(self.get(name), str), "a text"))

    def texts(self, name: str) -> list[str]:
        """The list of texts in a field, an empty one by default."""
        value = self.get(name)
        return list(self._value(name, [], isinstance(value, list) and all(isinstance(v, str) for v in value), "texts"))

    def integer(self, name: str, default: int | None = None) -> int | None:
        value: int | None = self._value(name, default, type(self.get(name)) is int, "an integer")
        return value

    def number(self, name: str, default: float | None = None) -> float | None:
        value: float | None = self._value(name, default, _is_number(self.get(name)), "a number")
        return value

    def numbers(self, name: str) -> float | list[float] | None:
        """A number, or one for each channel."""
        value = self.get(name)
        fits = _is_number(value) or (isinstance(value, list) and len(value) > 0 and all(map(_is_number, value)))
        found: float | list[float] | None = self._value(name, None, fits, "a number, or one a channel")
        return found

    def lengths(self, name: str, counts: Iterable[int] = (2,)) -> int | list[int] | None:
        """A length, or as many lengths as one of `counts`."""
        value, counts = self.get(name), tuple(counts)
        fits = isinstance(value, list) and len(value) in counts and all(type(v) is int for v in value)
        kind = f"an integer, or {' or '.join(map(str, counts))} of them"
        found: int | list[int] | None = self._value(name, None, fits or type(value) is int, kind)
        return found

    def _value(self, name: str, default: Any, fits: bool, kind: str) -> Any:
        value = self.get(name)
        if value is None:
            return default
        if not fits:
            raise ValueError(f"{self.source}: {self._path}{name} must be {kind}, got {value!r}.")
        return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def blaming(source: object) -> Iterator[None]:
    """Errors of a block that checks what a document says name the document."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def refuse_attributes(cls: type, names: Iterable[str]) -> None:
    """Raise ValueError for a name of a field that is an attribute of the class, as "to_dict" and "__dict__" are."""
    taken = sorted(name for name in names if hasattr(cls, name) or name == "self")
    if taken:
        raise ValueError(f"{taken[0]!r} is part of {cls.__name__} itself, no field that can be set: remove it.")


def read_json_object(path: Path) -> Document:
    """The JSON object in a file. Raises OSError when it can't be read, ValueError when it is something else."""
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes, which no JSON document of a model is.")
    refuse_stand_in(path, text[:512])
    return parse_json_object(text, str(path))


def parse_json_object(text: bytes, source: str) -> Document:
    """The JSON object in `text`. Raises ValueError that names `source`.

    Refused beside what is no JSON: two equal keys, numbers that are not finite or exceed 1000 bits, deep nesting.
    """
    try:
        value = json.loads(text, object_pairs_hook=_refuse_duplicates)
    except RecursionError:
        raise ValueError(f"{source} is not valid JSON: it is nested deeper than {_MAX_DEPTH} levels.") from None
    except ValueError as error:
        raise ValueError(f"{source} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{source} must hold a JSON object, got a {type(value).__name__}.")
    _check_values(value, source)
    return Document(value, source)


def json_text(values: Mapping[str, Any], source: str, default: Callable[[Any], Any] | None = None) -> str:
    """A JSON object as text: sorted keys, two spaces, a final newline. `default` is that of `json.dumps`.

    Raises ValueError that names `source` for what `parse_json_object` would not read again.
    """
    text = json.dumps(values, indent=2, sort_keys=True, default=default) + "\n"
    parse_json_object(text.encode(), source)
    return text


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; `json.loads` by itself silently keeps the last of two equal keys."""
    result = dict(pairs)
    if len(result) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"the name {min(name for name, n in counts.items() if n > 1)!r} occurs twice")
    return result


def _check_values(document: dict[str, Any], source: str) -> None:
    """Refuse deep nesting, and numbers that most programs have no type for."""
    waiting: list[tuple[str, Any, int]] = [("", document, 1)]
    while waiting:
        field, node, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise ValueError(f"{source} is not valid JSON: {field[:40]} ... is nested deeper than {_MAX_DEPTH} levels.")
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                waiting.append((f"{field}.{key}" if field else str(key), value, depth + 1))
            elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
                raise ValueError(f"{source}: {field}{'.' * bool(field)}{key} exceeds {_MAX_BITS} bits.")
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{source}: {field}{'.' * bool(field)}{key} must be a finite number, got {value}.")
