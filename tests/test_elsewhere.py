"""The second process, in which what can't be stopped is tried: limits, Ctrl-C, forks, threads, and endless HDF5."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from command import interruptible
from conftest import CHECKPOINTS

from vit_core.files import elsewhere as module
from vit_core.files.elsewhere import elsewhere
from vit_core.files.hdf5 import read_h5
from vit_core.files.keras_hdf5 import read_keras_h5, write_keras_h5
from vit_core.files.tensor import Tensor

GOOD = CHECKPOINTS / "cls" / "tf_h5" / "tf_model.h5"
limited = pytest.mark.skipif(sys.platform != "linux", reason="the system has no such limits")


# What is asked elsewhere; this file is imported there.
def process(path: str) -> int:
    return os.getpid()


def content(path: str) -> str:
    return Path(path).read_text()


def prints(path: str) -> str:
    print("{}")
    return "answer"


def loops(path: str) -> None:
    while True:
        pass


def removes_and_loops(path: str) -> None:
    os.remove(path)
    loops(path)


def breaks_down(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def fails(path: str) -> None:
    raise KeyError(path)


def takes_memory(path: str) -> int:
    return len(np.ones(1 << 27, np.uint8)) + len(np.ones(1 << 27, np.uint8))


def damaged(path: Path, *changes: tuple[int, bytes], source: Path = GOOD) -> Path:
    data = bytearray(source.read_bytes())
    for at, new in changes:
        assert data[at : at + len(new)] != new
        data[at : at + len(new)] = new
    path.write_bytes(data)
    return path


# ---- the process -------------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[module._Process]:
    """A process that waits for questions however long a test takes."""
    monkeypatch.setattr(module, "_process", module._Process())
    waiting = module._START.replace("; serve", "; import vit_core.files.elsewhere as e; e._IDLE = 3600; serve")
    monkeypatch.setattr(module, "_START", waiting)
    yield module._process
    module._process.end()


def test_one_process_answers_all_questions(patient: module._Process) -> None:
    first = elsewhere(process, GOOD)
    assert first != os.getpid()
    assert elsewhere(prints, GOOD) == "answer"
    with pytest.raises(ValueError, match="tf_model"):
        elsewhere(fails, GOOD)
    assert elsewhere(process, GOOD) == first


def test_a_path_is_of_the_folder_in_which_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        monkeypatch.chdir(tmp_path / name)
        assert elsewhere(content, Path("file")) == name


@limited
def test_limits_of_the_user_stay(tmp_path: Path) -> None:
    code = (
        "import resource; from test_elsewhere import elsewhere, prints, GOOD\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "assert elsewhere(prints, GOOD) == 'answer'"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_threads_get_their_own_answers(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(40)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda path: elsewhere(content, path), paths)) == [path.name for path in paths]


def test_a_forked_process_has_its_own(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from test_elsewhere import elsewhere, process, GOOD\n"
        "import vit_core.files.elsewhere as e\n"
        "e._START = e._START.replace('; serve', '; import vit_core.files.elsewhere as e; e._IDLE = 3600; serve')\n"
        "mine = elsewhere(process, GOOD)\n"
        "child = os.fork()\n"
        "if not child: os._exit(elsewhere(process, GOOD) == mine)\n"
        "assert os.waitpid(child, 0)[1] == 0 and elsewhere(process, GOOD) == mine"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_a_process_that_was_idle_is_started_anew(patient: module._Process, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_START", module._START.replace("_IDLE = 3600", "_IDLE = 0"))
        assert patient._starts() and patient._running is not None
        idle = patient._running
    assert idle.wait() == 0
    answers = [elsewhere(process, GOOD) for _ in range(2)]
    assert answers[0] == answers[1] not in (idle.pid, os.getpid())


def test_what_a_library_does_to_the_process_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged, the library that reads it broke down on it"):
        elsewhere(breaks_down, GOOD)
    assert elsewhere(prints, GOOD) == "answer"


@limited
def test_limits_of_time_and_memory() -> None:
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged, the library that reads it never comes to an end"):
        elsewhere(loops, GOOD)
    with pytest.raises(ValueError, match=r"MemoryError|allocate"):
        elsewhere(takes_memory, GOOD)


@pytest.mark.parametrize("executable", ["", "/bin/false", "/bin/cat"])
def test_a_program_that_can_not_start_python_asks_itself(monkeypatch: pytest.MonkeyPatch, executable: str) -> None:
    monkeypatch.setattr(module, "_process", module._Process())
    monkeypatch.setattr(sys, "executable", executable)
    assert elsewhere(process, GOOD) == os.getpid()


def test_ctrl_c_ends_both(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    code = (
        "from pathlib import Path; from test_elsewhere import elsewhere, removes_and_loops\n"
        f"elsewhere(removes_and_loops, Path({str(path)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with interruptible():
        first = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    while path.exists():  # until the second process is at it
        time.sleep(0.01)
    second = psutil.Process(first.pid).children()
    first.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in first.communicate(timeout=120)[1]
    assert first.returncode == -signal.SIGINT
    assert not second[0].is_running() or second[0].status() == psutil.STATUS_ZOMBIE


def test_ctrl_c_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What that process says later answers no question."""
    monkeypatch.setattr(module, "_process", module._Process())
    with monkeypatch.context() as patch, interruptible():
        patch.setattr(module, "_START", f"import os; os.kill(os.getppid(), {int(signal.SIGINT)}); {module._START}")
        with pytest.raises(KeyboardInterrupt):
            elsewhere(process, GOOD)
    assert elsewhere(prints, GOOD) == "answer"
    module._process.end()


