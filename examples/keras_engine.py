"""What the Keras training scripts share: compile and fit on one device, on all of a machine, or on many machines.

TensorFlow's strategies share out the work: MirroredStrategy, and MultiWorkerMirroredStrategy where TF_CONFIG names the
processes. Checkpoints are those of tf.train.CheckpointManager, which the first process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import new_class
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import typer
from keras import tree
from pictures import check_batch_size
from tensorflow import Tensor
from training import Run, Settings

import vit_tf
from vit_core.config import ViTConfig, pair

PARALLEL = ("none", "mirrored", "multiworker")


# ---- where a run computes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The devices of a run: a strategy, the number of this process, and how many there are."""

    strategy: tf.distribute.Strategy
    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def devices(self) -> int:
        """How many devices this process computes on."""
        return self.strategy.num_replicas_in_sync // self.world

    def share(self, array: np.ndarray) -> Any:
        """An array cut along its first axis, a part on each device of this process."""
        parts = np.split(array, self.devices)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group % self.devices])
        )

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The sums of all processes, added up."""
        if self.world == 1:
            return sums
        mine = self.share(np.stack([sums, *[np.zeros_like(sums)] * (self.devices - 1)]))
        return self.strategy.reduce("SUM", mine, axis=0).numpy()


@contextmanager
def devices(settings: Settings) -> Iterator[Place]:
    """The devices of `--parallel`, under the dtype policy of `--precision`.

    Raises typer.BadParameter for a wrong start, and for a batch that the devices can't share; SystemExit when another
    process is lost.
    """
    if settings.parallel not in PARALLEL:
        raise typer.BadParameter(f"--parallel must be one of {', '.join(PARALLEL)}, got {settings.parallel}.")
    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    tasks = cluster.cluster_spec().as_dict()
    if (set(tasks) == {"worker"}) != (settings.parallel == "multiworker") or set(tasks) - {"worker"}:
        raise typer.BadParameter(
            f"--parallel {settings.parallel}, and TF_CONFIG names {', '.join(tasks) or 'no task'}: multiworker needs "
            "it in the environment of every process, with tasks of the type worker alone; none and mirrored go without."
        )
    strategies = {"none": tf.distribute.get_strategy, "mirrored": tf.distribute.MirroredStrategy}
    strategy = strategies.get(settings.parallel, tf.distribute.MultiWorkerMirroredStrategy)()
    check_batch_size(settings.batch_size, settings.accumulate, strategy.num_replicas_in_sync)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if settings.precision == "bfloat16" else "float32")
    try:
        with strategy.scope():
            yield Place(strategy, cluster.task_id or 0, len(tasks.get("worker", [0])))
    except tf.errors.UnavailableError as error:
        raise SystemExit(
            f"Another process of this training was lost: {error.message.splitlines()[0]}\n"
            "Run the same command again, in all of them, to resume from the last checkpoint."
        ) from error
    finally:
        keras.config.set_dtype_policy(before)


# ---- steps -------------------------------------------------------------------------------------------------------


class AdamW(keras.optimizers.Adam):
    """Keras's Adam with a learning rate and a decoupled weight decay of each variable's own.

    `scales` and `decays` are in the order of the variables. Keras clips the gradient of each replica; here it is their
    sum, as on one device. `epsilon` is that of Kingma and Ba's algorithm 1, as in PyTorch and optax; Keras's own, their
    epsilon hat, counts for more in the first steps.
    """

    def __init__(self, scales: list[float], decays: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.scales, self.decays = scales, decays

    @property
    def epsilon(self) -> Tensor:
        return self.true_epsilon * tf.sqrt(1 - tf.pow(self.beta_2, tf.cast(self.iterations + 1, tf.float32)))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self.true_epsilon = value

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        index = self._get_variable_index(variable)
        rate = tf.cast(learning_rate, variable.dtype) * self.scales[index]
        self.assign_sub(variable, variable * (rate * self.decays[index]))
        super().update_step(gradient, variable, rate)

    def _clip_gradients(self, grads: list[Tensor]) -> list[Tensor]:
        whole = tf.distribute.get_replica_context().all_reduce("SUM", grads)
        return super()._clip_gradients(whole)

    def _all_reduce_sum_gradients(self, grads_and_vars: list[Any]) -> list[Any]:
        return grads_and_vars  # they are sums


class Accumulated(keras.Model):
    """A model whose batches come in parts (P, B, ...), one after the other, and are one step.

    Keras's own gradient_accumulation_steps can't run under a strategy, and moves the average of the weights each part.
    """

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """A step of the optimizer with the mean of the gradients of all parts; returns their mean loss."""
        weights = self.trainable_weights
        parts = tf.cast(tf.shape(tree.flatten(data)[0])[0], tf.float32)

        def add(sums: list[Tensor], part: Any) -> list[Tensor]:
            x, y, _ = keras.utils.unpack_x_y_sample_weight(part)
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True)) / parts
            return [s + each for s, each in zip(sums, (loss, *tape.gradient(loss, weights)), strict=True)]

        loss, *gradients = tf.foldl(add, data, [tf.zeros(()), *map(keras.ops.zeros_like, weights)])
        self.optimizer.apply(gradients, weights)
        loss = tf.distribute.get_replica_context().all_reduce("SUM", loss)
        workers = isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return {"loss": loss[None] if workers else loss}  # of their results Keras takes the mean over the first axis

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to build; Keras's own can't read a batch of many workers."""


