"""Gather a sharded checkpoint of a training, finished or not, into a Hugging Face folder that every backend loads.

python examples/gather.py my-vit/checkpoints my-gathered [--epoch 5]

One process does it, whatever number of them wrote the checkpoint. PyTorch's checkpoints hold a pickle, which can run
code: gather what your own runs wrote.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from vit_core.pictures.processing import AutoImageProcessor

# The engines, by a file that is in every whole checkpoint of theirs.
ENGINES = {".metadata": "torch_engine", "_CHECKPOINT_METADATA": "jax_engine"}


def main(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The checkpoints of a run.")],
    out: Annotated[Path, typer.Argument(help="Folder for the model.")],
    epoch: Annotated[int | None, typer.Option(help="Which of them.", show_default="the last")] = None,
) -> None:
    """Write the weights of a checkpoint, averaged where the run averages them, with configuration and processor."""
    found = {
        int(path.parent.name): engine
        for name, engine in ENGINES.items()
        for path in folder.glob(f"*/{name}")
        if path.parent.name.isdigit()
    }
    chosen = max(found, default=None) if epoch is None else epoch
    if chosen not in found:
        numbers = ", ".join(map(str, sorted(found))) or "none"
        raise typer.BadParameter(
            f"{folder} has no whole checkpoint{'' if epoch is None else f' {epoch}'}: expected numbered folders of "
            f"torch.distributed.checkpoint or Orbax, found {numbers}."
        )
    import_module(found[chosen]).gather(folder.absolute(), chosen, out)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(out)
    print(f"Epoch {chosen} is in {out}")


if __name__ == "__main__":
    typer.run(main)