# ---- HDF5 --------------------------------------------------------------------------------------------------------


@limited
def test_a_heap_without_end(tmp_path: Path) -> None:
    """Two objects of the global heap are numbered 0, as in a block of zeros of a torn download."""
    path = damaged(tmp_path / "tf_model.h5", (2096, b"\0"), (2104, b"\0"))
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged, the library that reads it never comes to an end"):
        read_h5(path)


@limited
def test_a_list_of_free_space_that_leads_to_itself(tmp_path: Path) -> None:
    good = tmp_path / "good.weights.h5"
    write_keras_h5(good, {"layers/dense/vars/0": Tensor.of(np.ones(3))})
    data = good.read_bytes()
    heap = data.index(b"HEAP")
    first, segment = (int.from_bytes(data[heap + at : heap + at + 8], "little") for at in (16, 24))
    path = damaged(tmp_path / "m.weights.h5", (segment + first, first.to_bytes(8, "little")), source=good)
    with pytest.raises(ValueError, match=r"m\.weights\.h5 is damaged"):
        read_keras_h5(path)


def test_an_array_that_would_end_behind_its_file(tmp_path: Path) -> None:
    good = tmp_path / "good.weights.h5"
    write_keras_h5(good, {"layers/dense/vars/0": Tensor.of(np.full(300, 7.0))})
    begin = good.read_bytes().index(np.full(300, 7.0).tobytes())
    address = good.read_bytes().index(begin.to_bytes(8, "little"))
    path = damaged(tmp_path / "m.weights.h5", (address, (begin + 8).to_bytes(8, "little")), source=good)
    path.write_bytes(path.read_bytes()[: begin + 2400])
    with pytest.raises(ValueError, match=r"m\.weights\.h5 is damaged"):
        read_keras_h5(path)


@pytest.mark.parametrize("many", [1 << 16, 1 << 26, 1 << 60])
def test_an_attribute_that_exceeds_its_file(tmp_path: Path, many: int) -> None:
    data = GOOD.read_bytes()
    name = data.index(b"layer_names\0")
    layers = len({name.partition("/")[0] for name in read_h5(GOOD)})
    at = data.index(layers.to_bytes(8, "little"), name)
    path = damaged(tmp_path / "tf_model.h5", (at, many.to_bytes(8, "little")))
    with pytest.raises(ValueError, match=r"tf_model\.h5 is damaged"):
        read_h5(path)
