"""What transformers promises of every model class, of its classes and of ours: one check, run against both.

A check states a behaviour of the common test suites of transformers in words of its own. Where ours differs on purpose
`DIFFERENCES` has the reason; one that stands there and holds after all fails.
"""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import vit_flax
import vit_tf
import vit_torch

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 30,
    "patch_size": 2,
    "num_labels": 10,
    "encoder_stride": 2,
}
TOKENS, LAYERS, HEADS, WIDTH = 226, 2, 4, 32
MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
TWO = ("ViTModel", "ViTForImageClassification")  # that transformers has in every framework
PIXELS = np.random.default_rng(0).random((3, 3, 30, 30)).astype(np.float32)
CLOSE = 1e-5  # of one function in float32, as those suites have it

DIFFERENCES = {
    "torch/a model without a file": "weights come from a file; a state dict is loaded by load_state_dict()",
    "torch/a configuration's gradient_checkpointing": "it is a method's business: gradient_checkpointing_enable()",
    "torch/heads are pruned": "a mask leaves heads out: head_mask",
    "flax/a model without parameters": "the constructor gives (model, abstract parameters), as from_pretrained does",
    "tf/a SavedModel beside the checkpoint": "model.export(folder) writes it",
    "processor/an unknown keyword of a call": "it is an error",
}

Check = Callable[..., None]
CHECKS: dict[str, list[tuple[str, Check, tuple[str, ...]]]] = {"torch": [], "tf": [], "flax": [], "processor": []}
LIBRARIES = {
    "torch": {"theirs": transformers, "ours": vit_torch},
    "tf": {"theirs": transformers, "ours": vit_tf},
    "flax": {"theirs": transformers, "ours": vit_flax},
    "processor": {"theirs": transformers, "ours": vit_torch},
}


def check(framework: str, name: str, *classes: str) -> Callable[[Check], Check]:
    """A check of that name, of these classes."""

    def register(function: Check) -> Check:
        CHECKS[framework].append((name, function, classes or ("",)))
        return function

    return register


def cases() -> list[Any]:
    found = []
    for framework, checks in CHECKS.items():
        for name, function, classes in checks:
            for library in ("theirs", "ours"):
                reason = DIFFERENCES.get(f"{framework}/{name}") if library == "ours" else None
                marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
                found += [
                    pytest.param(
                        framework, library, function, cls, id=f"{framework}-{library}-{name}-{cls}", marks=marks
                    )
                    for cls in classes
                ]
    return found


def config(library: Any, **changes: Any) -> Any:
    return library.ViTConfig(**{**SIZES, **changes})


def close(a: Any, b: Any, bound: float = CLOSE) -> bool:
    return bool(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max() <= bound)


# ---- PyTorch -----------------------------------------------------------------------------------------------------


