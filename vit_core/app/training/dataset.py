"""Pictures to train on: a folder of class folders, or a CSV, all checked before the first step."""

from __future__ import annotations

import csv
import json
import math
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from rich.progress import track

from vit_core.app.sources import counted_suffixes
from vit_core.app.training.libraries import library
from vit_core.app.training.run import SETTINGS
from vit_core.pictures.images import SUFFIXES
from vit_core.pictures.processing import load_image
from vit_core.training import Settings

PADDING = -1  # the label of what fills a last batch up


@dataclass(frozen=True)
class Pictures:
    """Files, their class numbers (n,), and the names of the classes."""

    paths: list[Path]
    labels: np.ndarray
    classes: list[str]

    def __getitem__(self, index: np.ndarray) -> Pictures:
        """Some of them."""
        return Pictures([self.paths[i] for i in index], self.labels[index], self.classes)

    def split(self, share: float, seed: int) -> tuple[Pictures, Pictures]:
        """(training, validation), stratified by class. Raises ValueError where a class is too small."""
        train_test_split = library("sklearn.model_selection").train_test_split
        numbers, classes = np.arange(len(self.paths)), self.labels if self.classes else None
        counts = np.bincount(self.labels, minlength=len(self.classes))
        few = [f"class {name}" for name, number in zip(self.classes, counts, strict=False) if number < 2]
        if few or len(numbers) < 2:
            problems = [f"{each} has one picture, expected two or more" for each in few or ["the folder"]]
            raise ValueError(f"{_told(problems)[:-1]}: --validation holds some of them out.")
        least, count = len(self.classes) or 1, len(numbers)
        shares = [
            part for part in (i / 100 for i in range(1, 100)) if least <= math.ceil(part * count) <= count - least
        ]
        if not least <= (held_out := math.ceil(share * count)) <= count - least:
            needs = f"each of {least} classes needs" if self.classes else "there must be"
            raise ValueError(
                f"--validation {share:g} holds out {held_out} of {count} pictures, and {needs} one to train on "
                f"and one to validate on: expected {shares[0]:g} to {shares[-1]:g}."
            )
        parts = train_test_split(numbers, test_size=share, stratify=classes, random_state=seed)
        return self[parts[0]], self[parts[1]]


# ---- finding and checking ----------------------------------------------------------------------------------------

# Names of folders, best first.
_TRAINING = ("train", "training")
_HELD_OUT = ("val", "valid", "validation", "dev", "eval", "test", "testing")


def check_out(settings: Settings) -> None:
    """Raise ValueError for a folder of a run that is a file, or that holds pictures to train on."""
    out, pictures = settings.out.resolve(), settings.pictures.resolve()
    if file := next((path for path in (out, *out.parents) if path.is_file()), None):
        raise ValueError(f"--out {settings.out} must be a folder, and {file} is a file: name another.")
    if out == pictures or (pictures in out.parents and not _is_run(out) and _below(out)[0]):
        raise ValueError(f"--out {settings.out} holds pictures to train on: name another folder.")


def read_split(
    source: Path, classes: str | None, share: float, seed: int, skip_bad: bool = False, out: Path | None = None
) -> tuple[Pictures, Pictures]:
    """(pictures to train on, pictures to validate on): the folders that are called so, else `share` is held out.

    `out`, the folder of a training's own run, and those of others, are passed over.
    Raises as `read_pictures` does, for a class of the one folder that the other has not, and for folders to validate on
    alone.
    """
    folders = {path.name.lower(): path for path in _folders(source, out)} if source.is_dir() else {}
    train = next((folders[name] for name in _TRAINING if name in folders), None)
    held_out = next((folders[name] for name in _HELD_OUT if name in folders), None)
    others = folders.keys() - {*_TRAINING, *_HELD_OUT}
    if held_out and not train and not others and len(folders) > 1:
        raise ValueError(
            f"{source} holds {', '.join(path.name for path in folders.values())}, parts of a split, but none to train "
            f"on: expected {' or '.join(_TRAINING)} beside them."
        )
    if train is None or (others and held_out is None):  # a train beside a car is a class
        return read_pictures(source, classes, skip_bad, out).split(share, seed)
    if aside := [str(path) for path in folders.values() if path not in (train, held_out)]:
        print(f"Left aside: {', '.join(aside)}.")
    training = read_pictures(train, classes, skip_bad, out)
    if held_out is None:
        return training.split(share, seed)
    validation = read_pictures(held_out, classes, skip_bad, out)
    if different := set(training.classes) ^ set(validation.classes):
        raise ValueError(
            f"{train} and {held_out} must have the same class folders, one alone has {', '.join(sorted(different))}."
        )
    return training, validation


