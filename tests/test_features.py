"""Features: of one layer or several, pooled or as maps, and nothing computed that is not asked for; backbones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from conftest import CHECKPOINTS
from members import BACKBONES, BARE, CLASSIFIERS, DISTINCT, PRETRAINED, config_for

TINY = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24, "image_size": 16,
    "patch_size": 4, "encoder_stride": 4, "num_labels": 3, "initializer_range": 0.3,
}  # fmt: skip
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
SAME = tolerances.SAME_FUNCTION_FLOAT64


def build(backend: Any, cls: str, **values: Any) -> Any:
    return backend.build(cls, config_for(cls, **{**TINY, **values}), dtype="float64", seed=0)


def features(backend: Any, model: Any, pixels: np.ndarray = PIXELS, **options: Any) -> Any:
    found = model.features(backend.tensor(pixels), **options)
    return backend._to_numpy(found)


# The others have the tokens of one of these.
@pytest.mark.parametrize(
    "cls", ["ViTModel", "DeiTModel", "BeitModel", "ViTMAEModel", "Dinov2WithRegistersModel", "IJepaModel"]
)
def test_they_are_those_of_the_output(backend: Any, cls: str) -> None:
    in_order = {"noise": np.tile(np.arange(16.0), (2, 1))} if cls in PRETRAINED else {}
    model = build(backend, cls, num_hidden_layers=2, **{"mask_ratio": 0.0} if in_order else {})
    output = backend.call(model, pixel_values=PIXELS, output_hidden_states=True, **in_order)
    prefix, has_cls = model.config.num_prefix_tokens, bool(model.config.tokens)
    last = output.last_hidden_state
    expected = {"mean": last[:, prefix:].mean(1), "patches": last[:, prefix:]} | (
        {"cls": last[:, 0]} if has_cls else {}
    )
    for pool, array in expected.items():
        assert_close(features(backend, model, pool=pool), array, SAME, pool)
    assert_close(features(backend, model), expected["cls" if has_cls else "mean"], SAME)
    maps = expected["patches"].transpose(0, 2, 1).reshape(2, 16, 4, 4)
    assert_close(features(backend, model, pool="patches", reshape=True), maps, SAME)
    raw = features(backend, model, layers=(0, 1, -1), pool="patches", normalize=False)
    assert isinstance(raw, tuple)
    for array, i in zip(raw, (0, 1, 2), strict=True):
        assert_close(array, output.hidden_states[i][:, prefix:], SAME)
    assert_close(features(backend, model, layers=1, pool="patches", normalize=False), raw[1], SAME)


@pytest.mark.parametrize("cls", [cls for cls in CLASSIFIERS if cls in DISTINCT])
def test_a_classifier_has_those_of_its_trunk(backend: Any, cls: str) -> None:
    model = build(backend, cls)
    bare = build(backend, next(name for name in BARE if type(model.config) is type(config_for(name))))
    assert_close(features(backend, model, layers=(1, 3)), features(backend, bare, layers=(1, 3)), SAME)


def test_pictures_of_another_size(backend: Any) -> None:
    wide = np.random.default_rng(1).standard_normal((1, 3, 16, 28))
    model = build(backend, "ViTModel")
    with pytest.raises(ValueError, match=re.escape("Input image size (16*28) doesn't match model (16*16).")):
        features(backend, model, wide)
    options = {"pool": "patches", "reshape": True}
    assert features(backend, model, wide, interpolate_pos_encoding=True, **options).shape == (1, 16, 4, 7)
    model = build(backend, "Dinov2Model")
    assert features(backend, model, wide, **options).shape == (1, 16, 4, 7)
    with pytest.raises(ValueError, match=re.escape("Input image size (16*28) doesn't match model (16*16).")):
        features(backend, model, wide, interpolate_pos_encoding=False)


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        ("ViTModel", {"pool": "max"}, "pool must be one of cls, mean, patches for a ViTConfig, got 'max'."),
        ("IJepaModel", {"pool": "cls"}, "pool must be one of mean, patches for a IJepaConfig, got 'cls'."),
        ("ViTModel", {"layers": 4}, "to 3, the last layer, or from -1, the last layer, to -4, or several: got 4."),
        ("ViTModel", {"layers": ()}, "or several: got ()."),
        ("ViTModel", {"layers": None}, "or several: got None."),
        ("ViTModel", {"layers": (0, True)}, "or several: got (0, True)."),
        ("ViTModel", {"reshape": True}, "reshape=True makes maps of pool='patches', got pool='cls'."),
    ],
)
def test_what_can_not_be_had(backend: Any, cls: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        features(backend, build(backend, cls), **options)


@pytest.mark.parametrize("cls", ["ViTModel", "Dinov2Model"])
def test_later_layers_are_not_computed(cls: str) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    model = getattr(vit_torch, cls)(config_for(cls, **TINY), seed=0).eval()
    seen: list[int] = []
    for i, layer in enumerate(model.encoder.layer):
        layer.register_forward_hook(lambda _, __, output, i=i: seen.append(i))
    pixels = torch.from_numpy(PIXELS).float().to(model.device)
    model.features(pixels, layers=(1, 2))
    assert seen == [0, 1]
    seen.clear()
    model.features(pixels, layers=0)
    assert seen == []


# ---- backbones ---------------------------------------------------------------------------------------------------


# That of DINOv2 is below.
@pytest.mark.parametrize("cls", ["ViTBackbone", "BeitBackbone", "Dinov2WithRegistersBackbone"])
def test_maps_of_the_stages(backend: Any, cls: str) -> None:
    model = build(backend, cls, out_indices=[1, -1])
    output = backend.call(model, pixel_values=PIXELS)
    assert (list(output), len(output.feature_maps)) == (["feature_maps"], 2)
    bare = build(backend, cls.replace("Backbone", "Model"))
    expected = features(backend, bare, layers=(1, 3), pool="patches", reshape=True)
    for found, wanted in zip(output.feature_maps, expected, strict=True):
        assert_close(found, wanted, SAME)
    assert (model.out_features, model.channels, model.stage_names) == (
        ["stage1", "stage3"], [16, 16], ["stem", "stage1", "stage2", "stage3"],
    )  # fmt: skip
    assert model.out_feature_channels == dict.fromkeys(model.stage_names, 16)
    whole = backend.call(model, pixel_values=PIXELS, output_hidden_states=True, output_attentions=True)
    assert (len(whole.hidden_states), len(whole.attentions)) == (4, 3)
    raw = backend.call(build(backend, cls, apply_layernorm=False, reshape_hidden_states=False), pixel_values=PIXELS)
    assert_close(raw.feature_maps[0], whole.hidden_states[-1], SAME)


def test_a_backbone_of_a_classifiers_file(backend: Any, tmp_path: Path) -> None:
    folder = CHECKPOINTS / "dinov2_cls" / "pt_safetensors"
    model = backend.load("Dinov2Backbone", folder, out_features=["stem", "stage2"])
    assert model.config.stages == (0, 2)
    model.save_pretrained(tmp_path)
    again = getattr(backend.package, f"{backend.prefix}AutoBackbone").from_pretrained(tmp_path)
    assert (type(again), again.out_features) == (type(model), ["stem", "stage2"])
    pixels = np.zeros((1, 3, 40, 56), np.float32)
    assert [x.shape for x in backend.call(again, pixel_values=pixels).feature_maps] == [(1, 32, 5, 7)] * 2


def test_stages_are_changed(backend: Any, tmp_path: Path) -> None:
    """After a call, by the model or its configuration, of whose two fields the last one holds."""
    model = build(backend, "Dinov2Backbone")
    backend.call(model, pixel_values=PIXELS)
    model.out_indices = [1, -1]
    assert len(backend.call(model, pixel_values=PIXELS).feature_maps) == 2
    assert model.out_features == model.config.out_features == ["stage1", "stage3"]
    model.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    config.out_features = ["stem"]
    assert (config.stages, config.out_indices, config.copy()) == ((0,), [0], config)
    model.out_features = None
    assert (model.out_features, model.config.out_indices) == (["stage3"], [3])
    assert type(config).from_pretrained(tmp_path, out_indices=[2]).stages == (2,)


@pytest.mark.parametrize("given", [{"out_features": ["stage3"]}, {"out_indices": [-1]}, {"out_indices": [0, 2]}])
def test_stages_that_are_read_again_are_equal(given: dict[str, Any]) -> None:
    for cls in BACKBONES:
        config = config_for(cls, **TINY, **given)
        assert type(config).from_dict(json.loads(config.to_json_string())) == config
        assert config != config.copy(out_indices=[1])
    fewer, config = config.copy(), config.copy(out_features=["stage2"])
    fewer.num_hidden_layers = config.num_hidden_layers = 1
    assert config != fewer  # which says nothing of stages that are not there
    assert config == config


@pytest.mark.parametrize(
    "given",
    [
        {"out_features": ["stage4"]}, {"out_features": ["stage2", "stage1"]}, {"out_indices": [1, 1]},
        {"out_indices": [9]}, {"out_features": ["stem"], "out_indices": [1]},
    ],
)  # fmt: skip
def test_stages_that_are_not_there(given: dict[str, Any]) -> None:
    words = "out_features and out_indices must be stages, stem and stage1 to stage3, in this order and each once"
    for cls in BACKBONES:
        with pytest.raises(ValueError, match=words):
            config_for(cls, **TINY, **given)


# ---- the mean of the patches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fc_norm", [False, True])
def test_a_classifier_on_the_mean(backend: Any, tmp_path: Path, fc_norm: bool) -> None:
    """As timm's global_pool="avg" computes it, and as it is saved; without the head the norm is the final one."""
    model = build(backend, "ViTForImageClassification", pool="mean", fc_norm=fc_norm)
    arrays = backend.parameters(model)
    assert ("fc_norm.weight" in arrays, "layernorm.weight" in arrays) == (fc_norm, not fc_norm)
    output = backend.call(model, pixel_values=PIXELS, output_hidden_states=True)
    mean = output.hidden_states[-1][:, 1:]
    if not fc_norm:
        mean = normalised(mean, arrays, "layernorm")
    mean = normalised(mean.mean(1), arrays, "fc_norm") if fc_norm else mean.mean(1)
    assert_close(output.logits, mean @ arrays["classifier.weight"].T + arrays["classifier.bias"], SAME)
    with pytest.warns(
        UserWarning, match=r"no place for a head on the mean of the patches: .* vit-convert it --to timm\.$"
    ):
        model.save_pretrained(tmp_path)
    again = backend.load("ViTForImageClassification", tmp_path, dtype="float64")
    assert_close(backend.call(again, pixel_values=PIXELS).logits, output.logits, SAME)
    bare = backend.load("ViTModel", tmp_path, dtype="float64")
    assert not bare.config.fc_norm
    norm = "fc_norm" if fc_norm else "layernorm"
    np.testing.assert_array_equal(backend.parameters(bare)["layernorm.weight"], arrays[f"{norm}.weight"])
    assert_close(
        features(backend, bare, pool="patches"), normalised(output.hidden_states[-1], arrays, norm)[:, 1:], SAME
    )


