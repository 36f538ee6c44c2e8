"""Pre-training by masked image modelling: its flags, what stands before the first step, and what an epoch asks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from vit_core.app.backends import import_backend
from vit_core.app.training.batches import Loader, colours
from vit_core.app.training.dataset import PADDING, Pictures, check_out, find_pictures
from vit_core.app.training.drawing import draw_columns
from vit_core.app.training.libraries import check_libraries
from vit_core.app.training.loop import Place, Training
from vit_core.app.training.masking import (
    HELD_OUT,
    MAE,
    BEiT,
    Drawn,
    Method,
    SimMIM,
    Tokenizer,
    loss_of,
    prediction_of,
    seen,
)
from vit_core.app.training.opening import architecture_of, open_loader, open_model, reading
from vit_core.app.training.visual_tokens import fitted, of_dalle, read_tokens
from vit_core.config import ViTConfig, pair
from vit_core.family import BeitConfig, ViTMAEConfig
from vit_core.formats.reading import read
from vit_core.training import Out, Settings

ROWS = 6  # pictures in a drawing of reconstructions
OF_METHOD = {  # methods, with the flags of each alone
    "simmim": ("mask_unit",),
    "mae": ("decoder_layers", "decoder_width", "norm_pix_loss"),
    "beit": ("tokens", "tokenizer", "vocabulary"),
}
RATIOS = {"simmim": 0.6, "beit": 0.4}  # of a picture that is hidden, in their papers
KMEANS = "kmeans"
BEGUN_AS_BEIT = {  # of a model that begins with a ViT's sizes: what the paper trains
    "use_mask_token": True,
    "use_shared_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
}
HeldOut = tuple[np.ndarray, Drawn, np.ndarray]  # pixels, what is drawn, and what of a patch (B, N) counts as hidden
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pixels (B, C, H, W) and what hides (B, N) to a prediction


@dataclass(frozen=True, kw_only=True)
class PreTraining(Settings):
    """The flags of pre-training."""

    pictures: Annotated[Path, typer.Argument(metavar="FOLDER", exists=True, help="Of pictures, at any depth.")]
    out: Out = Path("pretrained")
    method: Annotated[str, typer.Option(help="simmim, mae or beit: hidden pixels, or visual tokens.")] = "simmim"
    scratch: Annotated[bool, typer.Option(help="Take the checkpoint's configuration alone, not its weights.")] = False
    mask_ratio: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.99, help="Share of a picture to hide.", show_default="0.6, mae 0.75 or an MAE's, beit 0.4"
        ),
    ] = None
    mask_unit: Annotated[
        int | None,
        typer.Option(min=1, help="simmim: side of the squares to hide, in pixels.", show_default="32, or a patch"),
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
    tokens: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="beit: .npz of visual tokens; pictures are not augmented."),
    ] = None
    tokenizer: Annotated[
        str | None, typer.Option(help="beit: kmeans, fitted to the pictures, or folder of DALL-E's encoder.")
    ] = None
    vocabulary: Annotated[
        int | None, typer.Option(min=1, help="kmeans: visual tokens.", show_default="512, fewer of few patches")
    ] = None
    validation: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of pictures to validate on.")] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in OF_METHOD:
            raise ValueError(f"--method must be {' or '.join(OF_METHOD)}, got {self.method}.")
        foreign = [name for method, names in OF_METHOD.items() if method != self.method for name in names]
        if given := [f"--{name.replace('_', '-')}" for name in foreign if getattr(self, name) is not None]:
            raise ValueError(f"{', '.join(given)} is not for --method {self.method}: leave it out.")
        if self.method == "beit" and (self.tokens is None) == (self.tokenizer is None):
            raise ValueError(
                "--method beit predicts visual tokens: pass either --tokens FILE or --tokenizer, kmeans or a folder."
            )
        if self.vocabulary and self.tokenizer != KMEANS:
            raise ValueError(f"--vocabulary is for --tokenizer {KMEANS}: leave it out.")
        if given := [f"--{name}" for name in ("augment", "flip") if self.tokens and getattr(self, name)]:
            raise ValueError(
                f"{' and '.join(given)}: --tokens are of the pictures as they are, which stay. Leave it out."
            )

    @property
    def augments(self) -> bool:
        """As of every training, but not where visual tokens are given."""
        return super().augments and self.tokens is None


class PreTrainer(Training[PreTraining]):
    """A model that completes pictures, and pictures without labels."""

    drawing = "reconstructions.png", "Reconstructions of held-out pictures"

    def __init__(self, settings: PreTraining, backend: str, place: Place) -> None:
        model, loader, self.method, training, held_out = prepare(
            settings, partial(getattr, import_backend(backend)), place
        )
        loss, output = loss_of(self.method), prediction_of(self.method)
        super().__init__(settings, backend, place, model, loader, training, held_out, loss, output)

    def batches(self, epoch: int) -> Iterable[Any]:
        return drawn(self.loader, self.method, self.pictures, epoch)

    def validate(self) -> dict[str, float]:
        batches = held_out_batches(self.loader, self.method, self.held_out)
        return evaluate(self.predict, batches, self.method, self.place.total)

    def draw(self) -> None:
        batch = next(held_out_batches(self.loader, self.method, self.held_out))
        columns = reconstructions(self.predict, batch, self.loader, self.method)
        if self.place.main:
            draw_columns(self.settings.out / self.drawing[0], columns)

    def following(self) -> str:
        pool = " --pool mean" * (self.settings.method == "mae")
        return f"vit finetune FOLDER --model {shlex.quote(str(self.settings.out))}{pool}"


def method_of(settings: PreTraining, config: Any, tokenizer: Tokenizer | None = None) -> Method:
    """The method of a run. Raises ValueError for squares that are not of whole patches or tile no picture."""
    if settings.method == "mae":
        return MAE(config, settings.seed)
    ratio = RATIOS[settings.method] if settings.mask_ratio is None else settings.mask_ratio
    if tokenizer is not None:
        return BEiT(config, settings.seed, ratio, tokenizer)
    size, patch = pair(config.image_size), pair(config.patch_size)
    side = settings.mask_unit
    if side is None:
        fits = all(s % 32 == 0 and 32 % p == 0 for s, p in zip(size, patch, strict=True))
        unit = (32 // patch[0], 32 // patch[1]) if fits else (1, 1)
    elif any(s % side or side % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(
            f"--mask-unit {side} must be a multiple of the patches, {patch[0]}x{patch[1]}, that divides pictures "
            f"of {size[0]}x{size[1]}."
        )
    else:
        unit = (side // patch[0], side // patch[1])
    return SimMIM(config, settings.seed, ratio, unit)


def prepare(
    settings: PreTraining, class_of: Callable[[str], Any], place: Place
) -> tuple[Any, Loader, Method, Pictures, Pictures]:
    """(model, loader, method, pictures to train on, pictures to validate on).

    The model is of the member of the family that its checkpoint is of, an MAE, or a BEiT; `class_of` gives a class by
    its PyTorch name. Raises ValueError for pictures, or a checkpoint, that can't be trained on, and for a folder that
    the run can't have.
    """
    check_libraries()
    check_out(settings)
    pictures = find_pictures(settings.pictures, settings.out)
    training, held_out = pictures.split(settings.validation, settings.seed)
    config, changes, tokenizer = None, dict[str, Any](), None
    if settings.method == "mae":
        config, changes = of_mae(settings)
        architecture = "ViTMAEForPreTraining"
    elif settings.method == "beit":
        beit = of_beit(settings)
        tokenizer = tokenizer_of(settings, beit, pictures, training, place)
        config, changes = (beit if settings.scratch else None), {"use_mask_token": True}
        if settings.scratch:
            changes["vocab_size"] = tokenizer.vocab_size
        architecture = "BeitForMaskedImageModeling"
    else:
        architecture, changes = architecture_of(settings, "ForMaskedImageModeling"), of_simmim(settings)
    model = open_model(settings, class_of(architecture), place.rank, settings.scratch, config, **changes)
    loader = open_loader(settings, model.config, place.rank, place.world)
    loader.steps(training)
    return model, loader, method_of(settings, loader.config, tokenizer), training, held_out


def of_simmim(settings: PreTraining) -> dict[str, Any]:
    """What a checkpoint without a decoder has one drawn of: patches, whatever stride its configuration states."""
    with reading("--model", settings.model):
        stored = read(settings.model, head="fresh")
    if stored.config is None or any(name.startswith("decoder.") for name in stored.tensors):
        return {}
    return {"encoder_stride": stored.config.patch_size}


def of_mae(settings: PreTraining) -> tuple[ViTConfig | None, dict[str, Any]]:
    """The configuration of an MAE that begins with a ViT's, and what the flags say of that or of a checkpoint's.

    Raises ValueError for the weights of a ViT: an MAE has a decoder, and positions that are not learnt.
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
        raise ValueError(
            f"--model {settings.model} is no MAE's, whose decoder --method mae trains: pass --model with an MAE's, or "
            "--scratch to begin anew with the sizes of this one."
        )
    taken = {name: getattr(stored, name) for name in ViTMAEConfig.fields() if hasattr(stored, name)}
    return ViTMAEConfig(**{"norm_pix_loss": True, **taken}), changes


