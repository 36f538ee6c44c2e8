"""Objects of a video's first frame found in all others, by the features of a model that stays as it is.

Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", section 4.2.2, after Jabri et al. 2020,
"Space-Time Correspondence as a Contrastive Random Walk": a patch has the labels of the patches that are most like it,
among those near its place in the first frame and in the frames just before.

python examples/segment.py my-video/frames --mask my-video/masks/000.png --out found
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from PIL import Image

from vit_core import calls
from vit_core.app.backends import array, call
from vit_core.app.cli.common import pictures, print_json, script
from vit_core.app.opening import find_processor, load
from vit_core.app.sources import read_image
from vit_core.app.training.opening import reading
from vit_core.assets import DIGITS
from vit_core.config import pair
from vit_core.pictures.images import LAST, in_channels

Known = tuple[np.ndarray, np.ndarray]  # of a frame: features (N, D) of length 1, and labels (N, K), which sum to 1


def main(
    frames: Annotated[Path, typer.Argument(help="Folder of pictures, in the order of their names.")],
    mask: Annotated[Path, typer.Option(help="Of the first: a picture of one number a pixel, 0 for the background.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks of all.")],
    truth: Annotated[Path | None, typer.Option(help="Folder of masks to compare with.")] = None,
    model: Annotated[str, typer.Option(help="Folder or hub id.")] = str(DIGITS),
    backend: Literal["torch", "tf", "flax"] = "torch",
    layer: Annotated[int, typer.Option(help="After which layer; -1 is the last.")] = -1,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels of the longer edge, as the model sees it.")] = None,
    queue: Annotated[int, typer.Option(min=0, help="Frames before that are asked, beside the first.")] = 7,
    top_k: Annotated[int, typer.Option("-k", min=1, help="Patches that are asked.")] = 5,
    temperature: Annotated[float, typer.Option(min=1e-3, help="The lower, the more the likest count.")] = 0.1,
    radius: Annotated[int, typer.Option(min=1, help="How many patches away the others may be.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Find the objects of a first frame in the others, and write a mask for each."""
    with reading("FOLDER", frames):
        found = [each.source for each in pictures([str(frames)])]
    if out.resolve() in (frames.resolve(), mask.parent.resolve()):
        raise ValueError(f"--out {out} holds the frames or the mask, which would be lost: write elsewhere.")
    with reading("--mask", mask):
        labels, first, palette = read_mask(mask)
    with reading("--model", model):
        network, _ = load(model, backend, task="Model")
        processor = find_processor(model, network.config)
    with reading("FOLDER", frames):
        described = (described_frame(network, processor, each, first.shape, layer, size) for each in found)
        masks = list(propagated(described, first, len(labels), queue, top_k, temperature, radius))
    out.mkdir(parents=True, exist_ok=True)
    for path, each in zip(found, masks, strict=True):
        picture = Image.fromarray(labels[each])
        if palette is not None:
            picture.putpalette(palette)
        picture.save(out / f"{Path(path).stem}.png")
    document: dict[str, Any] = {"frames": len(found), "out": str(out), "objects": len(labels) - 1}
    if truth is not None:
        with reading("--truth", truth):
            document["j"] = region_similarity(labels, found[1:], masks[1:], truth)
    if as_json:
        print_json(document)
    else:
        print(
            ", ".join(f"{name} {value:.4f}" if name == "j" else f"{name} {value}" for name, value in document.items())
        )


# ---- pictures ----------------------------------------------------------------------------------------------------


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """The values of a mask (K,), the number of each pixel's among them (height, width), and its palette if it has any.

    Raises ValueError for a picture of colours, or of fractions.
    """
    with Image.open(path) as picture:
        values, palette = np.asarray(picture), picture.getpalette()
    values = values.astype(np.uint8) if values.dtype == bool else values
    if values.dtype.kind == "f":
        raise ValueError(f"a mask has whole numbers, got {values.dtype}: save it with a palette or in grey.")
    if values.ndim != 2:
        raise ValueError(f"a mask has one number a pixel, got {values.shape[2]}: save it with a palette or in grey.")
    labels, numbers = np.unique(values, return_inverse=True)
    return labels, numbers.reshape(values.shape), palette