def normalised(x: np.ndarray, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def test_a_norm_of_the_mean_needs_the_mean() -> None:
    with pytest.raises(
        ValueError, match=re.escape('fc_norm=True is a norm of the mean of the patches: pass pool="mean"')
    ):
        config_for("ViTForImageClassification", fc_norm=True)


# ---- drop path ---------------------------------------------------------------------------------------------------


def test_the_rates_of_the_layers() -> None:
    """Linear in a ViT (Huang et al. 2016, equation 4), the same for every layer in DINOv2."""
    assert config_for("ViTModel", **TINY, drop_path_rate=0.3).drop_path_rates == (0.0, 0.15, 0.3)
    assert config_for("ViTModel", **{**TINY, "num_hidden_layers": 1}, drop_path_rate=0.3).drop_path_rates == (0.3,)
    assert config_for("Dinov2Model", **TINY, drop_path_rate=0.3).drop_path_rates == (0.3, 0.3, 0.3)
    for rate in (1.0, -0.1, "0.1"):
        with pytest.raises(ValueError, match="drop_path_rate must be"):
            config_for("ViTModel", drop_path_rate=rate)


def in_training(backend: Any, model: Any, pixels: np.ndarray, seed: int) -> np.ndarray:
    """The last hidden states of a model that is trained, with the random numbers of a seed."""
    if backend.name == "torch":
        backend.torch.manual_seed(seed)
        found = model.train()(backend.tensor(pixels)).last_hidden_state
    elif backend.name == "tf":
        import keras

        keras.utils.set_random_seed(seed)
        model = getattr(backend.package, f"{backend.prefix}{model.architecture}").from_config(model.config, seed=0)
        found = model(backend.tensor(pixels.astype(np.float32)), training=True).last_hidden_state
    else:
        found = model(pixels, train=True, dropout_rng=backend.jax.random.key(seed)).last_hidden_state
    return np.asarray(backend._to_numpy(found), np.float64)


@pytest.mark.parametrize("cls", ["ViTModel", "Dinov2Model", "BeitModel"])  # with layers and rates of their own
def test_a_picture_has_a_branch_or_not(backend: Any, cls: str) -> None:
    """Of one layer: its two branches are there, scaled by 1 / 0.5, or not, for every picture by itself."""
    values = {**TINY, "num_hidden_layers": 1, "drop_path_rate": 0.5}
    dtype = "float32" if backend.name == "tf" else "float64"
    model = backend.build(cls, config_for(cls, **values), dtype=dtype, seed=0)
    plain = backend.build(cls, config_for(cls, **{**values, "drop_path_rate": 0.0}), dtype=dtype, seed=0)
    picture = PIXELS[:1].astype(dtype)
    assert_close(*(backend.call(m, pixel_values=picture).last_hidden_state for m in (model, plain)), SAME)
    many = in_training(backend, model, np.repeat(picture, 64, axis=0), seed=0)
    kinds = np.unique(many.round(4).reshape(64, -1), axis=0)
    assert len(kinds) == 4, "attention and MLP are left out apart from each other"
    again, other = (in_training(backend, model, np.repeat(picture, 64, axis=0), seed) for seed in (0, 1))
    np.testing.assert_array_equal(many, again)
    assert (many != other).any()


def test_what_drop_path_expects(backend: Any) -> None:
    """The mean over many draws is the model without it: what stays makes up for what is left out."""
    values = {**TINY, "num_hidden_layers": 1, "drop_path_rate": 0.5, "layer_scale": 0.01}
    model = backend.build("ViTModel", config_for("ViTModel", **values), dtype="float32", seed=0)
    picture = PIXELS[:1].astype(np.float32)
    states = backend.call(model, pixel_values=picture, output_hidden_states=True).last_hidden_state
    drawn = in_training(backend, model, np.repeat(picture, 2048, axis=0), seed=0)
    spread = drawn.std(0).max() / 2048**0.5
    assert np.abs(drawn.mean(0) - states[0]).max() < 5 * spread
