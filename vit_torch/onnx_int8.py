"""An ONNX file whose linear layers compute in 8-bit integers, by ONNX Runtime's quantisers.

Weights are int8, each output channel with a scale of its own, activations uint8, the pair that processors multiply
fastest (VNNI). Weights use 7 of their 8 bits: where there is no VNNI, AVX2 adds two products in 16 bits, which hold
255 * 64 twice, and saturate beyond. GELU, softmax, LayerNorm, residuals and the products of attention stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_core.exports import INPUT, Exported

LINEAR = ("MatMul", "Gemm")
BATCH = 8  # pictures in a call that calibrates


def is_linear(node: Any) -> bool:
    """Whether a node, as PyTorch's exporter leaves it, is the product of a linear layer."""
    return node.op_type in LINEAR and "aten.linear" in node.metadata_props.get("pkg.torch.onnx.class_hierarchy", "")


def quantise(source: Path, path: Path, wanted: Exported, linear: list[str], large: bool) -> tuple[int, int]:
    """Write the file at `source` with its linear layers, and the patches where calibrated, in int8.

    linear: these layers, by the names of their nodes. large: weights in a second file. Returns how many linear layers
    of how many are in int8. Raises ValueError where these are not the same, or none.
    """
    import onnx
    from onnxruntime import quantization

    nodes = onnx.load(source, load_external_data=False).graph.node
    others = [node.name for node in nodes if node.op_type in LINEAR and node.name not in linear]
    options: dict[str, Any] = {
        "per_channel": True,
        "reduce_range": True,
        "use_external_data_format": large,
        "nodes_to_exclude": others,
    }
    if wanted.calibration is None:
        quantization.quantize_dynamic(
            source,
            path,
            op_types_to_quantize=LINEAR,
            weight_type=quantization.QuantType.QInt8,
            **options,
        )
    else:
        quantised = (*LINEAR, "Conv")
        quantization.quantize_static(
            source,
            path,
            _Reader(wanted),
            op_types_to_quantize=quantised,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": quantised},
            **options,
        )
    model = onnx.load(path, load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    products = (node for node in model.graph.node if node.op_type in LINEAR and node.input[1] in constants)
    left = [node.name for node in products if node.name not in others]
    if left or not linear:
        raise ValueError(f"{len(linear) - len(left)} of {len(linear)} linear layers are in int8, not {', '.join(left)}")
    _shorten(model.graph)
    onnx.save(model, path)
    return len(linear), len(linear)


def _shorten(graph: Any) -> None:
    """Leave out what runtimes need not be told, which is a third of a small file.

    That is names between inputs and outputs, shapes, which are inferred, and zero points of weights, which are zero.
    """
    del graph.value_info[:], graph.metadata_props[:]
    names = {"": ""} | {value.name: value.name for value in (*graph.input, *graph.output)}

    def short(name: str) -> str:
        return names.setdefault(name, str(len(names)))

    for node in graph.node:
        if node.op_type == "MatMulInteger":
            del node.input[3:]
        node.name = ""
        node.input[:] = map(short, node.input)
        node.output[:] = map(short, node.output)
    used = [tensor for tensor in graph.initializer if tensor.name in names]
    for tensor in used:
        tensor.name = short(tensor.name)
    del graph.initializer[:]
    graph.initializer.extend(used)


class _Reader:
    """Pixels in batches, as the quantiser asks for them."""

    def __init__(self, wanted: Exported) -> None:
        size = BATCH if wanted.any_batch else 1
        pixels = wanted.calibration
        self.batches: Iterator[dict[str, Any]] = ({INPUT: pixels[i : i + size]} for i in range(0, len(pixels), size))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)
