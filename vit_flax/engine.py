"""How a model is trained: one step, compiled for a mesh of devices, whatever their number.

Several processes find each other through `jax.distributed`: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID, or what SLURM and Open MPI set. Checkpoints are Orbax's, each process writing its own part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_core.config import ViTConfig
from vit_core.parameter_groups import trained_groups
from vit_core.training import Settings, ahead, check_batch_size
from vit_flax.losses import teacher_loss
from vit_flax.sharding import partition_specs

PARALLEL = ("none", "data", "tensor")
LAUNCHED = ("JAX_COORDINATOR_ADDRESS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE")  # where jax.distributed looks
TIMEOUT = 20  # seconds without a sign of life from another process, before a process gives up
STATED = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}  # which it does not read itself
FROZEN = -1  # the label of parameters in no group
WHOLE, BY_PICTURE = PartitionSpec(), PartitionSpec("data")


@dataclass(frozen=True)
class Place:
    """Where this process computes: a mesh of all devices, by axes "data" and "model"."""

    mesh: Mesh

    @property
    def rank(self) -> int:
        """The number of this process."""
        return jax.process_index()

    @property
    def world(self) -> int:
        """How many processes there are."""
        return jax.process_count()

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def on(self, spec: PartitionSpec) -> NamedSharding:
        """How an array lies on the mesh."""
        return NamedSharding(self.mesh, spec)

    def put(self, array: Any, spec: PartitionSpec) -> jax.Array:
        """An array that every process has whole, on the mesh."""
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, self.on(spec), array.__getitem__)

    def batch(self, arrays: Iterable[np.ndarray]) -> tuple[jax.Array, ...]:
        """Arrays (B, ...) of all processes' pictures, on the mesh, of which this process has those given."""
        return tuple(jax.make_array_from_process_local_data(self.on(BY_PICTURE), array) for array in arrays)

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The sums of all processes, added up."""
        bits = multihost_utils.process_allgather(sums.view(np.uint32))  # float64 would become float32
        return np.sum(bits.view(np.float64), axis=0)


@contextmanager
def processes(settings: Settings) -> Iterator[Place]:
    """This process among those that were started, or the only one, and the mesh of all devices.

    Raises ValueError for a wrong start, for float16, and for a batch that the devices can't share.
    """
    if settings.precision == "float16":
        raise ValueError("--precision float16 is for PyTorch and Keras, which scale the loss: in JAX pass bfloat16.")
    parallel = settings.parallel
    if parallel not in PARALLEL:
        raise ValueError(f"--parallel must be one of {', '.join(PARALLEL)}, got {parallel}.")
    named = any(name in os.environ for name in (*LAUNCHED, *STATED.values()))
    if named and not jax.distributed.is_initialized():
        try:
            stated: dict[str, Any] = {name: int(os.environ[key]) for name, key in STATED.items() if key in os.environ}
            jax.distributed.initialize(**stated, heartbeat_timeout_seconds=TIMEOUT, shutdown_timeout_seconds=TIMEOUT)
        except ValueError as error:
            raise ValueError(f"{error} Set JAX_COORDINATOR_ADDRESS, {' and '.join(STATED.values())}.") from error
    place = Place(make_mesh(settings))
    if place.world > 1:
        print(
            f"Process {place.rank} of {place.world}. If another one is lost, this one ends within {TIMEOUT} seconds: "
            "run the same command again, in all of them, to resume from the last checkpoint.",
            flush=True,
        )
    yield place
    if place.world > 1:
        multihost_utils.sync_global_devices("all has been written")


def make_mesh(settings: Settings) -> Mesh:
    """The devices by data and model: the model is cut over the devices of each process where --parallel is tensor."""
    count, parallel = jax.process_count(), settings.parallel
    if parallel == "none" and count > 1:
        raise ValueError(f"--parallel none is for a process alone, and {count} were started: pass data or tensor.")
    devices = sorted(jax.devices(), key=lambda device: device.process_index)
    shape = {"none": (1, 1), "data": (len(devices), 1), "tensor": (count, len(devices) // count)}[parallel]
    check_batch_size(settings.batch_size, settings.accumulate, shape[0])
    return Mesh(np.reshape(devices[: shape[0] * shape[1]], shape), ("data", "model"))


def make_schedule(settings: Settings, steps: int) -> optax.Schedule:
    """A linear rise to the highest rate, then half a cosine down to zero, over all steps of the run."""
    warmup = settings.warmup_steps(steps)
    return optax.warmup_cosine_decay_schedule(settings.first_rate(steps), settings.rate, warmup, max(steps, warmup + 1))


def make_optimizer(
    model: Any, settings: Settings, schedule: optax.Schedule, layer_decay: float = 1.0, freeze: bool = False
) -> optax.GradientTransformation:
    """AdamW over the model's parameter groups; what is in none of them is frozen."""
    number, rules = dict[str, int](), {FROZEN: optax.set_to_zero()}
    for i, group in enumerate(trained_groups(model, layer_decay, freeze)):
        number |= dict.fromkeys(group.names, i)
        decay = settings.weight_decay if group.decay else 0.0
        rules[i] = optax.chain(optax.adamw(schedule, weight_decay=decay), optax.scale(group.scale))
    labels = unflatten_dict({tuple(name.split(".")): number.get(name, FROZEN) for name in model.specs()})
    trained = optax.chain(optax.clip_by_global_norm(settings.clip), optax.partition(rules, labels))
    if settings.accumulate > 1:
        trained = optax.MultiSteps(trained, settings.accumulate).gradient_transformation()
    return optax.selective_transform(trained, freeze_mask=jax.tree.map(lambda label: label == FROZEN, labels))


