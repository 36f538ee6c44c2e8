"""What every model of every backend computes: golden outputs, gradients, options, masks, losses, dtypes, errors."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from conftest import CHECKPOINTS, GOLDEN, checkpoint_path, golden_cases
from members import BACKBONES, DISTINCT, MASKED, PRETRAINED, config_for, field_of
from PIL import Image

from vit_core.calls import num_kept
from vit_core.config import ViTConfig, pair
from vit_core.family import ARCHITECTURES, PARTS
from vit_core.params import TORCH, parse_name, specs

OUTPUTS = np.load(GOLDEN / "outputs.npz")
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
    "encoder_stride": 4,
    "num_labels": 3,
    "initializer_range": 0.3,
}
ONE_LAYER = {**TINY, "num_hidden_layers": 1}
SAME = tolerances.SAME_FUNCTION_FLOAT64


def pixels(config: ViTConfig, size: tuple[int, int] | None = None, dtype: str = "float32") -> np.ndarray:
    """Two pictures (2, C, H, W)."""
    shape = (2, config.num_channels, *(size or pair(config.image_size)))
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def patch_mask(config: ViTConfig, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).random((batch, config.num_patches)) < 0.5


# ---- against what transformers recorded --------------------------------------------------------------------------


def load_case(backend: Any, case: dict[str, Any], **kwargs: Any) -> Any:
    overrides = dict(case.get("config_overrides", {}))
    if case["ckpt"] in ("base_nopool", "deit_mask_token"):
        kwargs |= {"add_pooling_layer": False, "use_mask_token": case["ckpt"] == "deit_mask_token"}
    cut = {"base_pooler_size_12": 12, "cls_regression_1": 1}.get(case["case"])
    other_shapes = cut is not None or case["case"] == "mim_stride_mismatch"
    model = backend.load(
        case["model"], checkpoint_path(case), ignore_mismatched_sizes=other_shapes, **overrides, **kwargs
    )
    if cut is None:
        return model
    whole = backend.load(case["model"], checkpoint_path(case)).to_tensors()
    kept = {
        n: type(t).of(t.read()[:cut] if n.startswith(("pooler", "classifier")) else t.read()) for n, t in whole.items()
    }
    return type(model).from_tensors(model.config, kept, seed=None)


def with_attention(case: Any) -> Any:
    """A golden case with the attention that computes it: the explicit one where its probabilities are asked for.

    `test_head_mask_silences_heads` and `test_float64_is_float64_throughout` compare the two.
    """
    kind = "eager" if case.values[0]["call"].get("output_attentions") else "sdpa"
    return pytest.param(*case.values, kind, id=f"{kind}-{case.id}")


@pytest.fixture(scope="module")
def loaded() -> dict[Any, Any]:
    """The models of the golden cases, several of which call the same one, and what some compute in float64."""
    return {}


@pytest.mark.parametrize(
    ("case", "attention"),
    [with_attention(case) for case in golden_cases("outputs") if "model" in case.values[0]],
)
def test_golden_output(
    backend: Any, case: dict[str, Any], attention: str, inputs: dict[str, np.ndarray], loaded: dict[Any, Any]
) -> None:
    special = case["case"] if "config_overrides" in case else ""
    key = (backend.name, case["model"], case["ckpt"], special, attention)
    if key not in loaded:
        loaded[key] = load_case(backend, case, attn_implementation=attention)
    model = loaded[key]
    call = {k: inputs[v] if isinstance(v, str) else v for k, v in case["call"].items()}
    output = backend.call(model, **call)
    bound = tolerances.both_rounded(model.config)
    for field, keys in case["outputs"].items():
        if keys is None:
            assert getattr(output, field) is None
            continue
        pairs = zip(getattr(output, field), keys, strict=True) if isinstance(keys, list) else [(output[field], keys)]
        for actual, key in pairs:
            if OUTPUTS[key].dtype.kind == "i":  # places, which are int32 or int64, as frameworks have them
                np.testing.assert_array_equal(actual, OUTPUTS[key], key)
            else:
                assert_close(actual, OUTPUTS[key], bound, key)


def test_golden_gradients(backend: Any, inputs: dict[str, np.ndarray]) -> None:
    case = next(c.values[0] for c in golden_cases("grad_norms"))
    model = backend.load("ViTForImageClassification", checkpoint_path(case))
    _, gradients = backend.step(model, pixel_values=inputs["x32"], labels=inputs["labels"])
    recorded = {name.removeprefix("vit."): norm for name, norm in case["grad_norms"].items()}
    assert gradients.keys() == recorded.keys()
    bound, least = tolerances.both_rounded(model.config, gradient=True), max(recorded.values()) / 100
    for name, norm in recorded.items():
        # A key's bias has no gradient but rounding: hence the largest norm as the measure there.
        assert_close(float(np.linalg.norm(gradients[name])), norm, bound, name, least=least)
    for key in OUTPUTS:
        if key.startswith("cls_grad/"):
            name = key.removeprefix("cls_grad/").removeprefix("vit.")
            assert_close(gradients[name], OUTPUTS[key], bound, name)


@pytest.mark.parametrize("case", golden_cases("gradients"))
def test_golden_gradients_of_other_members(backend: Any, case: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    model = load_case(backend, case)
    call = {name: inputs[key] for name, key in case["call"].items() if isinstance(key, str)}
    _, gradients = backend.step(model, **call)
    bound = tolerances.both_rounded(model.config, gradient=True)
    for name, key in case["gradients"].items():
        known = parse_name(name, model.family(), TORCH)
        assert known is not None
        assert_close(gradients[known.name], OUTPUTS[key], bound, name)


KEPT_ERRORS = ("base_wrong_size", "base_wrong_channels", "mim_stride_mismatch")


@pytest.mark.parametrize("case", [c for c in golden_cases("error") if c.id in KEPT_ERRORS])
def test_golden_error(backend: Any, case: dict[str, Any], inputs: dict[str, np.ndarray]) -> None:
    model = load_case(backend, case)
    with pytest.raises(ValueError, match=re.escape(case["error"]["message"])) as caught:
        backend.call(model, **{k: inputs[v] for k, v in case["call"].items()})
    assert str(caught.value) == case["error"]["message"]


def test_golden_errors_are_kept_or_mended() -> None:
    """The four other recorded errors are transformers' failures on what works here; each has a test below."""
    mended = {
        "mim_interp_40x64",  # test_reconstruction_of_any_shape
        "cls_nonsquare_interp",  # test_interpolation_of_any_grid
        "cls_nonsquare_interp_noop",  # test_interpolation_of_any_grid
        "base_bool_masked_pos_without_mask_token",  # test_bad_calls
    }
    assert {c.id for c in golden_cases("error")} == mended | set(KEPT_ERRORS)


