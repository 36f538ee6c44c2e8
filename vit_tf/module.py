"""The base of the Keras layers: how layers and models make the layers inside them, each with its variables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Self

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from vit_core.config import ViTConfig, config_class
from vit_core.family import LAYER, family_of
from vit_core.initialization import DRAWN, constant, draw, uniform_bound
from vit_core.params import Spec, spec_of
from vit_tf.layers import Dense, LayerNorm

# While a model is loaded, what is drawn would be thrown away: what gives zeros in its place, which may share memory.
loading: ContextVar[Callable[..., Tensor] | None] = ContextVar("loading", default=None)


@keras.saving.register_keras_serializable("vit_tf")
class Normal(keras.initializers.Initializer):
    """A normal distribution of standard deviation `std`, cut at -`bound` and `bound`; zeros while a model is loaded."""

    def __init__(self, std: float, bound: float) -> None:
        self.std, self.bound = std, bound

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        if zeros := loading.get():
            return zeros(tuple(shape), dtype)
        if not self.std:
            return tf.zeros(shape, dtype)
        seed = tf.random.uniform((2,), maxval=2**31 - 1, dtype=tf.int32)
        if self.std * 6 > self.bound:
            limits = {"minvals": -self.bound, "maxvals": self.bound}
            values = tf.random.stateless_parameterized_truncated_normal(shape, seed, 0.0, self.std, **limits)
        else:
            values = tf.random.stateless_normal(shape, seed, stddev=self.std)
        return tf.cast(values, dtype)

    def get_config(self) -> dict[str, Any]:
        """For Keras: the arguments."""
        return {"std": self.std, "bound": self.bound}


@keras.saving.register_keras_serializable("vit_tf")
class Uniform(keras.initializers.Initializer):
    """A uniform distribution between -`bound` and `bound`; zeros while a model is loaded."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Tensor:
        if zeros := loading.get():
            return zeros(tuple(shape), dtype)
        return tf.cast(tf.random.uniform(shape, -self.bound, self.bound), dtype)

    def get_config(self) -> dict[str, Any]:
        """For Keras: the argument."""
        return {"bound": self.bound}


def drawn(spec: Spec, config: ViTConfig) -> keras.initializers.Initializer:
    """The initialiser of a parameter that is drawn."""
    if spec.init == "xavier":
        return Uniform(uniform_bound(spec))
    return Normal(config.initializer_range, DRAWN[spec.init])


class Builder:
    """How layers and models make the layers inside them, each with its variables, when they are built."""

    config: ViTConfig
    channels_axis: int
    dtype_policy: Any

    def child(self, cls: type[Any], name: str, config: ViTConfig | None = None, **kwargs: Any) -> Any:
        """A ViTModule with the same pixel layout and dtype policy, and the same configuration or one of its own."""
        known = {"config": config or self.config, "channels_axis": self.channels_axis, "dtype": self.dtype_policy}
        layer = cls(**known, name=name, **kwargs)
        layer.build()
        return layer

    def normal(self) -> Normal:
        """The initialiser of every other matrix than the patches': a member's table has one for all."""
        init = family_of(self.config).rows[LAYER + "output.dense"].init
        return Normal(self.config.initializer_range, DRAWN[init])

    def linear(self, inputs: int, outputs: int, name: str, use_bias: bool = True, act: Any = None) -> Dense:
        """A linear layer, and an activation function."""
        options = {"kernel_initializer": self.normal(), "dtype": self.dtype_policy, "name": name}
        return _built(Dense(outputs, act, use_bias, **options), (None, inputs))

    def conv(self, inputs: int, outputs: int, kernel: tuple[int, int], name: str, init: Any = None) -> layers.Conv2D:
        """A convolution with strides of the kernel's size, channels last."""
        options = {"kernel_initializer": init or self.normal(), "dtype": self.dtype_policy, "name": name}
        conv = layers.Conv2D(outputs, kernel, strides=kernel, data_format="channels_last", **options)
        return _built(conv, (None, None, None, inputs))

    def layer_norm(self, name: str, width: int | None = None) -> LayerNorm:
        """A LayerNorm with the configuration's epsilon, and its width or another."""
        norm = LayerNorm(epsilon=self.config.layer_norm_eps, dtype=self.dtype_policy, name=name)
        return _built(norm, (None, width or self.config.hidden_size))

    def identity(self, name: str) -> layers.Identity:
        """What stands in the place of a layer that the configuration leaves out."""
        return layers.Identity(dtype=self.dtype_policy.compute_dtype, name=name)  # Keras saves none with a policy

    def dropout_layer(self, rate: float) -> layers.Dropout:
        """Dropout."""
        return layers.Dropout(rate, dtype=self.dtype_policy, name="dropout")

    def size_of(self, pixel_values: Any) -> tuple[Any, ...]:
        """(height, width) of pixels: ints where they are known while tracing, else tensors."""
        shape = ops.shape(pixel_values)
        return shape[2:] if self.channels_axis == 1 else shape[1:3]


