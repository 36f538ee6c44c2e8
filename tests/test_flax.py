"""What JAX users expect of the Flax models, beyond what every backend does."""

from __future__ import annotations

import copy
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close, leaves
from command import PEAK
from conftest import CHECKPOINTS
from members import DISTINCT, config_for, field_of
from test_models import BAD_CALLS, TINY

from vit_core.calls import num_patches
from vit_core.config import AutoConfig, ViTConfig
from vit_core.family import MLP_SCALE, family_of

jax = pytest.importorskip("jax")
flax = pytest.importorskip("flax")
vit_flax = pytest.importorskip("vit_flax")
jnp, nn = jax.numpy, flax.linen
jax.config.update("jax_enable_x64", True)  # as tests/adapters.py does, in whatever order the tests run

ROOT = Path(__file__).parent.parent
CONFIG = ViTConfig(**TINY)
MODELS = ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling")
TEACHER = "DeiTForImageClassificationWithTeacher"
TOKENS = "BeitForMaskedImageModeling"
REGISTERS = "Dinov2WithRegistersForImageClassification"
MAE = "ViTMAEForPreTraining"
FAMILY = (
    *MODELS, "DeiTModel", TEACHER, "DeiTForMaskedImageModeling", "Dinov2Model", "Dinov2Backbone", REGISTERS,
    "IJepaForImageClassification", "ViTMSNModel", "BeitForImageClassification", TOKENS, "BeitBackbone", MAE,
)  # fmt: skip
SAFETENSORS = CHECKPOINTS / "cls" / "pt_safetensors"
# Of those with equal layers one: what is above these is no part of the scan.
SCANNED = (TEACHER, "Dinov2Backbone", REGISTERS, "BeitForImageClassification", MAE)
# The parameters of these are those of others as well.
SHARING = ("ViTForImageClassification", "Dinov2Backbone", "IJepaForImageClassification")
# Bad calls that only values show, not shapes.
VALUES_ONLY = ("label range", "negative label", "tokens of other patches", "token range")


def config_of(cls: str, **changes: Any) -> ViTConfig:
    """That of a member; with registers it has the gated MLP, of visual tokens five, MAE a decoder of two layers."""
    own = {REGISTERS: {"use_swiglu_ffn": True}, TOKENS: {"vocab_size": 5}, MAE: {"decoder_num_hidden_layers": 2}}
    return config_for(cls, **{**TINY, **own.get(cls, {}), **changes})


def build(cls: str = "ViTForImageClassification", options: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model in float64, in which two ways to compute the same give the same."""
    given = {"seed": 0, "dtype": jnp.float64, **(options or {})}
    return getattr(vit_flax, f"Flax{cls}")(config_of(cls, **changes), **given)


def pixels(batch: int = 2, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((batch, 3, *size))


def call_of(cls: str, batch: int = 2) -> dict[str, Any]:
    """A call with a loss, where the model has one."""
    call: dict[str, Any] = {"pixel_values": pixels(batch)}
    if "ForImageClassification" in cls:
        call["labels"] = np.arange(batch, dtype=np.int32) % 3
    if cls == TEACHER:
        call["teacher_logits"] = np.random.default_rng(1).standard_normal((batch, 3))
    if cls.endswith("ForMaskedImageModeling"):
        call["bool_masked_pos"] = (np.arange(batch * 16).reshape(batch, 16) % 3) == 0
    if cls == MAE:
        call["noise"] = np.random.default_rng(1).random((batch, 16))
    if cls == TOKENS:
        call["labels"] = np.arange(call["bool_masked_pos"].sum()) % 5
    return call


def loss_of(model: Any, cls: str, **options: Any) -> Any:
    """A function of the parameters: the loss, or the mean square of what a model gives that has none."""
    call = {**call_of(cls), **options}

    def loss(params: Any) -> Any:
        output = model.module.apply({"params": params}, **call)
        return output.loss if "loss" in output else jnp.square(jnp.asarray(output[field_of(cls)])).mean()

    return loss


def assert_same(actual: Any, expected: Any, bound: float = tolerances.SAME_FUNCTION_FLOAT64) -> None:
    """Trees of equal structure, in float64 if they are floats, each leaf within the bound."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert bound == 0 or {array.dtype for _, array in leaves(expected)} == {np.dtype(np.float64)}
    assert_close(actual, expected, bound)


def paths(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes by path."""
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def run_on_eight_devices(code: str) -> None:
    """Run a program whose processor plays eight devices."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = {**os.environ, "PYTHONPATH": paths, "JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- transformations ---------------------------------------------------------------------------------------------

CALLS = {
    "plain": {},
    "options": {"output_hidden_states": True, "output_attentions": True},
    "head mask": {"head_mask": np.array([1.0, 0.0, 1.0, 0.5])},
    "attention mask": {"attention_mask": (np.arange(34).reshape(2, 17) % 4) != 1},
    "interpolation": {"pixel_values": pixels(size=(24, 20)), "interpolate_pos_encoding": True},
    "tuple": {"return_dict": False, "output_hidden_states": True, "output_attentions": True},
}
# The trunk is the same under every head: one model takes all calls, the others those that reach their heads.
CLASSES_AND_CALLS = [("ViTModel", name) for name in CALLS] + [(c, n) for c in MODELS[1:] for n in ("plain", "tuple")]


@pytest.mark.parametrize(("cls", "name"), CLASSES_AND_CALLS)
def test_apply_under_jit_equals_apply_and_the_wrapper(cls: str, name: str) -> None:
    model, call = build(cls), {**call_of(cls), **CALLS[name]}
    if name == "interpolation":
        call.pop("bool_masked_pos", None)
    static = {k: call.pop(k) for k in list(call) if not isinstance(call[k], np.ndarray)}
    jitted = jax.jit(lambda params, call: model.module.apply({"params": params}, **call, **static))
    assert_same(model(**call, **static), jitted(model.params, call))


@pytest.mark.parametrize("cls", MODELS)
def test_apply_op_by_op_equals_apply_under_jit(cls: str) -> None:
    model, call = build(cls), call_of(cls)
    expected = jax.jit(model.module.apply)({"params": model.params}, **call)
    actual = model.module.apply({"params": model.params}, **call)
    assert_same(actual, expected)


@pytest.mark.parametrize("cls", MODELS)
def test_gradients_agree_with_finite_differences(cls: str) -> None:
    from jax.test_util import check_grads

    model = build(cls, num_hidden_layers=1)
    call = {**call_of(cls), "pixel_values": pixels(size=(8, 24)), "interpolate_pos_encoding": True}
    if "bool_masked_pos" in call:
        call["bool_masked_pos"] = call["bool_masked_pos"][:, :12]
    loss = jax.jit(loss_of(model, cls, **call))
    check_grads(loss, (model.params,), order=1, modes=["rev"], eps=1e-5, rtol=1e-6, atol=1e-8)


def test_wrapper_inside_transformations() -> None:
    """`model(pixels, params=params)` is differentiated and compiled like the module."""
    model, call = build(), call_of("ViTForImageClassification")

    def loss(params: Any, call: Any) -> Any:
        return model(**call, params=params).loss

    expected = jax.jit(jax.value_and_grad(loss_of(model, "ViTForImageClassification")))(model.params)
    assert_same(jax.value_and_grad(loss)(model.params, call), expected)
    assert_same(jax.jit(jax.value_and_grad(loss))(model.params, call), expected)
    assert_same(model(**call, params=flax.core.freeze(model.params)).loss, expected[0])


def test_vmap_gives_per_sample_gradients() -> None:
    model, call = build(), call_of("ViTForImageClassification", 3)

    def loss(params: Any, x: Any, label: Any) -> Any:
        return model.module.apply({"params": params}, x[None], labels=label[None]).loss

    gradient = jax.jit(jax.grad(loss))
    each = jax.jit(jax.vmap(gradient, (None, 0, 0)))(model.params, call["pixel_values"], call["labels"])
    for i in range(3):
        alone = gradient(model.params, call["pixel_values"][i], call["labels"][i])
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], each), alone)


def test_vmap_over_parameters_runs_an_ensemble() -> None:
    models = [build(options={"seed": seed}) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(m.params for m in models))
    outputs = jax.jit(jax.vmap(lambda params: models[0](pixels(), params=params)))(stacked)
    assert type(outputs) is vit_flax.ImageClassifierOutput
    assert_same(outputs.logits, jnp.stack([models[0](pixels(), params=m.params).logits for m in models]))


@pytest.mark.parametrize("cls", MODELS)
def test_checkpoint_of_the_whole_call(cls: str) -> None:
    model = build(cls)
    loss = loss_of(model, cls)
    expected = jax.jit(jax.grad(loss))(model.params)
    assert_same(jax.jit(jax.grad(jax.checkpoint(loss)))(model.params), expected)