def described_frame(
    model: Any, processor: Any, path: Any, shape: tuple[int, ...], layer: int, size: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    """The features (N, D) of a frame's patches, of length 1, and their grid. Raises ValueError for another size.

    The frame is scaled so that its longer edge has `size` pixels, by default its own, and its edges whole patches.
    """
    picture = read_image(path)
    if picture.size != shape[::-1]:
        raise ValueError(f"{path} has {picture.width} x {picture.height} pixels, the mask {shape[1]} x {shape[0]}.")
    scale = (size or max(shape)) / max(shape)
    height, width = (
        max(1, round(n * scale / patch)) * patch for n, patch in zip(shape, pair(model.config.patch_size), strict=True)
    )
    pixels = processor(
        in_channels(picture, model.config.num_channels),
        size={"height": height, "width": width},
        do_center_crop=False,
        input_data_format=LAST,
        return_tensors="np",
    ).pixel_values
    options = {"layers": layer, "pool": "patches", "interpolate_pos_encoding": True}
    found = array(call(model, model.features, pixels, **options))[0]
    return found / np.linalg.norm(found, axis=1, keepdims=True), calls.grid((height, width), model.config)


# ---- propagation -------------------------------------------------------------------------------------------------


def propagated(
    described: Iterator[tuple[np.ndarray, tuple[int, int]]],
    first: np.ndarray,
    count: int,
    queue: int,
    top_k: int,
    temperature: float,
    radius: int,
) -> Iterator[np.ndarray]:
    """The mask (height, width) of each frame, from that of the first, whose numbers are below `count`."""
    features, grid = next(described)
    start = (features, patched(first, count, grid))
    near, before = neighbourhood(grid, radius), deque[Known](maxlen=queue)
    yield first
    for features, _ in described:
        labels = asked(features, [start, *before], near, top_k, temperature)
        before.append((features, labels))
        yield enlarged(labels, grid, first.shape)


def asked(features: np.ndarray, known: Sequence[Known], near: np.ndarray, top_k: int, temperature: float) -> np.ndarray:
    """The labels (N, K) of patches (N, D): of the `top_k` likest known ones that are near, by exp(cosine / T)."""
    likeness = np.concatenate([np.where(near, features @ each.T, -np.inf) for each, _ in known], axis=1)  # (N, F N)
    every, best, highest = np.arange(len(features)), [], []
    for _ in range(min(top_k, likeness.shape[1])):  # for a few, much faster than a partition
        best.append(likeness.argmax(axis=1))
        highest.append(likeness[every, best[-1]])
        likeness[every, best[-1]] = -np.inf
    weights = np.exp((np.stack(highest) - highest[0]) / temperature)  # (k, N)
    labels = np.concatenate([each for _, each in known])[np.stack(best)]  # (k, N, K)
    return (weights[..., None] * labels).sum(axis=0) / weights.sum(axis=0)[:, None]


def neighbourhood(grid: tuple[int, int], radius: int) -> np.ndarray:
    """(N, N): whether two patches are `radius` rows and columns apart at most."""
    places = np.indices(grid).reshape(2, -1)
    return (abs(places[:, :, None] - places[:, None]) <= radius).all(axis=0)


def patched(mask: np.ndarray, count: int, grid: tuple[int, int]) -> np.ndarray:
    """How much of each patch is of each number: a mask (height, width) to (N, K)."""
    shares = [_resized(mask == i, grid, Image.Resampling.BOX).ravel() for i in range(count)]
    return np.stack(shares, axis=1)


def enlarged(labels: np.ndarray, grid: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """The mask (height, width) of the labels (N, K) of patches: of each pixel the number that most speaks for."""
    maps = [_resized(each.reshape(grid), shape, Image.Resampling.BILINEAR) for each in labels.T]
    return np.argmax(maps, axis=0)


def _resized(values: np.ndarray, shape: tuple[int, ...], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(shape[::-1], how))


def region_similarity(labels: np.ndarray, frames: Sequence[Any], masks: Sequence[np.ndarray], truth: Path) -> float:
    """J (Perazzi et al. 2016, "DAVIS", section 5): intersection over union, the mean over frames and objects.

    Raises ValueError where there is no object to compare.
    """
    found = []
    for path, mask in zip(frames, masks, strict=True):
        with Image.open(truth / f"{Path(path).stem}.png") as picture:
            expected = np.asarray(picture)
        for label in labels[1:]:
            one, other = labels[mask] == label, expected == label
            if other.any():
                found.append((one & other).sum() / (one | other).sum())
    if not found:
        raise ValueError("no frame but the first has an object there, so that nothing can be compared: leave it out.")
    return float(np.mean(found))


if __name__ == "__main__":
    script(main)
