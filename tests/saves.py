"""Saves that die at any step: a model that needs no framework, and a watch over what Python does to the file system."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from conversion import read
from vit_core.config import ViTConfig
from vit_core.family import PARTS
from vit_core.files import disk as files
from vit_core.files.tensor import Tensor
from vit_core.params import specs
from vit_core.pretrained import PretrainedModel

SHARDED = 1000  # bytes: three shards of the model below
SIZES = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 4,
    "patch_size": 2,
    "num_labels": 2,
}
OLD, NEW, NEWEST = 0.25, 0.5, 0.75
# How a model is saved, by name; the empty one is a folder with no save in it.
SAVES: dict[str, dict[str, Any]] = {
    "single": {},
    "shards": {"max_shard_size": SHARDED},
    "older single": {"safe_serialization": False},
    "older shards": {"safe_serialization": False, "max_shard_size": SHARDED},
}
# And how it is converted.
TARGETS: dict[str, dict[str, Any]] = {
    "torch": {"to": "torch"},
    "torch in shards": {"to": "torch", "max_shard_size": 3000},
    "torch in its older kind": {"to": "torch", "container": "bin"},
    "tf": {"to": "tf", "container": "h5"},
    "flax": {"to": "flax", "container": "msgpack"},
    "google": {"to": "google"},
    "timm": {"to": "timm"},
    "keras-hub": {"to": "keras-hub"},
}


class Model(PretrainedModel):
    """A classifier whose every parameter is one number, as is `initializer_range` in its configuration."""

    architecture = "ViTForImageClassification"
    file_format = "pt"
    _read = staticmethod(read)

    def __init__(self, config: ViTConfig, tensors: dict[str, Any]) -> None:
        self.config, self._tensors = config, tensors

    @classmethod
    def of(cls, value: float, told: float | None = None) -> Self:
        """The model of a number, and what its configuration says, which is the number unless `told` otherwise."""
        config = ViTConfig(**SIZES, initializer_range=value if told is None else told)
        table = specs(config, PARTS[cls.architecture])
        return cls(config, {n: Tensor.of(np.full(spec.shape, value, np.float32)) for n, spec in table.items()})

    @classmethod
    def from_tensors(cls, config: ViTConfig, tensors: Any, seed: int | None, **_: Any) -> Self:
        return cls(config, tensors)

    def to_tensors(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def specs(self) -> dict[str, Any]:
        return specs(self.config, PARTS[self.architecture])

    def values(self) -> tuple[float, set[float]]:
        """What the configuration says, and the numbers that the parameters hold."""
        return self.config.initializer_range, {float(n) for t in self._tensors.values() for n in np.unique(t.read())}


class TFModel(Model):
    file_format = "tf"


class FlaxModel(Model):
    file_format = "flax"


def loaded(folder: Path, model: type[Model] = Model, **options: Any) -> tuple[float, float]:
    """(what the configuration says, the number in every parameter) of a whole checkpoint."""
    found, report = model.from_pretrained(folder, output_loading_info=True, **options)
    assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
    told, (value,) = found.values()
    return told, value


# ---- the watch ---------------------------------------------------------------------------------------------------

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate"}
_LOOKS = {"os.scandir", "os.listdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_watcher: tuple[int, Callable[[str, tuple[Any, ...]], None]] | None = None
_hooked = False


def _hook(event: str, args: tuple[Any, ...]) -> None:
    """For `sys.addaudithook`: an exception of the watcher is raised in the place of what was to be done."""
    if _watcher is None or _watcher[0] != threading.get_ident():
        return
    if event == "open":
        _watcher[1]("write" if args[2] & _WRITING else "read", args)
    elif event in _CHANGES or event in _LOOKS:
        _watcher[1]("write" if event in _CHANGES else "read", (event, *args))


@contextmanager
def watched(watcher: Callable[[str, tuple[Any, ...]], None] | None) -> Iterator[None]:
    """Call `watcher` with "read" or "write", and what it is about, before all that this thread does to files."""
    global _watcher, _hooked
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked = True
    before, _watcher = _watcher, watcher and (threading.get_ident(), watcher)
    try:
        yield
    finally:
        _watcher = before


class Killed(BaseException):
    """A process that dies: nothing that it would still do happens."""


@contextmanager
def stopping(step: int, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` before the step of this number, from 0, that changes files, and before all that follow.

    The second piece that is written to a file is a step as well.
    """
    taken = 0

    def watcher(kind: str, args: tuple[Any, ...]) -> None:
        nonlocal taken
        if kind == "write":
            taken += 1
            if taken > step:
                stop()

    def write(self: Any, data: Any) -> int:
        if self.tell() and self.raw not in begun:
            begun.add(self.raw)
            watcher("write", ())
        return whole(self, data)

    whole, begun = files._Writer.write, set[Any]()
    files._Writer.write = write  # type: ignore[method-assign]
    try:
        with watched(watcher):
            yield
    finally:
        files._Writer.write = whole  # type: ignore[method-assign]


def killed(step: int, save: Callable[[], Any]) -> bool:
    """Let a save die before a step; whether it did, or had ended before."""

    def stop() -> None:
        raise Killed

    try:
        with stopping(step, stop):
            save()
    except Killed:
        return True
    return False


def deaths(template: Path, save: Callable[[Path], Any]) -> Iterator[tuple[Path, bool]]:
    """Copies of a folder in which a save died, each a step later, and True; at last one in which it did not, and False.

    Passed over are deaths that left the same as the one before but for the file that was being written.
    """
    folder, before = template.with_name("model"), None
    for step in range(1000):
        shutil.copytree(template, folder)
        died = killed(step, lambda: save(folder))
        left = [(path, content and content[0]) for path, content in snapshot(folder).items()]
        left = sorted(item for item in left if not item[0].startswith(".vit-saving-"))
        if left != before or not died:
            yield folder, died
        shutil.rmtree(folder, ignore_errors=True)
        if not died:
            return
        before = left
    raise AssertionError("a save that never ends")


def snapshot(folder: Path) -> dict[str, Any]:
    """All that is in a folder: content by path, None for folders, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns)
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }
