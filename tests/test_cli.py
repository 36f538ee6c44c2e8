"""The `vit` command: what it prints, draws and exits with; in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from command import Command, process
from members import config_for
from PIL import Image
from safetensors.numpy import load_file, save_file

from vit_core.app.attention_drawing import View
from vit_core.app.attention_maps import grad_cam, heaviest, relevance, rollout, to_patches
from vit_core.app.backends import class_gradients, run
from vit_core.app.cli import main
from vit_core.app.cli.common import pictures
from vit_core.assets import DIGITS
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import PARTS
from vit_core.params import count

CKPT = Path(__file__).parent / "golden" / "ckpt"
PICTURES = sorted((DIGITS / "pictures").iterdir())
NINE = next(path for path in PICTURES if path.name[0] == "9")
DEMO = "the digits demo answers, which knows handwritten digits alone: choose another model with --model PATH_OR_ID."
VIT = Path(sys.executable).with_name("vit")
torch = pytest.importorskip("torch")

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("COLUMNS", raising=False)  # a user's terminal would fold the tables
    return Command("vit", main, capsys)


# ---- the command itself -----------------------------------------------------------------------------------------


def test_the_console_script() -> None:
    result = process(VIT, "classify", NINE, "--top-k", 1, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["images"][0]["predictions"][0]["label"] == "9"
    assert process(sys.executable, "-m", "vit_core.cli", "--version").stdout == f"vit-trio {version('vit-trio')}\n"


def test_help_and_inspect_import_no_framework() -> None:
    code = (
        "import sys; from vit_core.app.cli import main\n"
        f"codes = [main([]), main(['--help']), main(['attend', '--help']), main(['inspect', {str(DIGITS)!r}])]\n"
        "print(codes, sorted({'torch', 'tensorflow', 'jax', 'flax', 'keras'} & set(sys.modules)), file=sys.stderr)"
    )
    result = process(sys.executable, "-c", code)
    assert result.stderr == "[0, 0, 0, 0] []\n"
    for command in ("classify", "embed", "similar", "inspect", "attend", "verify"):
        assert f" {command} " in result.stdout


@pytest.mark.parametrize("arguments", [["-h"], ["classify", "-h"], ["diff", "--help"]])
def test_help(vit: Command, arguments: list[str]) -> None:
    vit(*arguments)
    assert (vit.code, vit.err) == (0, "")
    assert "Usage: vit " in vit.out


def test_what_a_training_takes(vit: Command) -> None:
    assert "Of class folders, or a CSV of file and label." in vit("finetune", "--help").out
    assert "Of pictures, at any depth." in vit("pretrain", "--help").out


@pytest.mark.parametrize(
    ("typed", "completed"), [("vit cl", ["classify"]), ("vit classify --backend t", ["torch", "tf"])]
)
def test_names_are_completed(typed: str, completed: list[str]) -> None:
    asked = {"_VIT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    assert process(VIT, env={**os.environ, **asked}).stdout.split() == completed


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("classify", []),
        ("attend", ["--out", "x.png"]),
        ("embed", ["--out", "x.npy"]),
        ("verify", []),
        ("export", ["--to", "onnx"]),
        ("serve", []),
    ],
)
def test_a_mistyped_folder_is_told_before_a_framework_is_imported(
    vit: Command, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str]
) -> None:
    def imported(name: str) -> None:
        raise AssertionError(f"{name} is imported")

    for module in ("common", "comparing"):
        monkeypatch.setattr(f"vit_core.app.cli.{module}.import_backend", imported)
    mistyped = str(DIGITS).removesuffix("s")
    takes = {"verify": [mistyped], "export": [mistyped, "out"], "serve": [mistyped]}
    arguments = takes.get(command, [NINE, "--model", mistyped])
    assert f"does not exist, but {DIGITS} does" in vit.refused(command, *arguments, *options)
    if command in ("classify", "attend", "embed"):
        assert "'./nope' does not exist" in vit.refused(command, NINE, "--image-processor", "./nope", *options)
        for nothing in ("nope", "nope/*.png"):
            assert f"no image file {nothing}" in vit.refused(command, nothing, *options)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_early_and_a_full_disk(unbuffered: str) -> None:
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = process("bash", "-c", f"set -o pipefail; '{VIT}' inspect '{DIGITS}' --all | true", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    if Path("/dev/full").exists():
        result = process("bash", "-c", f"'{VIT}' inspect '{DIGITS}' > /dev/full", env=env)
        assert (result.returncode, result.stderr) == (2, "vit: [Errno 28] No space left on device\n")


def test_an_output_that_holds_ascii_alone(tmp_path: Path) -> None:
    picture = shutil.copy(NINE, tmp_path / "neuf-é.png")
    for given in (["classify", picture], ["classify", tmp_path / "è.png"]):
        result = process(VIT, *given, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"})
        shown = result.stdout if result.returncode == 0 else result.stderr
        assert Path(given[1]).name.replace("é", r"\xe9").replace("è", r"\xe8") in shown


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_is_closed(name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, name, None)  # as Python has it after `>&-`
    assert [main(["classify", str(picture)]) for picture in (NINE, "nope.png")] == [0, 2]
    assert "nope.png" not in capfd.readouterr().out


def test_the_drawing_of_a_notebook_in_another_environment(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for drawing in ("module://json.tool", "module://.json", "agg", "module://nowhere.backend_inline"):
        monkeypatch.setenv("MPLBACKEND", drawing)
        vit("--version")
        assert os.environ.get("MPLBACKEND") == (None if "nowhere" in drawing else drawing)


def test_ctrl_c_is_quiet(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vit_core.app.cli.classify.pipeline", interrupted)
    vit("classify", NINE)
    assert (vit.code, vit.out, vit.err) == (130, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "Missing argument 'IMAGE...'"),
        (["nosuch"], "No such command 'nosuch'"),
        (["classify", NINE, "--nope"], "No such option: --nope"),
        (["classify", NINE, "--top-k", "0"], "Invalid value for '--top-k'"),
        (["classify", NINE, "--backend", "jax"], "--backend must be one of torch, tf, flax, got 'jax'"),
        (["classify", "nope.png"], "There is no image file nope.png"),
        (["classify", DIGITS / "nope*.png"], "There is no image file"),
        (["classify", DIGITS / "config.json"], "is no picture that Pillow can read"),
        (["classify", NINE, "--model", "./nope"], "The folder './nope' does not exist"),
        (["classify", NINE, "--model", CKPT / "base" / "pt_safetensors"], "classifier.weight, classifier.bias. Train"),
        (["inspect", DIGITS / "pictures"], "has no model.safetensors"),
        (["inspect", DIGITS / "config.json"], "it is not an index of shards"),
        (["inspect", "nope.safetensors"], "There is no weights file nope.safetensors"),
        (["inspect", NINE], "is no file of weights that is known"),
        (["attend", NINE], "Missing option '--out'"),
        (["attend", NINE, "--out", "/nowhere/x.png"], "there is no folder /nowhere"),
        (["attend", NINE, "--out", DIGITS], "is a folder: name a file in it"),
        (["attend", NINE, "--out", "x.xyz"], "must end in one of .png, .jpg, .jpeg, .webp"),
        (["attend", NINE, "--out", NINE], "is the picture itself"),
        (["attend", DIGITS / "pictures", "--out", "x.png", "--segment"], f"stands for {len(PICTURES)}: pass one of"),
        (["attend", NINE, "--out", "x.jpg", "--segment"], "--out x.jpg can't be transparent: name it x.png."),
        (["attend", NINE, "--out", "x.png", "--method", "cam"], "must be one of rollout, gradient, chefer, pca, got"),
        (["attend", NINE, "--out", "x.png", "--threshold", 0], "must be a share above 0 and up to 1, got 0"),
        (["attend", NINE, "--out", "x.png", "--tokens", "all"], "must be one of cls, mean, registers, got 'all'"),
        (["attend", NINE, "--out", "x.png", "--tokens", "registers"], "must be one of cls, mean for a ViTConfig, got"),
        (["attend", NINE, "--out", "x.png", "--class", "9"], "--method rollout has no use for --class: leave it out"),
        (["attend", NINE, "--out", "x.png", "--method", "chefer", "--class", "ten"], "8, 9: got 'ten'."),
        (
            ["attend", NINE, "--out", "x.png", "--segment", "--method", "pca", "--tokens", "cls"],
            "--segment has no use for --tokens, --method",
        ),
        (["classify", NINE, "--devices", "meta"], "--devices meta can't be used (it holds no numbers): pass one that"),
        (["attend", NINE, "--out", "x.png", "--layer", "9"], "--layer must be from 0 to 4, or from -5 to -1, got 9"),
    ],
)
def test_bad_input_is_one_line(vit: Command, arguments: list[Any], message: str) -> None:
    assert message in vit.refused(*arguments)


def test_a_missing_framework_is_one_line() -> None:
    code = "import sys; sys.modules['torch'] = None; from vit_core.app.cli import main; sys.exit(main(sys.argv[1:]))"
    result = process(sys.executable, "-c", code, "classify", NINE, "--backend", "torch")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("vit: The backend torch is not installed (")
    assert result.stderr.endswith(': pip install "vit-trio[torch]"\n')


# A command that has its process to itself, another in that process, and which of the modules named here are there then.
ALONE = """
import json, sys
from vit_core.app.cli import main
first, second, names = json.loads(sys.argv[1])
sys.argv[1:] = first
sys.exit(main() or print(",") or main(second) or print(",", json.dumps([n for n in names if n in sys.modules])))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[list[Any], list[str]]]:
    """What `classify` and `attend` predict with a backend, in a process of their own that says nothing else.

    And which modules of others it has imported.
    """
    folder = tmp_path_factory.mktemp("predictions")

    @cache
    def of(backend: str) -> tuple[list[Any], list[str]]:
        commands = (["classify", NINE], ["attend", NINE, "--out", "map.png"])
        runs = [[*map(str, each), "--backend", backend, "--json"] for each in commands]
        told = json.dumps([*runs, ["jax", "pandas", "sklearn"]])
        result = process(sys.executable, "-c", ALONE, told, cwd=folder)
        assert (result.returncode, result.stderr) == (0, "")
        classified, attended, imported = json.loads(f"[{result.stdout}]")
        assert [each["backend"] for each in (classified, attended)] == [backend] * 2
        return [classified["images"][0]["predictions"], attended["predictions"]], imported

    return of