def teaching(teacher: Any, settings: Settings, place: Place) -> Callable[[jax.Array], jax.Array]:
    """The logits of a model that does not learn, of pixels on the mesh; every device has the whole of it."""
    params = jax.tree.map(lambda array: place.put(array, WHOLE), teacher.params)
    module = teacher.module.clone(dtype=jnp.dtype(settings.precision))

    def logits(params: Any, pixels: jax.Array) -> jax.Array:
        return module.apply({"params": params}, pixels).logits

    return partial(jax.jit(logits, out_shardings=place.on(BY_PICTURE)), params)


class Trainer:
    """A model's parameters, the state of its optimizer, and the average of its weights, over the steps of a run.

    `loss_of` takes the model, as it is called in training, the arrays of a batch and, where there is a teacher, what
    that gives for the first of them. `steps` are those of an epoch.
    """

    def __init__(
        self,
        model: Any,
        loss_of: Callable[..., jax.Array],
        settings: Settings,
        place: Place,
        folder: Path,
        steps: int,
        layer_decay: float = 1.0,
        freeze: bool = False,
        teacher: Any = None,
    ) -> None:
        self.model, self.loss_of, self.settings, self.place = model, loss_of, settings, place
        self.teacher = None if teacher is None else teaching(teacher, settings, place)
        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        self.module = model.module.clone(dtype=jnp.dtype(settings.precision))
        self.schedule = make_schedule(settings, settings.epochs * steps)
        self.optimizer = make_optimizer(model, settings, self.schedule, layer_decay, freeze)
        self.state = self._first_state()
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        self.step = jax.jit(self._step, donate_argnums=0, out_shardings=(shardings, place.on(WHOLE)))
        self.output = jax.jit(self._output, static_argnums=0, out_shardings=place.on(BY_PICTURE))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self.manager = ocp.CheckpointManager(folder, options=options)

    def _first_state(self) -> dict[str, Any]:
        """What is trained, on the mesh; `parts` counts the parts of batches seen. The model gives its parameters up."""
        placed = partial(jax.tree.map, self.place.put, self.model.params, partition_specs(self.model))
        params = placed()
        state = {"params": params, "optimizer": self.optimizer.init(params), "parts": jnp.zeros((), jnp.int32)}
        if self.settings.ema:
            state["average"] = placed()
        self.model.params = self.model.params_shape_tree
        return jax.tree.map(lambda x: x if isinstance(x.sharding, NamedSharding) else self.place.put(x, WHOLE), state)

    def _step(self, state: dict[str, Any], batch: tuple[jax.Array, ...]) -> tuple[dict[str, Any], jax.Array]:
        """The state after one part of a batch, and its loss."""
        settings = self.settings
        rngs = {"dropout": jax.random.fold_in(jax.random.key(settings.seed), state["parts"])}

        def loss_of(params: Any) -> jax.Array:
            return self.loss_of(partial(self.module.apply, {"params": params}, train=True, rngs=rngs), *batch)

        loss, gradients = jax.value_and_grad(loss_of)(state["params"])
        updates, optimizer = self.optimizer.update(gradients, state["optimizer"], state["params"])
        params, parts = optax.apply_updates(state["params"], updates), state["parts"] + 1
        new = {"params": params, "optimizer": optimizer, "parts": parts}
        if settings.ema:
            first, last = parts <= settings.accumulate, parts % settings.accumulate == 0
            share = jnp.where(last, jnp.where(first, 1.0, 1 - settings.ema), 0.0)
            change = optax.tree.sub(params, state["average"])  # exactly 0 of what is frozen
            new["average"] = optax.tree.add_scale(state["average"], share, change)
        return new, loss

    @property
    def evaluated(self) -> Any:
        """The parameters that are measured and saved: the average, where there is one."""
        return self.state.get("average", self.state["params"])

    def epoch(self, batches: Iterable[Any], advance: Callable[[], None]) -> tuple[list[float], list[float]]:
        """Train on the parts of an epoch; returns the loss, over all processes, and the learning rate of each step.

        `advance` is called after each step.
        """
        losses, parts = [], self.settings.accumulate
        first = int(self.state["parts"]) // parts
        copied = ahead(map(self.place.batch, batches), min(self.settings.prefetch, 1))
        for number, batch in enumerate(copied, start=1):
            taught = (self.teacher(batch[0]),) if self.teacher else ()
            self.state, loss = self.step(self.state, batch + taught)
            losses.append(loss)
            if number % parts == 0:
                advance()
        means = np.reshape(jax.device_get(losses), (-1, parts)).mean(axis=1, dtype=np.float64)
        return list(means), list(np.asarray(self.schedule(np.arange(first, first + len(means)))))

    def _output(self, output_of: Callable[..., jax.Array], params: Any, *arrays: jax.Array) -> jax.Array:
        return output_of(partial(self.module.apply, {"params": params}), *arrays).astype(jnp.float32)

    def predict(self, output_of: Callable[..., jax.Array], *arrays: np.ndarray) -> np.ndarray:
        """What the evaluated model gives for this process's arrays, as an array."""
        output = self.output(output_of, self.evaluated, *self.place.batch(arrays))
        return np.asarray(multihost_utils.global_array_to_host_local_array(output, self.place.mesh, BY_PICTURE))

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save(self, epoch: int) -> None:
        """Write the state after an epoch; the last two are kept."""
        self.manager.save(epoch, args=ocp.args.StandardSave(self.state))

    def resume(self) -> int:
        """Take up the state of the last whole checkpoint; returns how many epochs it has seen, 0 without one."""
        if not (done := self.manager.latest_step() or 0):
            return 0
        self.state = self.manager.restore(done, args=ocp.args.StandardRestore(self.state))
        return done

    def export(self, out: Path) -> None:
        """Write the evaluated weights, gathered from all processes, as a Hugging Face folder."""
        self.model.params = jax.jit(lambda tree: tree, out_shardings=self.place.on(WHOLE))(self.evaluated)
        if self.place.main:
            self.model.save_pretrained(out)


