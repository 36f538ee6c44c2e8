"""What Keras and TensorFlow users expect of the Keras models, beyond what every backend does."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import h5py
import numpy as np
import pytest
import tolerances
from adapters import with_noise
from closeness import assert_close, leaves, relative_error
from command import PEAK
from conftest import CHECKPOINTS
from members import BARE, PRETRAINED, config_for
from members import MODELS as EVERY_MODEL
from PIL import Image
from test_models import BAD_CALLS, TINY

from conversion import convert
from vit_core.app.backends import UNUSED, is_installed
from vit_core.config import ViTConfig
from vit_core.family import DINOV2_WITH_REGISTERS, VIT
from vit_core.files.keras_hdf5 import read_keras_h5
from vit_core.formats.reading import read
from vit_core.pictures.processing import BatchFeature

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
vit_tf = pytest.importorskip("vit_tf")
named = importlib.import_module("vit_tf.serving")._flat
ViTDropPath = importlib.import_module("vit_tf.encoder").ViTDropPath

ROOT = Path(__file__).parent.parent
# Here a second layer shows something in a few tests alone, which ask for it: each costs time to make and to trace.
ONE_LAYER = {**TINY, "num_hidden_layers": 1}
TWO_LAYERS = {"num_hidden_layers": 2}
MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
SAFETENSORS = CHECKPOINTS / "cls" / "pt_safetensors"
# Bad calls that only values show, not shapes.
VALUES_ONLY = ("label range", "negative label", "tokens of other patches", "token range")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
SAME = tolerances.SAME_FUNCTION_FLOAT64
LABELS = np.array([0, 1, 2, 2, 1, 0])
RATES = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3, "drop_path_rate": 0.3}


@pytest.fixture(autouse=True, scope="module")
def in_float64() -> Iterator[None]:
    """Keras's default, in which two ways to compute the same give the same, losses and metrics included."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


def build(cls: str = "ViTForImageClassification", options: dict[str, Any] | None = None, **changes: Any) -> Any:
    return getattr(vit_tf, f"TF{cls}")(config_for(cls, **ONE_LAYER).copy(**changes), **{"seed": 0, **(options or {})})


def pixels(batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, *size))


def patch_mask(batch: int = 2, patches: int = 16) -> np.ndarray:
    return (np.arange(batch * patches).reshape(batch, patches) % 3) == 0


def call_of(cls: str, batch: int = 2) -> dict[str, Any]:
    """A call with a loss, where the model has one."""
    call: dict[str, Any] = {"pixel_values": pixels(batch)}
    if cls == "ViTForImageClassification":
        call["labels"] = np.arange(batch) % 3
    if cls == "ViTForMaskedImageModeling":
        call["bool_masked_pos"] = patch_mask(batch)
    return call


def value_and_gradients(model: Any, call: dict[str, Any], **options: Any) -> Any:
    """The loss, or the mean cube of the states of a model that has none, and the gradients of what it depends on."""
    with tf.GradientTape() as tape:
        output = model(**call, **options)
        loss = tf.reduce_mean(output[0] ** 3) if output[0].shape.rank else output[0]
    gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
    return [loss, *(g for g in gradients if g is not None)]


def arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in tf.nest.flatten(tree)]


def assert_same(actual: Any, expected: Any, bound: float = tolerances.SAME_FUNCTION_FLOAT64) -> None:
    """Nests of equal structure, in float64, no leaf further apart than the bound."""
    tf.nest.assert_same_structure(actual, expected)
    assert bound == 0 or {array.dtype for _, array in leaves(expected)} == {np.dtype(np.float64)}
    assert_close(actual, expected, bound)


def cross_entropies(logits: Any, labels: np.ndarray) -> np.ndarray:
    """The cross entropy of each image, in float64."""
    shifted = np.float64(logits) - np.max(logits, axis=1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]


def run_alone(code: str, *args: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """A program in a process of its own, which is without what TensorFlow and Keras import needlessly."""
    without = f"import sys; sys.modules.update(dict.fromkeys({UNUSED}))"
    command = [sys.executable, "-c", f"{without}\n{code}", *map(str, args)]
    return subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, check=False)


# Before a program.
IN_FLOAT64 = """
import keras
keras.config.set_floatx("float64")
keras.config.set_dtype_policy("float64")
"""


def output_of(code: str, *args: Any, **env: str) -> str:
    done = run_alone(code, *args, **env)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- fit, evaluate, predict --------------------------------------------------------------------------------------


def train_by_hand(x: np.ndarray, y: np.ndarray, epochs: int = 2, batch: int = 3) -> tuple[dict[str, Any], Any]:
    """The history and final variables of a plain loop of gradient descent with the call's own loss."""
    model, optimizer = build(), keras.optimizers.SGD(0.1)
    history: dict[str, Any] = {"loss": [], "accuracy": []}
    for _ in range(epochs):
        losses, right = [], []
        for i in range(0, len(x), batch):
            with tf.GradientTape() as tape:
                output = model(x[i : i + batch], labels=y[i : i + batch], training=True)
            gradients = tape.gradient(output.loss, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            losses.append(float(output.loss))
            right.extend(np.argmax(output.logits, axis=1) == y[i : i + batch])
        history["loss"].append(np.mean(losses))
        history["accuracy"].append(np.mean(right))
    return history, [v.numpy() for v in model.variables]


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_drop_path_leaves_each_picture_whole_or_out(rate: float) -> None:
    """Two branches of a layer draw apart, and so do two calls, recomputed or not; the mean stays."""
    keras.utils.set_random_seed(0)
    layer, x = ViTDropPath(rate), np.ones((4000, 3, 2))
    first, second = (layer(x, training=True).numpy() for _ in range(2))
    assert (first == first[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(first), [0, 1 / (1 - rate)])
    assert abs(first.mean() - 1) < 5 * np.sqrt(rate / (1 - rate) / len(x))
    assert (first != second).any()
    np.testing.assert_array_equal(layer(x), x)


def test_a_backbone_in_fit_and_predict() -> None:
    model = build("ViTBackbone", out_indices=[0, 1], drop_path_rate=0.3)
    found = model.predict(pixels(6), verbose=0)
    assert_same(found.feature_maps, tuple(np.asarray(each) for each in model(pixels(6)).feature_maps))
    last = found.feature_maps[-1]
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    losses = fit(model, pixels(6), np.zeros_like(last), batch_size=6, epochs=3)["loss"]
    assert losses[-1] < losses[0]
    model.compile(keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="There is no loss to compute"):
        fit(model, pixels(6))


@pytest.fixture(scope="module")
def by_hand() -> tuple[dict[str, Any], Any]:
    return train_by_hand(pixels(6), LABELS)


def fit(model: Any, x: Any, y: Any = None, **options: Any) -> dict[str, Any]:
    """The history of `model.fit`, quiet and in the order of the data; Keras warns of a dataset it can't shuffle."""
    history: dict[str, Any] = model.fit(x, y, **{"verbose": 0, "shuffle": False, **options}).history
    return history


def dataset(*parts: Any, batch: int = 3) -> Any:
    return tf.data.Dataset.from_tensor_slices(parts if len(parts) > 1 else parts[0]).batch(batch)


def keras_loss() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(kind: str) -> dict[str, Any]:
    """Six images and labels, as `fit` takes them."""
    x, y = pixels(6), LABELS
    return {
        "arrays": {"x": x, "y": y, "batch_size": 3},
        "dict": {"x": {"pixel_values": x}, "y": y, "batch_size": 3},
        "dict with labels": {"x": {"pixel_values": x, "labels": y}, "batch_size": 3},
        "dataset": {"x": dataset(x, y)},
        "dataset with labels": {"x": dataset({"pixel_values": x, "labels": y})},
        "dataset with weights": {"x": dataset({"pixel_values": x}, y, np.ones(6, np.float32))},
    }[kind]


FITS = {
    "arrays": ("arrays", {}),
    "arrays, loss": ("arrays", {"loss": "keras"}),
    "dict": ("dict", {"run_eagerly": True}),
    "dict with labels": ("dict with labels", {"run_eagerly": True}),
    "dict with labels, loss": ("dict with labels", {"loss": "keras", "run_eagerly": True}),
    "dataset": ("dataset", {"steps_per_execution": 2}),
    "dataset with labels": ("dataset with labels", {}),
    "dataset with weights": ("dataset with weights", {}),
    "dataset with weights, loss": ("dataset with weights", {"loss": "keras"}),
    "XLA": ("arrays", {"jit_compile": True}),
}


@pytest.mark.parametrize("name", FITS)
def test_every_way_to_fit_is_the_plain_loop(name: str, by_hand: Any) -> None:
    kind, options = FITS[name]
    model, history = build(), by_hand[0]
    loss = keras_loss() if "loss" in options else None
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], **{**options, "loss": loss})
    found = fit(model, **data(kind), epochs=2)
    assert_close(found["loss"], history["loss"], SAME)
    assert found["accuracy"] == pytest.approx(history["accuracy"])
    assert_same([v.numpy() for v in model.variables], by_hand[1])


def test_evaluate_and_predict() -> None:
    model, x = build(), pixels(6)
    model.compile(metrics=["accuracy"])
    output = model(x, labels=LABELS)
    found = model.evaluate(x, LABELS, batch_size=3, verbose=0, return_dict=True)
    assert_close(found["loss"], float(output.loss), SAME)
    assert found["accuracy"] == pytest.approx(np.mean(np.argmax(output.logits, axis=1) == LABELS))
    assert model.evaluate(dataset({"pixel_values": x, "labels": LABELS}), verbose=0) == pytest.approx(
        [found["loss"], found["accuracy"]]
    )


def test_what_an_image_processor_returns_is_taken() -> None:
    model, x = build(), pixels(6)
    inputs = BatchFeature(pixel_values=tf.constant(x), labels=LABELS)
    model.compile(run_eagerly=True)
    output = model(x, labels=LABELS)
    assert_close(model.evaluate(inputs, verbose=0), float(output.loss), SAME)
    assert_close(model.test_on_batch(inputs), float(output.loss), SAME)
    for found in (model.predict(inputs, verbose=0), model.predict_on_batch(inputs)):
        assert_close(found.logits, output.logits.numpy(), SAME)
    for trained in (model.fit(inputs, verbose=0).history["loss"], model.train_on_batch(x=inputs)):
        assert np.isfinite(trained).all()


@pytest.mark.parametrize("steps", [1, 2])
def test_predict_gives_the_output_class_in_numpy(steps: int) -> None:
    model, x = build(output_hidden_states=True), pixels(5)
    model.compile(steps_per_execution=steps)
    expected = tf.nest.map_structure(lambda t: t.numpy(), model(x))
    for given in (x, {"pixel_values": x, "labels": LABELS[:5]}, dataset(x, LABELS[:5])):
        found = model.predict(given, batch_size=None if isinstance(given, tf.data.Dataset) else 2, verbose=0)
        assert type(found) is vit_tf.ImageClassifierOutput
        assert all(type(leaf) is np.ndarray for leaf in tf.nest.flatten(found))
        assert found.loss is None
        assert_same(found, expected)
    assert_same(model.predict_on_batch(x), expected)