# ---- shapes and interpolation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "image", "patch"), [*((cls, (17, 25), (4, 6)) for cls in DISTINCT), ("ViTModel", 16, 4)]
)
def test_output_shapes(backend: Any, cls: str, image: Any, patch: Any) -> None:
    config = config_for(cls, **{**TINY, "image_size": image, "patch_size": patch, "encoder_stride": patch})
    model = backend.build(cls, config, dtype="float64")
    x = pixels(config, dtype="float64")
    output = backend.call(model, pixel_values=x, output_hidden_states=True, output_attentions=True)
    patches = num_kept(config.num_patches, config) if cls in PRETRAINED else config.num_patches
    tokens = patches + config.num_prefix_tokens
    assert [h.shape for h in output.hidden_states] == [(2, tokens, 16)] * 3
    assert [a.shape for a in output.attentions] == [(2, 4, tokens, tokens)] * 2
    assert_close(output.attentions[0].sum(-1), np.ones((2, 4, tokens)), SAME)


@pytest.mark.parametrize("cls", ["ViTForImageClassification", "DeiTForImageClassification"])
@pytest.mark.parametrize(
    ("image", "patch", "target"), [(16, 4, (24, 12)), ((8, 24), 4, (8, 24)), ((8, 24), (4, 2), (18, 11))]
)
def test_interpolation_of_any_grid(backend: Any, cls: str, image: Any, patch: Any, target: tuple[int, int]) -> None:
    """Equal to the same model whose position embeddings the core has resized."""
    from vit_core.files.tensor import Tensor
    from vit_core.position import resize_position_embeddings

    config = config_for(cls, **{**ONE_LAYER, "image_size": image, "patch_size": patch})
    model = backend.build(cls, config, dtype="float64")
    x = pixels(config, target, "float64")
    resized_config = config.copy(image_size=target, dtype="float64")
    parameters = backend.parameters(model)
    name = "embeddings.position_embeddings"
    parameters[name] = np.random.default_rng(1).standard_normal(parameters[name].shape)  # DeiT's are zeros at first
    model = type(model).from_tensors(
        config.copy(dtype="float64"), {n: Tensor.of(a) for n, a in parameters.items()}, seed=None
    )
    first = config.num_prefix_tokens
    parameters[name] = resize_position_embeddings(parameters[name], config.grid, resized_config.grid, first=first)
    resized = type(model).from_tensors(resized_config, {n: Tensor.of(a) for n, a in parameters.items()}, seed=None)
    expected = backend.call(resized, pixel_values=x).logits
    actual = backend.call(model, pixel_values=x, interpolate_pos_encoding=True).logits
    assert_close(actual, expected, SAME)


