"""The data of the embedded model: scikit-learn's handwritten digits (UCI, 1,797 pictures of 8x8), a fifth held out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

HELD_OUT = 0.2
SPLIT_SEED = 0


class Split(NamedTuple):
    """8-bit pictures (n, 8, 8), black on zero, their classes (n,) and their numbers in the whole set (n,)."""

    pictures: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray

    def images(self) -> list[Image.Image]:
        """The pictures as PIL images of mode L."""
        return [Image.fromarray(picture) for picture in self.pictures]


def load_split() -> tuple[Split, Split]:
    """(training, held out): the same division, stratified by class, whenever it is called."""
    data = load_digits()
    pictures = np.round(data.images * (255 / 16)).astype(np.uint8)  # 17 grey levels, spread over 8 bits
    numbers = np.arange(len(pictures))
    train, held_out = train_test_split(numbers, test_size=HELD_OUT, stratify=data.target, random_state=SPLIT_SEED)
    return tuple(Split(pictures[part], data.target[part], part) for part in (train, held_out))  # type: ignore[return-value]