@pytest.mark.parametrize("return_dict", [True, False])
def test_masked_image_modelling_is_fitted_and_predicted(return_dict: bool) -> None:
    model, inputs = build("ViTForMaskedImageModeling"), {"pixel_values": pixels(6), "bool_masked_pos": patch_mask(6)}
    whole = model(**inputs)
    model.config.return_dict = return_dict
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=not return_dict)
    expected = [float(model(**{k: v[i : i + 3] for k, v in inputs.items()})[0]) for i in (0, 3)]
    for given in (dataset(inputs), dataset(inputs, np.zeros(6))):
        assert_close(model.evaluate(given, verbose=0), float(np.mean(expected)), SAME)
    found = model.predict(inputs, batch_size=3, verbose=0)  # batches of losses make no array
    assert type(found) is (vit_tf.MaskedImageModelingOutput if return_dict else tuple)
    assert len(found) == 1
    assert_same(found[0], whole.reconstruction.numpy())
    fit(model, dataset(inputs), epochs=3)
    assert float(model(**inputs)[0]) < float(whole.loss)
    with pytest.raises(ValueError, match="TFViTForMaskedImageModeling's own loss takes no sample weights"):
        fit(model, dataset(inputs, np.zeros(6), np.ones(6)))


TOKENS = "BeitForMaskedImageModeling"


def tokens_call(batch: int = 4) -> dict[str, Any]:
    """A call of BEiT with its loss: as many labels as masked patches."""
    mask = patch_mask(batch)
    return {"pixel_values": pixels(batch), "bool_masked_pos": mask, "labels": np.arange(mask.sum()) % 7}


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}])
def test_visual_tokens_are_learnt(options: dict[str, Any]) -> None:
    """Labels, one for each masked patch, come in the dict or as targets."""
    model, call = build(TOKENS, vocab_size=7, drop_path_rate=0.0), tokens_call()
    logits = model(**call).logits.numpy()
    expected = np.mean(cross_entropies(logits[call["bool_masked_pos"]], call["labels"]))
    assert_close(float(model(**call).loss), expected, SAME)
    model.compile(keras.optimizers.SGD(0.1), **options)
    given = tf.data.Dataset.from_tensors(call)
    targets = given.map(lambda x: ({name: x[name] for name in ("pixel_values", "bool_masked_pos")}, x["labels"]))
    for batches in (given, targets):
        assert_close(model.evaluate(batches, verbose=0), expected, SAME)
    assert_same(model.predict(given, verbose=0).logits, logits)
    fit(model, given, epochs=3)
    assert float(model(**call).loss) < expected


def test_wrong_visual_tokens() -> None:
    """An error where values are visible, NaN in a graph."""
    model, call = build(TOKENS, vocab_size=7), tokens_call()
    labels, count = call["labels"], len(call["labels"])
    loss = tf.function(lambda labels: model(**{**call, "labels": labels}).loss, reduce_retracing=True)
    assert_same(loss(labels), model(**call).loss)
    for wrong, words in (
        (labels[1:], f"of shape ({count},), the visual tokens of the masked patches of all pictures in order: got"),
        (np.append(labels, 0), f"got integers of shape ({count + 1},)"),
        (labels + 5, "labels must be from 0 to 6 (vocab_size=7), or -100 to be ignored: got values from 5 to 11."),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            model(**{**call, "labels": wrong})
        assert np.isnan(loss(wrong))
    with pytest.raises(ValueError, match="labels are the visual tokens of masked patches: pass bool_masked_pos"):
        model(pixels(4), labels=labels)


@pytest.mark.parametrize("metrics", [[], ["accuracy"]])
def test_the_first_step_is_traced_once(metrics: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that it created, of the optimizer or of metrics, would have Keras trace it twice."""
    model, traces = build(), []
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=metrics)
    step = type(model).train_step
    monkeypatch.setattr(type(model), "train_step", lambda self, data: traces.append(data) or step(self, data))
    model.fit(pixels(6), LABELS, batch_size=4, epochs=2, verbose=0)
    assert len(traces) == 1
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=metrics)
    model.train_on_batch(pixels(6), LABELS)
    assert len(traces) == 2


@pytest.mark.parametrize("labels", [LABELS, np.eye(3)[LABELS]], ids=["classes", "shares"])
def test_data_of_unknown_rank_are_fitted(labels: np.ndarray) -> None:
    """As `tf.py_function` gives them."""
    model = build()
    model.compile("sgd")
    types = (tf.TensorSpec(None, tf.float64), tf.TensorSpec(None, labels.dtype))
    unknown = tf.data.Dataset.from_generator(lambda: iter([(pixels(6), labels)]), output_signature=types)
    loss = float(model(pixels(6), labels=labels).loss)
    assert_close(fit(model, unknown, steps_per_epoch=1)["loss"], [loss], SAME)


def test_a_model_in_a_sequence_is_fitted_with_a_loss() -> None:
    model = build()
    expected = keras_loss()(LABELS, model(pixels(6)).logits)
    sequence = keras.Sequential([model])
    sequence.compile("sgd", keras_loss())
    assert_close(fit(sequence, pixels(6), LABELS)["loss"], [float(expected)], SAME)


def test_no_loss_is_an_error() -> None:
    for cls in MODELS:
        model = build(cls)
        model.compile(run_eagerly=True)
        with pytest.raises(ValueError, match=f"There is no loss to compute: .* inputs of TF{cls}'s own"):
            fit(model, {"pixel_values": pixels()})


def test_the_bare_model_is_fitted_to_states() -> None:
    """A user's loss sees the last hidden state, and the reconstruction of masked image modelling."""
    for cls, field in (("ViTModel", "last_hidden_state"), ("ViTForMaskedImageModeling", "reconstruction")):
        model = build(cls)
        model.compile("sgd", loss="mse", metrics=["mae"], run_eagerly=True)
        output = model(pixels())[field].numpy()
        assert_close([float(each) for each in model.test_on_batch(pixels(), output + 0.5)], [0.25, 0.5], SAME)


TEACHER = "DeiTForImageClassificationWithTeacher"
SOFT = {"distillation": "soft", "distillation_weight": 0.3, "distillation_temperature": 2.0}
FROM_TEACHER: dict[str, tuple[bool, bool, dict[str, Any]]] = {
    "labels in the dict, eagerly": (True, True, {"run_eagerly": True}),
    "labels as targets": (False, True, {}),
    "labels in the dict, tuples": (True, False, {}),
}


@pytest.fixture(scope="module")
def taught_by_hand() -> tuple[dict[str, Any], float, Any, Any]:
    """Pictures with a teacher's logits, the loss of a plain loop over them, and its variables and output after it."""
    inputs = {"pixel_values": pixels(6), "teacher_logits": np.random.default_rng(1).standard_normal((6, 3))}
    model, optimizer, losses = build(TEACHER, **SOFT), keras.optimizers.SGD(0.1), []
    for i in (0, 3):
        with tf.GradientTape() as tape:
            loss = model(**{n: v[i : i + 3] for n, v in inputs.items()}, labels=LABELS[i : i + 3], training=True).loss
        weights = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        losses.append(float(loss))
    return inputs, float(np.mean(losses)), [v.numpy() for v in model.variables], model(**inputs, labels=LABELS)


@pytest.mark.parametrize("name", FROM_TEACHER)
def test_every_way_to_learn_from_a_teacher_is_the_plain_loop(name: str, taught_by_hand: Any) -> None:
    (within, return_dict, options), (inputs, expected, variables, output) = FROM_TEACHER[name], taught_by_hand
    model = build(TEACHER, **SOFT, return_dict=return_dict)
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], **options)
    given = dataset({**inputs, "labels": LABELS}) if within else dataset(inputs, LABELS)
    assert_close(fit(model, given)["loss"], [expected], SAME)
    assert_same([v.numpy() for v in model.variables], variables)
    loss, accuracy = model.evaluate(given, verbose=0)
    assert_close(loss, float(output.loss), SAME)
    assert accuracy == pytest.approx(np.mean(np.argmax(output.logits, axis=1) == LABELS))
    found = model.predict({**inputs, "labels": LABELS}, batch_size=3, verbose=0)
    assert_same(list(found[:]), [output[n].numpy() for n in ("logits", "cls_logits", "distillation_logits")])
    assert type(found) is (vit_tf.DeiTForImageClassificationWithTeacherOutput if return_dict else tuple)


def test_a_teacher_without_labels_and_with_weights() -> None:
    model, inputs = build(TEACHER), {"pixel_values": pixels(), "teacher_logits": np.ones((2, 3))}
    model.compile(keras.optimizers.SGD(0.1))
    for call in (lambda: model(inputs), lambda: tf.function(model)(**inputs), lambda: fit(model, inputs)):
        with pytest.raises(ValueError, match=r"distilled beside labels of classes, \(batch,\): got no labels"):
            call()
    with pytest.raises(ValueError, match=f"TF{TEACHER}'s own loss takes no sample weights"):
        fit(model, inputs, LABELS[:2], sample_weight=np.ones(2))
    found = fit(model, pixels(), LABELS[:2])["loss"]  # labels alone: the loss of the mean of both heads
    assert_close(found, [float(build(TEACHER)(pixels(), labels=LABELS[:2]).loss)], SAME)


WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 0.25])


@pytest.mark.parametrize("own", [True, False])
def test_sample_and_class_weights(own: bool) -> None:
    model, x = build(), pixels(6)
    model.compile(loss=None if own else keras_loss(), run_eagerly=True, weighted_metrics=["accuracy"])
    logits = model(x).logits.numpy()
    each, right = cross_entropies(logits, LABELS), np.argmax(logits, axis=1) == LABELS
    loss, accuracy = model.test_on_batch(x, LABELS, sample_weight=WEIGHTS)
    assert_close(float(loss), (each * WEIGHTS).mean(), SAME)
    assert accuracy == pytest.approx((right * WEIGHTS).sum() / WEIGHTS.sum())
    for name in ("labels", "logits"):  # Keras puts the weights into a dict as well
        found = model.evaluate(x, {name: LABELS}, sample_weight=WEIGHTS, verbose=0)
        assert_close(found, [float(loss), accuracy], SAME)
    with pytest.raises(ValueError, match="sample_weight goes with y, without which Keras drops it"):
        model.evaluate({"pixel_values": x, "labels": LABELS}, sample_weight=WEIGHTS)
    by_class = {0: 1.0, 1: 0.5, 2: 4.0}
    model.reset_metrics()  # before 3.15 Keras goes on with the mean of the call before
    loss = model.train_on_batch(x, LABELS, class_weight=by_class)[0]
    expected = np.mean([e * by_class[int(label)] for e, label in zip(each, LABELS, strict=True)])
    assert_close(float(loss), expected, SAME)


