"""The cases of `gpu.py` in JAX: this package's Flax models under `jit`, against a ViT in plain JAX (`jax_vit.py`).

Weights are those that the precision computes in, but in training, where they are float32 and computed with in bfloat16.
JAX lets float32 products use TF32 on a card unless it is told not to; here that is the precision "tf32".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tolerances import both_rounded

import vit_flax
from benchmarks.gpu_cases import (
    PAGES,
    TRAINING,
    Call,
    Case,
    Machine,
    Row,
    Settings,
    Shape,
    compared,
    feeding,
    inference_shapes,
    measured,
    one_line,
    serve,
    timing,
)
from benchmarks.harness import interleaved, seconds_of
from benchmarks.jax_vit import classify

DTYPES = {"float64": "float64", "float32": "float32", "tf32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
PACKAGES = ("jax", "jaxlib", "flax", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
QUICK = {"xla_gpu_autotune_level": 0}  # choosing the fastest kernels takes most of the time that compiling takes
Params = dict[str, Any]
Logits = Callable[[Params, Array], Array]


def use(precision: str) -> str:
    """The dtype of a precision, with TF32 allowed or not, and float64 there or not, from now on."""
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "tf32" else "highest")
    jax.config.update("jax_enable_x64", precision == "float64")
    return DTYPES[precision]


def device(settings: Settings) -> Any:
    """The first device of the platform that is measured. Raises SystemExit where there is none."""
    try:
        return jax.devices(settings.device)[0]
    except RuntimeError as error:
        raise SystemExit(f"JAX sees no device of {settings.device} ({error})") from error


def machine(settings: Settings) -> Machine:
    """The card, or the CPU. Memory is not read here: the compiler says what a program takes."""
    card = "CPU" if settings.device == "cpu" else device(settings).device_kind

    def release() -> None:
        jnp.ones(1, device=device(settings)).block_until_ready()

    return Machine(card, lambda: None, to_array, lambda: 0, lambda: None, lambda: None, release)


def to_array(array: Array) -> np.ndarray:
    """An array on the host, in float32 or wider."""
    return np.asarray(array if array.dtype == "float64" else array.astype("float32"))


# ---- models --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def weights(key: tuple[str, int, bool]) -> Params:
    """Parameters on the host in float32, drawn from a normal distribution, the scales of norms around 1."""
    _, tree = vit_flax.FlaxViTForImageClassification(Shape(*key[:2], 1, key[2]).config, _do_init=False)
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> np.ndarray:
        array = rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
        return array + 1 if path[-1].key == "scale" else array

    found: Params = jax.tree_util.tree_map_with_path(drawn, tree)
    return found


@lru_cache(maxsize=16)
def logits_of(key: tuple[str, int, bool], kind: str, attention: str, dtype: str, checkpointing: bool = False) -> Logits:
    """Logits as a function of (params, pixels), of this package ("vit_trio") or in plain JAX."""
    config = Shape(*key[:2], 1, key[2]).config
    if kind != "vit_trio":
        return partial(classify, config=config, attention=attention)
    config = config.copy(attn_implementation=attention)
    model, _ = vit_flax.FlaxViTForImageClassification(config, dtype=dtype, _do_init=False)
    if checkpointing:
        model.enable_gradient_checkpointing()
    return lambda params, x: model.module.apply({"params": params}, x).logits


def kinds(settings: Settings, precision: str) -> list[tuple[str, str]]:
    """(kind, attention) of what is measured: XLA's attention has no float16 on CPUs."""
    found = [("vit_trio", attention) for attention in attentions(settings, precision)]
    if settings.device == "cuda" or precision != "float16":
        found.append(("plain JAX", "xla"))
    if ("vit_trio", "cudnn") in found:
        found.append(("plain JAX", "cudnn"))
    return found


def attentions(settings: Settings, precision: str) -> list[str]:
    """The implementations of attention: cuDNN's is for half precision on cards."""
    half = settings.device == "cuda" and precision in ("bfloat16", "float16")
    return ["sdpa", "eager", *(["cudnn"] if half else [])]


# ---- correctness ---------------------------------------------------------------------------------------------------


def moved(shape: Shape) -> Params:
    """Weights whose scores of attention are spread, and biases and norms not trivial."""
    wide = 5 if shape.tiny else 2

    def change(path: Any, leaf: np.ndarray) -> np.ndarray:
        start = np.float32(path[-1].key == "scale")
        return start + (leaf - start) * np.float32(5 if leaf.ndim == 1 else wide)

    found: Params = jax.tree_util.tree_map_with_path(change, weights(shape.key))
    return found


