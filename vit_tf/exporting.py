"""Files that run a model without this package: a SavedModel for TensorFlow, and LiteRT."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tensorflow as tf
from keras import export as keras_export
from tensorflow import Tensor

from vit_core.config import pair
from vit_core.exports import INPUT, Exported

EXTRA = "assets.extra"  # where a SavedModel holds what is not of its graph
_FUNCTIONS = {"softmax": tf.nn.softmax, "sigmoid": tf.nn.sigmoid, "none": tf.identity}


def outputs(model: Any, wanted: Exported, pixel_values: Tensor) -> dict[str, Tensor]:
    """A model's outputs by name for pixels (B, C, H, W) in float32."""
    options = {"interpolate_pos_encoding": wanted.any_size}
    if wanted.outputs == "features":
        found = [model.features(pixel_values, **options)]
    elif wanted.outputs == "states":
        output = model(pixel_values, output_hidden_states=True, return_dict=True, training=False, **options)
        found = list(output.hidden_states)
    else:
        logits = tf.cast(model(pixel_values, return_dict=True, training=False, **options).logits, tf.float32)
        scores = _FUNCTIONS[wanted.function](logits)
        found = [tf.argmax(scores, -1), tf.reduce_max(scores, -1)] if wanted.outputs == "labels" else [scores]
        found = [logits] if wanted.outputs == "logits" else found
    names = wanted.names(model.config)
    return {name: tf.cast(x, tf.float32) if x.dtype.is_floating else x for name, x in zip(names, found, strict=True)}


def export(model: Any, path: Path, target: str, wanted: Exported) -> None:
    """Write a model as "saved-model", a folder whose endpoint is `serve`, or as "litert"."""
    size = (None, None) if wanted.any_size else pair(model.config.image_size)
    shape = (None if wanted.any_batch else 1, model.config.num_channels, *size)

    def serve(pixel_values: Tensor) -> dict[str, Tensor]:
        return outputs(model, wanted, pixel_values)

    def write(folder: str) -> None:
        archive = keras_export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", serve, [tf.TensorSpec(shape, tf.float32, name=INPUT)])
        archive.write_out(folder, verbose=False)

    if target == "saved-model":
        write(str(path))
        (path / EXTRA).mkdir()
        for name, text in wanted.documents.items():
            (path / EXTRA / name).write_text(text)
        return
    with TemporaryDirectory() as folder:
        write(folder)
        path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())
