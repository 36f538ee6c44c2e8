"""What the commands share: options, the pictures that arguments stand for, printing, and what becomes of errors."""

from __future__ import annotations

import gc
import glob
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from typer.main import get_command

from vit_core.app.auto import architecture_for
from vit_core.app.backends import BACKENDS, UNUSED, first_installed, import_backend
from vit_core.app.sources import counted_suffixes, is_missing
from vit_core.assets import DIGITS
from vit_core.pictures.images import SUFFIXES, load_image
from vit_core.pictures.processing import AutoImageProcessor


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vit-trio {version('vit-trio')}")
        raise typer.Exit


Model = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="PATH_OR_ID", help="Folder or hub id.", show_default="the digits model"),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        help="Framework.",
        show_default="the first installed",
        autocompletion=lambda: [*BACKENDS],
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a hub id.", show_default="main", metavar="NAME")
]
Processor = Annotated[
    str | None,
    typer.Option(
        "--image-processor", metavar="PATH_OR_ID", help="How pictures are prepared.", show_default="the model's own"
    ),
]
Images = Annotated[
    list[str],
    typer.Argument(metavar="IMAGE...", help="Files, folders, patterns, http(s) addresses, or - for stdin."),
]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Pictures the model sees at once.")]
Devices = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        help="Where torch runs, a copy of the model on each: cuda:0,cuda:1.",
        show_default="CUDA where there is any",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file of --out.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]
DEFAULT_MODEL = str(DIGITS)
DEMO = "the digits demo answers, which knows handwritten digits alone: choose another model with --model PATH_OR_ID."
CONTEXT = {"help_option_names": ["-h", "--help"]}  # what typer is to know of every command
_TASK = "ForImageClassification"
_alone = threading.Event()  # set where the process is the command's: nothing else in it misses what is `hidden`
_DRAWINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

# What arguments of the library are called here that are no options of their own names.
_ELSEWHERE = {
    "cache_dir": "HF_HUB_CACHE",
    "device": "--devices",
    "num_attention_heads": "--heads",
    "token": "HF_TOKEN",
}

# Whatever is wrong with a command line: the root of typer's usage errors, which has moved between its versions.
_UsageError: Any = typer.BadParameter.__mro__[2]


def tolerance_option(defaults: Mapping[str, float]) -> Any:
    """The option of how far outputs may be apart; the defaults by dtype."""
    shown = ", ".join(f"{size:g} in {name}" for name, size in defaults.items())
    words = "Allowed difference, relative to an output's largest value."
    return typer.Option("--tolerance", min=0, metavar="SIZE", help=words, show_default=shown)


def execute(command: typer.Typer, program: str, arguments: list[str] | None = None) -> int:
    """The exit code of a command; its errors and warnings are one line each on the standard error.

    Without `arguments`, which are then the process's, nothing but the command runs in the process.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        _alone.set()
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a character that the terminal lacks is shown as \xe9, and is no error
            stream.reconfigure(errors="backslashreplace")
    _forget_a_notebooks_drawing()
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # one line says what failed, without those of every retry
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: complain(f"warning: {message}", program)
        try:
            code = command(arguments or ["--help"], prog_name=program, standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read the output has seen enough
            return 0
        except typer.Abort:
            return 130
        except _UsageError as error:
            complain(error.format_message(), program)
            return 2
        except (OSError, ValueError, ImportError) as error:
            complain(_by_flags(str(error), command), program)
            return 2
        except FloatingPointError as error:  # a training that diverged
            complain(str(error), program)
            return 1
        except MemoryError as error:
            complain(f"there is not enough memory for that ({error}): ask for less at a time.", program)
            return 2
        finally:
            _let_go()
    return code or 0


def _open_what_is_closed() -> None:
    """Write to nowhere what goes to a stream that was closed by `>&-`, whose place the next file would take."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))