@pytest.mark.parametrize(
    ("image", "patch", "target"), [(16, 4, (24, 12)), ((8, 24), 4, (8, 24)), ((8, 24), (4, 2), (18, 11))]
)
def test_relative_positions_of_any_grid(backend: Any, image: Any, patch: Any, target: tuple[int, int]) -> None:
    """Equal to the same model whose tables the core has resized, along their own axes."""
    from vit_core.files.tensor import Tensor
    from vit_core.position import resize_position_bias

    config = config_for("BeitModel", **{**ONE_LAYER, "image_size": image, "patch_size": patch}, dtype="float64")
    resized_config, rng = config.copy(image_size=target), np.random.default_rng(1)
    made = getattr(backend.package, f"{backend.prefix}BeitModel")
    arrays = {name: rng.standard_normal(spec.shape) for name, spec in specs(config, PARTS["BeitModel"]).items()}
    resized = {
        name: resize_position_bias(a, config.grid, resized_config.grid) if name.endswith("bias_table") else a
        for name, a in arrays.items()
    }
    x = pixels(config, target, "float64")
    actual, expected = (
        backend.call(made.from_tensors(c, {n: Tensor.of(a) for n, a in held.items()}, seed=None), pixel_values=x)
        for c, held in ((config, arrays), (resized_config, resized))
    )
    assert_close(actual.last_hidden_state, expected.last_hidden_state, SAME)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_table_is_read_once_a_call(backend: Any, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """For all layers; one of their own, once for each."""
    flags = {"use_shared_relative_position_bias": shared, "use_relative_position_bias": not shared}
    model = backend.build("BeitModel", config_for("BeitModel", **TINY, **flags), seed=0)
    made = import_module(f"{backend.package.__name__}.beit").BeitRelativePositionBias
    name = {"torch": "forward", "tf": "call", "flax": "__call__"}[backend.name]
    read, calls = getattr(made, name), []

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(made, name, counted)
    backend.call(model, pixel_values=pixels(model.config))
    assert len(calls) == (1 if shared else 2)


@pytest.mark.parametrize(
    ("image", "patch", "target"), [(16, 4, (20, 32)), ((8, 24), (4, 2), (8, 24)), (17, 4, (17, 17))]
)
def test_reconstruction_of_any_shape(backend: Any, image: Any, patch: Any, target: tuple[int, int]) -> None:
    config = ViTConfig(**{**ONE_LAYER, "image_size": image, "patch_size": patch, "encoder_stride": patch})
    model = backend.build("ViTForMaskedImageModeling", config, dtype="float64", seed=0)
    x = pixels(config, target, "float64")
    rows, columns = config.copy(image_size=target).grid
    mask = np.random.default_rng(0).random((2, rows * columns)) < 0.5
    output = backend.call(model, pixel_values=x, bool_masked_pos=mask, interpolate_pos_encoding=True)
    ph, pw = (patch, patch) if isinstance(patch, int) else patch
    assert output.reconstruction.shape == (2, 3, rows * ph, columns * pw)
    kept = np.kron(mask.reshape(2, rows, columns), np.ones((ph, pw)))[:, None]
    error = np.abs(x[:, :, : rows * ph, : columns * pw] - output.reconstruction) * kept
    assert_close(float(output.loss), error.sum() / (kept.sum() + 1e-5) / 3, SAME)


def test_nothing_masked_is_no_loss(backend: Any) -> None:
    """The epsilon of the divisor makes it 0, not NaN."""
    config = ViTConfig(**TINY)
    model = backend.build("ViTForMaskedImageModeling", config, seed=0)
    mask = np.zeros((2, config.num_patches), bool)
    assert backend.call(model, pixel_values=pixels(config), bool_masked_pos=mask).loss == 0


def test_pixel_shuffle_puts_channels_first(backend: Any) -> None:
    """Channel c, row i, column j of a patch come from decoder channel c * r * r + i * r + j."""
    config = ViTConfig(**{**TINY, "image_size": 8})
    model = backend.build("ViTForMaskedImageModeling", config, seed=0)
    arrays = backend.parameters(model)
    arrays["decoder.0.weight"] = np.zeros_like(arrays["decoder.0.weight"])
    arrays["decoder.0.bias"] = np.arange(48, dtype=np.float32)
    from vit_core.files.tensor import Tensor

    model = type(model).from_tensors(config, {n: Tensor.of(a) for n, a in arrays.items()}, seed=None)
    reconstruction = backend.call(model, pixel_values=pixels(config)).reconstruction
    expected = np.arange(48).reshape(3, 4, 4)
    np.testing.assert_array_equal(reconstruction[1], np.tile(expected, (1, 2, 2)))


# ---- options and masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*DISTINCT, "BeitModel", "ViTMAEModel"])  # with outputs of their own
def test_tuple_is_the_output_without_none(backend: Any, cls: str) -> None:
    """All of it of every output; what it is without states and attentions is the same code for all of them."""
    config = config_for(cls, **ONE_LAYER)
    model = backend.build(cls, config)
    extra = {"bool_masked_pos": patch_mask(config)} if cls in MASKED else {}
    fewer = (
        ((False, False), (True, False)) if cls in ("ViTModel", "Dinov2Backbone", "ViTForMaskedImageModeling") else ()
    )
    for states, attentions in (*fewer, (True, True)):
        call = {
            "pixel_values": pixels(config),
            "output_hidden_states": states,
            "output_attentions": attentions,
            **extra,
        }
        output = backend.call(model, **call)
        as_tuple = backend.call(model, return_dict=False, **call)
        assert (output.hidden_states is not None, output.attentions is not None) == (states, attentions)
        assert len(as_tuple) == len(output.to_tuple())
        for a, b in zip(as_tuple, output.to_tuple(), strict=True):
            np.testing.assert_array_equal(np.array(a), np.array(b))


def test_configuration_gives_the_options(backend: Any) -> None:
    config = ViTConfig(**TINY, output_attentions=True, output_hidden_states=True, return_dict=False)
    output = backend.call(backend.build("ViTForImageClassification", config), pixel_values=pixels(config))
    assert isinstance(output, tuple)
    assert [len(item) for item in output[1:]] == [3, 2]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_head_mask_silences_heads(backend: Any, attention: str) -> None:
    """A masked head is as good as one whose value projection is zero; 0.5 halves it."""
    config = ViTConfig(**TINY, attn_implementation=attention, qkv_bias=False, dtype="float64")
    model = backend.build("ViTModel", config, dtype="float64", seed=0)
    mask = np.array([[1, 0, 1, 0.5], [0, 1, 1, 1]])
    arrays = backend.parameters(model)
    for layer, factors in enumerate(mask):
        name = f"encoder.layer.{layer}.attention.attention.value.weight"
        arrays[name] = arrays[name] * np.repeat(factors, 4)[:, None]
    from vit_core.files.tensor import Tensor

    silenced = type(model).from_tensors(config, {n: Tensor.of(a) for n, a in arrays.items()}, seed=None)
    x = pixels(config, dtype="float64")
    expected = backend.call(silenced, pixel_values=x).last_hidden_state
    assert_close(backend.call(model, pixel_values=x, head_mask=mask).last_hidden_state, expected, SAME)
    one_for_all = backend.call(model, pixel_values=x, head_mask=mask[0]).last_hidden_state
    repeated = backend.call(model, pixel_values=x, head_mask=np.stack([mask[0]] * 2)).last_hidden_state
    np.testing.assert_array_equal(one_for_all, repeated)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_mask_hides_tokens(backend: Any, attention: str) -> None:
    """A hidden patch has no influence on what the others become, and gets no attention."""
    config = ViTConfig(**TINY, attn_implementation=attention)
    model = backend.build("ViTModel", config, dtype="float64", seed=0)
    x = pixels(config, dtype="float64")
    changed = x.copy()
    changed[:, :, :4, :4] += 1.0  # the first patch, token 1
    mask = np.ones((2, config.num_patches + 1), np.int64)
    mask[:, 1] = 0
    a, b = (backend.call(model, pixel_values=p, attention_mask=mask, output_attentions=True) for p in (x, changed))
    others = [0, *range(2, config.num_patches + 1)]
    np.testing.assert_array_equal(a.last_hidden_state[:, others], b.last_hidden_state[:, others])
    assert all((attention[..., 1] == 0).all() for attention in a.attentions)
    plain = backend.call(model, pixel_values=x, attention_mask=mask.astype(bool)).last_hidden_state
    additive = np.where(mask[:, None, None] == 0, -1e9, 0.0).repeat(mask.shape[1], 2)
    assert_close(plain, a.last_hidden_state, SAME)
    added = backend.call(model, pixel_values=x, attention_mask=additive).last_hidden_state
    assert_close(added, a.last_hidden_state, SAME)
    all_on = backend.call(model, pixel_values=x, attention_mask=np.ones_like(mask)).last_hidden_state
    assert_close(all_on, backend.call(model, pixel_values=x).last_hidden_state, SAME)


def test_attentions_come_with_every_implementation(backend: Any) -> None:
    config = ViTConfig(**TINY, attn_implementation="sdpa", output_attentions=True)
    eager = config.copy(attn_implementation="eager")
    a, b = (
        backend.call(backend.build("ViTModel", c, seed=0), pixel_values=pixels(config)).attentions
        for c in (config, eager)
    )
    np.testing.assert_array_equal(np.array(a), np.array(b))


def test_masked_patches_do_not_matter(backend: Any) -> None:
    config = ViTConfig(**TINY)
    model = backend.build("ViTModel", config, use_mask_token=True, seed=0)
    mask = np.zeros((2, config.num_patches), bool)
    mask[:, 0] = True
    x = pixels(config)
    changed = x.copy()
    changed[:, :, :4, :4] = 7.0
    a, b = (backend.call(model, pixel_values=p, bool_masked_pos=mask).last_hidden_state for p in (x, changed))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, backend.call(model, pixel_values=x).last_hidden_state)


