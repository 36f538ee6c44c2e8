"""How a model is trained: compile and fit on one device, on all of a machine, or on many machines.

TensorFlow's strategies share out the work: MirroredStrategy, and MultiWorkerMirroredStrategy where TF_CONFIG names the
processes. Checkpoints are those of tf.train.CheckpointManager, which the first process writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from vit_core.config import ViTConfig
from vit_core.parameter_groups import trained_groups
from vit_core.training import LOSS_SCALE, Settings, check_batch_size, check_loss_scale
from vit_tf.losses import teacher_loss

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
def processes(settings: Settings) -> Iterator[Place]:
    """The devices of `--parallel`, under the dtype policy of `--precision`.

    Raises ValueError for a wrong start, and for a batch that the devices can't share; SystemExit when another
    process is lost.
    """
    if settings.parallel not in PARALLEL:
        raise ValueError(f"--parallel must be one of {', '.join(PARALLEL)}, got {settings.parallel}.")
    cluster = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        tasks, task_type, task_id = cluster.cluster_spec().as_dict(), cluster.task_type, cluster.task_id
    except (TypeError, ValueError) as error:
        raise ValueError(
            'TF_CONFIG must be JSON like {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", '
            f'"index": 0}}}}: {error}.'
        ) from error
    if (set(tasks) == {"worker"}) != (settings.parallel == "multiworker") or set(tasks) - {"worker"}:
        raise ValueError(
            f"--parallel {settings.parallel}, and TF_CONFIG names {', '.join(tasks) or 'no task'}: multiworker needs "
            "it in the environment of every process, with tasks of the type worker alone; none and mirrored go without."
        )
    others = len(tasks.get("worker", [])) - 1
    if tasks and (task_type != "worker" or task_id not in range(others + 1)):
        raise ValueError(
            'TF_CONFIG must name the task of this process, "task": {"type": "worker", "index": 0}, with an index up '
            f"to {others}: got the type {task_type!r} and the index {task_id!r}."
        )
    strategies = {"none": tf.distribute.get_strategy, "mirrored": tf.distribute.MirroredStrategy}
    strategy = strategies.get(settings.parallel, tf.distribute.MultiWorkerMirroredStrategy)()
    check_batch_size(settings.batch_size, settings.accumulate, strategy.num_replicas_in_sync)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32" if settings.precision == "float32" else f"mixed_{settings.precision}")
    try:
        with strategy.scope():
            keras.utils.set_random_seed(settings.seed)  # from which layers that drop something draw their own
            yield Place(strategy, task_id or 0, len(tasks.get("worker", [0])))
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

    `scales` and `decays` are in the order of the variables. Keras takes, and clips, the gradients of each replica; here
    they are the sums of all, as on one device. `epsilon` is that of Kingma and Ba's algorithm 1, as in PyTorch and
    optax; Keras's own, their epsilon hat, counts for more in the first steps.
    """

    def __init__(self, scales: list[float], decays: list[float], **options: Any) -> None:
        super().__init__(**options)
        self.scales, self.decays = scales, decays

    def _backend_update_step(self, grads: list[Tensor], trainable_variables: list[Any], learning_rate: Tensor) -> None:
        """Take a step with the rate, and with what else is the same for all variables."""
        powers = tf.pow(tf.constant([self.beta_1, self.beta_2]), tf.cast(self.iterations + 1, tf.float32))
        shared = (tf.cast(learning_rate, tf.float32), powers[0], powers[1], self.epsilon * tf.sqrt(1 - powers[1]))
        super()._backend_update_step(grads, trainable_variables, shared)

    def update_step(self, gradient: Tensor, variable: Any, learning_rate: tuple[Tensor, ...]) -> None:
        """One operation a variable: Keras's own two dozen take longer to trace than the model."""
        index, (rate, power_1, power_2, epsilon) = self._get_variable_index(variable), learning_rate
        rate *= self.scales[index]
        variable.assign_sub(variable * (rate * self.decays[index]))
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=power_1,
            beta2_power=power_2,
            lr=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=epsilon,
            grad=gradient,
        )

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Nothing, though Keras does it at the end of every `fit`: here that is an epoch, and others follow."""

    def take_averages(self, variables: list[Any]) -> None:
        """Give the variables the averages of their values."""
        super().finalize_variable_values(variables)

    def _all_reduce_sum_gradients(self, grads_and_vars: list[Any]) -> list[Any]:
        return grads_and_vars  # they are sums


class Accumulated(keras.Model):
    """A model as `fit` trains it: batches come in parts (P, B, ...), one after the other, and are one step.

    Keras's own gradient_accumulation_steps can't run under a strategy, and moves the average of the weights each part.
    """

    def __init__(self, model: Any, loss_of: Callable[..., Tensor], teacher: Any = None) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of
        self.teacher = None if teacher is None else lambda pixels: teacher(pixels, training=False).logits  # no layer
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """A step of the optimizer with the mean of the gradients of all parts; returns their mean loss."""
        weights, network = self.model.trainable_weights, partial(self.model, training=True)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        count = tf.cast(tf.shape(data[0])[0] * replicas, tf.float32)

        def add(sums: list[Tensor], part: Any) -> list[Tensor]:
            taught = () if self.teacher is None else (tf.stop_gradient(self.teacher(part[0])),)
            with tf.GradientTape() as tape:
                loss = self.loss_of(network, *part, *taught) / count
                scaled = self.optimizer.scale_loss(loss)
            return [s + each for s, each in zip(sums, (loss, *tape.gradient(scaled, weights)), strict=True)]

        sums = tf.foldl(add, data, [tf.zeros(()), *map(keras.ops.zeros_like, weights)])
        loss, *gradients = tf.distribute.get_replica_context().all_reduce("SUM", sums)
        self.optimizer.apply(gradients, weights)
        workers = replicas > 1 and isinstance(self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return {"loss": loss[None] if workers else loss}  # of their results Keras takes the mean over the first axis

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to build; Keras's own can't read a batch of many workers."""