def made(library: Any, cls: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return getattr(library, cls)(config(library, **changes)).eval()


def inputs(cls: str, labels: bool = False) -> dict[str, Any]:
    found: dict[str, Any] = {"pixel_values": torch.from_numpy(PIXELS)}
    if labels and cls == "ViTForImageClassification":
        found["labels"] = torch.tensor([0, 3, 9])
    if labels and cls == "ViTForMaskedImageModeling":
        found["bool_masked_pos"] = torch.ones(3, 225, dtype=torch.bool)
    return found


def first(output: Any) -> Any:
    return output[0].detach().numpy()


@check("torch", "saved and loaded", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    for options in ({}, {"safe_serialization": False}, {"max_shard_size": "20KB"}):
        folder = tmp_path / str(len(options)) / next(iter(options), "plain")
        model.save_pretrained(folder, **options)
        again, report = getattr(lib, cls).from_pretrained(folder, output_loading_info=True)
        assert not (report["missing_keys"] or report["unexpected_keys"])
        assert close(first(model(**inputs(cls))), first(again(**inputs(cls))), 0)
        assert list(again.state_dict()) == list(model.state_dict())
        assert not again.training


@check("torch", "half precision is saved and loaded", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        made(lib, cls).to(dtype).save_pretrained(tmp_path)
        assert getattr(lib, cls).from_pretrained(tmp_path, dtype="auto").dtype == dtype
        assert getattr(lib, cls).from_pretrained(tmp_path, torch_dtype=dtype).dtype == dtype
        assert getattr(lib, cls).from_pretrained(tmp_path).dtype == torch.float32


@check("torch", "a trunk under another head")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made(lib, "ViTForImageClassification").save_pretrained(tmp_path / "head")
    trunk, report = lib.ViTModel.from_pretrained(tmp_path / "head", add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"]
    trunk.save_pretrained(tmp_path / "trunk")
    headed, report = lib.ViTForImageClassification.from_pretrained(tmp_path / "trunk", output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    for name, tensor in trunk.state_dict().items():
        assert headed.state_dict()[f"vit.{name}"].equal(tensor)


@check("torch", "another number of labels")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made(lib, "ViTForImageClassification").save_pretrained(tmp_path)
    with pytest.raises((RuntimeError, ValueError)):
        lib.ViTForImageClassification.from_pretrained(tmp_path, num_labels=42)
    model = lib.ViTForImageClassification.from_pretrained(tmp_path, num_labels=42, ignore_mismatched_sizes=True)
    assert model(**inputs("")).logits.shape == (3, 42)


@check("torch", "state_dict in place of the weights", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    model.save_pretrained(tmp_path, state_dict={name: tensor * 0 for name, tensor in model.state_dict().items()})
    assert not any(tensor.any() for tensor in getattr(lib, cls).from_pretrained(tmp_path).state_dict().values())


@check("torch", "what a subclass adds")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    class More(lib.ViTForImageClassification):  # type: ignore[misc, name-defined]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.more = torch.nn.Linear(config.hidden_size, 5)
            self.post_init()

    model = More(config(lib))
    model.save_pretrained(tmp_path)
    assert More.from_pretrained(tmp_path).more.weight.equal(model.more.weight)


@check("torch", "a class of one's own")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    base = lib.ViTPreTrainedModel

    class Own(base):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.num_labels = config.num_labels
            self.vit = lib.ViTModel(config, add_pooling_layer=False)
            self.head = torch.nn.Linear(config.hidden_size, config.num_labels)
            self.post_init()

        def forward(self, pixel_values: Any) -> Any:
            return self.head(self.vit(pixel_values)[0][:, 0])

    model = Own(config(lib)).eval()
    assert (model.head.bias == 0).all() and model.head.weight.std() < 0.05
    model.save_pretrained(tmp_path)
    again = Own.from_pretrained(tmp_path)
    assert close(model(torch.from_numpy(PIXELS)).detach(), again(torch.from_numpy(PIXELS)).detach(), 0)


@check("torch", "the first argument", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    assert list(inspect.signature(getattr(lib, cls).forward).parameters)[1] == "pixel_values"
    assert getattr(lib, cls).main_input_name == "pixel_values"
    assert getattr(lib, cls).base_model_prefix == "vit"
    assert getattr(lib, cls).config_class is lib.ViTConfig


@check("torch", "the same twice", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    assert close(first(model(**inputs(cls))), first(model(**inputs(cls))), 0)
    with pytest.raises(ValueError, match="pixel_values"):
        model()


@check("torch", "a tuple and a dict", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls, attn_implementation="eager")
    asked = {"output_hidden_states": True, "output_attentions": True}
    for labels in (False, True):
        named = model(**inputs(cls, labels), **asked)
        plain = model(**inputs(cls, labels), **asked, return_dict=False)
        assert isinstance(named, dict) and isinstance(plain, tuple)
        assert len(named.to_tuple()) == len(plain) == len(named)
        for a, b in zip(named.to_tuple(), plain, strict=True):
            for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else ((a, b),):
                assert close(x.detach(), y.detach(), 0)
        assert list(named) == list(named.keys()) and named[next(iter(named))] is named[0]


@check("torch", "hidden states", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for model, asked in (
        (made(lib, cls), {"output_hidden_states": True}),
        (made(lib, cls, output_hidden_states=True), {}),
    ):
        states = model(**inputs(cls), **asked).hidden_states
        assert [tuple(state.shape) for state in states] == [(3, TOKENS, WIDTH)] * (LAYERS + 1)


@check("torch", "attentions", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for model, asked in (
        (made(lib, cls, attn_implementation="eager"), {"output_attentions": True}),
        (made(lib, cls, attn_implementation="eager", output_attentions=True), {}),
    ):
        found = model(**inputs(cls), **asked).attentions
        assert [tuple(each.shape) for each in found] == [(3, HEADS, TOKENS, TOKENS)] * LAYERS
        assert close(found[0].sum(-1).detach(), np.ones((3, HEADS, TOKENS)))
    both = model(**inputs(cls), output_hidden_states=True, output_attentions=True)
    assert both.hidden_states is not None and both.attentions is not None


@check("torch", "gradients of states and attentions", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls, attn_implementation="eager")
    output = model(**inputs(cls), output_hidden_states=True, output_attentions=True)
    states, attentions = output.hidden_states[0], output.attentions[0]
    states.retain_grad()
    attentions.retain_grad()
    output[0].flatten()[0].backward(retain_graph=True)
    assert states.grad is not None and attentions.grad is not None


@check("torch", "training", "ViTForImageClassification", "ViTForMaskedImageModeling")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls).train()
    model(**inputs(cls, labels=True)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@check("torch", "training with gradient checkpointing", "ViTForImageClassification", "ViTForMaskedImageModeling")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    assert getattr(lib, cls).supports_gradient_checkpointing
    for options in (None, {"use_reentrant": False}, {"use_reentrant": True}):
        model, plain = made(lib, cls).train(), made(lib, cls).train()
        assert not model.is_gradient_checkpointing
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        assert model.is_gradient_checkpointing
        if options and options["use_reentrant"]:
            model.enable_input_require_grads()
        for each in (model, plain):
            each(**inputs(cls, labels=True)).loss.backward()
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert close(one.grad, other.grad)
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing


@check("torch", "kinds of labels")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    pixels = torch.from_numpy(PIXELS)
    for kind, count, labels in (
        ("multi_label_classification", 2, torch.ones(3, 2)),
        ("single_label_classification", 3, torch.tensor([0, 1, 2])),
        ("regression", 1, torch.ones(3, 1)),
    ):
        model = made(lib, "ViTForImageClassification", problem_type=kind, num_labels=count).train()
        model(pixels, labels=labels).loss.backward()
        assert model.config.problem_type == kind


@check("torch", "one picture as in a batch", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    batch = model(torch.from_numpy(PIXELS), output_hidden_states=True)
    alone = model(torch.from_numpy(PIXELS[:1]), output_hidden_states=True)
    assert list(batch) == list(alone)
    for name in batch:
        for a, b in (
            zip(batch[name], alone[name], strict=True)
            if isinstance(batch[name], tuple)
            else ((batch[name], alone[name]),)
        ):
            assert close(a[:1].detach(), b.detach())


@check("torch", "implementations of attention", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    eager = first(model(**inputs(cls)))
    model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"
    assert close(first(model(**inputs(cls))), eager)
    with pytest.raises(ValueError, match=r"attn_implementation|Specified"):
        model.set_attn_implementation("nothing like it")
    model.save_pretrained(tmp_path)
    assert "_attn_implementation" not in json.loads((tmp_path / "config.json").read_text())
    again = getattr(lib, cls).from_pretrained(tmp_path, attn_implementation="eager")
    assert again.config._attn_implementation == "eager"


@check("torch", "masked heads", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls, attn_implementation="eager")
    mask = torch.ones(LAYERS, HEADS)
    mask[0, 0] = 0
    mask.requires_grad_(True)
    output = model(**inputs(cls), head_mask=mask, output_attentions=True)
    output[0].sum().backward()
    assert mask.grad is not None and mask.grad.abs().sum() > 0
    assert output.attentions[0][:, 0].abs().sum() in (0, pytest.approx(3 * TOKENS, rel=1e-4))


@check("torch", "embeddings", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    assert isinstance(model.get_input_embeddings(), torch.nn.Module)
    assert model.get_output_embeddings() is None
    assert not model.can_generate()


@check("torch", "parts of a model")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, "ViTForImageClassification")
    assert model.base_model is model.vit
    assert made(lib, "ViTModel").base_model.__class__ is lib.ViTModel
    pixels = torch.from_numpy(PIXELS)
    x = model.vit.embeddings(pixels)
    for layer in model.vit.encoder.layer:
        x = layer(x)
    x = x[0] if isinstance(x, tuple) else x
    assert close(model.classifier(model.vit.layernorm(x)[:, 0]).detach(), model(pixels).logits.detach())
    trunk = made(lib, "ViTModel")
    output = trunk(pixels)
    assert close(trunk.pooler(output.last_hidden_state).detach(), output.pooler_output.detach())


@check("torch", "initial values", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = getattr(lib, cls)(config(lib, initializer_range=1e-10))
    for name, parameter in model.named_parameters():
        assert round(float(parameter.detach().mean()), 6) in (0.0, 1.0), name


@check("torch", "on the meta device", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        assert next(getattr(lib, cls)(config(lib)).parameters()).is_meta
    made(lib, cls).save_pretrained(tmp_path)
    with torch.device("meta"), pytest.raises(RuntimeError):
        getattr(lib, cls).from_pretrained(tmp_path)


@check("torch", "devices and harmless keywords", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made(lib, cls).save_pretrained(tmp_path, is_main_process=True, save_function=torch.save)
    options = {"low_cpu_mem_usage": False, "use_safetensors": True, "trust_remote_code": False, "weights_only": True}
    model = getattr(lib, cls).from_pretrained(pretrained_model_name_or_path=tmp_path, **options)
    assert model.device.type == "cpu" and str(model.name_or_path) == str(tmp_path)


@check("torch", "numbers of parameters", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert model.num_parameters() == model.num_parameters(exclude_embeddings=True) == count
    assert model.get_memory_footprint() == 4 * count
    next(model.parameters()).requires_grad_(False)
    assert model.num_parameters(only_trainable=True) < count


@check("torch", "copies", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert close(first(other(**inputs(cls))), first(model(**inputs(cls))), 0)
    with torch.no_grad():
        output = model(**inputs(cls))
    assert list(pickle.loads(pickle.dumps(output))) == list(copy.deepcopy(output)) == list(output)


@check("torch", "torch.export", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    program = torch.export.export(model, (), inputs(cls), strict=True)
    with torch.no_grad():
        for name, tensor in program.module()(**inputs(cls)).items():
            assert close(tensor, model(**inputs(cls))[name])


@check("torch", "torch.jit.trace", *MODELS)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    traced = torch.jit.trace(model, torch.from_numpy(PIXELS), strict=False)
    found, expected = traced(torch.from_numpy(PIXELS)), model(torch.from_numpy(PIXELS))
    assert all(close(found[name].detach(), expected[name].detach()) for name in expected)


@check("torch", "larger pictures", *MODELS[:2])
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, cls)
    larger = torch.zeros(1, 3, 40, 40)
    output = model(larger, interpolate_pos_encoding=True)
    assert output[0].shape == ((1, 401, WIDTH) if cls == "ViTModel" else (1, 10))
    with pytest.raises(ValueError, match=r"doesn't match model|interpolate_pos_encoding"):
        model(larger)


@check("torch", "automatic classes")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for auto, name in zip(
        ("AutoModel", "AutoModelForImageClassification", "AutoModelForMaskedImageModeling"), MODELS, strict=True
    ):
        made(lib, name).save_pretrained(tmp_path / name)
        assert type(getattr(lib, auto).from_pretrained(tmp_path / name)).__name__ == name
        assert type(getattr(lib, auto).from_config(config(lib))).__name__ == name
        assert isinstance(lib.AutoConfig.from_pretrained(tmp_path / name), lib.ViTConfig)


@check("torch", "a configuration")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made_of = config(lib, attn_implementation="eager")
    for name, value in (("hidden_size", 64), ("num_hidden_layers", 3), ("num_attention_heads", 8)):
        setattr(made_of, name, value)
        assert getattr(made_of, name) == value
    made_of.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hidden_size"] == 64
    again = lib.ViTConfig.from_pretrained(tmp_path)
    assert {k: v for k, v in again.to_dict().items() if "version" not in k} == {
        k: v for k, v in made_of.to_dict().items() if "version" not in k
    }
    made_of.to_json_file(tmp_path / "one.json")
    assert lib.ViTConfig.from_json_file(tmp_path / "one.json").hidden_size == 64
    _, unused = lib.ViTConfig.from_pretrained(tmp_path, return_unused_kwargs=True, foo=1)
    assert unused == {"foo": 1}
    assert lib.ViTConfig(num_labels=5).num_labels == len(lib.ViTConfig(num_labels=5).id2label) == 5
    assert lib.ViTConfig().is_encoder_decoder is False


@check("torch", "a model without a file")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, "ViTModel")
    again = lib.ViTModel.from_pretrained(None, config=config(lib), state_dict=model.state_dict())
    assert close(first(again(**inputs(""))), first(model(**inputs(""))), 0)


@check("torch", "a configuration's gradient_checkpointing")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    assert lib.ViTModel(config(lib, gradient_checkpointing=True)).is_gradient_checkpointing


@check("torch", "heads are pruned")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made(lib, "ViTModel")
    model.prune_heads({0: [0]})
    assert model.encoder.layer[0].attention.attention.query.weight.shape == (24, 32)


# ---- TensorFlow --------------------------------------------------------------------------------------------------


def made_tf(library: Any, cls: str, **changes: Any) -> Any:
    model = getattr(library, f"TF{cls}")(config(library, **changes))
    model(PIXELS)
    return model


def tf_optimizer(library: Any) -> Any:
    import keras
    import tf_keras

    return (tf_keras if library is transformers else keras).optimizers.SGD(1e-2)


@check("tf", "saved and loaded", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_tf(lib, cls)
    for options in ({}, {"safe_serialization": True}, {"max_shard_size": "20KB"}):
        folder = tmp_path / next(iter(options), "plain")
        model.save_pretrained(folder, **options)
        assert close(model(PIXELS)[0], getattr(lib, f"TF{cls}").from_pretrained(folder)(PIXELS)[0])


@check("tf", "kinds of inputs", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_tf(lib, cls)
    expected = model(PIXELS)[0]
    for found in (model({"pixel_values": PIXELS}), model(pixel_values=PIXELS), model([PIXELS])):
        assert close(found[0], expected, 0)


@check("tf", "a tuple and a dict", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_tf(lib, cls)
    named, plain = (model(PIXELS, output_hidden_states=True, return_dict=each) for each in (True, False))
    assert isinstance(named, dict) and isinstance(plain, tuple)
    assert len(named.to_tuple()) == len(plain) and close(named[0], plain[0])


@check("tf", "hidden states and attentions", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    output = made_tf(lib, cls)(PIXELS, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, TOKENS, WIDTH)] * (LAYERS + 1)
    assert [tuple(each.shape) for each in output.attentions] == [(3, HEADS, TOKENS, TOKENS)] * LAYERS


@check("tf", "labels in fit")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    labels = np.array([0, 3, 9])
    for x, y in (
        ({"pixel_values": PIXELS, "labels": labels}, None),
        ({"pixel_values": PIXELS}, labels),
        ({"pixel_values": PIXELS}, {"labels": labels}),
    ):
        model = made_tf(lib, "ViTForImageClassification")
        model.compile(optimizer=tf_optimizer(lib))
        before = [np.array(variable) for variable in model.trainable_variables]
        history = model.fit(x, y, epochs=1, verbose=0)
        assert np.isfinite(history.history["loss"]).all()
        assert any(not close(a, b, 0) for a, b in zip(before, map(np.array, model.trainable_variables), strict=True))


@check("tf", "a loss")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_tf(lib, "ViTForImageClassification")
    output = model(pixel_values=PIXELS, labels=np.array([0, 3, 9]))
    assert np.isfinite(np.asarray(output.loss)).all() and next(iter(output)) == "loss"


@check("tf", "tf.function", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import tensorflow as tf

    model = made_tf(lib, cls)
    assert close(tf.function(lambda x: model(x)[0])(tf.constant(PIXELS)), model(PIXELS)[0])


@check("tf", "parts of a model", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_tf(lib, cls)
    assert model.main_input_name == "pixel_values"
    assert model.get_input_embeddings() is not None
    assert close(model.vit(PIXELS)[0], (model if cls == "ViTModel" else model.vit)(PIXELS)[0])
    model.build(None)
    assert model.num_parameters() == sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@check("tf", "another number of labels")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made_tf(lib, "ViTForImageClassification").save_pretrained(tmp_path)
    options = {"num_labels": 42, "ignore_mismatched_sizes": True}
    assert lib.TFViTForImageClassification.from_pretrained(tmp_path, **options)(PIXELS).logits.shape == (3, 42)


@check("tf", "a SavedModel", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import tensorflow as tf

    model = made_tf(lib, cls)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    assert tf.saved_model.load(str(tmp_path / "saved")).signatures


@check("tf", "a SavedModel beside the checkpoint")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made_tf(lib, "ViTModel").save_pretrained(tmp_path, saved_model=True)
    assert (tmp_path / "saved_model" / "1").is_dir()


@check("tf", "automatic classes")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for auto, name in zip(("TFAutoModel", "TFAutoModelForImageClassification"), TWO, strict=True):
        made_tf(lib, name).save_pretrained(tmp_path / name)
        assert type(getattr(lib, auto).from_pretrained(tmp_path / name)).__name__ == f"TF{name}"


# ---- Flax --------------------------------------------------------------------------------------------------------


def made_flax(library: Any, cls: str, **changes: Any) -> Any:
    return getattr(library, f"Flax{cls}")(config(library, **changes), seed=0)


@check("flax", "saved and loaded", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_flax(lib, cls)
    for options in ({}, {"safe_serialization": True}, {"max_shard_size": "20KB"}):
        folder = tmp_path / next(iter(options), "plain")
        model.save_pretrained(folder, **options)
        assert close(model(PIXELS)[0], getattr(lib, f"Flax{cls}").from_pretrained(folder)(PIXELS)[0])


@check("flax", "parameters in place of the model's", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import jax

    model = made_flax(lib, cls)
    for cast in (lambda params: params, model.to_fp16, model.to_bf16):
        given = cast(jax.tree.map(lambda leaf: leaf * 0 + 7, model.params))
        model.save_pretrained(tmp_path, params=given)
        again = getattr(lib, f"Flax{cls}").from_pretrained(tmp_path).params
        assert all((np.asarray(leaf, np.float32) == 7).all() for leaf in jax.tree.leaves(again))


@check("flax", "a trunk under a head, and back")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import jax

    head, base = made_flax(lib, "ViTForImageClassification"), made_flax(lib, "ViTModel")
    head.save_pretrained(tmp_path / "head")
    base.save_pretrained(tmp_path / "base")
    trunk = lib.FlaxViTModel.from_pretrained(tmp_path / "head")
    assert jax.tree.all(jax.tree.map(close, trunk.params["encoder"], head.params["vit"]["encoder"]))
    headed = lib.FlaxViTForImageClassification.from_pretrained(tmp_path / "base")
    assert jax.tree.all(jax.tree.map(close, headed.params["vit"]["encoder"], base.params["encoder"]))


@check("flax", "jit", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import jax

    model = made_flax(lib, cls)
    call = jax.jit(lambda pixel_values, params: model(pixel_values, params=params).to_tuple())
    with jax.disable_jit():
        plain = call(PIXELS, model.params)
    assert close(call(PIXELS, model.params)[0], plain[0])


@check("flax", "a tuple and a dict", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_flax(lib, cls)
    named, plain = (model(PIXELS, return_dict=each) for each in (True, False))
    assert isinstance(named, dict) and isinstance(plain, tuple)
    assert len(named.to_tuple()) == len(plain) and close(named[0], plain[0])


@check("flax", "hidden states and attentions", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    output = made_flax(lib, cls)(PIXELS, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(3, TOKENS, WIDTH)] * (LAYERS + 1)
    assert [tuple(each.shape) for each in output.attentions] == [(3, HEADS, TOKENS, TOKENS)] * LAYERS


@check("flax", "the first arguments", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = made_flax(lib, cls)
    assert list(inspect.signature(model.__call__).parameters)[:2] == ["pixel_values", "params"]
    assert close(model(PIXELS, model.params)[0], model(PIXELS)[0], 0)
    assert model.main_input_name == "pixel_values" and model.base_model_prefix == "vit"


@check("flax", "dtypes of parameters", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    import jax

    model = made_flax(lib, cls)
    for cast, dtype in ((model.to_bf16, "bfloat16"), (model.to_fp16, "float16"), (model.to_fp32, "float32")):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(cast(model.params))} == {dtype}


@check("flax", "parameters apart", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    made_flax(lib, cls).save_pretrained(tmp_path)
    model, params = getattr(lib, f"Flax{cls}").from_pretrained(tmp_path, _do_init=False)
    assert close(model(PIXELS, params=params)[0], getattr(lib, f"Flax{cls}").from_pretrained(tmp_path)(PIXELS)[0])


@check("flax", "a model without parameters", *TWO)
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    model = getattr(lib, f"Flax{cls}")(config(lib), _do_init=False)
    assert model.params_shape_tree is not None


@check("flax", "automatic classes")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    for auto, name in zip(("FlaxAutoModel", "FlaxAutoModelForImageClassification"), TWO, strict=True):
        made_flax(lib, name).save_pretrained(tmp_path / name)
        assert type(getattr(lib, auto).from_pretrained(tmp_path / name)).__name__ == f"Flax{name}"


# ---- the image processor -----------------------------------------------------------------------------------------

PROCESSOR: dict[str, Any] = {"size": {"height": 18, "width": 18}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5] * 3}


def pictures(kind: str) -> list[Any]:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in ((30, 40), (30, 30), (55, 31))]
    if kind == "pil":
        return [Image.fromarray(np.moveaxis(array, 0, -1)) for array in arrays]
    return [torch.from_numpy(array) for array in arrays] if kind == "torch" else arrays


@check("processor", "one picture and several", "pil", "numpy", "torch")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    processor = lib.ViTImageProcessor(**PROCESSOR)
    assert processor(pictures(cls)[0], return_tensors="pt").pixel_values.shape == (1, 3, 18, 18)
    assert processor(pictures(cls), return_tensors="pt").pixel_values.shape == (3, 3, 18, 18)


@check("processor", "attributes")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    processor = lib.ViTImageProcessor(**PROCESSOR)
    for name in ("do_resize", "size", "do_normalize", "image_mean", "image_std", "do_rescale", "rescale_factor"):
        assert hasattr(processor, name)
    assert lib.ViTImageProcessor.from_dict(processor.to_dict(), size=42).size == {"height": 42, "width": 42}


@check("processor", "saved and loaded")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    processor = lib.ViTImageProcessor(**PROCESSOR)
    processor.save_pretrained(tmp_path)
    assert lib.ViTImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert lib.AutoImageProcessor.from_pretrained(tmp_path, use_fast=False).size == PROCESSOR["size"]
    processor.to_json_file(tmp_path / "one.json")
    assert lib.ViTImageProcessor.from_json_file(tmp_path / "one.json").to_dict() == processor.to_dict()
    assert json.loads(processor.to_json_string())["size"] == PROCESSOR["size"]


@check("processor", "options of a call")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    processor = lib.ViTImageProcessor(**PROCESSOR)
    found = processor(pictures("pil"), return_tensors="np", size={"height": 7, "width": 9}, do_normalize=False)
    assert found["pixel_values"].shape == (3, 3, 7, 9) and found["pixel_values"].min() >= 0
    assert isinstance(lib.ViTImageProcessor(), lib.ViTImageProcessor)


@check("processor", "no fast class")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    assert lib.ViTImageProcessor().is_fast is False


@check("processor", "an unknown keyword of a call")
def _(lib: Any, cls: str, tmp_path: Path) -> None:
    lib.ViTImageProcessor()(pictures("pil"), return_tensors="np", extra_argument=True)


@pytest.mark.parametrize(("framework", "library", "function", "cls"), cases())
@pytest.mark.filterwarnings("ignore")
def test_common(framework: str, library: str, function: Check, cls: str, tmp_path: Path) -> None:
    function(LIBRARIES[framework][library], cls, tmp_path)


def test_every_difference_is_of_a_check() -> None:
    known = {f"{framework}/{name}" for framework, checks in CHECKS.items() for name, _, _ in checks}
    assert known >= DIFFERENCES.keys()
