"""Other members of the family against transformers 4.57.6 and 5: outputs, gradients, and files in both directions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import five
import jax
import numpy as np
import oracle_tolerances as tolerances
import pytest
import torch
import transformers
from oracle import assert_close, assert_same_output, pixels

import vit_flax
import vit_tf
import vit_torch
from vit_core.config import AutoConfig

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 24,
    "patch_size": 4, "encoder_stride": 4, "num_labels": 3, "qkv_bias": True,
}  # fmt: skip
DEIT = (
    "DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTForMaskedImageModeling",
)  # fmt: skip
BEIT = ("BeitModel", "BeitForImageClassification", "BeitForMaskedImageModeling", "BeitBackbone")
MAE = ("ViTMAEModel", "ViTMAEForPreTraining")
MODELS = (
    *DEIT, *BEIT, *MAE, "Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone", "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersBackbone", "IJepaModel",
    "IJepaForImageClassification", "ViTMSNModel", "ViTMSNForImageClassification",
)  # fmt: skip
GATED = ("Dinov2ForImageClassification", "Dinov2WithRegistersModel")  # of which the MLP is tried with a gate
FLAX = (*BEIT[:3], "Dinov2Model", "Dinov2ForImageClassification")  # that transformers had in Flax
SHIFTED = "DeiTForMaskedImageModeling"  # 4.57.6 takes rows 1:-1 of the sequence, 5 and this package rows 2:

FIVE = """
import json, sys, numpy as np, torch, transformers
model, report = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
with torch.no_grad():
    output = model.eval()(**{name: torch.from_numpy(array) for name, array in np.load(sys.argv[3]).items()})
if "feature_maps" in output:
    output = {f"map {i}": each for i, each in enumerate(output["feature_maps"])}
