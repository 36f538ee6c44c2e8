"""What Keras asks of a model that returns output classes when it is written: an endpoint, a Functional model."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import keras
import tensorflow as tf
from keras import export
from tensorflow import Tensor

from vit_core.config import ViTConfig, pair
from vit_core.family import ViTMAEConfig
from vit_core.outputs import ModelOutput
from vit_tf.functional import functional

archived: ContextVar[bool] = ContextVar("archived", default=False)  # whether a model is being written with an endpoint


class Serving(keras.Model):
    """Base of the models: how `export`, `functional` and `tf.saved_model.save` see their outputs."""

    config: ViTConfig
    data_format: str

    def functional(self, outputs: str | Sequence[str] = "logits", processor: Any = None) -> keras.Model:
        """A Functional model around this one, whose weights it shares: one tensor in, `outputs` by name out.

        A name gives a tensor, or for `hidden_states` and `attentions` a tuple of them; a list of names gives a dict.
        Names are those of the model's output, and `probabilities` of a classifier, `last_hidden_state` of any model.
        The input is pixels of the model's size in its layout; with a `processor` it is 8-bit images (B, H, W, C) of
        that size, which the model rescales and normalises by itself. Raises ValueError for a name that it has not.
        """
        return functional(self, outputs, processor)

    def export(
        self,
        filepath: Any,
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """A SavedModel whose endpoint `serve` takes pixels, any number of images, and returns a dict of tensors.

        The states of the layers are `hidden_states_0` and so on, likewise the attentions. It needs nothing but
        TensorFlow to be served. `input_signature`, a list of one TensorSpec, takes the place of pixels of the model's
        own size and dtype. Other formats are written by Keras. Raises ValueError for an MAE as "onnx", "litert" or
        "openvino", which have no operation for the noise that it draws.
        """
        if format in ("onnx", "litert", "openvino") and isinstance(self.config, ViTMAEConfig):
            raise ValueError(f'{format} has no operation for the noise of an MAE: pass format="tf_saved_model".')
        signature = input_signature or [self._pixels_spec()]
        if format != "tf_saved_model":
            served = Served(self)
            path = os.fspath(filepath)  # as OpenVINO's writer needs it
            keras.Model.export(served, path, format=format, verbose=verbose, input_signature=signature, **kwargs)
            return
        write_archive(self, filepath, self._serve, signature, verbose=verbose is not False, **kwargs)

    @property
    def _default_save_signature(self) -> Any:
        """What `tf.saved_model.save` makes a signature of where it is given none: serving pixels."""
        return None if archived.get() else tf.function(self._serve, input_signature=[self._pixels_spec()])

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """For TensorFlow's files: what Keras says, and the states of random numbers, of which Keras says nothing."""
        generators = (each for layer in self._flatten_layers() for each in layer._seed_generators)
        states = {f"random_state_{i}": generator.state for i, generator in enumerate(generators)}
        return {**super()._trackable_children(save_type, **kwargs), **states}

    def _serve(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return _flat(self(pixel_values, training=False, return_dict=True))

    def _pixels_spec(self) -> tf.TensorSpec:
        height, width = pair(self.config.image_size)
        channels = self.config.num_channels
        size = (channels, height, width) if self.data_format == "channels_first" else (height, width, channels)
        return tf.TensorSpec((None, *size), self.variable_dtype, name="pixel_values")


def write_archive(model: Any, folder: Any, serve: Callable[..., Any], signature: list[Any], **options: Any) -> None:
    """Write a model as a SavedModel whose only endpoint is `serve`, which alone is traced."""
    archive = export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, signature)
    before = archived.set(True)
    try:
        archive.write_out(folder, **options)
    finally:
        archived.reset(before)


class Served(keras.Model):
    """A model that returns what `serve` does, a flat dict of tensors, for the formats that Keras writes."""

    def __init__(self, model: Serving) -> None:
        super().__init__(autocast=False)
        self.model = model
        self.built = True

    def call(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return self.model._serve(pixel_values)


def _flat(output: ModelOutput) -> dict[str, Tensor]:
    """The tensors of an output by name, those of a tuple numbered."""
    found: dict[str, Tensor] = {}
    for name, value in output.items():
        found |= {f"{name}_{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return found
