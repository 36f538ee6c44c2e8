"""Fine-tune a ViT on a folder of pictures, one folder for each class, with PyTorch.

python examples/finetune_torch.py my-pictures --out my-vit
torchrun --nproc-per-node 8 examples/finetune_torch.py my-pictures --out my-vit --parallel fsdp
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from finetuning import FineTuning, prepare
from pictures import evaluate
from torch import Tensor, nn
from torch_engine import Place, Trainer, processes
from training import Run, begin, command

from vit_torch import ViTForImageClassification


def loss_of(network: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with the shares of each class, the mean over pictures."""
    return F.cross_entropy(network(pixels).logits.float(), targets)


def train(settings: FineTuning, place: Place) -> None:
    """The run of one process."""
    torch.manual_seed(settings.seed)
    model, loader, training, held_out = prepare(settings, ViTForImageClassification, place.rank, place.world)
    steps = loader.steps(training)
    folder = begin(settings, model, loader.processor, place.main)
    trainer = Trainer(model, settings, place, folder, steps, settings.layer_decay, settings.freeze)
    done = trainer.resume()
    logits_of = partial(trainer.predict, lambda model, pixels: model(pixels).logits)
    with Run(settings, steps, done, place.main) as run:
        for epoch in range(done, settings.epochs):
            batches = loader.mixed(training, epoch, settings.mixup, settings.label_smoothing)
            losses, rates = trainer.epoch(batches, loss_of, run)
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
