"""The quantisers of each framework find every linear layer of the digits model; nothing is saved without its scale."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_readme import run_blocks

from vit_core.assets import DIGITS
from vit_core.pictures.processing import ViTImageProcessor

DEPTH = 2  # of the five layers of the digits model
LAYERS = 6 * DEPTH + 1  # the linear ones: six in each, and the head
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


@cache
def pixels() -> np.ndarray:
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    return np.asarray(processor(sorted((DIGITS / "pictures").glob("*.png")), return_tensors="np").pixel_values)


def assert_near(found: Any, expected: Any, bound: float) -> None:
    """Logits that differ, by less than a part of the largest, and have the same classes."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert 0 < np.abs(found - expected).max() < bound * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
def test_torchao(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torchao.quantization")
    vit_torch = pytest.importorskip("vit_torch")
    model, x = (
        vit_torch.ViTForImageClassification.from_pretrained(DIGITS, num_hidden_layers=DEPTH),
        torch.from_numpy(pixels()),
    )
    with torch.no_grad():
        expected = model(x).logits
        quantization.quantize_(model, getattr(quantization, name)())
        found = model(x).logits
        assert_near(found, expected, 0.02)
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (x,), dynamic_shapes={"pixel_values": {0: batch}})
        assert torch.equal(program.module()(x).logits, found)
    quantised = [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) and "torchao" in type(m.weight).__module__
    ]
    assert len(quantised) == LAYERS
    with pytest.raises(ValueError, match=r"query\.weight is Int8Tensor, of a quantised layer"):
        model.save_pretrained(tmp_path / "no")


@pytest.mark.parametrize(("mode", "bound"), [("int8", 0.02), ("int4", 0.1), ("float8", 0.05)])
def test_keras(mode: str, bound: float, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    vit_tf = pytest.importorskip("vit_tf")
    model = vit_tf.TFViTForImageClassification.from_pretrained(DIGITS, num_hidden_layers=DEPTH)
    expected = model(pixels()).logits
    model.quantize(mode)
    found = model(pixels()).logits
    assert_near(found, expected, bound)
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    assert [layer.quantization_mode for layer in layers] == [mode] * LAYERS
    model.save(tmp_path / "vit.keras")
    again = keras.saving.load_model(tmp_path / "vit.keras")
    np.testing.assert_array_equal(again(pixels()).logits, found)
    with pytest.raises(ValueError, match=r"of layers that were quantised or added: \S*query/\S*scale"):
        model.save_pretrained(tmp_path / "no")


def test_keras_by_dtype_policies(tmp_path: Path) -> None:
    """Layers that are made quantised, by the policies of their paths, are so in clones and files too."""
    keras = pytest.importorskip("keras")
    vit_tf = pytest.importorskip("vit_tf")
    config = vit_tf.ViTConfig.from_pretrained(DIGITS, num_hidden_layers=1)
    policies = keras.dtype_policies.DTypePolicyMap("float32")
    for path in ("vit/classifier", "vit/vit/encoder/layer_._0/output/dense"):
        policies[path] = keras.dtype_policies.get("float8_from_float32")
    model = vit_tf.TFViTForImageClassification(config, dtype=policies, name="vit")
    model.save(tmp_path / "vit.keras")
    others = [keras.models.clone_model(model), keras.models.load_model(tmp_path / "vit.keras")]
    for each in (model, *others):
        modes = [layer.quantization_mode for layer in each._flatten_layers() if isinstance(layer, keras.layers.Dense)]
        assert modes.count("float8") == 2 and modes.count(None) == 5
        assert each.get_config() == model.get_config()


def test_keras_does_not_calibrate_on_pictures() -> None:
    keras = pytest.importorskip("keras")
    vit_tf = pytest.importorskip("vit_tf")
    config = keras.quantizers.GPTQConfig(dataset=["no text"], tokenizer=str.split)
    with pytest.raises(ValueError, match=r"gptq is calibrated by Keras on tokens of texts.*use int8, int4 or float8"):
        vit_tf.TFViTForImageClassification.from_pretrained(DIGITS, num_hidden_layers=DEPTH).quantize(
            "gptq", config=config
        )


@pytest.mark.parametrize("activations", [False, True])
def test_qwix(activations: bool) -> None:
    jax = pytest.importorskip("jax")
    qwix = pytest.importorskip("qwix")
    vit_flax = pytest.importorskip("vit_flax")
    model, x = vit_flax.FlaxViTForImageClassification.from_pretrained(DIGITS, num_hidden_layers=DEPTH), pixels()
    expected, int8 = model(x).logits, jax.numpy.int8
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=int8, act_qtype=int8 if activations else None)
    quantised = qwix.quantize_model(model.module, qwix.PtqProvider([rule]))
    shapes = jax.eval_shape(quantised.init, jax.random.key(0), x)["params"]
    params = qwix.quantize_params(model.params, shapes)
    assert sum(leaf.dtype == int8 for leaf in jax.tree.leaves(params)) == LAYERS
    assert_near(quantised.apply({"params": params}, x).logits, expected, 0.02)
    if activations:  # in training the same happens to plain parameters
        trained = qwix.quantize_model(model.module, qwix.QtProvider([rule]))
        assert_near(trained.apply({"params": model.params}, x).logits, expected, 0.02)
    with pytest.raises(ValueError, match=r"the tree of the model:\n  classifier/kernel: WithAux, expected \(64, 10\)"):
        model.save_pretrained("never-written", params=params)


def test_the_guide(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for name in ("torchao", "vit_torch", "vit_tf", "qwix", "vit_flax"):
        pytest.importorskip(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        printed = run_blocks("docs/quantize.md", tmp_path, monkeypatch, capsys)
    assert [line for line in printed if ": " in line] == ["PyTorch: 2", "Keras: 2", "JAX: 2", "JAX with adapters: 20 2"]