def _forget_a_notebooks_drawing() -> None:
    """Matplotlib, which Keras imports as well, refuses a backend that is in the notebook's environment alone."""
    _, _, module = os.environ.get("MPLBACKEND", "").partition("://")
    with suppress(ValueError):  # of a name that no file can have, such as __main__
        if module and find_spec(module.partition(".")[0]) is None:
            del os.environ["MPLBACKEND"]


def _let_go() -> None:
    """Leave what can't be written: the interpreter would try once more when it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def script(main: Callable[..., None]) -> None:
    """Run a function as a script whose flags are its parameters, and end the process as `vit` does."""
    command = typer.Typer(context_settings=CONTEXT, pretty_exceptions_enable=False, add_completion=False)
    command.command()(main)
    sys.exit(execute(command, os.path.basename(sys.argv[0])))


def _by_flags(message: str, command: typer.Typer) -> str:
    """An error of the library, which speaks of `head='drop'`, in the command's words, `--head drop`."""
    root: Any = get_command(command)
    flags = dict(_ELSEWHERE)
    for each in (root, *getattr(root, "commands", {}).values()):
        flags |= {option.name: max(option.opts, key=len) for option in each.params if option.opts[0].startswith("-")}
    names = "|".join(flags)

    def flag(match: re.Match[str]) -> str:
        value = "HEIGHTxWIDTH" if match[2] else match[5] if match[4] is None else match[4] or "''"
        return f"{flags[match[1]]} {value or ''}".rstrip()

    message = re.sub(rf"^({names})(?= must )", lambda match: flags[match[1]], message)
    return re.sub(rf"(?<![\w./?&-])({names})=(?!\[)(?:True\b|(\(height, width\))|(['\"])(.*?)\3|(\w*))", flag, message)


@dataclass(frozen=True)
class Picture:
    """A picture to read: how it is named in reports, and its path, address or bytes."""

    name: str
    source: Any


def pictures(arguments: list[str]) -> list[Picture]:
    """The pictures that files, folders, patterns, addresses and `-` stand for.

    Of several a path that is not there stands for itself, to be reported as every unreadable file is. Raises ValueError
    for an empty folder, FileNotFoundError where nothing is there at all.
    """
    found = [picture for argument in arguments for picture in _expanded(argument)]
    if found and all(is_missing(picture.source) for picture in found):
        load_image(found[0].source)  # which says so
    return found


def one_picture(argument: str, what: str) -> Picture:
    """The picture that an argument stands for. Raises ValueError, which says what one is asked for, for several."""
    found = pictures([argument])
    if len(found) != 1:
        raise ValueError(f"{what}, but {argument} stands for {len(found)}: pass one of them.")
    return found[0]


def _expanded(argument: str) -> Iterator[Picture]:
    if argument == "-":
        yield Picture("-", _stdin())
    elif argument.startswith(("http://", "https://")) or os.path.isfile(argument):
        yield Picture(argument, argument)
    elif os.path.isdir(argument):
        yield from _in_folders([argument], f"The folder {argument}")
    elif matches := sorted(glob.glob(argument, recursive=True)):
        files = [Picture(match, match) for match in matches if not os.path.isdir(match)]
        folders = [match for match in matches if os.path.isdir(match)]
        within = () if files and "**" in argument else _in_folders(folders, argument, bool(files))
        yield from (*files, *within)
    else:
        yield Picture(argument, argument)


def _in_folders(folders: list[str], name: str, empty: bool = False) -> list[Picture]:
    """The pictures in folders. Raises ValueError that names them where there are none, unless they may be empty.

    Files of other kinds are counted on the standard error.
    """
    files = {path for each in folders for path in _walk(each)}
    found = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    others = counted_suffixes(files.difference(found))
    if not found and not empty:
        left = f"; it holds {others}" if others else ""
        raise ValueError(f"{name} holds no pictures: expected files in {', '.join(SUFFIXES)}{left}.")
    if others:
        complain(f"{name}: left out {others}.")
    return [Picture(str(path), path) for path in found]


