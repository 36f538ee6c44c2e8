"""The pickles in PyTorch's files: an interpreter of the opcodes that torch.save writes, which runs nothing.

Python's unpickler is not used: the few globals of a state dict stand for functions of this file. Whatever is made by
any other is an `Opaque`, which knows the name of that global and nothing else: no name is ever looked up.
"""

from __future__ import annotations

import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vit_core.files.tensor import Tensor

DTYPES: dict[str, npt.DTypeLike] = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
_STORAGES = {f"torch.{code}": np.dtype(dtype) for code, dtype in DTYPES.items()}
_STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)
_OTHER_STORAGES = {  # of tensors that no model here has; how long their elements are
    "ComplexFloatStorage": np.complex64, "ComplexDoubleStorage": np.complex128,
    "QInt8Storage": np.int8, "QUInt8Storage": np.uint8, "QInt32Storage": np.int32,
}  # fmt: skip
_STORAGES |= {f"torch.{code}": np.dtype(dtype) for code, dtype in _OTHER_STORAGES.items()}
_MAX_DIMENSIONS = 32


class Unsafe(Exception):
    """A file asks for more than values, or has none by name. Not a ValueError, so as to be told apart from damage."""


@dataclass(frozen=True, eq=False)
class Opaque:
    """What stands in the place of a value that is not made: an object, a set, a kind of tensor that can't be read."""

    kind: str  # what would have made it
    is_tensor: bool = False

    def __str__(self) -> str:
        return self.kind[:200] if self.kind.isprintable() else ascii(self.kind[:200])


@dataclass
class Storage:
    key: str
    dtype: np.dtype[Any]
    numel: int
    begin: int = -1  # offset in the file, once it is known
    checksum: int = 0  # CRC-32 that the file has of it, 0 for none

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class View:
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The name of a global. Nothing is looked up by it but functions of this file."""

    name: str

    def __str__(self) -> str:
        return self.name


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _view(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> View | Opaque:
    """`torch._utils._rebuild_tensor_v2`; Opaque where elements share a place in the storage, or are complex."""
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise ValueError("a tensor is not described by a storage, an offset, a shape and strides")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
        raise ValueError("the offset, the shape or the strides of a tensor are no lengths")
    if math.prod(n or 1 for n in size) * storage.dtype.itemsize >= 1 << 63:
        raise ValueError(f"a tensor of shape {size} does not fit into memory")
    last = offset - 1 if 0 in size else offset
    for step, n in sorted((step, n) for step, n in zip(stride, size, strict=True) if n > 1 and 0 not in size):
        if step <= last - offset:
            return Opaque(f"elements of shape {size} and strides {stride} share memory, which .contiguous() ends", True)
        last += step * (n - 1)
    if last >= storage.numel:
        raise ValueError(
            f"a tensor of shape {size}, strides {stride} and offset {offset} exceeds its storage of {storage.numel}"
        )
    if metadata or storage.dtype not in CODES:
        return Opaque("a negated tensor" if metadata else f"a tensor of {storage.dtype}", True)
    return View(storage, offset, size, stride)


# ---- reading -------------------------------------------------------------------------------------------------------


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    """`collections.OrderedDict`, also of pairs, as Python 2 wrote it."""
    if type(items) not in (tuple, list) or any(type(pair) not in (tuple, list) or len(pair) != 2 for pair in items):
        raise ValueError("an OrderedDict is made of something else than pairs")
    made: dict[Any, Any] = {}
    _set(made, [part for pair in items for part in pair])
    return made


def _set(target: Any, items: list[Any]) -> None:
    """Set keys and values, in turn, in a dict. A key that is no text or small number, whose hash can be slow, is one of
    a kind: nothing is read by it.
    """
    if type(target) is not dict or len(items) % 2:
        raise ValueError("an item is set in what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) is not str and not (type(key) is int and 0 <= key < 1 << 32):
            key = Opaque(f"a key that is a {type(key).__name__}")
        if key in target:
            raise ValueError(f"the name {str(key)[:200]!r} occurs twice")
        target[key] = value


def _size(lengths: Any) -> tuple[Any, ...]:
    if type(lengths) not in (tuple, list) or len(lengths) > _MAX_DIMENSIONS:
        raise ValueError("a torch.Size is no list of lengths")
    return tuple(lengths)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None, state: Any = None) -> View | Opaque:
    if not isinstance(data, View | Opaque):
        raise ValueError("a parameter is no tensor")
    return data


def _with_attributes(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor that has attributes beside its values."""
    named = all(isinstance(each, _Global) for each in (function, kind))
    if not named or kind.name not in _PLAIN or function.name.endswith("_rebuild_from_type_v2"):
        return Opaque(f"a tensor of the class {kind if named else '?'}", True)
    return _call(function, arguments)