def read_pictures(
    source: Path, classes: str | None = None, skip_bad: bool = False, out: Path | None = None
) -> Pictures:
    """The pictures of a folder of class folders, or of a CSV with the columns file and label.

    A file is relative to the CSV. `classes`, names with commas between them, states which there are and in what order;
    a label may then be the number of a class. With `skip_bad`, pictures that can't be read are left out and listed on
    the standard output. `out` is as of `read_split`. Raises ValueError that lists all that is wrong.
    """
    stated = [name.strip() for name in classes.split(",")] if classes else None
    found, problems = _from_folder(source, stated, out) if source.is_dir() else _from_csv(source)
    bad = _unreadable([path for path, _ in found])
    if skip_bad and bad:
        print(f"Left out {len(bad)} pictures that can't be read: {_told([*bad.values()])}")
        found = [(path, label) for path, label in found if path not in bad]
    names = stated or sorted({name for _, name in found}, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else n))
    numbers = {**{str(i): i for i in range(len(names))}, **{name: i for i, name in enumerate(names)}}
    for path, label in found:
        if label and label not in numbers:
            problems.append(
                f"{path} has the label {label}, expected one of {', '.join(names)}, or 0 to {len(names) - 1}"
            )
    labels = np.array([numbers.get(label, PADDING) for _, label in found], np.int64)
    problems += [f"class {name} has no picture" for i, name in enumerate(names) if not (labels == i).any()]
    if len(names) < 2:
        found_one = f"the class {names[0]} alone" if names else "no class"
        where = ", each a folder with its pictures in it" if source.is_dir() else ""
        problems.append(f"{source} has {found_one}, expected two or more{where}")
    if not skip_bad:
        problems += bad.values()
    if problems:
        raise ValueError(_told(problems))
    return Pictures([path for path, _ in found], labels, names)


def _told(problems: list[str]) -> str:
    """The first ten problems, and how many others there are."""
    more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
    return "; ".join(problems[:10]) + more + "."


def find_pictures(folder: Path, out: Path | None = None) -> Pictures:
    """Every picture below a folder, without classes; `out` is as of `read_split`.

    Raises ValueError that lists all that is wrong.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder of pictures.")
    paths, others = _below(folder, out)
    _tell_left_out(folder, [], others)
    problems = list(_unreadable(paths).values()) if paths else [f"{folder} holds no picture ({', '.join(SUFFIXES)})"]
    if problems:
        raise ValueError(_told(problems))
    return Pictures(paths, np.zeros(len(paths), np.int64), [])


def _below(folder: Path, out: Path | None = None) -> tuple[list[Path], list[Path]]:
    """(pictures, other files) below a folder at every level, sorted; hidden ones, and those of runs, are left out."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _is_searched(Path(parent, name), out)]
        found += (Path(parent, name) for name in files)
    return _divided(found)


def _divided(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """(pictures, others) of the files that are not hidden, sorted."""
    seen = sorted(path for path in files if not path.name.startswith("."))
    pictures = [path for path in seen if path.suffix.lower() in SUFFIXES]
    return pictures, [path for path in seen if path.suffix.lower() not in SUFFIXES]


def _tell_left_out(folder: Path, loose: list[Path], others: list[Path]) -> None:
    """Say how many pictures are in no class folder, and how many files are no pictures, by their suffixes."""
    told = [f"{len(loose)} pictures in no class folder"] * bool(loose) + [counted_suffixes(others)] * bool(others)
    if told:
        print(f"{folder}: left out {', '.join(told)}.")


def _folders(folder: Path, out: Path | None) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_searched(path, out))


