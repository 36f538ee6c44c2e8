"""Features of images, as Hugging Face's `pipeline("image-feature-extraction")` gives them, and of `model.features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from vit_core import calls
from vit_core.app.backends import array, bare, call
from vit_core.app.base import Array, ImagePipeline, check_finite


class ImageFeatureExtractionPipeline(ImagePipeline[Any]):
    """Features of one image or several: `extractor("cat.png")` is its last hidden state, (1, S, D) as nested lists.

    Options: pool=True for the pooler's output, (1, O), in its place. features, "cls" or "mean" (1, D) or "patches"
    (1, N, D), and layers, one or several, which give a list, for what `model.features` computes; one of them alone has
    its default for the other. return_tensors, True for tensors of the framework, "np" for float32 arrays.
    image_processor_kwargs, of the image processor, for these images.
    """

    task = "image-feature-extraction"
    architecture = "Model"
    options: ClassVar[dict[str, Any]] = {
        "pool": None,
        "features": None,
        "layers": None,
        "return_tensors": None,
        "image_processor_kwargs": None,
    }

    def answers(  # type: ignore[override]
        self,
        model: Any,
        pixels: Array,
        *,
        pool: bool | None,
        features: str | None,
        layers: int | Sequence[int] | None,
        return_tensors: bool | str | None,
    ) -> list[Any]:
        if features is None and layers is None:
            found = _field(model, pixels, "pooler_output" if pool else "last_hidden_state")
        else:
            found = call(model, bare(model).features, pixels, layers=-1 if layers is None else layers, pool=features)
        several = isinstance(found, tuple)
        tensors = [_converted(each, return_tensors) for each in (found if several else (found,))]
        images = [[each[i : i + 1] for each in tensors] for i in range(len(pixels))]
        if not return_tensors:
            images = [[each.tolist() for each in image] for image in images]
        return images if several else [image[0] for image in images]

    def check(  # type: ignore[override]
        self,
        pool: bool | None,
        features: str | None,
        layers: int | Sequence[int] | None,
        return_tensors: bool | str | None,
        image_processor_kwargs: Mapping[str, Any] | None,
    ) -> None:
        calls.pooling(self.config, features)
        if layers is not None:
            calls.depths(self.config, layers)
        if pool not in (None, True, False):
            raise ValueError(f"pool must be True or False, got {pool!r}: features={pool!r} is what takes a word.")
        if pool and not (features is None and layers is None):
            raise ValueError("pool=True is the pooler's output, of the last layer: leave out features and layers.")
        if return_tensors not in (None, True, False, "np"):
            raise ValueError(f'return_tensors must be True, False or "np", got {return_tensors!r}.')
        if image_processor_kwargs is not None and not isinstance(image_processor_kwargs, Mapping):
            raise ValueError(f"image_processor_kwargs must be a dict, got {image_processor_kwargs!r}.")


def _field(model: Any, pixels: Array, name: str) -> Any:
    """A field of a model's output. Raises ValueError, with what to ask for, where it has none."""
    output = call(model, model, pixels, return_dict=True)
    if name not in output:
        raise ValueError(
            f'{type(model).__name__} gives no {name}, but {", ".join(output)}: ask for features="cls", "mean" or '
            '"patches".'
        )
    return output[name]


def _converted(tensor: Any, return_tensors: bool | str | None) -> Any:
    """A tensor as a call asks for it: as it is, or an array. Raises ValueError for an array that is not finite."""
    if return_tensors and return_tensors != "np":
        return tensor
    found = array(tensor)
    check_finite("features", found)
    return found.astype(np.float32) if return_tensors == "np" else found
