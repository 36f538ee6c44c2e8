"""MAE: what it keeps, what it reconstructs, what it is trained on, and its files (He et al. 2022)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from conftest import CHECKPOINTS
from members import config_for

from vit_core.config import AutoConfig
from vit_core.family import ViTMAEConfig
from vit_core.files.safetensors import read_safetensors, write_safetensors
from vit_core.position import resize_position_embeddings, sincos

WHOLE, ENCODER = "ViTMAEForPreTraining", "ViTMAEModel"
TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24, "image_size": (16, 8),
    "patch_size": (4, 2), "initializer_range": 0.3, "decoder_hidden_size": 12, "decoder_num_attention_heads": 3,
}  # fmt: skip
PIXELS = np.random.default_rng(0).standard_normal((2, 3, 16, 8))
NOISE = np.random.default_rng(1).random((2, 16))
SAME = tolerances.SAME_FUNCTION_FLOAT64
STORED = CHECKPOINTS / "mae_pretraining" / "pt_safetensors"


def build(backend: Any, cls: str = WHOLE, **values: Any) -> Any:
    return backend.build(cls, config_for(cls, **{**TINY, **values}), dtype="float64", seed=0)


# ---- what is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.75, 0.9])
def test_the_patches_of_the_least_noise_are_kept(backend: Any, ratio: float) -> None:
    output = backend.call(build(backend, mask_ratio=ratio), pixel_values=PIXELS, noise=NOISE)
    kept = int(16 * (1 - ratio))
    ranks = NOISE.argsort(1).argsort(1)
    np.testing.assert_array_equal(output.ids_restore, ranks)
    np.testing.assert_array_equal(output.mask, (ranks >= kept).astype(np.float32))
    assert output.mask.dtype == np.float32


def test_equal_noise_keeps_the_order(backend: Any) -> None:
    output = backend.call(build(backend), pixel_values=PIXELS, noise=np.zeros((2, 16)))
    np.testing.assert_array_equal(output.ids_restore, np.tile(np.arange(16), (2, 1)))


def test_the_encoder_sees_nothing_of_what_is_removed(backend: Any) -> None:
    model = build(backend, ENCODER)
    other = PIXELS.copy()
    output = backend.call(model, pixel_values=PIXELS, noise=np.tile(np.arange(16.0), (2, 1)))
    other[:, :, 8:] = 7  # rows 2 and 3 of the grid, which are removed
    again = backend.call(model, pixel_values=other, noise=np.tile(np.arange(16.0), (2, 1)))
    np.testing.assert_array_equal(output.last_hidden_state, again.last_hidden_state)
    assert output.last_hidden_state.shape == (2, 9, 16)


def test_another_order_of_the_kept_is_another_order_of_tokens(backend: Any) -> None:
    model = build(backend, ENCODER)
    order = np.tile(np.arange(16.0), (2, 1))
    turned = order.copy()
    turned[:, :8] = order[:, :8][:, ::-1]
    first, second = (backend.call(model, pixel_values=PIXELS, noise=n).last_hidden_state for n in (order, turned))
    assert_close(second[:, 1:], first[:, :0:-1], SAME)


BAD_CALLS = (
    ({"noise": NOISE[:, 1:]}, "noise must have shape (2, 16), a number for each patch of each picture: got (2,"),
    ({"noise": NOISE[:1]}, "noise must have shape (2, 16), a number for each patch of each picture: got (1, 16)."),
    ({"noise": NOISE[0]}, "noise must have shape (2, 16), a number for each patch of each picture: got (16,)."),
    ({"head_mask": np.ones(3)}, "head_mask must have shape (4,), one per head, or (1, 4)"),
)


@pytest.mark.parametrize("cls", [ENCODER, WHOLE])
def test_bad_calls(backend: Any, cls: str) -> None:
    model = build(backend, cls)
    for call, words in BAD_CALLS:
        with pytest.raises(ValueError, match=re.escape(words)):
            backend.call(model, pixel_values=PIXELS, **call)


# ---- what is reconstructed, and its loss ---------------------------------------------------------------------------


def loss_of(target: np.ndarray, output: Any, normalised: bool) -> float:
    """Target (B, N, P Q C)."""
    if normalised:
        target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    return float((((output.logits - target) ** 2).mean(-1) * output.mask).sum() / output.mask.sum())


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_of_the_removed_patches(backend: Any, normalised: bool) -> None:
    output = backend.call(build(backend, norm_pix_loss=normalised), pixel_values=PIXELS, noise=NOISE)
    target = PIXELS.reshape(2, 3, 4, 4, 4, 2).transpose(0, 2, 4, 3, 5, 1).reshape(2, 16, -1)
    assert_close(float(output.loss), loss_of(target, output, normalised), SAME)


def test_the_loss_of_no_patches_is_zero(backend: Any) -> None:
    output, gradients = backend.step(build(backend, mask_ratio=0.0), pixel_values=PIXELS, noise=NOISE)
    assert float(output.loss) == 0
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_patches_and_back(backend: Any) -> None:
    model = build(backend)
    patches = model.patchify(backend.tensor(PIXELS))
    assert tuple(patches.shape) == (2, 16, 24)
    np.testing.assert_array_equal(backend._to_numpy(patches)[0, 5, :6], PIXELS[0, :, 4, 2:4].T.ravel())
    np.testing.assert_array_equal(backend._to_numpy(model.unpatchify(patches)), PIXELS)
    wide = np.random.default_rng(2).standard_normal((1, 3, 8, 20))
    patches = model.patchify(backend.tensor(wide), True)
    np.testing.assert_array_equal(backend._to_numpy(model.unpatchify(patches, (8, 20))), wide)
    with pytest.raises(ValueError, match=re.escape("Input image size (8*20) doesn't match model (16*8).")):
        model.patchify(backend.tensor(wide))
    with pytest.raises(ValueError, match=re.escape("of 16*8 pixels must have shape (batch, 16, 24): got (1, 20, 24).")):
        model.unpatchify(patches)


@pytest.mark.parametrize("size", [(16, 8), (8, 14), (20, 12)])
def test_pictures_of_another_size(backend: Any, size: tuple[int, int]) -> None:
    """Equal to the same model whose two tables the core has resized along both axes."""
    from vit_core.files.tensor import Tensor

    model = build(backend)
    config = model.config.copy(image_size=size, dtype="float64")
    arrays = backend.parameters(model)
    for name in ("embeddings.position_embeddings", "decoder.decoder_pos_embed"):
        arrays[name] = resize_position_embeddings(arrays[name], model.config.grid, config.grid)
    stored = {name: Tensor.of(array) for name, array in arrays.items()}
    resized = getattr(backend.package, backend.prefix + WHOLE).from_tensors(config, stored, 0)
    call = {"pixel_values": np.random.default_rng(3).standard_normal((2, 3, *size))}
    call["noise"] = np.random.default_rng(4).random((2, config.num_patches))
    output, expected = backend.call(model, interpolate_pos_encoding=True, **call), backend.call(resized, **call)
    for field in ("loss", "logits", "mask"):
        assert_close(np.asarray(output[field]), np.asarray(expected[field]), SAME, field)


# ---- how it starts, and what is trained ------------------------------------------------------------------------------


def test_positions_are_sines_of_columns_and_rows(backend: Any) -> None:
    """As a fresh model of the authors' code has them, which transformers 4.57.6 sets to zero in the decoder."""
    for seed in ({}, {"seed": 3}):
        arrays = backend.parameters(backend.build(WHOLE, config_for(WHOLE, **TINY), **seed))
        for name, width in (("embeddings.position_embeddings", 16), ("decoder.decoder_pos_embed", 12)):
            table, quarter = arrays[name][0], width // 4
            assert not table[0].any()
            for row, column, patch in ((0, 0, 0), (0, 3, 3), (2, 1, 9)):
                angles = [at / 10000 ** (np.arange(quarter) / quarter) for at in (column, row)]
                expected = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)])
                assert_close(table[1 + patch], expected.astype(np.float32), 1e-7, name)


