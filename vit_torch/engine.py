"""How a model is trained: a loop over batches on one device, under DistributedDataParallel, or under FSDP2.

torchrun starts the processes. Checkpoints are those of torch.distributed.checkpoint, each process writing its own part.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vit_core.config import ViTConfig
from vit_core.parameter_groups import ParameterGroup, trained_groups
from vit_core.training import LOSS_SCALE, Settings, check_loss_scale
from vit_torch.losses import teacher_loss

PARALLEL = ("none", "ddp", "fsdp")
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TIMEOUT = timedelta(minutes=10)  # without a word from the others, before a process gives up


@dataclass(frozen=True)
class Place:
    """Where this process computes: its device, its number, how many there are, and for fsdp the mesh of all."""

    device: torch.device
    rank: int
    world: int
    mesh: DeviceMesh | None

    @property
    def main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def batch(self, arrays: Iterable[np.ndarray], pinned: bool) -> list[Tensor]:
        """Arrays on the device; a card copies them from pinned memory, if asked, and nothing waits for it."""
        tensors = map(torch.from_numpy, arrays)
        if pinned and self.device.type == "cuda":
            return [each.pin_memory().to(self.device, non_blocking=True) for each in tensors]
        return [each.to(self.device) for each in tensors]

    def total(self, sums: np.ndarray) -> np.ndarray:
        """The sums of all processes, added up."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, sums)
        return np.sum(found, axis=0)


@contextmanager
def processes(settings: Settings) -> Iterator[Place]:
    """This process among those that torchrun started, or the only one. Raises ValueError for a wrong start.

    Models and optimizers belong in a function called within: what is left of them when this ends keeps threads alive.
    """
    parallel = settings.parallel
    if parallel not in PARALLEL:
        raise ValueError(f"--parallel must be one of {', '.join(PARALLEL)}, got {parallel}.")
    started = "RANK" in os.environ
    if started != (parallel != "none"):
        raise ValueError(
            f"--parallel {parallel} {'under' if started else 'without'} torchrun: ddp and fsdp need `torchrun "
            "--nproc-per-node N -m vit_core.cli finetune ...`, or a script, and none is for a process alone."
        )
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(accelerator.type if accelerator else "cpu", int(os.environ.get("LOCAL_RANK", 0)))
    if accelerator:
        torch.accelerator.set_device_index(device.index)
    alone: dict[str, Any] = (
        {} if started else {"backend": "gloo", "store": dist.HashStore(), "rank": 0, "world_size": 1}
    )
    dist.init_process_group(timeout=TIMEOUT, **alone)
    world = dist.get_world_size()
    mesh = init_device_mesh(device.type, (world,)) if parallel == "fsdp" else None
    torch.manual_seed(settings.seed)
    try:
        yield Place(device, dist.get_rank(), world, mesh)
    finally:
        leave(mesh)


def leave(mesh: DeviceMesh | None) -> None:
    """Destroy the process group once nothing refers to it: only its last reference ends gloo's threads.

    Such a thread may be waiting for the GIL, to free a tensor, when Python ends; Python then kills it, and that aborts
    the process.
    """
    if mesh is not None:
        gc.collect()  # a module under FSDP refers to the group, and to itself
        getattr(
            mesh, "_pg_registry", {}
        ).clear()  # DTensor's caches keep the mesh, which has the group since torch 2.11
    dist.destroy_process_group()


def wrapped(model: Any, parallel: str, place: Place, averaging: bool = False) -> Any:
    """The model on its device; ddp averages its gradients over the processes, fsdp cuts its parameters over them."""
    model = model.to(place.device)
    if parallel == "ddp" and not averaging:
        return DistributedDataParallel(model)
    if parallel == "fsdp":
        for layer in model.base_model.encoder.layer:
            fully_shard(layer, mesh=place.mesh)
        fully_shard(model, mesh=place.mesh)
    return model


def freeze_others(model: Any, groups: list[ParameterGroup]) -> None:
    """Let no parameter learn that is in none of the groups; before `wrapped`, which asks what does."""
    learning = {name for group in groups for name in group.names}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)


def make_optimizer(model: Any, groups: list[ParameterGroup], settings: Settings) -> torch.optim.Optimizer:
    """AdamW over groups of the model's parameters, in one pass over their memory."""
    found = [
        {
            "params": [model.get_parameter(name) for name in group.names],
            "lr": settings.rate * group.scale,
            "weight_decay": settings.weight_decay if group.decay else 0.0,
        }
        for group in groups
    ]
    return torch.optim.AdamW(found, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps: int) -> LRScheduler:
    """A linear rise to each group's rate, then half a cosine down to zero, over all steps of the run."""
    warmup = settings.warmup_steps(steps)
    rise = LinearLR(optimizer, 1 / warmup, total_iters=warmup)
    return SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, max(steps - warmup, 1))], [warmup])


