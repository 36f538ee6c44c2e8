"""BEiT's pre-training in examples/: what is hidden, and where visual tokens come from."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from closeness import assert_close
from conftest import GOLDEN
from tolerances import SAME_FUNCTION_FLOAT64
from trainings import need, write_digits

from vit_core.assets import DIGITS
from vit_core.family import BeitConfig
from vit_core.pictures.processing import ViTImageProcessor

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = {**SIZES, "image_size": (24, 32), "patch_size": 4, "vocab_size": 9, "use_mask_token": True}


class Numbered:
    """A tokenizer that gives a patch its number, modulo the vocabulary."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def __call__(self, pixels: np.ndarray, paths: Any) -> np.ndarray:
        patches = pixels.shape[2] * pixels.shape[3] // 16
        return np.tile(np.arange(patches) % self.vocab_size, (len(pixels), 1))

    def patches(self, tokens: np.ndarray) -> None:
        return None


class Place:
    """A process that is alone."""

    rank, world, main = 0, 1, True

    def total(self, sums: np.ndarray) -> np.ndarray:
        return sums


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("torch")
    return write_digits(tmp_path_factory.mktemp("digits"), per_class=4)


def prepared(pictures: Path, out: Path, **flags: Any) -> Any:
    """What stands before the first step of a run: (model, loader, method, pictures to train on, held-out ones)."""
    pretraining = import_module("vit_core.app.training.pretraining")
    settings = pretraining.PreTraining(pictures=pictures, out=out, method="beit", batch_size=8, **flags)
    return pretraining.prepare(settings, partial(getattr, import_module("vit_torch")), Place())


# ---- what is hidden ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "ratio", "count"), [(224, 0.4, 78), (224, 0.383, 75), ((32, 96), 0.4, 5), (64, 0.01, 1)]
)
def test_blocks_are_hidden(image_size: Any, ratio: float, count: int) -> None:
    need("torch")
    config = BeitConfig(image_size=image_size, patch_size=16)
    method = import_module("vit_core.app.training.masking").BEiT(config, 0, ratio, Numbered(5))
    drawn = [method._mask(np.random.default_rng(i)) for i in range(30)]
    masks = np.reshape(drawn, (30, *config.grid))
    assert method.count == count and (masks.sum((1, 2)) == count).all()
    assert len(np.unique(masks, axis=0)) > 5
    if image_size == 224:
        assert (masks[:, 1:] == masks[:, :-1]).mean() > 0.8  # patches and those below; of patches one by one half is
        assert (masks[:, :, 1:] == masks[:, :, :-1]).mean() > 0.8


def test_what_a_beit_hides_and_predicts() -> None:
    """The script's own error is the loss of the model, and what is drawn is what its call takes."""
    need("torch")
    import torch

    masking, vit_torch = import_module("vit_core.app.training.masking"), import_module("vit_torch")
    config = BeitConfig(**SMALL)
    method = masking.BEiT(config, 0, 0.4, Numbered(9))
    model = vit_torch.BeitForMaskedImageModeling(config, seed=0).eval().double()
    pixels, numbers = np.random.default_rng(0).random((3, 3, 24, 32)), np.arange(3)
    masks, labels = drawn = method(numbers, 0, pixels, [])
    assert (masks.shape, labels.shape, labels.dtype) == ((3, 48), (3 * 19,), np.int32)
    for again, array in zip(method(numbers, 0, pixels, []), drawn, strict=True):
        np.testing.assert_array_equal(again, array)
    assert (method(numbers, 1, pixels, [])[0] != masks).any()
    with torch.no_grad():
        tensors = [torch.from_numpy(each).to(model.device) for each in (pixels, *drawn)]
        loss = masking.loss_of(method)(model, *tensors)
        logits = masking.prediction_of(method)(model, *tensors[:2]).cpu().numpy()
    errors = method.errors(logits, pixels, *drawn)
    assert_close(float(errors[masks].mean()), float(loss), SAME_FUNCTION_FLOAT64)
    patches = masking.patches_of(method.picture(logits, pixels, *drawn), config)
    right = logits.argmax(2) == np.arange(48) % 9
    np.testing.assert_array_equal(patches[masks] == np.inf, np.broadcast_to(right[masks][:, None], (57, 48)))


# ---- stated tokens -----------------------------------------------------------------------------------------------


