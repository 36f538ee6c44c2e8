"""ViT-B/16 at 224 pixels in TensorFlow, float32, on two threads: this package, transformers' TF ViT and keras-hub's.

All three have the same weights and take their turns in the same rounds. Inference is a call in a tf.function, training
is `train_on_batch` of a model compiled with SGD and a cross entropy of logits: transformers' on Keras 2 (tf_keras), the
other two on Keras 3. Beside them the same products and the same attention alone, each a tf.function too, say where our
time goes. Our eager call is compared with our tf.function: what TensorFlow adds when it is not compiled.
keras-hub takes pixels with the channels last, the other two as they do by default, with the channels first.

python benchmarks/tf_vit.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

os.environ["USE_TORCH"] = os.environ["USE_FLAX"] = "0"  # for transformers: import no more than TensorFlow
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # nothing of what it says about the machine

import keras
import keras_hub
import numpy as np
import parts
import tensorflow as tf
import tf_keras
import transformers
from harness import HUB, OURS, THEIRS, arguments, interleaved, ratio, report

import vit_tf

CASES = {THEIRS: "", HUB: " (keras-hub)"}  # what the name of a row says about whom ours is compared with
EPSILON = 1e-6  # of every LayerNorm: keras-hub's takes no other from a file
CONFIG = vit_tf.ViTConfig.variant("B/16", num_labels=1000, layer_norm_eps=EPSILON)


def models() -> dict[str, Any]:
    """The three models by name, with the same weights: ours is saved, transformers' loads it, keras-hub's gets it."""
    ours = vit_tf.TFViTForImageClassification(CONFIG, seed=0)
    with TemporaryDirectory() as folder:
        ours.save_pretrained(folder, save_format="tf")
        theirs = transformers.TFViTForImageClassification.from_pretrained(folder)
    return {OURS: ours, THEIRS: theirs, HUB: hub_of(ours)}


def hub_of(ours: Any) -> Any:
    """keras-hub's classifier with the weights of ours."""
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(224, 224, 3),
        patch_size=16,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        mlp_dim=3072,
        layer_norm_epsilon=EPSILON,
    )
    hub = keras_hub.models.ViTImageClassifier(backbone=backbone, num_classes=1000, preprocessor=None)
    for target, source in zip(hub.trainable_variables, in_order_of_hub(ours), strict=True):
        target.assign(np.reshape(source.numpy(), target.shape))
    return hub


def in_order_of_hub(ours: Any) -> list[Any]:
    """Our variables in the order of keras-hub's."""
    blocks = [
        [
            block.layernorm_before,
            block.attention.attention.query,
            block.attention.attention.key,
            block.attention.attention.value,
            block.attention.output_.dense,
            block.layernorm_after,
            block.intermediate.dense,
            block.output_.dense,
        ]
        for block in ours.vit.encoder.layer
    ]
    embeddings = ours.vit.embeddings
    layers = [layer for block in blocks for layer in block] + [ours.vit.layernorm, ours.classifier]
    first = [embeddings.cls_token, *embeddings.patch_embeddings.projection.weights, embeddings.position_embeddings]
    return first + [weight for layer in layers for weight in layer.weights]


def pixels(name: str, batch: int) -> tf.Tensor:
    """Noise (B, 3, 224, 224), or for keras-hub the same with the channels last."""
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224), dtype=np.float32)
    return tf.constant(np.moveaxis(x, 1, -1) if name == HUB else x)


def logits_of(name: str, model: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Logits as a function of pixels."""

    def call(x: tf.Tensor) -> tf.Tensor:
        output = model(x, training=False)
        return output if name == HUB else output.logits

    return call


def assert_same(results: dict[str, Any]) -> None:
    """What the three computed is equal but for rounding."""
    for name in CASES:
        np.testing.assert_allclose(results[OURS], results[name], rtol=1e-3, atol=1e-4)


def products(factors: Any) -> Any:
    """The matrix products of `parts.of`."""
    return [x @ kernel for x, kernel in factors]


def attention(layers: Any) -> Any:
    """The attention of each layer, its products by heads and the softmax between them."""
    return [tf.nn.softmax(tf.matmul(x, x, transpose_b=True) / x.shape[-1] ** 0.5) @ x for x in layers]


ALONE: dict[str, Callable[..., Any]] = {"products": products, "attention": attention}


def there_and_back(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function and its derivative, as a training step computes both."""

    def call(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            results = function(x)
        return tape.gradient(results, x, output_gradients=results)

    return call


def calls_of_parts(batch: int, training: bool) -> dict[str, Callable[[], Any]]:
    """Each part by name, on the shapes of so many pictures."""
    calls = {}
    for name, given in parts.of(CONFIG, batch).items():
        x = tf.nest.map_structure(tf.constant, given)
        compiled = tf.function(there_and_back(ALONE[name]) if training else ALONE[name])
        calls[name] = lambda compiled=compiled, x=x: tf.nest.flatten(compiled(x))[-1].numpy()
    return calls


def against_others(case: str, times: dict[str, np.ndarray]) -> dict[str, Any]:
    """The ratios of ours to each of the others, by case; beside the first, where our time goes."""
    ratios = {case + suffix: ratio(times[OURS], times[name]) for name, suffix in CASES.items()}
    ratios[case] |= {"shares": parts.shares(times, OURS)}
    return ratios


def inference(found: dict[str, Any], batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Calls in a tf.function, and our own call outside of one."""
    args = {name: pixels(name, batch) for name in found}
    functions = {name: tf.function(logits_of(name, model)) for name, model in found.items()}
    calls = {name: (lambda name=name: functions[name](args[name]).numpy()) for name in found}
    assert_same({name: call() for name, call in calls.items()})
    eager = logits_of(OURS, found[OURS])
    calls["eager"] = lambda: eager(args[OURS]).numpy()
    times = interleaved({**calls, **calls_of_parts(batch, training=False)}, min_rounds=rounds, min_seconds=seconds)
    return {
        **against_others(f"tf, inference, float32, batch {batch}", times),
        f"tf, our eager call / our tf.function, batch {batch}": ratio(times["eager"], times[OURS]),
    }


def training(found: dict[str, Any], rounds: int, seconds: float) -> dict[str, Any]:
    """Steps of the Keras models, as `fit` takes them."""
    labels, calls = tf.range(8), {}
    for name, model in found.items():
        library = tf_keras if name == THEIRS else keras
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=library.optimizers.SGD(1e-3), loss=loss)
        calls[name] = partial(model.train_on_batch, pixels(name, 8), labels)
    for _ in range(2):  # the second loss is of the weights that the first step left
        assert_same({name: np.ravel(call())[0] for name, call in calls.items()})
    calls |= calls_of_parts(8, training=True)
    times = interleaved(calls, min_rounds=(rounds + 1) // 2, min_seconds=seconds)
    return against_others("tf, training step, float32, batch 8", times)


def main() -> None:
    given = arguments(__doc__, rounds=10, seconds=10.0)
    tf.config.threading.set_intra_op_parallelism_threads(2)
    transformers.logging.set_verbosity_error()
    found, results = models(), {}
    for batch in (1, 8):
        results.update(inference(found, batch, given.rounds, given.seconds))
    results.update(training(found, given.rounds, given.seconds))
    report("Time of this package as a fraction of the others'", results, given.json)


if __name__ == "__main__":
    main()
