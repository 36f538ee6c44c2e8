"""An image processor as a Keras layer and as a PyTorch module: its pixels to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_core.assets import DIGITS
from vit_core.pictures.processing import BitImageProcessor, ViTImageProcessor

PROCESSORS = [
    ViTImageProcessor(size=(40, 56), resample=Image.Resampling.BICUBIC, image_mean=[0.4, 0.5, 0.6]),
    BitImageProcessor(size=72, crop_size=(64, 72)),
    ViTImageProcessor(size=(40, 56), resample=Image.Resampling.NEAREST, backend="torchvision"),
    BitImageProcessor(size=71, crop_size=(64, 72), backend="torchvision"),
]
WRONG = ViTImageProcessor(size={"shortest_edge": 32})
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 90, 70, 3), np.uint8)


@pytest.fixture(params=PROCESSORS, ids=lambda each: f"{type(each).__name__}-{each.backend}")
def processor(request: pytest.FixtureRequest) -> Any:
    return request.param


def expected(processor: Any, pictures: np.ndarray) -> Any:
    return processor(list(pictures), return_tensors="np").pixel_values


def test_a_keras_layer(processor: Any, tmp_path: Path) -> None:
    """Of integers and of floats, in a data pipeline, and in a model that is saved."""
    tf, keras = pytest.importorskip("tensorflow"), pytest.importorskip("keras")
    layer = processor.as_keras_layer()
    for height in (90, 31):
        pictures = PICTURES[:, :height]
        for given in (pictures, pictures.astype(np.float32) + 0.3):
            np.testing.assert_array_equal(layer(given), expected(processor, pictures))
    last = processor.as_keras_layer(data_format="channels_last", name="last")
    (one,) = tf.data.Dataset.from_tensor_slices(PICTURES[:1]).map(layer)
    np.testing.assert_array_equal(one, expected(processor, PICTURES)[0])
    assert layer.compute_output_shape((40, 50, 3)) == one.shape
    with pytest.raises(ValueError, match=r"must have shape \(B, H, W, 3\) or \(H, W, 3\), got \(3, 31, 70\)"):
        layer(pictures[0].transpose(2, 0, 1))
    with pytest.warns(UserWarning, match="from 0 to 1, where 255 is white: multiply them by 255"):
        layer(PICTURES / np.float32(255))
    (found,) = tf.data.Dataset.from_tensor_slices(PICTURES).batch(2).map(last)
    np.testing.assert_array_equal(found, expected(processor, PICTURES).transpose(0, 2, 3, 1))
    inputs = keras.Input((None, None, 3), dtype="uint8")
    keras.Model(inputs, last(inputs)).save(tmp_path / "prepared.keras")
    again = keras.saving.load_model(tmp_path / "prepared.keras")
    np.testing.assert_array_equal(again(PICTURES), found)
    assert again.output_shape == (None, *found.shape[1:])


def test_a_pytorch_module(processor: Any) -> None:
    torch = pytest.importorskip("torch")
    module, pictures = processor.as_torch_module(), torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    assert module.preparation == processor.as_torch_module().preparation
    for height in (90, 31):
        found = module(pictures[:, :, :height])
        np.testing.assert_array_equal(found, expected(processor, PICTURES[:, :height]))
    np.testing.assert_array_equal(module(pictures[0]), expected(processor, PICTURES)[0])
    assert not module.state_dict()
    for wrong in (list(PICTURES), PICTURES, Image.fromarray(PICTURES[0])):
        with pytest.raises(TypeError, match=r"must be a tensor of uint8, got a (list|ndarray|Image): make one"):
            module(wrong)
    with pytest.raises(ValueError, match=r"must have shape \(B, 3, H, W\) or \(3, H, W\), got \(90, 70, 3\)"):
        module(pictures[0].permute(1, 2, 0))
    with pytest.raises(TypeError, match=r"must be uint8, 0 to 255, got torch\.float32: round them"):
        module(pictures.float())


def test_a_compiled_pytorch_module() -> None:
    """Alone, and before what it prepares for, as one graph."""
    torch = pytest.importorskip("torch")
    processor = ViTImageProcessor(size=(8, 12), resample=Image.Resampling.NEAREST, backend="torchvision")
    pictures = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
    compiled = torch.compile(torch.nn.Sequential(processor.as_torch_module()), backend="eager", fullgraph=True)
    np.testing.assert_array_equal(compiled(pictures), expected(processor, PICTURES))


def test_what_makes_no_layer() -> None:
    for framework, make in (("tensorflow", WRONG.as_keras_layer), ("torch", WRONG.as_torch_module)):
        pytest.importorskip(framework)
        with pytest.raises(ValueError, match="makes pixels of many sizes"):
            make()
        with pytest.raises(ValueError, match="mean must have 1 elements if it is an iterable, got 3"):
            getattr(PROCESSORS[0], make.__name__)(num_channels=1)


@pytest.mark.parametrize(("framework", "make"), [("tensorflow", "as_keras_layer"), ("torch", "as_torch_module")])
def test_channels_are_those_that_have_a_mean(framework: str, make: str) -> None:
    pytest.importorskip(framework)
    gray, alike = ({"image_mean": mean, "image_std": mean} for mean in ([0.5], 0.5))
    for statistics, channels in ((gray, 1), (alike, 3)):
        assert getattr(ViTImageProcessor(size=8, **statistics), make)().preparation.channels == channels


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vit_tf.pictures", None)
    with pytest.raises(ImportError, match=r'as_keras_layer needs tensorflow.*pip install "vit-trio\[tf\]"'):
        ViTImageProcessor().as_keras_layer()


def test_folders_of_pictures_are_answered_right() -> None:
    """Keras's own input pipeline, whose pixels are 0 to 255."""
    keras, vit_tf = pytest.importorskip("keras"), pytest.importorskip("vit_tf")
    model = vit_tf.TFViTForImageClassification.from_pretrained(DIGITS, data_format="channels_last")
    layer = vit_tf.ViTImageProcessor.from_pretrained(DIGITS).as_keras_layer(data_format="channels_last")
    folder = DIGITS / "pictures"
    pictures = keras.utils.image_dataset_from_directory(
        folder, labels=None, shuffle=False, image_size=(24, 24), verbose=False
    )
    best = model.predict(pictures.map(layer), verbose=0).logits.argmax(1)
    assert [str(each) for each in best] == [path.name[0] for path in sorted(folder.iterdir())]