@pytest.mark.slow
@pytest.mark.processor("lets the processor play eight devices")
def test_pmap_and_sharded_jit_equal_one_device() -> None:
    run_on_eight_devices(
        """
import jax, jax.numpy as jnp, numpy as np
from functools import partial
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from closeness import assert_close
from members import config_for
import vit_flax
from vit_flax.sharding import partition_specs

tiny = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24, image_size=16,
            patch_size=4, num_labels=3, initializer_range=0.3, drop_path_rate=0.5)
x = np.random.default_rng(0).standard_normal((16, 3, 16, 16))
extra = {"labels": np.arange(16, dtype=np.int32) % 3, "noise": np.random.default_rng(1).random((16, 16))}

def compare(cls, path, width, scan, pmap=False, **own):
    model = getattr(vit_flax, cls)(config_for(cls, **{**tiny, **own}), scan_layers=scan, dtype=jnp.float64)
    name = "noise" if "MAE" in cls else "labels"
    def loss(params, x, other):
        rngs = {"dropout": jax.random.key(0)}
        output = model.module.apply({"params": params}, x, **{name: other}, train=True, rngs=rngs)
        return output.loss, output
    step = jax.value_and_grad(loss, has_aux=True)
    (value, output), gradients = jax.jit(step)(model.params, x, extra[name])

    mesh = Mesh(np.reshape(jax.devices(), (2, 4)), ("data", "model"))
    specs = partition_specs(model, axis="model")
    params = jax.device_put(model.params, jax.tree.map(partial(NamedSharding, mesh), specs))
    put = jax.device_put((x, extra[name]), NamedSharding(mesh, P("data")))
    assert_close(jax.jit(step)(params, *put), ((value, output), gradients), 1e-10)
    above, block, module = path.split(".")
    part = params["decoder"] if above == "decoder_layers" else params[model.base_model_prefix]["encoder"]
    kernel = (part[above] if scan else part[above]["0"])[block][module]["kernel"]
    assert kernel.addressable_shards[0].data.shape[-1] == width // 4
    if not pmap:
        return
    batches = [array.reshape(8, 2, *array.shape[1:]) for array in (x, extra[name])]
    found = jax.pmap(step, in_axes=(None, 0, 0))(model.params, *batches)
    alone = [jax.jit(step)(model.params, *batch) for batch in zip(*batches)]
    assert_close(found, jax.tree.map(lambda *each: jnp.stack(each), *alone), 1e-10)
    assert type(found[0][1]) is type(output)

compare("ViTForImageClassification", "layer.intermediate.dense", 24, True, pmap=True)
compare("Dinov2WithRegistersForImageClassification", "layer.mlp.weights_in", 2 * 16, False, use_swiglu_ffn=True,
        num_hidden_layers=1)
compare("ViTMAEForPreTraining", "decoder_layers.intermediate.dense", 24, True)
compare("BeitForImageClassification", "layer.intermediate.dense", 24, True)
"""
    )


@pytest.mark.parametrize("cls", MODELS)
def test_export_with_a_symbolic_batch(cls: str, tmp_path: Path) -> None:
    from jax import export

    pytest.importorskip("flatbuffers")  # which JAX serialises with
    model = build(cls, num_hidden_layers=1)

    @jax.jit
    def predict(params: Any, x: Any) -> Any:
        return model.module.apply({"params": params}, x, output_attentions=True)

    batch = export.symbolic_shape("batch, 3, 16, 16")
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), model.params)
    exported = export.export(predict)(abstract, jax.ShapeDtypeStruct(batch, jnp.float64))
    (tmp_path / "vit").write_bytes(exported.serialize(vjp_order=1))
    again = export.deserialize((tmp_path / "vit").read_bytes())
    for size in (1, 5):
        expected = predict(model.params, pixels(size))
        found = again.call(model.params, pixels(size))
        assert type(found) is type(expected)
        assert_same(found, expected)
        assert [a.shape for a in expected.attentions] == [(size, 4, 17, 17)]


@pytest.mark.parametrize("cls", ["ViTForMaskedImageModeling", "Dinov2Backbone", "BeitForImageClassification"])
def test_export_with_a_symbolic_size(cls: str) -> None:
    from jax import export

    model = build(cls)
    # The last is for BEiT's table.
    constraints = [
        "rows >= 2",
        "columns >= 2",
        "4*rows*columns - 2*rows - 2*columns >= -1",
    ]
    shape = export.symbolic_shape("batch, 3, 4*rows, 4*columns", constraints=constraints)
    predict = jax.jit(partial(model.module.apply, interpolate_pos_encoding=True))
    exported = export.export(predict)({"params": model.params}, jax.ShapeDtypeStruct(shape, jnp.float64))
    x = pixels(3, (24, 12))
    assert_same(exported.call({"params": model.params}, x), predict({"params": model.params}, x))


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "BeitModel", "ViTMAEForPreTraining"])
def test_jax_can_be_told_to_be_strict(cls: str) -> None:
    """To raise where axes are added by themselves, and at the first NaN."""
    model = build(cls, num_hidden_layers=1)
    call = {"labels": np.array([0, -100])} if cls == "ViTForImageClassification" else {}
    call |= {"noise": np.random.default_rng(0).random((2, 16), np.float32)} if "MAE" in cls else {}

    def loss(params: Any) -> Any:
        found = model.module.apply({"params": params}, pixels(), head_mask=jnp.ones(4), **call)
        return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(found) if leaf.dtype == float)

    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        jax.grad(loss)(model.params)
        jax.eval_shape(model.module.init, {"params": jax.random.key(0), "noise": jax.random.key(1)}, pixels())


@pytest.mark.parametrize("cls", DISTINCT)
def test_jax_can_be_told_to_mix_no_dtypes(cls: str) -> None:
    """Not even booleans and numbers: in training and out of it, for pictures of any size, with masks and labels."""
    drawn, dtype = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"), jnp.bfloat16
    call = {name: jnp.asarray(x, dtype if x.dtype.kind == "f" else None) for name, x in call_of(cls).items()}
    call |= {} if "Backbone" in cls else {"head_mask": jnp.ones(config_of(cls).num_attention_heads)}
    if cls in ("ViTModel", "BeitForImageClassification"):
        call["attention_mask"] = jnp.ones((2, 17), bool)

    def loss(params: Any) -> Any:
        found = model.module.apply({"params": params}, **call, train=True, rngs={"dropout": jax.random.key(0)})
        return sum(x.astype(float).sum() for x in jax.tree.leaves(found) if jnp.issubdtype(x.dtype, jnp.floating))

    with jax.numpy_dtype_promotion("strict"):
        model, params = build(cls, {"dtype": dtype, "_do_init": False}, **dict.fromkeys(drawn, 0.1))
        jax.eval_shape(jax.grad(loss), params)
        keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
        jax.eval_shape(model.module.init, keys, jnp.ones((2, 3, 16, 16), dtype))
        if cls != MAE:
            options = {"pool": "patches", "interpolate_pos_encoding": True}
            jax.eval_shape(partial(model.features, jnp.ones((2, 3, 24, 20), dtype), **options), params=params)


def test_a_bfloat16_model_is_loaded_where_dtypes_are_not_mixed() -> None:
    with jax.numpy_dtype_promotion("strict"):
        model = vit_flax.FlaxViTForImageClassification.from_pretrained(SAFETENSORS, dtype=jnp.bfloat16)
        assert np.isfinite(model(pixels(size=(32, 32)), labels=np.array([0, 1])).loss)


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "ViTForMaskedImageModeling", TEACHER, TOKENS, MAE])
def test_linen_tabulates_what_a_model_computes(cls: str) -> None:
    own = {"decoder_num_hidden_layers": 1} if cls == MAE else {}
    model, _ = build(cls, {"_do_init": False}, num_hidden_layers=1, **own)
    keys = {name: jax.random.key(0) for name in ("params", "noise")}
    assert "flops" in nn.tabulate(model.module, keys, compute_flops=True)(pixels(1))


@pytest.mark.parametrize(
    "cls",
    ["ViTForImageClassification", "ViTForMaskedImageModeling", TEACHER, REGISTERS, "BeitForImageClassification", MAE],
)
def test_a_mesh_of_explicit_axes(cls: str) -> None:
    """As `jax.make_mesh` makes them: pictures are divided, parameters are whole on each device."""
    from jax.sharding import NamedSharding, PartitionSpec

    if not hasattr(jax.sharding, "auto_axes"):
        pytest.skip("this JAX has no explicit axes")
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    whole, divided = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    model, call = build(cls), {name: jax.device_put(each, divided) for name, each in call_of(cls).items()}
    params = jax.device_put(model.params, whole)
    gradients = jax.jit(jax.grad(loss_of(model, cls, **call))).trace(params).out_info
    assert {axis for each in jax.tree.leaves(gradients) for axis in each.sharding.spec} == {None}
    if cls == "ViTForImageClassification":
        found = model(call["pixel_values"], params=params).logits
        assert found.sharding.is_equivalent_to(divided, 2)
        assert_same(found, model(pixels()).logits)


def test_a_nan_is_not_blamed_on_the_loss() -> None:
    model = build()

    @jax.jit
    def step(params: Any) -> Any:
        return model.module.apply({"params": params}, pixels(), labels=np.array([0, 1])).loss + jnp.log(-params["one"])

    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"nan.*log"):
        step({**model.params, "one": jnp.ones(())})