print(json.dumps({name: np.asarray(output[name]).tolist() for name in output}))
"""


NOT_OF = dict.fromkeys(("Dinov2", "Dinov2WithRegisters"), ("intermediate_size", "encoder_stride"))
NOT_OF |= {"Beit": ("qkv_bias", "encoder_stride"), "ViTMAE": ("encoder_stride",)}
OF_BEIT = ("use_mask_token", "use_relative_position_bias", "use_shared_relative_position_bias")
OF_DECODER = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
ALONE = {
    "Beit": {**dict.fromkeys(OF_BEIT, True), "vocab_size": 7},
    "ViTMAE": {f"decoder_{name}": value for name, value in OF_DECODER.items()},
}


def random_model(library: Any, name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    member = re.sub("(Model|For[A-Z].*|Backbone)$", "", name)
    values = {key: value for key, value in {**CONFIG, **changes}.items() if key not in NOT_OF.get(member, ())}
    values |= ALONE.get(member, {})
    if member.startswith("Dinov2"):
        values |= {"mlp_ratio": 2, "use_swiglu_ffn": name in GATED}
    if name.endswith("Backbone"):
        values["out_indices"] = [1, 2]
    model = getattr(library, name)(getattr(library, f"{member}Config")(**values)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (1.0 if parameter.dim() == 1 else 0.0)
    return model


def inputs(name: str, model: Any, size: Any = None) -> dict[str, torch.Tensor]:
    """Pictures, what hides patches of them, noise or a mask, and labels."""
    x = pixels(model, size=size)
    noise = torch.rand(len(x), x.shape[2] * x.shape[3] // 16, generator=torch.Generator().manual_seed(1))
    others = {name: {"noise": noise} for name in MAE} | {"BeitModel": {"bool_masked_pos": noise < 0.4}}
    others["BeitForImageClassification"] = {"labels": torch.arange(len(x))}
    others["BeitForMaskedImageModeling"] = {
        "bool_masked_pos": noise < 0.4, "labels": torch.arange(int((noise < 0.4).sum())) % 7,
    }  # fmt: skip
    return {"pixel_values": x, **others.get(name, {})}


def whole(report: Any) -> bool:
    return not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("call", [{}, {"interpolate_pos_encoding": True}, {"output_hidden_states": True}])
def test_equal_outputs_and_gradients(tmp_path: Path, name: str, call: dict[str, Any]) -> None:
    theirs = random_model(transformers, name, attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    ours, report = getattr(vit_torch, name).from_pretrained(tmp_path, output_loading_info=True)
    assert whole(report)
    interpolate = "interpolate_pos_encoding" in call
    if interpolate and name == "ViTMAEForPreTraining":
        pytest.skip("theirs resizes the decoder's positions as one row")
    # Their tables of relative positions have their axes swapped on grids that are no square.
    of_size = inputs(name, theirs, ((32, 32) if name in BEIT else (32, 20)) if interpolate else None)
    x = of_size["pixel_values"]
    always = name.startswith("Dinov2") or name == "BeitBackbone"  # without being asked
    call = {**of_size, **({} if always and interpolate else call)}
    if name == SHIFTED:
        if len(call) > 1:
            pytest.skip("theirs is shifted, and fails on pictures that are no square")
        last = theirs.deit(x).last_hidden_state[:, 2:].transpose(1, 2).unflatten(2, (6, 6))
        assert_close(ours(x).reconstruction, theirs.decoder(last), tolerances.FORMATS, "reconstruction")
        return
    assert_same_output(ours(**call), theirs(**call), tolerances.FORMATS)
    for model in (ours, theirs):
        first = model(**call)[0]
        (first if isinstance(first, torch.Tensor) else first[0] * first[1]).square().sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        assert_close(ours.get_parameter(parameter).grad, gradient, tolerances.FORMATS, parameter, least=largest)


# What differs on purpose, by docs/from-transformers.md.
OTHERWISE = {
    "Beit": r"relative_position_bias$|^layernorm$|attention\.attention\.dropout$",
    "ViTMAE": r"embeddings$|^decoder$",
    SHIFTED: r"^decoder",
}


@pytest.mark.parametrize("name", MODELS)
def test_modules_return_what_theirs_do(name: str) -> None:
    """By the same names, to hooks. Of BEiT's tuples the first value."""
    theirs = random_model(transformers, name, attn_implementation="eager").double()
    config = AutoConfig.from_dict(theirs.config.to_dict(), attn_implementation="eager")
    ours = getattr(vit_torch, name)(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    call = {key: x.double() if x.is_floating_point() else x for key, x in inputs(name, theirs).items()}
    found: list[dict[str, Any]] = []
    for model in (theirs, ours):
        found.append({})
        for path, module in model.named_modules():
            module.register_forward_hook(lambda _, __, output, path=path: found[-1].update({path: output}))
        model(**call)
    other = next((pattern for word, pattern in OTHERWISE.items() if name.startswith(word)), "^$")
    paths = [path for path in found[0] if path and not re.search(other, path)]
    assert len(paths) > 20
    for path in paths:
        a, b = (next(iter(x.values())) if isinstance(x, dict) else x for x in (seen[path] for seen in found))
        a, b = ((x[0] if isinstance(x, tuple) else x) for x in (a, b))
        assert_close(b, a, tolerances.FORMATS, path, least=1.0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("save", [{}, {"safe_serialization": False}, {"max_shard_size": 2000}])
@pytest.mark.parametrize("framework", ["torch", "tf", "flax"])
def test_what_is_written_is_read_by_both(tmp_path: Path, framework: str, name: str, save: dict[str, Any]) -> None:
    random_model(transformers, name).save_pretrained(tmp_path / "theirs")
    package, prefix = {"torch": (vit_torch, ""), "tf": (vit_tf, "TF"), "flax": (vit_flax, "Flax")}[framework]
    model = getattr(package, prefix + name).from_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "ours", **save)
    if not save.get("safe_serialization", True) and framework != "torch":
        if framework == "flax" and name in FLAX:
            theirs = getattr(transformers, f"Flax{name}").from_pretrained(tmp_path / "ours")
            assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), theirs.params, model.params))
            return
        if framework == "flax" or name not in (*DEIT, *MAE):
            pytest.skip(f"transformers never had {prefix}{name}")
        theirs, report = getattr(transformers, f"TF{name}").from_pretrained(tmp_path / "ours", output_loading_info=True)
        assert whole(report)
        weights = {w.name: w.numpy() for w in theirs.weights}
        assert sum(w.size for w in weights.values()) == model.num_parameters()
        return
    theirs, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert whole(report)
    source = getattr(transformers, name).from_pretrained(tmp_path / "theirs")
    for parameter, value in source.state_dict().items():
        assert theirs.state_dict()[parameter].equal(value), parameter
    if framework != "torch" or "max_shard_size" in save:
        return
    x = inputs(name, source)
    np.savez(tmp_path / "x.npz", **{given: tensor.numpy() for given, tensor in x.items()})
    found = json.loads(five.run(FIVE, tmp_path / "ours", name, tmp_path / "x.npz"))
    with torch.no_grad():
        expected = model(**x)
    if "feature_maps" in expected:
        expected = {f"map {i}": each for i, each in enumerate(expected.feature_maps)}
    assert found.keys() == expected.keys()
    for field, value in found.items():
        assert_close(torch.tensor(value), expected[field], tolerances.FORMATS, field)


