"""The patch projection for pictures of another number of channels, as `timm.models.adapt_input_conv` makes it, and the
statistics that such pictures are normalised with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_core.files.tensor import Array, Tensor
from vit_core.pictures.processing import stated_by

PROJECTION = "embeddings.patch_embeddings.projection.weight"
STATISTICS = ("image_mean", "image_std")
ADAPTABLE = (1, 3)  # channels of a projection that another can be made of


def with_channels(weight: Tensor, channels: int) -> Tensor:
    """The projection (D, C, P, Q) for `channels`: summed for 1, else repeated in turn and rescaled by C / channels.

    For 1 or a multiple of C, a picture whose channels are alike gives what it gave before. Raises ValueError unless C
    is 1 or 3.
    """
    width, stored, height, length = weight.shape
    if stored not in ADAPTABLE:
        raise ValueError(
            f"{weight.source or 'the patch projection'} takes {stored} channels, expected 1 or 3 to make one of "
            f"{channels} of it."
        )

    def adapt(array: Array) -> Array:
        wide = array.astype(np.float32)
        repeated = wide[:, np.arange(channels) % stored] * np.float32(stored / channels)
        adapted: Array = wide.sum(1, keepdims=True) if channels == 1 else repeated
        return adapted.astype(array.dtype)

    return weight.changed(("channels", f"{stored} to {channels}"), adapt, shape=(width, channels, height, length))


def with_statistics(document: Mapping[str, Any], stored: int, channels: int) -> dict[str, Any]:
    """A preprocessor's document with a mean and deviation for each of `channels`, where it has those of `stored` ones.

    They are averaged for 1, else repeated in turn, as the projection is. A single number stays. Raises ValueError that
    names the file for values that no processor takes.
    """
    if stored == channels:
        return {**document}
    stated = vars(stated_by(document, *STATISTICS))
    other = {name: values for name in STATISTICS if np.ndim(values := stated[name]) and len(values) == stored}
    return {**document} | {
        name: [float(np.mean(values))] if channels == 1 else [values[i % stored] for i in range(channels)]
        for name, values in other.items()
    }