def test_the_door_to_tensorflow(tmp_path: Path) -> None:
    """TensorFlow's converter knows no `erf` of today's JAX, but `erfc`."""
    tf = pytest.importorskip("tensorflow")
    jax2tf = pytest.importorskip("jax.experimental.jax2tf")
    orbax = pytest.importorskip("orbax.export")
    gelu = partial(jax.nn.gelu, approximate=False)
    model = vit_flax.FlaxViTForImageClassification(ViTConfig(**TINY, hidden_act=gelu), seed=0)
    expected, x = build()(pixels(3)).logits, pixels(3).astype(np.float32)

    def logits(params: Any, x: Any) -> Any:
        return model.module.apply({"params": params}, x).logits

    bound, spec = tolerances.both_rounded(model.config), tf.TensorSpec((None, 3, 16, 16), tf.float32, "pixel_values")
    convert = jax2tf.convert(partial(logits, model.params), polymorphic_shapes=["b, ..."])
    found = tf.function(convert, autograph=False, input_signature=[spec])(x)
    assert_close(found.numpy(), np.asarray(expected, np.float32), bound)
    module = orbax.JaxModule(model.params, logits, input_polymorphic_shape="b, ...")
    manager = orbax.ExportManager(module, [orbax.ServingConfig("serving_default", input_signature=[spec])])
    manager.save(str(tmp_path))
    (served,) = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](pixel_values=x).values()
    assert_close(served.numpy(), np.asarray(expected, np.float32), bound)


HUGE = """
import jax, vit_flax

before = peak()
for cls in ("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"):
    model, params = getattr(vit_flax, cls)(vit_flax.ViTConfig.variant("H/14"), _do_init=False)
    x = jax.ShapeDtypeStruct((8, 3, 224, 224), "float32")
    output = jax.eval_shape(lambda p, x: model.module.apply({"params": p}, x, output_hidden_states=True), params, x)
    assert [h.shape for h in output.hidden_states] == [(8, 257, 1280)] * 33
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == model.num_parameters() > 630e6
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_eval_shape_of_a_huge_model_takes_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK + HUGE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200_000  # KiB; the parameters would take 2.5 GB


LOADED = """
import sys, jax, vit_flax

jax.numpy.zeros(1).block_until_ready()
before = peak()
vit_flax.ViTModel.from_pretrained(sys.argv[1], scan_layers=True)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_layers_are_stacked_as_they_are_read(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8, image_size=32)
    vit_flax.ViTModel(config, scan_layers=True).save_pretrained(tmp_path)
    command = [sys.executable, "-c", PEAK + LOADED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "model.safetensors").stat().st_size
    assert int(done.stdout) * 1024 < 1.25 * size


# ---- outputs, options, errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MODELS)
def test_outputs_are_pytrees(cls: str) -> None:
    output = build(cls)(pixels(), output_attentions=True)
    doubled = jax.tree.map(lambda leaf: leaf * 2, output)
    assert type(doubled) is type(output)
    assert doubled.hidden_states is None
    np.testing.assert_array_equal(doubled.attentions[1], output.attentions[1] * 2)
    assert len(jax.tree.leaves(output)) == len(output.to_tuple()) - 1 + len(output.attentions)
    serialization = flax.serialization
    found = serialization.from_bytes(doubled, serialization.to_bytes(output))
    assert type(found) is type(output) and list(found) == list(output)
    assert_close(found, output, 0)
    with pytest.raises(ValueError, match=r"state of a .* has .*, attentions, not "):
        serialization.from_state_dict(output.replace(attentions=None), serialization.to_state_dict(output))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_tuples_keep_their_states(scan_layers: bool) -> None:
    model = build(options={"scan_layers": scan_layers})
    loss, logits, states, attentions = model.module.apply(
        {"params": model.params},
        **call_of("ViTForImageClassification"),
        output_hidden_states=True,
        output_attentions=True,
        return_dict=False,
    )
    assert (loss.shape, logits.shape) == ((), (2, 3))
    assert [s.shape for s in states] == [(2, 17, 16)] * 3
    assert [a.shape for a in attentions] == [(2, 4, 17, 17)] * 2


