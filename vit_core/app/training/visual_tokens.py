"""The visual tokens that a BEiT predicts: stated in a file, of a k-means of patches, or of DALL-E's encoder.

The last are those of the paper. Each is a `masking.Tokenizer`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from vit_core.app.backends import import_dalle
from vit_core.app.training.batches import Loader, colours
from vit_core.app.training.dataset import Pictures
from vit_core.app.training.libraries import library
from vit_core.app.training.masking import patches_of, seen
from vit_core.app.training.opening import reading
from vit_core.app.training.run import begun
from vit_core.config import ViTConfig
from vit_core.files.disk import write_atomically
from vit_core.pictures.processing import ViTImageProcessor

CODEBOOK = "codebook.npz"
VOCABULARY = 512  # visual tokens of a k-means, where there are enough patches
EACH = 16  # patches for each of them at least, by default
SAMPLE = 2**17  # patches at most that a k-means is fitted to


@dataclass(frozen=True)
class StatedTokens:
    """Visual tokens that a file states, by the picture's."""

    vocab_size: int
    tokens: Mapping[Path, np.ndarray]  # (N,) each

    def __call__(self, pixels: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
        return np.stack([self.tokens[path] for path in paths])

    def patches(self, tokens: np.ndarray) -> None:
        return None


def read_tokens(
    source: Path, folder: Path, paths: Sequence[Path], patches: int, vocab_size: int | None
) -> StatedTokens:
    """The visual tokens of pictures in a folder, of so many patches each.

    The file is an .npz of `files` (n,), relative to the folder, `tokens` (n, patches), integers, and `vocab_size`, how
    many tokens there are, which may be left out: then it is the argument, or one more than the highest token. Raises
    ValueError for a file of another kind, and for one that has not every picture.
    """
    try:
        with source.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
        TokenError,
    ) as error:
        raise ValueError(f"--tokens {source} is no .npz of plain arrays: {error}") from error
    if missing := sorted({"files", "tokens"} - arrays.keys()):
        raise ValueError(f"--tokens {source} has no array {' and no '.join(missing)}.")
    files, tokens = arrays["files"], arrays["tokens"]
    if files.dtype.kind != "U" or tokens.dtype.kind not in "iu" or tokens.shape != (*files.shape[:1], patches):
        raise ValueError(
            f"--tokens {source} must have files (n,) of text and tokens (n, {patches}) of integers, one for each patch "
            f"of the model: got {files.shape} of {files.dtype} and {tokens.shape} of {tokens.dtype}."
        )
    highest = int(tokens.max(initial=0))
    count = int(arrays["vocab_size"]) if "vocab_size" in arrays else vocab_size or highest + 1
    if tokens.min(initial=0) < 0 or highest >= count:
        raise ValueError(f"--tokens {source} has tokens from {tokens.min()} to {highest}, expected 0 to {count - 1}.")
    known = dict(zip((folder / name for name in files.tolist()), tokens, strict=True))
    if unknown := [path for path in paths if path not in known]:
        raise ValueError(
            f"--tokens {source} has none for {len(unknown)} of {len(paths)} pictures, the first is "
            f"{unknown[0].relative_to(folder)}."
        )
    return StatedTokens(count, known)


@dataclass(frozen=True)
class KMeans:
    """The nearest of some patches is the visual token of a patch."""

    config: ViTConfig
    centres: np.ndarray  # (K, P Q C)

    @property
    def vocab_size(self) -> int:
        return len(self.centres)

    def __call__(self, pixels: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
        products = patches_of(pixels, self.config) @ self.centres.T
        nearest: np.ndarray = (np.square(self.centres).sum(1) - 2 * products).argmin(2)
        return nearest

    def patches(self, tokens: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = self.centres[tokens]
        return drawn


def fitted(
    settings: Any, loader: Loader, pictures: Pictures, main: bool, total: Callable[[np.ndarray], np.ndarray]
) -> KMeans:
    """The k-means of a run, from its folder where that has been begun, else fitted to patches of its pictures.

    Every process fits one, and all take the one of the first, which writes it: `total` adds up what they have. Raises
    ValueError for more tokens than patches.
    """
    path = settings.out / CODEBOOK
    if begun(settings):
        with np.load(path, allow_pickle=False) as archive:
            centres = archive["centres"]
    else:
        centres = _fit(settings, loader, pictures, main)
    centres = total(centres.astype(np.float64) if main else np.zeros(centres.shape)).astype(np.float32)
    if main:
        settings.out.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        np.savez(content, centres=centres)
        write_atomically(path, content.getvalue())
    return KMeans(loader.config, centres)


def _fit(settings: Any, loader: Loader, pictures: Pictures, main: bool) -> np.ndarray:
    """The centres (K, P Q C) of a sample of patches."""
    patches = loader.config.num_patches
    count = len(pictures.paths) * patches
    vocabulary = settings.vocabulary or max(min(VOCABULARY, count // EACH), 1)
    if vocabulary > count:
        raise ValueError(
            f"--vocabulary {vocabulary} is more than the {count} patches of {len(pictures.paths)} pictures to train on."
        )
    order = np.random.default_rng(settings.seed).permutation(len(pictures.paths))
    chosen = pictures[order[: -(-max(SAMPLE, vocabulary) // patches)]]
    if main:
        print(f"Fitting {vocabulary} visual tokens to the patches of {len(chosen.paths)} pictures.", flush=True)
    pixels = np.concatenate([part for part, _ in loader.whole(chosen)])
    sample = patches_of(pixels, loader.config)
    kmeans = library("sklearn.cluster").MiniBatchKMeans(vocabulary, n_init=1, random_state=settings.seed)
    found = kmeans.fit(sample.reshape(-1, sample.shape[2]))
    centres: np.ndarray = found.cluster_centers_
    return centres


@dataclass(frozen=True)
class DallE:
    """The tokens of DALL-E's encoder, which sees the pixels of the model, so many that a patch is a token."""

    encoder: Any
    config: ViTConfig
    processor: ViTImageProcessor

    @property
    def vocab_size(self) -> int:
        return int(self.encoder.vocab_size)

    def __call__(self, pixels: np.ndarray, paths: Sequence[Path]) -> np.ndarray:
        tokens: np.ndarray = self.encoder(colours(seen(pixels, self.config), self.processor), self.config.grid)
        return tokens

    def patches(self, tokens: np.ndarray) -> None:
        return None


def of_dalle(folder: str, loader: Loader) -> DallE:
    """DALL-E's encoder in a folder. Raises ValueError for one that does not fit, and without PyTorch."""
    try:
        dalle = import_dalle()
    except ImportError as error:
        raise ValueError(
            f"--tokenizer {folder} is computed with PyTorch: {error}, or pass --tokens, computed elsewhere."
        ) from error
    with reading("--tokenizer", folder):
        encoder = dalle.Encoder(Path(folder))
    if encoder.channels != loader.config.num_channels:
        raise ValueError(
            f"--tokenizer {folder} takes {encoder.channels} channels, and the model {loader.config.num_channels}."
        )
    return DallE(encoder, loader.config, loader.processor)