def test_backends_agree_and_are_quiet(backend: Any, answers: Callable[[str], tuple[list[Any], list[str]]]) -> None:
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    with torch.no_grad():
        logits = model(**vit_torch.ViTImageProcessor.from_pretrained(DIGITS)(NINE, return_tensors="pt")).logits
    bound = tolerances.probabilities(model.config, float(logits.abs().max()))
    for found, expected in zip(*(answers(name)[0] for name in (backend.name, "torch")), strict=True):
        assert [p["label"] for p in found] == [p["label"] for p in expected]
        assert_close([p["score"] for p in found], [p["score"] for p in expected], bound, each=True)
    # Keras imports what is installed; a command that has the process to itself has no use for it.
    assert answers(backend.name)[1] == ["jax"] * (backend.name == "flax")


# ---- classify ---------------------------------------------------------------------------------------------------


def test_files_folders_patterns_and_hidden_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a.JPG", "sub/c.webp", "notes.txt", ".hidden.png", ".cache/d.png", "odd[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)

    def names(*arguments: str) -> list[str]:
        return [picture.name for picture in pictures(list(arguments))]

    assert names(str(tmp_path)) == [str(tmp_path / n) for n in ("a.JPG", "b.png", "odd[1].png", "sub/c.webp")]
    assert names("*.png", "sub") == ["b.png", "odd[1].png", "sub/c.webp"]
    assert names("**/*.webp", "odd[1].png", "notes.txt") == ["sub/c.webp", "odd[1].png", "notes.txt"]
    (tmp_path / "empty").mkdir()
    everything = ["a.JPG", "b.png", "notes.txt", "odd[1].png", "sub/c.webp"]
    assert names("*") == names("**") == everything  # each once, whichever folder is empty
    with pytest.raises(ValueError, match=r"The folder empty holds no pictures: expected files in \.png"):
        pictures(["empty"])