# ---- the first tokens alone ---------------------------------------------------------------------------------------


def test_a_classifier_is_the_same_with_its_states(backend: Any) -> None:
    """Without them its last layer computes the CLS token alone: loss, logits and gradients are those of all tokens."""
    config, rng = ViTConfig(**TINY), np.random.default_rng(3)
    call = {
        "pixel_values": pixels(config, dtype="float64"),
        "labels": np.array([0, 2]),
        "head_mask": rng.random((2, 4)),
        "attention_mask": rng.standard_normal((2, 1, 17, 17)),
    }
    models = (backend.build("ViTForImageClassification", config, dtype="float64", seed=0) for _ in range(3))
    (plain, found), *others = (
        backend.step(model, **call, **asked)
        for model, asked in zip(models, ({}, {"output_hidden_states": True}, {"output_attentions": True}), strict=True)
    )
    for output, expected in others:
        for field in ("loss", "logits"):
            assert_close(plain[field], output[field], SAME)
        flat, flat_expected = (np.concatenate([g[n].ravel() for n in sorted(g)]) for g in (found, expected))
        assert np.abs(flat_expected).max() > 1e-2
        assert_close(flat, flat_expected, SAME)


@pytest.mark.parametrize("tokens", [1, 3, 99])
@pytest.mark.parametrize("cls", ["ViTModel", "BeitModel"])
def test_the_first_tokens_are_those_of_all(backend: Any, cls: str, tokens: int) -> None:
    """Also where the pooler reads the others."""
    config = config_for(cls, **TINY)
    model = backend.build(cls, config, dtype="float64", seed=0)
    x = pixels(config, dtype="float64")
    whole = backend.call(model, pixel_values=x, output_hidden_states=True)
    for states in (False, True):
        first = backend.call(model, pixel_values=x, output_hidden_states=states, tokens=tokens)
        expected = whole.last_hidden_state[:, :tokens]
        assert_close(first.last_hidden_state, expected, SAME)
        assert_close(first.pooler_output, whole.pooler_output, SAME)
    np.testing.assert_array_equal(np.array(first.hidden_states), np.array(whole.hidden_states))


