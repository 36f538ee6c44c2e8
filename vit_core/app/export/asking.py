"""What an export is asked for: the targets, and what fits them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vit_core.app.backends import import_backend
from vit_core.app.export.triton import CONFIG as TRITON_CONFIG
from vit_core.exports import INPUTS, OUTPUTS, Exported
from vit_core.files.names import PREPROCESSOR_NAME

DYNAMIC = ("batch", "size")
COMPILERS = ("g++", "c++", "clang++")  # of C++, one of which AOTInductor calls
LEAST_OPSET = 18  # that PyTorch writes


@dataclass(frozen=True)
class Target:
    """A format: the backend that writes it, how its files end, and what else has to be installed."""

    backend: str
    suffix: str  # "" for a folder
    modules: tuple[str, ...] = ()
    extra: str = ""  # of this package, which installs the modules
    inputs: tuple[str, ...] = ("pixels", "image")
    whole_patches: bool = True  # whether pixels of any size are whole patches, or have an edge that is left out


TARGETS = {
    "onnx": Target("torch", ".onnx", ("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "pt2": Target("torch", ".pt2"),
    "saved-model": Target("tf", "", inputs=("pixels", "image", "bytes"), whole_patches=False),
    "litert": Target("tf", ".tflite", inputs=("pixels",)),
    "stablehlo": Target("flax", ".stablehlo", ("flatbuffers",), "flax"),
}
# Of the difference, relative to an output's largest value: what rounding in this dtype makes of the model in float32.
TOLERANCES = {"float32": 1e-5, "float16": 5e-3}
INT8 = ("onnx", "litert")  # what is written in int8
INT8_TOLERANCE = 0.1  # twice what was measured
AGREEMENT = 0.99  # of pictures, whose best class has to stay in int8
CALIBRATION = 512  # pictures, at most; more say nothing new of how far activations reach


def checked_out(out: Path, to: str, triton: bool, overwrite: bool) -> Path:
    """Where to write. Raises ValueError or an OSError for what can't be there, or is there already."""
    if to not in TARGETS:
        raise ValueError(f"to must be one of {', '.join(TARGETS)}, got {to!r}.")
    if triton and to != "onnx":
        raise ValueError(f"triton is written for onnx, which Triton runs, got {to}: leave it out.")
    # What is written to a folder has a file by which such a folder is known; Triton's is a model of its repository.
    suffix, known = ("", TRITON_CONFIG) if triton else (TARGETS[to].suffix, "saved_model.pb")
    if suffix and out.suffix.lower() != suffix:
        raise ValueError(f"{out} must end in {suffix}, as files of {to} do: name it {out.with_suffix(suffix)}.")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"{out}: there is no folder {out.parent}: make it first, or write elsewhere.")
    data = weights_beside(out)
    if to == "onnx" and not triton and os.path.lexists(data) and not overwrite:
        raise FileExistsError(
            f"{data} is there already, the weights of another file: pass overwrite=True to replace it."
        )
    if not os.path.lexists(out):
        return out
    if out.is_dir() and suffix:
        raise FileExistsError(f"{out} is a folder: name a file.")
    if not suffix and not (out / known).is_file():
        raise FileExistsError(f"{out} is there, and has no {known}, which another export had: write elsewhere.")
    if not overwrite:
        raise FileExistsError(f"{out} is there already: pass overwrite=True to replace it.")
    return out


def weights_beside(out: Path) -> Path:
    """Where the weights of an ONNX file are that are too large for it."""
    return out.with_name(f"{out.name}.data")


def check_beside(out: Path, beside: Mapping[str, str], overwrite: bool) -> None:
    """Raise FileExistsError for what stands at the names of the texts that belong beside a file, and is another."""
    for path, text in ((out.with_name(name), text.encode()) for name, text in beside.items()):
        if path.is_dir():
            raise FileExistsError(f"{path} is a folder, where a file belongs beside {out.name}: write elsewhere.")
        if os.path.lexists(path) and not overwrite and not (path.is_file() and path.read_bytes() == text):
            raise FileExistsError(
                f"{path} is there already, and other than what belongs beside {out.name}: pass overwrite=True to "
                "replace it, or choose another name."
            )


def wanted_of(
    input: str, outputs: str, dynamic: Collection[str], dtype: str, to: str, aoti: bool, opset: int | None
) -> Exported:
    """What to write. Raises ValueError for what a target does not have."""
    if input not in INPUTS:
        raise ValueError(f"input must be one of {', '.join(INPUTS)}, got {input!r}.")
    if input not in TARGETS[to].inputs:
        lacks = "decode pictures" if input == "bytes" else "prepare pictures of any size"
        raise ValueError(
            f"{to} has no operations to {lacks}: ask for input {' or '.join(TARGETS[to].inputs)}. "
            f"{PREPROCESSOR_NAME}, which stands beside the file, says how pixels are prepared."
        )
    if input != "pixels" and "size" in dynamic:
        raise ValueError(f"Pictures have any size with input={input!r}: leave size out of dynamic.")
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}.")
    if unknown := sorted(set(dynamic) - set(DYNAMIC)):
        raise ValueError(f"dynamic must be some of {', '.join(DYNAMIC)}, got {', '.join(unknown)}.")
    if dtype not in TOLERANCES:
        raise ValueError(f"dtype must be one of {', '.join(TOLERANCES)}, got {dtype!r}: exported files hold no other.")
    if aoti and to != "pt2":
        raise ValueError(f"aoti compiles pt2 alone, got {to}: leave it out.")
    if aoti and not any(map(shutil.which, COMPILERS)):
        raise ValueError(f"aoti needs a C++ compiler, and there is no {' or '.join(COMPILERS)}: install one.")
    if to == "litert" and "size" in dynamic:
        raise ValueError("litert has no operations for pictures of any size: leave size out of dynamic.")
    if opset is not None and (to != "onnx" or opset < LEAST_OPSET):
        raise ValueError(f"opset is onnx's, from {LEAST_OPSET}, got {opset} for {to}.")
    any_batch, any_size = (name in dynamic for name in DYNAMIC)
    wanted = Exported(input=input, outputs=outputs, any_batch=any_batch, any_size=any_size, native=aoti, opset=opset)
    return replace(wanted, half=to == "litert" and dtype == "float16")


def calibrating_pictures(int8: str | Sequence[Any] | None, input: str, dtype: str, to: str) -> list[Any]:
    """The pictures that calibrate, from all over what is given, which may be sorted by class; none for "dynamic"."""
    if int8 is None:
        return []
    if to not in INT8:
        raise ValueError(f"int8 is written to {' and '.join(INT8)}, got {to}: see docs/quantize.md for its framework.")
    if input != "pixels":
        raise ValueError(f"int8 takes pixels, got input={input!r}: leave input out.")
    if dtype != "float32":
        raise ValueError(f"int8 is made of float32, got {dtype}: leave dtype out.")
    if int8 == "dynamic":
        return []
    if isinstance(int8, str) or not len(int8):
        raise ValueError(f'int8 must be "dynamic" or a list of pictures, some hundreds of them, got {int8!r}.')
    count = min(len(int8), CALIBRATION)
    return [int8[i * len(int8) // count] for i in range(count)]


def check_installed(to: str, target: Target) -> None:
    """Raises ImportError that says what to install."""
    import_backend(target.backend)
    if missing := [name for name in target.modules if find_spec(name) is None]:
        raise ImportError(f'{to} needs {", ".join(missing)}: pip install "vit-trio[{target.extra}]"')