def test_interceptors_and_what_is_sown_see_all_tokens() -> None:
    model, found = build(), {}

    def record(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        found["/".join(context.module.path)] = output = run(*args, **kwargs)
        return output

    class Sown(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            logits = model.module.copy(name="model")(x).logits
            self.sow("other", "logits", logits)
            return logits

    apply = model.module.apply
    with nn.intercept_methods(record):
        expected = apply({"params": model.params}, pixels()).logits
    last = "vit/encoder/layer/1"
    assert {found[name].shape[1] for name in (last, f"{last}/output/dense", "vit/layernorm")} == {17}
    model(pixels())  # compiled: an interceptor that comes later sees the wrapper's calls all the same
    found.clear()
    with nn.intercept_methods(record):
        model(pixels())
    assert found[last].shape[1] == 17

    program = jax.make_jaxpr(lambda: Sown().apply({"params": {"model": model.params}}, pixels(), mutable=["other"]))
    assert "2,1,24" not in str(program())  # the MLP of the CLS token alone
    assert "2,1,24" in str(jax.make_jaxpr(lambda: apply({"params": model.params}, pixels()).logits)())
    assert_same(expected, apply({"params": model.params}, pixels()).logits)


def test_a_head_on_two_tokens_computes_two_tokens() -> None:
    """In the last layer, unless somebody looks."""
    model, shapes = build(TEACHER), []

    def record(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = run(*args, **kwargs)
        if (context.module.path, context.method_name) == (("deit", "encoder", "layer", "1"), "__call__"):
            shapes.append(output.shape)
        return output

    def apply() -> Any:
        return model.module.apply({"params": model.params}, pixels()).logits

    assert "2,2,24" in str(jax.make_jaxpr(apply)())  # its MLP
    with nn.intercept_methods(record):
        watched = apply()
    assert shapes == [(2, 18, 16)]
    assert_same(watched, apply())


def test_scanned_layers_are_captured() -> None:
    """The intermediates of all layers are stacked, as their parameters are."""
    unrolled, scanned = (build(options={"scan_layers": scan}) for scan in (False, True))
    states = scanned(pixels(), output_hidden_states=True).hidden_states

    def captured(model: Any) -> Any:
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return model.module.apply({"params": model.params}, pixels(), **options)[1]["intermediates"]["vit"]["encoder"]

    stacked, single = (captured(model)["layer"] for model in (scanned, unrolled))
    assert_same(stacked["__call__"][0], jnp.stack(states[1:]))
    assert_same(stacked["output"]["__call__"][0][1], single["1"]["output"]["__call__"][0])


@pytest.mark.parametrize("name", [n for n in BAD_CALLS if n not in VALUES_ONLY])
def test_errors_under_jit_have_the_same_words(name: str) -> None:
    cls, call, words = BAD_CALLS[name]
    model = build(cls)
    given = {"pixel_values": pixels(), **call}
    static = {k: given.pop(k) for k in list(given) if not isinstance(given[k], np.ndarray)}
    with pytest.raises(ValueError, match=re.escape(words)):
        jax.jit(lambda params, given: model.module.apply({"params": params}, **given, **static))(model.params, given)


def test_wrong_size_and_channels_under_jit() -> None:
    apply = jax.jit(build().module.apply)
    with pytest.raises(ValueError, match=r"Input image size \(24\*20\) doesn't match model \(16\*16\)\."):
        apply({"params": build().params}, pixels(size=(24, 20)))
    with pytest.raises(ValueError, match="Expected 3 but got 1"):
        apply({"params": build().params}, pixels()[:, :1])


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_out_of_range_are_nan_under_jit(label: int) -> None:
    model = build()
    loss = jax.jit(lambda labels: model(pixels(), labels=labels).loss)
    assert np.isnan(loss(np.array([0, label])))
    assert np.isfinite(loss(np.array([0, -100])))


def test_compiled_function_is_reused() -> None:
    """Repeated calls trace nothing, whatever the parameters and values; a call of another kind does, once."""
    traces = []

    def act(x: Any) -> Any:
        traces.append(x.shape)
        return jax.nn.gelu(x, approximate=False)

    model = build(hidden_act=act)

    def traced(*args: Any, **kwargs: Any) -> bool:
        traces.clear()
        model(*args, **kwargs)
        return bool(traces)

    others = jax.tree.map(lambda leaf: leaf * 2, model.params)
    assert traced(pixels())
    assert not traced(pixels())
    assert not traced(jnp.asarray(pixels()) + 1, params=others, return_dict=False)
    for kind in ({"output_attentions": True}, {"labels": np.array([0, 1])}, {"train": True}):
        assert (traced(pixels(), **kind), traced(pixels(), **kind)) == (True, False)
    assert (traced(pixels(3)), traced(pixels(3))) == (True, False)
    assert not traced(pixels())


# ---- dropout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_is_explicit(scan_layers: bool) -> None:
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    key = partial(jax.random.key, impl="rbg")  # the one that compiles fast
    model = build(options={"scan_layers": scan_layers}, **rates)
    quiet = model(pixels()).logits
    np.testing.assert_array_equal(quiet, model(pixels(), dropout_rng=key(0)).logits)
    with pytest.raises(ValueError, match=r"train=True draws dropout: pass a key for it.* dropout_rng=jax\.random\.key"):
        model(pixels(), train=True)
    first, same, other = (
        model(pixels(), train=True, dropout_rng=key(seed), output_attentions=True) for seed in (0, 0, 1)
    )
    assert_same(first, same, 0.0)
    assert not np.array_equal(first.logits, other.logits)
    assert not np.array_equal(first.logits, quiet)
    dropped = [np.asarray(a) == 0 for a in first.attentions]
    assert all(0.2 < d.mean() < 0.4 for d in dropped)
    assert not np.array_equal(*dropped)  # each layer draws its own


def test_dropout_takes_keys_of_either_kind() -> None:
    model = build(hidden_dropout_prob=0.3, num_hidden_layers=1)
    kinds = (jax.random.key(0), jax.random.PRNGKey(0))
    new, old = (model(pixels(), train=True, dropout_rng=key).logits for key in kinds)
    np.testing.assert_array_equal(new, old)


def test_training_without_dropout_needs_no_key() -> None:
    np.testing.assert_array_equal(build()(pixels(), train=True).logits, build()(pixels()).logits)


# ---- drop path ---------------------------------------------------------------------------------------------------


def of_attention_alone(cls: str, **options: Any) -> Any:
    """A model of 3 layers whose MLPs are scaled by zero, so that a layer is its attention's branch."""
    rates = {"drop_path_rate": 0.5, "num_hidden_layers": 3, "layer_scale": 0.5}
    model = build(cls, options, **rates)
    names = {n for n, spec in model.specs().items() if spec.row.name == MLP_SCALE}
    flat = {name: array * (name not in names) for name, array in model._flat(model.params).items()}
    model.params = model._tree(flat, jnp.stack)
    return model


@pytest.mark.parametrize(
    ("cls", "options"),
    [("ViTModel", {}), ("Dinov2Model", {}), ("ViTModel", {"scan_layers": True}), ("Dinov2Model", {"remat": True})],
    ids=str,
)
def test_drop_path_has_the_rate_of_each_layer(cls: str, options: dict[str, Any]) -> None:
    """A branch is left out, or divided by the probability to stay; scanned over, or computed again, as well."""
    model, x = of_attention_alone(cls, **options), pixels(256)
    with pytest.raises(ValueError, match=r"dropout_rng=jax\.random\.key"):
        model(x, train=True)
    states = model(x, train=True, dropout_rng=jax.random.key(0), output_hidden_states=True).hidden_states
    plain = of_attention_alone(cls)
    layers = plain.module.bind({"params": plain.params}).encoder.layer.layers
    for layer, rate, before, after in zip(layers, model.config.drop_path_rates, states, states[1:], strict=False):
        left_out = (after == before).all((1, 2))
        expected = jnp.where(left_out[:, None, None], before, before + (layer(before) - before) / (1 - rate))
        assert_same(after, expected)
        assert abs(left_out.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / 256)  # of a binomial distribution


@pytest.mark.parametrize("scan_layers", [False, True])
def test_drop_path_is_the_same_in_the_backward_pass(scan_layers: bool) -> None:
    """The gradient of a branch that is left out is zero for that picture, also where layers are computed again."""
    found = []
    for remat in (False, True):
        model = build("Dinov2Model", {"scan_layers": scan_layers, "remat": remat}, drop_path_rate=0.5)
        loss = loss_of(model, "Dinov2Model", train=True, rngs={"dropout": jax.random.key(3)})
        found.append(jax.jit(jax.value_and_grad(loss))(model.params))
    assert_same(*found)


def test_without_drop_path_nothing_is_drawn() -> None:
    model, call = build("Dinov2Model"), {"train": True, "rngs": {"dropout": jax.random.key(0)}}
    program = str(jax.make_jaxpr(partial(model.module.apply, **call))({"params": model.params}, pixels()))
    assert "random_bits" not in program
    quiet = build("Dinov2Model", drop_path_rate=0.5)
    assert "random_bits" not in str(jax.make_jaxpr(quiet.module.apply)({"params": model.params}, pixels()))
    drawn = build("Dinov2Model", drop_path_rate=0.5).module
    assert "random_bits" in str(jax.make_jaxpr(partial(drawn.apply, **call))({"params": model.params}, pixels()))


# ---- features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scan_layers", [False, True])
def test_features_are_compiled_once_for_each_kind(scan_layers: bool) -> None:
    """And run the layers alone that they need; in jit, and of other parameters, they are the same."""
    traces = []

    def act(x: Any) -> Any:
        traces.append(x.shape)
        return jax.nn.gelu(x, approximate=False)

    model = build(options={"scan_layers": scan_layers}, hidden_act=act, num_hidden_layers=3)

    def traced(*args: Any, **kwargs: Any) -> int:
        traces.clear()
        model.features(*args, **kwargs)
        return len(traces)

    assert traced(pixels(), layers=[0, 2]) == (1 if scan_layers else 2)
    assert traced(pixels(), layers=(0, 2)) == traced(pixels() + 1, (-4, -2), "cls", params=model.params) == 0
    assert (traced(pixels(), layers=2) > 0, traced(pixels(), layers=2)) == (True, 0)
    assert traced(pixels(), layers=(0, 2), normalize=False) > 0

    options = {"layers": (0, 2), "pool": "patches", "reshape": True}
    halved = jax.tree.map(lambda leaf: leaf / 2, model.params)
    inside = jax.jit(lambda params, x: model.features(x, params=params, **options))(halved, pixels())
    assert_same(inside, model.features(pixels(), params=halved, **options))
    assert_same(inside, model.module.apply({"params": halved}, pixels(), method="features", **options))
    program = str(jax.make_jaxpr(partial(model.features, **options))(pixels()))
    assert ("length=2" in program, "length=3" in program) == (scan_layers, False)


def test_the_cls_token_of_one_layer_is_computed_alone() -> None:
    model = build(num_hidden_layers=3)
    programs = {layers: str(jax.make_jaxpr(partial(model.features, layers=layers))(pixels())) for layers in (2, (1, 2))}
    assert ["2,1,24" in program for program in programs.values()] == [True, False]  # the MLP of one token
    assert_same(model.features(pixels(), layers=2), model.features(pixels(), layers=(1, 2))[1])


def test_maps_have_the_layout_of_the_model() -> None:
    first, last = (build("Dinov2Backbone", {"data_format": f"channels_{which}"}) for which in ("first", "last"))
    x = pixels(size=(8, 24))
    expected, actual = first(x), last(x.transpose(0, 2, 3, 1))
    assert [m.shape for m in actual.feature_maps] == [(2, 2, 6, 16)]
    assert_same(actual.feature_maps[0].transpose(0, 3, 1, 2), expected.feature_maps[0])


# ---- what XLA makes of layers --------------------------------------------------------------------------------------


@pytest.fixture
def compiled_in_full() -> Any:
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def test_derivatives_of_gelu_agree_with_finite_differences() -> None:
    from jax.test_util import check_grads

    x = jnp.linspace(-6.0, 6.0, 25)
    check_grads(vit_flax.activations.gelu, (x,), order=2, modes=["fwd", "rev"], rtol=1e-6, atol=1e-8)


@pytest.mark.processor("is about what XLA makes for processors")
@pytest.mark.usefixtures("compiled_in_full")
def test_training_keeps_no_error_function() -> None:
    """The GELU's; of four MLPs in a row the plain form keeps that of all but the last, which is used at once."""
    x, up, down = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((256, 64), (64, 512), (512, 64)))

    def kept(gelu: Any) -> int:
        def loss(x: Any, up: Any, down: Any) -> Any:
            for _ in range(4):
                x = x + gelu(x @ up) @ down
            return jnp.square(x).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(1, 2))).lower(x, up, down).compile()
        return int(compiled.memory_analysis().temp_size_in_bytes)

    plain = kept(lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5)))
    assert kept(vit_flax.activations.gelu) <= plain - 3 * 256 * 512 * 4


@pytest.mark.processor("is about what XLA makes for processors")
@pytest.mark.usefixtures("compiled_in_full")
@pytest.mark.parametrize("features", [16, 48])
def test_a_linear_layer_transposes_no_activations(features: int) -> None:
    layer, x = nn.Dense(features, dot_general=vit_flax.layers.product), jnp.ones((2, 5, 32))
    params = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(params, x), nn.Dense(features).apply(params, x))

    def transposed(dense: Any) -> int:
        step = jax.jit(jax.grad(lambda params, x: jnp.square(dense.apply(params, x)).sum(), argnums=(0, 1)))
        return int(step.lower(params, x).compile().as_text().count(" transpose("))

    assert transposed(layer) == 0 < transposed(nn.Dense(features))


# ---- gradient checkpointing and the scan over layers ---------------------------------------------------------------


# DINOv2's layers are those of `test_drop_path_is_the_same_in_the_backward_pass`; an MAE's encoder has ViT's.
@pytest.mark.parametrize(
    ("cls", "scan_layers"), [("ViTForImageClassification", False), ("BeitForImageClassification", True), (MAE, True)]
)
def test_gradient_checkpointing_changes_nothing_but_memory(cls: str, scan_layers: bool) -> None:
    options = {"scan_layers": scan_layers}
    plain, frugal = (build(cls, options, hidden_dropout_prob=0.1, num_hidden_layers=3) for _ in range(2))
    frugal.enable_gradient_checkpointing()
    found, saved = [], []
    for model in (plain, frugal):
        loss = loss_of(model, cls, train=True, rngs={"dropout": jax.random.key(0, impl="rbg")})
        found.append(jax.jit(jax.value_and_grad(loss))(model.params))
        backward = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], model.params)
        saved.append(sum(leaf.size for leaf in jax.tree.leaves(backward)))
    assert_same(*found)
    assert saved[1] < saved[0] / 2
    frugal.disable_gradient_checkpointing()
    assert not frugal.module.remat