def test_files_of_other_kinds_are_counted(vit: Command, tmp_path: Path) -> None:
    shutil.copy(NINE, tmp_path)
    for name in ("a.HEIC", "sub/b.heic", "notes.txt", "README", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    vit("classify", tmp_path, "--json")
    hint = "" if find_spec("pillow_heif") else "; pip install pillow-heif reads HEIF"
    assert (vit.code, len(json.loads(vit.out)["images"])) == (0, 1)
    first, rest = vit.err.removesuffix(f"{hint}.\n").split("left out ")
    assert first == f"vit: The folder {tmp_path}: "
    assert sorted(rest.split(", ")) == ["1 .txt", "1 without a suffix", "2 .heic"]
    assert "it holds 1 .heic" in vit.refused("classify", tmp_path / "sub")
    assert hint in vit.refused("classify", tmp_path / "a.HEIC")


def test_heif_where_a_decoder_is_installed(tmp_path: Path) -> None:
    """A module of that name which takes a PNG with another signature for such a file."""
    (tmp_path / "pillow_heif.py").write_text(
        "from io import BytesIO\nfrom PIL import Image, PngImagePlugin\n"
        "def opened(file, name=None):\n"
        "    return PngImagePlugin.PngImageFile(BytesIO(file.read()[4:]), name)\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', opened, lambda prefix: prefix.startswith(b'heif'))\n"
    )
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "nine.HEIC").write_bytes(b"heif" + NINE.read_bytes())
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    result = process(VIT, "classify", tmp_path / "pictures", "--json", env={**os.environ, "PYTHONPATH": path})
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["images"][0]["predictions"][0]["label"] == "9"