PROBLEMS = {
    "regression of one": ({"num_labels": 1}, np.array([0.5, -1.0], np.float32), "mean_squared_error"),
    "regression": ({"problem_type": "regression"}, np.arange(6, dtype=np.float32).reshape(2, 3), "mean_squared_error"),
    "multi-label": ({}, np.array([[1, 0, 1], [0, 0, 1]], np.float32), "binary_crossentropy"),
    "multi-label integers": (
        {"problem_type": "multi_label_classification"},
        np.array([[1, 0, 1], [0, 0, 1]]),
        "binary_crossentropy",
    ),
    "single label": ({}, np.array([2, 0]), "sparse_categorical_crossentropy"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problem_types(name: str) -> None:
    """The own loss of training is that of a call, and Keras's of the same name."""
    changes, labels, loss = PROBLEMS[name]
    model, options = build(**changes), {} if loss == "mean_squared_error" else {"from_logits": True}
    output = model(pixels(), labels=labels)
    target = labels[:, None] if labels.ndim == 1 else labels
    expected = float(tf.reduce_mean(getattr(keras.losses, loss)(target, output.logits, **options)))
    assert_close(float(output.loss), expected, SAME)
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=True)
    assert_close(float(model.train_on_batch(pixels(), labels)), expected, SAME)
    assert float(model(pixels(), labels=labels).loss) < expected


LOSSES = {
    "categorical_crossentropy": "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy": "SparseCategoricalCrossentropy",
    "bce": "BinaryCrossentropy",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_takes_logits_for_probabilities(name: str) -> None:
    model = build()
    words = rf"^{LOSSES[name]} takes probabilities, .* logits: pass loss={LOSSES[name]}.from_logits=True"
    for given in (name, keras.losses.get(name)):
        with pytest.warns(UserWarning, match=words):
            model.compile("sgd", given)
    words = rf"^{LOSSES[name]} takes probabilities, .* logits: pass keras\.metrics\.{LOSSES[name]}.from_logits=True"
    for metrics in ({"metrics": [name]}, {"weighted_metrics": {"logits": [keras.metrics.get(name)]}}):
        with pytest.warns(UserWarning, match=words):
            model.compile("sgd", **metrics)
    with pytest.warns(UserWarning, match="^SparseCategoricalCrossentropy takes probabilities, "):
        model.compile("sgd", "crossentropy")
    model.compile("sgd", "mse", metrics=["acc", keras.metrics.AUC(from_logits=True), keras.metrics.F1Score()])
    build("ViTModel").compile("sgd", name, metrics=[name])  # gives no logits


class Sequence(keras.utils.PyDataset):
    """One batch, which is read by its number."""

    def __init__(self, *batch: np.ndarray) -> None:
        super().__init__()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self.batch


def loader(*columns: np.ndarray) -> Any:
    """A DataLoader of PyTorch's, which Keras takes as it is."""
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(list(zip(*columns, strict=True)), batch_size=3)


DATA: dict[str, Callable[[np.ndarray], tuple[Any, ...]]] = {
    "array": lambda x: (x, LABELS),
    "dict": lambda x: ({"pixel_values": x}, LABELS),
    "dataset": lambda x: (dataset(x, LABELS),),
    "dataset of dicts": lambda x: (dataset({"pixel_values": x, "labels": LABELS}),),
    "generator": lambda x: ((batch for batch in [(x, LABELS)]),),
    "sequence": lambda x: (Sequence(x, LABELS),),
    "loader": lambda x: (loader(x, LABELS),),
}


@pytest.fixture(scope="module")
def evaluated() -> Any:
    """A model whose step of `evaluate` is traced once for data of a kind."""
    model = build()
    model.compile(run_eagerly=False)
    return model


@pytest.mark.parametrize("kind", DATA)
def test_data_from_0_to_255_is_warned_of_once(kind: str, evaluated: Any) -> None:
    model, x = evaluated, 255 * np.random.default_rng(0).random((6, 3, 16, 16))
    model.vit.looked = False
    with pytest.warns(UserWarning, match="^pixel_values are from 0"):
        model.evaluate(*DATA[kind](x), steps=1, verbose=0)
    model.evaluate(*DATA[kind](x), steps=1, verbose=0)


def test_the_warning_of_a_loader_may_be_an_error(evaluated: Any) -> None:
    evaluated.vit.looked = False
    with pytest.raises(UserWarning, match=r"^pixel_values are from 255"):  # as pyproject.toml has it of all of them
        evaluated.evaluate(loader(np.full((6, 3, 16, 16), 255.0), LABELS), steps=1, verbose=0)


def test_a_loader_of_items_without_numbers_or_on_a_card() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader, IterableDataset

    class OnCard(torch.Tensor):
        def __array__(self, *_: Any, **__: Any) -> Any:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def cpu(self) -> Any:
            return self.as_subclass(torch.Tensor)

    def collate(items: list[Any]) -> Any:
        x, y = map(torch.tensor, map(np.array, zip(*items, strict=True)))
        return x.as_subclass(OnCard), y

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            yield from zip(pixels(6), LABELS, strict=True)

    named: Any = {f"{i}.png": item for i, item in enumerate(Stream())}
    given: tuple[dict[str, Any], ...] = (
        {"dataset": Stream()}, {"dataset": named, "sampler": [*named]},
        {"dataset": [*Stream()], "collate_fn": collate},
    )  # fmt: skip
    for loader in (DataLoader(batch_size=6, **options) for options in given):
        model = build()  # which has seen no pixels yet
        model.compile(run_eagerly=True)
        found = model.evaluate(loader, steps=1, verbose=0)
        assert_close(found, model.evaluate(pixels(6), LABELS, batch_size=6, verbose=0), SAME)


def test_regularisation_joins_the_loss() -> None:
    model = build()
    kernel = model.classifier.kernel
    model.classifier.kernel_regularizer = None
    kernel.regularizer = keras.regularizers.L2(0.125)
    expected = float(model(pixels(), labels=LABELS[:2]).loss) + 0.125 * float(np.square(kernel.numpy()).sum())
    model.compile(run_eagerly=True)
    assert_close(float(model.test_on_batch(pixels(), LABELS[:2])), expected, SAME)


def test_freezing() -> None:
    model = build(**TWO_LAYERS)
    model.vit.trainable = False
    assert model.num_parameters(only_trainable=True) == 16 * 3 + 3
    before = {path: v.numpy() for path, v in model.variables_by_path().items()}
    model.compile("sgd", run_eagerly=True)
    fit(model, pixels(6), LABELS)
    changed = {path for path, v in model.variables_by_path().items() if not np.array_equal(v.numpy(), before[path])}
    assert changed == {"classifier/kernel", "classifier/bias"}
    model.vit.trainable = True
    model.vit.encoder.layer[0].trainable = False
    model.compile("sgd", run_eagerly=True)
    fit(model, pixels(6), LABELS)
    for path, v in model.variables_by_path().items():
        if path.startswith("vit/encoder/layer_._0"):
            np.testing.assert_array_equal(v.numpy(), before[path])
    assert not np.array_equal(model.vit.encoder.layer[1].output_.dense.kernel, before[LAYER_1])


LAYER_1 = "vit/encoder/layer_._1/output/dense/kernel"


def test_it_learns_by_a_schedule() -> None:
    keras.utils.set_random_seed(0)
    model = build(hidden_dropout_prob=0.01)
    schedule = keras.optimizers.schedules.PolynomialDecay(1e-2, 40)
    model.compile(keras.optimizers.AdamW(schedule), metrics=["accuracy"])
    history = fit(model, pixels(6), LABELS, epochs=40)
    assert history["loss"][-1] < 0.02
    assert history["accuracy"][-1] == 1
    assert float(model.optimizer.learning_rate) < 1e-3


# ---- callbacks ---------------------------------------------------------------------------------------------------


def test_callbacks(tmp_path: Path) -> None:
    """EarlyStopping restores the best weights, which ModelCheckpoint has kept in two kinds of file."""
    model = build()
    model.compile(keras.optimizers.SGD(2.0), run_eagerly=True, metrics=["accuracy"])
    weights = keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", monitor="val_loss", save_best_only=True, save_weights_only=True
    )
    whole = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True)
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True, start_from_epoch=0)
    callbacks = [weights, whole, stop, keras.callbacks.CSVLogger(tmp_path / "log.csv")]
    validation = (pixels(4, seed=1), LABELS[:4])
    found = fit(model, pixels(6), LABELS, epochs=20, validation_data=validation, callbacks=callbacks)
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= found.keys()
    best = int(np.argmin(found["val_loss"]))
    assert len(found["loss"]) == best + 3 < 20
    assert len((tmp_path / "log.csv").read_text().splitlines()) == best + 4
    other = build(options={"seed": 1})
    other.load_weights(tmp_path / "best.weights.h5")
    for kept in (model, other, keras.saving.load_model(tmp_path / "best.keras")):
        loss = float(kept(validation[0], labels=validation[1]).loss)
        assert_close(loss, found["val_loss"][best], SAME)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = build()
    model.compile("sgd", run_eagerly=True)
    callback = keras.callbacks.TensorBoard(tmp_path, write_graph=True, histogram_freq=1)
    fit(model, pixels(6), LABELS, validation_split=0.5, epochs=2, callbacks=[callback])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_loss" in written
    assert b"position_embeddings" in written


KILLED = """
import os, signal, sys
import keras, numpy as np
from vit_tf import TFViTForImageClassification, ViTConfig

class Watch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        print("epoch", epoch, flush=True)
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 5:
            os.kill(os.getpid(), signal.SIGKILL)

folder = sys.argv[1]
model = TFViTForImageClassification(ViTConfig.from_json_file(f"{folder}/config.json"), seed=0)
model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
backup = keras.callbacks.BackupAndRestore(f"{folder}/backup")
data = np.load(f"{folder}/data.npz")
model.fit(data["x"], data["y"], batch_size=3, epochs=4, shuffle=False, verbose=0, callbacks=[backup, Watch()])
"""


@pytest.mark.slow
def test_training_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    ViTConfig(**ONE_LAYER).to_json_file(tmp_path / "config.json")
    np.savez(tmp_path / "data.npz", x=pixels(6), y=LABELS)
    killed = run_alone(IN_FLOAT64 + KILLED, tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.split() == ["epoch", "0", "epoch", "1", "epoch", "2"]
    epochs: list[int] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: epochs.append(epoch))
    weights = []
    for callbacks in ([keras.callbacks.BackupAndRestore(tmp_path / "backup"), watch], []):
        model = build()
        model.compile(keras.optimizers.Adam(1e-2), run_eagerly=True)
        fit(model, pixels(6), LABELS, batch_size=3, epochs=4, callbacks=callbacks)
        weights.append([v.numpy() for v in model.variables])
    assert epochs == [2, 3]
    assert_same(*weights)


# ---- kinds of input ----------------------------------------------------------------------------------------------


