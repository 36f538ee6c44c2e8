"""Gather a sharded checkpoint of a training, finished or not, into a Hugging Face folder that every backend loads.

python examples/gather.py my-vit/checkpoints my-gathered [--epoch 5]

One process does it, whatever number of them wrote the checkpoint. PyTorch's checkpoints hold a pickle, which can run
code: gather what your own runs wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vit_core.app.backends import import_backend, import_engine
from vit_core.app.cli.common import script
from vit_core.config import AutoConfig
from vit_core.pictures.processing import AutoImageProcessor

# The backends, by a file that is in every whole checkpoint of theirs.
BACKENDS = {".metadata": "torch", "_CHECKPOINT_METADATA": "flax"}


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The checkpoints of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    epoch: Annotated[int | None, typer.Option(help="Which of them.", show_default="the last")] = None,
) -> None:
    """Write the weights of a checkpoint, averaged where the run averages them, with configuration and processor."""
    found = {
        int(path.parent.name): backend
        for name, backend in BACKENDS.items()
        for path in folder.glob(f"*/{name}")
        if path.parent.name.isdigit()
    }
    chosen = max(found, default=None) if epoch is None else epoch
    if chosen not in found:
        numbers = ", ".join(map(str, sorted(found))) or "none"
        raise ValueError(
            f"{folder} has no whole checkpoint{'' if epoch is None else f' {epoch}'}: expected numbered folders of "
            f"torch.distributed.checkpoint or Orbax, found {numbers}."
        )
    config = AutoConfig.from_pretrained(folder)
    model_class = getattr(import_backend(found[chosen]), config.architectures[0])
    import_engine(found[chosen]).gather(model_class, config, folder.absolute(), chosen, out)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(out)
    print(f"Epoch {chosen} is in {out}")


if __name__ == "__main__":
    script(main)