def test_of_many_failures_the_first_are_shown(vit: Command, tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i:02}.png").touch()
    vit("classify", tmp_path)
    *shown, last = vit.err.splitlines()
    assert (vit.code, vit.out) == (1, "")
    assert [Path(line.removeprefix("vit: ").split()[0]).name for line in shown] == [f"{i:02}.png" for i in range(10)]
    assert last == "vit: 12 of 12 pictures could not be read: above are the first 10, --json lists all."
    vit("classify", tmp_path, "--json")
    assert len(json.loads(vit.out)["failed"]) == 12


def test_classify_a_folder(vit: Command) -> None:
    document = vit.json("classify", DIGITS / "pictures", "--batch-size", 5, "--top-k", 2)
    assert list(document) == ["model", "backend", "images", "failed"]
    assert (document["model"], document["backend"], document["failed"]) == (str(DIGITS), "torch", [])
    assert [image["file"] for image in document["images"]] == list(map(str, PICTURES))
    assert {len(image["predictions"]) for image in document["images"]} == {2}
    assert document["images"] == vit.json("classify", DIGITS / "pictures" / "*.png", "-k2", "--batch-size", 5)["images"]


def test_classify_prints_a_table(vit: Command) -> None:
    vit("classify", NINE)
    assert vit.err == f"vit: {DEMO}\n"
    lines = [line for line in vit.out.splitlines() if " % " in line]
    assert len(lines) == 3
    assert lines[0].split()[:2] == [str(NINE), "9"]
    assert vit("classify", NINE, "--model", DIGITS).err == ""


def test_classify_the_standard_input(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(NINE.read_bytes())))
    document = vit.json("classify", "-")
    assert document["images"][0]["file"] == "-"
    assert document["images"][0]["predictions"][0]["label"] == "9"
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"")))
    assert "the image in 0 bytes is no picture" in vit.refused("classify", "-")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert "which is a terminal: pipe one in" in vit.refused("classify", "-")
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    assert "which is closed: pipe one in" in vit.refused("classify", "-")


def test_unreadable_pictures_are_reported_and_the_rest_go_on(vit: Command, tmp_path: Path) -> None:
    broken, missing = tmp_path / "bro\nken\x1b[31m.png", tmp_path / "missing.png"
    broken.write_bytes(NINE.read_bytes()[:60])
    vit("classify", broken, NINE, missing, PICTURES[0], "--model", DIGITS)
    assert vit.code == 1
    assert NINE.name in vit.out
    assert PICTURES[0].name in vit.out
    first, second, last = vit.err.splitlines()
    assert first.startswith(f"vit: {tmp_path}/bro ken\ufffd[31m.png is no picture that Pillow can read")
    assert second == f"vit: There is no image file {missing}: check the path."
    assert last == "vit: 2 of 4 pictures could not be read."

    vit("classify", broken, NINE, "--json")
    assert vit.code == 1
    document = json.loads(vit.out)
    assert [failed["file"] for failed in document["failed"]] == [str(broken)]
    assert len(document["images"]) == 1


