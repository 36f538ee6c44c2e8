"""PyTorch's own container (`pytorch_model.bin`, `.pt`, `.pth`), read and written without PyTorch.

Agrees with `torch.save` and `torch.load(weights_only=True)` of PyTorch 2.13 on state dicts, in the zip layout and in
the older one of five pickles followed by the storages. Python's unpickler is not used: the opcodes that torch.save
writes are interpreted here, the few globals of a state dict stand for functions of this file, and any other is refused.

Storages are mapped, not read. The checksums of a zip archive are not checked, as PyTorch does not check them either: it
may write files that have none (`torch.serialization.set_crc32_options`).
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from vit_core.files import LFS_POINTER, atomic_file
from vit_core.safetensors_file import Array, Tensor

_DTYPES: dict[str, npt.DTypeLike] = {
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
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_STORAGES = {f"torch.{code}": np.dtype(dtype) for code, dtype in _DTYPES.items()}
_STORAGES["torch.storage.UntypedStorage"] = np.dtype(np.uint8)
_INERT = {f"torch.{dtype}" for dtype in _CODES}  # a dtype among the values: of no use here, and harmless
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the older layout begins with
_MAX_PICKLE = 1 << 22  # bytes: the names of some 20000 tensors; a pickle takes up to 90 times its size in memory
_MAX_NAMES = 1 << 17
_MAX_DIMENSIONS = 32
_ALIGNMENT = 64  # bytes, of the data of every entry that is written
_LARGE = 1 << 30  # bytes, from which on an entry is written with the sizes of zip64


class StateDict(dict[str, Tensor]):
    """Tensors by name, and what the file holds beside them.

    `key` is the top-level name they stand under, "" for the top level; `left_out` names everything else: what stands
    beside that name, and what below it is no tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], key: str, left_out: tuple[str, ...]) -> None:
        super().__init__(tensors)
        self.key, self.left_out = key, left_out


def read_pytorch_bin(path: Path, key: str | None = None) -> StateDict:
    """The tensors of a file by name. One level of wrapping, as in {"model": {...}, "epoch": 3}, is taken off.

    `key` chooses where a file holds several state dicts; "" is its top level. The arrays are private, writable views
    of the mapped file where its bytes allow that, copies otherwise; no two tensors ever share memory. Raises OSError
    when the file can't be opened, ValueError when it is damaged, asks for anything but tensors and plain values, or
    leaves a choice open.
    """
    found = read_state_dicts(path)
    if key is None and len(found) == 1:
        return next(iter(found.values()))
    if key in found:
        return found[key]
    names = ", ".join(f"{name!r} ({len(tensors)} tensors)" for name, tensors in found.items())
    wanted = "several state dicts" if key is None else f"no state dict {key!r}"
    raise ValueError(f"{path} holds {wanted}: choose with key= among {names}.")


