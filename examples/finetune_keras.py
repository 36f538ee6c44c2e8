"""Fine-tune a ViT on a folder of pictures, one folder for each class, with Keras.

python examples/finetune_keras.py my-pictures --out my-vit
python examples/finetune_keras.py my-pictures --out my-vit --parallel mirrored
"""

from __future__ import annotations

import keras
import tensorflow as tf
from finetuning import FineTuning, prepare
from keras_engine import Accumulated, Checkpoints, Epochs, dataset, devices, make_optimizer, pixels_of, predictor
from pictures import evaluate
from training import Run, begin, command

from vit_tf import ViTForImageClassification


class Classifier(Accumulated, ViTForImageClassification):
    """A ViT that is trained on batches in parts."""


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with Keras on one device, on all of this machine, or on many machines."""
    with devices(settings) as place:
        keras.utils.set_random_seed(settings.seed)
        model, loader, training, held_out = prepare(settings, Classifier, place.rank, place.world)
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        model.vit.trainable = not settings.freeze
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        model.compile(
            make_optimizer(model, settings, settings.epochs * steps, settings.layer_decay),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        checkpoints = Checkpoints(folder, model)
        done = checkpoints.resume()
        logits_of = predictor(place, lambda pixels: model(pixels).logits)
        data = dataset(
            place,
            settings,
            lambda epoch: loader.mixed(training, epoch, settings.mixup, settings.label_smoothing),
            (pixels_of(model.config), tf.TensorSpec((len(training.classes),))),
            done,
        )
        with Run(settings, steps, done, place.main) as run:
            epochs = Epochs(run, checkpoints, lambda: evaluate(logits_of, loader.validation(held_out), place.total))
            counts = {"initial_epoch": done, "epochs": settings.epochs, "steps_per_epoch": steps}
            model.fit(data, **counts, callbacks=[epochs], shuffle=False, verbose=0)
        if place.main:
            model.save_pretrained(settings.out)
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, FineTuning)