def test_another_model_and_its_warning(vit: Command) -> None:
    vit("classify", NINE, "--model", CKPT / "cls" / "pt_safetensors", "--json")
    assert vit.code == 0
    assert vit.err.startswith(f"vit: warning: {CKPT / 'cls' / 'pt_safetensors'} has no preprocessor_config.json")
    assert vit.err.count("\n") == 1
    assert len(json.loads(vit.out)["images"][0]["predictions"]) == 3


def test_weights_that_are_damaged(vit: Command, tmp_path: Path) -> None:
    """What is advised is no option that the command lacks."""
    shutil.copytree(DIGITS, tmp_path / "damaged")
    file = tmp_path / "damaged" / "model.safetensors"
    stored = load_file(file)
    stored["classifier.bias"][0] = np.nan
    save_file(stored, file)
    told = vit.refused("classify", NINE, "--model", tmp_path / "damaged")
    assert "logits are not finite" in told and "--" not in told


def test_a_processor_of_ones_own(vit: Command, tmp_path: Path) -> None:
    """The option that the warning names; what it says is done."""
    shutil.copy(DIGITS / "config.json", tmp_path)
    shutil.copy(DIGITS / "model.safetensors", tmp_path)
    vit("classify", NINE, "--model", tmp_path)
    assert vit.code == 0 and "or --image-processor, if the model was trained with others." in vit.err
    plain = vit.json("classify", NINE, "--model", tmp_path, "--image-processor", DIGITS)["images"]
    assert plain == vit.json("classify", NINE)["images"]
    vit("attend", NINE, "--model", tmp_path, "--image-processor", DIGITS, "--out", tmp_path / "x.png")
    assert (vit.code, vit.err) == (0, "")