# ---- parts and positions -----------------------------------------------------------------------------------------


def test_parts_are_called_as_transformers_are(backend: Any) -> None:
    """Embeddings, layers, attentions, encoder and pooler by themselves, with nothing but what goes through them."""
    config = ViTConfig(**TINY)
    model = backend.build("ViTModel", config, dtype="float64", seed=0)
    trunk, layers = backend.trunk(model)
    mask = np.array([1.0, 0.0, 0.5, 1.0])
    px = pixels(config, dtype="float64")
    for head_mask in (None, mask):
        call = {"pixel_values": px} if head_mask is None else {"pixel_values": px, "head_mask": head_mask}
        expected = backend.call(model, **call, output_hidden_states=True)
        args = () if head_mask is None else (backend.tensor(head_mask),)
        first = x = trunk.embeddings(backend.tensor(px))
        for layer, state in zip(layers, expected.hidden_states[1:], strict=True):
            assert layer.attention(x, *args).shape == state.shape
            x = layer(x, *args)
            assert_close(numbers(x), state, SAME)
        encoded = trunk.encoder(first, *args)
        assert list(encoded) == ["last_hidden_state"]
        assert_close(numbers(encoded[0]), expected.hidden_states[-1], SAME)
        normed = trunk.layernorm(encoded.last_hidden_state)
        assert_close(numbers(normed), expected.last_hidden_state, SAME)
        assert_close(numbers(trunk.pooler(normed)), expected.pooler_output, SAME)


