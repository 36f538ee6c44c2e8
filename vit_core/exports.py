"""What an exported model computes: what the exporters of the three frameworks agree on.

An exported model takes one input, pixels in float32 whatever it computes in, or pictures that it prepares itself, and
gives outputs by name in float32, labels in integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vit_core.config import ViTConfig, pair
from vit_core.pictures.graph import Preparation

INPUT = "pixel_values"
INPUTS = {  # what a file takes: its name in the file, and what it is
    "pixels": (INPUT, "pixels (B, C, H, W) in float32, made as preprocessor_config.json says"),
    "image": ("image", "pictures (B, H, W, C) of any size in 8 bits, prepared in the file"),
    "bytes": ("image_bytes", "encoded pictures (B,), JPEG or PNG, decoded and prepared in the file"),
}
OUTPUTS = {
    "logits": "logits (B, K)",
    "probabilities": "probabilities (B, K)",
    "labels": "the best class, labels (B,), and its scores (B,)",
    "features": "features (B, D), as `model.features` pools them",
    "states": "hidden_states_0 and so on, (B, S, D) each",
}
CLASSES = ("logits", "probabilities", "labels")  # those of a classifier


@dataclass(frozen=True, kw_only=True)
class Operations:
    """What a framework computes outputs with."""

    wide: Callable[[Any], Any]  # to float32
    functions: Mapping[str, Callable[[Any], Any]]  # logits (B, K) to scores: softmax, sigmoid, none
    best: Callable[[Any], tuple[Any, Any]]  # of scores (B, K): labels and scores (B,)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is to be written, and what goes into the file beside the model, where the format has a place for that."""

    input: str = "pixels"
    preparation: Preparation | None = None  # of pictures, for the inputs that are not pixels yet
    outputs: str = "logits"
    function: str = "softmax"  # or sigmoid or none: what makes scores of logits
    any_batch: bool = True  # or one picture
    any_size: bool = False  # or `size`; position embeddings are interpolated
    size: tuple[int, int] | None = None  # height and width of pixels: what the processor makes, or the model's own
    documents: Mapping[str, str] = field(default_factory=dict)  # name of a file to its text
    native: bool = False  # compiled for this machine, where the target knows of that
    opset: int | None = None  # of ONNX; what PyTorch takes if None
    half: bool = False  # weights in float16, where the target takes a model in float32 and halves them itself
    int8: bool = False  # linear layers in 8-bit integers, weights by output channel, activations by tensor
    calibration: Any = None  # pixels (B, C, H, W) that say how far activations reach; else each call measures its own

    def pixel_size(self, config: ViTConfig) -> tuple[int, int]:
        """Height and width of pixels where they are not free."""
        return self.size or pair(config.image_size)

    def names(self, config: ViTConfig) -> list[str]:
        """The names of the outputs of a model, in order."""
        if self.outputs == "states":
            return [f"hidden_states_{i}" for i in range(config.num_hidden_layers + 1)]
        return ["labels", "scores"] if self.outputs == "labels" else [self.outputs]

    def compute(
        self, config: ViTConfig, operations: Operations, call: Callable[..., Any], features: Callable[..., Any]
    ) -> dict[str, Any]:
        """The outputs by name of a model whose call, and whose `features`, take options for the pixels at hand."""
        other = self.pixel_size(config) != pair(config.image_size)
        options = {"interpolate_pos_encoding": self.any_size or other}
        if self.outputs == "features":
            found = [operations.wide(features(**options))]
        elif self.outputs == "states":
            states = call(output_hidden_states=True, return_dict=True, **options)["hidden_states"]
            found = [operations.wide(state) for state in states]
        else:
            found = [operations.wide(call(return_dict=True, **options)["logits"])]
        if self.outputs in ("probabilities", "labels"):
            found = [operations.functions[self.function](*found)]
        if self.outputs == "labels":
            found = list(operations.best(*found))
        return dict(zip(self.names(config), found, strict=True))
