"""Fine-tune a ViT on a folder of pictures, one folder for each class, with JAX.

python examples/finetune_jax.py my-pictures --out my-vit
python examples/finetune_jax.py my-pictures --out my-vit --parallel data
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import optax
from finetuning import FineTuning, prepare
from jax import Array
from jax_engine import Trainer, processes
from pictures import evaluate
from training import Run, begin, command

from vit_flax import ViTForImageClassification


def loss_of(network: Callable[..., Any], pixels: Array, targets: Array) -> Array:
    """Cross entropy with the shares of each class, the mean over pictures."""
    return optax.softmax_cross_entropy(network(pixels).logits.astype("float32"), targets).mean()


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with JAX on one device or on many, of one process or of many."""
    with processes(settings) as place:
        model, loader, training, held_out = prepare(settings, ViTForImageClassification, place.rank, place.world)
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        trainer = Trainer(model, loss_of, settings, place, folder, steps, settings.layer_decay, settings.freeze)
        done = trainer.resume()
        logits_of = partial(trainer.predict, lambda network, pixels: network(pixels).logits)
        with Run(settings, steps, done, place.main) as run:
            for epoch in range(done, settings.epochs):
                batches = loader.mixed(training, epoch, settings.mixup, settings.label_smoothing)
                losses, rates = trainer.epoch(batches, run)
                scores = evaluate(logits_of, loader.validation(held_out), place.total)
                run.end_epoch(epoch, losses, rates, **scores)
                trainer.save(epoch + 1)
        trainer.export(settings.out)
        if place.main:
            loader.processor.save_pretrained(settings.out)


if __name__ == "__main__":
    command(main, FineTuning)