def test_sines_are_those_that_are_published() -> None:
    stored, _ = read_safetensors(CHECKPOINTS / "mae_pretraining" / "pt_safetensors" / "model.safetensors")
    for name, width in (("vit.embeddings.position_embeddings", 32), ("decoder.decoder_pos_embed", 16)):
        np.testing.assert_array_equal(stored[name].read(), sincos((4, 4), width))


def test_what_is_never_trained(backend: Any) -> None:
    model = build(backend)
    fixed = {name for name, spec in model.specs().items() if spec.row.fixed}
    assert len(fixed) == 2
    grouped = {name for group in model.parameter_groups(layer_decay=0.5) for name in group.names}
    assert grouped == model.specs().keys() - fixed
    if backend.name == "torch":
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == fixed


def test_the_decoder_trains_at_the_full_rate(backend: Any) -> None:
    model = build(backend, num_hidden_layers=2)
    scales = {n: group.scale for group in model.parameter_groups(layer_decay=0.5) for n in group.names}
    specs = model.specs()
    assert {scale for name, scale in scales.items() if specs[name].row.head} == {1.0}
    assert {scale for name, scale in scales.items() if specs[name].name.startswith("encoder.layer.0.")} == {0.25}


# ---- the configuration and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio must be below 1, got 1.0."),
        ({"mask_ratio": -0.1}, "mask_ratio must be a number from 0 to 1, got -0.1."),
        ({"mask_ratio": 0.99}, "mask_ratio=0.99 keeps none of 16 patches: pass a smaller one, or larger pictures."),
        ({"hidden_size": 6, "num_attention_heads": 3}, "hidden_size must be a multiple of 4, for position embeddings"),
        ({"norm_pix_loss": 1.0}, "norm_pix_loss must be True or False, got 1.0."),
        ({"norm_pix_loss": True, "patch_size": 1, "num_channels": 1}, "is for patches of several numbers"),
        ({"decoder_num_hidden_layers": 0}, "decoder_num_hidden_layers must be a positive integer, got 0."),
    ],
)
def test_bad_configurations(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        ViTMAEConfig(**{**TINY, **values})


@pytest.mark.parametrize(
    ("width", "heads", "words"),
    [
        (6, 3, "decoder_hidden_size must be a multiple of 4, for position embeddings of sines: got 6."),
        (12, 5, "decoder_hidden_size must be a multiple of decoder_num_attention_heads: got decoder_hidden_size=12"),
    ],
)  # fmt: skip
def test_a_decoder_that_does_not_fit(backend: Any, width: int, heads: int, words: str) -> None:
    """Files of the encoder alone may say anything of a decoder."""
    config = config_for(WHOLE, **{**TINY, "decoder_hidden_size": width, "decoder_num_attention_heads": heads})
    backend.build(ENCODER, config)
    with pytest.raises(ValueError, match=re.escape(words)):
        backend.build(WHOLE, config)


def test_an_mae_opens_as_a_vit_that_is_fine_tuned(backend: Any) -> None:
    cls = getattr(backend.package, f"{backend.prefix}ViTForImageClassification")
    model, report = cls.from_pretrained(STORED, num_labels=3, output_loading_info=True)
    assert report.missing_keys == ["classifier.weight", "classifier.bias"]
    assert all(name.startswith("decoder.") for name in report.unexpected_keys)
    assert model.config.model_type == "vit"
    auto = getattr(backend.package, f"{backend.prefix}AutoModelForImageClassification")
    assert type(auto.from_pretrained(STORED, output_loading_info=True)[0]).__name__ == cls.__name__


def test_it_is_found_by_its_configuration(backend: Any) -> None:
    for task, cls in (("", ENCODER), ("ForPreTraining", WHOLE)):
        auto = getattr(backend.package, f"{backend.prefix}AutoModel{task}")
        assert type(auto.from_pretrained(STORED, output_loading_info=True)[0]).__name__ == backend.prefix + cls


def test_another_image_size_resizes_both_tables(backend: Any) -> None:
    _, report = getattr(backend.package, backend.prefix + WHOLE).from_pretrained(
        STORED, image_size=48, output_loading_info=True
    )
    assert [name for name, *_ in report.resized] == ["vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"]


@pytest.mark.parametrize("spelling", ["in memory", "as 5.23 saves it"])
def test_names_of_transformers_5(spelling: str, backend: Any, tmp_path: Path) -> None:
    modules = {
        "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    stored, _ = read_safetensors(STORED / "model.safetensors")
    renamed = {}
    for name, tensor in stored.items():
        if spelling == "in memory":
            new = re.sub(r"encoder\.layer\.", "layers.", name)
            found = next((old for old in modules if old in new), None)
            new = new.replace(found, modules[found]) if found else new
        else:
            new = name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer.")
        renamed[new] = tensor
    assert renamed.keys() != stored.keys()
    write_safetensors(tmp_path / "model.safetensors", renamed, {"format": "pt"})
    AutoConfig.from_pretrained(STORED).save_pretrained(tmp_path)
    model, report = getattr(backend.package, backend.prefix + WHOLE).from_pretrained(tmp_path, output_loading_info=True)
    assert not (report.missing_keys or report.unexpected_keys)
    expected = backend.parameters(backend.load(WHOLE, STORED))
    for name, array in backend.parameters(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


# ---- PyTorch ---------------------------------------------------------------------------------------------------------


def on_device(model: Any, pixels: Any, noise: Any) -> dict[str, Any]:
    return {"pixel_values": pixels.to(model.device), "noise": noise.to(model.device)}


def test_torch_draws_noise_in_every_mode() -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTMAEForPreTraining(config_for(WHOLE, **TINY), seed=0).double()
    pixels = torch.from_numpy(PIXELS).to(model.device)
    for training in (True, False):
        model.train(training)
        torch.manual_seed(0)
        first, second = (model(pixels).ids_restore for _ in range(2))
        assert not torch.equal(first, second)
        torch.manual_seed(0)
        assert torch.equal(model(pixels).ids_restore, first)


def test_torch_recomputes_the_decoder_and_takes_its_attention() -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTMAEForPreTraining(config_for(WHOLE, **TINY), seed=0).double().train()
    call = on_device(model, torch.from_numpy(PIXELS), torch.from_numpy(NOISE))
    found = []
    for recompute, attention in ((False, "eager"), (True, "eager"), (False, "sdpa")):
        model.gradient_checkpointing_enable() if recompute else model.gradient_checkpointing_disable()
        model.set_attn_implementation(attention)
        assert model.decoder.of_layers.attn_implementation == attention
        model.zero_grad()
        model(**call).loss.backward()
        found.append({n: p.grad.cpu().numpy().copy() for n, p in model.named_parameters() if p.grad is not None})
    assert len(found[0]) == len(list(model.parameters())) - 2
    for other in found[1:]:
        assert_close(other, found[0], SAME)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_torch_has_the_loss_in_float32(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    import vit_torch

    model = vit_torch.ViTMAEForPreTraining(config_for(WHOLE, **TINY, norm_pix_loss=True), seed=0).eval()
    call = on_device(model, torch.from_numpy(PIXELS).float(), torch.from_numpy(NOISE))
    expected = model(**call).loss.item()
    output = model.to(getattr(torch, dtype))(**call)
    assert output.loss.dtype == torch.float32
    assert abs(output.loss.item() - expected) < tolerances.rounding(model.config, dtype) * expected


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("dynamo", [False, True])
def test_torch_is_exported_to_onnx(dynamo: bool, tmp_path: Path) -> None:
    """With equal noise in its order: there is no stable sort that the exporters know, and ONNX's own is one."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    import vit_torch

    model = vit_torch.ViTMAEForPreTraining(config_for(WHOLE, **{**TINY, "image_size": (32, 16)}), seed=0).eval().cpu()
    noise = (torch.arange(64) % 3 == 0).float().repeat(2, 1)
    call = torch.from_numpy(np.tile(PIXELS, (1, 1, 2, 2))).float(), noise
    torch.onnx.export(model, call, tmp_path / "mae.onnx", dynamo=dynamo, input_names=["pixel_values", "noise"])
    session = runtime.InferenceSession(tmp_path / "mae.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(("pixel_values", "noise"), (x.numpy() for x in call), strict=True)))
    expected = [value.detach().numpy() for value in model(*call).to_tuple()]
    np.testing.assert_array_equal(found[3], expected[3])  # ids_restore
    assert_close(found[1], expected[1], tolerances.rounding(model.config))
