"""One process of the fuzzer: reads case after case, with limits and watched, and writes a line of JSON for each.

python worker.py FOLDER FORMAT:FIRST:LAST ...; the format `regressions` is the cases that are kept.
"""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
from formats import Case, case
from PIL import Image
from regressions import regression

import conversion
from vit_core.app.cli import main
from vit_core.app.cli.inspect import summarise
from vit_core.pictures.processing import ViTImageProcessor

_SLACK = 64 << 20  # bytes of memory that reading may take beyond the size of its files
_SPACE = 2 << 30  # bytes of address space beyond what the process begins with
_BUSY, _ASLEEP = (
    20,
    1200,
)  # seconds of computing, and of any kind, after which a case is a hang: a signal ends the process
_PICTURE = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
_TARGETS = ("torch", "timm", "keras-hub", "flax", "google")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Events of the interpreter that reading a file of data never causes. (Python: docs, "Audit events table")
_ACTS = (
    "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "os.system", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.chdir", "shutil.",
    "subprocess.Popen", "socket.", "ctypes.dlopen", "pickle.find_class", "webbrowser.", "urllib.", "tempfile.",
)  # fmt: skip


class Watch:
    """What the interpreter does that reading never needs, while it is on."""

    def __init__(self) -> None:
        self.acts: list[str] = []
        self.on = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        path, flags = (arguments[0], arguments[2]) if event == "open" else (0, 0)
        if flags & _WRITES and not isinstance(path, int) and path != os.devnull:
            self.acts.append(f"open {path!r} to write")
        elif event.startswith(_ACTS) and not (
            event == "subprocess.Popen" and "vit_core.files.elsewhere" in str(arguments)
        ):
            self.acts.append(f"{event} {arguments!r}"[:200])


def run(root: Path, cases: list[tuple[str, int]]) -> None:
    """These cases by format and number, in `root`, beside files that must stay as they are."""
    answers = os.fdopen(os.dup(1), "w")
    (root / "outside").mkdir(exist_ok=True)
    for file in ("victim.txt", "outside/model.safetensors", "outside/other.h5"):
        (root / file).write_bytes(b"untouched")
    watch = Watch()
    warnings.simplefilter("ignore")
    _warm_up(root)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _SPACE, resource.RLIM_INFINITY))
    for name, index in cases:
        signal.alarm(_ASLEEP)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + _BUSY, resource.RLIM_INFINITY))
        result = {"format": name, "index": index, **tried(root, watch, name, index)}
        print(json.dumps(result), file=answers, flush=True)


def tried(root: Path, watch: Watch, name: str, index: int) -> dict[str, Any]:
    """What became of a case: `outcome` is accepted, refused, vague or raw; further keys where something was wrong."""
    each: Case = regression(index) if name == "regressions" else case(name, index)
    folder = root / "case"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for file, data in each.files.items():
        (folder / file).write_bytes(data)
    before = _snapshot(root)
    rss, watch.acts = _peak(reset=True), []
    watch.on = True
    try:
        result = outcome(folder, each)
    finally:
        watch.on = False
    taken = _peak() - rss - sum(map(len, each.files.values())) - result.pop("asked", 0)
    if taken > _SLACK:
        result["memory"] = taken
    if touched := sorted(str(path) for path, _ in before ^ _snapshot(root)):
        result["touched"] = touched
    if watch.acts:
        result["acts"] = watch.acts
    return result


def outcome(folder: Path, each: Case) -> dict[str, Any]:
    try:
        asked = _use(folder, each)
    except (ValueError, OSError) as error:
        named = str(folder) in str(error) or isinstance(error, OSError)
        return {"outcome": "refused"} if named else {"outcome": "vague", "error": repr(error)[:300], "at": _at(error)}
    except Exception as error:
        return {"outcome": "raw", "error": repr(error)[:300], "at": _at(error)}
    return {"outcome": "accepted", "asked": asked or 0}


def _use(folder: Path, each: Case) -> int:
    """Everything that a program does with a folder of somebody else's; the bytes of pixels that it asked for."""
    asked = 0
    path, index = folder / each.target, each.number
    options = {**each.options, "ignore_unknown": index % 2 == 0}
    if "preprocessor_config.json" in each.files:
        processor = ViTImageProcessor.from_pretrained(folder)
        with suppress(ValueError):  # of a picture that does not suit it
            asked = processor(Image.fromarray(_PICTURE), return_tensors="np").pixel_values.nbytes
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if index % 20 == 0:  # the slowest by far
            main(["inspect", str(path), *(["--all"], ["--json"], ["--check"], [])[index // 20 % 4]])
    if index % 3 == 0:
        options |= {"head": "drop", "fold_layer_scale": True}
    checkpoint = conversion.read(path, **options)
    for tensor in (*checkpoint.tensors.values(), *checkpoint.unknown.values()):
        tensor.verify()
        assert tensor.read().shape == tensor.shape
    summarise(checkpoint, checkpoint.config)
    if index % 4 == 0 or "preprocessor_config.json" in each.files:
        with suppress(ValueError, OSError):  # of what was asked for, in words that need not name the file
            conversion.convert(path, folder / "out", to=_TARGETS[index % len(_TARGETS)], dry_run=True, **options)
    return asked


def _at(error: BaseException) -> str:
    """Where in this package an error was raised."""
    frames = [
        f
        for f in traceback.extract_tb(error.__traceback__)
        if "/vit_core/" in f.filename or "/conversion/" in f.filename
    ]
    return f"{'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno}" if frames else ""


def _snapshot(root: Path) -> set[tuple[Path, tuple[int, ...]]]:
    """Everything under a folder, with what changes when it is touched."""
    found = set()
    for path in root.rglob("*"):
        stat = path.lstat()
        found.add((path, (stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns)))
    return found


def _peak(reset: bool = False) -> int:
    """The most memory, in bytes, that the process has had since it was reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def _warm_up(root: Path) -> None:
    """Import what the first case would import, and start what it would start."""
    for name in ("safetensors", "pytorch_zip", "msgpack", "npz", "tf_h5", "keras_h5", "preset", "preprocessor"):
        for index in (0, 20):
            watch = Watch.__new__(Watch)
            watch.acts, watch.on = [], False
            tried(root, watch, name, index)


if __name__ == "__main__":
    ranges = [argument.split(":") for argument in sys.argv[2:]]
    run(Path(sys.argv[1]).resolve(), [(name, i) for name, first, last in ranges for i in range(int(first), int(last))])
