"""Many pictures: prepared while the model is at work, on several devices, into files, by runs that may be stopped."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from command import Command, process
from PIL import Image

from vit_core.app.base import ImagePipeline
from vit_core.app.classification import ImageClassificationPipeline
from vit_core.app.cli import main, results
from vit_core.app.cli.classify import columns
from vit_core.app.cli.results import WRITERS, Journal
from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS

CKPT = Path(__file__).parent / "golden" / "ckpt"
PICTURES = sorted((DIGITS / "pictures").iterdir())
WAIT = 300  # seconds after which what does not come will not come, however busy the machine
torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(scope="module")
def digits() -> ImageClassificationPipeline:
    return pipeline(device="cpu", top_k=2)


@pytest.fixture(scope="module")
def two() -> ImageClassificationPipeline:
    return pipeline(device=["cpu", "cpu"], top_k=2)


@pytest.fixture(scope="module")
def expected(digits: ImageClassificationPipeline) -> list[Any]:
    return digits(PICTURES, batch_size=2)


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command("vit", main, capsys)


# ---- the stream -------------------------------------------------------------------------------------------------


def test_a_batch_is_prepared_while_the_model_is_at_work(digits: Any, expected: Any, monkeypatch: Any) -> None:
    """A batch is prepared only once the model works at the one before, which the model ends only after that."""
    size = 2
    batches = len(PICTURES) // size
    working = [threading.Event() for _ in range(batches)]
    ready = [threading.Semaphore(0) for _ in range(batches)]
    preprocess, calls = digits.preprocess, iter(range(batches))

    def late(path: Path) -> Any:
        batch = PICTURES.index(path) // size
        assert batch == 0 or working[batch - 1].wait(WAIT)
        pixels = preprocess(path)
        ready[batch].release()
        return pixels

    def slow(*_: Any) -> None:
        batch = next(calls)
        working[batch].set()
        assert batch + 1 == batches or all(ready[batch + 1].acquire(timeout=WAIT) for _ in range(size))

    monkeypatch.setattr(digits, "preprocess", late)
    with digits.model.register_forward_pre_hook(slow):
        assert list(digits.stream(PICTURES, batch_size=size)) == expected


@pytest.mark.parametrize("models", ["digits", "two"])
def test_no_more_than_two_batches_a_model_are_taken(models: str, request: pytest.FixtureRequest) -> None:
    classifier = request.getfixturevalue(models)
    bound = 2 * 2 * (1 + len(classifier.replicas))
    given, most = 0, 0

    def pictures() -> Iterator[Path]:
        nonlocal most
        for taken in range(1, 61):
            most = max(most, taken - given)
            yield PICTURES[taken % len(PICTURES)]

    for given, _ in enumerate(classifier.stream(pictures(), batch_size=2), 1):  # noqa: B007  # read above
        pass
    assert (given, most) == (60, bound)


@pytest.mark.parametrize("models", ["digits", "two"])
def test_no_thread_is_left(models: str, request: pytest.FixtureRequest) -> None:
    classifier, before = request.getfixturevalue(models), threading.enumerate()

    def failing() -> Iterator[Path]:
        yield from PICTURES
        raise RuntimeError("no more pictures")

    def full(*_: Any) -> None:
        raise RuntimeError("no more memory")

    closed = classifier.stream(PICTURES * 10, batch_size=2)
    next(closed)
    assert len(threading.enumerate()) > len(before)
    closed.close()
    assert threading.enumerate() == before
    with pytest.raises(RuntimeError, match="no more pictures"):
        list(classifier.stream(failing(), batch_size=2))
    with classifier.model.register_forward_pre_hook(full), pytest.raises(RuntimeError, match="no more memory"):
        list(classifier.stream(PICTURES * 10, batch_size=2))
    assert threading.enumerate() == before


def test_two_devices_share_the_batches_and_keep_the_order(two: Any, expected: Any) -> None:
    """The first batch that a model begins ends only after three others, which the other model takes."""
    (replica,) = two.replicas
    assert replica is not two.model and not replica.training
    lock, calls, others = threading.Lock(), {id(two.model): 0, id(replica): 0}, threading.Semaphore(0)

    def before(model: Any, _: Any) -> None:
        with lock:
            first = not any(calls.values())
            calls[id(model)] += 1
        assert not first or all(others.acquire(timeout=WAIT) for _ in range(3))

    with ExitStack() as hooks:
        for model in (two.model, replica):
            hooks.enter_context(model.register_forward_pre_hook(before))
            hooks.enter_context(model.register_forward_hook(lambda *_: others.release()))
        assert list(two.stream(PICTURES, batch_size=2)) == expected
    assert sum(calls.values()) == len(PICTURES) // 2 and min(calls.values()) >= 1


# ---- vit classify --out -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, of which one is broken and one has a name that is no text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in PICTURES[:5]:
        (folder / path.name).symlink_to(path)
    (folder / "0.png").write_bytes(PICTURES[0].read_bytes()[:60])
    (folder / os.fsdecode(b"\xff.png")).symlink_to(PICTURES[5])
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    """What a reader of the format finds; as in CSV, None is an empty text and a number its digits."""
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert list(map(str, table.schema.types)) == ["string", *["string", "double"] * 2, "string"]
        found = table.to_pylist()
    elif path.suffix == ".jsonl":
        found = list(map(json.loads, path.read_text().splitlines()))
    else:
        with path.open(newline="") as file:
            found = list(csv.DictReader(file))
    return [{name: "" if value is None else str(value) for name, value in row.items()} for row in found]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_results_in_a_file(vit: Command, folder: Path, suffix: str) -> None:
    out = folder.parent / f"results.{suffix}"
    vit("classify", folder, "--top-k", 2, "--devices", "cpu,cpu", "--batch-size", 2, "--out", out)
    assert vit.code == 1
    assert re.fullmatch(rf"6 classified, 1 could not be read, \d+ a second: {re.escape(str(out))}\n", vit.out)
    assert re.fullmatch(
        r"vit: the digits demo .*\nvit: .*0\.png is no picture .*\nvit: 1 of 7 pictures could not be read\.\n", vit.err
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pictures", out.name]

    vit("classify", folder, "--top-k", 2, "--batch-size", 2, "--json")
    document = json.loads(vit.out)
    (failed,) = document["failed"]
    wanted = [
        {"file": failed["file"], "label": "", "score": "", "label_2": "", "score_2": "", "error": failed["error"]}
    ]
    for image in document["images"]:
        best, second = image["predictions"]
        scores = {"label_2": second["label"], "score_2": str(second["score"]), "error": ""}
        wanted.append({"file": image["file"], "label": best["label"], "score": str(best["score"]), **scores})
    wanted[-1]["file"] = str(folder / "\\udcff.png")
    assert rows(out) == wanted


DYING = """
import os, signal, sys
from pathlib import Path
from vit_core.app.cli import main
from vit_core.app.pipeline import ImageClassificationPipeline