@lru_cache(maxsize=4)
def gradients_of(key: tuple[str, int, bool], dtype: str, attention: str, scan: bool) -> Callable[..., Any]:
    """(gradients, output) of a weighted sum of the logits, as a compiled function of (params, pixels, weights)."""
    config = Shape(*key[:2], 1, key[2]).config.copy(attn_implementation=attention)
    model, _ = vit_flax.FlaxViTForImageClassification(config, dtype=dtype, scan_layers=scan, _do_init=False)

    def total(params: Params, x: Array, weight: Array) -> Any:
        output = model.module.apply({"params": params}, x, output_hidden_states=True)
        return (output.logits * weight).sum(), output

    return jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICK)


def computed(shape: Shape, params: Params, dtype: str, attention: str, scan: bool, where: Any) -> Row:
    """Logits and hidden states of a model on a device, and the gradients of a sum of the logits."""
    weight = np.random.default_rng(1).standard_normal((shape.pictures, shape.config.num_labels)).astype(dtype)
    given = (jax.tree.map(lambda leaf: leaf.astype(dtype), params), shape.pixels().astype(dtype), weight)
    gradients, output = gradients_of(shape.key, dtype, attention, scan)(*jax.device_put(given, where))
    named, _ = jax.tree_util.tree_flatten_with_path(gradients)
    return {
        "logits": to_array(output.logits),
        "hidden states": [to_array(state) for state in output.hidden_states],
        "gradients": {jax.tree_util.keystr(path): to_array(leaf) for path, leaf in named},
    }


def correctness(shape: Shape, settings: Settings, precisions: tuple[str, ...], scan: bool) -> dict[str, Row]:
    """The errors of each precision and attention on the device against float64 on the CPU.

    With `scan` one layer is compiled for all: the many programs of a deep model would take minutes.
    """
    params, rows = moved(shape), {}
    if scan:
        encoder = params["vit"]["encoder"]
        layers = (encoder["layer"][str(i)] for i in range(shape.config.num_hidden_layers))
        encoder["layer"] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    expected = computed(shape, params, use("float64"), "eager", scan, jax.devices("cpu")[0])
    for precision in precisions:
        dtype = use(precision)
        for attention in attentions(settings, precision):
            name = f"{precision}, {attention}"
            try:
                actual = computed(shape, params, dtype, attention, scan, device(settings))
            except Exception as error:
                rows[name] = {"error": one_line(error), "ok": False}
                continue
            rows[name] = compared(actual, expected, shape.config, precision)
    use("float32")
    return rows


# ---- speed ---------------------------------------------------------------------------------------------------------


def memory_of(program: Any) -> float | None:
    """The GB that a compiled program takes, its arguments and results included; None where the compiler can't say."""
    found = program.memory_analysis()
    if found is None:
        return None
    taken = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return round((taken - found.alias_size_in_bytes) / 1e9, 3)


def inference(shape: Shape, precision: str, settings: Settings) -> dict[str, Row]:
    """A compiled classifier's call on a batch that is on the device already."""
    dtype, here = use(precision), machine(settings)
    memory: dict[str, float | None] = {}
    given = (jax.tree.map(lambda leaf: leaf.astype(dtype), weights(shape.key)), shape.pixels().astype(dtype))
    params, x = jax.device_put(given, device(settings))

    def call_of(kind: str, attention: str) -> Call:
        program = jax.jit(logits_of(shape.key, kind, attention, dtype)).lower(params, x).compile()
        memory[f"{kind} {attention}"] = memory_of(program)
        return lambda: jax.block_until_ready(program(params, x))

    candidates = {f"{kind} {a}": partial(call_of, kind, a) for kind, a in kinds(settings, precision)}
    rows = measured(candidates, shape, here, settings, bound=both_rounded(shape.config, precision))
    return with_memory(rows, memory)


def with_memory(rows: dict[str, Row], memory: dict[str, float | None]) -> dict[str, Row]:
    """Rows with what the compiler says of their memory."""
    return {name: row if "error" in row else {**row, "peak_memory_gb": memory[name]} for name, row in rows.items()}


