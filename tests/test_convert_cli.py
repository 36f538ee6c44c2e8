"""The `vit-convert` command: what it writes, prints and exits with; in a process of its own where that matters."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import HANGS, Command, process
from hub_server import HubServer, Repo, client_environment
from safetensors.numpy import load_file, save_file
from typer.main import get_command
from xxhash import xxh3_128_hexdigest

from conversion import TARGETS, read
from conversion.cli import app, main
from conversion.verification import read as read_again
from vit_core.app.backends import BACKENDS
from vit_core.config import AutoConfig, ViTConfig
from vit_core.params import DIALECTS, native_name, specs
from vit_core.position import resize_position_embeddings

ROOT = Path(__file__).parents[1]
CKPT, FORMATS = ROOT / "tests" / "golden" / "ckpt", ROOT / "tests" / "golden" / "families"
CASES = json.loads((FORMATS / "cases.json").read_text())
MINI = CKPT / "mini" / "pt_safetensors"
SCRIPT = Path(sys.executable).with_name("vit-convert")
OF_EVERY_COMMAND = {"--version", "--install-completion", "--show-completion"}
OPTIONS = {
    option for each in get_command(app).params for option in each.opts if option.startswith("--")
} - OF_EVERY_COMMAND
INSTALLED = [name for name, modules in BACKENDS.items() if all(find_spec(module) for module in modules)]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("COLUMNS", raising=False)  # a user's terminal would fold the tables
    return Command("vit-convert", main, capsys)


def config_of(folder: Path) -> ViTConfig:
    return AutoConfig.from_json_file(folder / "config.json")


def flags_of(case: dict[str, Any]) -> list[Any]:
    """What a golden file of another family does not say itself, or has and ViT has not."""
    flags: list[Any] = ["--heads", 2]
    if case["inputs"] == "inputs_16x24.npy":
        flags += ["--stored-image-size", "16x24"]
    if "layer scale" in case["note"] or "gamma" in case["note"]:
        flags.append("--fold-layer-scale")
    no_head = "a head on top of" in case["note"] or "the head is on the mean" in case["note"]  # that torch has
    return flags + (["--head", "drop"] if no_head else [])


# ---- formats -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "container"), [(to, kind) for to, target in TARGETS.items() for kind in target.containers]
)
def test_to_every_format_and_back(run: Command, tmp_path: Path, to: str, container: str) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    others = {"mae": "mae_pretraining", "timm-beit": "beit_cls"}  # which have no ViT
    source, heads = (CKPT / others[to] / "pt_safetensors", 4) if to in others else (MINI, 2)
    document = run.json(source, there, "--to", to, "--container", container)
    assert document["files"][0] == TARGETS[to].container(container).names()[0]
    assert sorted(document["files"]) == sorted(path.name for path in there.iterdir())
    assert read(there, num_attention_heads=heads).format == TARGETS[to].format
    document = run.json(there, back, "--to", "torch", "--heads", heads)
    assert document["source_format"] == TARGETS[to].format
    expected, found = load_file(source / "model.safetensors"), load_file(back / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expects"] == "outputs"])
def test_families_are_read(run: Command, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    document = run.json(FORMATS / case["file"], tmp_path / "new", "--to", "torch", *flags_of(case))
    assert document["source_format"] in (case["family"], "timm-beit", "keras", "keras-hub-dinov2")
    assert config_of(tmp_path / "new").num_attention_heads == 2
    assert document["entries"]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["expects"] == "refused"])
def test_what_is_no_vit_is_refused_by_name(run: Command, tmp_path: Path, name: str) -> None:
    message = run.refused(FORMATS / CASES[name]["file"], tmp_path / "new", "--to", "torch", "--heads", 2)
    assert Path(CASES[name]["file"]).parts[0] in message
    assert not (tmp_path / "new").exists()


def test_a_single_file(run: Command, tmp_path: Path) -> None:
    document = run.json(MINI, tmp_path / "vit.npz", "--to", "google")
    assert document["files"] == ["vit.npz"]
    assert [path.name for path in tmp_path.iterdir()] == ["vit.npz"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.txt", "one\n two\n\nthree\n"),
        ("labels.json", '["one", "two", "three"]'),
        ("labels.txt", "\ufeffone\ntwo\nthree"),  # as Windows begins a file
        ("config.json", '{"id2label": {"0": "one", "1": "two", "2": "three"}}'),
    ],
)
def test_names_of_the_classes(run: Command, tmp_path: Path, name: str, content: str) -> None:
    file, source = tmp_path / name, FORMATS / "timm"
    file.write_text(content, encoding="utf-8")
    run.json(source, tmp_path / "named", "--to", "torch", "--labels", file)
    assert config_of(tmp_path / "named").id2label == {0: "one", 1: "two", 2: "three"}
    document = run.json(tmp_path / "named", tmp_path / "vit.npz", "--to", "google")
    assert any("no place for the names of the 3 labels" in note for note in document["notes"])


def test_names_that_do_not_fit(run: Command, tmp_path: Path) -> None:
    file, source, target = tmp_path / "labels.json", FORMATS / "timm", tmp_path / "new"
    for content, words in (
        ('["one", "two"]', "--labels must name 3 classes, got 2: pass as many, or --num-labels 2 for"),
        ('{"a": 1}', "expected a JSON list of names, or an object of names by the numbers from 0."),
        ("{", "expected a JSON list"),
    ):
        file.write_text(content)
        assert words in run.refused(source, target, "--to", "torch", "--labels", file)
    file.write_bytes("één".encode("latin-1"))
    words = f"--labels {file} is no text in UTF-8 (byte 0): save it as UTF-8."
    assert words in run.refused(source, target, "--to", "torch", "--labels", file)
    assert "--labels nope: there is no such file." in run.refused(source, target, "--to", "torch", "--labels", "nope")
    file.write_text("one\n")
    assert "there is none" in run.refused(source, target, "--to", "torch", "--labels", file, "--head", "drop")
    assert not target.exists()


def test_list(run: Command) -> None:
    document = run.json("--list")
    assert [each["name"] for each in document["formats"]] == list(TARGETS)
    timm = next(each for each in document["formats"] if each["name"] == "timm")
    assert timm == {
        "name": "timm",
        "title": TARGETS["timm"].title,
        "containers": {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"},
        "read": True,
        "write": True,
        "layer_norm_eps": 1e-6,
        "hidden_act": None,
    }
    run("--list")
    assert (run.code, run.err) == (0, "")
    for name, target in TARGETS.items():
        line = next(line for line in run.out.splitlines() if line.split()[:1] == [name])
        assert target.title in line
        assert next(iter(target.containers.values())).names()[0] in line
    assert "gelu_new" in next(line for line in run.out.splitlines() if "vit_jax" in line)


# ---- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_dtype(run: Command, tmp_path: Path, dtype: str) -> None:
    document = run.json(MINI, tmp_path, "--to", "torch", "--dtype", dtype)
    assert {entry["dtype"] for entry in document["entries"]} == {dtype}
    assert {str(array.dtype) for array in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text()).get("dtype", "float32") == dtype


@pytest.mark.parametrize("size", ["2KB", "2000"])
def test_max_shard_size(run: Command, tmp_path: Path, size: str) -> None:
    run(MINI, tmp_path, "--to", "torch", "--max-shard-size", size)
    assert (run.code, run.err) == (0, "")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 6
    assert f"... ({len(shards) + 2} in all)" in run.out
    assert json.loads((tmp_path / "model.safetensors.index.json").read_text())["metadata"]["total_size"] > 0


@pytest.mark.parametrize(("size", "kernel", "grid"), [("32x48", "google", (4, 6)), ("24", "hf", (3, 3))])
def test_image_size(run: Command, tmp_path: Path, size: str, kernel: str, grid: tuple[int, int]) -> None:
    run.json(MINI, tmp_path, "--to", "torch", "--image-size", size, "--position-kernel", kernel)
    name = "vit.embeddings.position_embeddings"
    before = load_file(MINI / "model.safetensors")[name]
    expected = resize_position_embeddings(before, config_of(MINI).grid, grid, kernel)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")[name], expected)
    assert config_of(tmp_path).grid == grid


def test_head_pooler_and_labels(run: Command, tmp_path: Path) -> None:
    document = run.json(MINI, tmp_path / "trunk", "--to", "torch", "--head", "drop")
    assert "ViTModel" in config_of(tmp_path / "trunk").architectures
    assert "left out classifier.weight, as asked" in document["notes"]
    document = run.json(CKPT / "base" / "tf_h5", tmp_path / "bare", "--to", "torch", "--pooler", "drop")
    assert not any("pooler" in entry["target"] for entry in document["entries"])
    run(MINI, tmp_path / "fresh", "--to", "torch", "--num-labels", 7)
    assert "note: the classifier of 7 labels is newly initialised (seed 0)" in run.out
    assert load_file(tmp_path / "fresh" / "model.safetensors")["classifier.bias"].shape == (7,)


def test_the_configuration_is_corrected(run: Command, tmp_path: Path) -> None:
    run.json(MINI, tmp_path, "--to", "torch", "--hidden-act", "gelu_new", "--layer-norm-eps", "1e-5")
    assert (config_of(tmp_path).hidden_act, config_of(tmp_path).layer_norm_eps) == ("gelu_new", 1e-5)


def test_what_a_file_does_not_say(run: Command, tmp_path: Path) -> None:
    shutil.copy(FORMATS / "timm_not_square" / "model.safetensors", tmp_path)
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "other.safetensors")
    assert "pass --stored-image-size HEIGHTxWIDTH." in run.refused(tmp_path, tmp_path / "new", "--to", "torch")
    assert "--subfolder ../.. leads out of" in run.refused(
        tmp_path, tmp_path / "new", "--to", "torch", "--subfolder", "../.."
    )
    sized = ("--stored-image-size", "16x24")
    assert "pass --heads." in run.refused(tmp_path, tmp_path / "new", "--to", "torch", *sized)
    flags = ("--to", "torch", *sized, "--heads", 2)
    document = run.json(tmp_path, tmp_path / "new", *flags, "--filename", "other.safetensors")
    assert document["source"] == str(tmp_path / "other.safetensors")
    config = config_of(tmp_path / "new")
    assert (config.image_size, config.num_attention_heads) == ((16, 24), 2)


def test_key_variant_and_subfolder(run: Command, tmp_path: Path) -> None:
    source = FORMATS / "dino_full" / "checkpoint.pth"
    teacher = run.json(source, tmp_path / "teacher", "--to", "torch", "--heads", 2)
    student = run.json(source, tmp_path / "student", "--to", "torch", "--heads", 2, "--key", "student")
    hashes = [[entry["checksum"] for entry in document["entries"]] for document in (teacher, student)]
    assert hashes[0] != hashes[1]
    assert "choose with --key among" in run.refused(source, tmp_path / "no", "--to", "torch", "--key", "nobody")

    inner = tmp_path / "repo" / "inner"
    inner.mkdir(parents=True)
    shutil.copy(MINI / "config.json", inner)
    shutil.copy(MINI / "model.safetensors", inner / "model.fp32.safetensors")
    flags = ("--to", "torch", "--variant", "fp32")
    document = run.json(tmp_path / "repo", tmp_path / "new", "--subfolder", "inner", *flags)
    assert document["source"] == str(inner / "model.fp32.safetensors")
    assert "the --subfolder that has it" in run.refused(tmp_path / "repo", tmp_path / "no", *flags)


def test_unknown_tensors(run: Command, tmp_path: Path) -> None:
    shutil.copy(MINI / "config.json", tmp_path)
    save_file(
        load_file(MINI / "model.safetensors") | {"extra": np.zeros(3, np.float32)}, tmp_path / "model.safetensors"
    )
    message = run.refused(tmp_path, tmp_path / "new", "--to", "torch")
    assert message.endswith("holds 1 tensors that no ViT has: extra. Pass --ignore-unknown to leave them out.\n")
    document = run.json(tmp_path, tmp_path / "new", "--to", "torch", "--ignore-unknown")
    assert document["notes"] == ["left out extra: no tensor of a ViT"]


def test_layer_scale(run: Command, tmp_path: Path) -> None:
    source = FORMATS / "timm_layer_scale"
    assert "pass --fold-layer-scale" in run.refused(source, tmp_path / "new", "--to", "torch")
    assert "2 layer scales are folded" in run(source, tmp_path / "new", "--to", "torch", "--fold-layer-scale").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([MINI], "SRC, DST and --to are needed"),
        ([MINI, "new"], "SRC, DST and --to are needed"),
        ([MINI, "new", "more", "--to", "torch"], "Got unexpected extra argument"),
        ([MINI, "new", "--nope"], "No such option: --nope"),
        ([MINI, "new", "--to", "onnx"], "--to must be one of torch, tf, flax, timm"),
        ([MINI, "new", "--to", "torch", "--container", "h5"], "--container h5 is none that Hugging Face's PyTorch ViT"),
        ([MINI, "new", "--to", "torch", "--dtype", "int8"], "--dtype must be one of float32"),
        ([MINI, "new", "--to", "torch", "--image-size", "big"], "--image-size must be pixels, as 224 or as 224x384"),
        ([MINI, "new", "--to", "torch", "--image-size", "32", "--position-kernel", "x"], "kernel 'x': expected one of"),
        ([MINI, "new", "--to", "torch", "--stored-image-size", "1x"], "--stored-image-size must be pixels"),
        ([MINI, "new", "--to", "torch", "--head", "off"], '--head must be "keep" or "drop", got \'off\''),
        ([MINI, "new", "--to", "torch", "--num-labels", "x"], "Invalid value for '--num-labels'"),
        ([MINI, "new", "--to", "torch", "--hidden-act", "x"], "--hidden-act must be one of gelu"),
        ([MINI, "new.h5", "--to", "torch"], "new.h5 can't be the target: expected a folder, or a file ending in"),
        ([MINI, MINI, "--to", "torch"], "would replace the source"),
        (["./nope", "new", "--to", "torch"], "The folder './nope' does not exist"),
        ([FORMATS / "cases.json", "new", "--to", "torch"], "cases.json"),
        ([FORMATS / "timm_avg", "new", "--to", "torch"], "pass --head drop."),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run.refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_help_and_version(run: Command) -> None:
    for flag in ("-h", "--help"):
        assert "Usage: vit-convert " in run(flag).out
    assert run("--version").out == f"vit-trio {version('vit-trio')}\n"
    assert (run.code, run.err) == (0, "")
    result = process(sys.executable, "-m", "conversion.cli", "--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, run.out, "")


# ---- what is shown -----------------------------------------------------------------------------------------------


def test_the_plan_folds_layers_that_are_alike(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CKPT / "tiny_12_layers" / "pt_safetensors"
    run(source, tmp_path / "new", "--to", "timm", "--dry-run")
    assert (run.code, run.err) == (0, "")
    assert not (tmp_path / "new").exists()
    lines = [line.split() for line in run.out.splitlines()]
    assert ["blocks.0-11", "x", "12", "vit.encoder.layer.0-11"] in lines
    fused = [f"attention.attention.{name}.weight" for name in ("query,", "key,", "value")]
    fused = [name.replace(",.weight", ".weight,") for name in fused]
    assert ["attn.qkv.weight", *fused, "concatenate", "24x8", "float32"] in lines
    assert ["dry", "run:", "nothing", "is", "written"] in lines
    run(source, tmp_path / "new", "--to", "timm", "--dry-run", "--all")
    for i in range(12):
        assert f"blocks.{i}.attn.qkv.weight" in run.out

    monkeypatch.setenv("COLUMNS", "60")
    run(source, tmp_path / "new", "--to", "timm", "--dry-run")
    assert max(map(len, run.out.split("source")[0].splitlines())) <= 60
    document = run.json(source, tmp_path / "new", "--to", "timm", "--dry-run")
    assert document["dry_run"] is True
    assert {entry["checksum"] for entry in document["entries"]} == {""}


@pytest.mark.parametrize("to", [to for to in TARGETS if to not in ("mae", "timm-beit")])
def test_the_plan_of_every_format_is_folded(run: Command, tmp_path: Path, to: str) -> None:
    run(CKPT / "tiny_12_layers" / "tf_safetensors", tmp_path, "--to", to, "--dry-run")
    headers = [line.split() for line in run.out.splitlines() if " x 12 " in line]
    assert len(headers) == 1
    target, *_, source = headers[0]
    assert target.endswith("0-11")
    assert source == "vit/encoder/layer_._0-11"
    assert "{}" not in run.out
    assert len(run.out.splitlines()) < 45


def test_layers_that_differ_are_not_folded(run: Command, tmp_path: Path) -> None:
    source = CKPT / "tiny_12_layers" / "pt_safetensors"
    tensors = load_file(source / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    for i in (2, 3, 7):
        name = f"vit.encoder.layer.{i}.output.dense.bias"
        tensors[name] = tensors[name].astype(np.float16)
    save_file(tensors, tmp_path / "model.safetensors")
    run(tmp_path, tmp_path / "new", "--to", "timm", "--dry-run")
    headers = [line.split()[:3] for line in run.out.splitlines() if line.startswith(" blocks.")]
    assert headers == [["blocks.0-1,", "4-6,", "8-11"], ["blocks.2-3,", "7", "x"]]
    scanned = FORMATS / "big_vision_scan" / "model.npz"
    assert "layer 0-1, reshape (8, 8)" in run(scanned, tmp_path / "new", "--to", "tf", "--dry-run").out


def test_the_summary_and_the_notes(run: Command, tmp_path: Path) -> None:
    run(FORMATS / "timm", tmp_path, "--to", "torch", "--dtype", "float16")
    assert (run.code, run.err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in run.out.splitlines() if not line.startswith("note: "))
    assert facts["source"].startswith("timm's VisionTransformer (DeiT, DINO, DINOv2), ")
    assert facts["target"].rstrip() == f"Hugging Face's PyTorch ViT, {tmp_path}"
    assert facts["files"].rstrip() == "model.safetensors, config.json, preprocessor_config.json"
    size = sum(array.nbytes for array in load_file(tmp_path / "model.safetensors").values())
    assert facts["tensors"].rstrip() == f"40, {size / 1000:.3g} kB of float16"
    assert facts["labels"].rstrip() == "cat, dog, owl"
    notes = [line for line in run.out.splitlines() if line.startswith("note: ")]
    assert "note: layer_norm_eps is 1e-06 and hidden_act 'gelu', as timm's VisionTransformer" in notes[0]
    run(FORMATS / "timm", tmp_path, "--to", "torch", "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")


def test_json_has_checksums(run: Command, tmp_path: Path) -> None:
    document = run.json(FORMATS / "timm", tmp_path, "--to", "tf")
    stored = load_file(tmp_path / "model.safetensors")
    assert {entry["target"] for entry in document["entries"]} == set(stored)
    for entry in document["entries"]:
        array = stored[entry["target"]]
        assert entry["checksum"] == xxh3_128_hexdigest(array.tobytes())
        assert (entry["file"], entry["dtype"]) == ("model.safetensors", str(array.dtype))
        assert prod(entry["shape"]) == array.size
    assert document["verification"] is None


def test_a_progress_bar_on_a_terminal(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    run(MINI, tmp_path, "--to", "torch")
    assert "finishing" in run.err
    assert "kB" in run.err
    for flag in ("--json", "--quiet", "--dry-run"):
        assert run(MINI, tmp_path, "--to", "torch", flag).err == ""


def test_warnings_are_one_line(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(*_: Any, **options: Any) -> Any:
        warnings.warn("a\nwarning", UserWarning, stacklevel=1)
        raise OSError("a\nfailure\x1b[31m")

    monkeypatch.setattr("conversion.cli.convert", warning)
    run(MINI, tmp_path, "--to", "torch")
    assert (run.code, run.out) == (2, "")
    assert run.err == "vit-convert: warning: a warning\nvit-convert: a failure\ufffd[31m\n"


# ---- verification ------------------------------------------------------------------------------------------------


def test_verified_in_every_backend_that_is_installed(tmp_path: Path) -> None:
    command = (SCRIPT, FORMATS / "google" / "model.npz", tmp_path / "new", "--to", "timm", "--verify")
    result = process(*command)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.endswith(" ok  ")] == [[name, "logits"] for name in INSTALLED]
    skipped = [name for name in BACKENDS if name not in INSTALLED]
    more = f"; not installed: {', '.join(skipped)}" if skipped else ""
    assert lines[-1] == f"agreed: 40 tensors, outputs in {', '.join(INSTALLED)}{more}"


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verification with one backend, for it to be quick."""
    pytest.importorskip("torch").set_num_threads(1)
    for module in ("conversion.cli", "conversion.verification"):
        monkeypatch.setattr(f"{module}.BACKENDS", {"torch": BACKENDS["torch"]})


