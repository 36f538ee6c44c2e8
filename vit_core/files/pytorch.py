"""PyTorch's own container (`pytorch_model.bin`, `.pt`, `.pth`), read and written without PyTorch.

Agrees with `torch.save` and `torch.load(weights_only=True)` of PyTorch 2.13 on state dicts, in the zip layout and in
the older one of five pickles followed by the storages; `torch_pickle` reads the pickles and executes nothing.

Storages are mapped, not read. The checksums of a zip archive, which PyTorch itself does not check, are for
`Tensor.verify`; it may write files that have none (`torch.serialization.set_crc32_options`), but zeros in their place.
"""

from __future__ import annotations

import mmap
import struct
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from vit_core.files.disk import atomic_file, refuse_stand_in
from vit_core.files.names import PRESET_MODEL
from vit_core.files.pickle import CODES, Opaque, Storage, Unpickler, Unsafe, View, pickled
from vit_core.files.tensor import Array, Tensor, raw_bytes, release_pages
from vit_core.files.zip import check_entry, zip_entries

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what the older layout begins with
_MAX_PICKLE = 1 << 22  # bytes: the names of some 20000 tensors; a pickle takes up to 90 times its size in memory
_MAX_NAMES = 1 << 17
_MAX_WRAPPING = 2  # levels of dicts around a state dict
_ALIGNMENT = 64  # bytes, of the data of every entry that is written
_LARGE = 1 << 30  # bytes, from which on an entry is written with the sizes of zip64


_Nodes = dict[str, tuple[dict[Any, Any], tuple[str, str]]]


class _OtherKind(Exception):
    """A whole file of another library. Not a ValueError, so as to be told apart from damage."""


class StateDict(dict[str, Tensor]):
    """Tensors by name, and what the file holds beside them.

    `key` is the name they stand under, "" for the top level, "a.b" for what is in b in a. `left_out` names everything
    else: what stands beside that name, and what below it is no tensor. `unreadable` are the kinds of those of its
    tensors that have no array: sparse, quantised, complex, of dtypes that no model is stored in.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], key: str, left_out: tuple[str, ...], unreadable: Mapping[str, str]
    ) -> None:
        super().__init__(tensors)
        self.key, self.left_out, self.unreadable = key, left_out, unreadable

    def checked(self, path: Path, ignore_unknown: bool = False) -> StateDict:
        """Itself. Raises ValueError that names its tensors that can't be read, unless they are to be left out."""
        if self.unreadable and not ignore_unknown:
            shown = "; ".join(f"{name!r}: {kind}" for name, kind in list(self.unreadable.items())[:8])
            raise ValueError(
                f"{path} holds tensors that no model here has, or that share memory: {shown}. Load it with torch, "
                "make them plain (.contiguous(), .to_dense(), .float()) or leave them out, and save it again."
            )
        return self


def read_pytorch_bin(path: Path, key: str | None = None) -> StateDict:
    """The tensors of a file by name. Two levels of wrapping, as in {"model": {...}, "epoch": 3}, are taken off.

    `key` chooses where a file holds several state dicts; "" is its top level. Values beside the tensors are left out,
    whatever they are; no object is made of them. The arrays are private, writable views
    of the mapped file where its bytes allow that, copies otherwise; no two tensors ever share memory. Raises OSError
    when the file can't be opened, ValueError when it is damaged, holds tensors that can't be read, or leaves a choice
    open.
    """
    found = read_state_dicts(path)
    if key is None and len(found) == 1:
        return next(iter(found.values())).checked(path)
    if key in found:
        return found[key].checked(path)
    names = ", ".join(f"{name!r} ({len(tensors)} tensors)" for name, tensors in found.items())
    wanted = "several state dicts" if key is None else f"no state dict {key!r}"
    raise ValueError(f"{path} holds {wanted}: choose with key= among {names}.")