def training(shape: Shape, settings: Settings) -> dict[str, Row]:
    """A step with AdamW: forward and backward in bfloat16, gradients, moments and weights in float32."""
    use("float32")
    here = machine(settings)
    memory: dict[str, float | None] = {}
    x = jax.device_put(shape.pixels().astype("bfloat16"), device(settings))
    labels = jax.device_put(np.arange(shape.pictures) % shape.config.num_labels, device(settings))

    def step_of(kind: str, attention: str, checkpointing: bool = False) -> Call:
        params = jax.device_put(weights(shape.key), device(settings))
        state = [(params, jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params), jnp.float32(0))]
        step = step_function(shape.key, kind, attention, checkpointing).lower(state[0], x, labels).compile()
        memory[name_of(kind, attention, checkpointing)] = memory_of(step)

        def call() -> Array:
            loss, state[0] = step(state[0], x, labels)
            return jax.block_until_ready((loss, state[0]))[0]

        return call

    candidates = {
        name_of(kind, attention, checkpointing): partial(step_of, kind, attention, checkpointing)
        for kind, attention in kinds(settings, "bfloat16")
        for checkpointing in (False, True)
        if attention != "eager" and (kind == "vit_trio" or not checkpointing)
        if (kind, attention) != ("plain JAX", "cudnn")  # whose gradient JAX refuses for an odd number of tokens
    }
    bound = both_rounded(shape.config, "bfloat16")
    return with_memory(measured(candidates, shape, here, settings, bound=bound, training=True), memory)


@lru_cache(maxsize=8)
def step_function(key: tuple[str, int, bool], kind: str, attention: str, checkpointing: bool) -> Any:
    """`adamw` of these logits under jit, which takes the state over."""
    return jax.jit(partial(adamw, logits_of(key, kind, attention, "bfloat16", checkpointing)), donate_argnums=0)


def name_of(kind: str, attention: str, checkpointing: bool) -> str:
    """How a candidate for training is called."""
    return f"{kind} {attention}{', checkpointing' * checkpointing}"


def adamw(logits: Logits, state: Any, x: Array, labels: Array, rate: float = 1e-5, decay: float = 0.01) -> Any:
    """The loss, and the state after a step of AdamW (Loshchilov and Hutter 2019, algorithm 2): weights and moments."""
    params, first, second, count = state

    def loss_of(params: Params) -> Array:
        scores = jax.nn.log_softmax(logits(params, x).astype("float32"))
        return -jnp.take_along_axis(scores, labels[:, None], axis=1).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    count = count + 1
    first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
    second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)

    def moved(p: Array, m: Array, v: Array) -> Array:
        step = m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
        return p - rate * (step + decay * p)

    return loss, (jax.tree.map(moved, params, first, second), first, second, count)


def product(settings: Settings) -> dict[str, Row]:
    """The rate that the card reaches with one large product of bfloat16 matrices, to see the others beside."""
    use("float32")
    size, here = (256 if settings.tiny else 8192), machine(settings)
    keys = jax.random.split(jax.device_put(jax.random.key(0), device(settings)))
    a, b = (jax.random.normal(key, (size, size), "bfloat16") for key in keys)
    multiply = jax.jit(jnp.matmul)
    call = {"jnp.matmul": lambda: seconds_of(lambda: multiply(a, b).block_until_ready())}
    seconds = interleaved(call, min_rounds=10, min_seconds=settings.seconds, measure=lambda timed: timed())
    return {name: timing(found, None, 2 * size**3, here.card) for name, found in seconds.items()}


# ---- all -----------------------------------------------------------------------------------------------------------


def cases(settings: Settings) -> Iterator[Case]:
    """Every case, most worth first. Compiling is what takes the time."""
    small, base = (Shape("B/16", 224, 2, tiny) for tiny in (True, settings.tiny))
    check = partial(correctness, settings=settings, precisions=tuple(DTYPES))
    yield Case("correctness, small", partial(check, small, scan=False), 50)
    speed = [
        Case(name, partial(inference, shape, precision, settings), 40)
        for name, shape, precision, table in inference_shapes(settings)
        if table == "plain"
    ]
    steps = [
        Case(
            f"training step, {variant} {image}, bfloat16, batch {batch}",
            partial(training, Shape(variant, image, batch, settings.tiny), settings),
            110,
        )
        for variant, image, batch in TRAINING
    ]
    yield speed[PAGES]
    yield speed[0]
    yield Case("product of matrices, bfloat16", partial(product, settings), 5)
    yield steps[0]
    yield Case("correctness, B/16 224", partial(check, base, scan=True), 70)
    yield speed[PAGES + 1]
    yield Case("pictures to labels", lambda: fed(settings), 45)
    yield from speed[1:PAGES]
    yield from speed[PAGES + 2 :]
    yield from steps[1:]


def fed(settings: Settings) -> dict[str, Row]:
    """The image processor before ViT-B/16, products in the precision that JAX takes by itself."""
    use("float32")
    jax.config.update("jax_default_matmul_precision", None)
    shape = Shape("B/16", 224, 64, settings.tiny)
    model, _ = vit_flax.FlaxViTForImageClassification(shape.config, _do_init=False)
    model.params = weights(shape.key)
    return feeding(model, "flax", settings, ("float32", "bfloat16"))


if __name__ == "__main__":
    serve(cases, machine, PACKAGES)