def test_a_progress_bar_over_many_pictures_on_a_terminal(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    vit("classify", DIGITS / "pictures", "--json")
    assert "Classifying" in vit.err
    assert len(json.loads(vit.out)["images"]) == len(PICTURES)
    assert vit.json("classify", NINE)["failed"] == []


# ---- inspect ----------------------------------------------------------------------------------------------------

FOLDERS = [
    "base/pt_safetensors",
    "cls/pt_safetensors_sharded",
    "mim/pt_safetensors",
    "cls_nonsquare/pt_safetensors",
    "mini/flax_safetensors_bf16",
    "mini/pt_safetensors_mixed",
    "mini/tf_safetensors",
    "mini/tf_safetensors_sharded",
    "tiny_12_layers/tf_safetensors",
]


@pytest.mark.parametrize("folder", FOLDERS)
def test_inspect_tells_the_truth(vit: Command, folder: str) -> None:
    path = CKPT / folder
    config = ViTConfig.from_json_file(path / "config.json")
    assert config.architectures
    architecture = config.architectures[0]
    files = sorted(path.glob("*.safetensors"))
    stored = {name: array for file in files for name, array in load_file(file).items()}
    document = vit.json("inspect", path)
    assert document["format"] == folder.partition("/")[2].partition("_")[0]
    assert document["architecture"] == architecture
    assert document["num_parameters"] == sum(a.size for a in stored.values()) == count(config, PARTS[architecture])
    assert document["bytes_on_disk"] == sum(file.stat().st_size for file in files)
    assert document["config"] == json.loads(json.dumps(config.to_dict()))
    assert document["missing"] == document["unexpected"] == document["mismatched"] == []
    dtypes = {str(a.dtype) for a in stored.values()}
    assert document["dtypes"] == {d: sum(a.size for a in stored.values() if str(a.dtype) == d) for d in dtypes}
    assert {each["in_file"] for each in document["parameters"]} == set(stored)
    for each in document["parameters"]:
        array = stored[each["in_file"]]
        assert sorted(each["shape"]) == sorted(array.shape)
        assert (each["dtype"], each["number"]) == (str(array.dtype), array.size)
    assert document["parameters"][0]["name"] == "embeddings.cls_token"


def test_a_terminal_that_says_it_has_no_columns(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "0")
    assert "173,706" in vit("inspect", DIGITS).out


def test_inspect_folds_layers_that_are_alike(vit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    vit("inspect", CKPT / "tiny_12_layers" / "pt_safetensors")
    assert (vit.code, vit.err) == (0, "")
    assert "encoder.layer.0-11 x 12" in vit.out
    assert vit.out.count("attention.attention.query") == 1
    config = ViTConfig.from_json_file(CKPT / "tiny_12_layers" / "pt_safetensors" / "config.json")
    total = f"{count(config, PARTS['ViTForImageClassification']):,}"
    assert vit.out.count(total) == 2
    query = next(line for line in vit.out.splitlines() if "attention.query" in line).split()
    assert query == ["attention.attention.query", "8x8", "8", "float32", f"{12 * 72:,}"]
    vit("inspect", CKPT / "tiny_12_layers" / "pt_safetensors", "--all")
    assert vit.out.count("attention.attention.query.weight") == 12


def test_inspect_says_what_does_not_fit(vit: Command, tmp_path: Path) -> None:
    source = CKPT / "mini" / "pt_safetensors"
    shutil.copy(source / "config.json", tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["extra"] = np.zeros(3, np.float32)
    tensors["classifier.bias"] = np.zeros(7, np.float32)
    tensors["vit.encoder.layer.1.output.dense.bias"] = np.zeros(16, np.float16)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    document = vit.json("inspect", tmp_path)
    assert document["missing"] == ["vit.layernorm.weight"]
    assert document["unexpected"] == ["extra"]
    assert document["mismatched"] == [{"name": "classifier.bias", "file": [7], "model": [3]}]
    vit("inspect", tmp_path)
    assert vit.code == 0
    for line in (
        "missing: vit.layernorm.weight",
        "unexpected: extra",
        "mismatched: classifier.bias: [7] in the file, [3] in the model",
        "encoder.layer.0 x 1",
        "encoder.layer.1 x 1",
    ):
        assert line in vit.out


def test_inspect_a_file_without_a_configuration(vit: Command, tmp_path: Path) -> None:
    shutil.copy(CKPT / "mini" / "pt_safetensors" / "model.safetensors", tmp_path / "weights.safetensors")
    document = vit.json("inspect", tmp_path / "weights.safetensors")
    assert (document["config"], document["architecture"], document["missing"]) == (None, None, [])
    assert "no config.json beside the weights" in vit("inspect", tmp_path / "weights.safetensors").out
    index = CKPT / "mini" / "tf_safetensors_sharded" / "model.safetensors.index.json"
    assert vit.json("inspect", index)["parameters"] == vit.json("inspect", index.parent)["parameters"]


# ---- attend -----------------------------------------------------------------------------------------------------


def test_attend_draws_the_rollout_of_the_models_attentions(vit: Command, tmp_path: Path) -> None:
    import vit_torch

    out = tmp_path / "out.png"
    document = vit.json("attend", NINE, "--out", out, "--layer", -2)
    with Image.open(out) as drawing:
        drawing.load()
        assert (drawing.format, drawing.mode, drawing.size) == ("PNG", "RGB", (1416, 1119))
    assert list(tmp_path.iterdir()) == [out]

    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    pixels = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)(NINE, return_tensors="pt").to(model.device)
    with torch.no_grad():
        output = model(**pixels, output_attentions=True)
    flow = rollout([attention[0].double().cpu().numpy() for attention in output.attentions])
    largest = -float(torch.stack(output.attentions).min().log())
    bound = tolerances.probabilities(model.config, largest)
    assert_close(document["rollout"], to_patches(flow, slice(0, 1), (6, 6)).tolist(), bound, each=True)
    assert document["layer"] == 3
    assert document["predictions"][0]["label"] == "9"


@pytest.mark.parametrize(
    ("name", "suffix"), [("cls_nonsquare", "jpg"), ("tiny_patch_8x4", "webp"), ("base", "png"), ("beit_mim", "png")]
)
def test_attend_with_other_grids_formats_and_without_a_classifier(
    vit: Command, tmp_path: Path, name: str, suffix: str
) -> None:
    out = tmp_path / f"out.{suffix}"
    vit("attend", NINE, "--out", out, "--model", CKPT / name / "pt_safetensors", "--json")
    assert vit.code == 0
    config = AutoConfig.from_json_file(CKPT / name / "pt_safetensors" / "config.json")
    document = json.loads(vit.out)
    assert np.shape(document["rollout"]) == config.grid
    assert bool(document["predictions"]) == (name not in ("base", "beit_mim"))
    with Image.open(out) as drawing:
        assert drawing.width == 1416


def test_attend_shows_what_a_centre_crop_leaves(vit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copy(DIGITS / file, tmp_path)
    processor = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 24, "do_convert_rgb": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    wide = Image.new("RGB", (128, 64))
    wide.paste("white", (40, 8, 88, 56))  # what is left of 64 x 32 pixels
    wide.save(tmp_path / "wide.png")
    seen: list[Image.Image] = []

    def spy(view: View, **_: Any) -> Image.Image:
        assert view.picture is not None
        seen.append(view.picture)
        return view.picture

    monkeypatch.setattr("vit_core.app.cli.attend.draw", spy)
    vit("attend", tmp_path / "wide.png", "--out", tmp_path / "out.png", "--model", tmp_path)
    assert (vit.code, vit.err) == (0, "")
    assert seen[0].size == (48, 48)
    assert seen[0].getextrema() == ((255, 255),) * 3


@pytest.fixture
def nine() -> tuple[Any, np.ndarray]:
    """The digits model, and the pixels of a nine."""
    import vit_torch

    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    return model, vit_torch.ViTImageProcessor.from_pretrained(DIGITS)(NINE, return_tensors="np").pixel_values


def test_attend_shows_the_patches_that_hold_a_share(vit: Command, tmp_path: Path, nine: Any) -> None:
    document = vit.json("attend", NINE, "--out", tmp_path / "x.png", "--threshold", 0.6, "--layer", 2)
    heads = run(nine[0], nine[1], output_attentions=True)["attentions"][2][0]
    expected = heaviest(heads[:, 0, 1:].reshape(4, 6, 6), 0.6)
    assert document["maps"] == {f"head {i}": expected[i].tolist() for i in range(4)}
    document = vit.json("attend", NINE, "--out", tmp_path / "x.png", "--tokens", "mean")
    heads = run(nine[0], nine[1], output_attentions=True)["attentions"][4][0]
    np.testing.assert_allclose(document["maps"]["head 3"], heads[3, 1:, 1:].mean(0).reshape(6, 6), rtol=1e-12)


@pytest.mark.parametrize("label", [None, "4"])
def test_attend_shows_what_speaks_for_a_class(vit: Command, tmp_path: Path, nine: Any, label: str | None) -> None:
    model, pixels = nine
    found = class_gradients(model, pixels, int(label or 9))
    matters = relevance([each[0] for each in found.attentions], [each[0] for each in found.by_attentions])
    expected = {
        "chefer": matters[0, 1:].reshape(6, 6),
        "gradient": grad_cam(found.states[3][0], found.by_states[3][0], (6, 6)),
    }
    for method, weights in expected.items():
        options = ["--class", label] if label else []
        document = vit.json("attend", NINE, "--out", tmp_path / "x.png", "--method", method, "--layer", 3, *options)
        assert_close(np.array(document[method]), weights / weights.sum(), 8 * tolerances.UNIT_ROUNDOFF["float32"])
        assert document["predictions"][0]["label"] == "9"


def test_attend_colours_what_is_alike(vit: Command, tmp_path: Path) -> None:
    together = vit.json("attend", DIGITS / "pictures", "--out", tmp_path / "x.png", "--method", "pca")
    unit = np.array([image["pca"] for image in together["images"]])
    assert unit.shape == (12, 6, 6, 3)
    np.testing.assert_allclose([unit.min((0, 1, 2)), unit.max((0, 1, 2))], [[0] * 3, [1] * 3], atol=1e-12)
    assert unit[0].max((0, 1)).min() < 1  # the components are not those of one picture
    np.testing.assert_array_equal(together["images"][5]["maps"]["PC 2"], unit[5, ..., 1])
    alone = np.array(vit.json("attend", NINE, "--out", tmp_path / "y.png", "--method", "pca")["pca"])
    np.testing.assert_allclose([alone.min((0, 1)), alone.max((0, 1))], [[0] * 3, [1] * 3], atol=1e-12)


def test_attend_draws_a_sheet_of_a_folder(vit: Command, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for picture in PICTURES[:3]:
        shutil.copy(picture, folder)
    document = vit.json("attend", folder, "--out", tmp_path / "x.png")
    one = vit.json("attend", PICTURES[1], "--out", tmp_path / "y.png")
    assert document["images"][1]["rollout"] == one["rollout"]
    with Image.open(tmp_path / "x.png") as drawing:
        assert drawing.size == (6 * 166 - 16 + 96, 190 + 3 * 210 + 24)
    (folder / "0.png").write_text("no picture")
    vit("attend", folder, "--out", tmp_path / "x.png")
    assert (vit.code, vit.out) == (1, f"3 pictures: {tmp_path / 'x.png'}\n")
    assert vit.err.startswith(f"vit: {DEMO}\n") and "0.png is no picture that Pillow can read" in vit.err
    with Image.open(tmp_path / "x.png") as drawing:
        assert drawing.height == 190 + 4 * 210 + 24
    for picture in PICTURES[:3]:
        (folder / picture.name).unlink()
    shutil.copy(folder / "0.png", folder / "1.png")
    assert "None of the 2 pictures can be read: " in vit.refused("attend", folder, "--out", tmp_path / "x.png")
    for i in range(65):
        shutil.copy(NINE, folder / f"{i}.png")
    assert "has place for 64 pictures, but " in vit.refused("attend", folder, "--out", tmp_path / "x.png")


def test_attend_cuts_out_what_the_cls_token_attends_to(vit: Command, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with Image.open(NINE) as picture:
        picture.resize((240, 120)).save(large)
    shares = []
    for threshold in (0.3, 0.6):
        options = ["--threshold", threshold] if threshold != 0.6 else []  # which is the default
        document = vit.json("attend", large, "--out", tmp_path / "cut.png", "--segment", *options)
        with Image.open(tmp_path / "cut.png") as cut:
            assert (cut.mode, cut.size) == ("RGBA", (240, 120))
            alpha = np.asarray(cut)[..., 3]
        assert set(np.unique(alpha)) == {0, 255}
        assert document["kept"] == (alpha == 255).mean()
        shares.append(document["kept"])
    assert 0 < shares[0] < 0.3 and shares[0] < shares[1] < 0.6


@pytest.mark.parametrize("member", ["IJepa", "Dinov2WithRegisters"])
def test_attend_without_a_cls_token_and_with_registers(vit: Command, tmp_path: Path, member: str) -> None:
    import vit_torch

    cls, sizes = f"{member}ForImageClassification", {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = config_for(cls, **sizes, image_size=24, patch_size=4, num_labels=3)
    model = getattr(vit_torch, cls)(config, seed=0)
    model.save_pretrained(tmp_path)
    shutil.copy(DIGITS / "preprocessor_config.json", tmp_path)
    options = ("attend", NINE, "--model", tmp_path, "--out", tmp_path / "x.png")
    pixels = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)(NINE, return_tensors="np").pixel_values
    attentions = [each[0] for each in run(model.eval(), pixels, output_attentions=True)["attentions"]]
    if member == "IJepa":
        document = vit.json(*options)
        np.testing.assert_allclose(document["rollout"], rollout(attentions).mean(0).reshape(6, 6), rtol=1e-12)
        assert "but a IJepaConfig has none: pass another model." in vit.refused(*options, "--segment")
        found = class_gradients(model, pixels, int(document["predictions"][0]["label"].removeprefix("LABEL_")))
        matters = relevance([each[0] for each in found.attentions], [each[0] for each in found.by_attentions])
        expected = matters.mean(0) / matters.mean(0).sum()
        document = vit.json(*options, "--method", "chefer")
        assert_close(np.array(document["chefer"]), expected.reshape(6, 6), 8 * tolerances.UNIT_ROUNDOFF["float32"])
    else:
        maps = vit.json(*options, "--tokens", "registers")["maps"]
        assert [*maps] == [f"register {i}" for i in range(4)]
        for i in range(4):
            np.testing.assert_allclose(
                maps[f"register {i}"], attentions[1].mean(0)[1 + i, 5:].reshape(6, 6), rtol=1e-12
            )
        rolled = vit.json(*options)["rollout"]
        np.testing.assert_allclose(rolled, rollout(attentions)[0, 5:].reshape(6, 6), rtol=1e-12)


def test_a_failed_drawing_leaves_the_old_file(vit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "out.png").write_bytes(b"old")
    monkeypatch.setattr(Image.Image, "save", full)
    assert "No space left on device" in vit.refused("attend", NINE, "--out", tmp_path / "out.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out.png", b"old")]
