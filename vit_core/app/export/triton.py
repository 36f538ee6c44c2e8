"""Triton Inference Server's `config.pbtxt` of an ONNX file, read off the file itself (Triton's model configuration)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG = "config.pbtxt"
VERSION = "1"  # the folder in which the model lies
LARGEST_BATCH = 64
_TYPES = {1: "TYPE_FP32", 2: "TYPE_UINT8", 7: "TYPE_INT64"}  # by ONNX's number


def config_of(file: Path, labels: str | None) -> str:
    """The text of a configuration; `labels` is the file beside it with a line for each class.

    Where the first axis of the file is free, Triton joins requests to batches of up to `LARGEST_BATCH`.
    """
    import onnx

    graph = onnx.load(file, load_external_data=False).graph
    (given,) = graph.input
    batched = _dims(given)[0] == -1
    lines = ['backend: "onnxruntime"', f"max_batch_size: {LARGEST_BATCH if batched else 0}"]
    lines += ["input [", _tensor(given, batched), "]", "output ["]
    scored = ("logits", "probabilities")
    lines += [",\n".join(_tensor(each, batched, labels if each.name in scored else None) for each in graph.output), "]"]
    lines += ["dynamic_batching { }"] if batched else []
    return "\n".join(lines) + "\n"


def _dims(value: Any) -> list[int]:
    """The lengths of a tensor's axes, -1 for those that are free."""
    return [axis.dim_value or -1 for axis in value.type.tensor_type.shape.dim]


def _tensor(value: Any, batched: bool, labels: str | None = None) -> str:
    dims = _dims(value)[1 if batched else 0 :]
    parts = [f'name: "{value.name}"', f"data_type: {_TYPES[value.type.tensor_type.elem_type]}"]
    parts += [f"dims: {dims}"] if dims else ["dims: [1]", "reshape { shape: [] }"]  # of a number for each picture
    parts += [f'label_filename: "{labels}"'] if labels else []
    return "  { " + ", ".join(parts) + " }"
