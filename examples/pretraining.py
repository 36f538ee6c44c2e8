"""What the pre-training scripts share: flags, the loss on held-out pictures, and a picture of reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from masking import HELD_OUT, MAE, Method, SimMIM
from matplotlib import pyplot as plt
from pictures import PADDING, Batch, Loader, Pictures, architecture_of, find_pictures, open_model, reading
from training import Settings

from vit_core.config import ViTConfig, pair
from vit_core.family import ViTMAEConfig
from vit_core.formats.reading import read

RECONSTRUCTIONS = "reconstructions.png"
ROWS = 6  # pictures in it
METHODS = ("simmim", "mae")
SIMMIM_RATIO = 0.6  # of a picture that is hidden, in its paper
OF_SIMMIM, OF_MAE = ("mask_unit",), ("decoder_layers", "decoder_width", "norm_pix_loss")  # flags of a method alone
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pixels (B, C, H, W) and what is drawn (B, N) to a prediction


@dataclass(frozen=True, kw_only=True)
class PreTraining(Settings):
    """The flags of the pre-training scripts."""

    method: Annotated[str, typer.Option(help="simmim, or mae, whose encoder sees no hidden patch.")] = "simmim"
    scratch: Annotated[bool, typer.Option(help="Take the checkpoint's configuration alone, not its weights.")] = False
    mask_ratio: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.99, help="Share of a picture to hide.", show_default="0.6, mae 0.75, an MAE's own"
        ),
    ] = None
    mask_unit: Annotated[
        int | None,
        typer.Option(help="simmim: side of the squares to hide, in pixels.", show_default="32, or a patch"),
    ] = None
    decoder_layers: Annotated[
        int | None, typer.Option(min=1, help="mae: layers of the decoder.", show_default="8, an MAE's own")
    ] = None
    decoder_width: Annotated[
        int | None,
        typer.Option(min=4, help="mae: width of the decoder, 32 to a head.", show_default="512, an MAE's own"),
    ] = None
    norm_pix_loss: Annotated[
        bool | None,
        typer.Option(help="mae: normalise the pixels of each patch.", show_default="normalise, an MAE's own"),
    ] = None
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of pictures to validate on.")] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in METHODS:
            raise typer.BadParameter(f"--method must be {' or '.join(METHODS)}, got {self.method}.")
        foreign = OF_SIMMIM if self.method == "mae" else OF_MAE
        if given := [f"--{name.replace('_', '-')}" for name in foreign if getattr(self, name) is not None]:
            raise typer.BadParameter(f"{', '.join(given)} is not for --method {self.method}: leave it out.")


def method_of(settings: PreTraining, config: Any) -> Method:
    """The method of a run. Raises typer.BadParameter for squares that are not of whole patches or tile no picture."""
    if settings.method == "mae":
        return MAE(config, settings.seed)
    size, patch = pair(config.image_size), pair(config.patch_size)
    side = settings.mask_unit
    if side is None:
        fits = all(s % 32 == 0 and 32 % p == 0 for s, p in zip(size, patch, strict=True))
        unit = (32 // patch[0], 32 // patch[1]) if fits else (1, 1)
    elif any(s % side or side % p for s, p in zip(size, patch, strict=True)):
        raise typer.BadParameter(
            f"--mask-unit {side} must be a multiple of the patches, {patch[0]}x{patch[1]}, that divides pictures "
            f"of {size[0]}x{size[1]}."
        )
    else:
        unit = (side // patch[0], side // patch[1])
    ratio = SIMMIM_RATIO if settings.mask_ratio is None else settings.mask_ratio
    return SimMIM(config, settings.seed, ratio, unit)


def prepare(
    settings: PreTraining, class_of: Callable[[str], Any], shard: int = 0, shards: int = 1
) -> tuple[Any, Loader, Method, Pictures, Pictures]:
    """(model, loader, method, pictures to train on, pictures to validate on).

    The model is of the member of the family that its checkpoint is of, or an MAE; `class_of` gives a class by its
    PyTorch name. Raises typer.BadParameter for pictures, or a checkpoint, that can't be trained on.
    """
    training, held_out = find_pictures(settings.pictures).split(settings.validation, settings.seed)
    if settings.method == "mae":
        config, changes = of_mae(settings)
        model_class = class_of("ViTMAEForPreTraining")
    else:
        config, changes = None, {}
        model_class = class_of(architecture_of(settings, SimMIM.task))
    model, loader = open_model(settings, model_class, shard, shards, settings.scratch, config, **changes)
    loader.steps(training)
    return model, loader, method_of(settings, loader.config), training, held_out


def of_mae(settings: PreTraining) -> tuple[ViTConfig | None, dict[str, Any]]:
    """The configuration of an MAE that begins with a ViT's, and what the flags say of that or of a checkpoint's.

    Raises typer.BadParameter for the weights of a ViT: an MAE has a decoder, and positions that are not learnt.
    """
    with reading("--model", settings.model):
        stored = read(settings.model, head="drop").config
    changes: dict[str, Any] = {"mask_ratio": settings.mask_ratio, "norm_pix_loss": settings.norm_pix_loss}
    changes |= {"decoder_num_hidden_layers": settings.decoder_layers}
    if (width := settings.decoder_width) is not None:
        heads = max(width // 32, 1)
        changes |= {"decoder_hidden_size": width, "decoder_num_attention_heads": heads}
        changes |= {"decoder_intermediate_size": 4 * width}
    changes = {name: value for name, value in changes.items() if value is not None}
    if isinstance(stored, ViTMAEConfig):
        return None, changes
    if not settings.scratch:
        raise typer.BadParameter(
            f"--model {settings.model} is no MAE's, whose decoder --method mae trains: pass --scratch to take its "
            "sizes alone."
        )
    taken = {name: getattr(stored, name) for name in ViTMAEConfig.fields() if hasattr(stored, name)}
    return ViTMAEConfig(**{"norm_pix_loss": True, **taken}), changes


def drawn(loader: Loader, method: Method, pictures: Pictures, epoch: int) -> Iterator[Batch]:
    """Pixels of each part of an epoch, and what the method draws for them."""
    for pixels, numbers in loader.pixels(pictures, epoch):
        yield pixels, method(numbers, epoch)


def held_out_batches(
    loader: Loader, method: Method, pictures: Pictures
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pixels of this process's share of held-out pictures, what is drawn, and what of a patch (B, N) counts as hidden.

    Nothing of a picture that fills a batch up does.
    """
    numbered = Pictures(pictures.paths, np.arange(len(pictures.paths)), pictures.classes)
    for pixels, numbers in loader.validation(numbered):
        found = method(np.maximum(numbers, 0), HELD_OUT)
        yield pixels, found, method.hidden(found) & (numbers != PADDING)[:, None]