def read_state_dicts(path: Path) -> dict[str, StateDict]:
    """Every state dict of a file by its key: the top level (""), its entries and theirs, if they hold tensors by name.

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
            return _state_dicts(path, mapped, tree, big)
        except _OtherKind as error:
            raise ValueError(f"{path} {error}") from None
        except Unsafe as error:
            raise ValueError(
                f"{path} {error}; nothing was executed. If you trust where it comes from, load it with torch and save "
                "its tensors alone: torch.save(model.state_dict(), ...)."
            ) from None
        except (ValueError, TypeError, OverflowError, MemoryError, struct.error) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"{path} is damaged or not a pytorch_model.bin ({reason}): fetch or save it again."
            ) from error


def _refuse_other_kinds(path: Path, first: bytes) -> None:
    """Name what is often found in a file's place."""
    refuse_stand_in(path, first)
    if first[257:262] == b"ustar":
        raise ValueError(f"{path} is a tar archive of PyTorch 0.1: load it with torch and save it again.")


def _state_dicts(path: Path, mapped: mmap.mmap, tree: Any, big: bool) -> dict[str, StateDict]:
    nodes = _nodes(tree)
    views = {
        key: {n: v for n, v in node.items() if type(n) is str and _is_tensor(v)} for key, (node, _) in nodes.items()
    }
    views = {key: found for key, found in views.items() if found} or ({} if tree else {"": {}})
    if not views:
        held = ", ".join(list(_left_out(nodes, "", ()))[:8])
        raise Unsafe(f"holds no tensors by name in its first {_MAX_WRAPPING + 1} levels, but {held}")
    for name in (*filter(None, views), *(name for found in views.values() for name in found)):
        if not name or not name.isprintable():
            raise ValueError(f"{name!r} is no name")
    users = Counter(v.storage.key for found in views.values() for v in found.values() if isinstance(v, View))
    result: dict[str, StateDict] = {}
    for key, found in views.items():
        plain = {n: v for n, v in found.items() if isinstance(v, View)}
        tensors = {n: _tensor(mapped, n, view, big, users[view.storage.key] > 1) for n, view in plain.items()}
        tensors = {
            n: replace(t, verify=partial(_verify, path, mapped, n, plain[n].storage)) for n, t in tensors.items()
        }
        unreadable = {name: str(value) for name, value in found.items() if name not in plain}
        result[key] = StateDict(tensors, key, tuple(_left_out(nodes, key, plain)), unreadable)
    return result


def _nodes(tree: Any) -> _Nodes:
    """The dicts that may hold the tensors, the top level, its entries, and theirs; (key, name) of where each stands."""
    if type(tree) is not dict:
        kind = "a single tensor" if isinstance(tree, View) else f"a {type(tree).__name__}"
        if isinstance(tree, Opaque):
            kind = f"an object of {tree}"
        raise Unsafe(f"holds {kind}, expected tensors by name")
    nodes: _Nodes = {"": (tree, ("", ""))}
    names = len(tree)
    for _ in range(_MAX_WRAPPING):
        for outer, (node, _) in list(nodes.items()):
            for name, inner in node.items():
                key = f"{outer}.{name}" if outer else name
                if type(name) is not str or type(inner) is not dict or key in nodes:
                    continue
                names += len(inner) + len(node) + len(tree)
                if names > _MAX_NAMES:  # one dict may stand in many places
                    raise ValueError("it holds more names than a model has")
                nodes[key] = inner, (outer, name)
    return nodes


def _left_out(nodes: _Nodes, key: str, taken: Collection[str]) -> Iterator[str]:
    """What stands beside the state dict of a key, level by level from the top, and what is no tensor in it."""
    node, (outer, name) = nodes[key]
    if key:
        yield from _left_out(nodes, outer, [name])
    for each, value in node.items():
        if each not in taken:
            place = f"{key}.{each}" if key else str(each)
            place = place if place.isprintable() else ascii(place)
            yield f"{place} ({value})" if isinstance(value, Opaque) else place


def _is_tensor(value: Any) -> bool:
    return isinstance(value, View) or (isinstance(value, Opaque) and value.is_tensor)


def _tensor(mapped: mmap.mmap, name: str, view: View, big: bool, shared: bool) -> Tensor:
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

    return Tensor(shape, dtype, read, name, lambda: release_pages(mapped, begin, end if 0 not in shape else begin))


def _verify(path: Path, mapped: mmap.mmap, name: str, storage: Storage) -> None:
    if storage.checksum:
        check_entry(path, mapped, storage.begin, storage.nbytes, storage.checksum, name)