@pytest.mark.parametrize(("cls", "name"), CLASSES_AND_CALLS)
def test_scan_equals_the_unrolled_model(cls: str, name: str) -> None:
    unrolled, scanned = (build(cls, {"scan_layers": scan}, num_hidden_layers=3) for scan in (False, True))
    call = {**call_of(cls), **CALLS[name]}
    if name == "head mask":
        call["head_mask"] = np.random.default_rng(0).random((3, 4))
    if name == "interpolation":
        call.pop("bool_masked_pos", None)
    assert_same(scanned(**call), unrolled(**call))


def test_scan_gives_the_tokens_that_are_asked_for() -> None:
    unrolled, scanned = (build("ViTModel", {"scan_layers": scan}) for scan in (False, True))
    output = scanned(pixels(), tokens=1)
    assert output.last_hidden_state.shape == (2, 1, 16)
    assert_same(output, unrolled(pixels(), tokens=1))


@pytest.mark.parametrize("cls", SCANNED)
def test_scan_has_the_gradients_of_the_unrolled_model(cls: str) -> None:
    unrolled, scanned = (build(cls, {"scan_layers": scan}) for scan in (False, True))
    expected, stacked = (jax.jit(jax.grad(loss_of(m, cls)))(m.params) for m in (unrolled, scanned))
    trunk = expected.get(family_of(config_of(cls)).trunk, expected)
    places = [(trunk["encoder"], "layer")]
    if cls == MAE:
        places.append((expected["decoder"], "decoder_layers"))
    for above, name in places:
        above[name] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *above[name].values())
    assert_same(stacked, expected)


def test_layer_scale_is_scanned_and_rematerialised() -> None:
    """As the unrolled model computes it; with scales of 0 no layer changes a token."""
    unrolled, scanned, frugal = (
        build("ViTModel", {"scan_layers": scan}, layer_scale=0.3, num_hidden_layers=3) for scan in (False, True, True)
    )
    frugal.enable_gradient_checkpointing()
    (value, expected), *others = (
        jax.jit(jax.value_and_grad(loss_of(m, "ViTModel")))(m.params) for m in (unrolled, scanned, frugal)
    )
    layers = expected["encoder"]["layer"]
    expected["encoder"]["layer"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[str(i)] for i in range(3)))
    for found in others:
        assert_same(found, (value, expected))
    assert expected["encoder"]["layer"]["attention"]["output"]["scale"].shape == (3, 16)
    assert np.all(expected["encoder"]["layer"]["output"]["scale"].any(1))
    params = scanned.init_weights(0)
    for branch in (params["encoder"]["layer"]["attention"], params["encoder"]["layer"]):
        branch["output"]["scale"] *= 0
    states = scanned(pixels(), params=params, output_hidden_states=True).hidden_states
    assert_same(states[-1], states[0])


def test_scanned_parameters_go_in_and_out_of_files(tmp_path: Path) -> None:
    load = vit_flax.FlaxViTForImageClassification.from_pretrained
    unrolled, scanned = (load(SAFETENSORS, scan_layers=scan, dtype=jnp.float64) for scan in (False, True))
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32))
    assert_same(scanned(x), unrolled(x))
    for name, model in (("unrolled", unrolled), ("scanned", scanned)):
        model.save_pretrained(tmp_path / name)
    files = [sorted(p.name for p in (tmp_path / name).iterdir()) for name in ("unrolled", "scanned")]
    assert files[0] == files[1]
    for file in files[0]:
        assert (tmp_path / "unrolled" / file).read_bytes() == (tmp_path / "scanned" / file).read_bytes()
    abstract, params = load(SAFETENSORS, scan_layers=True, dtype=jnp.float64, _do_init=False)
    assert_same(params, scanned.params, 0.0)
    assert paths(abstract.params_shape_tree) == paths(params)


def test_scanned_program_does_not_grow_with_depth() -> None:
    def lines(layers: int, scan: bool) -> list[int]:
        model, params = vit_flax.FlaxViTForImageClassification(
            CONFIG.copy(num_hidden_layers=layers), scan_layers=scan, _do_init=False
        )
        loss = loss_of(model, "ViTForImageClassification")
        return [jax.jit(f).lower(params).as_text().count("\n") for f in (loss, jax.value_and_grad(loss))]

    assert lines(2, scan=True) == lines(12, scan=True)
    two, four, twelve = (lines(layers, scan=False)[0] for layers in (2, 4, 12))
    assert twelve - two == 5 * (four - two) > 0


# ---- attention on GPUs -------------------------------------------------------------------------------------------

GPU = SimpleNamespace(device_kind="A GPU", compute_capability="8.0")
FALLS_BACK: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # class, changes, call
    "float32": ("ViTModel", {"dtype": "float32"}, {}),
    "narrow heads": ("ViTModel", {"hidden_size": 16}, {}),
    "wide heads": ("ViTModel", {"hidden_size": 136, "num_attention_heads": 1}, {}),
    "attention mask": ("ViTModel", {}, CALLS["attention mask"]),
    "dropout": ("ViTModel", {"attention_probs_dropout_prob": 0.1}, {"train": True}),
    "relative positions": ("BeitModel", {}, {}),
    "attentions": ("ViTModel", {}, {"output_attentions": True}),
}


@pytest.fixture
def beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX traces and lowers as it does where there is a GPU with cuDNN."""
    kernels = import_module("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(kernels, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000))
    monkeypatch.setattr(jax, "devices", lambda *_: [GPU])


def half(cls: str, attention: str, options: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model that is computed in bfloat16, with heads of 8; its parameters are abstract."""
    given = {"hidden_size": 32, "dtype": "bfloat16", **changes}
    config = config_of(cls, attn_implementation=attention, **given)
    dtype = {"dtype": given["dtype"], "_do_init": False}
    model, _ = getattr(vit_flax, f"Flax{cls}")(config, **{**dtype, **(options or {})})
    return model


def kernels(function: Any, *given: Any) -> tuple[int, int]:
    """How many forward and backward kernels of cuDNN there are in the program that a GPU would get."""
    text = jax.jit(function).trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    return text.count("@__cudnn$fmhaSoftmax("), text.count("@__cudnn$fmhaSoftmaxBackward(")


@pytest.mark.usefixtures("beside_a_gpu")
@pytest.mark.parametrize(
    ("cls", "options", "forward", "both"),
    [
        ("ViTForImageClassification", {}, 2, (2, 2)),
        ("ViTForImageClassification", {"scan_layers": True}, 1, (1, 1)),
        ("DeiTModel", {}, 2, (2, 2)),  # an even number of tokens
        ("Dinov2Model", {}, 2, (2, 2)),
    ],
    ids=str,
)
def test_cudnn_is_what_a_gpu_runs(cls: str, options: dict[str, Any], forward: int, both: tuple[int, int]) -> None:
    model, call = half(cls, "cudnn", options), call_of(cls)
    call["head_mask"] = CALLS["head mask"]["head_mask"]
    if cls == "Dinov2Model":
        call["bool_masked_pos"] = np.arange(32).reshape(2, 16) % 3 == 0
    params = model.params_shape_tree

    def total(params: Any) -> Any:
        return model.module.apply({"params": params}, **call)[field_of(cls)].sum()

    assert kernels(total, params) == (forward, 0)
    assert kernels(jax.grad(total), params) == both
    model.enable_gradient_checkpointing()
    assert kernels(jax.grad(total), params) == (2 * both[0], both[1])


@pytest.mark.usefixtures("beside_a_gpu")
def test_cudnn_under_vmap() -> None:
    model = half("ViTModel", "flash")

    def total(params: Any, x: Any) -> Any:
        return model.module.apply({"params": params}, x).pooler_output.sum()

    each = jax.vmap(jax.grad(total), (None, 0))
    assert kernels(each, model.params_shape_tree, pixels(6).reshape(3, 2, 3, 16, 16)) == (2, 2)


@pytest.mark.usefixtures("beside_a_gpu")
@pytest.mark.parametrize("name", FALLS_BACK)
def test_what_cudnn_does_not_compute_is_computed_as_before(name: str) -> None:
    cls, changes, call = FALLS_BACK[name]
    programs = []
    for attention in ("cudnn", "sdpa"):
        model = half(cls, attention, **changes)
        apply = partial(model.module.apply, **{**call_of(cls), **call}, rngs={"dropout": jax.random.key(0)})
        programs.append(str(jax.make_jaxpr(apply)({"params": model.params_shape_tree})))
    assert programs[0] == programs[1]


@pytest.mark.usefixtures("beside_a_gpu")
def test_cudnn_is_left_where_sizes_are_symbols() -> None:
    from jax import export

    model = half("ViTModel", "cudnn")
    x = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 3, 16, 16"), jnp.float32)
    exported = export.export(jax.jit(model.module.apply), platforms=("cuda",))({"params": model.params_shape_tree}, x)
    assert "@__cudnn" not in exported.mlir_module()


