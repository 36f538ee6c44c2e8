"""`vit embed`: vectors of many pictures in files, with what they were made with; runs that stop, files of others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from command import Command, process
from tolerances import both_rounded

from vit_core.app.base import ImagePipeline
from vit_core.app.cli import main
from vit_core.app.cli.results import Journal
from vit_core.app.cli.vectors import SUFFIXES, read_vectors
from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

PICTURES = sorted((DIGITS / "pictures").iterdir())
torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command("vit", main, capsys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, of which one is broken and one has a name that is no text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in PICTURES[:5]:
        (folder / path.name).symlink_to(path)
    (folder / "3-0.png").write_bytes(PICTURES[0].read_bytes()[:60])
    (folder / os.fsdecode(b"\xff.png")).symlink_to(PICTURES[5])
    return folder


def features(pictures: list[Path], features: str | None, layers: list[int]) -> np.ndarray:
    """What the model's own method gives (n, L D)."""
    extract = pipeline("image-feature-extraction")
    pixels = torch.from_numpy(np.stack([extract.preprocess(path) for path in pictures])).to(extract.model.device)
    with torch.no_grad():
        found = extract.model.features(pixels, layers=layers, pool=features)
    return torch.cat(found, 1).cpu().numpy()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("pool", "layers"), [(None, [-1]), ("mean", [2, 5])])