def test_a_target_that_was_tampered_with(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_alone: None
) -> None:
    def change(value: float) -> None:
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        tensors["classifier.weight"] = np.full_like(tensors["classifier.weight"], value)
        save_file(tensors, file, {"format": "pt"})

    command = (MINI, tmp_path, "--to", "torch", "--verify")
    verified = run.json(*command)["verification"]
    assert (verified["ok"], verified["unequal"], verified["tensors"]) == (True, [], 40)
    for value, shown in ((3.0, float), (float("nan"), type(None))):

        def tampered(*args: Any, value: float = value, **options: Any) -> Any:
            change(value)
            return read_again(*args, **options)

        monkeypatch.setattr("conversion.verification.read", tampered)
        run(*command)
        assert run.code == 1
        assert "not the same to the bit: classifier.weight\n" in run.out
        assert run.out.splitlines()[-1] == "DISAGREE: 40 tensors, outputs in torch"
        assert run.err == f"vit-convert: {tmp_path} does not agree with {MINI}; it stays for you to look at.\n"
        assert (tmp_path / "model.safetensors").is_file()
        run(*command, "--json")
        assert run.code == 1
        found = json.loads(run.out)["verification"]
        assert (found["ok"], found["unequal"]) == (False, ["classifier.weight"])
        assert isinstance(found["differences"][0]["relative"], shown)
        assert run(*command, "--quiet").code == 1
        assert run.out == ""


