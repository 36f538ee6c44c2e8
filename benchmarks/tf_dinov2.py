"""DINOv2-B/14 in TensorFlow, float32, on two threads: this package against keras-hub, weights equal.

The last hidden state at 224 and at 518 pixels, a call in a tf.function. keras-hub takes pixels with the channels last
and of one size, for which it has resized its positions before; ours takes them as it does by default.

python benchmarks/tf_dinov2.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # nothing of what it says about the machine

import keras_hub
import numpy as np
import tensorflow as tf
from harness import HUB, OURS, arguments, interleaved, ratio, report

import vit_tf
from vit_tf.embeddings import resized_positions

CONFIG = vit_tf.Dinov2Config(image_size=518)


def hub_of(ours: Any, size: int) -> Any:
    """keras-hub's backbone with the weights of ours, for pictures of `size` pixels."""
    hub = keras_hub.models.DINOV2Backbone(
        patch_size=CONFIG.patch_size,
        num_layers=CONFIG.num_hidden_layers,
        hidden_dim=CONFIG.hidden_size,
        num_heads=CONFIG.num_attention_heads,
        intermediate_dim=CONFIG.intermediate_size,
        image_shape=(size, size, 3),
        position_embedding_shape=(CONFIG.image_size, CONFIG.image_size),
    )
    embeddings = hub.embeddings
    before = embeddings.position_embeddings, embeddings.interpolated_position_embeddings
    targets = [variable for variable in hub.weights if not any(variable is each for each in before)]
    for target, source in zip(targets, in_order_of_hub(ours), strict=True):
        target.assign(np.reshape(source.numpy(), target.shape))
    embeddings.position_embeddings.assign(ours.embeddings.position_embeddings)
    resized = resized_positions(ours.embeddings.position_embeddings.value, (size, size), ours.config)
    embeddings.interpolated_position_embeddings.assign(resized)
    return hub


def in_order_of_hub(ours: Any) -> list[Any]:
    """Our variables in the order of keras-hub's."""
    embeddings, layers = ours.embeddings, []
    for block in ours.encoder.layer:
        attention, mlp = block.attention, block.mlp
        projections = (attention.attention.query, attention.attention.key, attention.attention.value)
        layers += [block.norm1, *projections, attention.output_.dense, block.layer_scale1]
        layers += [block.norm2, mlp.fc1, mlp.fc2, block.layer_scale2]
    first = [embeddings.cls_token, embeddings.mask_token, *embeddings.patch_embeddings.projection.weights]
    return first + [weight for layer in (*layers, ours.layernorm) for weight in layer.weights]


def measure(ours: Any, size: int, batch: int, rounds: int, seconds: float) -> dict[str, float]:
    """The ratio of times of one case."""
    x = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    hub = hub_of(ours, size)
    functions = {
        OURS: tf.function(lambda x: ours(x, training=False).last_hidden_state),
        HUB: tf.function(lambda x: hub({"images": x}, training=False)),
    }
    pixels = {OURS: tf.constant(x), HUB: tf.constant(np.moveaxis(x, 1, -1))}
    calls = {name: (lambda name=name: functions[name](pixels[name]).numpy()) for name in functions}
    np.testing.assert_allclose(*(call() for call in calls.values()), rtol=1e-3, atol=1e-3)
    times = interleaved(calls, min_rounds=rounds, min_seconds=seconds)
    return ratio(times[OURS], times[HUB])


def main() -> None:
    given = arguments(__doc__, rounds=10, seconds=10.0)
    tf.config.threading.set_intra_op_parallelism_threads(2)
    ours, results = vit_tf.TFDinov2Model(CONFIG, seed=0), {}
    for size, batch in ((224, 1), (224, 8), (518, 1)):
        title = f"tf, DINOv2-B/14 at {size}, batch {batch} (keras-hub)"
        results[title] = measure(ours, size, batch, given.rounds, given.seconds)
    report("Time of this package as a fraction of keras-hub's", results, given.json)


if __name__ == "__main__":
    main()