def test_vectors_in_a_file(vit: Command, folder: Path, suffix: str, pool: str | None, layers: list[int]) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    out = folder.parent / f"features{suffix}"
    options = (*(("--pool", pool) if pool else ()), "--layers", ",".join(map(str, layers)))
    vit("embed", folder, *options, "--devices", "cpu,cpu", "--batch-size", 2, "--out", out)
    assert vit.code == 1
    assert re.fullmatch(rf"6 embedded, 1 could not be read, \d+ a second: {re.escape(str(out))}\n", vit.out)
    told = ["the digits demo answers, .*", r".*3-0\.png is no picture .*", r"1 of 7 pictures could not be read\."]
    assert re.fullmatch("".join(f"vit: {line}\n" for line in told), vit.err)
    beside = [] if suffix == ".parquet" else [f"{out.name}.json"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [out.name, *beside, "pictures"]

    found = read_vectors(out)
    names = [str(folder / path.name) for path in PICTURES[:5]] + [str(folder / "\\udcff.png")]
    assert found.names == sorted(names, key=lambda name: (name.endswith("\\udcff.png"), name))
    expected = features([*(Path(name) for name in found.names[:5]), PICTURES[5]], pool, layers)
    extract = pipeline("image-feature-extraction")
    assert_close(found.values, expected, both_rounded(extract.model.config))
    assert found.settings["layers"] == [layer % 6 for layer in layers]
    assert (found.settings["pool"], found.settings["dimensions"]) == (pool or "cls", 64 * len(layers))


def test_what_readers_of_the_formats_find(vit: Command, folder: Path) -> None:
    """NumPy an array alone, others a row for the picture that could not be read, too."""
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in SUFFIXES:
        assert vit("embed", folder, "--out", folder.parent / f"x{suffix}").code == 1
    array = np.load(folder.parent / "x.npy")
    assert (array.shape, array.dtype) == ((6, 64), np.float32)
    beside = json.loads((folder.parent / "x.npy.json").read_text())
    assert [Path(name).name for name in beside["files"]][:2] == [PICTURES[0].name, PICTURES[1].name]
    assert [Path(each["file"]).name for each in beside["failed"]] == ["3-0.png"]
    rows = [json.loads(line) for line in (folder.parent / "x.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["file", "embedding", "error"]] * 7
    table = parquet.read_table(folder.parent / "x.parquet")
    assert table.schema.names == ["file", "embedding", "error"]
    assert str(table.schema.field("embedding").type) == "list<element: float>"
    assert table.to_pylist() == rows
    (failed,) = (row for row in rows if row["error"])
    assert (failed["embedding"], "is no picture" in failed["error"]) == (None, True)
    np.testing.assert_array_equal([row["embedding"] for row in rows if not row["error"]], array)


def test_vectors_of_one_length_and_of_a_wrong_one(vit: Command, folder: Path) -> None:
    """The first as older releases wrote them."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out = folder.parent / "x.parquet"
    vit("embed", PICTURES[0], PICTURES[1], "--out", out)
    written, table = read_vectors(out), parquet.read_table(out)
    for length in (64, 32):
        halves = [each[:length] for each in table["embedding"].to_pylist()]
        column = arrow.array(halves, arrow.list_(arrow.float32(), length) if length == 64 else table.schema.types[1])
        parquet.write_table(table.set_column(1, "embedding", column), out)
        if length == 64:
            assert parquet.read_table(out).schema.types[1].list_size == 64
            np.testing.assert_array_equal(read_vectors(out).values, written.values)
        else:
            with pytest.raises(ValueError, match="must have lists of 64 numbers in 'embedding': embed"):
                read_vectors(out)


def test_json(vit: Command, tmp_path: Path) -> None:
    document = vit.json("embed", DIGITS / "pictures", "--out", tmp_path / "x.npy", "--layers", "0,-1")
    assert document.pop("pictures_per_second") > 0
    assert document == {
        "model": str(DIGITS), "backend": "torch", "image_processor": None, "revision": None, "pool": "cls",
        "layers": [0, 5], "dimensions": 128, "out": str(tmp_path / "x.npy"), "embedded": 12, "earlier": 0, "failed": [],
    }  # fmt: skip


DYING = """
import os, signal, sys
from pathlib import Path
from vit_core.app.base import ImagePipeline
from vit_core.app.cli import main

prepared = ImagePipeline.preprocess

def preprocess(self, path):
    if Path(path).name == "060.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return prepared(self, path)

ImagePipeline.preprocess = preprocess
main(sys.argv[1:])
"""


def test_a_killed_run_is_taken_up_where_it_was(vit: Command, tmp_path: Path, monkeypatch: Any) -> None:
    pictures, out, journal = tmp_path / "pictures", tmp_path / "x.npy", tmp_path / "x.npy.part"
    pictures.mkdir()
    (pictures / "000.png").write_bytes(b"nothing")
    for i in range(1, 240):
        (pictures / f"{i:03}.png").symlink_to(PICTURES[i % len(PICTURES)])
    arguments = ("embed", str(pictures), "--batch-size", "1")  # larger batches than one would round differently
    command = [sys.executable, "-c", DYING, *arguments, "--out", str(out)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = [json.loads(line)["file"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    assert len(done) > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "x.npy.part"]
    with journal.open("ab") as file:
        file.write(b'{"file": "')

    prepared, opened = ImagePipeline.preprocess, []
    monkeypatch.setattr(
        ImagePipeline, "preprocess", lambda self, path: opened.append(str(path)) or prepared(self, path)
    )
    document = json.loads(vit(*arguments, "--out", out, "--json").out)
    assert (document["embedded"], document["earlier"]) == (240 - len(done), len(done) - 1)
    assert not set(done[1:]) & set(opened)
    assert not journal.exists()
    vit(*arguments, "--out", tmp_path / "whole.npy")
    for end in ("npy", "npy.json"):
        assert (tmp_path / f"x.{end}").read_bytes() == (tmp_path / f"whole.{end}").read_bytes()


def test_a_run_that_is_killed_between_its_two_files(vit: Command, tmp_path: Path) -> None:
    """What stands beside the old vectors is the new run's: they are refused, and the same command ends that run."""
    out = tmp_path / "x.npy"
    vit("embed", *PICTURES[:3], "--out", out)
    code = (
        "import os, signal, sys\nfrom vit_core.app.cli import main, vectors\nwritten = vectors._write_beside\n"
        "def write(*arguments):\n    written(*arguments)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "vectors._write_beside = write\nmain(sys.argv[1:])"
    )
    arguments = ("embed", *PICTURES[3:6], "--out", out, "--overwrite")
    assert process(sys.executable, "-c", code, *arguments).returncode == -signal.SIGKILL
    with pytest.raises(
        ValueError, match=rf"^{out} is not the file that {out}\.json was written for: embed the pictures"
    ):
        read_vectors(out)
    assert vit(*arguments).out.startswith("0 embedded, 3 by an earlier run: ")
    assert read_vectors(out).names == list(map(str, PICTURES[3:6]))


def test_two_runs_do_not_write_one_file(vit: Command, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    arguments = ("embed", DIGITS / "pictures", "--out", out)
    with Journal(out, {}, {"embedding": 64}):
        code = "import sys; from vit_core.app.cli import main; sys.exit(main(sys.argv[1:]))"
        other = process(sys.executable, "-c", code, *arguments)
    words = f"vit: Another run is writing {out}.part: wait until it has ended, or write elsewhere.\n"
    assert (other.returncode, other.stdout, other.stderr) == (2, "", words)
    assert vit(*arguments).code == 0


def test_a_stopped_run_goes_on_with_its_own_settings_alone(vit: Command, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    arguments = ("embed", DIGITS / "pictures", "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "finish", lambda *_: None)
        assert vit(*arguments).code == 0
    part = tmp_path / "x.jsonl.part"
    words = (
        f"{part} is the journal of a run with pool: 'cls', not 'mean', layers: [5], not [1, 5], dimensions: 64, not 128"
    )
    assert words in vit.refused(*arguments, "--pool", "mean", "--layers", "1,-1")
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1].replace(b'"embedding": "', b'"embedding": "AAAA'))
    assert f"{part} is no journal of results" in vit.refused(*arguments)
    part.write_bytes(b"".join(lines))
    assert vit(*arguments).out.startswith("0 embedded, 12 by an earlier run")
    assert f"{out} is there already" in vit.refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--out'"),
        (["--out", "x.csv"], "--out x.csv must end in one of .npy, .jsonl, .parquet"),
        (["--out", DIGITS], f"--out {DIGITS} is a folder: name a file in it, such as {DIGITS / 'features.parquet'}"),
        (["--out", "x.parquet"], '): pip install "vit-trio[parquet]"'),
        (["--out", "x.npy", "--pool", "patches"], "--pool must be one of cls, mean, got 'patches'."),
        (["--out", "x.npy", "--layers", "last"], "layers must be numbers with commas between them, such as -1 or 3"),
        (["--out", "x.npy", "--layers", "7"], "layers must be a number from 0, the embeddings, to 5, the last layer"),
    ],
)  # fmt: skip
def test_what_can_not_be(vit: Command, arguments: list[Any], message: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert message in vit.refused("embed", PICTURES[0], *arguments)


# ---- files that are damaged, or another's -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for suffix in SUFFIXES:
        if suffix != ".parquet" or find_spec("pyarrow"):
            assert main(["embed", str(DIGITS / "pictures"), "--out", str(folder / f"x{suffix}")]) == 0
    return folder


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def unclosed(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"}", b" ", 1))


def of_others(path: Path) -> None:
    """The same kind of file, without what `vit embed` says of it."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)
    else:
        path.with_name(f"{path.name}.json").write_text('{"model": "x"}')


def of_another_run(path: Path) -> None:
    beside = path.with_name(f"{path.name}.json")
    beside.write_text(beside.read_text().replace(PICTURES[0].name, "0.png").replace('"content": "', '"content": "0'))


def alone(path: Path) -> None:
    path.with_name(f"{path.name}.json").unlink()


def pickled(path: Path) -> None:
    np.save(path, np.array([{}], object))


def zipped(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def narrow(path: Path) -> None:
    np.save(path, np.load(path)[:, :3])


def no_numbers(path: Path) -> None:
    path.write_text(re.sub(r'"embedding": \[[^,]*', '"embedding": ["1"', path.read_text(), count=1))


def not_json(path: Path) -> None:
    path.write_text("x\n")


@pytest.mark.parametrize(
    ("damage", "suffix", "message"),
    [
        (cut, ".npy", r"is no array that NumPy can read \(.*\): embed the pictures again"),
        (emptied, ".npy", "is no array that NumPy can read"),
        (unclosed, ".npy", r"is no array that NumPy can read \(.*EOF in multi-line statement"),
        (pickled, ".npy", "is no array that NumPy can read"),
        (zipped, ".npy", "is no array that NumPy can read"),
        (narrow, ".npy", r"must hold finite float32 numbers of shape \(12, 64\), got float32 \(12, 3\): embed the"),
        (of_others, ".npy", r"x\.npy\.json does not say what the vectors were made with"),
        (of_another_run, ".npy", r"is not the file that .*x\.npy\.json was written for"),
        (alone, ".npy", r"There is no .*x\.npy\.json, which says what .*x\.npy was made with: `vit embed` writes both"),
        (cut, ".jsonl", r"Line 12 of .*x\.jsonl is not valid JSON"),
        (emptied, ".jsonl", "is not the file that"),
        (no_numbers, ".jsonl", r"Line 1 of .*x\.jsonl must have a list of 64 numbers in 'embedding'"),
        (not_json, ".jsonl", r"Line 1 of .*x\.jsonl is not valid JSON"),
        (of_another_run, ".jsonl", "is not the file that"),
        (cut, ".parquet", r"is no Parquet file that pyarrow can read \(.*\): embed the pictures again"),
        (emptied, ".parquet", "is no Parquet file that pyarrow can read"),
        (of_others, ".parquet", r"x\.parquet does not say what the vectors were made with"),
    ],
)  # fmt: skip
def test_damage_is_named(damage: Any, suffix: str, message: str, written: Path, tmp_path: Path) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    for path in written.glob(f"x{suffix}*"):
        shutil.copy(path, tmp_path)
    damage(tmp_path / f"x{suffix}")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        read_vectors(tmp_path / f"x{suffix}")
    assert str(tmp_path) in str(raised.value)
