"""The image-feature-extraction pipeline: against the model's own numbers, in every form, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from PIL import Image
from tolerances import SAME_FUNCTION_FLOAT64, rounding

from vit_core.app.pipeline import pipeline
from vit_core.assets import DIGITS
from vit_core.pictures.processing import ViTImageProcessor

CKPT = Path(__file__).parent / "golden" / "ckpt"
PICTURES = sorted((DIGITS / "pictures").iterdir())[:5]
TASK = "image-feature-extraction"
torch = pytest.importorskip("torch")
import vit_torch  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture(scope="module")
def digits() -> Any:
    return pipeline(TASK, dtype="float64")


@pytest.fixture(scope="module")
def pixels(digits: Any) -> Any:
    return torch.from_numpy(np.stack([digits.preprocess(path) for path in PICTURES])).double().to(digits.model.device)


def test_the_last_hidden_state_in_every_form(digits: Any, pixels: Any) -> None:
    with torch.no_grad():
        expected = digits.model(pixels).last_hidden_state
    assert type(digits.model).__name__ == "ViTModel"
    lists = digits(PICTURES, batch_size=2)
    assert type(lists[0][0][0][0]) is float
    assert_close(lists, [each.tolist() for each in expected[:, None]], SAME_FUNCTION_FLOAT64)
    tensors = digits(PICTURES, return_tensors=True)
    assert [(each.shape, each.dtype) for each in tensors] == [((1, 37, 64), torch.float64)] * len(PICTURES)
    assert_close(torch.cat(tensors), expected, SAME_FUNCTION_FLOAT64)
    arrays = digits(PICTURES, return_tensors="np")
    assert {each.dtype for each in arrays} == {np.dtype(np.float32)}
    assert_close(np.float64(np.concatenate(arrays)), expected, rounding(digits.model.config))
    assert digits(str(PICTURES[0])) == digits(PICTURES[:1])[0]


def test_tensors_can_be_trained_on(digits: Any) -> None:
    probe = torch.nn.Linear(64, 10, dtype=torch.float64, device=digits.model.device)
    probe(digits(PICTURES[0], features="cls", return_tensors=True)).sum().backward()
    assert probe.weight.grad is not None


@pytest.mark.parametrize("features", [None, "cls", "mean", "patches"])
@pytest.mark.parametrize("layers", [None, 2, [1, -1]])
def test_features_are_the_models(digits: Any, pixels: Any, features: str | None, layers: Any) -> None:
    if features is None and layers is None:
        return  # as above
    with torch.no_grad():
        expected = digits.model.features(pixels, layers=-1 if layers is None else layers, pool=features)
    found = digits(PICTURES, features=features, layers=layers, return_tensors=True, batch_size=2)
    if isinstance(layers, list):
        assert [len(each) for each in found] == [2] * len(PICTURES)
        found = tuple(torch.cat(each) for each in zip(*found, strict=True))
    else:
        found = torch.cat(found)
    assert_close(found, expected, SAME_FUNCTION_FLOAT64)
    lists = digits(PICTURES[0], features=features, layers=layers)
    first = tuple(each[:1].tolist() for each in expected) if isinstance(layers, list) else expected[:1].tolist()
    assert_close(lists, list(first), SAME_FUNCTION_FLOAT64)


def test_the_poolers_output() -> None:
    with pytest.warns(UserWarning, match=r"no preprocessor_config\.json"):
        extract = vit_torch.pipeline(TASK, model=CKPT / "base" / "pt_safetensors", dtype="float64", pool=True)
    pixels = torch.from_numpy(extract.preprocess(PICTURES[0]))[None].double().to(extract.model.device)
    with torch.no_grad():
        expected = extract.model(pixels)
    assert_close(extract(PICTURES[0]), expected.pooler_output.tolist(), SAME_FUNCTION_FLOAT64)
    assert_close(extract(PICTURES[0], pool=False), expected.last_hidden_state.tolist(), SAME_FUNCTION_FLOAT64)


def test_a_model_that_is_loaded_head_and_all() -> None:
    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS, dtype="float64")
    extract = vit_torch.pipeline(TASK, model=model, image_processor=DIGITS)
    with pytest.raises(
        ValueError, match=r"^ViTForImageClassification gives no last_hidden_state, but logits: ask for "
    ):
        extract(PICTURES[0])
    assert_close(
        extract(PICTURES[0], features="mean"), pipeline(TASK, dtype="float64", features="mean")(PICTURES[0]),
        SAME_FUNCTION_FLOAT64,
    )  # fmt: skip


def test_pictures_of_any_size_for_a_model_that_takes_them(tmp_path: Path) -> None:
    """DINOv2 is published for 518 pixels, with a processor for 224."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    model = vit_torch.Dinov2Model(vit_torch.Dinov2Config(**sizes), seed=0)
    model.save_pretrained(tmp_path)
    crop = {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": 14}
    ViTImageProcessor(**crop).save_pretrained(tmp_path)
    extract = pipeline(TASK, model=tmp_path, features="patches", return_tensors="np")
    assert extract(PICTURES[0]).shape == (1, 1, 16)
    pictures = [Image.new("RGB", (14 * width, 28)) for width in (1, 2, 2, 3)]
    free = {"do_resize": False, "do_center_crop": False}
    found = extract(pictures, batch_size=4, image_processor_kwargs=free)
    assert [each.shape for each in found] == [(1, 2 * width, 16) for width in (1, 2, 2, 3)]
    assert extract(pictures[3], pool=True, features=None).shape == (1, 16)


def test_keywords_of_the_image_processor(digits: Any) -> None:
    with pytest.raises(ValueError, match=r"Input image size \(16\*16\) doesn't match model \(24\*24\)"):
        digits(PICTURES[0], image_processor_kwargs={"size": {"height": 16, "width": 16}})
    plain = pipeline(TASK, dtype="float64", image_processor_kwargs={"do_normalize": False})
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    expected = processor(Image.open(PICTURES[0]).convert("RGB"), do_normalize=False, return_tensors="np").pixel_values
    found = plain.preprocess(PICTURES[0], image_processor_kwargs={"do_normalize": False})
    np.testing.assert_array_equal(found, expected[0])
    assert plain(PICTURES[0]) != digits(PICTURES[0])
    assert plain(PICTURES[0], image_processor_kwargs=None) == digits(PICTURES[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "cls"}, r"pool must be True or False, got 'cls': features='cls' is what takes a word\."),
        ({"pool": True}, r'^ViTModel gives no pooler_output, but last_hidden_state: ask for features="cls", "mean" or'),
        (
            {"pool": True, "layers": 1},
            "pool=True is the pooler's output, of the last layer: leave out features and layers",
        ),
        ({"features": "max"}, "pool must be one of cls, mean, patches for a ViTConfig, got 'max'"),
        ({"layers": 6}, "layers must be a number from 0, the embeddings, to 5, the last layer, or from -1"),
        ({"return_tensors": "pt"}, r'return_tensors must be True, False or "np", got \'pt\''),
        ({"image_processor_kwargs": 3}, "image_processor_kwargs must be a dict, got 3"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
    ],
)
def test_what_can_not_be(digits: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        digits(PICTURES[0], **options)


def test_options_of_another_task(digits: Any) -> None:
    with pytest.raises(TypeError, match=r"\['top_k'\] are no options of a call, which are pool, features, layers, "):
        digits(PICTURES[0], top_k=1)
    with pytest.raises(TypeError, match="unexpected keywords: top_k"):
        pipeline(TASK, top_k=1)


def test_features_that_are_not_finite(digits: Any) -> None:
    broken = pipeline(TASK)
    with torch.no_grad():
        broken.model.layernorm.bias[0] = float("nan")
    with pytest.raises(ValueError, match="The model's features are not finite: its weights are damaged, or too large"):
        broken(PICTURES[0], features="mean")


def test_a_picture_that_can_not_be_read_is_an_error_in_its_place(digits: Any) -> None:
    found = list(digits.stream([PICTURES[0], b"nothing", PICTURES[1]], batch_size=3, features="cls"))
    assert isinstance(found[1], ValueError)
    assert found[::2] == digits(PICTURES[:2], features="cls", batch_size=2)


def test_every_framework_gives_the_same(backend: Any) -> None:
    """Tensors are the framework's own; numbers are those of PyTorch in float64."""
    options: dict[str, Any] = {"features": "mean", "layers": [1, -1]}
    extract, exact = pipeline(TASK, backend=backend.name, **options), pipeline(TASK, dtype="float64", **options)
    bound = rounding(exact.model.config)
    found, expected = (each(PICTURES[0]) for each in (extract, exact))
    tensors = extract(PICTURES, return_tensors=True)
    library = {"torch": "torch", "tf": "tensorflow", "flax": "jaxlib"}[backend.name]
    for lists, tensor, wanted in zip(found, tensors[0], expected, strict=True):
        assert type(tensor).__module__.partition(".")[0] == library
        assert_close(lists, wanted, bound)
        assert_close(backend._to_numpy(tensor).tolist(), wanted, bound)
    with pytest.raises(ValueError, match="ViTModel gives no pooler_output, but last_hidden_state: ask for features="):
        extract(PICTURES[0], features=None, layers=None, pool=True)
