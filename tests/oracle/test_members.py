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

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 24,
    "patch_size": 4, "encoder_stride": 4, "num_labels": 3, "qkv_bias": True,
}  # fmt: skip
DEIT = (
    "DeiTModel", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher", "DeiTForMaskedImageModeling",
)  # fmt: skip
MODELS = (
    *DEIT, "Dinov2Model", "Dinov2ForImageClassification", "Dinov2Backbone", "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersBackbone", "IJepaModel",
    "IJepaForImageClassification", "ViTMSNModel", "ViTMSNForImageClassification",
)  # fmt: skip
GATED = ("Dinov2ForImageClassification", "Dinov2WithRegistersModel")  # of which the MLP is tried with a gate
FLAX = ("Dinov2Model", "Dinov2ForImageClassification")  # that transformers had in Flax
SHIFTED = "DeiTForMaskedImageModeling"  # 4.57.6 takes rows 1:-1 of the sequence, 5 and this package rows 2:

FIVE = """
import json, sys, numpy as np, torch, transformers
model, report = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
with torch.no_grad():
    output = model.eval()(torch.from_numpy(np.load(sys.argv[3])))
if "feature_maps" in output:
    output = {f"map {i}": each for i, each in enumerate(output["feature_maps"])}
print(json.dumps({name: np.asarray(output[name]).tolist() for name in output}))
"""


NOT_OF = dict.fromkeys(("Dinov2", "Dinov2WithRegisters"), ("intermediate_size", "encoder_stride"))


def random_model(library: Any, name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    member = re.sub("(Model|For[A-Z].*|Backbone)$", "", name)
    values = {key: value for key, value in {**CONFIG, **changes}.items() if key not in NOT_OF.get(member, ())}
    if member in NOT_OF:
        values |= {"mlp_ratio": 2, "use_swiglu_ffn": name in GATED}
    if name.endswith("Backbone"):
        values["out_indices"] = [1, 2]
    model = getattr(library, name)(getattr(library, f"{member}Config")(**values)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3 + (1.0 if parameter.dim() == 1 else 0.0)
    return model


def whole(report: Any) -> bool:
    return not (report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("call", [{}, {"interpolate_pos_encoding": True}, {"output_hidden_states": True}])
def test_equal_outputs_and_gradients(tmp_path: Path, name: str, call: dict[str, Any]) -> None:
    theirs = random_model(transformers, name, attn_implementation="eager")
    theirs.save_pretrained(tmp_path)
    ours, report = getattr(vit_torch, name).from_pretrained(tmp_path, output_loading_info=True)
    assert whole(report)
    x = pixels(theirs, size=(32, 20) if "interpolate_pos_encoding" in call else None)
    call = {} if name.startswith("Dinov2") and "interpolate_pos_encoding" in call else call  # which always does
    if name == SHIFTED:
        if call:
            pytest.skip("theirs is shifted, and fails on pictures that are no square")
        last = theirs.deit(x).last_hidden_state[:, 2:].transpose(1, 2).unflatten(2, (6, 6))
        assert_close(ours(x).reconstruction, theirs.decoder(last), tolerances.FORMATS, "reconstruction")
        return
    assert_same_output(ours(x, **call), theirs(x, **call), tolerances.FORMATS)
    for model in (ours, theirs):
        first = model(x, **call)[0]
        (first if isinstance(first, torch.Tensor) else first[0] * first[1]).square().sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        assert_close(ours.get_parameter(parameter).grad, gradient, tolerances.FORMATS, parameter, least=largest)


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
        if framework == "flax" or name not in DEIT:
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
    x = pixels(source)
    np.save(tmp_path / "x.npy", x.numpy())
    found = json.loads(five.run(FIVE, tmp_path / "ours", name, tmp_path / "x.npy"))
    with torch.no_grad():
        expected = model(x)
    if "feature_maps" in expected:
        expected = {f"map {i}": each for i, each in enumerate(expected.feature_maps)}
    assert found.keys() == expected.keys()
    for field, value in found.items():
        assert_close(torch.tensor(value), expected[field], tolerances.FORMATS, field)


@pytest.mark.parametrize("name", FLAX)
def test_files_of_their_flax_classes(tmp_path: Path, name: str) -> None:
    """FlaxDinov2's msgpack; its outputs at the size of the model, and scales of 1 as it multiplies them twice."""
    source = random_model(transformers, name)
    source.save_pretrained(tmp_path / "torch")
    theirs = getattr(transformers, f"Flax{name}").from_pretrained(tmp_path / "torch", from_pt=True)
    theirs.save_pretrained(tmp_path / "flax")
    ours, report = getattr(vit_torch, name).from_pretrained(tmp_path / "flax", output_loading_info=True)
    assert whole(report)
    x = pixels(source)
    for field, value in theirs(x.numpy()).items():
        assert_close(ours(x)[field].detach(), torch.from_numpy(np.array(value)), tolerances.TF_FLOAT32, field)


@pytest.mark.parametrize("name", [name for name in DEIT if name != SHIFTED])
def test_files_of_their_tf_classes(tmp_path: Path, name: str) -> None:
    """Which wrote HDF5 alone, or safetensors under their own names."""
    source = random_model(transformers, name)
    source.save_pretrained(tmp_path / "torch")
    theirs = getattr(transformers, f"TF{name}").from_pretrained(tmp_path / "torch", from_pt=True)
    x = pixels(source)
    expected = theirs(x.numpy())
    for number, safe in enumerate((False, True)):
        theirs.save_pretrained(tmp_path / str(number), safe_serialization=safe)
        ours, report = getattr(vit_torch, name).from_pretrained(tmp_path / str(number), output_loading_info=True)
        assert whole(report)
        for field, value in expected.items():
            assert_close(ours(x)[field].detach(), torch.from_numpy(value.numpy()), tolerances.TF_FLOAT32, field)


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
