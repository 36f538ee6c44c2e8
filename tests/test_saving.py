"""What saving promises: whoever reads, whenever a save dies, and however many save, there is one whole checkpoint."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import CHECKPOINTS
from saves import (
    NEW,
    NEWEST,
    OLD,
    SAVES,
    SHARDED,
    TARGETS,
    FlaxModel,
    Killed,
    Model,
    TFModel,
    deaths,
    loaded,
    snapshot,
    stopping,
    watched,
)  # fmt: skip

from conversion import convert, read
from vit_core.config import ViTConfig
from vit_core.files import saving
from vit_core.files.disk import write_atomically
from vit_core.files.documents import read_json_object
from vit_core.formats import FORMATS
from vit_core.formats.huggingface import CONTAINERS, find_weights, read_checkpoint
from vit_core.pictures.processing import ViTImageProcessor

TESTS = Path(__file__).parent
STEPS = range(1000)  # more than any save takes
PAIRS = list(itertools.product(["", *SAVES], SAVES))  # those from nothing first


@pytest.fixture(autouse=True)
def _no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on disk matters when the machine dies, not when a process does; waiting for it takes most of the time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def save(folder: Path, kind: str, value: float, told: float | None, model: type[Model] = Model) -> None:
    if kind:
        model.of(value, told).save_pretrained(folder, **SAVES[kind])


def visible(folder: Path, order: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")) -> Any:
    """What a library finds that knows nothing of this package and looks for files as transformers does.

    None where it refuses the folder, for lack of weights: a configuration that is not there has the default values.
    Otherwise what the configuration says, and every number in the weights.
    """
    config = folder / "config.json"
    told = read_json_object(config)["initializer_range"] if config.is_file() else ViTConfig().initializer_range
    names = [name for single in order for name in (single, f"{single}.index.json")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        return None
    shards = set(read_json_object(path)["weight_map"].values()) if path.suffix == ".json" else {path.name}
    if not all((folder / shard).is_file() for shard in shards):
        return None
    tensors = [t for shard in shards for t in read_checkpoint(folder / shard).tensors.values()]
    (value,) = {float(number) for tensor in tensors for number in tensor.read().ravel()}
    return told, value


def names_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_a_kill_at_any_step(tmp_path: Path, before: str, after: str, told: float | None) -> None:
    """The old checkpoint or the new one, to readers of this package; the same, or an error, to those of another."""
    template, whole = tmp_path / "template", tmp_path / "whole"
    template.mkdir()
    save(template, before, OLD, told)
    save(whole, after, NEW, told)
    old, new = (told or OLD, OLD), (told or NEW, NEW)
    both = [new] if not before else [old, new]
    seen = []
    for folder, died in deaths(template, lambda folder: save(folder, after, NEW, told)):
        left, hidden = snapshot(folder), [name for name in names_of(folder) if name.startswith(".")]
        if not died:
            assert (visible(folder), loaded(folder), names_of(folder)) == (new, new, names_of(whole))
            break
        seen.append(visible(folder))
        assert seen[-1] in (None, *both)
        if before or ".vit-saved" in hidden or seen[-1]:
            assert loaded(folder) in both
            assert ViTConfig.from_pretrained(folder).initializer_range in (told or OLD, told or NEW)
        assert snapshot(folder) == left
        save(folder, after, NEWEST, told)
        assert (loaded(folder), names_of(folder)) == ((told or NEWEST, NEWEST), names_of(whole))
    assert set(seen) >= {old if before else None}
    one_rename = told is not None and before and not ("shards" in after and before == after)
    assert (None in seen) == (not one_rename)


@pytest.mark.parametrize("model", [TFModel, FlaxModel])
@pytest.mark.parametrize(("before", "after"), PAIRS[4:])
def test_a_kill_at_any_step_in_the_containers_of_other_frameworks(
    tmp_path: Path, before: str, after: str, model: type[Model]
) -> None:
    own = {TFModel: "tf_model.h5", FlaxModel: "flax_model.msgpack"}[model]
    save(tmp_path / "template", before, OLD, None, model)
    for folder, died in deaths(tmp_path / "template", lambda folder: save(folder, after, NEW, None, model)):
        found = loaded(folder, model)
        assert found in ((OLD, OLD), (NEW, NEW)) and (died or found[0] == NEW)
        assert visible(folder, ("model.safetensors", own)) in (None, (OLD, OLD), (NEW, NEW))


@pytest.mark.parametrize("kind", SAVES)
def test_an_error_at_any_step(tmp_path: Path, kind: str) -> None:
    """A disk that fails once: the error reaches the caller, and the folder holds the old checkpoint or the new one."""

    def fail() -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise OSError(5, "Input/output error")

    save(tmp_path / "template", "shards", OLD, None)
    for step in STEPS:
        folder, failed, ended = tmp_path / "model", False, False
        shutil.copytree(tmp_path / "template", folder)
        with suppress(OSError), stopping(step, fail):
            save(folder, kind, NEW, None)
            ended = True
        assert loaded(folder) in ([(NEW, NEW)] if ended else [(OLD, OLD), (NEW, NEW)])
        save(folder, kind, NEWEST, None)
        assert loaded(folder) == (NEWEST, NEWEST)
        assert not [name for name in names_of(folder) if name.startswith(".")]
        shutil.rmtree(folder)
        if not failed:
            break


@pytest.mark.parametrize("kind", SAVES)
def test_permissions_outlive_a_save(tmp_path: Path, kind: str) -> None:
    """A file that its owner keeps from others stays so when another takes its place."""
    save(tmp_path, kind, OLD, None)
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    save(tmp_path, kind, NEW, None)
    save(tmp_path, kind, NEWEST, NEW)
    ViTImageProcessor().save_pretrained(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes.pop("preprocessor_config.json") != 0o600
    assert set(modes.values()) == {0o600}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would be named had it been written, not as the file is called meanwhile."""

    def full(self: Any, data: Any) -> int:
        return os.write(descriptor, data)

    descriptor = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("vit_core.files.disk._Writer.write", full)
    for saved, name in ((Model.of(NEW), "model.safetensors"), (ViTImageProcessor(), "preprocessor_config.json")):
        with pytest.raises(OSError, match="No space left on device") as caught:
            saved.save_pretrained(tmp_path / "model")
        assert Path(caught.value.filename) == tmp_path / "model" / name
    os.close(descriptor)