def _call(function: Any, arguments: Any) -> Any:
    """What a call gives: of a function of this file its value, of every other nothing but its name."""
    if type(arguments) is not tuple:
        raise ValueError("the arguments of a call are no tuple")
    if not isinstance(function, _Global):
        return Opaque(str(function) if isinstance(function, Opaque) else f"a {type(function).__name__}, called")
    if function.name in _CALLS:
        return _CALLS[function.name](*arguments)
    return Opaque(function.name, function.name.startswith(_TENSORS))


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "torch.nn.parameter.Parameter": _parameter,
}
_PLAIN = ("torch.Tensor", "torch.nn.parameter.Parameter")  # classes of tensors
_TENSORS = ("torch._utils._rebuild_", "torch._tensor._rebuild_")  # what makes kinds of tensors that can't be read
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "EMPTY_LIST",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEWOBJ", "NEWOBJ_EX", "POP",
    "POP_MARK", *_CONSTANTS, *_LITERALS,
}  # fmt: skip
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def _argument(opcode: pickletools.OpcodeInfo, file: BytesIO) -> Any:
    if opcode.name == "GLOBAL":  # in which pickletools would take backslashes for escapes
        lines = [file.readline() for _ in range(2)]
        if not lines[1].endswith(b"\n"):
            raise ValueError("no newline found after the name of a global")
        return " ".join(line[:-1].decode() for line in lines)
    return opcode.arg.reader(file) if opcode.arg else None