@pytest.mark.parametrize("cls", ["Dinov2Model", "Dinov2WithRegistersModel", "BeitModel"])
def test_embeddings_resize_positions_as_their_model_does(cls: str, backend: Any) -> None:
    """Without being asked, where it does so: by themselves as in it."""
    model = backend.build(cls, config_for(cls, **TINY), dtype="float64", seed=0)
    px = pixels(ViTConfig(**{**TINY, "image_size": 24}), dtype="float64")
    expected = backend.call(model, pixel_values=px, output_hidden_states=True).hidden_states[0]
    assert_close(numbers(backend.trunk(model)[0].embeddings(backend.tensor(px))), expected, SAME)


def numbers(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)


def test_arguments_by_position(backend: Any) -> None:
    """In the order of transformers' PyTorch ViT; a Flax wrapper takes parameters second, as transformers' does."""
    config = ViTConfig(**TINY)
    model = backend.build("ViTModel", config, dtype="float64", seed=0, use_mask_token=True)
    call = {
        "pixel_values": pixels(config, dtype="float64"),
        "bool_masked_pos": patch_mask(config),
        "head_mask": np.array([1.0, 0.0, 0.5, 1.0]),
    }
    expected = backend.call(model, **call).last_hidden_state
    args = tuple(backend.tensor(array) for array in call.values())
    if backend.name == "flax":
        assert_close(numbers(model(args[0], model.params)[0]), numbers(model(args[0])[0]), SAME)
        found = model.module.apply({"params": model.params}, *args)
    else:
        found = model(*args)
    assert_close(numbers(found.last_hidden_state), expected, SAME)


@pytest.mark.parametrize("cls", DISTINCT)
def test_an_empty_batch(backend: Any, cls: str) -> None:
    config = config_for(cls, **ONE_LAYER)
    model = backend.build(cls, config)
    whole = backend.call(model, pixel_values=pixels(config))
    if backend.name == "tf":
        model.run_eagerly = False  # TensorFlow's own convolution gives an empty batch another shape eagerly
    empty = backend.call(model, pixel_values=pixels(config)[:0])
    empty, whole = (output.feature_maps or output for output in (empty, whole)) if cls in BACKBONES else (empty, whole)
    field = 0 if cls in BACKBONES else field_of(cls)
    assert empty[field].shape == (0, *whole[field].shape[1:])


# ---- losses ------------------------------------------------------------------------------------------------------


def reference_loss(logits: np.ndarray, labels: np.ndarray, problem: str) -> float:
    if problem == "single_label_classification":
        kept = labels.reshape(-1) != -100
        rows = logits[kept] - np.log(np.exp(logits[kept]).sum(1, keepdims=True))
        return float(-rows[np.arange(kept.sum()), labels.reshape(-1)[kept]].mean())
    if problem == "multi_label_classification":
        return float((np.logaddexp(0, logits) - labels * logits).mean())
    return float(((logits - labels.reshape(logits.shape)) ** 2).mean())


@pytest.mark.parametrize(
    ("num_labels", "problem", "labels", "meant"),
    [
        (3, None, np.array([0, 2]), "single_label_classification"),
        (3, None, np.array([-100, 2]), "single_label_classification"),
        (3, "single_label_classification", np.array([[1], [0]], np.int32), "single_label_classification"),
        (3, None, np.array([[1, 0, 1], [0, 0, 0.5]], np.float32), "multi_label_classification"),
        (3, "multi_label_classification", np.array([[1, 0, 1], [0, 0, 1]]), "multi_label_classification"),
        (3, "regression", np.array([[1, 0, -1], [0, 0.5, 2]], np.float32), "regression"),
        (1, None, np.array([0.5, -1], np.float32), "regression"),
        (1, None, np.array([[0.5], [-1]], np.float32), "regression"),
        (1, None, np.array([3, 4]), "regression"),
    ],
)
def test_losses(backend: Any, num_labels: int, problem: str | None, labels: np.ndarray, meant: str) -> None:
    config = ViTConfig(**{**ONE_LAYER, "num_labels": num_labels}, problem_type=problem)
    model = backend.build("ViTForImageClassification", config, dtype="float64", seed=0)
    output = backend.call(model, pixel_values=pixels(config, dtype="float64"), labels=labels)
    assert np.shape(output.loss) == ()
    assert_close(float(output.loss), reference_loss(output.logits, labels, meant), SAME)
    assert config.problem_type == problem


