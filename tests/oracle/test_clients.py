"""Libraries that are given a model of ours find in it what they find in transformers': outputs, modules, exports."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from captum.attr import LayerActivation, LayerGradientXActivation, LayerIntegratedGradients
from hypothesis import given
from oracle import MODELS, architectures, assert_close, pair, patch_mask, pixels
from oracle_tolerances import ONNX_FLOAT32, OUTPUT_FLOAT32
from oracle_tolerances import OUTPUT_FLOAT64 as SAME
from torch import nn

import vit_torch
from vit_core.assets import DIGITS

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "encoder_stride": 8,
    "num_labels": 5,
}


# ---- modules and hooks -------------------------------------------------------------------------------------------


def seen(model: Any, name: str, call: dict[str, Any]) -> Any:
    """What a module of a model returns, seen by a hook: a tensor, or the tensors of a tuple or dict."""
    found: list[Any] = []
    handle = model.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output))
    model(**call)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("cls", MODELS)
@given(architecture=architectures(square=True, whole=True))
def test_every_module_by_its_name(cls: str, architecture: dict[str, Any]) -> None:
    theirs, ours = pair(cls, architecture, attention="sdpa", dtype=torch.float64)
    call = {"pixel_values": pixels(ours)}
    if cls == "ViTForMaskedImageModeling":
        call["bool_masked_pos"] = patch_mask(ours)
    names = {name for name, _ in theirs.named_modules()} - {"", "vit.encoder.layer", "encoder.layer"}  # lists
    assert names <= {name for name, _ in ours.named_modules()}
    for name in sorted(names):
        expected, actual = seen(theirs, name, call), seen(ours, name, call)
        if not isinstance(expected, torch.Tensor):
            assert isinstance(actual, dict) == isinstance(expected, dict), name
            values = [out.to_tuple() if isinstance(out, dict) else out for out in (expected, actual)]
            expected, actual = ([value for value in each if value is not None] for each in values)
            assert len(actual) == len(expected), name
        pairs = [(actual, expected)] if isinstance(expected, torch.Tensor) else zip(actual, expected, strict=True)
        for a, b in pairs:
            assert_close(a, b, SAME, name, least=1.0)


METHODS = ("from_pretrained", "save_pretrained", "push_to_hub", "from_dict", "from_json_file", "to_json_file",
           "preprocess", "forward", "floating_point_ops", "set_attn_implementation", "update")  # fmt: skip


@pytest.mark.parametrize("name", ["ViTConfig", "ViTImageProcessor", *MODELS])
def test_arguments_that_must_be_given_have_the_same_names(name: str) -> None:
    """Libraries such as MLflow pass them by keyword."""
    theirs, ours = getattr(transformers, name), getattr(vit_torch, name)
    for method in [each for each in METHODS if hasattr(theirs, each)]:
        given = inspect.signature(getattr(theirs, method)).parameters.values()
        wanted = {each.name for each in given if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD}
        assert wanted <= {*inspect.signature(getattr(ours, method)).parameters}, method


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


TARGETS = ("vit.encoder.layer.1", "vit.encoder.layer.2", "vit.encoder.layer.2.attention", "vit.encoder.layer.1.output",
           "vit.encoder.layer.2.output", "vit.encoder.layer.2.layernorm_after", "vit.layernorm")  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", [LayerActivation, LayerGradientXActivation, LayerIntegratedGradients])
def test_captum(method: Any, target: str) -> None:
    models = pair("ViTForImageClassification", SMALL, attention="sdpa", dtype=torch.float64)
    x = pixels(models[0])
    options = {} if method is LayerActivation else {"target": 2}
    steps = {"n_steps": 5} if method is LayerIntegratedGradients else {}
    theirs, ours = (method(Logits(m), m.get_submodule(target)).attribute(x, **options, **steps) for m in models)
    assert_close(ours, theirs, SAME, target, least=1.0)


def grad_cam(model: Any, target: str, x: torch.Tensor, label: int) -> np.ndarray:
    """Selvaraju et al. 2017, equations 1 and 2, over the patches, as pytorch-grad-cam computes it for a ViT."""
    found: dict[str, torch.Tensor] = {}

    def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
        found["activation"] = output
        output.register_hook(lambda gradient: found.update(gradient=gradient))

    handle = model.get_submodule(target).register_forward_hook(keep)
    model(x).logits[:, label].sum().backward()
    handle.remove()
    weights = found["gradient"][:, 1:].mean(1, keepdim=True)  # (B, 1, D)
    cam = (weights * found["activation"][:, 1:]).sum(-1).relu()  # (B, N)
    return (cam / cam.amax(1, keepdim=True).clamp(min=1e-12)).detach().numpy()


@pytest.mark.parametrize("target", TARGETS)
def test_grad_cam(target: str) -> None:
    theirs, ours = pair("ViTForImageClassification", SMALL, attention="sdpa", dtype=torch.float64)
    x = pixels(ours)
    expected, actual = (grad_cam(model, target, x, 2) for model in (theirs, ours))
    assert actual.shape == (2, 16)
    np.testing.assert_allclose(actual, expected, atol=1e-8)  # a gradient may be next to none, and is scaled to 1


# ---- training ----------------------------------------------------------------------------------------------------


def weighted(model: Any, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
    """The loss of class weights that many scripts have."""
    labels = inputs.pop("labels")
    outputs = model(**inputs)
    loss = nn.functional.cross_entropy(outputs.logits, labels, weight=torch.arange(1.0, 6.0))
    return (loss, outputs) if return_outputs else loss


def of_logits(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels, label_smoothing=0.3)


@pytest.mark.filterwarnings("ignore")  # of Trainer's and its environment's
@pytest.mark.parametrize("kind", ["plain", "label_smoothing_factor", "compute_loss", "compute_loss_func"])
def test_trainer(kind: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    x, found = pixels(pair("ViTForImageClassification", SMALL)[1], 8), []
    data = [{"pixel_values": image, "labels": i % 5} for i, image in enumerate(x)]
    for model in pair("ViTForImageClassification", SMALL, attention="sdpa"):
        arguments = TrainingArguments(
            str(tmp_path / type(model).__module__),
            per_device_train_batch_size=4,
            max_steps=3,
            learning_rate=0.01,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            eval_strategy="steps",
            eval_steps=3,
            label_smoothing_factor=0.2 if kind == "label_smoothing_factor" else 0.0,
        )
        trainer = Trainer(
            model,
            arguments,
            train_dataset=data,
            eval_dataset=data,
            compute_loss_func=of_logits if kind == "compute_loss_func" else None,
            compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(1) == p.label_ids).mean()},
        )
        if kind == "compute_loss":
            trainer.compute_loss = weighted
        trainer.train()
        predicted = trainer.predict(data)
        assert predicted.predictions.shape == (8, 5)
        found.append((predicted.predictions, predicted.metrics["test_loss"], predicted.metrics["test_accuracy"]))
    (theirs, loss, accuracy), (ours, own_loss, own_accuracy) = found
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(theirs).max())  # three steps of Adam apart
    np.testing.assert_allclose(own_loss, loss, rtol=1e-3)
    assert own_accuracy == accuracy


def test_accelerate_gives_float32_back() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # a Trainer's, of this process
    models = pair("ViTForImageClassification", SMALL, attention="sdpa")
    x, accelerator = pixels(models[0]), Accelerator(cpu=True, mixed_precision="bf16")
    for model in models:
        output = accelerator.prepare(model)(pixel_values=x, labels=torch.tensor([0, 1]), output_hidden_states=True)
        assert {t.dtype for t in (output.loss, output.logits, *output.hidden_states)} == {torch.float32}
        assert output["logits"] is output.logits


def test_a_model_of_two_takes_ours(tmp_path: Path) -> None:
    """An encoder in one with a decoder, which gives it a configuration of transformers, generates, and is saved."""
    small = {"vocab_size": 20, "n_embd": SMALL["hidden_size"], "n_layer": 1, "n_head": 2, "bos_token_id": 0}
    config = transformers.GPT2Config(**small, eos_token_id=1, pad_token_id=1, add_cross_attention=True)
    decoder, labels, found = transformers.GPT2LMHeadModel(config), torch.tensor([[2, 3], [4, 5]]), []
    for encoder in pair("ViTModel", SMALL, attention="sdpa"):
        model = transformers.VisionEncoderDecoderModel(encoder=encoder, decoder=copy.deepcopy(decoder)).eval()
        model.config.decoder_start_token_id, model.config.pad_token_id = 0, 1
        x = pixels(encoder)
        words = model.generate(x, max_new_tokens=3, do_sample=False)
        found.append((model(pixel_values=x, labels=labels).loss, words.double()))
    model.save_pretrained(tmp_path)  # ours, which they open as theirs
    again = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path)
    assert_close(again(pixel_values=x, labels=labels).loss, found[0][0], OUTPUT_FLOAT32, "loaded again")
    for theirs, ours in zip(*found, strict=True):
        assert_close(ours, theirs, OUTPUT_FLOAT32, "loss and words")


def test_the_pipeline() -> None:
    """transformers' own, with our model and processor, gives what ours gives."""
    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    processor = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)
    pictures = [str(path) for path in sorted((DIGITS / "pictures").iterdir())[:3]]
    theirs = transformers.pipeline("image-classification", model=model, image_processor=processor)
    ours = vit_torch.pipeline(model=model, image_processor=processor)
    for batch_size in (1, 2):
        for one, other in zip(theirs(pictures, batch_size=batch_size), ours(pictures), strict=True):
            assert [each["label"] for each in one] == [each["label"] for each in other]
            assert [each["score"] for each in one] == pytest.approx([each["score"] for each in other], abs=1e-6)