@pytest.mark.parametrize("name", FLAX)
def test_files_of_their_flax_classes(tmp_path: Path, name: str) -> None:
    """Their msgpack; FlaxDinov2's outputs at the size of the model, and scales of 1 as it multiplies them twice."""
    source = random_model(transformers, name)
    source.save_pretrained(tmp_path / "torch")
    theirs = getattr(transformers, f"Flax{name}").from_pretrained(tmp_path / "torch", from_pt=True)
    theirs.save_pretrained(tmp_path / "flax")
    ours, report = getattr(vit_torch, name).from_pretrained(tmp_path / "flax", output_loading_info=True)
    assert whole(report)
    x = inputs(name, source)
    x.pop("labels", None)  # which their classes in Flax don't take
    for field, value in theirs(**{given: tensor.numpy() for given, tensor in x.items()}).items():
        assert_close(ours(**x)[field].detach(), torch.from_numpy(np.array(value)), tolerances.TF_FLOAT32, field)


@pytest.mark.parametrize("name", [*(name for name in DEIT if name != SHIFTED), *MAE])
def test_files_of_their_tf_classes(tmp_path: Path, name: str) -> None:
    """Which wrote HDF5 alone, or safetensors under their own names."""
    source = random_model(transformers, name)
    source.save_pretrained(tmp_path / "torch")
    theirs = getattr(transformers, f"TF{name}").from_pretrained(tmp_path / "torch", from_pt=True)
    x = inputs(name, source)
    expected = theirs(**{given: tensor.numpy() for given, tensor in x.items()})
    for number, safe in enumerate((False, True)):
        theirs.save_pretrained(tmp_path / str(number), safe_serialization=safe)
        ours, report = getattr(vit_torch, name).from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert whole(report)
        for field, value in expected.items():
            found = ours(**x)[field].detach()
            value = torch.from_numpy(value.numpy()).to(found.dtype).reshape(found.shape)  # their loss has shape (1,)
            assert_close(found, value, tolerances.TF_FLOAT32, field)


@pytest.mark.parametrize("apply_layernorm", [True, False])
def test_their_heads_stand_on_our_backbone(apply_layernorm: bool) -> None:
    """Depth Anything's, which was made for DINOv2."""
    values = {**{name: value for name, value in CONFIG.items() if name not in NOT_OF["Dinov2"]}, "mlp_ratio": 2}
    of_backbone = {"out_indices": [1, 2, 3, 4], "reshape_hidden_states": False, "apply_layernorm": apply_layernorm}
    config = transformers.Dinov2Config(**{**values, "num_hidden_layers": 4}, **of_backbone)
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [4, 4, 4, 4], "fusion_hidden_size": 4, "patch_size": 4}
    torch.manual_seed(0)
    model = transformers.DepthAnythingForDepthEstimation(
        transformers.DepthAnythingConfig(backbone_config=config, head_hidden_size=4, **sizes)
    ).eval()
    x = pixels(model.backbone)
    expected = model(x).predicted_depth
    ours = vit_torch.Dinov2Backbone(vit_torch.Dinov2Config(**{**values, "num_hidden_layers": 4}, **of_backbone)).eval()
    ours.load_state_dict(model.backbone.state_dict())
    assert (ours.channels, ours.out_features) == (model.backbone.channels, model.backbone.out_features)
    model.backbone = ours
    assert_close(model(x).predicted_depth, expected, tolerances.FORMATS, "predicted_depth")