def test_inputs_of_every_kind() -> None:
    model, x, mask = build("ViTForMaskedImageModeling"), pixels(), patch_mask()
    expected = model(pixel_values=x, bool_masked_pos=mask)
    for given in ([x, mask], (x, mask), {"pixel_values": x, "bool_masked_pos": mask}):
        assert_same(model(given), expected, 0.0)
    assert_same(model(x, mask), expected, 0.0)
    assert_same(model(x, bool_masked_pos=tf.constant(mask)), expected, 0.0)
    assert_same(model({"pixel_values": x}, bool_masked_pos=mask, return_dict=False), expected.to_tuple(), 0.0)
    with pytest.raises(TypeError, match="takes no colour, pixels: it takes pixel_values, bool_masked_pos, head_mask"):
        model({"pixels": x}, colour=1)
    with pytest.raises(ValueError, match="Got a list of 10 inputs"):
        model([x] * 10)


def test_what_a_processor_returns_is_an_input() -> None:
    processor = vit_tf.ViTImageProcessor(size=16)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    model = build()
    expected = model(processor([image] * 2, return_tensors="np")["pixel_values"])
    batch = processor([image] * 2, return_tensors="tf")
    assert_same(model(batch), expected, 0.0)
    assert_same(model(**batch), expected, 0.0)
    assert_same(model.predict(dict(batch), verbose=0).logits, expected.logits.numpy())


@pytest.mark.parametrize("cls", MODELS)
def test_outputs_are_nests(cls: str) -> None:
    output = build(cls, **TWO_LAYERS)(**call_of(cls), output_attentions=True)
    for doubled in (
        tf.nest.map_structure(lambda t: t * 2, output),
        keras.tree.map_structure(lambda t: t * 2, output),
        tf.function(lambda value: tf.nest.map_structure(lambda t: t * 2, value))(output),
    ):
        assert type(doubled) is type(output)
        assert doubled.hidden_states is None
        np.testing.assert_array_equal(doubled.attentions[1], output.attentions[1] * 2)
    assert len(tf.nest.flatten(output)) == len(keras.tree.flatten(output)) == len(output) - 1 + 2


@pytest.mark.parametrize("cls", MODELS)
def test_tuples_have_no_nones(cls: str) -> None:
    model, call = build(cls, **TWO_LAYERS), call_of(cls)
    for run in (model, tf.function(model)):
        fields = run(**call, output_hidden_states=True, return_dict=False)
        assert type(fields) is tuple
        assert len(fields) == 3
        assert [s.shape for s in fields[2]] == [(2, 17, 16)] * 3
        assert all(tf.is_tensor(leaf) for leaf in tf.nest.flatten(fields))


# ---- graphs ------------------------------------------------------------------------------------------------------

CALLS = {
    "plain": {},
    "options": {"output_hidden_states": True, "output_attentions": True},
    "masks": {
        "head_mask": np.array([1.0, 0.0, 1.0, 0.5]),
        "attention_mask": (np.arange(34).reshape(2, 17) % 4) != 1,
    },
    "interpolation": {"pixel_values": pixels(size=(24, 20)), "interpolate_pos_encoding": True},
}
# The trunk is the same under every head: one model takes all calls, the others those that reach their heads.
OTHERS = ("DeiTForImageClassificationWithTeacher", "BeitModel", "ViTMAEForPreTraining", "Dinov2Backbone")
CLASSES_AND_CALLS = [("ViTModel", name) for name in CALLS] + [(cls, "plain") for cls in (*MODELS[1:], *OTHERS)]


@pytest.mark.parametrize(("cls", "name"), CLASSES_AND_CALLS)
def test_a_compiled_function_equals_the_eager_call(cls: str, name: str) -> None:
    model = build(cls)
    call = with_noise(model, {**call_of(cls), **CALLS[name]})
    model.run_eagerly = True
    expected = model(**call)
    compiled = tf.function(model, jit_compile=True)(**call)
    model.run_eagerly = False
    outputs = [expected, compiled, model(**call)]
    if cls == "ViTMAEForPreTraining":  # whose mask and places are in other types
        outputs = [(output.loss, output.logits) for output in outputs]
    for found in outputs[1:]:
        assert_same(found, outputs[0])


@pytest.mark.parametrize("cls", MODELS)
def test_dynamic_sizes(cls: str) -> None:
    """One graph takes images of any number and size; positions and reconstruction follow."""
    model, spec = build(cls), tf.TensorSpec([None] * 4, tf.float64)
    model.run_eagerly = True
    function = tf.function(lambda x: model(x, interpolate_pos_encoding=True), input_signature=[spec])
    for batch, size in ((2, (16, 16)), (1, (24, 20)), (3, (7, 33))):
        x = pixels(batch, size)
        assert_same(function(x), model(x, interpolate_pos_encoding=True))


@pytest.mark.parametrize("cls", ["BeitModel", "BeitBackbone"])
@pytest.mark.parametrize("own", [True, False])
def test_dynamic_sizes_of_relative_positions(cls: str, own: bool) -> None:
    """Of a table that starts with zeros, which any index would do for."""
    model = build(cls, use_relative_position_bias=own, use_shared_relative_position_bias=not own)
    for i, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(i).standard_normal(variable.shape) / 4)
    model.run_eagerly = True
    function = tf.function(lambda x: model(x), input_signature=[tf.TensorSpec([None] * 4, tf.float64)])
    for size in ((16, 16), (24, 20)):
        assert_same(function(pixels(size=size)), model(pixels(size=size)))


def test_dynamic_sizes_of_masked_image_modelling() -> None:
    model = build("ViTForMaskedImageModeling")
    model.run_eagerly = True
    signature = [tf.TensorSpec([None, 3, None, None], tf.float64), tf.TensorSpec([None, None], tf.bool)]
    function = tf.function(
        lambda x, mask: model(x, mask, interpolate_pos_encoding=True).loss, input_signature=signature
    )
    for size, patches in (((16, 16), 16), ((24, 22), 30)):
        call = {"pixel_values": pixels(2, size), "bool_masked_pos": patch_mask(2, patches)}
        assert_same(function(*call.values()), model(**call, interpolate_pos_encoding=True).loss)


def test_unknown_rank() -> None:
    model = build()
    function = tf.function(lambda x: model(x).logits, input_signature=[tf.TensorSpec(None, tf.float64)])
    assert_same(function(pixels(3)), model(pixels(3)).logits)


def test_a_wrong_size_known_only_to_the_graph_is_an_error_in_the_same_words() -> None:
    model = build()
    spec = tf.TensorSpec([None, 3, None, None], tf.float64)
    function = tf.function(lambda x: model(x).logits, input_signature=[spec])
    assert_same(function(pixels()), model(pixels()).logits)
    words = r"Input image size \(24\*20\) doesn\\?'t match model \(16\*16\)\."
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        function(pixels(size=(24, 20)))
    with pytest.raises(ValueError, match=words):
        model(pixels(size=(24, 20)))


@pytest.mark.parametrize("name", [n for n in BAD_CALLS if n not in VALUES_ONLY])
def test_errors_have_the_same_words_while_tracing(name: str) -> None:
    cls, call, words = BAD_CALLS[name]
    model = build(cls, **TWO_LAYERS)
    with pytest.raises(ValueError, match=re.escape(words)):
        tf.function(model)(**{"pixel_values": pixels(), **call})


def test_errors_have_the_same_words_in_fit() -> None:
    model = build()
    model.compile()
    with pytest.raises(ValueError, match=r"Input image size \(24\*20\) doesn't match model \(16\*16\)\."):
        fit(model, pixels(size=(24, 20)), LABELS[:2])
    with pytest.raises(ValueError, match=r"labels must be numbers from 0 to 1 of shape \(None, 3\): got floats"):
        fit(model, pixels(), np.zeros(2, np.float32))


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range(label: int) -> None:
    """An error where values are visible, NaN in a graph."""
    model, labels = build(), np.array([0, label])
    with pytest.raises(ValueError, match=r"labels must be from 0 to 2 \(num_labels=3\)"):
        model(pixels(), labels=labels)
    loss = tf.function(lambda labels: model(pixels(), labels=labels).loss)
    assert np.isnan(loss(labels))
    assert np.isfinite(loss(np.array([0, -100])))