prepared = ImageClassificationPipeline.preprocess

def preprocess(self, path):
    if Path(path).name == "060.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return prepared(self, path)

ImageClassificationPipeline.preprocess = preprocess
main(sys.argv[1:])
"""


def test_a_killed_run_is_taken_up_where_it_was(vit: Command, tmp_path: Path, monkeypatch: Any) -> None:
    pictures, out, journal = tmp_path / "pictures", tmp_path / "results.csv", tmp_path / "results.csv.part"
    pictures.mkdir()
    (pictures / "000.png").write_bytes(b"nothing")
    for i in range(1, 240):
        (pictures / f"{i:03}.png").symlink_to(PICTURES[i % len(PICTURES)])
    arguments = ("classify", str(pictures), "--batch-size", "1")  # larger batches than one would round differently
    command = [sys.executable, "-c", DYING, *arguments, "--out", str(out)]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert journal.read_bytes().count(b"\n") > 10
    assert not out.exists()
    done = [json.loads(line)["file"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    with journal.open("ab") as file:
        file.write(b'{"file": "')

    prepared, opened = ImageClassificationPipeline.preprocess, []
    monkeypatch.setattr(
        ImageClassificationPipeline, "preprocess", lambda self, path: opened.append(str(path)) or prepared(self, path)
    )
    document = json.loads(vit(*arguments, "--out", out, "--json").out)
    assert vit.code == 1
    assert (document["classified"], document["earlier"]) == (240 - len(done), len(done) - 1)
    assert not set(done[1:]) & set(opened)
    assert len(opened) == 241 - len(done)  # that which could not be read is tried again
    assert not journal.exists()
    vit(*arguments, "--out", tmp_path / "whole.csv")
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_a_stopped_run_left_is_for_the_same_command(vit: Command, tmp_path: Path, monkeypatch: Any) -> None:
    out, journal = tmp_path / "results.jsonl", tmp_path / "results.jsonl.part"
    arguments = ("classify", DIGITS / "pictures", "--batch-size", 2, "--out", out)
    preprocess = ImageClassificationPipeline.preprocess

    def interrupted(self: Any, path: Path) -> Any:
        if path == PICTURES[8]:
            raise KeyboardInterrupt
        return preprocess(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassificationPipeline, "preprocess", interrupted)
        vit(*arguments)
    said = f"vit: stopped, 8 of 12 pictures classified: the same command goes on from {journal}.\n"
    assert (vit.code, vit.out, vit.err) == (130, "", said)
    left = journal.read_bytes()
    assert left.count(b"\n") == 1 + 8
    assert f"{journal} is the journal of a run with top_k: 3, not 1: repeat" in vit.refused(*arguments, "-k", 1)
    other = CKPT / "cls" / "pt_safetensors"
    assert f"model: '{DIGITS}', not '{other}'" in vit(*arguments, "--model", other).err
    assert (vit.code, journal.read_bytes()) == (2, left)
    assert vit(*arguments).out.startswith("4 classified, 8 by an earlier run, ")
    assert list(tmp_path.iterdir()) == [out]

    assert f"{out} is there already" in vit.refused(*arguments)
    assert "--overwrite replaces the file of --out" in vit.refused("classify", PICTURES[0], "--overwrite")
    assert vit(*arguments, "--overwrite").out.startswith("12 classified, ")
    journal.write_text("half of a download")
    assert "is no journal of results" in vit.refused(*arguments, "--overwrite")
    assert journal.read_text() == "half of a download"


def test_two_runs_do_not_write_one_file(vit: Command, tmp_path: Path) -> None:
    out = tmp_path / "results.csv"
    arguments = ("classify", DIGITS / "pictures", "--out", out)
    with Journal(out, {}, columns(3)):
        code = "import sys; from vit_core.app.cli import main; sys.exit(main(sys.argv[1:]))"
        other = process(sys.executable, "-c", code, *arguments)
    words = f"vit: Another run is writing {out}.part: wait until it has ended, or write elsewhere.\n"
    assert (other.returncode, other.stdout, other.stderr) == (2, "", words)
    assert list(tmp_path.iterdir()) == []
    assert vit(*arguments).code == 0


def test_a_journal_that_was_removed_meanwhile_is_begun_anew(tmp_path: Path, monkeypatch: Any) -> None:
    """Another run may end, and remove its journal, between the opening of it here and the lock."""
    out, locked, opened = tmp_path / "results.csv", results.lock, []

    def late(file: Any) -> bool:
        if not opened:
            Path(file.name).unlink()
        opened.append(file.name)
        return locked(file)

    monkeypatch.setattr(results, "lock", late)
    with Journal(out, {"identity": ""}, columns(1)) as journal:
        journal.add("a.png", ["a", 1.0])
        assert len(opened) == 2
        assert journal.path.stat().st_size > 0


def test_a_model_that_changed_under_its_name_is_another(vit: Command, tmp_path: Path) -> None:
    import vit_torch

    model, out = tmp_path / "model", tmp_path / "results.jsonl"
    digits = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    processor = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)
    for each in (digits, processor):
        each.save_pretrained(model)
    arguments = ("classify", DIGITS / "pictures", "--model", model, "--out", out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "finish", lambda *_: None)
        assert vit(*arguments).code == 0
    part = out.with_name("results.jsonl.part")
    left, config = part.read_bytes(), json.loads((model / "config.json").read_text())
    words = f"{part} is the journal of a run with the same model before its weights, configuration or image processor"

    (model / "config.json").write_text(json.dumps({**config, "id2label": {str(i): f"digit {i}" for i in range(10)}}))
    assert words in vit.refused(*arguments)
    digits.save_pretrained(model)
    processor.save_pretrained(model)
    with torch.no_grad():
        digits.classifier.bias[0] += 1e-3
    digits.save_pretrained(model)
    assert words in vit.refused(*arguments)
    assert part.read_bytes() == left
    with torch.no_grad():
        digits.classifier.bias.copy_(vit_torch.ViTForImageClassification.from_pretrained(DIGITS).classifier.bias)
    digits.save_pretrained(model)
    assert vit(*arguments).out.startswith("0 classified, 12 by an earlier run")


def test_labels_of_any_kind_are_one_row_of_csv_each(tmp_path: Path) -> None:
    """Carriage returns do not end a row, and no spreadsheet runs a label as a formula; other formats keep the text."""
    labels = ["cat\r", "a\r\nb", "a,b", 'say "a"', "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "plain"]
    for suffix in (".csv", ".jsonl"):
        out = tmp_path / f"results{suffix}"
        with Journal(out, {"identity": ""}, columns(1)) as journal:
            for label in labels:
                journal.add(f"{label}.png", [label, 0.5])
            journal.finish((f"{label}.png" for label in labels), WRITERS[suffix])
        if suffix == ".csv":
            found = rows(out)
            shown = [f"'{label}" if label[0] in "=+-@\t" else label for label in labels]
            assert [row["label"] for row in found] == shown
            assert [row["file"] for row in found] == [f"{label}.png" for label in shown]
            assert {row["score"] for row in found} == {"0.5"}
        else:
            assert [json.loads(line)["label"] for line in out.read_text().splitlines()] == labels


def test_a_picture_that_takes_too_much_is_a_row(vit: Command, tmp_path: Path, monkeypatch: Any) -> None:
    import vit_torch

    model, pictures, out = tmp_path / "model", tmp_path / "pictures", tmp_path / "results.jsonl"
    vit_torch.ViTForImageClassification.from_pretrained(DIGITS).save_pretrained(model)
    vit_torch.ViTImageProcessor(
        size={"shortest_edge": 24}, do_center_crop=True, crop_size=24, do_resize=True
    ).save_pretrained(model)
    pictures.mkdir()
    Image.new("1", (1_000_000, 1)).save(pictures / "long.png")
    (pictures / "digit.png").write_bytes(PICTURES[0].read_bytes())
    os.mkfifo(pictures / "pipe.png")  # which nobody writes to
    document = json.loads(vit("classify", pictures, "--model", model, "--out", out, "--json").out)
    assert (vit.code, document["classified"]) == (1, 1)
    (failed,) = document["failed"]
    assert failed["file"] == str(pictures / "long.png")
    assert failed["error"].startswith(f"{pictures / 'long.png'}: A picture of 1000000 x 1 pixels whose shortest edge")

    def full(*_: Any) -> Any:
        raise MemoryError("no more")

    monkeypatch.setattr(sys.modules[ImagePipeline.__module__], "read_image", full)
    (error,) = pipeline(device="cpu").stream([str(pictures / "digit.png")])
    assert str(error) == f"{pictures / 'digit.png'} takes more memory than there is (no more): shrink it."


def test_a_run_that_does_nothing_leaves_nothing(vit: Command, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_core.app.cli.many.Work.run", full)
    assert "No space left" in vit.refused("classify", PICTURES[0], "--out", tmp_path / "results.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "results.xlsx"], "--out results.xlsx must end in one of .csv, .jsonl, .parquet"),
        (["--out", DIGITS], f"--out {DIGITS} is a folder: name a file in it"),
        (["--out", "nowhere/results.csv"], "there is no folder nowhere: make it first"),
        (["--out", "results.parquet"], 'pip install "vit-trio[parquet]"'),
        (["--devices", "cpu,nope"], "--devices nope can't be used"),
        (["--devices", ""], "--devices '' can't be used"),
    ],
)
def test_what_can_not_be(vit: Command, arguments: list[Any], message: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert message in vit.refused("classify", PICTURES[0], *arguments)
