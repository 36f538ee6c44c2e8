"""ViT-B/16 at 224 pixels in JAX, float32, on two threads: this package against transformers' Flax ViT, weights equal.

Inference and training are compiled functions of (params, pixels); beside them the same products and the same attention
alone, each a compiled function too, say where our time goes. Compiling is measured from a Python function to a
finished program, tracing included, with nothing cached; with `scan_layers` against theirs of the same depth, which
has no such option. The wrapper's call is compared with the compiled function: the part of it that is not computing.

python benchmarks/flax_vit.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

os.environ["USE_TORCH"] = "0"  # for transformers: import no more than Flax

import jax
import jax.numpy as jnp
import numpy as np
import parts
import transformers
from harness import OURS, THEIRS, arguments, interleaved, ratio, report

import vit_flax

CONFIG = vit_flax.ViTConfig.variant("B/16", num_labels=1000)
Logits = Callable[[Any, jax.Array], jax.Array]


def pair(folder: str) -> dict[str, Any]:
    """Both models by name, with the same weights: ours is saved, theirs loads it."""
    ours = vit_flax.FlaxViTForImageClassification(CONFIG, seed=0)
    ours.save_pretrained(folder)
    return {OURS: ours, THEIRS: transformers.FlaxViTForImageClassification.from_pretrained(folder)}


def logits_of(model: Any) -> Logits:
    """Logits as a function of (params, pixels): of the module, or of their class, which has no other way in."""
    if isinstance(model, vit_flax.FlaxViTPreTrainedModel):
        return lambda params, x: model.module.apply({"params": params}, x).logits
    return lambda params, x: model(x, params=params).logits


def training_step(logits: Logits) -> Callable[..., Any]:
    """(loss, updated params) of one step of gradient descent."""

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits(params, x)), labels[:, None], axis=1).mean()

    def step(params: Any, x: jax.Array, labels: jax.Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(params, x, labels)
        return value, jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradients)

    return step


def products(factors: Any) -> Any:
    """The matrix products of `parts.of`."""
    return [x @ kernel for x, kernel in factors]


def attention(layers: Any) -> Any:
    """The attention of each layer, its products by heads and the softmax between them."""
    return [jax.nn.softmax(x @ x.swapaxes(-1, -2) / x.shape[-1] ** 0.5) @ x for x in layers]


ALONE: dict[str, Callable[..., Any]] = {"products": products, "attention": attention}


def there_and_back(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function and its derivative, as a training step computes both."""

    def call(x: Any) -> Any:
        result, derivative = jax.vjp(function, x)
        return derivative(result)

    return call


def compared(functions: dict[str, Callable[..., Any]], args: dict[str, Any], rounds: int, seconds: float) -> Any:
    """The ratio of times of two compiled functions, after a look at their first results; and where ours goes."""
    compiled = {name: jax.jit(function) for name, function in functions.items()}
    calls = {name: lambda name=name: jax.block_until_ready(compiled[name](*args[name])) for name in functions}
    first = {name: jax.tree.leaves(call())[0] for name, call in calls.items()}
    np.testing.assert_allclose(first[OURS], first[THEIRS], rtol=1e-3, atol=1e-4)
    times = interleaved(calls, min_rounds=rounds, min_seconds=seconds)
    return {**ratio(times[OURS], times[THEIRS]), "shares": parts.shares(times, OURS)}


def pixels(batch: int) -> jax.Array:
    """Noise (B, 3, 224, 224)."""
    return jax.random.normal(jax.random.key(0), (batch, 3, 224, 224))


def of_parts(batch: int) -> dict[str, Any]:
    """The arguments of each part, by its name."""
    return {name: (jax.tree.map(jnp.asarray, given),) for name, given in parts.of(CONFIG, batch).items()}


def run_cases(rounds: int, seconds: float) -> dict[str, Any]:
    """Inference, training and what the wrapper adds."""
    with TemporaryDirectory() as folder:
        models = pair(folder)
    functions = {name: logits_of(model) for name, model in models.items()}
    results = {}
    for batch in (1, 8):
        args = {name: (model.params, pixels(batch)) for name, model in models.items()} | of_parts(batch)
        results[f"flax, inference, float32, batch {batch}"] = compared(functions | ALONE, args, rounds, seconds)
    steps = {name: training_step(f) for name, f in functions.items()}
    steps |= {name: there_and_back(f) for name, f in ALONE.items()}
    args = {name: (model.params, pixels(8), jnp.arange(8)) for name, model in models.items()} | of_parts(8)
    results["flax, training step, float32, batch 8"] = compared(steps, args, (rounds + 1) // 2, seconds)
    ours, x, compiled = models[OURS], pixels(1), jax.jit(functions[OURS])
    calls = {
        "wrapper": lambda: ours(x).logits.block_until_ready(),
        "jit": lambda: compiled(ours.params, x).block_until_ready(),
    }
    times = interleaved(calls, min_rounds=rounds, min_seconds=seconds)
    return {**results, "flax, our wrapper / our jitted call, batch 1": ratio(times["wrapper"], times["jit"])}


def compile_call(model: Any, params: Any) -> Callable[[], Any]:
    """A function that traces and compiles the classification of 8 images anew."""
    x = jax.ShapeDtypeStruct((8, 3, 224, 224), jnp.float32)

    def call() -> Any:
        jax.clear_caches()
        return jax.jit(logits_of(model)).lower(params, x).compile()

    return call


def compile_cases(rounds: int, seconds: float) -> dict[str, Any]:
    """From a function to a program, by depth; no parameter is ever drawn."""
    calls = {}
    for depth in (12, 24):
        config = vit_flax.ViTConfig.variant("B/16", num_labels=1000, num_hidden_layers=depth)
        for scan in (False, True):
            ours, shapes = vit_flax.FlaxViTForImageClassification(config, _do_init=False, scan_layers=scan)
            calls[OURS, depth, scan] = compile_call(ours, shapes)
        theirs_config = transformers.ViTConfig(num_labels=1000, num_hidden_layers=depth)
        theirs = transformers.FlaxViTForImageClassification(theirs_config, _do_init=False)
        calls[THEIRS, depth] = compile_call(theirs, theirs.params_shape_tree)
    times = interleaved(calls, min_rounds=(rounds + 1) // 2, min_seconds=seconds, warm_up=1)
    results = {
        f"flax, compile, {depth} layers{', scan_layers' * scan}": ratio(times[OURS, depth, scan], times[THEIRS, depth])
        for depth in (12, 24)
        for scan in (False, True)
    }
    growth = ratio(times[OURS, 24, True], times[OURS, 12, True])
    return {**results, "flax, our compile with scan_layers, 24 layers / 12": growth}


def main() -> None:
    given = arguments(__doc__, rounds=10, seconds=10.0)
    transformers.logging.set_verbosity_error()
    results = {**run_cases(given.rounds, given.seconds), **compile_cases(given.rounds, given.seconds)}
    report("Time of this package as a fraction of transformers'", results, given.json)


if __name__ == "__main__":
    main()