def make_optimizer(model: Any, settings: Settings, steps: int, layer_decay: float = 1.0, freeze: bool = False) -> AdamW:
    """AdamW over the model's parameter groups: a linear rise of the rate, then half a cosine down to zero.

    What is in none of them is frozen.
    """
    warmup = settings.warmup_steps(steps)
    rate = keras.optimizers.schedules.CosineDecay(
        np.array(settings.first_rate(steps)),  # in float64, for a cosine near zero
        max(steps - warmup, 1),
        warmup_target=settings.rate,
        warmup_steps=warmup,
    )
    groups = {name: group for group in trained_groups(model, layer_decay, freeze) for name in group.names}
    known = model.variables_by_path()
    for name, variable in known.items():
        variable.trainable = name in groups
    names = {variable.path: name for name, variable in known.items()}
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


# ---- epochs ------------------------------------------------------------------------------------------------------


class Steps(keras.callbacks.Callback):
    """The loss and the learning rate of each step of an epoch; `advance` is called after it."""

    def __init__(self, advance: Callable[[], None]) -> None:
        super().__init__()
        self.advance = advance
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.losses.append(logs["loss"])
        self.advance()


class Trainer:
    """A model, its optimizer, and the average of its weights, over the steps of a run.

    `loss_of` takes the model, as it is called in training, the arrays of a batch and, where there is a teacher, what
    that gives for the first of them: the mean over the pictures of one device. `steps` are those of an epoch.
    """

    def __init__(
        self,
        model: Any,
        loss_of: Callable[..., Tensor],
        settings: Settings,
        place: Place,
        folder: Path,
        steps: int,
        layer_decay: float = 1.0,
        freeze: bool = False,
        teacher: Any = None,
    ) -> None:
        self.model, self.settings, self.place, self.steps = model, settings, place, steps
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.network = Accumulated(model, loss_of, teacher)
        optimizer = self.optimizer = make_optimizer(model, settings, settings.epochs * steps, layer_decay, freeze)
        if settings.precision == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, LOSS_SCALE)
        self.network.compile(optimizer)
        optimizer.build(model.trainable_variables)
        self.trained: list[np.ndarray] | None = None  # the weights, while the model has their averages
        self.output = tf.function(self._output)
        state = [variable.value for variable in (*model.variables, *optimizer.variables)]
        checkpoint = tf.train.Checkpoint(state=state)
        checkpoint.save_counter  # noqa: B018  # a variable, which all processes make together
        self.manager = tf.train.CheckpointManager(checkpoint, folder, 2, checkpoint_name="epoch")

    def epoch(self, batches: Iterable[Any], advance: Callable[[], None]) -> tuple[list[float], list[float]]:
        """Train on the parts of an epoch; returns the loss, over all processes, and the learning rate of each step.

        `advance` is called after each step.
        """
        self._measured(False)
        seen = Steps(advance)
        self.network.fit(self._dataset(batches), steps_per_epoch=self.steps, callbacks=[seen], shuffle=False, verbose=0)
        check_loss_scale(float(self.network.optimizer.scale_loss(1.0)))
        return seen.losses, seen.rates

    def _dataset(self, batches: Iterable[Any]) -> Any:
        """What `fit` takes for an epoch: its batches, as parts (P, B, ...) for each device of this process."""
        count = self.place.devices

        def steps() -> Iterator[tuple[np.ndarray, ...]]:
            for parts in zip(*[iter(batches)] * self.settings.accumulate, strict=True):
                whole = [np.stack(each) for each in zip(*parts, strict=True)]
                yield from zip(*(np.split(each, count, axis=1) for each in whole), strict=True)

        found = steps()
        first = next(found)
        signature = tuple(tf.TensorSpec(array.shape, array.dtype) for array in first)
        return self.place.strategy.distribute_datasets_from_function(
            lambda _: tf.data.Dataset.from_generator(lambda: chain([first], found), output_signature=signature)
        )

    def _measured(self, wanted: bool) -> None:
        """Give the model the averages of its weights, where there are such, or take them back."""
        if not self.settings.ema or wanted == (self.trained is not None):
            return
        if self.trained is None:
            self.trained = self.model.get_weights()
            self.optimizer.take_averages(self.model.trainable_variables)
        else:
            self.model.set_weights(self.trained)
            self.trained = None

    def _output(self, output_of: Callable[..., Tensor], *arrays: Any) -> Any:
        return self.place.strategy.run(partial(output_of, self.model), arrays)

    def predict(self, output_of: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
        """What the evaluated model, the average where there is one, gives for this process's arrays, as an array."""
        self._measured(True)
        found = self.output(output_of, *map(self.place.share, arrays))
        parts = self.place.strategy.experimental_local_results(found)
        return np.concatenate([tf.cast(each, tf.float32).numpy() for each in parts])

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, epoch: int) -> None:
        """Write the state after an epoch; the last two are kept."""
        self._measured(False)
        if self.place.main:
            self.manager.save(epoch)

    def resume(self) -> int:
        """Take up the state of the last whole checkpoint; returns how many epochs it has seen, 0 without one."""
        if (latest := self.manager.latest_checkpoint) is None:
            return 0
        self.manager.checkpoint.restore(latest).assert_consumed()
        return int(latest.rpartition("-")[2])

    def export(self, out: Path) -> None:
        """Write the evaluated weights as a Hugging Face folder."""
        self._measured(True)
        if self.place.main:
            self.model.save_pretrained(out)


# ---- losses ------------------------------------------------------------------------------------------------------


def class_loss(network: Callable[..., Any], pixels: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the shares (B, K) of each class, the mean over pictures."""
    return _cross_entropy(network(pixels).logits, targets)


def distilled_loss(
    config: ViTConfig, network: Callable[..., Any], pixels: Tensor, targets: Tensor, theirs: Tensor
) -> Tensor:
    """That of the CLS token's head, and the other head's with what a teacher gives for the same pixels."""
    found, weight = network(pixels), config.distillation_weight
    ours = _cross_entropy(found.cls_logits, targets)
    return (1 - weight) * ours + weight * teacher_loss(found.distillation_logits, theirs, config)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32)))