def test_a_save_of_one_document_over_one_that_was_cut_short(tmp_path: Path) -> None:
    """config.json or the preprocessor alone: the save before is brought to its end first."""
    save(tmp_path / "template", "shards", OLD, None)
    processor = ViTImageProcessor(size={"height": 4, "width": 4})
    ended = 0
    for folder, _ in deaths(tmp_path / "template", lambda folder: save(folder, "single", NEW, None)):
        cut_short = visible(folder) is None
        ended += cut_short
        processor.save_pretrained(folder)
        assert loaded(folder) in ([(NEW, NEW)] if cut_short else [(OLD, OLD), (NEW, NEW)])
        assert ViTImageProcessor.from_pretrained(folder) == processor
        value = loaded(folder)[1]
        ViTConfig.from_pretrained(folder).copy(initializer_range=NEWEST).save_pretrained(folder)
        assert loaded(folder) == (NEWEST, value)
        assert not [name for name in names_of(folder) if name.startswith(".")]
    assert ended > 3


@pytest.mark.parametrize("document", ["config", "processor"])
def test_a_kill_leaves_a_document_whole(tmp_path: Path, document: str) -> None:
    def made(value: float) -> Any:
        if document == "config":
            return ViTConfig(initializer_range=value)
        return ViTImageProcessor(rescale_factor=value)

    made(OLD).save_pretrained(tmp_path / "template")
    seen = []
    for folder, died in deaths(tmp_path / "template", lambda folder: made(NEW).save_pretrained(folder)):
        found = type(made(OLD)).from_pretrained(folder)
        assert found == made(NEW) or (died and found == made(OLD))
        seen.append(died)
    assert len(seen) > 2


