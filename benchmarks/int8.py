"""ViT-B/16 at 224 pixels on two threads, a batch of 1 and of 8: our float32 against what runs it in int8 and float32.

Each candidate has a process of its own, in which nothing else has threads; they are called in turn. A ratio is that of
our time to the candidate's: above 1, the candidate takes less. Files are those of `vit export`, of random weights,
calibrated on noise: good for times, not for classes. OpenVINO reads the files of ONNX.

python benchmarks/int8.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness import OURS, arguments, interleaved, ratio, report, seconds_of

THREADS, BATCHES = 2, (1, 8)
FILES = {
    "float32.onnx": ("onnx", None),
    "int8.onnx": ("onnx", "noise"),
    "dynamic.onnx": ("onnx", "dynamic"),
    "float32.tflite": ("litert", None),
    "int8.tflite": ("litert", "noise"),
    "dynamic.tflite": ("litert", "dynamic"),
}
Call = Callable[[np.ndarray], Any]


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


def onnx_runtime(file: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"pixel_values": x})


def openvino(file: Path) -> Call:
    """Compiled for each shape; in float32 where it is not int8, as it would take bfloat16 by itself."""
    from openvino import Core

    core = Core()
    settings = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}

    @cache
    def compiled(shape: tuple[int, ...]) -> Any:
        model = core.read_model(file)
        model.reshape(shape)
        return core.compile_model(model, "CPU", settings)

    return lambda x: compiled(x.shape)({"pixel_values": x})


def litert(file: Path) -> Call:
    from tensorflow import lite

    runner = lite.Interpreter(str(file), num_threads=THREADS).get_signature_runner()
    return lambda x: runner(pixel_values=x)


CANDIDATES: dict[str, Callable[[Path], Call]] = {
    OURS: ours,
    "torchao int8": lambda folder: ours(folder, quantised=True),
    "torchao int8, compiled": lambda folder: ours(folder, quantised=True, compiled=True),
    "ONNX Runtime float32": lambda folder: onnx_runtime(folder / "float32.onnx"),
    "ONNX Runtime int8": lambda folder: onnx_runtime(folder / "int8.onnx"),
    "ONNX Runtime int8, dynamic": lambda folder: onnx_runtime(folder / "dynamic.onnx"),
    "OpenVINO float32": lambda folder: openvino(folder / "float32.onnx"),
    "OpenVINO int8": lambda folder: openvino(folder / "int8.onnx"),
    "LiteRT float32": lambda folder: litert(folder / "float32.tflite"),
    "LiteRT int8": lambda folder: litert(folder / "int8.tflite"),
    "LiteRT int8, dynamic": lambda folder: litert(folder / "dynamic.tflite"),
}


def write(folder: str) -> None:
    """The checkpoint and its files."""
    from vit_core import export
    from vit_torch import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(ViTConfig.variant("B/16", num_labels=1000), seed=0).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    noise = list(np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8))
    for name, (to, int8) in FILES.items():
        export(folder, Path(folder, name), to, int8=noise if int8 == "noise" else int8, pictures=noise[:1], tolerance=1)


def serve(name: str, folder: str, pipe: Any) -> None:
    """Seconds of a call for each batch size that comes in, or what was raised."""
    call: Call | None = None
    while batch := pipe.recv():
        try:
            call = call or CANDIDATES[name](Path(folder))
            x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
            pipe.send(seconds_of(partial(call, x)))
        except Exception as error:
            pipe.send(error)


def ask(pipe: Any, batch: int) -> float:
    """Seconds of a call in another process."""
    pipe.send(batch)
    found = pipe.recv()
    if isinstance(found, Exception):
        raise found
    return float(found)


def main() -> None:
    given = arguments(__doc__, rounds=15, seconds=10.0)
    os.environ |= {"OMP_NUM_THREADS": str(THREADS), "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore"}
    warnings.simplefilter("ignore")
    spawn = get_context("spawn")
    results = {}
    with TemporaryDirectory() as folder:
        writer = spawn.Process(target=write, args=(folder,))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError("The files could not be written: the error stands above.")
        pipes, processes = {}, []
        for name in CANDIDATES:
            pipes[name], other = spawn.Pipe()
            processes.append(spawn.Process(target=serve, args=(name, folder, other), daemon=True))
            processes[-1].start()
        for batch in BATCHES:
            calls = {name: partial(ask, pipe, batch) for name, pipe in pipes.items()}
            times = interleaved(calls, min_rounds=given.rounds, min_seconds=given.seconds, measure=lambda call: call())
            for name in list(pipes)[1:]:
                results[f"int8, our float32 / {name}, batch {batch}"] = ratio(times[OURS], times[name])
        for pipe in pipes.values():
            pipe.send(0)
        for process in processes:
            process.join()
    report("Our float32 in PyTorch as a multiple of", results, given.json)


if __name__ == "__main__":
    main()