@pytest.mark.usefixtures("beside_a_gpu")
@pytest.mark.parametrize("tokens", [16, 17])
def test_cudnn_attention_is_that_of_the_explicit_path(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what JAX documents of its function in the place of the kernel, in float64."""

    def kernel(
        q: Any,
        k: Any,
        v: Any,
        query_seq_lengths: Any = None,
        key_value_seq_lengths: Any = None,
        implementation: Any = None,
    ) -> Any:
        assert implementation == "cudnn" and query_seq_lengths is key_value_seq_lengths
        q, k, v = (x.astype(jnp.float64) for x in (q, k, v))
        batch, rows = q.shape[:2]
        lengths = jnp.full(batch, rows) if query_seq_lengths is None else query_seq_lengths
        there = jnp.arange(rows) < lengths[:, None]  # (B, S)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        probs = jax.nn.softmax(jnp.where(there[:, None, None], scores, -jnp.inf))
        return (jnp.einsum("bhqk,bkhd->bqhd", probs, v) * there[..., None, None]).astype(jnp.bfloat16)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    attend = import_module("vit_flax.attention").ATTENTIONS
    rng, mask = np.random.default_rng(0), jnp.array([1.0, 0.0, 1.0, 0.5])
    given = [jnp.asarray(rng.standard_normal((2, 4, tokens, 8)), jnp.bfloat16) for _ in range(4)]

    @partial(jax.jit, static_argnums=(0, 1))
    def computed(name: str, dtype: Any) -> Any:
        *qkv, gradient = (x.astype(dtype) for x in given)

        def context(*qkv: Any) -> Any:
            return attend[name](*qkv, None, mask, None)[0]

        found, backward = jax.vjp(context, *qkv)
        return [x.astype(jnp.float64) for x in (context(*qkv), found, *backward(gradient))]

    bound = 2 * tolerances.UNIT_ROUNDOFF["bfloat16"]
    for actual, expected in zip(computed("cudnn", jnp.bfloat16), computed("eager", jnp.float64), strict=True):
        assert_close(actual, expected, bound)


@pytest.mark.parametrize("name", ["cudnn", "flash"])
def test_cudnn_wants_a_gpu_that_has_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so when it would run: a model can be made before JAX knows its devices."""
    model = build("ViTModel", attn_implementation=name)

    def none(platform: str | None = None) -> Any:
        if platform is not None:
            raise RuntimeError(f"Unknown backend {platform}")
        return [SimpleNamespace(device_kind="cpu")]

    old = SimpleNamespace(device_kind="Tesla T4", compute_capability="7.5")
    for devices, seen in ((none, "cpu"), (lambda *_: [GPU, old], "A GPU, Tesla T4")):
        monkeypatch.setattr(jax, "devices", devices)
        with pytest.raises(ValueError, match=rf"8.0 \(Ampere\) or above, and JAX sees {seen}: use 'sdpa'"):
            model(pixels())


# ---- channels last -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name"),
    [("ViTModel", "options"), ("ViTModel", "interpolation"), ("ViTForImageClassification", "plain"),
     ("ViTForMaskedImageModeling", "plain"), ("ViTForMaskedImageModeling", "interpolation")],
)  # fmt: skip
def test_channels_last_equals_channels_first(cls: str, name: str) -> None:
    first, last = (build(cls, {"data_format": f"channels_{which}"}) for which in ("first", "last"))
    call = {**call_of(cls), **CALLS[name]}
    if name == "interpolation" and cls == "ViTForMaskedImageModeling":
        call["bool_masked_pos"] = np.arange(60).reshape(2, 30) % 3 == 0
    expected = first(**call)
    actual = last(**{**call, "pixel_values": call["pixel_values"].transpose(0, 2, 3, 1)})
    if cls == "ViTForMaskedImageModeling":
        assert expected.loss is not None
        actual.reconstruction = actual.reconstruction.transpose(0, 3, 1, 2)
    assert_same(actual, expected)


def test_channels_last_errors() -> None:
    model = build(options={"data_format": "channels_last"})
    with pytest.raises(ValueError, match="Expected 3 but got 16"):
        model(pixels())
    with pytest.raises(ValueError, match=r"4 dimensions, \(batch, height, width, channels\)"):
        model(pixels()[0])
    with pytest.raises(ValueError, match="data_format must be one of channels_first, channels_last, got 'NHWC'"):
        build(options={"data_format": "NHWC"})


# ---- parameters --------------------------------------------------------------------------------------------------

VARIANTS = {
    "plain": {},
    "scanned": {"scan_layers": True, "layer_scale": 0.1, "dtype": jnp.float64},
    "fewer": {"qkv_bias": False, "num_labels": 0, "pooler_output_size": 5, "dtype": jnp.bfloat16},
    "not square": {"image_size": (8, 24), "patch_size": (4, 2), "encoder_stride": (4, 2)},
}


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("name", VARIANTS)
def test_table_gives_the_tree_that_linen_initialises(cls: str, name: str) -> None:
    changes = dict(VARIANTS[name])
    options = {k: changes.pop(k) for k in ("scan_layers", "dtype") if k in changes}
    model, params = getattr(vit_flax, cls)(config_of(cls, **changes), **options, _do_init=False)
    height, width = changes.get("image_size", (16, 16))
    x = jax.ShapeDtypeStruct((1, 3, height, width), jnp.float32)
    drawn = jax.eval_shape(model.module.init, jax.random.key(0), x)["params"]
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), drawn) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), params
    )


@pytest.mark.parametrize("scan_layers", [False, True])
def test_linen_initialises_what_is_not_asked_for(scan_layers: bool) -> None:
    """Layers after the last stage, and the norm of maps that are not normalised."""
    changes = {"out_indices": [1], "apply_layernorm": False}
    backbone, model = (build(cls, {"scan_layers": scan_layers}, **changes) for cls in ("Dinov2Backbone", "Dinov2Model"))
    drawn = jax.eval_shape(backbone.module.init, jax.random.key(0), pixels())["params"]
    assert paths(drawn) == paths(backbone.params)
    drawn = jax.eval_shape(partial(model.module.init, method="features", layers=0), jax.random.key(0), pixels())
    assert paths(drawn["params"]) == paths(model.params)


@pytest.mark.parametrize("cls", [cls for cls in DISTINCT if cls not in SHARING])
def test_linen_initialises_as_the_table_says(cls: str) -> None:
    """The same distribution from `module.init`: normal, std initializer_range; zeros and ones where they belong."""
    changes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    model = build(cls, **changes, initializer_range=0.02, layer_scale=0.125)
    drawn = jax.jit(model.module.init)(jax.random.key(0), pixels())["params"]
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(drawn), jax.tree.leaves(model.params), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if b.std() == 0:
            np.testing.assert_array_equal(a, b)
        elif a.size > 500:
            assert a.std() == pytest.approx(b.std(), rel=0.15), jax.tree_util.keystr(path)


@pytest.mark.parametrize("folder", sorted(CHECKPOINTS.glob("*/flax_msgpack")), ids=lambda p: p.parent.name)
def test_parameters_have_the_tree_of_the_flax_models_of_transformers(folder: Path) -> None:
    msgpack = pytest.importorskip("msgpack")

    def decode(kind: int, payload: bytes) -> np.ndarray:
        shape, dtype, data = msgpack.unpackb(payload, raw=True)
        return np.frombuffer(data, dtype.decode()).reshape(shape)

    theirs = msgpack.unpackb((folder / "flax_model.msgpack").read_bytes(), ext_hook=decode)
    source = folder.parent / "pt_safetensors"
    cls = getattr(vit_flax, f"Flax{AutoConfig.from_pretrained(source).architectures[0]}")
    options = {} if cls is not vit_flax.FlaxViTModel else {"add_pooling_layer": "pooler" in theirs}
    ours = cls.from_pretrained(source, output_loading_info=True, **options)[0].params
    assert paths(ours) == paths(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_without_initialisation(scan_layers: bool) -> None:
    model, params = vit_flax.FlaxViTModel(CONFIG, _do_init=False, scan_layers=scan_layers)
    assert isinstance(model, vit_flax.FlaxViTModel)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))
    assert paths(params) == paths(vit_flax.FlaxViTModel(CONFIG, scan_layers=scan_layers).params)
    for use in (lambda: model.params, lambda: model(pixels())):
        with pytest.raises(ValueError, match="_do_init=False and holds no parameters: pass params="):
            use()
    filled = model.init_weights(0, params=params)
    whole = vit_flax.FlaxViTModel(CONFIG, scan_layers=scan_layers)
    assert_same(model(pixels(), params=filled), whole(pixels()), 0.0)


def test_loading_without_initialisation() -> None:
    """What the file lacks stays abstract, for `init_weights` to fill."""
    (model, params), report = vit_flax.FlaxViTModel.from_pretrained(
        SAFETENSORS, _do_init=False, add_pooling_layer=True, output_loading_info=True
    )
    assert sorted(report.missing_keys) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params["pooler"]))
    whole = model.init_weights(jax.random.key(1), params=params)
    assert isinstance(whole["pooler"]["dense"]["kernel"], jax.Array)
    del params["pooler"], whole["pooler"]
    assert_same(whole, params, 0.0)


