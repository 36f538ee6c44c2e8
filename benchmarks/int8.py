"""ViT-B/16 at 224 pixels on two threads, a batch of 1 and of 8: our float32 against what runs it in int8 and float32.

Each candidate has a process of its own, in which nothing else has threads; they are called in turn. A ratio is that of
our time to the candidate's: above 1, the candidate takes less. Files are those of `vit export`, of random weights,
calibrated on noise: good for times, not for classes. OpenVINO reads the files of ONNX.

python benchmarks/int8.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from apart import THREADS, Call, Candidates, apart
from harness import OURS, arguments, interleaved, ratio, report

BATCHES = (1, 8)
FILES = {
    "float32.onnx": ("onnx", None),
    "int8.onnx": ("onnx", "noise"),
    "dynamic.onnx": ("onnx", "dynamic"),
    "float32.tflite": ("litert", None),
    "int8.tflite": ("litert", "noise"),
    "dynamic.tflite": ("litert", "dynamic"),
}


def ours(folder: Path, quantised: bool = False, compiled: bool = False) -> Call:
    """This package in PyTorch, by itself or under torchao."""
    import torch

    from vit_torch import ViTForImageClassification

    torch.set_num_threads(THREADS)
    model = ViTForImageClassification.from_pretrained(folder)
    if quantised:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantize_(model, Int8DynamicActivationInt8WeightConfig())
    if compiled:
        model = torch.compile(model)

    @torch.inference_mode()
    def call(x: np.ndarray) -> Any:
        return model(torch.from_numpy(x)).logits

    return call


def onnx_runtime(folder: Path, name: str) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"pixel_values": x})


def openvino(folder: Path, name: str) -> Call:
    """Compiled for each shape; in float32 where it is not int8, as it would take bfloat16 by itself."""
    from openvino import Core

    core = Core()
    settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

    @cache
    def compiled(shape: tuple[int, ...]) -> Any:
        model = core.read_model(folder / f"{name}.onnx")
        model.reshape(shape)
        return core.compile_model(model, "CPU", settings)

    return lambda x: compiled(x.shape)({"pixel_values": x})


def litert(folder: Path, name: str) -> Call:
    from tensorflow import lite

    runner = lite.Interpreter(str(folder / f"{name}.tflite"), num_threads=THREADS).get_signature_runner()
    return lambda x: runner(pixel_values=x)


CANDIDATES: Candidates = {
    OURS: ours,
    "torchao int8": partial(ours, quantised=True),
    "torchao int8, compiled": partial(ours, quantised=True, compiled=True),
    "ONNX Runtime float32": partial(onnx_runtime, name="float32"),
    "ONNX Runtime int8": partial(onnx_runtime, name="int8"),
    "ONNX Runtime int8, dynamic": partial(onnx_runtime, name="dynamic"),
    "OpenVINO float32": partial(openvino, name="float32"),
    "OpenVINO int8": partial(openvino, name="int8"),
    "LiteRT float32": partial(litert, name="float32"),
    "LiteRT int8": partial(litert, name="int8"),
    "LiteRT int8, dynamic": partial(litert, name="dynamic"),
}


def write(folder: Path) -> None:
    """The checkpoint and its files."""
    from vit_core import export
    from vit_torch import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(ViTConfig.variant("B/16", num_labels=1000), seed=0).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    noise = list(np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8))
    for name, (to, int8) in FILES.items():
        export(folder, folder / name, to, int8=noise if int8 == "noise" else int8, pictures=noise[:1], tolerance=1)


def main() -> None:
    given = arguments(__doc__, rounds=15, seconds=10.0)
    results = {}
    with TemporaryDirectory() as folder, apart(write, CANDIDATES, Path(folder)) as seconds:
        for batch in BATCHES:
            calls = {name: partial(ask, batch) for name, ask in seconds.items()}
            times = interleaved(calls, min_rounds=given.rounds, min_seconds=given.seconds, measure=lambda call: call())
            for name in list(CANDIDATES)[1:]:
                results[f"int8, our float32 / {name}, batch {batch}"] = ratio(times[OURS], times[name])
    report("Our float32 in PyTorch as a multiple of", results, given.json)


if __name__ == "__main__":
    main()