def test_check_numerics_finds_no_nan_in_a_loss() -> None:
    """But where the loss is NaN, by XLA too; the gradients of labels that are ignored, or none, are zeros."""
    labels = [tf.constant([0, -100]), tf.constant([0, 7])]
    losses = importlib.import_module("vit_tf.losses")
    config, mask = config_for(TOKENS, **{**ONE_LAYER, "vocab_size": 3}), tf.ones((1, 2))

    def computed(logits: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            each, count = losses._cross_entropies(logits, labels)
        return each, count, tape.gradient(each, logits), losses.visual_token_loss(logits[None], mask, labels, config)

    logits = tf.constant([[0.5, 0.0, 0.0], [1.0, 2.0, 3.0]], tf.float64)
    tf.debugging.enable_check_numerics()
    try:
        each, count, gradients, loss = tf.function(computed)(logits, labels[0])
    finally:
        tf.debugging.disable_check_numerics()
    assert each[1] == 0 and count == 1 and loss == each[0]
    wrong = tf.function(computed, jit_compile=True)(logits, labels[1])
    assert np.isnan(wrong[0][1]) and np.isnan(wrong[3])
    assert_close([wrong[0][0], wrong[2]], [each[0], gradients], SAME)
    assert not gradients[1].numpy().any()


# ---- parts and states -----------------------------------------------------------------------------------------------


def test_states_have_gradients() -> None:
    """As Grad-CAM and attention flow want them; those of a state are what the parts after it give."""
    model, x = build(**TWO_LAYERS), pixels()
    with tf.GradientTape() as tape:
        output = model(x, output_hidden_states=True, output_attentions=True)
        score = tf.reduce_sum(output.logits[:, 2])
    found = tape.gradient(score, [*output.hidden_states, *output.attentions])
    with tf.GradientTape() as tape:
        state = output.hidden_states[1]
        tape.watch(state)
        last = model.vit.layernorm(model.vit.encoder.layer[1](state))
        score = tf.reduce_sum(model.classifier(last[:, 0])[:, 2])
    assert_same(found[1], tape.gradient(score, state))
    assert all(np.abs(gradient).max() > 1e-8 for gradient in found[:2] + found[3:])


def test_functional_models_of_parts() -> None:
    """The place of transformers' hooks in Keras: a model from the input to any layer's output."""
    model, x = build(**TWO_LAYERS), pixels()
    expected = model(x, output_hidden_states=True)
    inputs = keras.Input((3, 16, 16), dtype=keras.config.floatx())
    state = model.vit.embeddings(inputs)
    encoded = model.vit.encoder(state)
    outputs = {"first": model.vit.encoder.layer[0](state), "last": encoded.last_hidden_state, "all": model(inputs)}
    with pytest.raises(TypeError, match=r"^features takes pixels, and got a KerasTensor, .*last_hidden_state"):
        model.features(inputs)
    found = keras.Model(inputs, outputs)(x)
    assert_same(found["first"], expected.hidden_states[1])
    assert_same(found["last"], expected.hidden_states[2])
    assert_same(found["all"].logits, expected.logits)


@pytest.mark.parametrize("cls", [name for name in BARE if name not in PRETRAINED])
def test_models_of_parts_are_saved_and_cloned(cls: str, tmp_path: Path) -> None:
    """What a user builds of a model's layers, in Keras's archive and by `clone_model`."""

    def rates(layer: Any) -> list[float]:
        return [each.rate for each in layer._flatten_layers() if isinstance(each, ViTDropPath)]

    options = {"use_relative_position_bias": False} if cls == "BeitModel" else {}  # it is the model that gives it
    model, x = build(cls, drop_path_rate=0.3, **options), pixels()
    inputs = keras.Input((3, 16, 16), dtype=keras.config.floatx())
    state = model.layernorm(model.encoder(model.embeddings(inputs)).last_hidden_state)
    made = keras.Model(inputs, getattr(model, "pooler", keras.layers.Flatten())(state))
    made.save(tmp_path / "parts.keras")
    loaded, cloned = keras.saving.load_model(tmp_path / "parts.keras"), keras.models.clone_model(made)
    cloned.set_weights(made.get_weights())
    for again in (loaded, cloned):
        assert_same(again(x), made(x))
        layers = [*again.get_layer("encoder").layer, *model.encoder.layer]
        assert [rates(layer) for layer in layers] == [[0.3, 0.3]] * 2 and type(layers[0]) is type(layers[1])
        assert again.get_layer("embeddings").config == model.config


# ---- channels last -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("name", ["plain", "interpolation"])
def test_channels_last_equals_channels_first(cls: str, name: str) -> None:
    first, last = (build(cls, {"data_format": f"channels_{which}"}) for which in ("first", "last"))
    first.run_eagerly = last.run_eagerly = True
    call = {**call_of(cls), **CALLS[name]}
    if name == "interpolation" and cls == "ViTForMaskedImageModeling":
        call["bool_masked_pos"] = patch_mask(2, 30)
    expected, actual = first(**call), last(**{**call, "pixel_values": call["pixel_values"].transpose(0, 2, 3, 1)})
    if cls == "ViTForMaskedImageModeling":
        assert expected.loss is not None
        actual.reconstruction = tf.transpose(actual.reconstruction, (0, 3, 1, 2))
    assert_same(actual, expected)


def test_channels_last_errors() -> None:
    model = build(options={"data_format": "channels_last"})
    with pytest.raises(ValueError, match="Expected 3 but got 16"):
        model(pixels())
    with pytest.raises(ValueError, match=r"4 dimensions, \(batch, height, width, channels\)"):
        model(pixels()[0])
    with pytest.raises(ValueError, match="data_format must be one of channels_first, channels_last, got 'NHWC'"):
        build(options={"data_format": "NHWC"})


def test_folders_of_images_are_learnt(tmp_path: Path) -> None:
    """Keras's own input pipeline feeds a channels_last model."""
    draw = np.random.default_rng(0)
    for i, colour in enumerate(((200, 30, 30), (30, 200, 30), (30, 30, 200))):
        (tmp_path / f"class_{i}").mkdir()
        for j in range(4):
            image = np.clip(draw.normal(colour, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"class_{i}" / f"{j}.png")
    folder = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(16, 16), batch_size=4, seed=0, verbose=False
    )
    images = folder.map(lambda x, y: (keras.layers.Rescaling(1 / 127.5, offset=-1)(x), y))
    model = build(options={"data_format": "channels_last"})
    model.compile(keras.optimizers.Adam(3e-3), metrics=["accuracy"])
    assert fit(model, images, epochs=8)["accuracy"][-1] == 1
    assert model.predict(images, verbose=0).logits.shape == (12, 3)


# ---- dropout and gradient checkpointing ----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", [False, True])
def test_dropout_only_in_training_and_by_the_seed(graph: bool) -> None:
    def seeded() -> Any:
        keras.utils.set_random_seed(0)
        return build(**RATES, **TWO_LAYERS)

    model, twin = seeded(), seeded()
    run, again = (tf.function(m) if graph else m for m in (model, twin))
    quiet = run(pixels()).logits
    np.testing.assert_array_equal(quiet, run(pixels(), training=False).logits)
    assert_same(quiet, build(**TWO_LAYERS)(pixels()).logits)
    first, second = (run(pixels(), training=True, output_attentions=True) for _ in range(2))
    assert_same(again(pixels(), training=True, output_attentions=True), first, 0.0)
    assert not np.array_equal(first.logits, second.logits)
    assert not np.array_equal(first.logits, quiet)
    dropped = [np.asarray(a) == 0 for a in first.attentions]
    assert all(0.2 < d.mean() < 0.4 for d in dropped)
    assert not np.array_equal(*dropped)  # each layer draws its own


def test_the_seed_repeats_initialisation_and_training() -> None:
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        model = build(options={"seed": None}, **RATES)
        model.compile("sgd")
        fit(model, pixels(6), LABELS, shuffle=True, batch_size=2)
        found.append([v.numpy() for v in model.variables])
    assert_same(found[0], found[1], 0.0)


def twins(cls: str, **changes: Any) -> tuple[Any, Any]:
    """A model and its twin with gradient checkpointing, of equal random state."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        models.append(build(cls, **changes))
    models[1].gradient_checkpointing_enable()
    assert models[1].is_gradient_checkpointing and not models[0].is_gradient_checkpointing
    return models[0], models[1]


@pytest.mark.parametrize(
    ("cls", "kind"),
    [*((cls, "eager") for cls in (MODELS[1], "Dinov2Model", "BeitModel")), (MODELS[1], "graph"), ("BeitModel", "graph"),
     pytest.param(MODELS[0], "XLA", marks=pytest.mark.slow)],
)  # fmt: skip
def test_gradient_checkpointing_has_the_same_loss_and_gradients(cls: str, kind: str) -> None:
    """A layer may be recomputed after another in graphs, and by `fit`."""
    found = []
    for model in twins(cls, **RATES, **(TWO_LAYERS if kind == "graph" else {})):
        model.run_eagerly = kind == "eager"

        def step(model: Any = model) -> Any:
            return value_and_gradients(model, call_of(cls), training=True, output_attentions=True)

        run = step if kind == "eager" else tf.function(step, jit_compile=kind == "XLA", autograph=False)
        found.append([run(), run()])  # the second with other masks
    assert_same(found[1], found[0])
    assert float(found[0][0][0]) != float(found[0][1][0])


def test_gradient_checkpointing_in_fit() -> None:
    found = []
    for model in twins("ViTForImageClassification", **RATES, **TWO_LAYERS):
        model.compile(keras.optimizers.SGD(0.1))
        losses = fit(model, pixels(6), LABELS, batch_size=3, epochs=3)["loss"]
        found.append([np.array(losses), *(v.numpy() for v in model.trainable_variables)])
    assert_same(found[1], found[0])


def test_gradient_checkpointing_computes_twice_and_only_in_training() -> None:
    counts = []

    def act(x: Any) -> Any:
        counts.append(x.shape)
        return tf.nn.relu(x)

    for model in twins("ViTForImageClassification", hidden_act=act, **TWO_LAYERS):
        model.run_eagerly = True
        for training in (True, False):
            counts.append(0)
            value_and_gradients(model, call_of("ViTForImageClassification"), training=training)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    counts.append(0)
    value_and_gradients(model, call_of("ViTForImageClassification"), training=True)
    assert "".join("|" if count == 0 else "." for count in counts) == "|..|..|....|..|.."


# ---- Keras's own files -------------------------------------------------------------------------------------------


def functional(model: Any) -> Any:
    """A Functional model with the model as its layer."""
    inputs = keras.Input((3, 16, 16), name="image")
    output = model(keras.layers.Rescaling(2.0)(inputs), output_hidden_states=True)
    pooled = keras.layers.GlobalAveragePooling1D()(output.hidden_states[1])
    return keras.Model(inputs, {"logits": output.logits, "pooled": keras.layers.Dense(2)(pooled)})


def test_a_layer_of_a_functional_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build()
    model.summary(expand_nested=True)
    assert f"Total params: {model.num_parameters():,}" in capsys.readouterr().out
    inputs = keras.Input((3, 16, 16))
    outer = keras.Model(inputs, model(inputs).logits)
    assert outer.output_shape == (None, 3)
    assert_same(outer(pixels()), model(pixels()).logits, 0.0)
    outer.summary()
    assert "TFViTForImageClassification" in capsys.readouterr().out
    outer.compile(keras.optimizers.SGD(0.1), keras_loss(), metrics=["accuracy"])
    fit(outer, pixels(6), LABELS, batch_size=3, epochs=2)
    plain = build()
    plain.compile(keras.optimizers.SGD(0.1), keras_loss(), run_eagerly=True)
    fit(plain, pixels(6), LABELS, batch_size=3, epochs=2)
    assert_same(
        [v.numpy() for v in outer.trainable_variables],
        [v.numpy() for v in plain.trainable_variables],
    )
    two = functional(build())
    two.save(tmp_path / "two.keras")
    assert_same(keras.saving.load_model(tmp_path / "two.keras")(pixels()), two(pixels()))


def test_symbolic_inputs_by_name_and_with_options() -> None:
    model = build("ViTForMaskedImageModeling")
    kinds = {"pixel_values": ((3, 24, 20), "float64"), "bool_masked_pos": ((30,), "bool")}
    inputs = {name: keras.Input(shape, dtype=dtype, name=name) for name, (shape, dtype) in kinds.items()}
    output = model(inputs, interpolate_pos_encoding=True)
    assert type(output) is vit_tf.MaskedImageModelingOutput
    assert output.reconstruction.shape == (None, 3, 24, 20)
    outer = keras.Model(inputs, {"image": output.reconstruction, "loss": output.loss})
    call = {"pixel_values": pixels(size=(24, 20)), "bool_masked_pos": patch_mask(2, 30)}
    expected = model(**call, interpolate_pos_encoding=True)
    assert_same(outer(call), {"image": expected.reconstruction, "loss": expected.loss})
    with pytest.raises(ValueError, match="doesn't match model"):
        model(keras.Input((3, 24, 20)))
    for given in ((inputs,), tuple(inputs.values()), (call,)):
        spec = model.compute_output_spec(*given, interpolate_pos_encoding=True)
        assert spec.reconstruction.shape == (None if given[0] is not call else 2, 3, 24, 20)


RELOADED = """
import sys
import keras, numpy as np
import vit_tf

folder = sys.argv[1]
data = np.load(f"{folder}/data.npz")
model = keras.saving.load_model(f"{folder}/model.keras")
before = model(data["x"]).logits.numpy()
iterations = float(model.optimizer.iterations)
for n in (1, 2, 3, 4, 5, 6):
    model(data["x"][:n], labels=data["y"][:n])
model.predict(data["x"], batch_size=4, verbose=0)
model.evaluate(data["x"], data["y"], batch_size=4, verbose=0)
model.fit(data["x"], data["y"], epochs=2, shuffle=False, verbose=0)
two = keras.saving.load_model(f"{folder}/two.keras")(data["x"])
weights = [v.numpy() for v in model.variables]
np.savez(f"{folder}/found.npz", before, iterations, two["logits"], two["pooled"], *weights)
"""

SERVED = """
import sys
sys.modules["vit_tf"] = sys.modules["vit_core"] = None  # not to be imported
import numpy as np, tensorflow as tf

folder = sys.argv[1]
for name in ("first", "last"):
    loaded = tf.saved_model.load(f"{folder}/{name}")
    signature = loaded.signatures["serving_default"]
    for file in (1, 5):
        x = np.load(f"{folder}/{name}_{file}.npy")
        served = loaded.serve(x)
        for key, value in signature(pixel_values=tf.constant(x)).items():
            np.testing.assert_array_equal(value, served[key])
        np.savez(f"{folder}/{name}_{file}_found.npz", *[served[key] for key in sorted(served)])
loaded = tf.saved_model.load(f"{folder}/any")
any_size = loaded.serve
np.save(f"{folder}/any_found.npy", any_size(np.load(f"{folder}/first_5.npy"))["logits"])
try:
    any_size(np.ones((2, 3, 24, 20)))
except tf.errors.InvalidArgumentError as error:
    assert "Input image size (24*20)" in str(error)
else:
    raise AssertionError("an image of another size was served")
assert not [name for name, module in sys.modules.items() if name.startswith("vit_") and module is not None]
del sys.modules["vit_tf"], sys.modules["vit_core"]
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The folder of Keras's own files, and what is expected of a process that goes on with them."""
    folder = tmp_path_factory.mktemp("saved")
    np.savez(folder / "data.npz", x=pixels(6), y=LABELS)
    model = build(id2label={0: "cat", 1: "dog", 2: "owl"})
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), metrics=["accuracy"])
    fit(model, pixels(6), LABELS, epochs=3)
    model.save(folder / "model.keras")
    two = functional(model)
    two.save(folder / "two.keras")
    expected = [
        model(pixels(6)).logits.numpy(),
        np.array(3.0),
        *(two(pixels(6))[n].numpy() for n in ("logits", "pooled")),
    ]
    fit(model, pixels(6), LABELS, epochs=2)
    return folder, expected + [v.numpy() for v in model.variables]