def evaluate(
    predict: Predict,
    batches: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]],
    method: Method,
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> dict[str, float]:
    """The mean error of hidden patches; `total` adds up the sums of all processes."""
    sums = np.zeros(2)  # error, patches
    for pixels, found, hidden in batches:
        errors = method.errors(predict(pixels, found).astype(np.float64), pixels)
        sums += errors[hidden].sum(), hidden.sum()
    error, count = total(sums)
    return {"val_loss": float(error / count)}


def draw_reconstructions(
    path: Path | None,
    predict: Predict,
    batch: tuple[np.ndarray, np.ndarray, np.ndarray],
    loader: Loader,
    method: Method,
) -> None:
    """Draw pictures, each as it is, as the model saw it, and as it completed it; without a path, draw nothing."""
    pixels, found, hidden = batch
    grid = hidden.reshape(-1, 1, *loader.config.grid)
    where = np.kron(grid, np.ones((1, 1, *pair(loader.config.patch_size)), bool))  # (B, 1, H, W)
    predicted = np.where(where, method.picture(predict(pixels, found), pixels), pixels)
    if path is None:
        return
    shown = range(min(ROWS, int(hidden.any(1).sum())))
    figure, axes = plt.subplots(len(shown), 3, figsize=(6, 2 * len(shown)), layout="constrained", squeeze=False)
    columns = {"input": pixels, "masked": np.where(where, np.nan, pixels), "predicted": predicted}
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axis, i in zip(column, shown, strict=True):
            axis.imshow(_picture(images[i], loader), interpolation="nearest")
            axis.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _picture(pixels: np.ndarray, loader: Loader) -> np.ndarray:
    """Pixels (C, H, W) as they were before they were normalised, (H, W, 3), grey where there are none."""
    processor = loader.processor
    mean, std = (np.reshape(v, (-1, 1, 1)) for v in (processor.image_mean, processor.image_std))
    image = pixels * std + mean if processor.do_normalize else pixels
    image = np.where(np.isnan(image), 0.5, image.clip(0, 1)).transpose(1, 2, 0)
    return np.broadcast_to(image, (*image.shape[:2], 3))
