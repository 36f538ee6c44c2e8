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
from oracle_tolerances import FORMATS

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
options = json.loads(sys.argv[3])
model, report = transformers.AutoModelForImageClassification.from_pretrained(
    sys.argv[1], output_loading_info=True, **options
)
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


TRAIN = """
import json, sys, numpy as np, torch, transformers, vit_torch
from vit_core import ViTConfig, ViTImageProcessor
assert transformers.__version__.startswith("5.")
config = ViTConfig(**json.loads(sys.argv[3]), id2label={0: "a", 1: "b", 2: "c"})
model = vit_torch.ViTForImageClassification(config, seed=0)
pixels = np.load(sys.argv[2])
rows = [{"pixel_values": torch.from_numpy(each), "labels": i % 3} for i, each in enumerate(np.repeat(pixels, 4, 0))]
options = dict(use_cpu=True, remove_unused_columns=False, report_to=[], learning_rate=1e-2, max_steps=4, save_steps=4)
arguments = transformers.TrainingArguments(sys.argv[1], **options, **json.loads(sys.argv[4]))
metrics = lambda p: {"right": float((p.predictions.argmax(-1) == p.label_ids).mean())}
trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics)
before = {name: value.clone() for name, value in model.state_dict().items()}
trainer.train()
assert all(not value.equal(before[name]) for name, value in model.state_dict().items() if name.endswith("weight"))
found = trainer.evaluate()
assert 0 <= found["eval_right"] <= 1 and np.isfinite(found["eval_loss"])
assert trainer.predict(rows).predictions.shape == (8, 3)
processor = ViTImageProcessor(size={"height": 12, "width": 12})
classify = transformers.pipeline("image-classification", model=model, image_processor=processor)
path = str(next(iter(sorted((__import__("vit_core.assets").assets.DIGITS / "pictures").iterdir()))))
ours = vit_torch.pipeline(model=model, image_processor=processor)
for one, other in zip(classify(path, top_k=3), ours(path, top_k=3)):
    assert one["label"] == other["label"] and abs(one["score"] - other["score"]) < 1e-5, (one, other)
print("done")
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
    assert error <= FORMATS, error


@pytest.mark.parametrize("train", [trained_in_torch, trained_in_tf, trained_in_flax])
def test_a_trained_folder_is_read_by_both(tmp_path: Path, train: Callable[[Path], Any]) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    logits = train(tmp_path / "model")
    assert_close(json.loads(five.run(READ, tmp_path / "model", tmp_path / "pixels.npy", "{}")), logits)
    model, report = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])
    with torch.no_grad():
        assert_close(model.eval()(torch.from_numpy(PIXELS)).logits.numpy(), logits)
    fresh = vit_torch.ViTForImageClassification(ViTConfig(**CONFIG), seed=0).eval()
    with torch.no_grad():
        assert np.abs(fresh(torch.from_numpy(PIXELS)).logits.numpy() - logits).max() > 0.01 * np.abs(logits).max()


@pytest.mark.parametrize("save", [{}, {"max_shard_size": "2KB"}, {"variant": "fp16"}, {"safe_serialization": False}])
def test_what_is_written_is_read_by_transformers_5(tmp_path: Path, save: dict[str, Any]) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    model = vit_torch.ViTForImageClassification(ViTConfig(**CONFIG, initializer_range=0.3), seed=0).eval()
    model.save_pretrained(tmp_path / "model", **save)
    options = json.dumps({name: save[name] for name in ("variant",) if name in save})
    found = json.loads(five.run(READ, tmp_path / "model", tmp_path / "pixels.npy", options))
    assert_close(found, model(torch.from_numpy(PIXELS)).logits.detach().numpy())


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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_checkpointing": True},
        {"label_smoothing_factor": 0.1, "bf16": True},
        {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 2},
    ],
    ids=str,
)
def test_the_trainer_and_the_pipeline_of_transformers_5(tmp_path: Path, options: dict[str, Any]) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    config = json.dumps({name: value for name, value in CONFIG.items() if name != "num_labels"})
    said = five.run(TRAIN, tmp_path / "out", tmp_path / "pixels.npy", config, json.dumps(options))
    assert said.splitlines()[-1] == "done"
