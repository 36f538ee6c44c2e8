"""Pre-train a ViT, DeiT, MAE or BEiT by masked image modelling on a folder of pictures, with PyTorch.

python examples/pretrain_torch.py my-pictures --out my-pretrained
torchrun --nproc-per-node 8 examples/pretrain_torch.py my-pictures --out my-pretrained --parallel ddp

`vit pretrain --backend torch` runs the same. Steps, devices and checkpoints stand in vit_torch/engine.py. Flags,
pictures, what an epoch asks for and the folder of a run stand in vit_core/app/training, for all frameworks.
"""

from __future__ import annotations

from vit_core.app.cli.training import training_script
from vit_core.app.training.loop import Place
from vit_core.app.training.pretraining import PreTrainer, PreTraining
from vit_torch.engine import processes


def train(settings: PreTraining, place: Place) -> None:
    """The run of one process."""
    training = PreTrainer(settings, "torch", place)  # begun, or with its last checkpoint
    with training.run as run:
        for epoch in training.epochs:
            losses, rates = training.train(epoch)
            run.end_epoch(epoch, losses, rates, **training.validate())
            training.save(epoch)
    training.finish()


def main(settings: PreTraining) -> None:
    """Pre-train on pictures without labels, with PyTorch on one device or, under torchrun, on many."""
    with processes(settings) as place:
        train(settings, place)


if __name__ == "__main__":
    training_script(main, PreTraining)
