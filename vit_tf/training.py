"""What Keras asks of a model that returns output classes, to train it: its own loss, metrics on the main output."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import wraps
from types import GeneratorType
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.outputs import ModelOutput
from vit_tf.losses import classification_loss, distillation_loss, visual_token_loss

TARGETS = ("labels", "teacher_logits")  # what a call may be given for its loss alone
targets_follow: ContextVar[bool] = ContextVar("targets_follow", default=False)  # whether labels may come after a call


def following(step: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Keras's in which labels may come to `compute_loss`, after the call."""

    @tf.autograph.experimental.do_not_convert
    @wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        token = targets_follow.set(True)
        try:
            return step(self, *args, **kwargs)
        finally:
            targets_follow.reset(token)

    return run


def looking(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Keras's that warns of pixels which nothing has normalised, as eager calls do.

    Raises ValueError for sample weights that Keras would drop.
    """

    @plain
    @wraps(method)
    def run(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not self.config.is_still(self.__dict__.get("_traced_with", {})):
            self.train_function = self.test_function = self.predict_function = None
            self.__dict__["_traced_with"] = dict(vars(self.config))
        if isinstance(x, dict) and not args and kwargs.get("y") is None and kwargs.get("sample_weight") is not None:
            raise ValueError("sample_weight goes with y, without which Keras drops it: pass the labels as y.")
        return method(self, self.look_into(x), *args, **kwargs)

    return run


def plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Keras's that takes what an image processor returns: it knows no dict but Python's own."""

    @wraps(method)
    def run(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        return method(self, dict(x) if isinstance(x, Mapping) else x, *args, **kwargs)

    return run


class Training(keras.Model):
    """Base of the models: how `fit`, `evaluate` and `predict` see their outputs.

    A loss and metrics given to `compile` are applied to the main output: the logits, the reconstruction, or the last
    hidden state. Without a loss the model's own is trained, and labels may ride in the input dict.
    """

    config: ViTConfig
    parts: frozenset[str]
    output_class: type[ModelOutput[Tensor]]
    data_format: str
    looked = False  # whether the range of pixels has been looked at

    @property
    def run_eagerly(self) -> bool:
        """Whether nothing is to be compiled; a head's trunk follows it."""
        return bool(self._run_eagerly)

    @run_eagerly.setter
    def run_eagerly(self, value: bool) -> None:
        self._run_eagerly = value
        if self._trunk() is not self:
            self._trunk().run_eagerly = value

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """Keras's `compile`; without a loss the model's own is trained, whatever was compiled before.

        Warns of losses and metrics that would take a classifier's logits for probabilities, as their names alone do.
        Raises ValueError for weights of losses without a loss, and for losses by other names than the main output's.
        """
        loss = _only(loss, "Losses", self.main_name)
        if loss is None and kwargs.get("loss_weights") is not None:
            raise ValueError(
                f"loss_weights={kwargs['loss_weights']!r} are those of losses given to compile(): pass a loss too, or "
                f"no weights for {type(self).__name__}'s own."
            )
        self.loss = self._compile_loss = None  # which Keras keeps
        if "labels" in inspect.signature(self.call).parameters:
            metrics = tf.nest.flatten([kwargs.get("metrics"), kwargs.get("weighted_metrics")])
            for of, given in ((keras.losses, loss), *((keras.metrics, each) for each in metrics)):
                if name := _of_probabilities(given, of):
                    better = f"loss={name}(from_logits=True), or no loss, for the model's own"
                    warnings.warn(
                        f"{name} takes probabilities, and {type(self).__name__} gives logits: pass "
                        f"{better if of is keras.losses else f'keras.metrics.{name}(from_logits=True)'}.",
                        stacklevel=2,
                    )
        super().compile(optimizer, loss, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """For `load_model`: Keras leaves this to a class that has a `compile` of its own, as a user's may have."""
        if type(self).compile is not Training.compile:
            super().compile_from_config(config)
            return
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Keras's, also without a strategy: metrics and optimizer have their variables before the first step, which
        would be traced twice if it created them."""
        if self._distribute_strategy is not None or not self.built or self.run_eagerly:
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        specs = iterator._distributed_dataset.element_spec if iterator is not None else data_batch
        leaves = [leaf for leaf in tf.nest.flatten(specs) if leaf is not None]
        arrays = (tf.TensorSpec, tf.Tensor, np.ndarray)
        if all(isinstance(leaf, arrays) and tf.TensorShape(leaf.shape).rank is not None for leaf in leaves):
            self._symbolic_build(data_batch=specs)
        elif self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    fit, evaluate, _predict = looking(keras.Model.fit), looking(keras.Model.evaluate), looking(keras.Model.predict)
    train_on_batch, test_on_batch = plain(keras.Model.train_on_batch), plain(keras.Model.test_on_batch)
    _predict_on_batch = plain(keras.Model.predict_on_batch)
    train_step, test_step = following(keras.Model.train_step), following(keras.Model.test_step)
    _symbolic_build = following(keras.Model._symbolic_build)

    def look(self, pixels: np.ndarray[Any, Any]) -> None:
        """Warn of pixels that nothing has normalised, the first time."""
        trunk = self._trunk()
        if pixels.size and not trunk.looked:
            trunk.looked = True
            calls.check_range(float(pixels.min()), float(pixels.max()))

    def look_into(self, data: Any) -> Any:
        """Data for `fit`, of which the first pictures of an array, or the first batch of others, are looked at."""
        if isinstance(data, GeneratorType):
            return self._looked_into(data)
        if isinstance(data, keras.utils.PyDataset) and not self._trunk().looked:
            self._look_at(data[0])
        elif hasattr(data, "collate_fn") and not self._trunk().looked:  # a DataLoader of PyTorch's
            self._look_at(_first_pixels(data))
        pixels = None if self._trunk().looked else _pixels(getattr(data, "element_spec", data))
        if isinstance(pixels, np.ndarray):
            self.look(pixels[:32])
        elif isinstance(data, tf.data.Dataset) and isinstance(pixels, tf.TensorSpec) and pixels.dtype.is_floating:
            return data.enumerate().map(self._looked_at)  # when it is read: reading it twice would change its order
        return data

    def _looked_into(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            self._look_at(batch)
            yield batch

    def _look_at(self, batch: Any) -> None:
        if not self._trunk().looked and hasattr(pixels := _pixels(batch), "shape"):
            self.look(np.asarray(pixels))

    @tf.autograph.experimental.do_not_convert
    def _looked_at(self, number: Tensor, batch: Any) -> Any:
        """A numbered batch of a dataset."""

        def look() -> Tensor:
            tf.numpy_function(self.look, [_pixels(batch)], [])
            return number

        tf.cond(number == 0, look, lambda: number)
        return batch

    @property
    def main_name(self) -> str:
        """The name of what a user's loss and metrics are applied to."""
        return next(name for name in self.output_class.__dataclass_fields__ if name != "loss")

    def main_output(self, output: Any) -> Tensor:
        """What a user's loss and metrics are applied to: the first field but the loss."""
        return _but_loss(output)[0]

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """The compiled loss, or the model's own: of the labels where it takes any, else what the call returned.

        With a teacher's logits in the inputs it is that of distillation. Raises ValueError for a model that has none,
        and for sample weights that its own can't apply.
        """
        labels, output = self._labels(x, y), self.main_output(y_pred)
        sample_weight = self._sample_weights(sample_weight)
        if self.loss is not None:
            return super().compute_loss(x, labels, output, sample_weight, training)
        inputs = x if isinstance(x, Mapping) else {}
        teacher, mask = inputs.get("teacher_logits"), inputs.get("bool_masked_pos")
        labels = None if labels is None else tf.convert_to_tensor(labels)
        loss = _loss_of(y_pred)
        if teacher is not None:
            _, ours, theirs, *_ = _but_loss(y_pred)
            loss = distillation_loss(ours, theirs, labels, tf.convert_to_tensor(teacher), self.config)
        elif labels is not None and "lm_head" in self.parts:
            loss = visual_token_loss(output, mask, labels, self.config)
        elif labels is not None and "labels" in inspect.signature(self.call).parameters:
            loss, sample_weight = classification_loss(output, labels, self.config, sample_weight), None
        if loss is None:
            raise ValueError(
                f"There is no loss to compute: pass one to compile(), or the inputs of {type(self).__name__}'s own."
            )
        if sample_weight is not None:
            raise ValueError(f"{type(self).__name__}'s own loss takes no sample weights: pass a loss to compile().")
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return (loss + sum(self.losses)) / replicas

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """The compiled metrics of the labels and the main output."""
        weights = self._sample_weights(sample_weight)
        return super().compute_metrics(x, self._labels(x, y), self.main_output(y_pred), weights)

    def _labels(self, x: Any, y: Any) -> Any:
        """The labels, which may ride in the inputs, or come as {"labels": y} or by the main output's name."""
        if y is None and isinstance(x, Mapping):
            return x.get("labels")
        return _only(y, "Targets", "labels", self.main_name)

    def _sample_weights(self, sample_weight: Any) -> Any:
        """The weights of the samples, which Keras puts into a dict where the labels come in one."""
        return _only(sample_weight, "Sample weights", "labels", self.main_name)

    def predict_step(self, data: Any) -> Any:
        """The fields of one batch's output but the loss, whose batches make no array; targets are left aside."""
        x = data[0] if isinstance(data, tuple) else data
        output = self({k: v for k, v in x.items() if k not in TARGETS} if isinstance(x, Mapping) else x, training=False)
        if isinstance(output, ModelOutput):
            return {name: value for name, value in output.items() if name != "loss"}  # distribution splits dicts only
        return _but_loss(output)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict`; returns the output class, its fields NumPy arrays."""
        return self._as_output(self._predict(*args, **kwargs))

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Keras's `predict_on_batch`; returns the output class, its fields NumPy arrays."""
        return self._as_output(self._predict_on_batch(*args, **kwargs))

    def _as_output(self, found: Any) -> Any:
        return self.output_class(**found) if isinstance(found, Mapping) else found

    def prepare_tf_dataset(
        self,
        dataset: Any,
        batch_size: int = 8,
        shuffle: bool = True,
        drop_remainder: bool | None = None,
        prefetch: bool = True,
    ) -> tf.data.Dataset:
        """Batches for `fit` of a dataset with a length and numbered items, as Hugging Face's `datasets` are.

        Each item is a dict with `pixel_values` and, for pairs (pixels, labels), `labels`; other columns are left out.
        When shuffled, in another order in every epoch, and, unless `drop_remainder` is false, in whole batches alone.
        """

        def numbered(number: Any) -> tuple[Any, ...]:
            item = dataset[int(number)]
            return tuple(np.asarray(item[spec.name], spec.dtype.as_numpy_dtype) for spec in specs)

        item = dataset[0]
        first = {name: np.asarray(item[name]) for name in ("pixel_values", "labels") if name in item}
        floats = keras.config.floatx()  # what Python's numbers become
        specs = [tf.TensorSpec(a.shape, floats if a.dtype == "float64" else a.dtype, n) for n, a in first.items()]

        def load(number: Tensor) -> Any:
            found = tf.numpy_function(numbered, [number], [spec.dtype for spec in specs])
            tensors = [tf.ensure_shape(tensor, spec.shape) for tensor, spec in zip(found, specs, strict=True)]
            return tuple(tensors) if len(tensors) > 1 else tensors[0]

        numbers = tf.data.Dataset.range(len(dataset))
        numbers = numbers.shuffle(len(dataset)) if shuffle else numbers
        batches = numbers.map(load).batch(batch_size, shuffle if drop_remainder is None else drop_remainder)
        return batches.prefetch(tf.data.AUTOTUNE) if prefetch else batches

    def quantize(self, mode: str | None = None, config: Any = None, **kwargs: Any) -> None:
        """Keras's `quantize`: int8, int4 or float8 of every linear layer.

        Raises ValueError for gptq and awq, whose calibration in Keras is made for models of texts.
        """
        mode = mode or getattr(config, "mode", None)
        if mode in ("gptq", "awq"):
            raise ValueError(
                f"{mode} is calibrated by Keras on tokens of texts, which a ViT has none of: use int8, int4 or float8."
            )
        super().quantize(mode, config=config, **kwargs)


def _of_probabilities(given: Any, of: Any) -> str | None:
    """The class of a loss or metric of Keras, or of its name, that takes probabilities where it can take logits."""
    if isinstance(given, str) and given.lower() in ("crossentropy", "ce"):  # as Keras calls that which fits the labels
        return "SparseCategoricalCrossentropy"
    try:
        found = of.get(given) if isinstance(given, str) else given
    except ValueError:  # a name such as "acc", which `compile` knows, or nobody
        return None
    if isinstance(found, keras.losses.Loss | keras.metrics.Metric):
        from_logits = getattr(found, "from_logits", getattr(found, "_from_logits", None))  # the latter is AUC's
        return type(found).__name__ if from_logits is False else None
    name = getattr(found, "__name__", "none")
    of_keras = found is not None and found is getattr(keras.losses, name, None)
    takes_logits = of_keras and "from_logits" in inspect.signature(found).parameters
    return name.title().replace("_", "") if takes_logits else None


def _only(given: Any, what: str, *names: str) -> Any:
    """What a dict holds by one of these names; anything else as it is. Raises ValueError for another dict."""
    if not isinstance(given, Mapping):
        return given
    if len(given) != 1 or not given.keys() <= set(names):
        allowed = " or ".join(f'{{"{name}": ...}}' for name in names)
        raise ValueError(f"{what} in a dict must be those of {allowed}, got {', '.join(map(str, given))}.")
    (value,) = given.values()
    return value


def _pixels(data: Any) -> Any:
    """The pixels of a batch, or of what has its structure."""
    x = data[0] if isinstance(data, tuple) and data else data
    return x.get("pixel_values") if isinstance(x, Mapping) else x


def _first_pixels(loader: Any) -> Any:
    """The pixels of the first item of PyTorch's DataLoader; None of one whose items have other keys, or none.

    What is wrong with its data `fit` says.
    """
    try:
        first = loader.dataset[0]
        pixels = _pixels(tuple(loader.collate_fn(first if loader.batch_sampler is None else [first])))
        return np.asarray(pixels) if hasattr(pixels, "shape") else None
    except Exception:
        return None


def _loss_of(output: Any) -> Any:
    first = output[0]
    return None if isinstance(first, tuple) or first.shape.rank else first


def _but_loss(output: Any) -> tuple[Any, ...]:
    """The fields of an output, or values of a tuple, but the loss."""
    values: tuple[Any, ...] = output[:]
    return values if _loss_of(output) is None else values[1:]
