"""Pre-train a ViT or DeiT by masked image modelling on a folder of pictures, with JAX.

python examples/pretrain_jax.py my-pictures --out my-pretrained
python examples/pretrain_jax.py my-pictures --out my-pretrained --parallel data
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from jax import Array
from jax_engine import Trainer, processes
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, evaluate, held_out_batches, masked, prepare
from training import Run, begin, command

import vit_flax


def loss_of(network: Callable[..., Any], pixels: Array, masks: Array) -> Array:
    """The mean absolute error of hidden pixels."""
    return network(pixels, bool_masked_pos=masks).loss


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with JAX on one device or on many, of one process or of many."""
    with processes(settings) as place:
        model, loader, masks, training, held_out = prepare(
            settings, partial(getattr, vit_flax), place.rank, place.world
        )
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        trainer = Trainer(model, loss_of, settings, place, folder, steps)
        done = trainer.resume()
        reconstruct = partial(trainer.predict, lambda model, *inputs: model(inputs[0], bool_masked_pos=inputs[1])[1])
        with Run(settings, steps, done, place.main) as run:
            for epoch in range(done, settings.epochs):
                losses, rates = trainer.epoch(masked(loader, masks, training, epoch), run)
                scores = evaluate(reconstruct, held_out_batches(loader, masks, held_out), masks, place.total)
                run.end_epoch(epoch, losses, rates, **scores)
                trainer.save(epoch + 1)
        batch = next(held_out_batches(loader, masks, held_out))
        picture = settings.out / RECONSTRUCTIONS if place.main else None
        draw_reconstructions(picture, reconstruct, batch, loader, masks)
        trainer.export(settings.out)
        if place.main:
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, PreTraining)
