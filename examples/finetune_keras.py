"""Fine-tune a ViT or DeiT on a folder of pictures, one folder for each class, with Keras.

python examples/finetune_keras.py my-pictures --out my-vit
python examples/finetune_keras.py my-pictures --out my-vit --parallel mirrored

`vit finetune --backend tf` runs the same. Steps, devices and checkpoints stand in vit_tf/engine.py. Flags, pictures,
what an epoch asks for and the folder of a run stand in vit_core/app/training, for all frameworks.
"""

from __future__ import annotations

from vit_core.app.cli.training import training_script
from vit_core.app.training.finetuning import FineTuner, FineTuning
from vit_core.app.training.loop import Place
from vit_tf.engine import processes


def train(settings: FineTuning, place: Place) -> None:
    """The run of one process."""
    training = FineTuner(settings, "tf", place)  # begun, or with its last checkpoint
    with training.run as run:
        for epoch in training.epochs:
            losses, rates = training.train(epoch)
            run.end_epoch(epoch, losses, rates, **training.validate())
            training.save(epoch)
    training.finish()


def main(settings: FineTuning) -> None:
    """Fine-tune on pictures, with Keras on one device, on all of this machine, or on many machines."""
    with processes(settings) as place:
        train(settings, place)


if __name__ == "__main__":
    training_script(main, FineTuning)