def gather(model_class: Any, config: ViTConfig, folder: Path, epoch: int, out: Path) -> None:
    """Write a checkpoint, of however many devices, as a Hugging Face folder: the average of the weights, if any."""
    model, shapes = model_class(config, _do_init=False)
    with ocp.CheckpointManager(folder, item_handlers=ocp.PyTreeCheckpointHandler()) as manager:
        name = "average" if "average" in manager.item_metadata(epoch).tree else "params"
        wanted = {name: shapes}
        arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
        args = ocp.args.PyTreeRestore(wanted, restore_args=arrays, partial_restore=True)
        model.params = manager.restore(epoch, args=args)[name]
    model.save_pretrained(out)


# ---- losses ------------------------------------------------------------------------------------------------------


def class_loss(network: Callable[..., Any], pixels: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy with the shares (B, K) of each class, the mean over pictures."""
    return optax.softmax_cross_entropy(network(pixels).logits.astype("float32"), targets).mean()


def distilled_loss(
    config: ViTConfig, network: Callable[..., Any], pixels: jax.Array, targets: jax.Array, theirs: jax.Array
) -> jax.Array:
    """That of the CLS token's head, and the other head's with what a teacher gives for the same pixels."""
    found, weight = network(pixels), config.distillation_weight
    ours = optax.softmax_cross_entropy(found.cls_logits.astype("float32"), targets).mean()
    return (1 - weight) * ours + weight * teacher_loss(found.distillation_logits, theirs, config)