@pytest.fixture(scope="module")
def exported(saved: tuple[Path, Any]) -> dict[tuple[str, int], Any]:
    """What is expected of the models that are exported to the same folder."""
    models = {
        "first": build(output_hidden_states=True, return_dict=False),
        "last": build("ViTForMaskedImageModeling", {"data_format": "channels_last"}),
    }
    expected, folder = {}, saved[0]
    for name, model in models.items():
        with redirect_stdout(StringIO()) as said:
            model.export(folder / name, verbose=False)
        assert said.getvalue() == ""
        for batch in (1, 5):
            x = pixels(batch) if name == "first" else pixels(batch).transpose(0, 2, 3, 1)
            np.save(folder / f"{name}_{batch}.npy", x)
            output = model(x, return_dict=True)
            expected[name, batch] = tf.nest.flatten([v for _, v in sorted(output.items())])
    any_size = build()
    spec = tf.TensorSpec((None, 3, None, None), tf.float64, name="pixel_values")
    kind = importlib.import_module("vit_tf.serving").Serving
    with patch.object(kind, "_serve", autospec=True, side_effect=kind._serve) as traced:
        any_size.export(folder / "any", verbose=False, input_signature=[spec])
    assert traced.call_count <= 2  # by Keras and by TensorFlow, and of no signature that is not asked for
    return expected


@pytest.fixture(scope="module")
def fresh(saved: tuple[Path, Any], exported: Any) -> Path:
    """The folder of what a process leaves that serves what is exported, loads what is saved, and ends with PyTorch."""
    folder = saved[0]
    programs = [SERVED, IN_FLOAT64, RELOADED, *([BOTH] if is_installed("torch") else ())]
    options = {"PYTHONWARNINGS": "error", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT / "tests")}
    done = run_alone("\n".join(programs), folder, SAFETENSORS, "tf", "torch", **options)
    assert done.returncode == 0, done.stderr
    assert "WARNING:tensorflow" not in done.stderr  # it logs of repeated tracing, for one
    assert "retracing" not in done.stderr
    return folder


@pytest.mark.slow
def test_a_saved_model_goes_on_in_a_fresh_process(saved: tuple[Path, Any], fresh: Path) -> None:
    """Which has only to import vit_tf; the optimiser's state is saved with it."""
    assert_same(list(np.load(fresh / "found.npz").values()), saved[1])


@pytest.mark.slow
def test_exported_models_are_served_by_tensorflow_alone(exported: dict[tuple[str, int], Any], fresh: Path) -> None:
    assert_close(np.load(fresh / "any_found.npy"), np.asarray(exported["first", 5][-1]), SAME)
    for (name, batch), output in exported.items():
        found = list(np.load(fresh / f"{name}_{batch}_found.npz").values())
        assert_same(found, arrays(output))


@pytest.mark.parametrize("cls", EVERY_MODEL)
def test_saving_and_loading(cls: str, tmp_path: Path) -> None:
    options = {"data_format": "channels_last", "name": "mine", "dtype": "mixed_bfloat16"}
    if cls in ("ViTModel", "DeiTModel"):
        options |= {"use_mask_token": True, "add_pooling_layer": False}
    layers = TWO_LAYERS if cls == "ViTModel" else {}
    model = build(cls, options, id2label={0: "cat", 1: "dog"}, image_size=(8, 16), hidden_act="gelu_new", **layers)
    call = with_noise(model, {"pixel_values": pixels(size=(8, 16)).transpose(0, 2, 3, 1)})
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.saving.load_model(tmp_path / "model.keras")
    copies = [again, type(model).from_config(model.get_config())]
    copies[1].load_weights(tmp_path / "model.weights.h5")
    if cls in ("ViTModel", *OTHERS):
        copies += [keras.models.clone_model(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        copies[2].load_weights(tmp_path / "model.weights.h5")
    for other in (model, *copies):
        other.run_eagerly = cls != "ViTModel"  # whose graphs are traced
    expected = model(**call)
    for other in copies:
        assert type(other) is type(model)
        assert other.get_config() == model.get_config()
        assert other.config.to_dict() == model.config.to_dict()
        assert other.config.id2label == {0: "cat", 1: "dog"}
        assert (other.data_format, other.name, other.dtype_policy.name) == tuple(options.values())[:3]
        assert set(other.variables_by_path()) == set(model.variables_by_path())
        assert_same(other(**call), expected, 0.0)


@pytest.mark.parametrize(("cls", "layer_scale"), [(cls, 0.5) for cls in EVERY_MODEL] + [(cls, 0.0) for cls in MODELS])
def test_the_core_reads_and_writes_keras_weights(cls: str, layer_scale: float, tmp_path: Path) -> None:
    """Raw arrays have names in them; what is written has the structure that Keras gives it."""
    values = TINY if cls in MODELS else ONE_LAYER
    made, config = getattr(vit_tf, f"TF{cls}"), config_for(cls, **values, layer_scale=layer_scale)
    model = made(config, seed=0)
    for i, variable in enumerate(model.weights):
        variable.assign(np.random.default_rng(i).standard_normal(variable.shape))
    theirs, ours = tmp_path / "theirs.weights.h5", tmp_path / "ours.weights.h5"
    model.save_weights(theirs)
    leaves = {name.rpartition("/vars/")[2] for name in read_keras_h5(theirs)} - {"0", "1"}
    assert leaves == {spec.row.module.rpartition(".")[2] for spec in model.specs().values() if spec.kind == "raw"}
    alike = cls.startswith("ViTMSN") or cls == "ViTMAEModel"  # whose file is like a ViT's
    for found in (read(theirs, num_attention_heads=4), read(theirs, config=model.config)):
        assert found.family is (VIT if alike and found.config is not model.config else model.family())
        assert {n: t.read().tobytes() for n, t in found.tensors.items()} == {
            n: t.read().tobytes() for n, t in model.to_tensors().items()
        }
    untold = read(theirs, num_attention_heads=4)
    assert untold.config.layer_norm_eps == untold.family.config().layer_norm_eps
    source = tmp_path / "saved" if alike else theirs
    if alike:
        (source / "config.json").parent.mkdir()
        (source / "config.json").write_text(config.to_json_string())
        (source / "model.weights.h5").write_bytes(theirs.read_bytes())
    convert(source, ours, to="keras", num_attention_heads=4)
    assert read_keras_h5(ours).keys() == read_keras_h5(theirs).keys()
    other = made(config, seed=1)
    other.load_weights(ours)
    assert_same([v.numpy() for v in other.weights], [v.numpy() for v in model.weights], 0.0)


def test_weights_without_registers_of_a_model_that_may_have_some(tmp_path: Path) -> None:
    cls, path = "Dinov2WithRegistersModel", tmp_path / "model.weights.h5"
    getattr(vit_tf, f"TF{cls}")(config_for(cls, **ONE_LAYER, num_register_tokens=0)).save_weights(path)
    assert read(path, num_attention_heads=4, family=DINOV2_WITH_REGISTERS).config.num_register_tokens == 0


@pytest.mark.parametrize("cls", MODELS)
def test_older_keras_weights_number_the_raw_arrays(cls: str, tmp_path: Path) -> None:
    model, path = build(cls), tmp_path / "model.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        group = file[f"{'' if cls == 'ViTModel' else 'layers/tf_vi_t_model/'}embeddings/vars"]
        names = ("cls_token", "mask_token", "position_embeddings")
        for i, name in enumerate(name for name in names if name in group):
            group.move(name, str(i))
    assert {n: t.read().tobytes() for n, t in read(path, config=model.config).tensors.items()} == {
        n: t.read().tobytes() for n, t in model.to_tensors().items()
    }
    other = build(cls, {"seed": 1})
    other.load_weights(path)
    assert_same([v.numpy() for v in other.weights], [v.numpy() for v in model.weights], 0.0)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    build().save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"could not be loaded.* name=classifier"):
        build(num_labels=4).load_weights(tmp_path / "model.weights.h5")


@pytest.mark.parametrize(("cls", "signed"), [(MODELS[1], False), (TEACHER, False), (MODELS[1], True)])
def test_what_tensorflow_saves_after_a_call(cls: str, signed: bool, tmp_path: Path) -> None:
    """Without signatures it gets that of `export`."""
    model, x = build(cls), pixels(3)
    expected = model(x)
    spec = tf.TensorSpec((None, 3, 16, 16), model.variable_dtype, name="images")
    serve = tf.function(lambda images: {"found": model(images)[0]}, input_signature=[spec])
    tf.saved_model.save(model, tmp_path / "saved", signatures={"serving_default": serve} if signed else None)
    signature = tf.saved_model.load(tmp_path / "saved").signatures["serving_default"]
    if signed:
        assert_same(signature(images=x)["found"], expected[0])
    else:
        assert_same(signature(pixel_values=x), dict(expected))


@pytest.mark.skipif(tuple(map(int, keras.__version__.split(".")[:2])) < (3, 15), reason="Keras 3.14 does not do it")
@pytest.mark.filterwarnings("ignore")  # of TensorFlow's converter and interpreter
@pytest.mark.parametrize("cls", ["ViTModel", "ViTForMaskedImageModeling"])
def test_litert(cls: str, tmp_path: Path) -> None:
    model, x = build(cls, {"dtype": "float32"}), pixels(3).astype("float32")
    expected, path = model(x), str(tmp_path / "vit.tflite")
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(path)
    found = interpreter.get_signature_runner("serving_default")(pixel_values=x)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert_close(value, expected[name].numpy(), tolerances.both_rounded(model.config), name)


@pytest.mark.filterwarnings("ignore")  # of TensorFlow's converter and interpreter
def test_the_converter_of_tensorflow_takes_a_model() -> None:
    """`from_keras_model` asks Keras for the shape that the model was built with, whether it was called or not."""
    model, x = build(options={"dtype": "float32"}), pixels(1).astype("float32")
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    found = tf.lite.Interpreter(model_content=content).get_signature_runner("serving_default")(pixel_values=x)
    assert_close(found["logits"], model(x).logits.numpy(), tolerances.both_rounded(model.config))


@pytest.mark.filterwarnings("ignore")  # of the converters
@pytest.mark.parametrize("cls", ["ViTForImageClassification", "BeitModel", "Dinov2Backbone"])
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_exports_of_keras(cls: str, form: str, tmp_path: Path) -> None:
    """For any number of pictures, with the outputs under their names and no others."""
    runtime = pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[form])
    pytest.importorskip({"onnx": "tf2onnx", "openvino": "openvino"}[form])
    model, x = build(cls, {"dtype": "float32"}), pixels(3).astype("float32")
    path = tmp_path / {"onnx": "vit.onnx", "openvino": "vit.xml"}[form]
    model.export(path, format=form, verbose=False)
    if form == "onnx":
        session = runtime.InferenceSession(path)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {"pixel_values": x}), strict=True))
    else:
        compiled = runtime.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        values = compiled({"pixel_values": x})
        found = {name: values[name] for name in named(model(x))}
        assert len(compiled.outputs) == len(found)
    expected = named(model(x))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(found[name], value.numpy(), tolerances.both_rounded(model.config), name)


