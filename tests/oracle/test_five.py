"""Files that cross between this package, transformers 4.57.6 and transformers 5: the same weights, the same logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import five
import numpy as np
import pytest
import torch
import transformers
from oracle_tolerances import FAMILIES

import vit_torch
from vit_core import ViTConfig

CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 3,
}
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)

READ = """
import json, sys, numpy as np, torch, transformers
assert transformers.__version__.startswith("5.")
model, report = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
with torch.no_grad():
    logits = model.eval()(torch.from_numpy(np.load(sys.argv[2]))).logits
print(json.dumps(logits.tolist()))
"""
WRITE = """
import json, sys, numpy as np, torch, transformers
torch.manual_seed(0)
model = transformers.ViTForImageClassification(transformers.ViTConfig(**json.loads(sys.argv[3])))
for parameter in model.parameters():
    parameter.data.normal_(std=0.3)
model.save_pretrained(sys.argv[1], **json.loads(sys.argv[4]))
with torch.no_grad():
    logits = model.eval()(torch.from_numpy(np.load(sys.argv[2]))).logits
print(json.dumps(logits.tolist()))
"""


def trained_in_torch(folder: Path) -> Any:
    model = vit_torch.ViTForImageClassification(ViTConfig(**CONFIG), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    model(torch.from_numpy(PIXELS), labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)
    return model.eval()(torch.from_numpy(PIXELS)).logits.detach().numpy()


def trained_in_tf(folder: Path) -> Any:
    import keras

    import vit_tf

    model = vit_tf.TFViTForImageClassification(ViTConfig(**CONFIG), seed=0)
    model.compile(keras.optimizers.SGD(0.5))
    model.fit(PIXELS, np.array([0, 2]), verbose=0)
    model.save_pretrained(folder)
    return model(PIXELS).logits.numpy()


def trained_in_flax(folder: Path) -> Any:
    import jax

    import vit_flax

    model = vit_flax.FlaxViTForImageClassification(ViTConfig(**CONFIG), seed=0)
    labels = np.array([0, 2])
    gradients = jax.grad(lambda params: model(PIXELS, params=params, labels=labels).loss)(model.params)
    params = jax.tree.map(lambda p, g: p - 0.5 * g, model.params, gradients)
    model.save_pretrained(folder, params=params)
    return np.asarray(model(PIXELS, params=params).logits)


def assert_close(found: Any, expected: Any) -> None:
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error <= FAMILIES, error


@pytest.mark.parametrize("train", [trained_in_torch, trained_in_tf, trained_in_flax])
def test_a_trained_folder_is_read_by_both(tmp_path: Path, train: Callable[[Path], Any]) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    logits = train(tmp_path / "model")
    assert_close(json.loads(five.run(READ, tmp_path / "model", tmp_path / "pixels.npy")), logits)
    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    with torch.no_grad():
        assert_close(model.eval()(torch.from_numpy(PIXELS)).logits.numpy(), logits)
    fresh = vit_torch.ViTForImageClassification(ViTConfig(**CONFIG), seed=0).eval()
    with torch.no_grad():
        assert np.abs(fresh(torch.from_numpy(PIXELS)).logits.numpy() - logits).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "2KB"}, {"variant": "fp16"}])
def test_what_transformers_5_writes_is_read(tmp_path: Path, save: dict[str, Any]) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    given = (tmp_path / "model", tmp_path / "pixels.npy", json.dumps(CONFIG), json.dumps(save))
    logits = np.array(json.loads(five.run(WRITE, *given)))
    options = {name: save[name] for name in ("variant",) if name in save}
    for prefix, package in (("", "vit_torch"), ("TF", "vit_tf"), ("Flax", "vit_flax")):
        cls = getattr(__import__(package), f"{prefix}ViTForImageClassification")
        model, report = cls.from_pretrained(tmp_path / "model", output_loading_info=True, **options)
        assert not (report.missing_keys or report.unexpected_keys or report.mismatched_keys)
        found = model(torch.from_numpy(PIXELS) if package == "vit_torch" else PIXELS).logits
        assert_close(found.detach().numpy() if package == "vit_torch" else found, logits)
