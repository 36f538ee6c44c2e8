"""Files that run a model without this package: ONNX, and PyTorch's own exported and compiled programs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from vit_core.config import pair
from vit_core.exports import INPUTS, Exported, Operations
from vit_core.pictures.graph import Preparation
from vit_torch.layers import onednn_is_faster
from vit_torch.onnx_int8 import is_linear, quantise
from vit_torch.pictures import operations

LARGEST = 1_900_000_000  # bytes of weights in an ONNX file, which ends at 2 GiB; more are in a second one beside it


class ExportedModel(nn.Module):
    """A model's outputs by name as a function of pixels (B, C, H, W) in float32."""

    def __init__(self, model: Any, wanted: Exported) -> None:
        super().__init__()
        self.model, self.wanted = model, wanted

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        call, features = partial(self.model, pixel_values), partial(self.model.features, pixel_values)
        return self.wanted.compute(self.model.config, OPERATIONS, call, features)


class ExportedWithPreparation(nn.Module):
    """The outputs by name as a function of 8-bit pictures (B, H, W, C) of any size."""

    def __init__(self, model: nn.Module, preparation: Preparation) -> None:
        super().__init__()
        self.model, self.preparation = model, preparation

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.model(self.preparation(operations(), image))


OPERATIONS = Operations(
    wide=lambda x: x.float(),
    functions={"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid, "none": lambda x: x},
    best=lambda x: (x.argmax(-1), x.amax(-1)),
)


def export(model: Any, path: Path, target: str, wanted: Exported) -> tuple[int, int] | None:
    """Write a model, in evaluation mode and on the CPU, as "onnx" or "pt2".

    Returns how many linear layers of how many are in int8, if that is wanted, which "onnx" knows of.
    """
    module: nn.Module = ExportedModel(model, wanted)
    batch, channels = 2 if wanted.any_batch else 1, model.config.num_channels
    if wanted.preparation is None:
        example = torch.zeros(batch, channels, *wanted.pixel_size(model.config))
        free = _free_patches(pair(model.config.patch_size)) if wanted.any_size else {}
    else:
        module = ExportedWithPreparation(module, wanted.preparation)
        example = torch.zeros(batch, 37, 53, channels, dtype=torch.uint8)  # of a size that says nothing
        free = {axis: torch.export.Dim(name, max=1 << 16) for axis, name in ((1, "height"), (2, "width"))}
    free |= {0: torch.export.Dim("batch")} if wanted.any_batch else {}
    module, shapes = module.eval(), (free or None,)
    with torch.no_grad(), _silent():
        if target == "onnx":
            names = wanted.names(model.config)
            options: dict[str, Any] = {"output_names": names, "dynamic_shapes": shapes, "opset_version": wanted.opset}
            options["input_names"] = [INPUTS[wanted.input][0]]
            written: Any = torch.onnx.export(module, (example,), dynamo=True, verbose=False, **options)
            linear = [node.name for node in written.model.graph.all_nodes() if is_linear(node)]
            for node in written.model.graph.all_nodes():
                node.metadata_props.clear()  # where in whose files each operation was called, half of a small file
            written.model.metadata_props.update(wanted.documents)
            large = sum(x.numel() * x.element_size() for x in model.parameters()) > LARGEST
            if not wanted.int8:
                written.save(path, external_data=large)
                return None
            with TemporaryDirectory(dir=path.parent) as folder:
                written.save(Path(folder, path.name), external_data=large)
                return quantise(Path(folder, path.name), path, wanted, linear, large)
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # where in whose files it was called
        if wanted.native:
            frozen = onednn_is_faster() or not torch.backends.mkl.is_available()  # weights laid out for oneDNN
            packed: dict[str, Any] = {"freezing": frozen, "aot_inductor.metadata": dict(wanted.documents)}
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=packed)
        else:
            torch.export.save(program, path, extra_files=dict(wanted.documents))
    return None


def _free_patches(patch: tuple[int, int]) -> dict[int, Any]:
    """Any height and width of whole patches, by axis."""
    rows, columns = (torch.export.Dim(name, min=2, max=4096) for name in ("rows", "columns"))
    return {2: patch[0] * rows, 3: patch[1] * columns}


@contextmanager
def _silent() -> Iterator[None]:
    """Without what PyTorch's exporters say of PyTorch: what they deprecate in themselves, and what is not installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logging.root.addFilter(_is_error)  # what ONNX Runtime's quantisers say by no logger of their own
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.removeFilter(_is_error)
        logger.setLevel(level)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