# ---- the two layouts ---------------------------------------------------------------------------------------------


def _read_zip(file: IO[bytes], mapped: mmap.mmap) -> tuple[Any, bool]:
    """The tree of a zip archive, its storages placed, and whether they are big-endian."""
    entries = _entries(file, mapped)
    roots = [name.partition("/")[0] for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if PRESET_MODEL in entries:
        raise _OtherKind("is a .keras archive: load it with Keras, and save the model by save_pretrained().")
    if len(roots) != 1:
        raise ValueError(f"it is a zip archive with {len(roots)} data.pkl, torch.save writes one")
    root = roots[0]
    begin, end, checksum = entries[f"{root}/data.pkl"]
    if end - begin > _MAX_PICKLE:
        raise Unsafe(f"has {end - begin} bytes of values beside its tensors (data.pkl), expected at most {_MAX_PICKLE}")
    if checksum not in (0, zlib.crc32(mapped[begin:end])):
        raise ValueError("the checksum of its data.pkl is wrong")
    unpickler = Unpickler()
    tree = unpickler.load(BytesIO(mapped[begin:end]))
    for key, storage in unpickler.storages.items():
        if f"{root}/data/{key}" not in entries:
            raise ValueError(f"it has no storage {key!r}")
        storage.begin, end, storage.checksum = entries[f"{root}/data/{key}"]
        if end - storage.begin != storage.nbytes:
            raise ValueError(f"the storage {key!r} has {end - storage.begin} bytes, expected {storage.nbytes}")
    begin, end, _ = entries.get(f"{root}/byteorder", (0, 0, 0))
    order = mapped[begin : min(end, begin + 16)]
    if order not in (b"", b"little", b"big"):
        raise ValueError(f"its byte order is {order!r}")
    return tree, order == b"big"


def _entries(file: IO[bytes], mapped: mmap.mmap) -> dict[str, tuple[int, int, int]]:
    """Where the data of each entry of a zip archive begins and ends, and its checksum."""
    found = zip_entries(file, mapped)
    inner = [name.partition("/")[2] for name in found]
    if any(name.startswith(("code/", "constants.pkl")) for name in inner):
        raise Unsafe("is a TorchScript archive, which holds code (torch.jit.load reads it)")
    if "archive_format" in inner and "models/model.json" in inner:
        raise Unsafe("is an archive of torch.export, which holds a program (torch.export.load reads it)")
    for name, (info, _) in found.items():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"the entry {name!r} is compressed, torch.save writes it plain")
    return {name: (begin, begin + info.file_size, info.CRC) for name, (info, begin) in found.items()}


def _read_legacy(mapped: mmap.mmap) -> Any:
    """The tree of the older layout, its storages placed. They are little-endian whatever machine wrote them."""
    file, unpickler = BytesIO(mapped[:_MAX_PICKLE]), Unpickler()
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


def write_pytorch_bin(path: Path, tensors: Mapping[str, Tensor], key: str = "") -> None:
    """Write a file, whole or not at all, as `torch.save` writes a dict, holding one tensor in memory at a time.

    With a `key` that dict is under it in another.

    Raises ValueError for a dtype that is not among those that are read, OSError when the disk is full.
    """
    unknown = sorted(f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in CODES)
    if unknown:
        expected = ", ".join(str(dtype) for dtype in CODES)
        raise ValueError(f"pytorch_model.bin can't hold {', '.join(unknown)}: expected one of {expected}.")
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        _write_entry(file, archive, "data.pkl", pickled(tensors, key))
        _write_entry(file, archive, "byteorder", sys.byteorder.encode())
        for i, tensor in enumerate(tensors.values()):
            _write_entry(file, archive, f"data/{i}", raw_bytes(tensor))
            tensor.release()
        _write_entry(file, archive, "version", b"3\n")


def _write_entry(file: IO[bytes], archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    info, large = zipfile.ZipInfo(f"archive/{name}"), len(data) > _LARGE
    start = file.tell() + 30 + len(info.filename) + 20 * large + 4  # of the data, were there no padding
    padding = -start % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # as PyTorch pads
    with archive.open(info, "w", force_zip64=large) as entry:
        entry.write(data)
