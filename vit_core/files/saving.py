"""A folder whose files change together: a save replaces an older one, and a reader gets the one or the other, whole.

New files are staged in a hidden folder beside the old ones, `.vit-saving-...`, and put in their places by renames.
Libraries look for one file first, here called the entry: the whole weights, or the index of their shards. Where one
rename of an entry is enough, because no document changes and no shard of the old save has the name of a new one, the
order of the renames sees to it that the folder holds the old save or the new one at every moment, to whoever looks.
Where it is not, the staged folder is first renamed to `.vit-saved` and the old entry taken away, without which no
library finds weights; the new one comes as the last. Meanwhile readers of this package take what is still in
`.vit-saved` from there: `find` says where a file is. Reading changes nothing, so that only the next save ends a save
that was cut short.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from vit_core.files.disk import is_at, keep_permissions, sync, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")

_STAGED, _COMMITTED, _GONE, _LOCK = ".vit-saving-", ".vit-saved", ".gone-", ".vit-saving.lock"
_SHARD = re.compile(r"-[0-9]{5}-of-[0-9]{5}\.")
# The names of what a save consists of: a save that is ended for another moves and removes nothing else.
_OWN = re.compile(
    r"(?:config|preprocessor_config|preprocessor|task|image_converter|metadata)\.json"
    r"|(?:(?:pytorch_|tf_|flax_)?model|vit|task)(?:\.[\w.-]+?)?(?:-\d{5}-of-\d{5})?"
    r"\.(?:safetensors|bin|h5|msgpack|npz|pth)(?:\.index(?:\.[\w.-]+)?\.json)?",
    re.ASCII,
)
_BESIDE = "task."  # how the weights of a head are named that lie beside those of their trunk
_ATTEMPTS = 100  # at a read, which takes a few milliseconds


# ---- reading -----------------------------------------------------------------------------------------------------


def find(folder: Path, name: str) -> Path:
    """Where the file of this name is, or would be: in the folder, or in what a save that was cut short left in it."""
    saved = folder / _COMMITTED
    moved = _is_cut_short(folder) and ((saved / name).is_file() or os.path.lexists(saved / f"{_GONE}{name}"))
    return (saved if moved else folder) / name


def beside(path: Path, name: str) -> Path:
    """Where the file of this name is, or would be, that belongs to a file which `find` gave."""
    within = path.parent.name == _COMMITTED and _is_cut_short(path.parent.parent)
    return find(path.parent.parent if within else path.parent, name)


def listing(folder: Path) -> list[str]:
    """The names of all the files that `find` finds in a folder, sorted; none for a folder that is not there."""
    folders = [folder, folder / _COMMITTED] if _is_cut_short(folder) else [folder]
    found = {path.name for each in folders if each.is_dir() for path in each.iterdir()}
    return sorted(name for name in found if not name.startswith(_GONE) and find(folder, name).is_file())


def _is_cut_short(folder: Path) -> bool:
    """Whether a committed save has taken the old entry away, and has not put the new one in its place."""
    saved = folder / _COMMITTED
    if saved.is_symlink() or not saved.is_dir():
        return False
    with suppress(FileNotFoundError):  # it may go meanwhile
        held = os.listdir(saved)
        entries = [name for name in held if _is_entry(name.removeprefix(_GONE))]
        return any(map(_is_entry, held)) and not any(os.path.lexists(folder / n.removeprefix(_GONE)) for n in entries)
    return False


def _is_entry(name: str) -> bool:
    part = name.startswith(_BESIDE) or _SHARD.search(name) or _is_document(name)
    return _OWN.fullmatch(name) is not None and not part


def _is_document(name: str) -> bool:
    return name.endswith(".json") and ".index." not in name


def settled(source: str | os.PathLike[str], read: Callable[[], T]) -> T:
    """What `read` makes of a folder, or of a file and what lies beside it, as they were at one moment.

    When files of a model were replaced meanwhile, it reads again. Raises what `read` raises, and OSError when the files
    never stay as they are.
    """
    path = Path(source).expanduser()
    for _ in range(_ATTEMPTS):
        before = _state(path)
        try:
            result = read()
        except Exception:
            if _state(path) == before:
                raise
        else:
            if _state(path) == before:
                return result
    raise OSError(f"{path} was saved to again and again while it was read: try again when that has ended.")


def _state(path: Path) -> dict[str, tuple[int, ...]]:
    """What tells the files of a save from those of any other, by name."""
    found: dict[str, tuple[int, ...]] = {}
    for folder in (path, path / _COMMITTED) if path.is_dir() else (path.parent, path.parent / _COMMITTED):
        with suppress(OSError), os.scandir(folder) as entries:  # it may be none, or go meanwhile
            for entry in entries:
                if _OWN.fullmatch(entry.name) or entry.name in (path.name, _COMMITTED):
                    status = entry.stat(follow_symlinks=False)
                    times = (status.st_mtime_ns, status.st_ctime_ns)
                    found[f"{folder.name}/{entry.name}"] = (status.st_ino, status.st_size, *times)
    return found


# ---- writing -----------------------------------------------------------------------------------------------------


@contextmanager
def replacing_files(folder: Path, replaced: Sequence[str]) -> Iterator[Path]:
    """Yield an empty folder; the files that the block writes to it, weights among them, then appear in `folder`.

    Files in `folder` that match a pattern of `replaced` and are not written anew go at the same time: its patterns
    stand in the order in which libraries look for them. An error in the block leaves `folder` as it was. Waits for
    other saves to `folder`. Raises OSError for what can't be written.
    """
    with _alone(folder) as locked:
        stage = folder / f"{_STAGED}{secrets.token_hex(8)}"
        try:
            stage.mkdir()
            yield stage
            _replace(folder, stage, replaced, locked)
        except OSError as error:
            if error.filename and Path(error.filename).parent == stage:  # which is gone when the error is read
                error.filename = str(folder / Path(error.filename).name)
            raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


def save_document(path: Path, content: bytes) -> None:
    """Write one file of a folder, made if need be, whole or not at all. Waits for other saves to the folder."""
    with _alone(path.parent):
        write_atomically(path, content)


def _replace(folder: Path, stage: Path, replaced: Sequence[str], locked: bool) -> None:
    """Put what is staged in the places of the old files."""
    new = set(os.listdir(stage))
    for name in new:
        if (folder / name).is_dir():
            raise IsADirectoryError(f"{folder / name} is a folder: expected a file to replace, or none. Remove it.")
        keep_permissions(folder / name, stage / name)
    files = sorted(name for name in os.listdir(folder) if not (folder / name).is_dir())
    old = [name for pattern in reversed(replaced) for name in files if fnmatchcase(name, pattern)]
    old.sort(key=lambda name: not _is_entry(name))  # an index before what it names
    gone = [name for name in old if name not in new]
    documents = {name for name in {*new, *gone} if _is_document(name)}
    shards = {name for name in new if _SHARD.search(name)}
    entries = new - documents - shards
    fresh = not any(os.path.lexists(folder / name) for name in shards)
    same = all(_same(stage / name, folder / name) for name in documents)
    if locked and len(entries) == 1 and fresh and same:
        _move(stage, folder, shards)
        _move(stage, folder, entries)
        _take_away(folder, gone, stage)
    else:
        for name in gone:
            (stage / f"{_GONE}{name}").touch()
        _sync(stage)
        with _explained(folder):
            stage.rename(folder / _COMMITTED)
            _sync(folder)
            _take_away(folder, filter(_is_entry, old), folder / _COMMITTED)
        _finish(folder)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Say what it means when renames fail that can't fail for a saver who is alone."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
            raise FileExistsError(f"Another process is saving to {folder}: save again when it has ended.") from error
        raise


def _finish(folder: Path) -> None:
    """Put what was committed in its place, the entry last. Whenever this is cut short, it can be done again."""
    saved = folder / _COMMITTED
    with _explained(folder), os.scandir(saved) as found:
        names = {entry.name for entry in found if entry.is_file(follow_symlinks=False)}
        gone = [name.removeprefix(_GONE) for name in names if name.startswith(_GONE)]
        _take_away(folder, [name for name in gone if _OWN.fullmatch(name) and not _is_entry(name)], saved)
        entries = {name for name in names if _is_entry(name)}
        _move(saved, folder, {name for name in names if _OWN.fullmatch(name)} - entries)
        _move(saved, folder, entries)
        _discard(folder)


def _take_away(folder: Path, names: Iterable[str], target: Path) -> None:
    """Move what is there of these files, one after the other, to where it is removed with all else."""
    for name in names:
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            os.replace(folder / name, target / f"{_GONE}{name}")
            _sync(folder)


def _move(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        os.replace(source / name, target / name)
    _sync(target)


def _discard(folder: Path) -> None:
    """Remove what was committed, when all of it that counts is in its place, or all that it was to replace."""
    left = folder / f"{_STAGED}{secrets.token_hex(8)}"
    (folder / _COMMITTED).rename(left)
    shutil.rmtree(left, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()


def _sync(folder: Path) -> None:
    """Put a folder's entries on disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Make a folder if need be, keep other savers out of it, and end or clear away what killed ones left.

    Yields whether others are kept out. When the block fails, a folder that was made for it goes again.
    """
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: expected a folder to save to.")
    fresh = not folder.exists()
    with _lock(folder) as locked:
        try:
            if locked:
                for left in folder.glob(_STAGED + "[0-9a-f]" * 16):
                    shutil.rmtree(left, ignore_errors=True)
            _end_cut_short(folder)
            yield locked
        except BaseException:
            if fresh:
                with suppress(OSError):  # another save may have come in
                    folder.rmdir()
            raise


def _end_cut_short(folder: Path) -> None:
    saved = folder / _COMMITTED
    if _is_cut_short(folder):
        _finish(folder)
    elif saved.is_symlink() or saved.is_file():
        raise FileExistsError(f"{saved} is not what a save leaves: remove it, then save again.")
    elif saved.is_dir():
        _discard(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Make a folder if need be and hold its one lock, which ends with the process; False where the system has none."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path, descriptor = _flock(folder)
        if descriptor is None:
            yield False
            return
        try:
            if is_at(path, descriptor):  # it goes again with another save that fails
                yield True
                return
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing does not end it where a fork has the file open, too
            os.close(descriptor)


def _flock(folder: Path) -> tuple[Path, int | None]:
    """Wait for the lock of a folder: what is locked, the folder itself or, as NFS wants it, a file in it; and open."""
    if fcntl is None:
        return folder, None
    lock = folder / _LOCK
    for path, flags in ((folder, os.O_RDONLY), (lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)):
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            os.close(descriptor)
        else:
            return path, descriptor
    lock.unlink(missing_ok=True)
    return folder, None
