"""Small files, safely: names that stay in their folder, and writes that are whole or not there at all."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def check_stays(folder: Path, name: str, index: str) -> None:
    """Refuse, with ValueError, a shard that is a link out of its folder, but for those of the hub's cache."""
    place, found = folder.resolve(), (folder / name).resolve()
    cached = place.parents[1] / "blobs" if place.parent.name == "snapshots" else place
    if found.parent not in (place, cached):
        raise ValueError(
            f"{index} names the shard {name!r}, a link that leads out of its folder, to {found}: put the file itself "
            "there if you trust where it comes from."
        )


def check_shard_names(names: set[str], suffix: str, index: str) -> None:
    """Refuse, with ValueError, an index that points anywhere but at plain files beside it."""
    for name in sorted(names):
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or ".." in name or not name.endswith(suffix):
            raise ValueError(
                f"{index} names the shard {name!r}: expected a bare file name ending in {suffix}. "
                "Do not load it unless you trust where it comes from, and then mend the index."
            )


class _Writer(io.BufferedWriter):
    """A file that the system begins to put on disk while it is written, so that the sync at the end is short."""

    _behind = 0  # bytes that it has not been told to

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._behind += count
        if self._behind > _WRITEBACK and hasattr(os, "posix_fadvise"):
            self.flush()
            os.posix_fadvise(self.fileno(), self.tell() - self._behind, self._behind, os.POSIX_FADV_DONTNEED)
            self._behind = 0
        return count


def lock(file: IO[bytes], wait: bool = True) -> bool:
    """Keep other processes from locking an open file until it is closed; False when one of them has it.

    True, too, where the system or a network file system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at `path`, whole and on disk, when the block ends without an error."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with _Writer(io.FileIO(descriptor, "wb")) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_file(path) as file:
        file.write(content)


# ---- a folder whose files change together ------------------------------------------------------------------------
# New files are staged in a folder beside the old ones. One rename commits them: before it the old files are what
# counts, after it the new ones, and whoever opens the folder next finishes the moves that a crash left undone.

_STAGED, _COMMITTED, _STALE = ".saving-", ".saved", ".stale.json"
_ABANDONED_AFTER = 3600  # seconds after which the staging folder of a killed process is removed


@contextmanager
def replacing_files(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield an empty staging folder and a list; on success the staged files appear in `folder`, all or none.

    Names put into the list are removed from `folder` at the same time. An error leaves `folder` as it was.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: expected a folder to save to.")
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    finish_save(folder)
    for abandoned in folder.glob(f"{_STAGED}*"):
        if time.time() - abandoned.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(abandoned, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=_STAGED))
    stale: list[str] = []
    try:
        yield stage, stale
        write_atomically(stage / _STALE, json.dumps(stale).encode())
        _sync(stage)
        stage.rename(folder / _COMMITTED)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        if fresh and not any(folder.iterdir()):
            folder.rmdir()
        raise
    _sync(folder)
    finish_save(folder)


def finish_save(folder: Path) -> None:
    """Bring a save that was committed but interrupted to its end; do nothing when there is none."""
    committed = folder / _COMMITTED
    if not committed.is_dir():
        return
    try:
        for name in json.loads((committed / _STALE).read_bytes()) if (committed / _STALE).is_file() else ():
            (folder / name).unlink(missing_ok=True)
        for file in sorted(committed.iterdir()):
            if file.name != _STALE:
                os.replace(file, folder / file.name)
        (committed / _STALE).unlink(missing_ok=True)
        committed.rmdir()
    except FileNotFoundError:
        pass  # another process is finishing the same save
    except PermissionError as error:
        raise PermissionError(
            f"A save to {folder} was interrupted and its files can't be moved into place ({error.strerror}): "
            "open the folder once as a user who may write to it."
        ) from error
    _sync(folder)


def _sync(folder: Path) -> None:
    """Put a folder's entries on disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
