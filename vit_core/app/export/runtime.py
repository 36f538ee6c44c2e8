"""Runs an exported file with the runtime of its format, which is all that is imported: what a user's program does.

python runtime.py TARGET FILE INPUTS.npz OUTPUTS.npz [ABSENT ...]

INPUTS holds arrays arr_0, arr_1, ... of what the file takes, each of which is a call; OUTPUTS gets `0/NAME` and so on.
Modules that are called absent are not imported, though they are installed.
"""

import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Function = Callable[[Any], Mapping[str, Any]]


def onnx(file: str) -> Function:
    """ONNX Runtime on the processor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (taken,), names = session.get_inputs(), [output.name for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(names, {taken.name: given}), strict=True))


def pt2(file: str) -> Function:
    """PyTorch: an exported program, or one that is compiled for this machine."""
    import torch

    program: Any
    if any(name.endswith(".so") for name in zipfile.ZipFile(file).namelist()):  # compiled by AOTInductor
        program = torch._inductor.aoti_load_package(file)
    else:
        program = torch.export.load(file).module()

    def run(given: Any) -> Mapping[str, Any]:
        with torch.no_grad():
            return {name: value.numpy() for name, value in program(torch.from_numpy(given)).items()}

    return run


def saved_model(folder: str) -> Function:
    """TensorFlow."""
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    return lambda given: {name: value.numpy() for name, value in loaded.serve(tf.constant(given)).items()}


def litert(file: str) -> Function:
    """LiteRT's interpreter, by itself or in TensorFlow."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow import lite

        Interpreter = lite.Interpreter
    runner = Interpreter(file).get_signature_runner()
    return lambda pixels: runner(pixel_values=pixels)


def stablehlo(file: str) -> Function:
    """JAX."""
    from jax import export

    with open(file, "rb") as stream:
        return export.deserialize(bytearray(stream.read())).call


RUNTIMES = {"onnx": onnx, "pt2": pt2, "saved-model": saved_model, "litert": litert, "stablehlo": stablehlo}

OURS = ("vit_core", "vit_torch", "vit_tf", "vit_flax")

if __name__ == "__main__":
    target, exported, given, answered, *absent = sys.argv[1:]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # Python's own mark of what can't be imported
    function = RUNTIMES[target](exported)
    found: dict[str, Any] = {}
    with np.load(given) as arrays:
        for number, name in enumerate(arrays.files):
            found |= {f"{number}/{output}": np.asarray(value) for output, value in function(arrays[name]).items()}
    np.savez(answered, **found)
    if ours := [name for name in sys.modules if name.partition(".")[0] in OURS]:
        sys.exit(f"The file needs this package: {', '.join(ours)} were imported.")
