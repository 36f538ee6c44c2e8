"""A model as a Functional model of Keras: one tensor in, tensors out, to be composed and saved as any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from vit_core import calls
from vit_core.config import pair

STATES = ("hidden_states", "attentions")


def functional(model: Any, outputs: str | Sequence[str], processor: Any = None) -> keras.Model:
    """See `Training.functional`."""
    names = [outputs] if isinstance(outputs, str) else list(outputs)
    classifies = hasattr(model, "build_classifier") and calls.score_function(model.config) != "none"
    fields = [name for name in model.output_class.__dataclass_fields__ if name != "loss"]
    known = dict.fromkeys([*fields, "last_hidden_state", *(["probabilities"] if classifies else [])])
    if not names or not known.keys() >= set(names):
        raise ValueError(
            f"outputs of a {type(model).__name__} must be a name or a list of {', '.join(known)}: got {outputs!r}."
        )
    if processor is None:
        inputs = pixels = keras.Input(model._pixels_spec().shape[1:], dtype=model.variable_dtype, name="pixel_values")
    else:
        inputs = keras.Input((*pair(model.config.image_size), model.config.num_channels), dtype="uint8", name="images")
        pixels = prepared(inputs, processor, model)
    found = NamedOutputs(model, names, name="outputs")(pixels)
    return keras.Model(inputs, found[outputs] if isinstance(outputs, str) else found)


@keras.saving.register_keras_serializable("vit_tf")
class NamedOutputs(layers.Layer):
    """A model as a layer that returns a dict of the outputs of these names.

    A layer of its own for each of a model's Functional models: Keras takes a layer's outputs to be the same in all.
    """

    def __init__(self, model: Any, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(dtype=model.dtype_policy, autocast=False, **kwargs)
        self.model, self.names = model, list(names)

    def call(self, pixel_values: Any) -> dict[str, Any]:
        model = self.model
        asked = {f"output_{name}": name in self.names for name in STATES}
        asked["output_hidden_states"] |= "last_hidden_state" in self.names  # which a model with a head does not return
        found = dict(model(pixel_values, **asked, return_dict=True))
        if "hidden_states" in found:
            found.setdefault("last_hidden_state", model.base_model.layernorm(found["hidden_states"][-1]))
        if "probabilities" in self.names:
            found["probabilities"] = keras.activations.get(calls.score_function(model.config))(found["logits"])
        return {name: found[name] for name in self.names}

    @property
    def metrics(self) -> list[Any]:
        """None: a compiled model's are its own, as in every model that Keras finds in another."""
        return []

    def get_config(self) -> dict[str, Any]:
        """For Keras: the arguments."""
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "names": list(self.names),
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> NamedOutputs:
        """From `get_config`, the weights not yet loaded."""
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


def prepared(images: Any, processor: Any, model: Any) -> Any:
    """Pixels in the model's layout of 8-bit images (B, H, W, C), rescaled and normalised as the processor does."""
    scale, offset = np.ones((1, 1, model.config.num_channels)), np.zeros((1, 1, model.config.num_channels))
    if processor.do_rescale:
        scale = scale * processor.rescale_factor
    if processor.do_normalize:
        scale, offset = scale / processor.image_std, offset - np.divide(processor.image_mean, processor.image_std)
    x = layers.Rescaling(scale.tolist(), offset.tolist(), dtype=model.variable_dtype)(images)
    return layers.Permute((3, 1, 2), dtype=x.dtype)(x) if model.data_format == "channels_first" else x
