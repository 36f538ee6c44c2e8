"""Fine-tune a ViT or DeiT on a folder of pictures, one folder for each class, with Keras.

python examples/finetune_keras.py my-pictures --out my-vit
python examples/finetune_keras.py my-pictures --out my-vit --parallel mirrored
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from finetuning import FineTuning, prepare
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
from pictures import evaluate
from tensorflow import Tensor
from training import Run, begin, command

from vit_tf.losses import teacher_loss


class Classifier(Accumulated):
    """A classifier that is trained on batches in parts, and by a teacher where there is one."""

    teacher: Callable[[Tensor], Tensor] | None = None  # its logits, of pixels

    def compute_loss(self, x: Any = None, y: Any = None, y_pred: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """That of the targets; with a teacher the CLS token's head has that, and the other what the teacher says."""
        if self.teacher is None:
            return super().compute_loss(x, y, y_pred, *args, **kwargs)
        weight, replicas = self.config.distillation_weight, tf.distribute.get_strategy().num_replicas_in_sync
        theirs = teacher_loss(y_pred.distillation_logits, tf.stop_gradient(self.teacher(x)), self.config) / replicas
        return (1 - weight) * self.loss(y, y_pred.cls_logits) + weight * theirs


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with Keras on one device, on all of this machine, or on many machines."""
    with devices(settings) as place:
        keras.utils.set_random_seed(settings.seed)
        model, teacher, loader, training, held_out = prepare(
            settings, partial(in_parts, Classifier), place.rank, place.world
        )
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        model.base_model.trainable = not settings.freeze
        if teacher is not None:
            teacher.trainable = False
            model.teacher = lambda pixels: teacher(pixels, training=False).logits  # a layer would be part of the model
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
            (pixels_of(model.config), tf.TensorSpec((1, len(training.classes)))),
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
