"""Fine-tune a ViT or DeiT on a folder of pictures, one folder for each class, with JAX.

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
from jax_engine import Trainer, processes, teaching
from pictures import evaluate
from training import Run, begin, command

import vit_flax
from vit_flax.losses import teacher_loss


def loss_of(network: Callable[..., Any], pixels: Array, targets: Array) -> Array:
    """Cross entropy with the shares of each class, the mean over pictures."""
    return optax.softmax_cross_entropy(network(pixels).logits.astype("float32"), targets).mean()


def distilled_loss_of(config: Any, network: Callable[..., Any], pixels: Array, targets: Array, theirs: Array) -> Array:
    """That of the CLS token's head, and the other head's with what a teacher gives for the same pixels."""
    found, weight = network(pixels), config.distillation_weight
    ours = optax.softmax_cross_entropy(found.cls_logits.astype("float32"), targets).mean()
    return (1 - weight) * ours + weight * teacher_loss(found.distillation_logits, theirs, config)


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with JAX on one device or on many, of one process or of many."""
    with processes(settings) as place:
        model, teacher, loader, training, held_out = prepare(
            settings, partial(getattr, vit_flax), place.rank, place.world
        )
        steps = loader.steps(training)
        folder = begin(settings, model, loader.processor, place.main)
        loss = partial(distilled_loss_of, model.config) if teacher else loss_of
        taught = {"teacher": teaching(teacher, settings, place)} if teacher else {}
        trainer = Trainer(model, loss, settings, place, folder, steps, settings.layer_decay, settings.freeze, **taught)
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
