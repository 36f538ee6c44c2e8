"""Damage of any file, and of any tree of JSON values: what bytes suffer, and what an attacker would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_LENGTHS = sorted({n + d for n in (0, 1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 63) for d in (-1, 0, 1)})
_TEXTS = (b"\0", b"\n", b"\x1b[2J", b"../", b"\\", b'"', b"[/]", b"\xff\xfe", b"%s", b"NaN", b"{" * 40, b"[" * 2000)


def damaged(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """The bytes after one to four random damages; `others` are pieces of whose content may get in."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        random.choice(_DAMAGES)(changed, random, others)
    return bytes(changed)


def _place(data: bytearray, random: Random) -> int:
    """An offset, as often as not near the beginning, where what describes the rest usually stands."""
    return random.randrange(min(len(data), random.choice((64, 4096, 1 << 40))) or 1)


def _flip(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    if data:
        data[_place(data, random)] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at, count = _place(data, random), random.choice((1, 2, 8, 64, 512))
    data[at : at + count] = random.choice((bytes(count), b"\xff" * count, random.randbytes(count)))


def _truncate(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    del data[_place(data, random) :]


def _cut(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at = _place(data, random)
    del data[at : at + random.choice((1, 2, 8, 64, 1000))]


def _double(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at, count = _place(data, random), random.choice((1, 8, 64, 1000))
    data[at:at] = data[at : at + count]


def _splice(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    other = random.choice(others) if others else bytes(data)
    begin, at = random.randrange(len(other) or 1), _place(data, random)
    piece = other[begin : begin + random.choice((4, 64, 1000, 1 << 20))]
    data[at : at + random.choice((0, len(piece)))] = piece


def _length(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at, size = _place(data, random), random.choice((1, 2, 4, 8))
    value = random.choice(_LENGTHS) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, random.choice(("little", "big")))


def _text(data: bytearray, random: Random, others: Sequence[bytes]) -> None:
    at = _place(data, random)
    data[at:at] = random.choice(_TEXTS)


_DAMAGES: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    _flip, _flip, _overwrite, _truncate, _cut, _double, _splice, _length, _length, _text
)  # fmt: skip


# ---- trees of JSON values ----------------------------------------------------------------------------------------

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-320, 1e308, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30, 10**400,
    float("nan"), float("inf"), "", "0", "-1", "x", "../x", "/etc/passwd", "\0", "\ud800", "[/]", "\x1b[31m", "é" * 300,
    [], {}, [[]], {"": 0}, [None], [1, 2, 3], [0.5, 0.5, 0.5], [0, 0, 0], ["a"], {"0": "a"}, {"1": "a", "3": "b"},
    "gelu", "bicubic", "float16", "ViTModel", ["ViTForImageClassification"], {"height": 0, "width": 8},
)  # fmt: skip
_KEYS = (
    "self", "cls", "__dict__", "__class__", "__init__", "__doc__", "grid", "validate", "to_dict", "num_labels",
    "id2label", "label2id", "num_hidden_layers", "architectures", "pruned_heads", "model_type", "dtype", "size",
    "crop_size", "image_mean", "image_std", "resample", "do_center_crop", "weight_map", "__metadata__", "architecture",
    "model_args", "pretrained_cfg", "label_names", "config", "scale", "offset", "", " ", "é", "a.b", "image_size",
)  # fmt: skip


def changed_tree(tree: Any, random: Random) -> Any:
    """A tree with one to three of its values, keys or lists changed; the given one is changed, too."""
    holder = {"": tree}
    for _ in range(random.choice((1, 1, 2, 3))):
        node, key = random.choice(list(_places(holder)))
        if node is holder and random.random() < 0.7:
            continue
        random.choice(_TREE_CHANGES)(node, key, random)
        if "" not in holder:
            break
    return holder.get("", {})


def _places(node: Any) -> Any:
    """(container, key) of every value of a tree."""
    waiting = [node]
    while waiting:
        inner = waiting.pop()
        for key in list(inner) if isinstance(inner, dict) else range(len(inner)):
            yield inner, key
            if isinstance(inner[key], dict | list):
                waiting.append(inner[key])


def _replace(node: Any, key: Any, random: Random) -> None:
    node[key] = random.choice(_VALUES)


def _remove(node: Any, key: Any, random: Random) -> None:
    del node[key]


def _near(node: Any, key: Any, random: Random) -> None:
    value = node[key]
    if isinstance(value, int | float):
        node[key] = random.choice((-value, value + 1, value * 2, value * 10**6, str(value), [value], value / 3))
    elif isinstance(value, str):
        node[key] = random.choice((value + "x", value[:-1], value.upper(), [value], value * 1000))
    elif isinstance(value, list):
        node[key] = random.choice((value + value, value[:-1], value[::-1], {str(i): v for i, v in enumerate(value)}))


def _nest(node: Any, key: Any, random: Random) -> None:
    for _ in range(random.choice((1, 3, 70, 900))):
        node[key] = [node[key]] if random.random() < 0.5 else {"a": node[key]}


def _insert(node: Any, key: Any, random: Random) -> None:
    if isinstance(node, dict):
        node[random.choice(_KEYS)] = random.choice(_VALUES)
    else:
        node.insert(key, random.choice(_VALUES))


def _rename(node: Any, key: Any, random: Random) -> None:
    if isinstance(node, dict):
        node[random.choice((*_KEYS, f"{key}x", *node))] = node.pop(key)


_TREE_CHANGES = (_replace, _replace, _replace, _remove, _near, _near, _nest, _insert, _insert, _rename)


def changed_json(text: bytes, random: Random) -> bytes:
    """A JSON document with its tree changed, or now and then its bytes, or a key given twice."""
    way = random.random()
    if way < 0.1:
        return damaged(text, random)
    written = _dumped(changed_tree(json.loads(text), random))
    return written.replace("{", '{"a": 1, "a": 2, ', 1).encode() if way < 0.12 else written.encode()


def _dumped(tree: Any) -> str:
    try:
        return json.dumps(tree)
    except RecursionError:
        return "[" * 5000 + "]" * 5000
