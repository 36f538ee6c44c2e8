"""The documentation's examples run with only the import line, and offline the checkpoint's name, changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_digits import DIGITS

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="torch is not installed")


@pytest.fixture
def image() -> Iterator[Image.Image]:
    with Image.open(next(iter(sorted((DIGITS / "pictures").glob("*.png"))))) as opened:
        yield opened


@needs_torch
def test_configuration() -> None:
    from vit_torch import ViTConfig, ViTModel

    configuration = ViTConfig()
    model = ViTModel(configuration)
    configuration = model.config
    assert configuration.hidden_size == 768


@needs_torch
def test_base_model(image: Any) -> None:
    from vit_torch import AutoImageProcessor, ViTModel

    image_processor = AutoImageProcessor.from_pretrained(DIGITS)
    with pytest.warns(UserWarning, match="holds no pooler"):
        model = ViTModel.from_pretrained(DIGITS)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state
    assert list(last_hidden_states.shape) == [1, model.config.num_patches + 1, model.config.hidden_size]


@needs_torch
def test_masked_image_modeling(image: Any) -> None:
    from vit_torch import AutoImageProcessor, ViTForMaskedImageModeling

    image_processor = AutoImageProcessor.from_pretrained(DIGITS)
    with pytest.warns(UserWarning, match=r"newly initialised: .*decoder"):
        model = ViTForMaskedImageModeling.from_pretrained(DIGITS)
    num_patches = (model.config.image_size // model.config.patch_size) ** 2
    pixel_values = image_processor(images=image, return_tensors="pt").pixel_values
    bool_masked_pos = torch.randint(low=0, high=2, size=(1, num_patches)).bool()
    outputs = model(pixel_values, bool_masked_pos=bool_masked_pos)
    loss, reconstructed_pixel_values = outputs.loss, outputs.reconstruction
    assert loss.shape == ()
    assert list(reconstructed_pixel_values.shape) == [1, 3, model.config.image_size, model.config.image_size]


@needs_torch
def test_image_classification(image: Any) -> None:
    from vit_torch import AutoImageProcessor, ViTForImageClassification

    image_processor = AutoImageProcessor.from_pretrained(DIGITS)
    model = ViTForImageClassification.from_pretrained(DIGITS)
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    predicted_label = logits.argmax(-1).item()
    assert model.config.id2label[predicted_label] == Path(image.filename).stem.split("-")[0]


@needs_torch
def test_attention_implementation_and_dtype() -> None:
    from vit_torch import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(DIGITS, attn_implementation="sdpa", dtype=torch.float16)
    assert model.dtype == torch.float16


@needs_torch
def test_pipeline(image: Any) -> None:
    from vit_torch import pipeline

    classifier = pipeline(task="image-classification", model=str(DIGITS), dtype=torch.float16, device="cpu")
    best = classifier(image)[0]
    assert best["label"] == Path(image.filename).stem.split("-")[0]
    assert 0.5 < best["score"] <= 1.0


def test_flax_base_model(image: Any) -> None:
    pytest.importorskip("flax")
    from vit_flax import AutoImageProcessor, FlaxViTModel

    image_processor = AutoImageProcessor.from_pretrained(DIGITS)
    with pytest.warns(UserWarning, match="holds no pooler"):
        model = FlaxViTModel.from_pretrained(DIGITS)
    inputs = image_processor(images=image, return_tensors="np")
    outputs = model(**inputs)
    last_hidden_states = outputs.last_hidden_state
    assert list(last_hidden_states.shape) == [1, model.config.num_patches + 1, model.config.hidden_size]


def test_flax_image_classification(image: Any) -> None:
    jax = pytest.importorskip("jax")
    pytest.importorskip("flax")
    from vit_flax import AutoImageProcessor, FlaxViTForImageClassification

    image_processor = AutoImageProcessor.from_pretrained(DIGITS)
    model = FlaxViTForImageClassification.from_pretrained(DIGITS)
    inputs = image_processor(images=image, return_tensors="np")
    outputs = model(**inputs)
    logits = outputs.logits
    predicted_class_idx = jax.numpy.argmax(logits, axis=-1)
    assert model.config.id2label[predicted_class_idx.item()] == Path(image.filename).stem.split("-")[0]
