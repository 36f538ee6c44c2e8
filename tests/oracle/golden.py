"""The golden data of `tests/golden`, made by transformers 4.57.6: its checkpoints, and what they compute.

    python tests/oracle/golden.py compute [CASE ...]
    python tests/oracle/golden.py draw NAME CLASS FIELDS [FORMAT ...]

`compute` runs cases of cases.json, all of them unless some are named, on their checkpoints and inputs, and says how far
what is in outputs.npz is from that; `--write` puts it there. `draw` makes a checkpoint: a model of CLASS and a
configuration of FIELDS (JSON), all of its parameters drawn from NAME, saved as `pt_safetensors`, and as `pt_bin` and
`tf_h5` where those FORMATs are named. Add its cases to cases.json, with the keys of their outputs, then compute them.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parents[1] / "golden"
CUT = {"base_pooler_size_12": 12, "cls_regression_1": 1}  # cases with a checkpoint's first rows of pooler or classifier
transformers.activations.ACT2FN["selu"] = torch.nn.SELU  # which transformers documents, and has in no table
CLASSES = {"cls_grad": "ViTForImageClassification"}  # of a case that has gradients alone
ARGUMENTS = {
    "base_nopool": {"add_pooling_layer": False},
    "deit_mask_token": {"add_pooling_layer": False, "use_mask_token": True},
}
SHIFTED = "DeiTForMaskedImageModeling"  # which takes another patch's row for each: see `mended`


def model_of(case: dict[str, Any]) -> Any:
    """The model of a case, in evaluation mode, with the eager attention."""
    name = case["ckpt"] if "/" in case["ckpt"] else f"{case['ckpt']}/pt_safetensors"
    cls = getattr(transformers, case.get("model") or CLASSES[case["case"]])
    options = {**ARGUMENTS.get(case["ckpt"], {}), **case.get("config_overrides", {}), "attn_implementation": "eager"}
    if (rows := CUT.get(case["case"])) is None:
        other_head = case["case"] == "mim_stride_mismatch"
        return cls.from_pretrained(GOLDEN / "ckpt" / name, ignore_mismatched_sizes=other_head, **options).eval()
    whole = cls.from_pretrained(GOLDEN / "ckpt" / name).state_dict()
    model = cls.from_pretrained(GOLDEN / "ckpt" / name, ignore_mismatched_sizes=True, **options).eval()
    cut = {n: v[:rows] if n.startswith(("pooler", "classifier")) else v for n, v in whole.items()}
    model.load_state_dict(cut)
    return model


def mended(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """DeiT's reconstruction from rows 2: of the sequence, as transformers 5 computes it, and its loss."""
    mask = call["bool_masked_pos"]
    x = model.deit(call["pixel_values"], bool_masked_pos=mask).last_hidden_state[:, 2:].transpose(1, 2)
    side = int(x.shape[2] ** 0.5)
    reconstruction = model.decoder(x.unflatten(2, (side, side)))
    patch = model.config.patch_size
    pixels = mask.view(-1, side, side).repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, None]
    error = (call["pixel_values"] - reconstruction).abs() * pixels
    loss = error.sum() / (pixels.sum() + 1e-5) / model.config.num_channels
    return {"loss": loss, "reconstruction": reconstruction}


def resize_in_two_axes(model: Any) -> None:
    """Let MAE's decoder resize positions along both axes, as its encoder does; 4.57.6 does so along the row of all."""
    decoder = model.decoder

    def resized(x: torch.Tensor) -> torch.Tensor:
        side, own = (int((n - 1) ** 0.5) for n in (x.shape[1], decoder.decoder_pos_embed.shape[1]))
        grid = decoder.decoder_pos_embed[:, 1:].unflatten(1, (own, own)).permute(0, 3, 1, 2)
        patches = torch.nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return torch.cat([decoder.decoder_pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    decoder.interpolate_pos_encoding = resized


def computed(case: dict[str, Any], inputs: Any) -> dict[str, np.ndarray]:
    """The arrays of a case by their keys in outputs.npz."""
    model = model_of(case)
    call = {n: torch.from_numpy(inputs[v]) if isinstance(v, str) else v for n, v in case["call"].items()}
    if hasattr(model, "decoder") and hasattr(model.decoder, "decoder_pos_embed"):
        resize_in_two_axes(model)
    output = mended(model, call) if case.get("model") == SHIFTED else model(**call)
    named = case.get("outputs", {})
    found = {}
    for field, keys in named.items():
        values = output[field] if isinstance(keys, list) else [output[field]] if keys is not None else []
        for value, key in zip(values, keys if isinstance(keys, list) else [keys] * len(values), strict=True):
            found[key] = (value.float() if value.is_floating_point() else value).detach().numpy()
    gradients = case.get("gradients", {})
    if case["case"] in CLASSES:
        gradients = {n: key for n in case["grad_norms"] if (key := f"{case['case']}/{n}") in stored()}
    if gradients:
        output["loss"].backward()
        found |= {key: model.get_parameter(name).grad.numpy() for name, key in gradients.items()}
    return found


def stored() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "outputs.npz") as file:
        return dict(file)


def compute(names: list[str], write: bool) -> None:
    before, cases = stored(), json.loads((GOLDEN / "cases.json").read_text())
    with np.load(GOLDEN / "inputs.npz") as inputs:
        for case in cases:
            if "error" in case or (names and case["case"] not in names):
                continue
            found = computed(case, inputs)
            apart = [np.abs(before[k] - v).max() / max(np.abs(v).max(), 1e-30) for k, v in found.items() if k in before]
            print(f"{case['case']:40} {len(found):3} arrays, {max(apart, default=0):.1e} apart", flush=True)
            before |= found
    if write:
        np.savez_compressed(GOLDEN / "outputs.npz", **before)


def draw(name: str, architecture: str, values: dict[str, Any], formats: list[str]) -> None:
    cls = getattr(transformers, architecture)
    model = cls(cls.config_class(**values), **ARGUMENTS.get(name, {})).eval()
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for key, parameter in model.named_parameters():
        one = parameter.dim() == 1 and key.endswith("weight")  # of a norm
        array = rng.standard_normal(parameter.shape, np.float32) * 0.1 + one
        parameter.data = torch.from_numpy(array)
    folder = GOLDEN / "ckpt" / name
    model.save_pretrained(folder / "pt_safetensors")
    if "pt_bin" in formats:
        model.save_pretrained(folder / "pt_bin", safe_serialization=False)
    if "tf_h5" in formats:
        keras = getattr(transformers, f"TF{architecture}").from_pretrained(folder / "pt_safetensors", from_pt=True)
        keras.save_pretrained(folder / "tf_h5", safe_serialization=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    computing, drawing = commands.add_parser("compute"), commands.add_parser("draw")
    computing.add_argument("cases", nargs="*")
    computing.add_argument("--write", action="store_true")
    for name in ("name", "architecture", "fields"):
        drawing.add_argument(name)
    drawing.add_argument("formats", nargs="*", choices=["pt_bin", "tf_h5"])
    given = parser.parse_args()
    if given.command == "compute":
        compute(given.cases, given.write)
    else:
        draw(given.name, given.architecture, json.loads(given.fields), given.formats)


if __name__ == "__main__":
    main()
