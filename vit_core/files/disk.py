"""Small files, safely: names that stay in their folder, and writes that are whole or not there at all."""

from __future__ import annotations

import io
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any

_WRITEBACK = 1 << 24  # bytes after which the system is told to write them
LFS_POINTER = b"version https://git-lfs"


def refuse_stand_in(path: Path, first: bytes) -> None:
    """Raise ValueError when a file begins as what is often found in its place: a Git LFS pointer or a web page."""
    if first.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository.")
    if first.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ValueError(f"{path} is an HTML page, not the file itself: fetch it again, from its download link.")


def check_stays(shard: Path, index: str) -> None:
    """Refuse, with ValueError, a shard that is a link out of its folder, but for those of the hub's cache."""
    place, found = shard.parent.resolve(), shard.resolve()
    cached = [folder.parent / "blobs" for folder in place.parents if folder.name == "snapshots"]
    if found.parent not in (place, *cached):
        raise ValueError(
            f"{index} names the shard {shard.name!r}, a link that leads out of its folder, to {found}: put the file "
            "itself there if you trust where it comes from."
        )


def check_shard_names(names: set[str], suffix: str, index: str) -> None:
    """Refuse, with ValueError, an index that points anywhere but at plain files beside it."""
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or ".." in name or not name.endswith(suffix):
            raise ValueError(
                f"{index} names the shard {name!r}: expected a bare file name ending in {suffix}. "
                "Do not load it unless you trust where it comes from, and then mend the index."
            )


_synced: ContextVar[bool] = ContextVar("_synced", default=True)


@contextmanager
def unsynced() -> Iterator[None]:
    """Within, the system puts on disk what is written when it likes to: faster, and a power cut may lose it."""
    token = _synced.set(False)
    try:
        yield
    finally:
        _synced.reset(token)


def sync(descriptor: int) -> None:
    """Wait until an open file or folder is on disk."""
    if _synced.get():
        os.fsync(descriptor)


class _Writer(io.BufferedWriter):
    """A file that the system begins to put on disk while it is written, so that the sync at the end is short."""

    _behind = 0  # bytes that it has not been told to

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._behind += count
        if self._behind > _WRITEBACK and hasattr(os, "posix_fadvise") and _synced.get():
            self.flush()
            os.posix_fadvise(self.fileno(), self.tell() - self._behind, self._behind, os.POSIX_FADV_DONTNEED)
            self._behind = 0
        return count


def is_at(path: Path, descriptor: int) -> bool:
    """Whether what is open is still what stands at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def lock(file: IO[bytes]) -> bool:
    """Keep other processes from locking an open file until it is closed; False when one of them has it.

    True, too, where the system or a network file system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def keep_permissions(old: Path, new: Path) -> None:
    """Give a file those of the file that it is to replace, if that is there: one kept from others stays so."""
    with suppress(FileNotFoundError):
        status = old.lstat()
        if stat.S_ISREG(status.st_mode):
            new.chmod(stat.S_IMODE(status.st_mode) & 0o777)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole and on disk, when the block ends without an error."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with _Writer(io.FileIO(str(part), "x+")) as file:
            keep_permissions(path, part)
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):  # of a name that is too long
            part.unlink()
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(part)):
            error.filename = str(path)  # a full disk does not say what was being written
        raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_file(path) as file:
        file.write(content)


def same_file(file: IO[bytes], path: Path) -> str:
    """A path under which a library opens the file that is open here, whatever stands at its own `path` by now.

    Where the system has no such path it is `path`; Windows keeps a file that is open from being replaced.
    """
    name = f"/dev/fd/{file.fileno()}"
    return name if os.path.exists(name) else str(path)
