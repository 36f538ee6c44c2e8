"""`vit export` writes what the format's own runtime runs, with the model's numbers, and nothing else."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch
from zipfile import ZipFile

import numpy as np
import pytest
from closeness import assert_close
from command import Command
from conftest import CHECKPOINTS
from tolerances import both_rounded

from vit_core import export
from vit_core.app.backends import is_installed
from vit_core.app.cli import main
from vit_core.app.export import asking, checking, exporting
from vit_core.app.export.asking import COMPILERS, TARGETS
from vit_core.app.export.exporting import ExportError
from vit_core.app.export.runtime import RUNTIMES
from vit_core.assets import DIGITS
from vit_core.exports import Exported
from vit_core.pictures.processing import ViTImageProcessor

PICTURES = sorted((DIGITS / "pictures").iterdir())
ENDS = {name: target.suffix for name, target in TARGETS.items()}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*has no preprocessor_config.json",  # of golden checkpoints
    "ignore:.* are not used by ViTModel",
)


def need(target: str) -> None:
    modules = TARGETS[target].modules
    if not is_installed(TARGETS[target].backend) or any(find_spec(name) is None for name in modules):
        pytest.skip(f"{target} needs {TARGETS[target].backend} {' '.join(modules)}")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files run where the test does, which has their runtimes already."""

    def run(file: Path, target: str, calls: list[np.ndarray[Any, Any]]) -> list[dict[str, np.ndarray[Any, Any]]]:
        found = map(RUNTIMES[target](str(file)), calls)
        return [{name: np.asarray(value) for name, value in outputs.items()} for outputs in found]

    monkeypatch.setattr(checking, "_run", run)


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command("vit", main, capsys)


@pytest.mark.parametrize(
    ("target", "outputs", "dynamic", "taken"),
    [
        ("onnx", "states", "batch,size", "pixels"),
        ("pt2", "labels", "batch,size", "pixels"),
        ("saved-model", "labels", "batch,size", "pixels"),
        ("litert", "features", "batch", "pixels"),
        ("stablehlo", "probabilities", "batch,size", "pixels"),
        ("stablehlo", "states", "none", "image"),
    ],
)
def test_what_is_written_runs_without_this_package(
    vit: Command, target: str, outputs: str, dynamic: str, taken: str, shallow: Path, tmp_path: Path
) -> None:
    need(target)
    model, layers = (DIGITS, 5) if taken == "image" else (shallow, 1)
    out = tmp_path / f"digits{ENDS[target]}"
    options = ["--outputs", outputs, "--dynamic", dynamic, "--input", taken]
    if target == "saved-model":  # in place of another
        out.mkdir()
        (out / "saved_model.pb").touch()
        options.append("--overwrite")
    if model != DIGITS:  # whose pictures are there
        options += ["--pictures", str(model / "pictures")]
    found = vit.json("export", model, out, "--to", target, *options)
    assert found["ok"] and found["pictures"] == len(PICTURES) and out.exists()
    assert found["input"] == taken
    assert found["same_label"] == (len(PICTURES) if outputs in ("labels", "probabilities") else None)
    if target == "onnx":
        graph = pytest.importorskip("onnx").load(out).graph
        assert "Resize" not in {node.op_type for node in graph.node}
    names = {"labels": ["labels", "scores"], "states": [f"hidden_states_{i}" for i in range(layers + 1)]}.get(
        outputs, [outputs]
    )
    assert [each["output"] for each in found["differences"]] == names
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(found["files"])
    beside = out / "assets.extra" if target == "saved-model" else tmp_path
    prefix = "" if target == "saved-model" else "digits."
    stored = json.loads((beside / f"{prefix}preprocessor_config.json").read_text())
    assert stored == ViTImageProcessor.from_pretrained(DIGITS).to_dict()
    if target == "litert":
        assert (
            ZipFile(out).read("preprocessor_config.json") == (tmp_path / "digits.preprocessor_config.json").read_bytes()
        )
    if outputs in ("labels", "probabilities"):
        assert (beside / f"{prefix}labels.txt").read_text().split() == [str(i) for i in range(10)]


