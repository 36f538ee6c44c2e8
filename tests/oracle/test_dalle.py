"""The visual tokens of `vit_torch/dalle.py` against `FlavaImageCodebook` of transformers 4.57.6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dalle import SIZES, drawn, tokens_of

from vit_torch.dalle import Encoder


@pytest.mark.parametrize("sizes", [SIZES, {"hidden_size": 16, "num_blocks_per_group": 1, "vocab_size": 100}])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_tokens(sizes: dict[str, Any], channels: int, tmp_path: Path) -> None:
    theirs = drawn(tmp_path, **sizes, input_channels=channels)
    colours = np.random.default_rng(1).random((2, channels, 40, 56), np.float32)
    found = Encoder(tmp_path)(colours, (5, 7))
    np.testing.assert_array_equal(found, tokens_of(theirs, colours))
    assert len(np.unique(found)) > 5
