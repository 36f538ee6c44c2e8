"""A checkpoint of Lightning's own Trainer, of a LightningModule around a ViT of timm, and what that computes.

    python lightning_checkpoint.py tests/golden/lightning

Needs `lightning`, which is no part of the oracle's environment.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import families
import lightning
import numpy as np
import timm
import torch


class Classifier(lightning.LightningModule):
    """What users write: a model, a loss with weights of its own, hyperparameters of any kind."""

    def __init__(self, args: argparse.Namespace, size: torch.Size) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = families.randomized(timm.models.VisionTransformer(**families.ONE_BLOCK), "lightning")
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7])]


def main(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    pixels = torch.from_numpy(np.load(out.parent / "families" / "inputs.npy"))
    pictures = torch.utils.data.TensorDataset(pixels, torch.tensor([0, 2]))
    module = Classifier(argparse.Namespace(lr=0.01), torch.Size([32, 32]))
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit(module, torch.utils.data.DataLoader(pictures, batch_size=2))
    trainer.save_checkpoint(out / "last.ckpt")
    np.savez(out / "outputs.npz", **families.timm_outputs(module.model, pixels.numpy()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
