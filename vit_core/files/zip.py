"""Where the entries of a zip archive lie in the mapped file, so that stored ones are used without being copied."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from itertools import pairwise
from pathlib import Path
from typing import IO


def zip_entries(file: IO[bytes], mapped: mmap.mmap) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Every entry by name, and the offset at which its data begins; nothing is unpacked.

    Raises ValueError for a directory that can't be read, contradicts the file, or has names that lead out of it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise ValueError(f"its zip directory can't be read: {error}") from error
    found: dict[str, tuple[zipfile.ZipInfo, int]] = {}
    for info in infos:
        name = info.filename
        if name in found:
            raise ValueError(f"the entry {name!r} occurs twice")
        if name.startswith("/") or "\\" in name or not name.isprintable() or {".", ".."} & set(name.split("/")):
            raise ValueError(f"the entry {name!r} leads out of the archive")
        if info.flag_bits & 1:
            raise ValueError(f"the entry {name!r} is encrypted")
        header = mapped[max(info.header_offset, 0) : info.header_offset + 30]
        stored = info.compress_type == zipfile.ZIP_STORED
        if len(header) < 30 or header[:4] != b"PK\3\4" or (stored and info.compress_size != info.file_size):
            raise ValueError(f"the entry {name!r} is not where the directory has it")
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if begin + info.compress_size > len(mapped):
            raise ValueError(f"the entry {name!r} is not all there")
        found[name] = info, begin
    spans = sorted((info.header_offset, begin + info.compress_size) for info, begin in found.values())
    if any(begin < end for (_, end), (begin, _) in pairwise(spans)):
        raise ValueError("two of its entries overlap")
    return found


def check_entry(path: Path, mapped: mmap.mmap, begin: int, size: int, checksum: int, name: str) -> None:
    """Raise ValueError, which says that `name` is damaged, unless the bytes of an entry have this CRC-32."""
    with memoryview(mapped)[begin : begin + size] as content:
        if zlib.crc32(content) != checksum:
            raise ValueError(f"{path} is damaged in {name!r} (its checksum is wrong): fetch or save it again.")
