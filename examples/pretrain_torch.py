"""Pre-train a ViT, DeiT, MAE or BEiT by masked image modelling on a folder of pictures, with PyTorch.

python examples/pretrain_torch.py my-pictures --out my-pretrained
torchrun --nproc-per-node 8 examples/pretrain_torch.py my-pictures --out my-pretrained --parallel ddp
"""

from __future__ import annotations

from functools import partial

import torch
from masking import loss_of, prediction_of
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, drawn, evaluate, held_out_batches, prepare
from torch_engine import Place, Trainer, processes
from training import Run, begin, command

import vit_torch


def train(settings: PreTraining, place: Place) -> None:
    """The run of one process."""
    torch.manual_seed(settings.seed)
    model, loader, method, training, held_out = prepare(settings, partial(getattr, vit_torch), place)
    steps = loader.steps(training)
    folder = begin(settings, model, loader.processor, place.main)
    trainer = Trainer(model, settings, place, folder, steps)
    done = trainer.resume()
    predict = partial(trainer.predict, prediction_of(method))
    with Run(settings, steps, done, place.main) as run:
        for epoch in range(done, settings.epochs):
            losses, rates = trainer.epoch(drawn(loader, method, training, epoch), loss_of(method), run)
            scores = evaluate(predict, held_out_batches(loader, method, held_out), method, place.total)
            run.end_epoch(epoch, losses, rates, **scores)
            trainer.save(epoch + 1)
    batch = next(held_out_batches(loader, method, held_out))
    picture = settings.out / RECONSTRUCTIONS if place.main else None
    draw_reconstructions(picture, predict, batch, loader, method)
    trainer.export(settings.out)
    if place.main:
        loader.processor.save_pretrained(settings.out)


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with PyTorch on one device or, under torchrun, on many."""
    with processes(settings.parallel) as place:
        train(settings, place)


if __name__ == "__main__":
    command(main, PreTraining)