class Unpickler:
    """Interprets the opcodes that torch.save writes (pickle protocol 2, and 4 on request) and collects the storages.

    Time and memory are bounded by the length of the pickle: every opcode makes at most one object, the memo is a dict,
    and no value is ever compared, hashed or printed whole.
    """

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}

    def load(self, file: BytesIO) -> Any:
        """The value of the pickle that begins here. Raises Unsafe or ValueError."""
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        try:
            while (opcode := self._next(file)).name != "STOP":
                self._step(opcode.name, _argument(opcode, file))
            return self.stack.pop()
        except LookupError:
            raise ValueError(f"the pickle is inconsistent at byte {file.tell() - 1}") from None

    def _next(self, file: BytesIO) -> pickletools.OpcodeInfo:
        opcode = _OPCODES.get(file.read(1))
        if opcode is None:
            raise ValueError(f"the pickle breaks off at byte {file.tell()}")
        if opcode.name not in _ALLOWED:
            raise Unsafe(f"uses the pickle opcode {opcode.name}, which no state dict needs")
        return opcode

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name == "MARK":
            self.outer.append(stack)
            self.stack = []
        elif name.endswith("BINPUT") or name == "MEMOIZE":
            self.memo[len(self.memo) if argument is None else argument] = stack[-1]
        elif name.endswith("BINGET"):
            stack.append(self.memo[argument])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name.startswith("TUPLE"):
            items = self._to_mark() if name == "TUPLE" else [stack.pop() for _ in range(int(name[-1]))][::-1]
            self.stack.append(tuple(items))
        elif name in ("EMPTY_SET", "FROZENSET"):
            if name == "FROZENSET":
                self._to_mark()
            self.stack.append(Opaque("a set"))
        elif name in ("POP", "POP_MARK"):
            self._to_mark() if name == "POP_MARK" else stack.pop()
        elif name.startswith(("APPEND", "SETITEM", "ADDITEMS")):
            count = 2 if name == "SETITEM" else 1
            self._fill(name, self._to_mark() if name.endswith("S") else [stack.pop() for _ in range(count)][::-1])
        elif name not in ("PROTO", "FRAME"):
            self._make(name, argument)

    def _make(self, name: str, argument: Any) -> None:
        """The opcodes that do harm in Python's own unpickler."""
        last = argument if name == "GLOBAL" else self.stack.pop()
        if name == "GLOBAL":
            self.stack.append(_global(*last.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            self.stack.append(_global(self.stack.pop(), last))
        elif name == "BINPERSID":
            self.stack.append(self._persistent(last))
        elif name == "REDUCE":
            self.stack.append(_call(self.stack.pop(), last))
        elif name.startswith("NEWOBJ"):
            if name == "NEWOBJ_EX":
                self.stack.pop()  # keywords, above the positional arguments
            made_of = self.stack.pop()
            self.stack.append(Opaque(str(made_of) if isinstance(made_of, _Global | Opaque) else "an object"))
        elif not self._takes_attributes(self.stack[-1], last):
            raise Unsafe(f"sets the attributes of a {type(self.stack[-1]).__name__}, which no state dict needs")

    @staticmethod
    def _takes_attributes(target: Any, state: Any) -> bool:
        """Whether attributes may be set, which none of them is: of an Opaque, or as the _metadata of a state dict."""
        return type(target) is Opaque or (type(target) is dict and type(state) is dict)

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _fill(self, name: str, items: list[Any]) -> None:
        """Put items into what is below them; an Opaque takes any, and keeps none."""
        target = self.stack[-1]
        if type(target) is Opaque:
            return
        if name.startswith("SETITEM"):
            _set(target, items)
        elif type(target) is not list or name == "ADDITEMS":
            raise ValueError("something is appended to what is no list")
        else:
            target.extend(items)

    def _persistent(self, identity: Any) -> Any:
        """What a persistent id stands for: a storage, or in the older layout ("module", class, file, source)."""
        if type(identity) is tuple and len(identity) == 4 and isinstance(identity[1], _Global):
            return identity[1]
        return self._storage(identity)

    def _storage(self, identity: Any) -> Storage:
        """The storage of a persistent id: ("storage", class, key, location, number of elements[, None])."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[5:] not in ((), (None,)):
            raise ValueError("a persistent id is not that of a storage")
        tag, kind, key, _, numel = identity[:5]
        if tag != "storage" or not isinstance(kind, _Global) or type(key) is not str or not _is_count(numel):
            raise ValueError("a persistent id is not that of a storage")
        if kind.name not in _STORAGES:
            raise ValueError(f"{Opaque(kind.name)} is no storage")
        storage = Storage(key, _STORAGES[kind.name], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key!r} is described in two ways")
        return self.storages[key]


def _global(module: Any, attribute: Any) -> _Global:
    if type(module) is not str or type(attribute) is not str:
        raise ValueError("a global has no name")
    return _Global(f"{module}.{attribute}")


# ---- writing -------------------------------------------------------------------------------------------------------


def pickled(tensors: Mapping[str, Tensor], key: str = "") -> bytes:
    parts = [b"}", _literal(key), b"}("] if key else [b"}("]
    for i, (name, tensor) in enumerate(tensors.items()):
        shape, numel = tensor.shape, math.prod(tensor.shape)
        strides = tuple(math.prod(n or 1 for n in shape[k + 1 :]) for k in range(len(shape)))
        code = CODES[tensor.dtype].encode()
        storage = [b"(", _literal("storage"), b"ctorch\n", code, b"\n", *map(_literal, (str(i), "cpu", numel)), b"tQ"]
        parts += [_literal(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage]
        parts += [*map(_literal, (0, shape, strides)), b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join((b"\x80\x02", *parts, b"us." if key else b"u."))


def _literal(value: object) -> bytes:
    """The opcodes that push a value."""
    return pickle.dumps(value, 2)[2:-1]