def _built(layer: Any, input_shape: tuple[int | None, ...]) -> Any:
    with tf.name_scope(""):  # TensorFlow compiles a kernel for each new name: those of a layer serve in every block
        layer.build(input_shape)
    return layer


class ViTModule(Builder, layers.Layer):
    """What every layer knows, handed down by `Builder.child`; `channels_axis` is 1 or 3, where pixels have theirs."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Each is known to Keras, which saves and clones the models that users make of layers."""
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable(cls.__module__.partition(".")[0])(cls)

    def __new__(cls, **given: Any) -> Self:
        """A layer that knows its arguments; all are keywords."""
        layer: Self = super().__new__(cls, **given)
        layer.__dict__["_given"] = given
        return layer

    def __init__(self, *, config: ViTConfig, channels_axis: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config, self.channels_axis = config, channels_axis

    def get_config(self) -> dict[str, Any]:
        """For Keras: the arguments, a class among them by the name that Keras knows it by."""
        given = {n: keras.saving.get_registered_name(v) if isinstance(v, type) else v for n, v in self._given.items()}
        return {**given, **super().get_config(), "config": self.config.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A layer from `get_config`, built, its weights not yet loaded."""
        stored, classes = config["config"], {n: v for n, v in config.items() if n.endswith("_class")}
        found = {n: keras.saving.get_registered_object(name) for n, name in classes.items()}
        layer = cls(**{**config, **found, "config": config_class(stored["model_type"]).from_dict(stored)})
        layer.build()
        return layer

    def build_from_config(self, config: dict[str, Any]) -> None:
        """For Keras: nothing is left to build."""

    def build(self, input_shape: Any = None) -> None:
        """Of a layer that has variables, or others inside."""

    def weight(self, name: str, **options: Any) -> keras.Variable:
        """The raw array of this canonical name, as the table has it; those of all layers are alike."""
        spec = spec_of(self.config, name)
        fixed = spec.row.fixed
        value = draw(spec, self.config, 0) if fixed else constant(spec, self.config)
        init = drawn(spec, self.config) if value is None else keras.initializers.Constant(value)
        leaf = spec.row.module.rpartition(".")[2]
        return self.add_weight(spec.shape, init, name=leaf, trainable=not fixed, **options)

    def numbered(self, attribute: str, made: list[Any]) -> None:
        """Keep layers as a list, each under a number too, by which TensorFlow's checkpoints find it."""
        setattr(self, attribute, made)
        for i, layer in enumerate(made):
            self._track_trackable(layer, f"{attribute}_{i}")

    def save_own_variables(self, store: Any) -> None:
        """For Keras's files: the raw arrays by name."""
        for variable in self._own():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        """From Keras's files: the raw arrays by name, or, as older files have them, by number."""
        numbers = {variable.name: str(i) for i, variable in enumerate(self._own())}
        super().load_own_variables({numbers.get(key, key): store[key] for key in store.keys()})  # noqa: SIM118

    def _own(self) -> list[keras.Variable]:
        return [*self._trainable_variables, *self._non_trainable_variables]
