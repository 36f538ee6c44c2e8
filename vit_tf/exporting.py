"""Files that run a model without this package: a SavedModel for TensorFlow, and LiteRT."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import tensorflow as tf
from tensorflow import Tensor

from vit_core.exports import INPUTS, Exported, Operations
from vit_tf.litert_int8 import quantise
from vit_tf.pictures import opened, prepared
from vit_tf.serving import write_archive

EXTRA = "assets.extra"  # where a SavedModel holds what is not of its graph
OPERATIONS = Operations(
    wide=lambda x: tf.cast(x, tf.float32),
    functions={"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid, "none": tf.identity},
    best=lambda x: (tf.argmax(x, -1), tf.reduce_max(x, -1)),
)


def outputs(model: Any, wanted: Exported, pixel_values: Tensor) -> dict[str, Tensor]:
    """A model's outputs by name for pixels (B, C, H, W) in float32."""
    call, features = partial(model, pixel_values, training=False), partial(model.features, pixel_values)
    return wanted.compute(model.config, OPERATIONS, call, features)


def export(model: Any, path: Path, target: str, wanted: Exported) -> tuple[int, int] | None:
    """Write a model as "saved-model", a folder whose endpoint is `serve`, or as "litert".

    Returns how many linear layers of how many are in int8, if that is wanted, which "litert" knows of.
    """
    batch, channels = None if wanted.any_batch else 1, model.config.num_channels
    pixels: Any = tf.identity
    if wanted.preparation is None:
        size = (None, None) if wanted.any_size else wanted.pixel_size(model.config)
        spec = (batch, channels, *size), tf.float32
    elif wanted.input == "image":
        spec, pixels = ((batch, None, None, channels), tf.uint8), partial(prepared, wanted.preparation)
    else:
        spec, pixels = ((batch,), tf.string), partial(opened, wanted.preparation)

    def serve(given: Tensor) -> dict[str, Tensor]:
        return outputs(model, wanted, pixels(given))

    def write(folder: str) -> None:
        write_archive(model, folder, serve, [tf.TensorSpec(*spec, name=INPUTS[wanted.input][0])], verbose=False)

    if target == "saved-model":
        write(str(path))
        (path / EXTRA).mkdir()
        for name, text in wanted.documents.items():
            (path / EXTRA / name).write_text(text, encoding="utf-8")
        return None
    with TemporaryDirectory() as folder:
        write(folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        layers = None
        if wanted.int8:
            layers = quantise(converter, path, wanted)
        else:
            if wanted.half:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                converter.target_spec.supported_types = [tf.float16]
            path.write_bytes(converter.convert())
    with ZipFile(path, "a") as archive:  # behind the model, where TFLite's metadata has associated files
        for name, text in wanted.documents.items():
            archive.writestr(name, text)
    return layers