class Trainer:
    """A model, its optimizer, and the average of its weights, over the steps of a run.

    `loss_of` takes the model, as it is called in training, the arrays of a batch and, where there is a teacher, what
    that gives for the first of them. `steps` are those of an epoch. `network` is `model` as it is called in training.
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
        self.model, self.loss_of, self.settings, self.place, self.folder = model, loss_of, settings, place, folder
        self.teacher = None if teacher is None else teacher.to(place.device)
        self.average = wrapped(deepcopy(model), settings.parallel, place, averaging=True) if settings.ema else None
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        groups = trained_groups(model, layer_decay, freeze)
        freeze_others(model, groups)
        self.network = wrapped(model, settings.parallel, place)
        self.optimizer = make_optimizer(model, groups, settings)
        self.schedule = make_schedule(self.optimizer, settings, settings.epochs * steps)
        self.scaler = torch.amp.GradScaler(place.device.type, LOSS_SCALE, enabled=settings.precision == "float16")
        self.updates = 0

    @property
    def evaluated(self) -> Any:
        """The model whose weights are measured and saved: the average, where there is one."""
        return self.model if self.average is None else self.average

    def epoch(self, batches: Iterable[Any], advance: Callable[[], None]) -> tuple[list[float], list[float]]:
        """Train on the parts of an epoch; returns the loss, over all processes, and the learning rate of each step.

        `advance` is called after each step.
        """
        losses, rates, parts = list[Tensor](), list[float](), self.settings.accumulate
        self.network.train()
        for number, batch in enumerate(batches, start=1):
            last = number % parts == 0
            torch.manual_seed(self._seed(number % parts))  # of what is dropped, also in a run that is resumed
            with self._alone() if not last else nullcontext(), self._precision():
                arrays = self.place.batch(batch, pinned=self.settings.prefetch > 0)
                loss = self.loss_of(self.network, *arrays, *self._taught(arrays[0])) / parts
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            if last:
                rates.append(float(self.schedule.get_last_lr()[-1]))
                self._step()
                advance()
        check_loss_scale(self.scaler.get_scale())
        sums = torch.stack(losses).view(-1, parts).sum(1).double().cpu().numpy()
        return list(self.place.total(sums) / self.place.world), rates

    @torch.no_grad()
    def _taught(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The logits of the teacher, where there is one."""
        return () if self.teacher is None else (self.teacher(pixels).logits,)

    def _seed(self, part: int) -> int:
        """A seed of its own for each part of each step in each process."""
        drawn = np.random.SeedSequence([self.settings.seed, self.updates, part, self.place.rank])
        return int(drawn.generate_state(1)[0])

    def _step(self) -> None:
        """Move the weights and all that follows them; where gradients in float16 are not finite, the loss scale."""
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.scaler.get_scale() < scale:
            return
        self.schedule.step()
        if self.average is not None:
            decay = self.settings.ema if self.updates else 0.0  # the first average is the first weights
            get_ema_multi_avg_fn(decay)(list(self.average.parameters()), list(self.model.parameters()), self.updates)
        self.updates += 1

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep gradients here until the last part of a batch."""
        if isinstance(self.network, DistributedDataParallel):
            with self.network.no_sync():
                yield
        else:
            yield

    def _precision(self) -> Any:
        precision = self.settings.precision
        return torch.autocast(self.place.device.type, HALF.get(precision), enabled=precision in HALF)

    @torch.no_grad()
    def predict(self, output_of: Callable[..., Tensor], *arrays: np.ndarray) -> np.ndarray:
        """What the evaluated model gives, as an array."""
        self.evaluated.eval()
        with self._precision():
            output = output_of(self.evaluated, *self.place.batch(arrays, pinned=False))
        return output.float().cpu().numpy()

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state = {
            "model": model,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "updates": self.updates,
        }
        if self.scaler.is_enabled():
            state["scaler"] = self.scaler.state_dict()
        if self.average is not None:
            state["average"] = get_model_state_dict(self.average)
        return state

    def save(self, epoch: int) -> None:
        """Write the state after an epoch; the last two are kept."""
        dcp.save(self._state(), checkpoint_id=self.folder / str(epoch))
        if self.place.main:
            for number in checkpoints(self.folder)[:-2]:
                shutil.rmtree(self.folder / str(number))

    def resume(self) -> int:
        """Take up the state of the last whole checkpoint; returns how many epochs it has seen, 0 without one."""
        if not (found := checkpoints(self.folder)):
            return 0
        state = self._state()
        dcp.load(state, checkpoint_id=self.folder / str(found[-1]))
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state.get("scaler", {}))
        self.updates = state["updates"]
        return found[-1]

    def export(self, out: Path) -> None:
        """Write the evaluated weights, gathered from all processes, as a Hugging Face folder."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.evaluated, options=options)
        if self.place.main:
            whole = type(self.model)(self.model.config)
            whole.load_state_dict(weights)
            whole.save_pretrained(out)


def checkpoints(folder: Path) -> list[int]:
    """The numbers of the whole checkpoints in a folder: those whose metadata, which are written last, are there."""
    return sorted(int(p.parent.name) for p in folder.glob("*/.metadata") if p.parent.name.isdigit())


def gather(model_class: Any, config: ViTConfig, folder: Path, epoch: int, out: Path) -> None:
    """Write a checkpoint, of however many processes, as a Hugging Face folder: the average of the weights, if any."""
    model, path = model_class(config), folder / str(epoch)
    stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    name = "average" if any(key.startswith("average.") for key in stored) else "model"
    state = {name: model.state_dict()}
    with processes(Settings(pictures=folder, out=out)):
        dcp.load(state, checkpoint_id=path)
    model.load_state_dict(state[name])
    model.save_pretrained(out)


# ---- losses ------------------------------------------------------------------------------------------------------


def class_loss(network: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the shares (B, K) of each class, the mean over pictures."""
    return F.cross_entropy(network(pixels).logits.float(), targets)


def distilled_loss(config: ViTConfig, network: nn.Module, pixels: Tensor, targets: Tensor, theirs: Tensor) -> Tensor:
    """That of the CLS token's head, and the other head's with what a teacher gives for the same pixels."""
    found, weight = network(pixels), config.distillation_weight
    ours = F.cross_entropy(found.cls_logits.float(), targets)
    return (1 - weight) * ours + weight * teacher_loss(found.distillation_logits, theirs, config)