def of_beit(settings: PreTraining) -> BeitConfig:
    """The configuration of a checkpoint's BEiT, or of one with a ViT's sizes, for pictures of `--image-size`.

    Raises ValueError for the weights of another member.
    """
    with reading("--model", settings.model):
        stored = read(settings.model, head="drop").config
    sizes = {} if settings.image_size is None else {"image_size": settings.image_size}
    if isinstance(stored, BeitConfig):
        return stored.copy(**sizes)
    if not settings.scratch:
        raise ValueError(
            f"--model {settings.model} is no BEiT's, which --method beit trains: pass --scratch to take its sizes "
            "alone."
        )
    taken = {name: getattr(stored, name) for name in BeitConfig.fields() if hasattr(stored, name)}
    return BeitConfig(**{**taken, **BEGUN_AS_BEIT, **sizes})


def tokenizer_of(
    settings: PreTraining, config: BeitConfig, pictures: Pictures, training: Pictures, place: Place
) -> Tokenizer:
    """What says the visual tokens of a run.

    Raises ValueError for what says none, and for another number of tokens than the checkpoint's.
    """
    stated = None if settings.scratch else config.vocab_size
    found: Tokenizer
    if settings.tokens is not None:
        flag = f"--tokens {settings.tokens}"
        found = read_tokens(settings.tokens, settings.pictures, pictures.paths, config.num_patches, stated)
    else:
        flag = f"--tokenizer {settings.tokenizer}"
        loader = open_loader(settings, config, place.rank, place.world)
        if settings.tokenizer == KMEANS:
            found = fitted(settings, loader, training, place.main, place.total)
        else:
            found = of_dalle(str(settings.tokenizer), loader)
    if stated is not None and found.vocab_size != stated:
        raise ValueError(
            f"{flag} has {found.vocab_size} visual tokens, and --model {settings.model} tells {stated}: pass a "
            "checkpoint of as many, or --scratch."
        )
    return found