def _walk(folder: str) -> Iterator[Path]:
    """Every file under a folder, hidden ones and those in hidden folders aside."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent, name) for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file() or path.is_symlink())  # a pipe would never end


def _stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        found = "closed" if sys.stdin is None else "a terminal"
        raise ValueError(f"`-` reads a picture from the standard input, which is {found}: pipe one in.")
    return sys.stdin.buffer.read()


def import_for(
    backend: str | None, model: str, image_processor: str | None, revision: str | None, task: str = _TASK
) -> None:
    """Import a backend for a model. What is wrong with its files is told before, as the import takes seconds."""
    architecture_for(model, task, revision=revision)
    if image_processor is not None:
        AutoImageProcessor.from_pretrained(image_processor, revision=revision)
    import_quietly(backend)


def import_quietly(backend: str | None) -> None:
    """Import a backend, by default the first installed; TensorFlow prints lines then that no setting of it stops."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # for what it prints later
    backend = backend or first_installed()
    gc.disable()  # an import leaves hardly any garbage, and looking for it takes a fifth of TensorFlow's
    try:
        with silence(), hidden(*(UNUSED if backend == "tf" else ())):
            import_backend(backend)
        gc.freeze()  # what a command has imported lives as long as it does
    finally:
        gc.enable()


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Modules of these names, unless they have been imported before, are not found in a process of a command alone."""
    missing = dict.fromkeys(name for name in names if name not in sys.modules and _alone.is_set())
    sys.modules.update(missing)  # type: ignore[arg-type]  # None is Python's own mark of what can't be imported
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing on the standard error, of libraries that are no Python either."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def check_out(out: Path, example: str, suffixes: Collection[str], option: str = "--out") -> None:
    """Raise ValueError for a path that no file can be written to, or whose suffix is none of those known."""
    if out.is_dir():
        raise ValueError(f"{option} {out} is a folder: name a file in it, such as {out / example}.")
    if not out.parent.is_dir():
        raise ValueError(f"{option} {out}: there is no folder {out.parent}: make it first, or write elsewhere.")
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{option} {out} must end in one of {', '.join(suffixes)}.")


def drawing_format(out: Path, example: str, sources: Iterable[str], option: str = "--out") -> str:
    """Pillow's name of the format of a drawing. Raises ValueError for a path that can't be written to, or is a source.

    sources: names of pictures that are drawn from.
    """
    check_out(out, example, _DRAWINGS, option)
    for source in sources:
        if out.exists() and os.path.exists(source) and out.samefile(source):
            raise ValueError(f"{option} {out} is the picture itself, which would be lost: write elsewhere.")
    return _DRAWINGS[out.suffix.lower()]


def console() -> Console:
    """The standard output, for tables, which are not squeezed where it is no terminal."""
    return _Console(highlight=False, width=get_terminal_size(fallback=(160, 0)).columns)


class _Console(Console):
    """A console that leaves a closed pipe to the command, which takes it for the reader's having seen enough."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def one_line(text: object) -> str:
    """Text for a terminal or a table: in one line, and what can't be printed, escape codes included, as `\\ufffd`."""
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))


def complain(message: str, program: str = "vit") -> None:
    """One line on the standard error."""
    print(f"{program}: {one_line(message)}", file=sys.stderr)


@contextmanager
def clearing_up() -> Iterator[None]:
    """A SIGTERM in the block ends the process as Ctrl-C does, after what was begun is cleared away."""
    if threading.current_thread() is not threading.main_thread():  # which alone has signals
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """What is told what goes on: a line on the standard error, where that is a terminal."""
    columns = SpinnerColumn(), TextColumn("{task.description}")
    err = Console(stderr=True)
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None)
        yield lambda text: progress.update(task, description=text)


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on the standard output. Raises ValueError for numbers that JSON does not have."""
    print(json.dumps(document, indent=2, allow_nan=False))
