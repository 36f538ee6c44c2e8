"""Pre-train a ViT, DeiT, MAE or BEiT by masked image modelling on a folder of pictures, with JAX.

python examples/pretrain_jax.py my-pictures --out my-pretrained
python examples/pretrain_jax.py my-pictures --out my-pretrained --parallel data
"""

from __future__ import annotations

from functools import partial

from jax_engine import Trainer, processes
from masking import loss_of, prediction_of
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, drawn, evaluate, held_out_batches, prepare
from training import Run, begin, command

import vit_flax


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with JAX on one device or on many, of one process or of many."""
    with processes(settings) as place:
        model, loader, method, training, held_out = prepare(settings, partial(getattr, vit_flax), place)
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        trainer = Trainer(model, loss_of(method), settings, place, folder, steps)
        done = trainer.resume()
        predict = partial(trainer.predict, prediction_of(method))
        with Run(settings, steps, done, place.main) as run:
            for epoch in range(done, settings.epochs):
                losses, rates = trainer.epoch(drawn(loader, method, training, epoch), run)
                scores = evaluate(predict, held_out_batches(loader, method, held_out), method, place.total)
                run.end_epoch(epoch, losses, rates, **scores)
                trainer.save(epoch + 1)
        batch = next(held_out_batches(loader, method, held_out))
        picture = settings.out / RECONSTRUCTIONS if place.main else None
        draw_reconstructions(picture, predict, batch, loader, method)
        trainer.export(settings.out)
        if place.main:
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, PreTraining)