def write_tokens(path: Path, pictures: Path, **changes: Any) -> Path:
    """A file with the tokens 0 to 35 of every picture, its arrays changed, or left out where they are None."""
    files = [str(each.relative_to(pictures)) for each in sorted(pictures.rglob("*.png"))]
    tokens = np.tile(np.arange(36), (len(files), 1))
    arrays = {"files": np.array(files), "tokens": tokens, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_tokens_of_a_file(pictures: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 40, (40, 36))
    source = write_tokens(tmp_path / "tokens.npz", pictures, tokens=tokens, vocab_size=50)
    model, loader, method, training, _ = prepared(pictures, tmp_path, tokens=source, scratch=True)
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.use_shared_relative_position_bias) == (50, 64, True)
    assert (config.use_mask_token, config.layer_scale_init_value) == (True, 0.1)
    pixels, masks, labels = next(import_module("vit_core.app.training.pretraining").drawn(loader, method, training, 0))
    (plain, numbers) = next(loader.pixels(training, 0))
    np.testing.assert_array_equal(pixels, [loader.read(training.paths[i], i) for i in numbers])  # not augmented
    np.testing.assert_array_equal(plain, pixels)
    places = {path: i for i, path in enumerate(sorted(pictures.rglob("*.png")))}
    found = tokens[[places[training.paths[i]] for i in numbers]]
    np.testing.assert_array_equal(labels, found[masks])
    assert prepared(pictures, tmp_path, tokens=write_tokens(source, pictures), scratch=True)[0].config.vocab_size == 36


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": None}, "has no array tokens"),
        ({"files": np.array([None, {}])}, "is no .npz of plain arrays: Object arrays cannot be loaded"),
        (
            {"tokens": np.zeros((40, 36))},
            r"must have .* tokens \(n, 36\) of integers, .*: got \(40,\) of <U.* and \(40, 36",
        ),
        ({"tokens": np.zeros((40, 9), int)}, r"must have .* got .* and \(40, 9\) of int64"),
        ({"vocab_size": 30}, "has tokens from 0 to 35, expected 0 to 29"),
        ({"files": np.array(["a.png"] * 40)}, r"has none for 40 of 40 pictures, the first is 0/.*\.png\."),
    ],
)
def test_tokens_that_do_not_fit(changes: dict[str, Any], words: str, pictures: Path, tmp_path: Path) -> None:
    source = write_tokens(tmp_path / "tokens.npz", pictures, **changes)
    with pytest.raises(ValueError, match=words):
        prepared(pictures, tmp_path, tokens=source, scratch=True)


