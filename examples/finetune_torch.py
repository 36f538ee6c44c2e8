"""Fine-tune a ViT or DeiT on a folder of pictures, one folder for each class, with PyTorch.

python examples/finetune_torch.py my-pictures --out my-vit
torchrun --nproc-per-node 8 examples/finetune_torch.py my-pictures --out my-vit --parallel fsdp
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from finetuning import FineTuning, prepare
from pictures import evaluate
from torch import Tensor, nn
from torch_engine import Place, Trainer, processes
from training import Run, begin, command

import vit_torch
from vit_torch.losses import teacher_loss


def loss_of(network: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the shares of each class, the mean over pictures."""
    return F.cross_entropy(network(pixels).logits.float(), targets)


def distilled_loss_of(teacher: nn.Module, config: Any, network: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """That of the CLS token's head, and the other head's with what a teacher gives for the same pixels."""
    with torch.no_grad():
        theirs = teacher(pixels).logits
    found, weight = network(pixels), config.distillation_weight
    ours = F.cross_entropy(found.cls_logits.float(), targets)
    return (1 - weight) * ours + weight * teacher_loss(found.distillation_logits, theirs, config)


def train(settings: FineTuning, place: Place) -> None:
    """The run of one process."""
    torch.manual_seed(settings.seed)
    model, teacher, loader, training, held_out = prepare(settings, partial(getattr, vit_torch), place.rank, place.world)
    loss = partial(distilled_loss_of, teacher.to(place.device), model.config) if teacher else loss_of
    steps = loader.steps(training)
    folder = begin(settings, model, loader.processor, place.main)
    trainer = Trainer(model, settings, place, folder, steps, settings.layer_decay, settings.freeze)
    done = trainer.resume()
    logits_of = partial(trainer.predict, lambda model, pixels: model(pixels).logits)
    with Run(settings, steps, done, place.main) as run:
        for epoch in range(done, settings.epochs):
            batches = loader.mixed(training, epoch, settings.mixup, settings.label_smoothing)
            losses, rates = trainer.epoch(batches, loss, run)
            scores = evaluate(logits_of, loader.validation(held_out), place.total)
            run.end_epoch(epoch, losses, rates, **scores)
            trainer.save(epoch + 1)
    trainer.export(settings.out)
    if place.main:
        loader.processor.save_pretrained(settings.out)


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with PyTorch on one device or, under torchrun, on many."""
    with processes(settings.parallel) as place:
        train(settings, place)


if __name__ == "__main__":
    command(main, FineTuning)