def test_init_weights_takes_a_seed_or_a_key_and_fills_only_what_is_missing() -> None:
    model = build("ViTModel")
    assert_same(model.init_weights(0), model.params, 0.0)
    one, same, legacy, other = (
        model.init_weights(k, (1, 3, 16, 16))
        for k in (jax.random.key(5), jax.random.key(5), jax.random.PRNGKey(5), jax.random.key(6))
    )
    assert_same(one, same, 0.0)
    assert_same(one, legacy, 0.0)
    given = copy.deepcopy(one)
    del given["pooler"], given["encoder"]["layer"]["1"]["output"]["dense"]["kernel"]
    filled = model.init_weights(jax.random.key(6), params=given)
    assert paths(filled) == paths(one)
    assert_same(filled["pooler"], other["pooler"], 0.0)
    assert_same(filled["encoder"]["layer"]["0"], one["encoder"]["layer"]["0"], 0.0)
    last = [p["encoder"]["layer"]["1"]["output"]["dense"]["kernel"] for p in (filled, other)]
    assert_same(*last, 0.0)


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_casting_parameters_with_a_mask(name: str) -> None:
    model = build()
    dtype = {"bf16": jnp.bfloat16, "fp16": jnp.float16, "fp32": jnp.float32}[name]
    before = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params)
    cast = getattr(model, f"to_{name}")
    assert {leaf.dtype for leaf in jax.tree.leaves(cast(before))} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(before)} == {jnp.dtype(jnp.float64)}
    mask = jax.tree_util.tree_map_with_path(lambda path, _: "layernorm" not in jax.tree_util.keystr(path), before)
    for path, leaf in jax.tree_util.tree_leaves_with_path(cast(before, mask)):
        assert leaf.dtype == (jnp.float64 if "layernorm" in jax.tree_util.keystr(path) else dtype)
    counted = cast({"kernel": jnp.ones(2), "step": jnp.zeros((), jnp.int32)})
    assert counted["step"].dtype == jnp.int32


def test_another_tree_is_refused() -> None:
    model = build()
    doubled = jax.tree.map(lambda leaf: leaf * 2, model.params)
    model.params = doubled
    assert model.params is doubled
    with pytest.raises(
        ValueError,
        match=r"head/kernel: \(1,\), expected nothing\n(.*\n)*.*vit/layernorm/bias: missing, expected \(16,\)",
    ):
        model.params = {"classifier": doubled["classifier"], "head": {"kernel": jnp.ones(1)}}
    assert model.params is doubled


def test_deepcopy_and_pickle() -> None:
    model = build()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again(pixels()).logits, model(pixels()).logits)


# ---- dtypes ------------------------------------------------------------------------------------------------------


def test_bfloat16_computes_in_it_and_keeps_float32_parameters() -> None:
    model = vit_flax.FlaxViTForImageClassification.from_pretrained(SAFETENSORS, dtype=jnp.bfloat16)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    output = model(x, labels=np.array([0, 1]), output_hidden_states=True)
    assert model.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in (output.logits, *output.hidden_states)} == {jnp.dtype(jnp.bfloat16)}
    assert output.loss.dtype == jnp.float32
    wide = vit_flax.FlaxViTForImageClassification.from_pretrained(SAFETENSORS)
    assert_same(model.params, wide.params, 0.0)
    half = wide.to_bf16(wide.params)
    exact = vit_flax.FlaxViTForImageClassification.from_pretrained(SAFETENSORS, dtype=jnp.float64)
    bound = tolerances.rounding(model.config, "bfloat16")
    assert_close(np.float64(model(x, params=half).logits), exact(x).logits, bound)


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_x64_from_end_to_end(cls: str, scan_layers: bool) -> None:
    model = build(cls, {"scan_layers": scan_layers})
    call = {**call_of(cls), "output_attentions": True}
    output = model(**call, output_hidden_states=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, model.params))} == {jnp.dtype(jnp.float64)}
    jaxpr = str(jax.make_jaxpr(partial(model.module.apply, **call))({"params": model.params}))
    assert "f32" not in jaxpr
    assert "bf16" not in jaxpr


# ---- training ----------------------------------------------------------------------------------------------------


def test_it_learns() -> None:
    """A few steps of optax bring the loss of a fixed batch near zero."""
    optax = pytest.importorskip("optax")
    model = build(hidden_dropout_prob=0.01)
    call, optimizer = call_of("ViTForImageClassification", 6), optax.adamw(3e-3)

    @jax.jit
    def step(params: Any, state: Any, key: Any) -> Any:
        def loss_of_batch(params: Any) -> Any:
            return model.module.apply({"params": params}, **call, train=True, rngs={"dropout": key}).loss

        loss, gradients = jax.value_and_grad(loss_of_batch)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state = model.params, optimizer.init(model.params)
    for key in jax.random.split(jax.random.key(0), 60):
        params, state, loss = step(params, state, key)
    assert loss < 0.02


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_distillation_under_jit_and_grad(kind: str) -> None:
    from jax.test_util import check_grads

    taught = {"distillation": kind, "distillation_temperature": 2.0, "distillation_weight": 0.3}
    taught |= {"num_hidden_layers": 1, "layer_norm_eps": 0.1}  # tokens start at zero, where a small one is steep
    model, call = build(TEACHER, **taught), call_of(TEACHER)
    output, tau = model(**call), 1.0 if kind == "hard" else 2.0
    ours = np.log(nn.softmax(output.cls_logits))
    student, teacher = (np.log(nn.softmax(x / tau)) for x in (output.distillation_logits, call["teacher_logits"]))
    of_labels, of_class = (
        -x[np.arange(2), y].mean() for x, y in ((ours, call["labels"]), (student, teacher.argmax(1)))
    )
    divergence = (np.exp(teacher) * (teacher - student)).sum(1).mean()
    assert_same(output.loss, jnp.asarray(0.7 * of_labels + 0.3 * (of_class if kind == "hard" else 4 * divergence)))

    loss = jax.jit(loss_of(model, TEACHER))
    wrapped = jax.jit(jax.value_and_grad(lambda params, call: model(**call, params=params).loss))
    assert_same(wrapped(model.params, call), jax.value_and_grad(loss)(model.params))
    check_grads(loss, (model.params,), order=1, modes=["rev"], eps=1e-5, rtol=1e-6, atol=1e-8)

    taught["distillation_weight"] = 1.0
    gradient = jax.jit(jax.grad(loss_of(build(TEACHER, **taught), TEACHER)))(model.params)
    assert not np.any(gradient["cls_classifier"]["kernel"])  # the labels are not learnt
    assert np.any(gradient["distillation_classifier"]["kernel"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "teacher_logits are distilled beside labels of classes, (batch,): got no labels."),
        ({"teacher_logits": np.zeros((2, 4))}, "teacher_logits must have the shape of the model's logits, (2, 3)"),
    ],
)
def test_a_teacher_that_does_not_fit(changes: dict[str, Any], words: str) -> None:
    model, call = build(TEACHER), {**call_of(TEACHER), **changes}
    for apply in (model, jax.jit(lambda **call: model(**call))):
        with pytest.raises(ValueError, match=re.escape(words)):
            apply(**call)
    with pytest.raises(TypeError, match="teacher_logits must be a tensor of the model's framework: got a list"):
        model(**{**call, "teacher_logits": [[0.0] * 3] * 2})


# ---- visual tokens -----------------------------------------------------------------------------------------------


def test_visual_tokens_under_jit() -> None:
    """One program for all masks of so many patches; a number that does not fit them shows in the loss alone."""
    model = build(TOKENS)
    mask, labels = call_of(TOKENS)["bool_masked_pos"], np.arange(11, dtype=np.uint8) % 5

    @jax.jit
    def loss(mask: Any, labels: Any) -> Any:
        return model.module.apply({"params": model.params}, pixels(), mask, labels=labels).loss

    for moved in (mask, mask[::-1], np.roll(mask, 3, axis=1)):
        output = model(pixels(), moved, labels=labels)
        likely = nn.log_softmax(output.logits)[moved]
        assert_same(output.loss, -likely[np.arange(11), labels].mean())
        assert_same(loss(moved, labels), output.loss)
    assert loss._cache_size() == 1
    for misfit in (labels[1:], np.append(labels, 0), labels + 3, labels[:0]):
        assert np.isnan(loss(mask, misfit))
    assert np.isnan(loss(~mask & mask, labels[:0]))  # the mean of nothing


def test_visual_tokens_that_do_not_fit() -> None:
    model, call = build(TOKENS), call_of(TOKENS)
    labels = np.arange(11) % 5
    for misfit in (labels[1:], np.append(labels, 0), labels * 1.0):
        with pytest.raises(ValueError, match=re.escape("labels must be integers from 0 to 4 of shape (11,)")):
            model(**{**call, "labels": misfit})
    with pytest.raises(ValueError, match=re.escape("labels must be from 0 to 4 (vocab_size=5)")):
        model(**{**call, "labels": labels + 3})
    with pytest.raises(ValueError, match="pass bool_masked_pos with them"):
        model(pixels(), labels=labels)


def test_the_second_argument_of_beit_is_the_mask() -> None:
    """As in transformers; of the other members it is the parameters."""
    model, call = build(TOKENS), call_of(TOKENS)
    other = jax.tree.map(lambda leaf: leaf + 0.1, model.params)
    mask = call["bool_masked_pos"]
    assert_same(model(pixels(), mask, other).logits, model(pixels(), bool_masked_pos=mask, params=other).logits)
    assert not np.allclose(model(pixels(), mask).logits, model(pixels()).logits)
    with pytest.raises(TypeError, match="bool_masked_pos must be a tensor"):
        model(pixels(), other)