def drawn(loader: Loader, method: Method, pictures: Pictures, epoch: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Pixels of each part of an epoch, and what the method draws for them."""
    for pixels, numbers in loader.pixels(pictures, epoch):
        yield pixels, *method(numbers, epoch, pixels, pictures[numbers].paths)


def held_out_batches(loader: Loader, method: Method, pictures: Pictures) -> Iterator[HeldOut]:
    """This process's share of held-out pictures; nothing of a picture that fills a batch up counts as hidden."""
    numbered = Pictures(pictures.paths, np.arange(len(pictures.paths)), pictures.classes)
    for pixels, labels in loader.validation(numbered):
        numbers = np.maximum(labels, 0)
        found = method(numbers, HELD_OUT, pixels, pictures[numbers].paths)
        yield pixels, found, method.hidden(*found) & (labels != PADDING)[:, None]


def evaluate(
    predict: Predict,
    batches: Iterator[HeldOut],
    method: Method,
    total: Callable[[np.ndarray], np.ndarray] = lambda sums: sums,
) -> dict[str, float]:
    """The mean error of hidden patches; `total` adds up the sums of all processes."""
    sums = np.zeros(2)  # error, patches
    for pixels, found, hidden in batches:
        errors = method.errors(predict(pixels, found[0]), pixels, *found)
        sums += errors[hidden].sum(), hidden.sum()
    error, count = total(sums)
    return {"val_loss": float(error / count)}


def reconstructions(predict: Predict, batch: HeldOut, loader: Loader, method: Method) -> dict[str, list[np.ndarray]]:
    """Pictures (H, W, 3) as they are, as the model saw them, and as it completed them, by title."""
    pixels, found, hidden = batch
    grid = hidden.reshape(-1, 1, *loader.config.grid)
    where = np.kron(grid, np.ones((1, 1, *pair(loader.config.patch_size)), bool))  # (B, 1, H, W)
    predicted = method.picture(predict(pixels, found[0]), pixels, *found)
    pixels = seen(pixels, loader.config)
    predicted = np.where(where, predicted, pixels)
    columns = {"input": pixels, "masked": np.where(where, np.nan, pixels), "predicted": predicted}
    shown = range(min(ROWS, int(hidden.any(1).sum())))
    return {name: [_picture(images[i], loader) for i in shown] for name, images in columns.items()}


def _picture(pixels: np.ndarray, loader: Loader) -> np.ndarray:
    """Pixels (C, H, W) as they were before they were normalised, (H, W, 3), grey where there are none.

    Of four channels the first three are shown, of one that is all three.
    """
    image = colours(pixels, loader.processor)[:3]
    image = np.where(np.isnan(image), 0.5, image.clip(0, 1)).transpose(1, 2, 0)
    return np.broadcast_to(image, (*image.shape[:2], 3))
