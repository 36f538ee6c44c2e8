"""`vit export --int8`: every linear layer in 8 bits and nothing else, the classes of float32, a quarter of the file."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import Command
from conftest import CHECKPOINTS
from test_export import ENDS, need, vit  # noqa: F401
from trainings import EXAMPLES

from vit_core import export
from vit_core.app.backends import call, import_exporter
from vit_core.app.export import exporting, runtime
from vit_core.app.export.asking import AGREEMENT, INT8_TOLERANCE, TARGETS, calibrating_pictures
from vit_core.app.export.exporting import ExportError
from vit_core.app.opening import load
from vit_core.assets import DIGITS
from vit_core.exports import Exported
from vit_core.pictures.processing import ViTImageProcessor

LAYERS = 31  # the linear ones of the digits model
# Of a file, of the parameters in float32. In LiteRT a channel's scale and zero point take 12 bytes, twice where it has
# a bias.
SIZES = {"onnx": 0.326, "litert": 0.441}


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels that calibrate, of a third of the pictures for training, and of the fifth that is held out."""
    sys.path.insert(0, str(EXAMPLES))
    from digits import load_split

    processor = ViTImageProcessor.from_pretrained(DIGITS)
    training, held_out = (processor(split.images(), return_tensors="np").pixel_values for split in load_split())
    return np.asarray(training[::3], np.float32), np.asarray(held_out, np.float32)


@cache
def float32(backend: str) -> tuple[Any, int, np.ndarray]:
    """A backend's model, the bytes of its parameters, and the logits that it gives of what is held out."""
    model, _ = load(DIGITS, backend, None, task="ForImageClassification")
    size = sum(tensor.read().nbytes for tensor in model.to_tensors().values())
    return model, size, np.asarray(call(model, model, digits()[1]).logits)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of tf.lite.Interpreter, in this process
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("target", ["onnx", "litert"])
def test_the_digits_keep_their_classes(
    target: str, calibrated: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need(target)
    model, size, expected = float32(TARGETS[target].backend)
    path = tmp_path / f"digits{ENDS[target]}"
    wanted = Exported(int8=True, calibration=digits()[0] if calibrated else None)
    exporter, whole = import_exporter(TARGETS[target].backend), list[int]()
    if target == "onnx":
        quantise = exporter.quantise
        seen = lambda source, *others: whole.append(source.stat().st_size) or quantise(source, *others)  # noqa: E731
        monkeypatch.setattr(exporter, "quantise", seen)
    quantised, layers = exporter.export(model, path, target, wanted)
    small = target == "litert" and not calibrated  # its converter leaves a weight of less than 1024 values: the head
    assert (quantised, layers) == (LAYERS - small, LAYERS)
    assert path.stat().st_size <= SIZES[target] * size
    if target == "onnx":
        assert path.stat().st_size <= 0.3 * whole[0]  # of the file that is not in int8
        assert_no_sum_saturates(path)
    found = np.asarray(runtime.RUNTIMES[target](str(path))(digits()[1])["logits"])
    assert 0.001 < np.abs(found - expected).max() / np.abs(expected).max() < INT8_TOLERANCE
    assert np.mean(found.argmax(1) == expected.argmax(1)) >= AGREEMENT


def assert_no_sum_saturates(path: Path) -> None:
    """AVX2 without VNNI adds two products of a level and a weight in 16 bits."""
    onnx = pytest.importorskip("onnx")
    tensors = map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    weights = [abs(tensor.astype(int)).max() for tensor in tensors if tensor.dtype == np.int8 and tensor.ndim > 1]
    assert len(weights) >= LAYERS and 2 * 255 * max(weights) < 1 << 15


def test_pictures_that_calibrate_are_from_all_over_the_folder() -> None:
    assert calibrating_pictures(range(600), "pixels", "float32", "onnx")[:8] == [0, 1, 2, 3, 4, 5, 7, 8]
    assert calibrating_pictures(range(5), "pixels", "float32", "litert") == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="or a list of pictures, some hundreds of them, got 'pictures'"):
        calibrating_pictures("pictures", "pixels", "float32", "onnx")


def test_what_is_no_linear_layer_stays_in_float(vit: Command, shallow: Path, tmp_path: Path) -> None:  # noqa: F811
    need("onnx")
    onnx = pytest.importorskip("onnx")
    out, linear = tmp_path / "digits.onnx", 6 + 1  # of its one layer, and the head
    pictures = shallow / "pictures"
    found = vit.json("export", shallow, out, "--to", "onnx", "--int8", pictures, "--dynamic", "batch,size")
    assert found["agreement"] == 1 and found["same_label"] == found["pictures"] == 12
    assert found["int8"] == {"calibrated_on": 12, "quantised": linear, "linear_layers": linear}
    graph = onnx.load(out).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    weighted, float_alone = {"MatMul", "Gemm", "Conv"}, {"Add", "Gelu", "LayerNormalization", "Mul", "Softmax"}
    products = [[makers.get(name) for name in node.input[:2]] for node in graph.node if node.op_type in weighted]
    assert products.count(["DequantizeLinear"] * 2) == linear + 1  # and the patches
    assert len(products) == linear + 1 + 2 + 2  # attention's, and what interpolates position embeddings
    scales = {each.name: list(each.dims) for each in graph.initializer}
    read = [node.input for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in scales]
    per_channel = [scales[scale] for weight, scale, _ in read if len(scales[weight]) > 1]
    assert len(per_channel) == linear + 1 and [1] not in per_channel and [] not in per_channel
    inputs = {makers.get(name) for node in graph.node if node.op_type in float_alone for name in node.input}
    assert "DequantizeLinear" not in inputs


def test_what_loses_classes_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    need("onnx")
    monkeypatch.setattr(exporting, "AGREEMENT", 1.1)
    folder = CHECKPOINTS / "cls" / "pt_safetensors"
    with pytest.raises(ExportError, match=r"2 of 2 pictures keep their class, and logits differs by 0\.\d+ of its"):
        export(folder, tmp_path / "x.onnx", "onnx", int8="dynamic", image_processor=ViTImageProcessor(size=32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["x.pt2", "--to", "pt2", "--int8", "dynamic"],
            "int8 is written to onnx and litert, got pt2: see docs",
        ),
        (["x.onnx", "--to", "onnx", "--int8", "dynamic", "--dtype", "float16"], "int8 is made of float32, got float16"),
        (["x.onnx", "--to", "onnx", "--int8", "."], "The folder . holds no pictures"),
    ],
)
def test_what_is_refused_is_one_line(
    vit: Command,  # noqa: F811
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    need(arguments[2])
    monkeypatch.chdir(tmp_path)
    assert words in vit.refused("export", DIGITS, *arguments)
    assert not list(tmp_path.iterdir())