def test_an_onnx_file_says_what_its_numbers_mean(shallow: Path, tmp_path: Path) -> None:
    need("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    export(shallow, tmp_path / "half.onnx", "onnx", dtype="float16", pictures=PICTURES)
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    assert [(x.name, x.type, x.shape) for x in session.get_inputs()] == [
        ("pixel_values", "tensor(float)", ["batch", 3, 24, 24])
    ]
    assert [(x.name, x.type, x.shape) for x in session.get_outputs()] == [("logits", "tensor(float)", ["batch", 10])]
    known = session.get_modelmeta().custom_metadata_map
    assert known["labels.txt"].split() == [str(i) for i in range(10)]
    assert json.loads(known["preprocessor_config.json"]) == ViTImageProcessor.from_pretrained(DIGITS).to_dict()
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "half.onnx").read_bytes()
    assert (tmp_path / "half.onnx").stat().st_size < (shallow / "model.safetensors").stat().st_size


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of tf.lite.Interpreter, in this process
def test_a_litert_file_of_half_the_size(shallow: Path, tmp_path: Path) -> None:
    need("litert")
    out = tmp_path / "half.tflite"
    report = export(shallow, out, "litert", dtype="float16", pictures=PICTURES)
    assert report.differences[0].relative > 1e-5
    assert out.stat().st_size < (shallow / "model.safetensors").stat().st_size  # the least that it has in float32
    assert ZipFile(out).read("labels.txt").split() == [b"%d" % i for i in range(10)]


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_a_compiled_program_says_what_its_numbers_mean(shallow: Path, tmp_path: Path) -> None:
    need("pt2")
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("there is no C++ compiler")
    torch, out = pytest.importorskip("torch"), tmp_path / "compiled.pt2"
    assert export(shallow, out, "pt2", aoti=True, dynamic=()).ok
    known = torch._inductor.aoti_load_package(str(out)).get_metadata()
    assert known["labels.txt"].split() == [str(i) for i in range(10)]
    assert json.loads(known["preprocessor_config.json"]) == ViTImageProcessor.from_pretrained(DIGITS).to_dict()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_compiled_program_has_weights_laid_out_for_onednn_where_that_is_faster(
    frozen: bool, shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch, exporting = pytest.importorskip("torch"), importlib.import_module("vit_torch.exporting")
    monkeypatch.setattr(exporting, "onednn_is_faster", lambda: frozen)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    vit_torch = importlib.import_module("vit_torch")
    model = vit_torch.ViTForImageClassification.from_pretrained(shallow)
    with patch("torch._inductor.aoti_compile_and_package") as compiled:
        exporting.export(model, tmp_path / "x.pt2", "pt2", Exported(native=True))
    assert compiled.call_args.kwargs["inductor_configs"]["freezing"] is frozen


@pytest.mark.parametrize(
    ("target", "member"), [("onnx", "dinov2_cls"), ("stablehlo", "beit_cls"), ("stablehlo", "deit_teacher")]
)
def test_members_of_the_family(target: str, member: str, tmp_path: Path) -> None:
    need(target)
    folder, out = CHECKPOINTS / member / "pt_safetensors", tmp_path / f"member{ENDS[target]}"
    report = export(folder, out, target, dynamic=("batch", "size"))
    assert report.ok and report.same_label == 2


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("target", ["pt2", "saved-model", "stablehlo"])
def test_a_file_takes_what_its_processor_makes(target: str, tmp_path: Path) -> None:
    """Of a member that takes any size: DINOv2's files are for 518 pixels, their processors make 224."""
    need(target)
    folder, out = CHECKPOINTS / "dinov2_cls" / "pt_safetensors", tmp_path / f"served{ENDS[target]}"
    processor = ViTImageProcessor(size={"height": 24, "width": 40})
    assert export(folder, out, target, image_processor=processor, pictures=PICTURES[:2]).same_label == 2
    assert RUNTIMES[target](str(out))(np.zeros((1, 3, 24, 40), np.float32))["logits"].shape[0] == 1
    with pytest.raises(ValueError, match=re.escape("Input image size (24*40) doesn't match model (24*24).")):
        export(DIGITS, tmp_path / f"no{ENDS[target]}", target, image_processor=processor)


def test_a_checkpoint_of_another_framework(tmp_path: Path) -> None:
    need("onnx")
    if not is_installed("flax"):
        pytest.skip("flax is not installed")
    assert export(CHECKPOINTS / "cls" / "flax_msgpack", tmp_path / "flax.onnx", "onnx").ok


def test_what_does_not_agree_is_not_kept(
    vit: Command, shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need("onnx")
    genuine, kept = exporting.import_exporter, tmp_path / "kept.onnx"
    kept.write_bytes(b"before")

    class Wrong:
        @staticmethod
        def export(model: Any, *arguments: Any) -> None:
            with __import__("torch").no_grad():
                model.classifier.bias[3] += 0.5
                genuine("torch").export(model, *arguments)
                model.classifier.bias[3] -= 0.5

    monkeypatch.setattr(exporting, "import_exporter", lambda name: Wrong)
    vit("export", shallow, kept, "--to", "onnx", "--overwrite")
    assert vit.code == 1 and "differs" in vit.out
    assert "onnx does not agree with the model: logits differs by" in vit.err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.onnx"] and kept.read_bytes() == b"before"
    with pytest.raises(ExportError) as error:
        export(shallow, tmp_path / "new.onnx", "onnx")
    assert 0.01 < error.value.report.differences[0].relative < 1
    assert export(shallow, kept, "onnx", tolerance=1, overwrite=True).ok
    assert kept.read_bytes() != b"before"


@pytest.mark.usefixtures("in_this_process")
def test_labels_that_are_wrong_are_not_kept(shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("pt2")
    torch = pytest.importorskip("vit_torch.exporting")
    worst = replace(torch.OPERATIONS, best=lambda scores: (scores.argmin(-1), scores.amax(-1)))
    monkeypatch.setattr(torch, "OPERATIONS", worst)
    with pytest.raises(ExportError, match=r"0 of 12 pictures keep their class, and labels differs by") as error:
        export(shallow, tmp_path / "x.pt2", "pt2", outputs="labels", pictures=PICTURES)
    assert [each.ok for each in error.value.report.differences] == [False, True]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("second", "label", "ok"),
    [(0.6, 1, True), (0.6 - 1e-6, 1, True), (0.59, 1, False), (0.1, 9, False), (0.1, -1, False)],
)
def test_labels_are_equal_but_for_ties(
    second: float, label: int, ok: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two scores that are one within the tolerance either may be called the best."""
    scores = np.array([[0.6, second]])
    monkeypatch.setattr(checking, "_run", lambda *_: [{"labels": np.array([label]), "scores": scores.max(1)}])
    monkeypatch.setattr(checking, "_expected", lambda *_: {"labels": scores, "scores": scores.max(1)})
    calls, names = [checking.Call(scores, scores)], ("torch", "pt2")
    found, same = checking.compare(tmp_path, names, None, Exported(outputs="labels"), calls, [], 1e-5)
    assert [each.ok for each in found] == [ok, True] and same == (second == 0.6)


@pytest.mark.usefixtures("in_this_process")
def test_what_is_beside_a_file_is_not_replaced(shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("onnx")
    exporter = pytest.importorskip("vit_torch.exporting")
    monkeypatch.setattr(exporter, "LARGEST", 10_000)
    out, data, labels = (tmp_path / f"x.{end}" for end in ("onnx", "onnx.data", "labels.txt"))
    labels.write_text("mine")
    with pytest.raises(
        FileExistsError, match=r"x\.labels\.txt is there already, and other than what belongs beside x\."
    ):
        export(shallow, out, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.labels.txt"] and labels.read_text() == "mine"
    assert data.name in export(shallow, out, "onnx", overwrite=True).files and data.is_file()
    assert labels.read_text().split() == [str(i) for i in range(10)]
    export(shallow, tmp_path / "x.pt2", "pt2")  # whose labels are the same
    out.unlink()
    with pytest.raises(FileExistsError, match=r"x\.onnx\.data is there already, the weights of another file: pass"):
        export(shallow, out, "onnx")
    monkeypatch.setattr(exporter, "LARGEST", 10_000_000)
    export(shallow, out, "onnx", overwrite=True)
    assert out.is_file() and not data.exists()
    labels.unlink()
    labels.mkdir()
    with pytest.raises(FileExistsError, match=r"x\.labels\.txt is a folder"):
        export(shallow, out, "onnx", overwrite=True)


def test_a_stop_leaves_nothing(vit: Command, shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("pt2")

    def unheeded(*_: object) -> None:
        raise AssertionError("This would have ended the process where it was.")

    class Stopped:
        @staticmethod
        def export(model: Any, path: Path, *_: Any) -> None:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(exporting, "import_exporter", lambda name: Stopped)
    before = signal.signal(signal.SIGTERM, unheeded)
    try:
        with pytest.raises(SystemExit) as ended:
            vit("export", shallow, tmp_path / "x.pt2", "--to", "pt2")
        assert signal.getsignal(signal.SIGTERM) is unheeded
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_a_full_disk_may_be_that_of_temporary_files(
    vit: Command, shallow: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A library's own files, of which each has another error, and what the file is compared on."""
    need("pt2")
    full, meanwhile = Mock(), tmp_path / "meanwhile"
    meanwhile.mkdir()
    full.export.side_effect = RuntimeError("SaveV2: No space left on device")
    monkeypatch.setattr(tempfile, "tempdir", str(meanwhile))
    monkeypatch.setattr(exporting, "import_exporter", lambda name: full)
    said = vit.refused("export", shallow, tmp_path / "x.pt2", "--to", "pt2")
    assert f"It takes room in {tmp_path}, and in what libraries use meanwhile, {meanwhile}: where there" in said
    runs = Mock(return_value=Mock(returncode=1, stderr="stopped"))
    monkeypatch.setattr(checking.subprocess, "run", runs)
    with pytest.raises(ValueError, match="stopped"):
        checking._run(tmp_path / "x.pt2", "pt2", [np.ones(1)])
    given, answered = runs.call_args.args[0][-2:]
    assert Path(given).parents[1] == Path(answered).parents[1] == tmp_path


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_a_folder_that_can_not_be_put_in_its_place_leaves_the_old(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage, out = tmp_path / "stage", tmp_path / "before"
    for folder, text in ((stage / "before", "new"), (out, "old")):
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_text(text)
    rename = os.rename

    def fails(source: Path, place: Path) -> None:
        if (source, place) == (stage / "before", out):
            raise stop
        rename(source, place)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(stop):
        exporting._move(stage, out)
    assert (out / "saved_model.pb").read_text() == "old"
    monkeypatch.undo()
    exporting._move(stage, out)
    assert (out / "saved_model.pb").read_text() == "new"


def test_a_saved_model_takes_the_place_of_no_other_folder(tmp_path: Path) -> None:
    need("saved-model")
    out = tmp_path / "served"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"has no saved_model\.pb, which another export had: write"):
        export(DIGITS, out, "saved-model", overwrite=True)
    (out / "mine.txt").unlink()
    (out / "saved_model.pb").touch()
    with pytest.raises(FileExistsError, match="is there already: pass overwrite=True"):
        export(DIGITS, out, "saved-model")


@pytest.mark.parametrize(
    ("outputs", "input", "given", "given_back"),
    [
        ("probabilities", "pixels", "TYPE_FP32 [3, 24, 24]", "TYPE_FP32 [10] [] labels.txt"),
        ("labels", "image", "TYPE_UINT8 [-1, -1, 3]", "TYPE_INT64 [1] [] "),
    ],
)
def test_a_model_of_tritons_repository(
    outputs: str,
    input: str,
    given: str,
    given_back: str,
    shallow: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In Triton's own words, where its client is installed; of a chosen opset, with its weights in a second file."""
    need("onnx")
    monkeypatch.setattr("vit_torch.exporting.LARGEST", 10_000)
    monkeypatch.setattr("vit_core.pictures.graph.PILLOW_ORDERS", False)  # which is quick to trace
    out = tmp_path / "digits"
    options: dict[str, Any] = {"outputs": outputs, "input": input, "opset": 18}
    assert export(shallow, out, "onnx", triton=True, pictures=PICTURES[:2], **options).ok
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == ["1/model.onnx", "1/model.onnx.data", "config.pbtxt", "labels.txt", "preprocessor_config.json"]
    with pytest.raises(FileExistsError, match="is there already"):
        export(DIGITS, out, "onnx", triton=True)
    model = pytest.importorskip("onnx").load(out / "1" / "model.onnx", load_external_data=False)
    assert [each.version for each in model.opset_import if each.domain == ""] == [18]
    text_format = pytest.importorskip("google.protobuf.text_format")
    words = pytest.importorskip("tritonclient.grpc").model_config_pb2
    config = text_format.Parse((out / "config.pbtxt").read_text(), words.ModelConfig())
    assert (config.backend, config.max_batch_size, config.HasField("dynamic_batching")) == ("onnxruntime", 64, True)
    found = [f"{words.DataType.Name(each.data_type)} {list(each.dims)}" for each in (config.input[0], config.output[0])]
    first = config.output[0]
    assert found[0] == given and f"{found[1]} {list(first.reshape.shape)} {first.label_filename}" == given_back
    assert first.HasField("reshape") == (outputs == "labels")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_exporter_of_older_pytorch(tmp_path: Path) -> None:
    """Which traces: users of it have outputs by name and any batch as well."""
    need("onnx")
    torch, package = pytest.importorskip("torch"), pytest.importorskip("vit_torch")
    model, file = package.ViTForImageClassification.from_pretrained(DIGITS).eval(), tmp_path / "traced.onnx"
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32))
    names = {"input_names": ["pixel_values"], "output_names": ["logits"], "dynamic_axes": {"pixel_values": {0: "n"}}}
    torch.onnx.export(model, (x[:2],), file, dynamo=False, **names)
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    (found,) = session.run(["logits"], {"pixel_values": x.numpy()})
    assert_close(found, model(x).logits.detach().numpy(), both_rounded(model.config))


REFUSED: list[tuple[list[str], str]] = [
    (["x.onnx", "--to", "tensorrt"], "--to must be one of onnx, pt2, saved-model, litert, stablehlo, got 'tensorrt'."),
    (["x.pb", "--to", "onnx"], "must end in .onnx, as files of onnx do"),
    (["no/x.onnx", "--to", "onnx"], "there is no folder no: make it first"),
    (
        ["x.onnx", "--to", "onnx", "--outputs", "boxes"],
        "outputs must be one of logits, probabilities",
    ),
    (["x.onnx", "--to", "onnx", "--dynamic", "time"], "dynamic must be some of batch, size, got time."),
    (
        ["x.onnx", "--to", "onnx", "--dtype", "bfloat16"],
        "dtype must be one of float32, float16, got 'bfloat16'",
    ),
    (["x.tflite", "--to", "litert", "--dynamic", "size"], "litert has no operations for pictures of any size"),
    (
        ["x.onnx", "--to", "onnx", "--input", "bytes"],
        "onnx has no operations to decode pictures: ask for input pixels or image. preprocessor_config.json, which",
    ),
    (["x.tflite", "--to", "litert", "--input", "image"], "litert has no operations to prepare pictures of any size"),
    (["x.onnx", "--to", "onnx", "--input", "audio"], "input must be one of pixels, image, bytes, got 'audio'."),
    (
        ["x.onnx", "--to", "onnx", "--input", "image", "--dynamic", "size"],
        "Pictures have any size with --input image: leave size out of dynamic.",
    ),
    (["x.pt2", "--to", "pt2", "--triton"], "triton is written for onnx, which Triton runs, got pt2: leave it out."),
    (["x.onnx", "--to", "onnx", "--opset", "17"], "opset is onnx's, from 18, got 17 for onnx."),
    (["x.onnx", "--to", "onnx", "--aoti"], "aoti compiles pt2 alone, got onnx"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_what_is_refused_is_one_line(
    vit: Command, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = arguments[2]
    if target in TARGETS:
        need(target)
    monkeypatch.chdir(tmp_path)
    assert words in vit.refused("export", DIGITS, *arguments)
    assert not list(tmp_path.iterdir())


def test_what_no_file_holds(tmp_path: Path) -> None:
    need("pt2")
    torch = pytest.importorskip("vit_torch")
    out = tmp_path / "x.pt2"
    refused: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
        (lambda: CHECKPOINTS / "mim" / "pt_safetensors", {}, "classifier"),
        (lambda: DIGITS, {"attn_implementation": "flex"}, "is not exported: load with"),
        (lambda: torch.ViTModel.from_pretrained(DIGITS), {"dtype": "float16"}, "dtype can't be set for a model"),
        (lambda: torch.ViTForImageClassification(torch.ViTConfig(num_labels=0)), {}, "num_labels=0"),
        (lambda: DIGITS, {"input": "image", "image_processor": ViTImageProcessor(size=32)}, "doesn't match model"),
        (lambda: DIGITS, {"input": "image", "image_processor": ViTImageProcessor(do_resize=False)}, "many sizes"),
        (lambda: DIGITS, {"problem_type": "regression", "outputs": "labels"}, "A regression has no labels"),
        (lambda: torch.ViTForImageClassification.from_pretrained(DIGITS, dtype="bfloat16"), {}, "hold no bfloat16"),
        (lambda: DIGITS, {"position_kernel": "hf-4.44", "dynamic": ("size",)}, "leave size out of dynamic"),
        (lambda: CHECKPOINTS / "mae" / "pt_safetensors", {"outputs": "states"}, "MAE draws .* ask for features"),
        (lambda: torch.ViTModel.from_pretrained(DIGITS), {}, "ViTModel is no classifier, and has no logits: ask for"),
        (
            lambda: torch.BeitForMaskedImageModeling(torch.BeitConfig(num_hidden_layers=1)),
            {"outputs": "labels"},
            "BeitForMaskedImageModeling is no classifier, and has no labels: ask for features or states.",
        ),
        (
            lambda: torch.ViTModel(torch.ViTConfig(num_hidden_layers=1, image_size=(40, 64))),
            {"outputs": "features", "dynamic": ("size",)},
            r"Of pictures of 40x64 pixels only 32x64 are seen, .* takes whole patches alone: leave size out of dynamic",
        ),
    ]
    for model, options, words in refused:
        with pytest.raises(ValueError, match=words):
            export(model(), out, "pt2", **options)
    assert not list(tmp_path.iterdir())


def test_scanned_modules_are_refused(tmp_path: Path) -> None:
    need("stablehlo")
    with pytest.raises(ValueError, match="A model with scan_layers=True is not exported: load it without"):
        export(DIGITS, tmp_path / "x.stablehlo", "stablehlo", scan_layers=True)


def test_what_is_not_installed_is_named(vit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("pt2")
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    words = 'onnx needs onnx, onnxscript, onnxruntime: pip install "vit-trio[onnx]"'
    assert words in vit.refused("export", DIGITS, tmp_path / "x.onnx", "--to", "onnx")


def test_features_of_a_model_that_is_loaded(shallow: Path, tmp_path: Path) -> None:
    need("onnx")
    torch, package = pytest.importorskip("torch"), pytest.importorskip("vit_torch")
    model = package.ViTModel.from_pretrained(shallow)
    export(model, tmp_path / "features.onnx", "onnx", outputs="features", dynamic=())
    pixels = np.random.default_rng(3).standard_normal((1, 3, 24, 24)).astype(np.float32)
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "features.onnx")
    (found,) = session.run(["features"], {"pixel_values": pixels})
    with torch.no_grad():
        assert_close(found, model.features(torch.from_numpy(pixels)).numpy(), both_rounded(model.config))