def read_state_dicts(path: Path) -> dict[str, StateDict]:
    """Every state dict of a file by its key: the top level ("") and its entries, where they hold tensors by name.

    Raises as `read_pytorch_bin` does.
    """
    with path.open("rb") as file:
        first = file.read(512)
        _refuse_other_kinds(path, first)
        try:
            if not first:
                raise ValueError("it is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            tree, big = _read_zip(file, mapped) if first.startswith(b"PK") else (_read_legacy(mapped), False)
            return _state_dicts(mapped, tree, big)
        except _Unsafe as error:
            raise ValueError(
                f"{path} {error}, which no state dict needs; nothing was executed. If you trust where it comes from, "
                "load it with torch and save its tensors alone: torch.save(model.state_dict(), ...)."
            ) from None
        except (ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"{path} is damaged or not a pytorch_model.bin ({reason}): fetch or save it again."
            ) from error


def _refuse_other_kinds(path: Path, first: bytes) -> None:
    """Name what is often found in a file's place."""
    if first.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is an HTML page, not the file itself: fetch it again, from its download link.")
    if first[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive of PyTorch 0.1: load it with torch and save it again.")


def _state_dicts(mapped: mmap.mmap, tree: Any, big: bool) -> dict[str, StateDict]:
    if type(tree) is not dict:
        kind = "a single tensor" if isinstance(tree, _View) else f"a {type(tree).__name__}"
        raise ValueError(f"it holds {kind}, expected tensors by name")
    nodes = {"": tree, **{key: node for key, node in tree.items() if isinstance(key, str) and type(node) is dict}}
    if sum(map(len, nodes.values())) + len(nodes) * len(tree) > _MAX_NAMES:  # one dict may stand in many places
        raise ValueError("it holds more names than a model has")
    views = {
        key: {n: v for n, v in node.items() if isinstance(n, str) and isinstance(v, _View)}
        for key, node in nodes.items()
    }
    for name in (*tree, *(name for found in views.values() for name in found)):
        if name == "" or not str(name).isprintable():
            raise ValueError(f"{name!r} is no name")
    views = {key: found for key, found in views.items() if found} or ({} if tree else {"": {}})
    if not views:
        raise ValueError("it holds no tensors by name")
    users = Counter(view.storage.key for found in views.values() for view in found.values())
    result: dict[str, StateDict] = {}
    for key, found in views.items():
        tensors = {n: _tensor(mapped, n, view, big, users[view.storage.key] > 1) for n, view in found.items()}
        beside = [str(name) for name in tree if name != key] if key else []
        inside = [f"{key}.{name}" if key else str(name) for name in nodes[key] if name not in found]
        result[key] = StateDict(tensors, key, (*beside, *inside))
    return result


# ---- tensors -----------------------------------------------------------------------------------------------------


class _Unsafe(Exception):
    """A pickle asks for more than values. Not a ValueError, so as to be told apart from damage."""


@dataclass
class _Storage:
    key: str
    dtype: np.dtype[Any]
    numel: int
    begin: int = -1  # offset in the file, once it is known

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """The name of a global. Nothing is looked up by it but functions of this file."""

    name: str


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _view(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> _View:
    """`torch._utils._rebuild_tensor_v2`. Raises ValueError unless each element has its own place in the storage."""
    if type(storage) is not _Storage or type(size) is not tuple or type(stride) is not tuple or metadata:
        raise ValueError("a tensor is not described by a storage, an offset, a shape and strides")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS or not all(map(_is_count, (offset, *size, *stride))):
        raise ValueError("the offset, the shape or the strides of a tensor are no lengths")
    if math.prod(n or 1 for n in size) * storage.dtype.itemsize >= 1 << 63:
        raise ValueError(f"a tensor of shape {size} does not fit into memory")
    last = offset - 1 if 0 in size else offset
    for step, n in sorted((step, n) for step, n in zip(stride, size, strict=True) if n > 1 and 0 not in size):
        if step <= last - offset:
            raise ValueError(
                f"elements of a tensor of shape {size} and strides {stride} share memory, which .contiguous() ends"
            )
        last += step * (n - 1)
    if last >= storage.numel:
        raise ValueError(
            f"a tensor of shape {size}, strides {stride} and offset {offset} exceeds its storage of {storage.numel}"
        )
    return _View(storage, offset, size, stride)


def _tensor(mapped: mmap.mmap, name: str, view: _View, big: bool, shared: bool) -> Tensor:
    dtype, shape = view.storage.dtype, view.shape
    strides = tuple((step if n > 1 else 1) * dtype.itemsize for step, n in zip(view.strides, shape, strict=True))
    begin = view.storage.begin + view.offset * dtype.itemsize
    end = begin + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + dtype.itemsize

    def read() -> Array:
        if 0 in shape:
            return np.empty(shape, dtype)
        bits = np.ndarray(shape, f"{'>' if big else '<'}u{dtype.itemsize}", mapped, begin, strides)
        usable = bits.dtype.isnative and bits.flags.aligned and not shared
        return (bits if usable else bits.astype(f"=u{dtype.itemsize}")).view(dtype)

    def release() -> None:
        if hasattr(mapped, "madvise") and 0 not in shape:
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.madvise(mmap.MADV_DONTNEED, first, end - first)

    return Tensor(shape, dtype, read, name, release)


# ---- the pickle --------------------------------------------------------------------------------------------------


def _ordered_dict(*arguments: Any) -> dict[Any, Any]:
    if arguments:
        raise ValueError("an OrderedDict is made of something")
    return {}


def _size(lengths: Any) -> tuple[Any, ...]:
    if type(lengths) not in (tuple, list) or len(lengths) > _MAX_DIMENSIONS:
        raise ValueError("a torch.Size is no list of lengths")
    return tuple(lengths)


def _parameter(data: Any, requires_grad: Any = True, hooks: Any = None) -> _View:
    if not isinstance(data, _View):
        raise ValueError("a parameter is no tensor")
    return data


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING",
}  # fmt: skip
_ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL",
    "STACK_GLOBAL", "BINPERSID", "REDUCE", "BUILD", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "EMPTY_LIST",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", *_CONSTANTS, *_LITERALS,
}  # fmt: skip
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def _argument(opcode: pickletools.OpcodeInfo, file: BytesIO) -> Any:
    if opcode.name == "GLOBAL":  # in which pickletools would take backslashes for escapes
        lines = [file.readline() for _ in range(2)]
        if not lines[1].endswith(b"\n"):
            raise ValueError("no newline found after the name of a global")
        return " ".join(line[:-1].decode() for line in lines)
    return opcode.arg.reader(file) if opcode.arg else None


class _Unpickler:
    """Interprets the opcodes that torch.save writes (pickle protocol 2, and 4 on request) and collects the storages.

    Time and memory are bounded by the length of the pickle: every opcode makes at most one object, the memo is a dict,
    and no value is ever compared, hashed or printed whole.
    """

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}

    def load(self, file: BytesIO) -> Any:
        """The value of the pickle that begins here. Raises _Unsafe or ValueError."""
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
            raise _Unsafe(f"uses the pickle opcode {opcode.name}")
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
        elif name.startswith(("APPEND", "SETITEM")):
            count = 2 if name == "SETITEM" else 1
            items = self._to_mark() if name.endswith("S") else [stack.pop() for _ in range(count)][::-1]
            (self._append if name.startswith("APPEND") else self._set)(items)
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
            self.stack.append(self._storage(last))
        elif name == "REDUCE":
            function = self.stack.pop()
            if not isinstance(function, _Global) or function.name not in _CALLS:
                called = function.name if isinstance(function, _Global) else f"a {type(function).__name__}"
                raise _Unsafe(f"calls {called}")
            if type(last) is not tuple:
                raise ValueError("the arguments of a call are no tuple")
            self.stack.append(_CALLS[function.name](*last))
        elif type(self.stack[-1]) is not dict or type(last) is not dict:  # BUILD, of the _metadata of a state dict
            raise _Unsafe(f"sets the attributes of a {type(self.stack[-1]).__name__}")

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("something is appended to what is no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("an item is set in what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and not (type(key) is int and 0 <= key < 1 << 32):
                raise ValueError(f"a {type(key).__name__} is no key of a dict")  # others can be slow to hash
            if key in target:
                raise ValueError(f"the name {str(key)[:200]!r} occurs twice")
            target[key] = value

    def _storage(self, identity: Any) -> _Storage:
        """The storage of a persistent id: ("storage", class, key, location, number of elements[, None])."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[5:] not in ((), (None,)):
            raise ValueError("a persistent id is not that of a storage")
        tag, kind, key, _, numel = identity[:5]
        if tag != "storage" or not isinstance(kind, _Global) or type(key) is not str or not _is_count(numel):
            raise ValueError("a persistent id is not that of a storage")
        if kind.name not in _STORAGES:
            raise ValueError(f"{kind.name} is no storage")
        storage = _Storage(key, _STORAGES[kind.name], numel)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"the storage {key!r} is described in two ways")
        return self.storages[key]


def _global(module: Any, attribute: Any) -> _Global:
    if type(module) is not str or type(attribute) is not str:
        raise ValueError("a global has no name")
    name = f"{module}.{attribute}"
    if name not in _CALLS and name not in _STORAGES and name not in _INERT:
        raise _Unsafe(f"asks for the global {name[:200]}")
    return _Global(name)


# ---- the two layouts ---------------------------------------------------------------------------------------------


def _read_zip(file: IO[bytes], mapped: mmap.mmap) -> tuple[Any, bool]:
    """The tree of a zip archive, its storages placed, and whether they are big-endian."""
    entries = _entries(file, mapped)
    roots = [name.partition("/")[0] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it is a zip archive with {len(roots)} data.pkl, torch.save writes one")
    root = roots[0]
    begin, end = entries[f"{root}/data.pkl"]
    if end - begin > _MAX_PICKLE:
        raise ValueError(f"its data.pkl has {end - begin} bytes, expected at most {_MAX_PICKLE}")
    unpickler = _Unpickler()
    tree = unpickler.load(BytesIO(mapped[begin:end]))
    for key, storage in unpickler.storages.items():
        if f"{root}/data/{key}" not in entries:
            raise ValueError(f"it has no storage {key!r}")
        storage.begin, end = entries[f"{root}/data/{key}"]
        if end - storage.begin != storage.nbytes:
            raise ValueError(f"the storage {key!r} has {end - storage.begin} bytes, expected {storage.nbytes}")
    begin, end = entries.get(f"{root}/byteorder", (0, 0))
    order = mapped[begin : min(end, begin + 16)]
    if order not in (b"", b"little", b"big"):
        raise ValueError(f"its byte order is {order!r}")
    return tree, order == b"big"


def _entries(file: IO[bytes], mapped: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Where the data of each entry of a zip archive begins and ends."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"its zip directory can't be read: {error}") from error
    if any(info.filename.partition("/")[2].startswith(("code/", "constants.pkl")) for info in infos):
        raise ValueError("it is a TorchScript archive, which holds code: save the module's state_dict() instead")
    entries: dict[str, tuple[int, int]] = {}
    for info in infos:
        name = info.filename
        if name in entries:
            raise ValueError(f"the entry {name!r} occurs twice")
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise ValueError(f"the entry {name!r} leads out of the archive")
        if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED:
            how = "encrypted" if info.flag_bits & 1 else "compressed"
            raise ValueError(f"the entry {name!r} is {how}, torch.save writes it plain")
        header = mapped[max(info.header_offset, 0) : info.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\3\4" or info.compress_size != info.file_size:
            raise ValueError(f"the entry {name!r} is not where the directory has it")
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        entries[name] = begin, begin + info.file_size
        if entries[name][1] > len(mapped):
            raise ValueError(f"the entry {name!r} is not all there")
    for (_, end), (begin, _) in pairwise(sorted(span for span in entries.values() if span[0] < span[1])):
        if begin < end:
            raise ValueError("two of its entries overlap")
    return entries


def _read_legacy(mapped: mmap.mmap) -> Any:
    """The tree of the older layout, its storages placed. They are little-endian whatever machine wrote them."""
    file, unpickler = BytesIO(mapped[:_MAX_PICKLE]), _Unpickler()
    if mapped[:1] != b"\x80":
        raise ValueError("it is neither a zip archive nor a pickle")
    if unpickler.load(file) != _MAGIC or unpickler.load(file) != _PROTOCOL:
        raise ValueError("it does not begin as torch.save lets a file begin")
    unpickler.load(file)  # of the machine that wrote it
    tree, keys = unpickler.load(file), unpickler.load(file)
    position, places = file.tell(), dict(unpickler.storages)
    for key in keys if type(keys) is list else ():
        storage = places.pop(key, None) if type(key) is str else None
        if storage is None or int.from_bytes(mapped[position : position + 8], "little") != storage.numel:
            raise ValueError("its storages are not those its tensors ask for")
        storage.begin = position + 8
        position = storage.begin + storage.nbytes
        if position > len(mapped):
            raise ValueError(f"the storage {key!r} is not all there")
    if places or position != len(mapped):
        raise ValueError(f"it lacks {len(places)} storages, and {len(mapped) - position} of its bytes belong to none")
    return tree


# ---- writing -----------------------------------------------------------------------------------------------------


def write_pytorch_bin(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file, whole or not at all, as `torch.save` writes a dict, holding one tensor in memory at a time.

    Raises ValueError for a dtype that is not among those that are read, OSError when the disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in _CODES)
    if unknown:
        expected = ", ".join(str(dtype) for dtype in _CODES)
        raise ValueError(f"pytorch_model.bin can't hold {', '.join(unknown)}: expected one of {expected}.")
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_entry(file, archive, "data.pkl", _pickled(tensors))
        _write_entry(file, archive, "byteorder", sys.byteorder.encode())
        for i, tensor in enumerate(tensors.values()):
            _write_entry(file, archive, f"data/{i}", _data(tensor))
            tensor.release()
        _write_entry(file, archive, "version", b"3\n")


def _data(tensor: Tensor) -> memoryview:
    return np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8).data


def _write_entry(file: IO[bytes], archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info, large = zipfile.ZipInfo(f"archive/{name}"), len(data) > _LARGE
    start = file.tell() + 30 + len(info.filename) + 20 * large + 4  # of the data, were there no padding
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # as PyTorch pads
    with archive.open(info, "w", force_zip64=large) as entry:
        entry.write(data)


def _pickled(tensors: Mapping[str, Tensor]) -> bytes:
    parts = [b"\x80\x02}("]
    for i, (name, tensor) in enumerate(tensors.items()):
        shape, numel = tensor.shape, math.prod(tensor.shape)
        strides = tuple(math.prod(n or 1 for n in shape[k + 1 :]) for k in range(len(shape)))
        code = _CODES[tensor.dtype].encode()
        storage = [b"(", _literal("storage"), b"ctorch\n", code, b"\n", *map(_literal, (str(i), "cpu", numel)), b"tQ"]
        parts += [_literal(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage]
        parts += [*map(_literal, (0, shape, strides)), b"\x89ccollections\nOrderedDict\n)RtR"]
    return b"".join((*parts, b"u."))


def _literal(value: object) -> bytes:
    """The opcodes that push a value."""
    return pickle.dumps(value, 2)[2:-1]
