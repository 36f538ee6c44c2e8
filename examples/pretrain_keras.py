"""Pre-train a ViT or DeiT by masked image modelling on a folder of pictures, with Keras.

python examples/pretrain_keras.py my-pictures --out my-pretrained
python examples/pretrain_keras.py my-pictures --out my-pretrained --parallel mirrored
"""

from __future__ import annotations

from functools import partial

import keras
import tensorflow as tf
from keras_engine import (
    Accumulated,
    Checkpoints,
    Epochs,
    dataset,
    devices,
    in_parts,
    make_optimizer,
    pixels_of,
    predictor,
)
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, evaluate, held_out_batches, masked, prepare
from training import Run, begin, command

INPUTS = ("pixel_values", "bool_masked_pos")


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with Keras on one device, on all of this machine, or on many machines."""
    with devices(settings) as place:
        keras.utils.set_random_seed(settings.seed)
        model, loader, masks, training, held_out = prepare(
            settings, partial(in_parts, Accumulated), place.rank, place.world
        )
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.compile(make_optimizer(model, settings, settings.epochs * steps))
        checkpoints = Checkpoints(folder, model)
        done = checkpoints.resume()
        reconstruct = predictor(place, lambda pixels, hidden: model(pixels, bool_masked_pos=hidden).reconstruction)
        data = dataset(
            place,
            settings,
            lambda epoch: (dict(zip(INPUTS, part, strict=True)) for part in masked(loader, masks, training, epoch)),
            dict(
                zip(INPUTS, (pixels_of(model.config), tf.TensorSpec((model.config.num_patches,), tf.bool)), strict=True)
            ),
            done,
        )
        with Run(settings, steps, done, place.main) as run:
            epochs = Epochs(
                run,
                checkpoints,
                lambda: evaluate(reconstruct, held_out_batches(loader, masks, held_out), masks, place.total),
            )
            counts = {"initial_epoch": done, "epochs": settings.epochs, "steps_per_epoch": steps}
            model.fit(data, **counts, callbacks=[epochs], shuffle=False, verbose=0)
        batch = next(held_out_batches(loader, masks, held_out))
        picture = settings.out / RECONSTRUCTIONS if place.main else None
        draw_reconstructions(picture, reconstruct, batch, loader, masks)
        if place.main:
            model.save_pretrained(settings.out)
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, PreTraining)
