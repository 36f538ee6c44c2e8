"""What the JAX training scripts share: the digits as arrays, batches that every run repeats, the loss, one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import Split, load_split

from vit_core.assets import DIGITS
from vit_core.pictures.processing import ViTImageProcessor
from vit_flax import FlaxViTForImageClassification, ViTConfig

Batch = tuple[np.ndarray, np.ndarray, jax.Array]  # pixels (B, C, H, W), labels (B,), a key for each picture (B,)
State = dict[str, Any]  # "params" and "optimizer"
Step = Callable[[State, Batch], tuple[State, jax.Array]]  # (state after the batch, its loss)


def new_model(seed: int, **changes: Any) -> FlaxViTForImageClassification:
    """The classifier that ships in vit_core/assets/digits, before its training."""
    return FlaxViTForImageClassification(ViTConfig.from_pretrained(DIGITS), seed=seed, **changes)


def load_digits() -> tuple[Split, Split, ViTImageProcessor]:
    """(training, held out, processor), the pictures as pixels (n, C, H, W)."""
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    training, held_out = (
        s._replace(pictures=processor(s.images(), return_tensors="np").pixel_values) for s in load_split()
    )
    return training, held_out, processor


def batches(data: Split, batch: int, seed: int, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch: the same, in the same order, whenever and on however many devices they are asked for."""
    order = np.random.default_rng((seed, epoch)).permutation(len(data.labels))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), epoch), len(order))
    for first in range(0, len(order) - batch + 1, batch):
        index = order[first : first + batch]
        yield data.pictures[index], data.labels[index].astype(np.int32), keys[first : first + batch]


def augmented(picture: jax.Array, key: jax.Array) -> jax.Array:
    """One picture (C, H, W), rotated by up to 12 degrees, zoomed and shifted by up to 12 %; -1 is black."""
    height, width = picture.shape[1:]
    angle, zoom, down, right = jax.random.uniform(key, (4,), minval=-1, maxval=1)
    angle, zoom = angle * jnp.pi / 15, 1 + zoom * 0.12
    cos, sin = zoom * jnp.cos(angle), zoom * jnp.sin(angle)
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    y, x = jnp.meshgrid(jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij")
    rows = cos * y - sin * x + centre[0] + down * 0.12 * height
    columns = sin * y + cos * x + centre[1] + right * 0.12 * width
    resample = jax.vmap(jax.scipy.ndimage.map_coordinates, (0, None, None, None, None))
    return resample(picture, (rows, columns), 1, "constant", -1.0)


def loss_of(module: Any, params: Any, pixels: jax.Array, labels: jax.Array, keys: jax.Array) -> jax.Array:
    """Cross entropy, with label smoothing 0.1, of augmented pictures: the mean over the batch."""
    logits = module.apply({"params": params}, jax.vmap(augmented)(pixels, keys), train=True).logits
    smoothed = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), 0.1)
    return optax.softmax_cross_entropy(logits, smoothed).mean()


def updated(optimizer: optax.GradientTransformation, state: State, gradients: Any) -> State:
    """The state after one step of the optimizer."""
    updates, optimizer_state = optimizer.update(gradients, state["optimizer"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "optimizer": optimizer_state}


def make_step(module: Any, optimizer: optax.GradientTransformation) -> Step:
    """One step of training, compiled."""

    @jax.jit
    def step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, gradients = jax.value_and_grad(partial(loss_of, module))(state["params"], *batch)
        return updated(optimizer, state, gradients), loss

    return step


def accuracy(model: FlaxViTForImageClassification, data: Split) -> float:
    """The share of pictures that the model names rightly."""
    return float((model(data.pictures).logits.argmax(-1) == data.labels).mean())
