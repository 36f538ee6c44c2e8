"""What Keras asks of a model that returns output classes: its own loss, metrics on the main output, serving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import tensorflow as tf
from keras import export
from tensorflow import Tensor

from vit_core.config import ViTConfig, pair
from vit_core.outputs import OUTPUTS, ModelOutput
from vit_tf.losses import classification_loss


class Training(keras.Model):
    """Base of the models: how `fit`, `evaluate`, `predict` and `export` see their outputs.

    A loss and metrics given to `compile` are applied to the main output: the logits, the reconstruction, or the last
    hidden state. Without a loss the model's own is trained, and labels may ride in the input dict.
    """

    config: ViTConfig
    main_output_name: ClassVar[str]
    data_format: str

    @property
    def run_eagerly(self) -> bool:
        """Whether nothing is to be compiled; a head's trunk follows it."""
        return bool(self._run_eagerly)

    @run_eagerly.setter
    def run_eagerly(self, value: bool) -> None:
        self._run_eagerly = value
        if hasattr(self, "vit"):
            self.vit.run_eagerly = value

    def main_output(self, output: Any) -> Tensor:
        """What a user's loss and metrics are applied to: the first field but the loss."""
        return output[0 if _loss_of(output) is None else 1]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The compiled loss, or the model's own: of the labels where it has classes, else what the call returned.

        Raises ValueError for a model that has none, and for sample weights that its own can't apply.
        """
        labels, output = _labels(x, y), self.main_output(y_pred)
        if self.loss is not None:
            return super().compute_loss(x, labels, output, sample_weight, training)
        loss = _loss_of(y_pred)
        if self.main_output_name == "logits" and labels is not None:
            loss = classification_loss(output, tf.convert_to_tensor(labels), self.config, sample_weight)
        elif loss is None:
            raise ValueError(
                f"There is no loss to compute: pass one to compile(), or the inputs of {type(self).__name__}'s own."
            )
        elif sample_weight is not None:
            raise ValueError(f"{type(self).__name__}'s own loss takes no sample weights: pass a loss to compile().")
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return (loss + sum(self.losses)) / replicas

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The compiled metrics of the labels and the main output."""
        return super().compute_metrics(x, _labels(x, y), self.main_output(y_pred), sample_weight)

    def predict_step(self, data: Any) -> Any:
        """The fields of one batch's output but the loss, whose batches make no array; labels are left aside."""
        x = data[0] if isinstance(data, tuple) else data
        output = self({k: v for k, v in x.items() if k != "labels"} if isinstance(x, Mapping) else x, training=False)
        if isinstance(output, ModelOutput):
            return {name: value for name, value in output.items() if name != "loss"}  # distribution splits dicts only
        return output if _loss_of(output) is None else output[1:]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict`; returns the output class, its fields NumPy arrays."""
        return self._as_output(super().predict(*args, **kwargs))

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict_on_batch`; returns the output class, its fields NumPy arrays."""
        return self._as_output(super().predict_on_batch(*args, **kwargs))

    def _as_output(self, found: Any) -> Any:
        output = next(o for o in OUTPUTS if self.main_output_name in o.__dataclass_fields__)
        return output(**found) if isinstance(found, Mapping) else found

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
        own size and dtype. Other formats are left to Keras.
        """
        if format != "tf_saved_model":
            super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)
            return
        height, width = pair(self.config.image_size)
        channels = self.config.num_channels
        size = (channels, height, width) if self.data_format == "channels_first" else (height, width, channels)
        own = [tf.TensorSpec((None, *size), self.variable_dtype, name="pixel_values")]
        archive = export.ExportArchive()
        archive.track(self)
        archive.add_endpoint(
            "serve",
            lambda pixel_values: _flat(self(pixel_values, training=False, return_dict=True)),
            input_signature or own,
        )
        archive.write_out(filepath, verbose=verbose is not False, **kwargs)


def _labels(x: Any, y: Any) -> Any:
    return x.get("labels") if y is None and isinstance(x, Mapping) else y


def _loss_of(output: Any) -> Any:
    return output[0] if output[0].shape.rank == 0 else None


def _flat(output: ModelOutput) -> dict[str, Tensor]:
    """The tensors of an output by name, those of a tuple numbered."""
    found: dict[str, Tensor] = {}
    for name, value in output.items():
        found |= {f"{name}_{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return found