# ---- conversions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_a_kill_of_a_conversion(tmp_path: Path, target: str) -> None:
    """The old target or the new one, with the documents beside it."""
    sources = [tmp_path / "one", tmp_path / "other"]
    for source, value in zip(sources, (OLD, NEW), strict=True):
        Model.of(value).save_pretrained(source)
        ViTImageProcessor(size={"height": 4, "width": 4}, image_mean=[value] * 3).save_pretrained(source)
    convert(sources[0], tmp_path / "template", **TARGETS[target])

    def found(folder: Path) -> tuple[set[float], float]:
        checkpoint = read(folder, num_attention_heads=2, stored_image_size=4)
        assert checkpoint.processor is not None
        numbers = {float(n) for tensor in checkpoint.tensors.values() for n in tensor.read().ravel()}
        return numbers, checkpoint.processor["image_mean"][0]

    for folder, died in deaths(tmp_path / "template", lambda f: convert_to(sources[1], f, TARGETS[target])):
        values, mean = found(folder)
        (value,) = values
        assert (value, mean) in ((OLD, pytest.approx(OLD)), (NEW, pytest.approx(NEW)))
        assert died or value == NEW
        convert(sources[1], folder, **TARGETS[target])
        assert found(folder) == ({NEW}, pytest.approx(NEW))
        assert names_of(folder) == names_of(tmp_path / "template")


def test_a_head_does_not_outlive_its_model(tmp_path: Path) -> None:
    """keras-hub keeps the head in a file of its own, beside documents that speak of it."""
    source = CHECKPOINTS / "mini" / "pt_safetensors"
    convert(source, tmp_path / "model", to="keras-hub")
    assert (tmp_path / "model" / "task.weights.h5").is_file()
    convert(source, tmp_path / "model", to="keras-hub", head="drop")
    convert(source, tmp_path / "alone", to="keras-hub", head="drop")
    assert names_of(tmp_path / "model") == names_of(tmp_path / "alone")
    assert not any(name.startswith("classifier") for name in read(tmp_path / "model").tensors)


def test_every_file_of_a_save_is_known_as_one(tmp_path: Path) -> None:
    """A save that is cut short is ended for it by the next: that moves what it knows, and nothing else."""
    containers = {*CONTAINERS, *(family.container for family in FORMATS.values())}
    found = {name for c in containers for v in (None, "fp16") for name in (*c.names(v), "config.json")}
    found |= {f"{c.stem}-00001-of-00002{c.suffix}" for c in CONTAINERS}
    found |= {"model.fp16-00001-of-00002.safetensors"}
    for i, (kind, target) in enumerate(itertools.product(("pt_safetensors", "tf_safetensors"), TARGETS.values())):
        found |= names_of(convert_to(CHECKPOINTS / "mini" / kind, tmp_path / str(i), target))
    assert {name for name in found if not saving._OWN.fullmatch(name)} == set()
    for name in ("README.md", "tokenizer.json", "trainer_state.json", "optimizer.bin", "optimizer.pt", "a/model.bin"):
        assert not saving._OWN.fullmatch(name)


def convert_to(source: Path, folder: Path, options: dict[str, Any]) -> Path:
    convert(source, folder, **options)
    return folder


# ---- readers beside a saver --------------------------------------------------------------------------------------


def at_each_look(act: Callable[[], None], reading: Callable[[], Any]) -> list[Any]:
    """What a reader finds, for each of its looks at the files: `act` is done before that one."""
    found = []
    for look in STEPS:
        taken = 0

        def watcher(kind: str, args: tuple[Any, ...], look: int = look) -> None:
            nonlocal taken
            assert kind == "read", args
            taken += 1
            if taken == look + 1:
                with watched(None):
                    act()

        with watched(watcher):
            found.append(reading())
        if taken <= look:
            return found
    raise AssertionError("a reader that never ends")


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
@pytest.mark.parametrize(("before", "after"), PAIRS[4:])
def test_a_save_at_any_moment_of_a_read(tmp_path: Path, before: str, after: str, told: float | None) -> None:
    save(tmp_path, before, OLD, told)
    loaded(tmp_path)  # modules that are loaded when they are needed
    turns = itertools.cycle([(after, NEW), (before, OLD)])

    def act() -> None:
        kind, value = next(turns)
        save(tmp_path, kind, value, told)

    found = at_each_look(act, lambda: loaded(tmp_path))
    assert len(found) > 5
    assert all(told or value == said for said, value in found)
    assert {value for _, value in found} == {OLD, NEW}