def test_the_loss_of_visual_tokens(backend: Any) -> None:
    """Cross entropy of the masked patches alone, in the order of the pictures."""
    cls, rng = "BeitForMaskedImageModeling", np.random.default_rng(0)
    config = config_for(cls, **TINY, vocab_size=7)
    mask = rng.random((2, config.num_patches)) < 0.4
    labels = rng.integers(0, 7, mask.sum())
    model = backend.build(cls, config, dtype="float64", seed=0)
    output = backend.call(model, pixel_values=pixels(config, dtype="float64"), bool_masked_pos=mask, labels=labels)
    assert output.logits.shape == (2, config.num_patches, 7)
    expected = reference_loss(output.logits[mask], labels, "single_label_classification")
    assert_close(float(output.loss), expected, SAME)


# ---- dtypes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("stored", "cls", "attention"),
    [
        ("cls", "ViTForImageClassification", "eager"),
        ("cls", "ViTForImageClassification", "sdpa"),
        ("beit_cls", "BeitForImageClassification", "sdpa"),
        ("mae_pretraining", "ViTMAEForPreTraining", "sdpa"),
    ],
)
def test_dtypes(
    backend: Any,
    stored: str,
    cls: str,
    dtype: str,
    attention: str,
    inputs: dict[str, np.ndarray],
    loaded: dict[Any, Any],
) -> None:
    path = CHECKPOINTS / stored / "pt_safetensors"
    labels = {"labels": inputs["labels"]} if "ImageClassification" in cls else {}

    def run(dtype: str) -> np.ndarray:
        model = backend.load(cls, path, dtype=dtype, attn_implementation=attention)
        assert model.config.dtype == dtype
        output = backend.call(model, pixel_values=inputs["x32"], **labels)
        assert np.isfinite(output.loss)
        return np.float64(output.logits)

    config = ARCHITECTURES[cls].config.from_pretrained(path)
    try:
        found = run(dtype)
    except Exception as error:
        if dtype == "float16" and "Failed to materialize symbols" in str(error):
            pytest.skip("XLA has no float16 on processors without F16C")
        raise
    key = (backend.name, stored, attention)
    if key not in loaded:
        loaded[key] = run("float64")
    assert_close(found, loaded[key], tolerances.rounding(config, dtype))


def test_float64_is_float64_throughout(backend: Any) -> None:
    """Eager and fused attention, and an interpolation that changes nothing, agree far beyond float32.

    The kernel is one that would change positions at the model's own size.
    """
    config = ViTConfig(**TINY, position_kernel="hf-4.44")
    states = []
    for attention, interpolate in (("eager", False), ("sdpa", True)):
        model = backend.build("ViTModel", config.copy(attn_implementation=attention), dtype="float64", seed=0)
        x = pixels(config, dtype="float64")
        states.append(backend.call(model, pixel_values=x, interpolate_pos_encoding=interpolate).last_hidden_state)
    assert states[0].dtype == np.float64
    assert_close(*states, SAME)


# ---- bad calls ---------------------------------------------------------------------------------------------------