def _is_searched(folder: Path, out: Path | None) -> bool:
    """Whether a folder is neither hidden nor one of a run, of which it warns unless it is `out`."""
    if folder.name.startswith(".") or (out is not None and folder.resolve() == out.resolve()):
        return False
    if found := _is_run(folder):
        warnings.warn(f"{folder} holds a training's run: it is left aside.", stacklevel=2)
    return not found


def _is_run(folder: Path) -> bool:
    """Whether a folder holds a training's settings, and not only some file of that name."""
    try:
        stated = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stated, dict) and {"pictures", "out"} <= stated.keys()


def _from_folder(folder: Path, classes: list[str] | None, out: Path | None) -> tuple[list[tuple[Path, str]], list[str]]:
    found, problems = list[tuple[Path, str]](), list[str]()
    loose, others = _divided(path for path in folder.iterdir() if path.is_file())
    for path in _folders(folder, out):
        inside, rest = _below(path, out)
        others += rest
        if classes and path.name not in classes:
            problems.append(f"{path} is the folder of none of the classes {', '.join(classes)}")
        elif inside:
            found += ((picture, path.name) for picture in inside)
        else:
            problems.append(f"{path} holds no picture ({', '.join(SUFFIXES)})")
    _tell_left_out(folder, loose, others)
    return found, problems


def _from_csv(source: Path) -> tuple[list[tuple[Path, str]], list[str]]:
    text = _text(source)
    separator = max(",;\t", key=text.partition("\n")[0].count)  # of spreadsheets, by their language
    reader = csv.DictReader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or []]
    if missing := sorted({"file", "label"} - set(columns)):
        more = f" and {len(columns) - 10} more" if len(columns) > 10 else ""
        held = f"the columns {', '.join(columns[:10])}{more}" if columns else "no columns"
        raise ValueError(
            f"{source} has {held}, but no {' and no '.join(missing)}: expected file and label in its first line."
        )
    if others := [name for name in columns if name and name not in ("file", "label")]:
        print(f"{source}: left out the columns {', '.join(others)}.")
    rows, problems = [], []
    for row in reader:
        if row["file"]:
            rows.append((source.parent / row["file"].rstrip(), (row["label"] or "").strip()))
        else:
            problems.append(f"line {reader.line_num} of {source} has no file")
    labels: dict[Path, set[str]] = {}
    for path, label in rows:
        labels.setdefault(path, set()).update([label] if label else [])
    several = [
        f"{path} has the labels {' and '.join(sorted(given))}" for path, given in labels.items() if len(given) > 1
    ]
    if not several and (again := len(rows) - len(labels)):
        print(f"{source}: {again} lines repeat a file, which may be trained on and held out at once.")
    return rows, problems + [f"{path} has no label" for path, label in rows if not label] + several


def _text(source: Path) -> str:
    """The text of a CSV in UTF-8, with a byte order mark or without, or in UTF-16, which has one."""
    content = source.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    if encoding == "utf-8-sig" and b"\0" in content:
        raise ValueError(
            f"{source} is no text: expected a folder with a folder of pictures for each class, or a CSV of file and "
            "label, in UTF-8, or in UTF-16 with its mark."
        )
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} is no text in {encoding.removesuffix('-sig').upper()} (byte {error.start}), it may be Latin-1: "
            "save it as UTF-8."
        ) from error


def _unreadable(paths: list[Path]) -> dict[Path, str]:
    """Why pictures can't be read, after all have been."""
    with ThreadPoolExecutor() as pool:
        checks = pool.map(_problem, paths)
        found = track(checks, "Checking the pictures", total=len(paths), transient=True)
        return {path: problem for path, problem in zip(paths, found, strict=True) if problem}


def _problem(path: Path) -> str:
    try:
        load_image(path).load()
    except (OSError, ValueError) as error:
        return str(error).rstrip(".")
    return ""