def in_parts(base: type[Accumulated], architecture: str) -> Any:
    """The model class of this PyTorch name, trained as `base` says."""
    return new_class(architecture, (base, getattr(vit_tf, architecture)))


def make_optimizer(model: Any, settings: Settings, steps: int, layer_decay: float = 1.0) -> AdamW:
    """AdamW over the model's parameter groups: a linear rise of the rate, then half a cosine down to zero."""
    warmup = settings.warmup_steps(steps)
    rate = keras.optimizers.schedules.CosineDecay(
        np.array(settings.first_rate(steps)),  # in float64, for a cosine near zero
        max(steps - warmup, 1),
        warmup_target=settings.rate,
        warmup_steps=warmup,
    )
    groups = {name: group for group in model.parameter_groups(layer_decay) for name in group.names}
    names = {variable.path: name for name, variable in model.variables_by_path().items()}
    found = [groups[names[variable.path]] for variable in model.trainable_variables]
    return AdamW(
        [group.scale for group in found],
        [settings.weight_decay * group.decay for group in found],
        learning_rate=rate,
        epsilon=1e-8,
        global_clipnorm=settings.clip,
        use_ema=settings.ema > 0,
        ema_momentum=settings.ema,
    )


def dataset(place: Place, settings: Settings, batches: Callable[[int], Iterable[Any]], one: Any, done: int) -> Any:
    """What `fit` takes: the batches of the epochs that are not done, as parts (P, B, ...) for each device.

    `batches` gives the parts of an epoch, one after the other; `one` is the nest of TensorSpecs of a batch of a single
    picture.
    """
    size = settings.batch_size // (settings.accumulate * place.strategy.num_replicas_in_sync)
    signature = tree.map_structure(
        lambda s: tf.TensorSpec((settings.accumulate, size * s.shape[0], *s.shape[1:]), s.dtype), one
    )

    def steps() -> Iterator[Any]:
        for epoch in range(done, settings.epochs):
            for parts in zip(*[iter(batches(epoch))] * settings.accumulate, strict=True):
                whole = tree.map_structure(lambda *each: np.stack(each), *parts)
                for device in range(place.devices):
                    yield tree.map_structure(lambda a, i=device: np.split(a, place.devices, axis=1)[i], whole)

    return place.strategy.distribute_datasets_from_function(
        lambda _: tf.data.Dataset.from_generator(steps, output_signature=signature)
    )


def pixels_of(config: ViTConfig) -> tf.TensorSpec:
    """The shape of a batch of one picture, (1, C, H, W)."""
    return tf.TensorSpec((1, config.num_channels, *pair(config.image_size)))


# ---- epochs ------------------------------------------------------------------------------------------------------


class Checkpoints:
    """The weights, random states and optimizer of a model after each epoch; the last two are kept."""

    def __init__(self, folder: Path, model: Any) -> None:
        model.optimizer.build(model.trainable_variables)
        state = [variable.value for variable in (*model.variables, *model.optimizer.variables)]
        checkpoint = tf.train.Checkpoint(state=state)
        checkpoint.save_counter  # noqa: B018  # a variable, which all processes make together
        self.manager = tf.train.CheckpointManager(checkpoint, folder, 2, checkpoint_name="epoch")

    def resume(self) -> int:
        """Take up the last whole state; returns how many epochs it has seen, 0 without one."""
        if (latest := self.manager.latest_checkpoint) is None:
            return 0
        self.manager.checkpoint.restore(latest).assert_consumed()
        return int(latest.rpartition("-")[2])

    def save(self, epoch: int) -> None:
        """Write the state after an epoch."""
        self.manager.save(epoch)


class Epochs(keras.callbacks.Callback):
    """At the end of an epoch, measures the averaged weights, where there are such, writes a checkpoint, and reports."""

    def __init__(self, run: Run, checkpoints: Checkpoints, scores: Callable[[], dict[str, float]]) -> None:
        super().__init__()
        self.run, self.checkpoints, self.scores = run, checkpoints, scores

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])
        self.run.advance()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with averaged(self.model):
            scores = self.scores()
        self.run.end_epoch(epoch, self.losses, self.rates, **scores)
        if self.run.main:
            self.checkpoints.save(epoch + 1)


@contextmanager
def averaged(model: Any) -> Iterator[None]:
    """The model with its averaged weights, where it has such."""
    if not model.optimizer.use_ema:
        yield
        return
    weights = model.get_weights()
    model.optimizer.finalize_variable_values(model.trainable_variables)
    yield
    model.set_weights(weights)


def predictor(place: Place, output_of: Callable[..., Tensor]) -> Callable[..., np.ndarray]:
    """A function of arrays that gives what a model does, computed on all devices of this process."""

    @tf.function
    def run(*inputs: Any) -> Any:
        return place.strategy.run(output_of, inputs)

    def predict(*arrays: np.ndarray) -> np.ndarray:
        found = place.strategy.experimental_local_results(run(*map(place.share, arrays)))
        return np.concatenate([tf.cast(each, tf.float32).numpy() for each in found])

    return predict
