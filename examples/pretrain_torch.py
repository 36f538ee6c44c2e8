"""Pre-train a ViT or DeiT by masked image modelling on a folder of pictures, with PyTorch.

python examples/pretrain_torch.py my-pictures --out my-pretrained
torchrun --nproc-per-node 8 examples/pretrain_torch.py my-pictures --out my-pretrained --parallel ddp
"""

from __future__ import annotations

from functools import partial

import torch
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, evaluate, held_out_batches, masked, prepare
from torch import Tensor, nn
from torch_engine import Place, Trainer, processes
from training import Run, begin, command

import vit_torch


def loss_of(network: nn.Module, pixels: Tensor, masks: Tensor) -> Tensor:
    """The mean absolute error of hidden pixels."""
    return network(pixels, bool_masked_pos=masks).loss


def train(settings: PreTraining, place: Place) -> None:
    """The run of one process."""
    torch.manual_seed(settings.seed)
    model, loader, masks, training, held_out = prepare(settings, partial(getattr, vit_torch), place.rank, place.world)
    steps = loader.steps(training)
    folder = begin(settings, model, loader.processor, place.main)
    trainer = Trainer(model, settings, place, folder, steps)
    done = trainer.resume()
    reconstruct = partial(trainer.predict, lambda model, *inputs: model(inputs[0], bool_masked_pos=inputs[1])[1])
    with Run(settings, steps, done, place.main) as run:
        for epoch in range(done, settings.epochs):
            losses, rates = trainer.epoch(masked(loader, masks, training, epoch), loss_of, run)
            scores = evaluate(reconstruct, held_out_batches(loader, masks, held_out), masks, place.total)
            run.end_epoch(epoch, losses, rates, **scores)
            trainer.save(epoch + 1)
    batch = next(held_out_batches(loader, masks, held_out))
    picture = settings.out / RECONSTRUCTIONS if place.main else None
    draw_reconstructions(picture, reconstruct, batch, loader, masks)
    trainer.export(settings.out)
    if place.main:
        loader.processor.save_pretrained(settings.out)


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with PyTorch on one device or, under torchrun, on many."""
    with processes(settings.parallel) as place:
        train(settings, place)


if __name__ == "__main__":
    command(main, PreTraining)