@pytest.mark.parametrize(
    ("cls", "kind"), [("ViTMAEModel", "onnx"), ("ViTMAEForPreTraining", "litert"), ("ViTMAEModel", "openvino")]
)
def test_keras_exports_no_mae_where_noise_has_no_operation(cls: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{kind} has no operation for the noise of an MAE"):
        build(cls).export(str(tmp_path / "mae.tflite"), format=kind, verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "ViTMAEForPreTraining", "Dinov2Model"])
def test_checkpoints_of_tensorflow_hold_every_variable(cls: str, tmp_path: Path) -> None:
    """The random states of dropout and drop path as well, which Keras itself leaves out."""
    rates = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2, "drop_path_rate": 0.2}
    model, other = (build(cls, {"seed": seed}, **rates) for seed in (0, 1))
    path = tf.train.Checkpoint(model=model).save(tmp_path / "vit")
    tf.train.Checkpoint(model=other).restore(path).assert_consumed()
    for variable, restored in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(restored, variable)


def test_a_model_in_training_is_saved_for_tensorflow(tmp_path: Path) -> None:
    """A signature that drops out draws from states, which have to be the model's."""
    model = build(hidden_dropout_prob=0.5)
    drawn = tf.function(lambda x: model(x, training=True).logits, input_signature=[model._pixels_spec()])
    tf.saved_model.save(model, str(tmp_path), signatures={"train": drawn})
    train = tf.saved_model.load(str(tmp_path)).signatures["train"]
    one, other = (train(pixel_values=tf.constant(pixels()))["output_0"] for _ in range(2))
    assert (one.numpy() != other.numpy()).any()


# ---- functional models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "BeitModel"])
def test_a_functional_model(cls: str, tmp_path: Path) -> None:
    model, x = build(cls), pixels(3)
    expected = model(x, output_hidden_states=True, output_attentions=True)
    first = next(iter(expected))
    assert_same(model.functional(first)(x), expected[first])
    names = [first, "last_hidden_state", "attentions", "hidden_states"]
    whole = model.functional(names)
    found = whole(x)
    assert_same([found[name] for name in (first, *names[2:])], [expected[name] for name in (first, *names[2:])])
    assert_same(found["last_hidden_state"], model.base_model(x).last_hidden_state)
    whole.save(tmp_path / "vit.keras")
    assert_close(keras.saving.load_model(tmp_path / "vit.keras")(x), found, SAME)  # with lists for tuples
    sliced = keras.Model(whole.input, [whole.output["hidden_states"][1], whole.output[first]])  # as for Grad-CAM
    with tf.GradientTape() as tape:
        states, output = sliced(x)
    assert tape.gradient(output, states).shape == (3, 17, 16)


def test_metrics_of_a_functional_model_of_a_compiled_one() -> None:
    """Are its own; those of the model within, of the same names, are left as they are."""
    model, x, y = build(), pixels(3), np.array([0, 1, 2])
    model.compile("sgd", metrics=["accuracy"])
    outer = keras.Sequential([model.functional("logits")])
    outer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    loss, accuracy = outer.evaluate(x, y, verbose=0)
    logits = model(x).logits.numpy()
    assert_close(loss, np.log(np.exp(logits).sum(1) / np.exp(logits[[0, 1, 2], y])).mean(), SAME)
    assert accuracy == (logits.argmax(1) == y).mean()
    assert len(outer.metrics) == 2


NO_OUTPUTS = [("ViTForImageClassification", "features"), ("ViTModel", "probabilities"), ("ViTModel", [])]


@pytest.mark.parametrize(("cls", "names"), NO_OUTPUTS)
def test_outputs_that_a_functional_model_has_not(cls: str, names: Any) -> None:
    words = rf"outputs of a TF{cls} must be a name or a list of .*: got {re.escape(repr(names))}"
    with pytest.raises(ValueError, match=words):
        build(cls).functional(names)


# ---- dtypes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    """A global dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def assert_computes_in(model: Any, policy: str) -> None:
    compute = policy.removeprefix("mixed_")
    variable = "float32" if policy.startswith("mixed") else compute
    output = model(pixels(), labels=LABELS[:2], output_hidden_states=True, output_attentions=True)
    assert {v.dtype for v in model.weights} == {variable}
    assert {t.dtype.name for name in output if name != "loss" for t in tf.nest.flatten(output[name])} == {compute}
    assert output.loss.dtype == ("float64" if compute == "float64" else "float32")


def test_weights_of_no_loss_are_refused() -> None:
    with pytest.raises(ValueError, match=r"loss_weights=0\.5 are those of losses given to compile"):
        build().compile("sgd", loss_weights=0.5)


def test_a_loss_and_targets_by_the_name_of_the_main_output() -> None:
    model, x, y = build(), pixels(), LABELS[:2]
    expected = float(model(x, labels=y).loss)
    for targets in (y, {"logits": y}, {"labels": y}):
        model.compile(loss={"logits": keras_loss()}, loss_weights={"logits": 0.5}, metrics={"logits": ["accuracy"]})
        found = model.evaluate(x, targets, verbose=0, return_dict=True)
        assert_close(found["loss"], expected / 2, SAME)
        assert "accuracy" in found
    with pytest.raises(ValueError, match=r'Losses in a dict must be those of {"logits": \.\.\.}, got attentions\.'):
        model.compile(loss={"attentions": keras_loss()})


def test_a_call_of_ones_own_hands_on_what_it_does_not_name() -> None:
    """It takes what the next class's call takes, and drops out in training."""

    class All(vit_tf.TFViTForImageClassification):
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return super().call(*args, **kwargs)

    class Own(All):
        def call(this, pixel_values: Any, training: bool = False, scale: float = 1.0, **others: Any) -> Any:
            return super().call(scale * pixel_values, training=training, **others)

    plain = build(hidden_dropout_prob=0.5)
    expected = plain(pixels(), labels=LABELS[:2], output_attentions=True)
    for cls in (All, Own):
        model = cls(plain.config)
        model.set_weights(plain.get_weights())
        assert_same(model(pixels(), labels=LABELS[:2], output_attentions=True), expected)
        with pytest.raises(TypeError, match=f"{cls.__name__} takes no noise: it takes pixel_values, "):
            model(pixels(), noise=0.0)
        model.compile(keras.optimizers.SGD(0.0))
        assert_close(model.evaluate(pixels(), LABELS[:2], verbose=0), float(expected.loss), SAME)
        assert fit(model, pixels(), LABELS[:2])["loss"][0] != pytest.approx(float(expected.loss), rel=1e-3)


@pytest.mark.parametrize("cls", ["ViTModel", "ViTForImageClassification"])
def test_features_ask_nothing_of_a_call_of_ones_own(cls: str) -> None:
    plain = build(cls)
    base = type(plain)

    def call(self: Any, pixel_values: Any, training: bool = False) -> Any:
        return base.call(self, pixel_values, training=training)

    own = type("Own", (base,), {"call": call})
    assert_same(own(plain.config, seed=0).features(pixels()), plain.features(pixels()))


def test_compile_without_a_loss_is_the_models_own_whatever_was_before() -> None:
    config = ViTConfig.from_pretrained(CHECKPOINTS / "cls" / "pt_safetensors")
    model = vit_tf.TFViTForImageClassification(config, seed=0)
    x, y = np.zeros((2, 3, 32, 32), np.float32), np.array([0, 1])
    model.compile(keras.optimizers.SGD(0.0))
    own = model.evaluate(x, y, verbose=0)
    model.compile(keras.optimizers.SGD(0.0), keras.losses.MeanSquaredError())
    assert abs(model.evaluate(x, np.zeros((2, config.num_labels)), verbose=0) - own) > 1
    model.compile(keras.optimizers.SGD(0.0))
    assert model.loss is None
    assert model.evaluate(x, y, verbose=0) == own