BAD_CALLS = {
    "no pixels": ("ViTModel", {"pixel_values": None}, "You have to specify pixel_values"),
    "no pixels of an MAE": ("ViTMAEModel", {"pixel_values": None}, "You have to specify pixel_values"),
    "rank": ("ViTModel", {"pixel_values": np.zeros((3, 16, 16), np.float32)}, "4 dimensions"),
    "too small": (
        "ViTModel",
        {"pixel_values": np.zeros((1, 3, 3, 16), np.float32), "interpolate_pos_encoding": True},
        "smaller than one patch (4*4)",
    ),
    "no mask token": ("ViTModel", {"bool_masked_pos": np.ones((2, 16), bool)}, "use_mask_token=True"),
    "mask shape": (
        "ViTForMaskedImageModeling",
        {"bool_masked_pos": np.ones((2, 17), bool)},
        "bool_masked_pos must have shape (batch, 16), one per patch: got (2, 17)",
    ),
    "head mask": (
        "ViTModel",
        {"head_mask": np.ones(3, np.float32)},
        "head_mask must have shape (4,), one per head, or (2, 4), one per layer and head: got (3,)",
    ),
    "no tokens": (
        "ViTModel",
        {"tokens": 0},
        "tokens must be at least 1, the CLS token, or None for all of them: got 0",
    ),
    "attention mask": (
        "ViTModel",
        {"attention_mask": np.ones((2, 16), np.int64)},
        "attention_mask must have shape (batch, 17)",
    ),
    "label range": (
        "ViTForImageClassification",
        {"labels": np.array([0, 3])},
        "labels must be from 0 to 2 (num_labels=3), or -100 to be ignored: got values from 0 to 3",
    ),
    "negative label": ("ViTForImageClassification", {"labels": np.array([-1, 0])}, "got values from -1 to 0"),
    "label shape": ("ViTForImageClassification", {"labels": np.zeros((2, 3), np.int64)}, "integers of shape (2, 3)"),
    "label count": ("ViTForImageClassification", {"labels": np.zeros(5, np.int64)}, "got integers of shape (5,)"),
    "tokens without a mask": (
        "BeitForMaskedImageModeling",
        {"labels": np.zeros(3, np.int64)},
        "labels are the visual tokens of masked patches: pass bool_masked_pos with them.",
    ),
    "tokens of other patches": (
        "BeitForMaskedImageModeling",
        {"labels": np.zeros(3, np.int64), "bool_masked_pos": np.eye(2, 16) > 0},
        "of shape (2,), the visual tokens of the masked patches of all pictures in order: got integers of shape (3,).",
    ),
    "token range": (
        "BeitForMaskedImageModeling",
        {"labels": np.array([0, 8192]), "bool_masked_pos": np.eye(2, 16) > 0},
        "labels must be from 0 to 8191 (vocab_size=8192), or -100 to be ignored: got values from 0 to 8192",
    ),
    "label kind": ("ViTForImageClassification", {"labels": np.zeros(2, np.float32)}, "got floats of shape (2,)"),
}


OUT_OF_RANGE = ("label range", "negative label", "token range")
ASSERTED = pytest.mark.processor("ends PyTorch's work on the card by an assertion", backend="torch")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=ASSERTED) if name in OUT_OF_RANGE else name for name in BAD_CALLS],
)
def test_bad_calls(backend: Any, name: str) -> None:
    cls, call, words = BAD_CALLS[name]
    config = config_for(cls, **(ONE_LAYER if name != "head mask" else TINY))
    with pytest.raises(ValueError, match=re.escape(words)):
        backend.call(backend.build(cls, config), **{"pixel_values": pixels(config), **call})


@pytest.mark.parametrize("kind", ["uint8", "picture"])
def test_pictures_are_no_pixels(backend: Any, kind: str) -> None:
    """What no image processor has seen would be classified, by numbers from 0 to 255."""
    config = ViTConfig(**TINY)
    model = backend.build("ViTForImageClassification", config)
    picture = np.zeros((1, 3, 16, 16), np.uint8)
    given = backend.tensor(picture) if kind == "uint8" else Image.fromarray(picture[0].transpose(1, 2, 0))
    words = "pixel_values must be the floating-point tensor that an image processor makes of pictures, processor("
    with pytest.raises(TypeError, match=re.escape(words)):
        model(given)


def test_pixels_from_0_to_255_are_warned_of_once(backend: Any) -> None:
    raw = 255 * np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    words = r"^pixel_values are from 0\.\d+ to 25\d\.\d+, which no normalisation gives: prepare pictures with the model"
    models = [backend.build("ViTForImageClassification", ViTConfig(**ONE_LAYER)) for _ in range(2)]
    backend.traced(models[0], raw)
    for call in (models[0], models[1].features):
        with pytest.warns(UserWarning, match=words):
            call(backend.tensor(raw))
        call(backend.tensor(raw))


def test_labels_without_classes(backend: Any) -> None:
    config = ViTConfig(**{**TINY, "num_labels": 0})
    model = backend.build("ViTForImageClassification", config)
    with pytest.raises(ValueError, match="num_labels=0"):
        backend.call(model, pixel_values=pixels(config), labels=np.zeros(2, np.int64))


def test_unknown_attention(backend: Any) -> None:
    with pytest.raises(ValueError, match=r"attn_implementation must be one of .*got 'fast'"):
        backend.build("ViTModel", ViTConfig(**TINY, attn_implementation="fast"))