@pytest.mark.parametrize("pool", [False, True])
def test_the_feature_pipeline(pool: bool, tmp_path: Path) -> None:
    """transformers' own, with its model of our weights, gives what ours gives: shapes, nesting and numbers."""
    model = vit_torch.ViTModel(vit_torch.ViTConfig.from_pretrained(DIGITS), add_pooling_layer=pool, seed=0)
    model.save_pretrained(tmp_path)
    processor = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)
    own = transformers.ViTModel.from_pretrained(tmp_path, add_pooling_layer=pool)
    pictures = [str(path) for path in sorted((DIGITS / "pictures").iterdir())[:3]]
    theirs = transformers.pipeline("image-feature-extraction", model=own, image_processor=processor)
    ours = vit_torch.pipeline("image-feature-extraction", model=model, image_processor=processor)
    for options in ({}, {"batch_size": 2}, {"return_tensors": True}):
        for images in (pictures[0], pictures):
            expected, found = (each(images, pool=pool, **options) for each in (theirs, ours))
            assert [type(found), type(found[-1])] == [type(expected), type(expected[-1])]
            np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-5)
    if not pool:  # theirs reads a number of what our model returns, as docs/from-transformers.md says
        of_tuples = vit_torch.ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, return_dict=False)
        given = transformers.pipeline("image-feature-extraction", model=of_tuples, image_processor=processor)
        np.testing.assert_allclose(given(pictures[0]), ours(pictures[0]), rtol=0, atol=1e-5)
    processing = {"image_processor_kwargs": {"do_normalize": False}, "return_tensors": True}
    expected, found = (each(pictures[0], pool=pool, **processing) for each in (theirs, ours))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---- exports -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("cls", MODELS)
def test_onnx_of_one_picture_serves_many(cls: str, dynamo: bool, tmp_path: Path) -> None:
    import onnxruntime

    _, model = pair(cls, SMALL, attention="sdpa")
    dynamic: dict[str, Any] = {"dynamic_axes": {"pixel_values": {0: "batch"}}, "input_names": ["pixel_values"]}
    if dynamo:
        dynamic = {"dynamic_shapes": {"pixel_values": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels(model, 1),), tmp_path / "vit.onnx", dynamo=dynamo, **dynamic)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session, x = onnxruntime.InferenceSession(tmp_path / "vit.onnx", options), pixels(model, 9)
    for actual, expected in zip(session.run(None, {"pixel_values": x.numpy()}), model(x).to_tuple(), strict=True):
        assert_close(torch.from_numpy(actual), expected.detach(), ONNX_FLOAT32, cls)