def test_a_file_that_is_no_archive(pictures: Path, tmp_path: Path) -> None:
    array, archive = BytesIO(), BytesIO()
    np.save(array, np.arange(3))
    with ZipFile(archive, "w") as file:
        file.writestr("tokens.npy", array.getvalue().replace(b"}", b" "))  # a header that never ends
    for content in (b"", b"PK\x03\x04torn", b"\x80\x04.", archive.getvalue()):
        (tmp_path / "tokens.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"is no .npz of plain arrays"):
            prepared(pictures, tmp_path, tokens=tmp_path / "tokens.npz", scratch=True)


# ---- a k-means ---------------------------------------------------------------------------------------------------


def test_tokens_of_a_kmeans(pictures: Path, tmp_path: Path) -> None:
    _, loader, method, training, _ = prepared(pictures, tmp_path, tokenizer="kmeans", vocabulary=20, scratch=True)
    kmeans = method.tokenizer
    np.testing.assert_array_equal(np.load(tmp_path / "codebook.npz")["centres"], kmeans.centres)
    pixels, masks, labels = next(import_module("vit_core.app.training.pretraining").drawn(loader, method, training, 0))
    patches = import_module("vit_core.app.training.masking").patches_of(pixels, loader.config)
    nearest = np.square(patches[:, :, None] - kmeans.centres).sum(3).argmin(2)
    np.testing.assert_array_equal(labels, nearest[masks])
    np.testing.assert_array_equal(kmeans.patches(nearest), kmeans.centres[nearest])
    picture = method.picture(np.eye(20)[nearest], pixels, masks, labels)
    assert np.abs(picture - pixels).mean() < 0.5 * np.abs(pixels - pixels.mean()).mean()


def test_how_many_tokens(pictures: Path, tmp_path: Path) -> None:
    assert prepared(pictures, tmp_path, tokenizer="kmeans", scratch=True)[0].config.vocab_size == 36 * 36 // 16
    with pytest.raises(ValueError, match="--vocabulary 1297 is more than the 1296 patches of 36 pictures"):
        prepared(pictures, tmp_path, tokenizer="kmeans", vocabulary=1297, scratch=True)


def test_a_checkpoint_has_a_vocabulary(pictures: Path, tmp_path: Path) -> None:
    need("torch")
    with pytest.raises(ValueError, match="is no BEiT's, which --method beit trains: pass --scratch"):
        prepared(pictures, tmp_path, tokenizer="kmeans")
    config = BeitConfig(**{**SMALL, "image_size": 24})
    import_module("vit_torch").BeitForMaskedImageModeling(config, seed=0).save_pretrained(tmp_path / "beit")
    ViTImageProcessor.from_pretrained(DIGITS).save_pretrained(tmp_path / "beit")
    flags = {"tokenizer": "kmeans", "model": str(tmp_path / "beit")}
    with pytest.raises(ValueError, match=r"--tokenizer kmeans has 81 visual tokens, and --model .* tells 9:"):
        prepared(pictures, tmp_path, **flags)
    assert prepared(pictures, tmp_path, **flags, scratch=True)[0].config.vocab_size == 81
    assert prepared(pictures, tmp_path, **flags, vocabulary=9, image_size=32)[0].config.grid == (8, 8)


# ---- DALL-E's encoder --------------------------------------------------------------------------------------------


def test_golden_tokens_of_dalle() -> None:
    need("torch")
    golden = np.load(GOLDEN / "dalle" / "tokens.npz")
    encoder = import_module("vit_torch.dalle").Encoder(GOLDEN / "dalle")
    colours = (golden["pictures"] / 255).astype(np.float32)
    np.testing.assert_array_equal(encoder(colours, (3, 4)), golden["tokens"])
    assert len(np.unique(golden["tokens"])) > 5


def test_a_beit_of_dalles_tokens(pictures: Path, tmp_path: Path) -> None:
    model, loader, method, training, _ = prepared(pictures, tmp_path, tokenizer=str(GOLDEN / "dalle"), scratch=True)
    assert model.config.vocab_size == 24
    pixels, masks, labels = next(import_module("vit_core.app.training.pretraining").drawn(loader, method, training, 0))
    assert labels.shape == (8 * 14,) and len(np.unique(labels)) > 1
    wider = np.clip(pixels * 0.5 + 0.5, 0, 1).repeat(2, 2).repeat(2, 3)  # 8 pixels for each patch of 4
    tokens = method.tokenizer.encoder(wider, (6, 6))
    assert (tokens[masks] == labels).mean() > 0.5  # but for how it is enlarged


def test_encoders_that_are_none(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"out": tmp_path / "out", "scratch": True}
    for folder, words in (
        (tmp_path / "none", r"--tokenizer .*none: .*No such file"),
        (DIGITS, "has the model_type vit, expected flava_image_codebook"),
        (tmp_path / "encoder.pkl", "OpenAI's pickled module, which runs code as it is read: pass a folder of"),
        (tmp_path / "openai", "OpenAI's pickled module"),
        (
            tmp_path / "other",
            r"blocks.group_1.group.block_1.res_path.path.conv_1.bias has shape \(1,\), expected \(2,\)",
        ),
    ):
        for name, file, text in (
            ("openai", "encoder.pkl", ""),
            ("other", "config.json", '{"model_type": "flava_image_codebook", "hidden_size": 8, "vocab_size": 24}'),
        ):
            if folder.name == name:
                folder.mkdir()
                (folder / file).write_text(text)
        if folder.name == "other":
            (folder / "model.safetensors").symlink_to(GOLDEN / "dalle" / "model.safetensors")
        with pytest.raises(ValueError, match=words):
            prepared(pictures, tokenizer=str(folder), **flags)
    monkeypatch.delitem(sys.modules, "vit_torch.dalle", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ValueError, match=r'computed with PyTorch: .* pip install "vit-trio\[torch\]", or pass --tokens'
    ):
        prepared(pictures, tokenizer=str(GOLDEN / "dalle"), **flags)