# ---- in a process of its own -------------------------------------------------------------------------------------


def test_no_framework_is_imported_without_verify(tmp_path: Path) -> None:
    code = (
        "import sys; from conversion.cli import main\n"
        f"convert = [{str(MINI)!r}, {str(tmp_path / 'new')!r}, '--to', 'keras-hub']\n"
        "codes = [main([]), main(['--help']), main(['--list']), main([*convert, '--dry-run']), main(convert)]\n"
        "print(codes, sorted({'torch', 'tensorflow', 'jax', 'flax', 'keras'} & set(sys.modules)), file=sys.stderr)"
    )
    result = process(sys.executable, "-c", code)
    assert result.stderr == "[0, 0, 0, 0, 0] []\n"
    for option in ("--to", "--dry-run", "--verify", "--list", "--fold-layer-scale"):
        assert f" {option} " in result.stdout


def test_no_sync(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: pytest.fail("the disk was waited for"))
    assert run(MINI, tmp_path / "mini", "--to", "flax", "--no-sync").code == 0


def test_ctrl_c_is_quiet(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("conversion.cli.convert", interrupted)
    run(MINI, tmp_path, "--to", "torch")
    assert (run.code, run.out, run.err) == (130, "", "")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 212 MB of zeros that take no space on the disk."""
    folder = tmp_path_factory.mktemp("large")
    config = ViTConfig(
        hidden_size=512, intermediate_size=24576, num_hidden_layers=2, num_attention_heads=8, image_size=32
    )
    header: dict[str, Any] = {}
    size = 0
    for spec in specs(config, frozenset()).values():
        begin, size = size, size + 4 * prod(spec.shape)
        name = native_name(spec, DIALECTS["pt"], False)
        header[name] = {"dtype": "F32", "shape": list(spec.shape), "data_offsets": [begin, size]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
    (folder / "config.json").write_text(json.dumps(config.to_diff_dict()))
    return folder


STUCK = """
import signal, sys, threading
import conversion.converting as converting
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what it runs in the background
from conversion.cli import main
hashed, written = converting.xxh3_128_hexdigest, 0

def stuck(data):  # once much has been written
    global written
    if written > 1 << 26:
        print("stuck", file=sys.stderr, flush=True)
        threading.Event().wait()
    written += len(data)
    return hashed(data)

converting.xxh3_128_hexdigest = stuck
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_the_old_target(
    large: Path, tmp_path: Path, stop: signal.Signals, single: bool
) -> None:
    folder = tmp_path / "out"
    target = folder / "model.safetensors" if single else folder
    assert process(SCRIPT, MINI, folder, "--to", "torch").returncode == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    command = [sys.executable, "-c", STUCK, large, target, "--to", "torch", "--overwrite"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stderr is not None and running.stderr.readline() == b"stuck\n"
    assert any(path.stat().st_size > 1 << 20 for path in folder.rglob("*") if path.is_file())
    running.send_signal(stop)
    out, err = running.communicate(timeout=HANGS)
    assert (running.returncode, out, err.strip()) == (130 if stop == signal.SIGINT else -stop, b"", b"")

    left = {path.name for path in folder.iterdir()} - set(before)
    assert left == set() if stop == signal.SIGINT else all(name.startswith(".") for name in left)
    assert {name: (folder / name).read_bytes() for name in before} == before
    if stop == signal.SIGKILL:
        assert process(SCRIPT, MINI, target, "--to", "torch").returncode == 0
        assert read(folder).config is not None


def test_a_hub_id(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (FORMATS / "timm").iterdir() if path.suffix != ".npz"}
    with HubServer() as server:
        server.repos["org/vit"] = Repo()
        server.repos["org/vit"].commit({"README.md": b"# Nothing yet\n"})
        server.repos["org/vit"].commit(files, branch="weights")
        options = {"env": client_environment(server, tmp_path / "home"), "cwd": tmp_path}
        result = process(SCRIPT, "org/vit", "new", "--to", "torch", "--revision", "weights", "--json", **options)
        assert (result.returncode, result.stderr) == (0, "")
        assert json.loads(result.stdout)["source_format"] == "timm"
        assert config_of(tmp_path / "new").id2label[0] == "cat"
        assert server.asked("GET") == ["config.json", "model.safetensors"]
        for arguments in (["org/vit"], ["org/nothing"]):
            result = process(SCRIPT, *arguments, "other", "--to", "torch", **options)
            assert (result.returncode, result.stdout) == (2, "")
            assert result.stderr.startswith("vit-convert: ")
            assert result.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


# ---- the guide ---------------------------------------------------------------------------------------------------


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs" / "convert.md").read_text()
    (tmp_path / "vit_core").mkdir()
    shutil.copytree(ROOT / "vit_core" / "assets", tmp_path / "vit_core" / "assets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shell = "".join(re.findall(r"```sh\n(.*?)```", guide, re.DOTALL))
    for command in shell.splitlines():
        assert command.startswith("vit-convert ")
        assert main(command.split()[1:]) == 0, command
    written = {path.name for path in tmp_path.iterdir()}
    assert {"digits-timm", "digits.npz", "digits-48", "digits-shards", "trunk.pth"} <= written
    shown = capsys.readouterr().out
    lines = re.search(r"^     blocks.0-4 x 5.*?\n\n", guide, re.MULTILINE | re.DOTALL)
    assert lines is not None
    assert set(lines[0].split()) <= set(shown.split())

    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(compile(block, "docs/convert.md", "exec"), names)
    assert capsys.readouterr().out.splitlines() == [
        "['model.weights.h5', 'task.weights.h5']",
        "transpose (1, 0), reshape (64, 4, 16) (64, 4, 16) float32 32",
        "keras-hub 4 88",
        "(10, 64)",
    ]
    for name, target in TARGETS.items():
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(container.names()[0] in row for container in target.containers.values())
    assert set(re.findall(r"--[a-z][a-z-]+", guide)) == OPTIONS