def test_frozen_layers_and_the_optimizer_come_back(tmp_path: Path) -> None:
    """From Keras's own file: without the warning, an error here, of an optimizer that is left out."""
    config = ViTConfig.from_pretrained(CHECKPOINTS / "cls" / "pt_safetensors")
    model = vit_tf.TFViTForImageClassification(config)
    x, y = np.random.default_rng(0).random((4, 3, 32, 32), np.float32), np.array([0, 1, 2, 1])

    def trunk_alone() -> None:
        model.vit.trainable = False

    def one_layer_of_a_frozen_encoder() -> None:
        model.trainable = True
        model.vit.encoder.trainable = False
        model.vit.encoder.layer[1].trainable = True

    for freeze in (trunk_alone, one_layer_of_a_frozen_encoder):
        freeze()
        model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
        model.fit(x, y, verbose=0)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
        expected, found = ([v.path.partition("/")[2] for v in m.trainable_variables] for m in (model, again))
        assert found == expected and 0 < len(found) < len(model.variables) - 10
        for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
            assert np.array_equal(one, other)
        assert float(again.optimizer.iterations) == 1


def test_lora_comes_back(tmp_path: Path) -> None:
    """From Keras's own file, merged and with the optimizer, to be trained further; in clones as it was."""
    model = build()
    model.vit.layernorm.trainable = False
    model.vit.encoder.layer[0].attention.attention.query.enable_lora(2, lora_alpha=3)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    fit(model, pixels(6), LABELS)
    expected = model(pixels()).logits
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert_same(clone(pixels()).logits, expected, 0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(again(pixels()).logits, expected)
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        assert np.array_equal(one, other)
    paths = ([v.path.partition("/")[2] for v in m.trainable_variables] for m in (model, again))
    assert next(paths) == next(paths)
    dense = again.vit.encoder.layer[0].attention.attention.query
    assert (dense.lora_rank, dense.lora_alpha) == (2, 3)
    assert not np.any(dense.lora_kernel_b)
    fit(again, pixels(6), LABELS)
    assert np.any(dense.lora_kernel_b)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64", "bfloat16"], indirect=True)
def test_global_dtype_policies(policy: str) -> None:
    model = build()
    assert_computes_in(model, policy)
    loaded = vit_tf.TFViTForImageClassification.from_pretrained(SAFETENSORS)
    exact = vit_tf.TFViTForImageClassification.from_pretrained(SAFETENSORS, dtype="float64")
    assert (loaded.dtype_policy.name, exact.dtype_policy.name) == (policy, "float64")
    x = pixels(size=(32, 32))
    compute = policy.removeprefix("mixed_")
    bound = SAME if compute == "float64" else tolerances.rounding(exact.config, compute)
    assert_close(np.float64(loaded(x).logits), exact(x).logits, bound)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_dtype_policies_of_one_model(policy: str) -> None:
    model = build(options={"dtype": policy})
    assert_computes_in(model, policy)
    model.gradient_checkpointing_enable()
    scaled = policy == "mixed_float16"
    model.compile(keras.optimizers.SGD(0.01), metrics=["accuracy"])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == scaled
    losses = fit(model, pixels(6).astype(np.float64), LABELS, epochs=6 if scaled else 3)["loss"]
    assert losses[-1] < losses[0]
    assert {v.dtype for v in model.weights} == {model.variable_dtype}


def test_policies_by_path_leave_out_what_is_left_out() -> None:
    model = build(options={"dtype": keras.dtype_policies.DTypePolicyMap("float32")}, num_labels=0)
    assert model(pixels()).logits.dtype == "float32"


# ---- processes, devices, frameworks ------------------------------------------------------------------------------

TWO_DEVICES = """
import json, os, sys
import numpy as np, keras, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from vit_tf import TFViTForImageClassification, TFViTModel, ViTConfig

folder = sys.argv[1]
"""

MEMORY = """
os.sched_setaffinity(0, range(os.cpu_count()))  # of the suite it has one core, where other peaks are
sizes = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256, "image_size": 128, "patch_size": 8}
config = ViTConfig(num_hidden_layers=6, **sizes)
peaks = []
for frugal in (True, False):
    model = TFViTModel(config, add_pooling_layer=False)
    if frugal:
        model.gradient_checkpointing_enable()

    @tf.function(input_signature=[tf.TensorSpec((None, 3, 128, 128))])
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True).last_hidden_state))
        return tape.gradient(loss, model.trainable_variables)

    step(tf.zeros((1, 3, 128, 128)))
    before = peak()
    step(tf.ones((8, 3, 128, 128)))
    peaks.append(peak() - before)
with open(f"{folder}/peaks.json", "w") as file:
    json.dump(peaks, file)
"""

MIRRORED = """
data = np.load(f"{folder}/data.npz")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
found = []
for loss in (None, keras.losses.SparseCategoricalCrossentropy(from_logits=True)):
    with strategy.scope():
        model = TFViTForImageClassification(ViTConfig.from_json_file(f"{folder}/config.json"), seed=0)
        model.compile(keras.optimizers.SGD(0.1), loss=loss, metrics=["accuracy"])
    history = model.fit(data["x"], data["y"], batch_size=6, epochs=2, shuffle=False, verbose=0).history
    found.append(np.array([history["loss"], history["accuracy"]]))
found.append(model.predict(data["x"], batch_size=6, verbose=0).logits)
np.savez(f"{folder}/found.npz", *found)
"""

BOTH = """
import importlib, sys
import numpy as np
from closeness import assert_close
packages = [importlib.import_module(f"vit_{name}") for name in sys.argv[3:]]
models = [p.ViTForImageClassification.from_pretrained(sys.argv[2], dtype="float64") for p in packages]
kinds = {"vit_torch": "pt", "vit_tf": "tf"}
found = {}
for package, model in zip(packages, models):
    processor = package.ViTImageProcessor(size=32)
    image = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    logits = model(**processor(image, return_tensors=kinds[package.__name__])).logits
    found[package.__name__] = logits.detach().numpy() if hasattr(logits, "detach") else logits.numpy()
assert_close(*found.values(), 1e-10)
np.savez(f"{sys.argv[1]}/both.npz", **found)
"""


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what one process leaves of several programs, each of which is shorter than TensorFlow's import.

    What is freed goes back to the system at once: else the peak is that of the holes malloc keeps.
    """
    folder = tmp_path_factory.mktemp("left")
    ViTConfig(**ONE_LAYER).to_json_file(folder / "config.json")
    np.savez(folder / "data.npz", x=pixels(6), y=LABELS)
    programs = [TWO_DEVICES, *([PEAK, MEMORY] if sys.platform == "linux" else ()), IN_FLOAT64, MIRRORED]
    if is_installed("torch"):
        programs = ["import vit_torch", *programs, BOTH]
    options = {"MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT / "tests")}
    output_of("\n".join(programs), folder, SAFETENSORS, "torch", "tf", **options)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_gradient_checkpointing_saves_memory(left: Path) -> None:
    """The peak of a compiled step on 257 tokens in 6 layers: 78 and 221 MB measured, of arrays that are held."""
    frugal, plain = json.loads((left / "peaks.json").read_text())
    assert frugal < plain / 2


@pytest.mark.slow
def test_two_mirrored_devices_equal_one(left: Path) -> None:
    model = build()
    model.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"], run_eagerly=True)
    history = fit(model, pixels(6), LABELS, batch_size=6, epochs=2)
    losses = np.array([history["loss"], history["accuracy"]])
    expected = [losses, losses, model.predict(pixels(6), verbose=0).logits]
    assert_same(list(np.load(left / "found.npz").values()), expected)


def test_another_keras_backend_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    monkeypatch.delitem(sys.modules, "vit_tf")
    words = "^vit_tf needs Keras on TensorFlow, but Keras runs on 'jax': set the environment"
    with pytest.raises(ImportError, match=words) as caught:
        importlib.import_module("vit_tf")
    assert caught.value.__context__ is None


@pytest.mark.slow
def test_pytorch_and_tensorflow_in_one_process(left: Path, fresh: Path) -> None:
    """Whichever of them is imported first."""
    pytest.importorskip("torch")
    assert_close(*(dict(np.load(folder / "both.npz")) for folder in (left, fresh)), 1e-10)


def test_an_eager_call_sees_the_variables_that_lora_adds() -> None:
    model = build()
    before = model(pixels()).logits
    dense = model.vit.encoder.layer[0].intermediate.dense
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    after = model(pixels()).logits
    model.run_eagerly = True
    assert relative_error(before.numpy(), after.numpy()) > 1e-3
    assert_same(after, model(pixels()).logits)


# ---- MAE ---------------------------------------------------------------------------------------------------------


def test_an_mae_is_fitted_and_its_fixed_positions_stay() -> None:
    """Without labels, and with those that a dataset has, which are not its loss's."""
    model = build("ViTMAEForPreTraining")
    fixed = [v for path, v in model.variables_by_path().items() if model.specs()[path].row.fixed]
    before = [v.numpy() for v in fixed]
    assert len(fixed) == 2 and len(model.trainable_variables) == len(model.weights) - 2
    noise = np.random.default_rng(1).random((6, 16))
    expected = model(pixels(6), noise=noise).loss
    model.compile(keras.optimizers.SGD(0.1, weight_decay=0.1))
    for targets in ({}, {"y": LABELS}):
        history = model.fit({"pixel_values": pixels(6), "noise": noise}, **targets, batch_size=6, verbose=0).history
        assert_close(np.array(history["loss"]), np.array([expected]), SAME)
        expected = model(pixels(6), noise=noise).loss
    assert_same([v.numpy() for v in fixed], before, 0.0)
    assert model.predict(pixels(), verbose=0).logits.shape == (2, 16, 48)


def test_the_noise_of_an_mae_is_by_the_seed_and_saved_by_tensorflow(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        model = build("ViTMAEModel")
        found.append([model(pixels()).ids_restore.numpy() for _ in range(2)])
    assert np.array_equal(*found) and not np.array_equal(*found[0])
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "state"))
    expected = model(pixels()).ids_restore.numpy()
    tf.train.Checkpoint(model=model).read(path).assert_consumed()
    assert np.array_equal(model(pixels()).ids_restore.numpy(), expected)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_an_mae_of_sizes_known_only_to_the_graph(layout: str) -> None:
    model, last = build("ViTMAEForPreTraining", {"data_format": layout}), layout == "channels_last"
    spec = tf.TensorSpec([None, None, None, 3] if last else [None, 3, None, None], "float64")
    call = tf.function(
        lambda x, noise: model(x, noise=noise, interpolate_pos_encoding=True).loss,
        input_signature=[spec, tf.TensorSpec([None, None], "float64")],
    )
    x, noise = pixels(size=(24, 20)), np.random.default_rng(1).random((2, 30))
    first = build("ViTMAEForPreTraining")
    first.run_eagerly = True
    expected = first(x, noise=noise, interpolate_pos_encoding=True).loss
    given = x.transpose(0, 2, 3, 1) if last else x
    assert_same(call(given, noise), expected)
    assert_same(model.unpatchify(model.patchify(given, True), (24, 20)), tf.constant(given), 0.0)
    tiny = given[:, :4, :4] if last else given[:, :, :4, :4]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"mask_ratio=0.5 keeps none of 1 patches"):
        call(tiny, noise[:, :1])