# ---- sharding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", FAMILY)
@pytest.mark.parametrize("scan_layers", [False, True])
def test_partition_specs(cls: str, scan_layers: bool) -> None:
    from vit_flax.sharding import partition_specs

    model, params = getattr(vit_flax, cls)(config_of(cls), scan_layers=scan_layers, _do_init=False)
    specs = partition_specs(model, axis="tensor")
    assert jax.tree.structure(specs) == jax.tree.structure(params)
    split = {
        "query/kernel": (None, "tensor"),
        "key/kernel": (None, "tensor"),
        "value/kernel": (None, "tensor"),
        "query/bias": ("tensor",),
        "key/bias": ("tensor",),
        "value/bias": ("tensor",),
        "intermediate/dense/kernel": (None, "tensor"),
        "intermediate/dense/bias": ("tensor",),
        "output/dense/kernel": ("tensor", None),
        "mlp/fc1/kernel": (None, "tensor"),
        "mlp/fc1/bias": ("tensor",),
        "mlp/fc2/kernel": ("tensor", None),
        "mlp/weights_in/kernel": (None, "tensor"),
        "mlp/weights_in/bias": ("tensor",),
        "mlp/weights_out/kernel": ("tensor", None),
    }
    found = 0
    for path, spec in jax.tree_util.tree_leaves_with_path(specs):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        expected = next((parts for end, parts in split.items() if name.endswith(end)), ())
        found += bool(expected)
        stacked = scan_layers and ("/layer/" in name or "/decoder_layers/" in name)
        assert tuple(spec) == ((None, *expected) if stacked else expected), name
    of_layer = {MAE: 20}.get(cls, 9 if cls.startswith("Beit") else 10)  # BEiT's keys have no bias
    assert found == (of_layer if scan_layers else 2 * of_layer)


# ---- MAE ---------------------------------------------------------------------------------------------------------


def mae_call(model: Any, size: tuple[int, int] = (16, 16)) -> dict[str, Any]:
    """Pixels of a size, in the model's layout, and their noise."""
    patches = num_patches(size, model.config)
    x = pixels(size=size) if model.module.channels_axis == 1 else pixels(size=size).transpose(0, 2, 3, 1)
    return {"pixel_values": x, "noise": np.random.default_rng(1).random((2, patches))}


def test_noise_has_a_key_of_its_own() -> None:
    """Which `module.apply` takes as "noise"; with noise given, nothing is drawn and no key is needed."""
    model = build(MAE, hidden_dropout_prob=0.1, num_hidden_layers=1, decoder_num_hidden_layers=1)
    first, again, other = (model(pixels(), noise_rng=jax.random.key(seed)) for seed in (0, 0, 1))
    assert_same(again.loss, first.loss, 0.0)
    assert not np.array_equal(first.mask, other.mask)
    assert not np.array_equal(first.mask[0], first.mask[1])
    np.testing.assert_array_equal(first.mask.sum(1), [8, 8])
    applied = model.module.apply({"params": model.params}, pixels(), rngs={"noise": jax.random.key(0)})
    np.testing.assert_array_equal(applied.mask, first.mask)
    call, keys = call_of(MAE), {"dropout_rng": jax.random.key(0), "noise_rng": jax.random.key(0)}
    assert_same(model(**call, noise_rng=jax.random.key(1)), model(**call), 0.0)
    assert np.isfinite(model(**call, train=True, dropout_rng=jax.random.key(0)).loss)
    np.testing.assert_array_equal(model(pixels(), train=True, **keys).mask, first.mask)
    program = str(jax.make_jaxpr(partial(model.module.apply, {"params": model.params}))(*call.values()))
    assert "random_bits" not in program
    with pytest.raises(ValueError, match=r"pass a key for it, such as noise_rng=jax\.random\.key\(0\), or noise="):
        model(pixels())
    with pytest.raises(ValueError, match=r"train=True draws dropout"):
        model(**call, train=True)
    with pytest.raises(TypeError, match="noise_rng"):
        build()(pixels(), noise_rng=jax.random.key(0))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_fixed_positions_are_parameters_without_a_gradient(scan_layers: bool) -> None:
    """They are in the tree, as Linen starts them too, and in no group that an optimiser updates."""
    model = build(MAE, {"scan_layers": scan_layers}, num_hidden_layers=1, decoder_num_hidden_layers=1)
    fixed = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    gradients = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss_of(model, MAE)))(model.params), sep=".")
    assert {name for name, array in gradients.items() if not np.any(array)} == fixed
    grouped = {name for group in model.parameter_groups() for name in group.names}
    assert model.specs().keys() - grouped == fixed
    sizes = [model.specs()[name].size for name in fixed]
    assert model.num_parameters() - model.num_parameters(only_trainable=True) == sum(sizes)
    params = flax.traverse_util.flatten_dict(model.params, sep=".")

    @jax.jit
    def drawn(key: Any) -> dict[str, Any]:
        found = flax.traverse_util.flatten_dict(model.module.init(key, pixels())["params"], sep=".")
        return {name: found[name] for name in fixed}

    for name, array in drawn(jax.random.key(1)).items():
        np.testing.assert_array_equal(array, params[name])


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_patches_and_back(data_format: str) -> None:
    changes = {"image_size": (8, 24), "patch_size": (4, 2)}
    model = build(MAE, {"data_format": data_format}, **changes)
    for size, interpolate in (((8, 24), False), ((13, 20), True)):
        x = mae_call(model, size)["pixel_values"]
        patches = model.patchify(x, interpolate)
        whole = tuple(n // p * p for n, p in zip(size, (4, 2), strict=True))
        cut = x[:, :, : whole[0], : whole[1]] if data_format == "channels_first" else x[:, : whole[0], : whole[1]]
        np.testing.assert_array_equal(model.unpatchify(patches, whole), cut)
        corner = cut[0, :, :4, :2].transpose(1, 2, 0) if data_format == "channels_first" else cut[0, :4, :2]
        np.testing.assert_array_equal(patches[0, 0], corner.reshape(-1))
    assert model.patchify(x[:0], True).shape == (0, 30, 24)
    with pytest.raises(ValueError, match=r"must have shape \(batch, 24, 24\): got \(2, 30, 24\)"):
        model.unpatchify(patches)
    with pytest.raises(ValueError, match="doesn't match model"):
        model.patchify(x)


def assert_same_answer(actual: Any, expected: Any, size: tuple[int, int]) -> None:
    """Of two MAEs to pictures of a size: the same patches kept, and all that is computed within the bound."""
    options = {"interpolate_pos_encoding": True, "output_hidden_states": True, "output_attentions": True}
    found, wanted = (dict(model(**mae_call(model, size), **options).items()) for model in (actual, expected))
    for name in ("mask", "ids_restore"):
        np.testing.assert_array_equal(found.pop(name), wanted.pop(name))
    assert_same(found, wanted)


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_an_mae_of_channels_last_equals_one_of_channels_first(size: tuple[int, int]) -> None:
    first, last = (build(MAE, {"data_format": f"channels_{which}"}, norm_pix_loss=True) for which in ("first", "last"))
    assert_same_answer(last, first, size)


@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_a_scanned_mae_equals_the_unrolled_one(size: tuple[int, int]) -> None:
    unrolled, scanned = (build(MAE, {"scan_layers": scan}) for scan in (False, True))
    assert_same_answer(scanned, unrolled, size)


def test_a_scanned_mae_goes_in_and_out_of_files(tmp_path: Path) -> None:
    load, folder = vit_flax.FlaxAutoModelForPreTraining.from_pretrained, CHECKPOINTS / "mae_pretraining"
    unrolled, scanned = (load(folder / "pt_safetensors", scan_layers=scan) for scan in (False, True))
    assert scanned.params["decoder"]["decoder_layers"]["output"]["dense"]["kernel"].ndim == 3
    for name, model in (("unrolled", unrolled), ("scanned", scanned)):
        model.save_pretrained(tmp_path / name)
    for file in (tmp_path / "unrolled").iterdir():
        assert file.read_bytes() == (tmp_path / "scanned" / file.name).read_bytes()
    again = load(tmp_path / "scanned", scan_layers=True)
    assert_same(again.params, scanned.params, 0.0)


def test_vmap_gives_each_picture_its_own_noise() -> None:
    model, call = build(MAE, num_hidden_layers=1, decoder_num_hidden_layers=1), call_of(MAE, 3)

    def loss(params: Any, x: Any, **noise: Any) -> Any:
        return model.module.apply({"params": params}, x[None], **noise).loss

    def given(params: Any, x: Any, noise: Any) -> Any:
        return loss(params, x, noise=noise[None])

    def drawn(params: Any, x: Any, key: Any) -> Any:
        return loss(params, x, rngs={"noise": key})

    for function, last in ((given, call["noise"]), (drawn, jax.random.split(jax.random.key(0), 3))):
        gradient = jax.jit(jax.value_and_grad(function))
        each = jax.jit(jax.vmap(jax.value_and_grad(function), (None, 0, 0)))(model.params, call["pixel_values"], last)
        for i in range(3):
            alone = gradient(model.params, call["pixel_values"][i], last[i])
            assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], each), alone)


def test_an_mae_of_bfloat16_computes_its_loss_in_float32() -> None:
    model = build(MAE, {"dtype": jnp.bfloat16})
    output = model(**call_of(MAE), output_hidden_states=True)
    assert (output.logits.dtype, output.hidden_states[0].dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert (output.loss.dtype, output.mask.dtype) == (jnp.float32, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}
