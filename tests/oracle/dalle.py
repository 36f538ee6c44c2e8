"""A small encoder of DALL-E's discrete VAE as transformers 4.57.6 writes it, drawn at random, and the tokens it gives.

python tests/oracle/dalle.py tests/golden/dalle
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

SIZES = {"hidden_size": 4, "num_blocks_per_group": 2, "vocab_size": 24}


def drawn(folder: Path, **sizes: Any) -> Any:
    """An encoder whose tokens differ from place to place, saved in a folder."""
    torch.manual_seed(0)
    model = transformers.FlavaImageCodebook(transformers.FlavaImageCodebookConfig(**sizes)).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.1 if name.endswith("bias") else (2 / parameter[0].numel()) ** 0.5)
    noise = torch.rand(4, model.config.input_channels, 64, 64)
    model.blocks.output.conv.bias.data -= model.blocks(noise).mean((0, 2, 3))  # else one token has the most everywhere
    model.save_pretrained(folder)
    return model


def tokens_of(model: Any, colours: np.ndarray) -> np.ndarray:
    """The tokens (B, N) of colours (B, C, H, W) from 0 to 1, of 8 x 8 pixels each."""
    found: np.ndarray = model.get_codebook_indices(0.1 + 0.8 * torch.from_numpy(colours)).flatten(1).numpy()
    return found


def main(folder: Path) -> None:
    """Write the folder."""
    model = drawn(folder, **SIZES)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 24, 32), np.uint8)
    np.savez_compressed(
        folder / "tokens.npz", pictures=pictures, tokens=tokens_of(model, (pictures / 255).astype(np.float32))
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