def test_a_save_that_is_ended_at_any_moment_of_a_read(tmp_path: Path) -> None:
    """The reader begins in the midst of one save; another comes before it is through."""
    save(tmp_path / "template", "shards", OLD, None)
    middle, left = 0, tmp_path / "left"

    def restored() -> tuple[float, float]:
        with watched(None):
            shutil.rmtree(tmp_path / "model", ignore_errors=True)
            shutil.copytree(left, tmp_path / "model")
        return loaded(tmp_path / "model")

    for folder, _ in deaths(tmp_path / "template", lambda folder: save(folder, "shards", NEW, None)):
        if visible(folder) is None:
            middle += 1
            shutil.rmtree(left, ignore_errors=True)
            folder.rename(left)
            found = at_each_look(lambda: save(tmp_path / "model", "single", NEWEST, None), restored)
            assert set(found) <= {(NEW, NEW), (NEWEST, NEWEST)} and len(found) > 5
    assert middle > 4


def test_a_reader_gives_up_in_a_sentence(tmp_path: Path) -> None:
    """Where the files are replaced at each of its looks."""
    save(tmp_path, "single", OLD, None)

    def watcher(kind: str, args: tuple[Any, ...]) -> None:
        with watched(None):
            ViTConfig(initializer_range=NEW).save_pretrained(tmp_path)

    with watched(watcher), pytest.raises(OSError, match="was saved to again and again while it was read: try again"):
        loaded(tmp_path)


@pytest.mark.parametrize("kind", ["pt_safetensors", "pt_bin_bf16", "tf_h5", "flax_msgpack_bf16"])
def test_another_file_in_the_place_of_one_that_is_read(tmp_path: Path, kind: str) -> None:
    """A writer that swaps two files: header and data are of one of them, though no save of this package is at work."""
    source = CHECKPOINTS / ("cls" if kind == "tf_h5" else "mini") / kind
    name = find_weights(source).name
    one, other = (tmp_path / f"{i}{Path(name).suffix}" for i in range(2))
    shutil.copy(source / name, one)
    convert(source, tmp_path / "half", to="torch", dtype="float64")
    target = {"tf_h5": ("tf", "h5"), "flax_msgpack_bf16": ("flax", "msgpack"), "pt_bin_bf16": ("torch", "bin")}
    to, container = target.get(kind, ("torch", "safetensors"))
    convert(tmp_path / "half", other, to=to, container=container)
    path = tmp_path / f"x{one.suffix}"
    shutil.copy(one, path)

    def numbers(of: Path) -> dict[str, tuple[str, bytes]]:
        return {n: (t.dtype.name, t.read().tobytes()) for n, t in read_checkpoint(of).tensors.items()}

    expected, turns = [numbers(one), numbers(other)], itertools.cycle([other, one])

    def swap() -> None:
        shutil.copy(next(turns), tmp_path / "part")
        os.replace(tmp_path / "part", path)

    found = at_each_look(swap, lambda: numbers(path))
    assert len(found) > 1 and all(each in expected for each in found)


SAVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from saves import Model, SAVES
value = float(sys.argv[2])
for i in range(int(sys.argv[3])):
    Model.of(value).save_pretrained(Path(sys.argv[1]), **list(SAVES.values())[i % len(SAVES)])
"""


def test_savers_and_a_reader_at_once(tmp_path: Path) -> None:
    """Two processes save 40 times each, whole and sharded, in both containers; every read in between is whole."""
    save(tmp_path, "single", OLD, None)
    command = [sys.executable, "-c", SAVER.format(tests=str(TESTS)), str(tmp_path)]
    savers = [subprocess.Popen([*command, str(v), "40"], stderr=subprocess.PIPE) for v in (NEW, NEWEST)]
    reads = 0
    while any(saver.poll() is None for saver in savers) or reads == 0:
        said, value = loaded(tmp_path)
        assert said == value
        reads += 1
    assert [(saver.communicate()[1], saver.returncode) for saver in savers] == [(b"", 0)] * 2
    assert loaded(tmp_path) in ((NEW, NEW), (NEWEST, NEWEST))
    save(tmp_path / "alone", "older shards", NEW, None)
    assert names_of(tmp_path) - {"alone"} == names_of(tmp_path / "alone")


# ---- savers beside a saver ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("folders", [True, False], ids=["a lock of folders", "a lock of files alone"])
def test_threads_that_save_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: bool) -> None:
    """NFS has no locks of folders."""
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if not folders and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    values, errors = [i / 8 for i in range(1, 7)], []

    def run(i: int) -> None:
        try:
            for kind in SAVES:
                save(tmp_path, kind, values[i], None)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(values))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    said, value = loaded(tmp_path)
    assert said == value and value in values
    assert [n for n in names_of(tmp_path) if n.startswith(".")] == ([] if folders else [".vit-saving.lock"])


def test_a_lock_ends_though_a_fork_has_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As workers that are forked during a save, which share what is open."""
    fcntl, lock, shared = pytest.importorskip("fcntl"), saving._flock, []

    def flock(folder: Path) -> Any:
        path, descriptor = lock(folder)
        shared.append(os.dup(descriptor))
        return path, descriptor

    monkeypatch.setattr(saving, "_flock", flock)
    save(tmp_path, "single", OLD, None)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for each in (descriptor, *shared):
        os.close(each)


