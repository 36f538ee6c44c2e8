"""Pre-train a ViT, DeiT, MAE or BEiT by masked image modelling on a folder of pictures, with Keras.

python examples/pretrain_keras.py my-pictures --out my-pretrained
python examples/pretrain_keras.py my-pictures --out my-pretrained --parallel mirrored

`vit pretrain --backend tf` runs the same. Steps, devices and checkpoints stand in vit_tf/engine.py. Flags, pictures,
what an epoch asks for and the folder of a run stand in vit_core/app/training, for all frameworks.
"""

from __future__ import annotations

from vit_core.app.cli.training import training_script
from vit_core.app.training.loop import Place
from vit_core.app.training.pretraining import PreTrainer, PreTraining
from vit_tf.engine import processes


def train(settings: PreTraining, place: Place) -> None:
    """The run of one process."""
    training = PreTrainer(settings, "tf", place)  # begun, or with its last checkpoint
    with training.run as run:
        for epoch in training.epochs:
            losses, rates = training.train(epoch)
            run.end_epoch(epoch, losses, rates, **training.validate())
            training.save(epoch)
    training.finish()


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with Keras on one device, on all of this machine, or on many machines."""
    with processes(settings) as place:
        train(settings, place)


if __name__ == "__main__":
    training_script(main, PreTraining)
