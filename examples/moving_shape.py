"""A small video to try segment.py on: a disc and a square that move over a background, and the masks of both.

python examples/moving_shape.py my-video        frames in my-video/frames, masks in my-video/masks
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

EDGE, RADIUS, HALF = 96, 15, 11  # pixels of a frame, of the disc and of half the square


def main(
    folder: Annotated[Path, typer.Argument(help="Where to write the frames and masks.")],
    frames: Annotated[int, typer.Option(min=2, help="How many.")] = 16,
    seed: int = 0,
) -> None:
    """Write the frames of a video, and beside them the masks: 1 where the disc is, 2 where the square is."""
    random = np.random.default_rng(seed)
    background = 30 + 25 * smooth(random, EDGE)
    for name in ("frames", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(frames):
        at = i / (frames - 1)
        disc = (24 + 46 * at, 30 + 12 * np.sin(3 * at))
        square = (70 - 40 * at, 70)
        mask = masked(disc, square)
        frame = np.where(mask == 1, 220.0, np.where(mask == 2, 130.0, background)) + random.normal(0, 6, mask.shape)
        Image.fromarray(frame.clip(0, 255).astype(np.uint8)).convert("RGB").save(folder / "frames" / f"{i:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i:03}.png")
    print(f"{frames} frames and their masks are in {folder}")


def masked(disc: tuple[float, float], square: tuple[float, float]) -> np.ndarray:
    """The mask (EDGE, EDGE) of both shapes, whose middles are at (x, y)."""
    y, x = np.mgrid[:EDGE, :EDGE]
    mask = np.zeros((EDGE, EDGE), np.uint8)
    mask[np.maximum(abs(x - square[0]), abs(y - square[1])) <= HALF] = 2
    mask[(x - disc[0]) ** 2 + (y - disc[1]) ** 2 <= RADIUS**2] = 1
    return mask


def smooth(random: np.random.Generator, edge: int) -> np.ndarray:
    """Noise (edge, edge) from 0 to 1, without fine detail."""
    coarse = Image.fromarray(random.random((6, 6)).astype(np.float32))
    return np.asarray(coarse.resize((edge, edge), Image.Resampling.BICUBIC)).clip(0, 1)


if __name__ == "__main__":
    typer.run(main)