def test_a_lock_that_leads_out_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file in the folder is the lock: a link in its place is not followed."""
    fcntl, folder = pytest.importorskip("fcntl"), tmp_path / "model"

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", flock)
    save(folder, "single", OLD, None)
    (folder / ".vit-saving.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match=r"\.vit-saving\.lock"):
        save(folder, "single", NEW, None)
    assert names_of(tmp_path) == {"model"} and loaded(folder) == (OLD, OLD)


def test_a_folder_that_goes_while_its_lock_is_awaited(tmp_path: Path) -> None:
    """A first save that fails takes its folder away; the one that waited for it makes it anew."""
    folder, begun = tmp_path / "model", threading.Event()
    waiting = threading.Thread(target=lambda: (begun.set(), save(folder, "single", NEW, None)))

    def fail() -> None:
        with saving.replacing_files(folder, ()):
            waiting.start()
            begun.wait()
            raise Killed

    with pytest.raises(Killed):
        fail()
    waiting.join()
    assert loaded(folder) == (NEW, NEW)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from saves import Model, stopping
with stopping(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)):
    Model.of(0.5).save_pretrained(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("name", ["gone/x.npz", "x" * 250 + ".npz"], ids=["no folder", "too long with the suffix"])
def test_what_can_not_be_written_is_called_by_its_own_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="npz") as raised:
        write_atomically(tmp_path / name, b"")
    assert raised.value.filename == str(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    save(tmp_path, "single", OLD, None)
    for step in (0, 4, 8, 12):
        command = [sys.executable, "-c", KILLED.format(tests=str(TESTS)), str(tmp_path), str(step)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert loaded(tmp_path) in ((OLD, OLD), (NEW, NEW))
        save(tmp_path, "shards", OLD, None)
        assert loaded(tmp_path) == (OLD, OLD)


@pytest.mark.parametrize("told", [None, OLD], ids=["another configuration", "the same configuration"])
@pytest.mark.parametrize(("before", "after"), [("single", "single"), ("shards", "shards"), ("single", "shards")])
def test_two_savers_where_there_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str, told: float | None
) -> None:
    """As on some network file systems: a second save, from begin to end, before any step of a first one.

    Both end well, or the first, which is overtaken, says so.
    """
    monkeypatch.setattr(saving, "_flock", lambda folder: (folder, None))
    save(tmp_path / "template", before, OLD, told)
    folder, said, second = tmp_path / "model", set(), False

    def act() -> None:
        nonlocal second
        if not second:
            second = True
            with watched(None):
                save(folder, before, NEWEST, told)

    for step in STEPS:
        shutil.copytree(tmp_path / "template", folder)
        second = ended = False
        try:
            with stopping(step, act):
                save(folder, after, NEW, told)
            ended = True
        except FileExistsError as error:
            said.add(str(error))
        assert loaded(folder)[1] in ((NEW, NEWEST) if ended else (NEWEST,))
        shutil.rmtree(folder)
        if not second:
            break
    assert said == {f"Another process is saving to {folder}: save again when it has ended."}


# ---- what a folder may hold --------------------------------------------------------------------------------------


def hostile(folder: Path, outside: Path) -> dict[str, Callable[[], None]]:
    """Folders made to have files deleted or moved when they are opened or saved to."""
    saved = folder / ".vit-saved"

    def old_format() -> None:
        (folder / ".saved").mkdir()
        (folder / ".saved" / ".stale.json").write_text(json.dumps(["../victim.txt", str(outside / "victim.txt")]))

    def link() -> None:
        saved.symlink_to(outside)

    def file() -> None:
        saved.write_text("")

    def cut_short() -> None:
        (folder / "model.safetensors.index.json").unlink()
        saved.mkdir()

    def link_cut_short() -> None:
        (folder / "model.safetensors.index.json").unlink()
        saved.symlink_to(outside)

    def names_beside() -> None:
        saved.mkdir()
        for name in ("config.json", "model.safetensors.index.json", "model-00001-of-00003.safetensors"):
            (saved / name).write_text("theirs")
        (saved / ".gone-model.safetensors.index.json").touch()

    def names_cut_short() -> None:
        cut_short()
        for name in ("README.md", "...", "..victim.txt", "tokenizer.json", "model.safetensors.bak", "optimizer.bin"):
            (saved / f".gone-{name}").touch()
            (saved / name).write_text("theirs")
        (saved / "config.json").symlink_to(outside / "victim.txt")
        (saved / "model.safetensors").symlink_to(outside / "victim.txt")
        (saved / "pytorch_model.bin").mkdir()
        (saved / "pytorch_model.bin.index.json").write_text("theirs")

    def staged() -> None:
        (folder / ".vit-saving-0123456789abcdef").symlink_to(outside)
        (folder / ".vit-saving-mine").mkdir()

    states = (old_format, link, file, cut_short, link_cut_short, names_beside, names_cut_short, staged)
    return {state.__name__: state for state in states}


@pytest.mark.parametrize("state", hostile(Path(), Path()))
def test_nothing_is_touched_whatever_a_folder_holds(tmp_path: Path, state: str) -> None:
    """Reading changes nothing at all; saving nothing but what a save consists of."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    for victim in (tmp_path / "victim.txt", outside / "victim.txt", outside / "model.safetensors"):
        victim.write_text("precious")
    save(folder, "shards", OLD, None)
    mine = ("README.md", "tokenizer.json", "optimizer.bin", "model-final.safetensors", "model-1-of-2.safetensors")
    for name in (*mine, "MODEL-00001-OF-00002.SAFETENSORS", "model.ema.safetensors"):
        (folder / name).write_text("mine")
    hostile(folder, outside)[state]()
    before = snapshot(tmp_path)

    def watcher(kind: str, args: tuple[Any, ...]) -> None:
        assert kind == "read", args

    with watched(watcher):
        for opening in (loaded, read, find_weights, ViTConfig.from_pretrained, ViTImageProcessor.from_pretrained):
            with suppress(OSError, ValueError):
                opening(folder)
    assert snapshot(tmp_path) == before

    if state in ("link", "file", "link_cut_short"):
        with pytest.raises(FileExistsError, match="is not what a save leaves: remove it, then save again"):
            save(folder, "single", NEW, None)
        (folder / ".vit-saved").unlink()
    save(folder, "single", NEW, None)
    assert loaded(folder) == (NEW, NEW)
    after = snapshot(tmp_path)
    kept = {name for name in before if not name.startswith("model/") or name.removeprefix("model/") in mine}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert {"model/MODEL-00001-OF-00002.SAFETENSORS", "model/model.ema.safetensors"} <= after.keys()


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    save(tmp_path, "shards", OLD, None)
    (tmp_path / "model.safetensors").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"model.safetensors is a folder: expected a file to replace, or none"):
        save(tmp_path, "single", NEW, None)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("variant", ["*", "[ab]", "../x", "a/b", "..", "a\nb"])
def test_a_variant_that_is_no_part_of_a_name(tmp_path: Path, variant: str) -> None:
    """As a pattern, "*" would stand for the files of all other variants."""
    Model.of(OLD).save_pretrained(tmp_path, variant="ema")
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="variant must be letters, digits"):
        Model.of(NEW).save_pretrained(tmp_path, variant=variant)
    assert snapshot(tmp_path) == before


def test_variants_share_a_configuration(tmp_path: Path) -> None:
    """Also while a save of one of them is under way: the other is whole, with the configuration that it then has."""
    Model.of(OLD).save_pretrained(tmp_path / "template")
    options = {"variant": "ema", "max_shard_size": SHARDED}
    for folder, _ in deaths(tmp_path / "template", lambda folder: Model.of(NEW).save_pretrained(folder, **options)):
        told, value = loaded(folder)
        assert value == OLD and told in (OLD, NEW)
        if told == NEW:
            assert loaded(folder, variant="ema") == (NEW, NEW)
