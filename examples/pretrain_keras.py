"""Pre-train a ViT, DeiT, MAE or BEiT by masked image modelling on a folder of pictures, with Keras.

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
from masking import prediction_of
from pretraining import RECONSTRUCTIONS, PreTraining, draw_reconstructions, drawn, evaluate, held_out_batches, prepare
from training import Run, begin, command


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with Keras on one device, on all of this machine, or on many machines."""
    with devices(settings) as place:
        keras.utils.set_random_seed(settings.seed)
        model, loader, method, training, held_out = prepare(settings, partial(in_parts, Accumulated), place)
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.compile(make_optimizer(model, settings, settings.epochs * steps))
        checkpoints = Checkpoints(folder, model)
        done = checkpoints.resume()
        predict = predictor(place, partial(prediction_of(method), model))
        one = {"pixel_values": pixels_of(model.config)}
        one |= {name: tf.TensorSpec(*each) for name, each in method.inputs.items()}
        data = dataset(
            place,
            settings,
            lambda epoch: (dict(zip(one, part, strict=True)) for part in drawn(loader, method, training, epoch)),
            one,
            done,
        )
        with Run(settings, steps, done, place.main) as run:
            epochs = Epochs(
                run,
                checkpoints,
                lambda: evaluate(predict, held_out_batches(loader, method, held_out), method, place.total),
            )
            counts = {"initial_epoch": done, "epochs": settings.epochs, "steps_per_epoch": steps}
            model.fit(data, **counts, callbacks=[epochs], shuffle=False, verbose=0)
        batch = next(held_out_batches(loader, method, held_out))
        picture = settings.out / RECONSTRUCTIONS if place.main else None
        draw_reconstructions(picture, predict, batch, loader, method)
        if place.main:
            model.save_pretrained(settings.out)
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, PreTraining)
