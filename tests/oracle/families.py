"""The other families of Vision Transformers, run by the libraries that own them: golden data, and an oracle for files.

    python families.py make OUT
    python families.py run FAMILY SOURCE ARGUMENTS INPUT.npy OUTPUT.npy
    python families.py save FAMILY ARGUMENTS FOLDER
    python families.py prepare FAMILY FOLDER PICTURE OUTPUT.npy
    python families.py serve

`make` writes the folder `tests/golden/families`.

`run` builds a model of a family with ARGUMENTS (JSON, or the name of a JSON file), loads SOURCE, a weights file or a
folder, and runs the model on pixels, float32 (B, C, H, W), or float64, in which a model of timm then computes. It
writes the logits (B, K) or the reconstruction (B, C, H, W) of a model with a head, and of others the hidden states
(B, S, D) after the final norm, all float32; to OUTPUT.npz everything that the model computes, by name.

`save` writes a random model to a folder, as its library does; of timm, ARGUMENTS may name an `architecture`. `prepare`
makes of a PNG what the library of a folder feeds its model, float32 (C, H, W). `serve` reads such commands, a JSON list
a line, and answers each with a line of JSON: null, or the traceback of what was raised.

A tensor that is missing or of another shape is an error, and so is one too many, but for what the libraries let pass:
Keras skips groups that no layer has, keras-hub leaves a head random if task.weights.h5 is missing, and timm resizes
position embeddings of a folder.

| family | a folder, which needs no ARGUMENTS | a file, with ARGUMENTS of |
|---|---|---|
| timm | config.json and weights | `timm.models.VisionTransformer`: .safetensors, .pth |
| mae | | `AuthorsMAE`: .pth |
| torchvision | | `torchvision.models.VisionTransformer`: .safetensors, .pth; without a head if `num_classes` is 0 |
| google, big_vision | | `LinenViT`: .npz |
| keras-hub | a preset, of a backbone or a classifier | `ViTBackbone`, a classifier `num_classes` too: .weights.h5 |
| vit_tf | | `ViTConfig` and `class`: .weights.h5 |

timm and torchvision lie in the folder `families` of the environment, where transformers does not find them.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import re
import sys
import traceback
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(sys.prefix) / "families"))

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

Outputs = dict[str, np.ndarray]


# ---- Google's models, in the Linen they were written in --------------------------------------------------------------


class MlpBlock(nn.Module):
    mlp_dim: int

    @nn.compact
    def __call__(self, x: Any) -> Any:
        y = nn.gelu(nn.Dense(self.mlp_dim)(x))  # the first one made is Dense_0
        return nn.Dense(x.shape[-1])(y)


class EncoderBlock(nn.Module):
    mlp_dim: int
    num_heads: int

    @nn.compact
    def __call__(self, x: Any, _: None) -> tuple[Any, None]:
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(self.num_heads)(y, y)
        return x + MlpBlock(self.mlp_dim)(nn.LayerNorm()(x)), None


class PositionEmbeddings(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))


class Encoder(nn.Module):
    mlp_dim: int
    num_heads: int
    num_layers: int
    scan: bool
    positions: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        if self.positions:
            x = PositionEmbeddings(name="posembed_input")(x)
        if self.scan:
            block = nn.scan(
                EncoderBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.num_layers
            )
            x, _ = block(self.mlp_dim, self.num_heads, name="encoderblock")(x, None)
        for i in range(0 if self.scan else self.num_layers):
            x, _ = EncoderBlock(self.mlp_dim, self.num_heads, name=f"encoderblock_{i}")(x, None)
        return nn.LayerNorm(name="encoder_norm")(x)


class LinenViT(nn.Module):
    """The ViT of vit_jax, or with `early_positions` that of big_vision, which adds positions before the class token."""

    patch_size: tuple[int, int]
    hidden_size: int
    mlp_dim: int
    num_heads: int
    num_layers: int
    num_classes: int = 0
    representation_size: int | None = None
    early_positions: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, x: Any) -> dict[str, Any]:
        x = nn.Conv(self.hidden_size, self.patch_size, self.patch_size, "VALID", name="embedding")(x)
        x = x.reshape(len(x), -1, self.hidden_size)
        if self.early_positions:
            x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]))
        cls = self.param("cls", nn.initializers.normal(), (1, 1, self.hidden_size))
        x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        sizes = self.mlp_dim, self.num_heads, self.num_layers
        x = Encoder(*sizes, self.scan, positions=not self.early_positions, name="Transformer")(x)
        outputs, x = {"last_hidden_state": x}, x[:, 0]
        if self.representation_size:
            x = outputs["pooler_output"] = nn.tanh(nn.Dense(self.representation_size, name="pre_logits")(x))
        if self.num_classes:
            outputs["logits"] = nn.Dense(self.num_classes, name="head")(x)
        return outputs


OLD_NUMBERS = {"LayerNorm_1": "LayerNorm_2", "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1"}
OLD_NUMBERS["MlpBlock_0"] = "MlpBlock_3"


def renamed(tree: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A flat tree with other names for some of its modules."""
    return {"/".join(names.get(part, part) for part in key.split("/")): value for key, value in tree.items()}


# ---- every family's model, run on pixels -----------------------------------------------------------------------------


def numbers(outputs: dict[str, Any]) -> Outputs:
    """Outputs of any framework as float32."""
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def state_dict(source: Path) -> dict[str, torch.Tensor]:
    if source.suffix == ".safetensors":
        return safetensors.torch.load_file(source)
    return torch.load(source, weights_only=True)


def run_timm(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    import timm

    if source.is_dir():
        model = timm.create_model(f"local-dir:{source}", pretrained=True)
    else:
        model = timm_model(arguments)
        model.load_state_dict(state_dict(source))
    return timm_outputs(model, pixels)


def timm_model(arguments: dict[str, Any]) -> Any:
    """timm's VisionTransformer; with `distilled` the one with two heads."""
    import timm

    distilled = timm.models.deit.VisionTransformerDistilled
    given = {name: value for name, value in arguments.items() if name != "distilled"}
    return (distilled if "distilled" in arguments else timm.models.VisionTransformer)(**given)


@torch.inference_mode()
def timm_outputs(model: Any, pixels: np.ndarray) -> Outputs:
    x = torch.from_numpy(pixels)
    model = model.eval().to(x.dtype)
    hidden = model.forward_features(x)
    return numbers(
        {"last_hidden_state": hidden} | ({"logits": model.forward_head(hidden)} if model.num_classes else {})
    )


class AuthorsMAE(torch.nn.Module):
    """MAE by its authors' names, of timm's patches and blocks, as theirs is; it keeps the first quarter of them."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float,
                 decoder_embed_dim: int, decoder_depth: int) -> None:  # fmt: skip
        from timm.models.vision_transformer import Block, PatchEmbed

        super().__init__()

        def blocks(width: int, heads: int, count: int) -> torch.nn.ModuleList:
            norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
            made = (Block(width, heads, mlp_ratio, qkv_bias=True, norm_layer=norm) for _ in range(count))
            return torch.nn.ModuleList(made)

        def empty(*shape: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape))

        tokens = (img_size // patch_size) ** 2 + 1
        self.cls_token, self.pos_embed = empty(1, 1, embed_dim), empty(1, tokens, embed_dim)
        self.mask_token, self.decoder_pos_embed = empty(1, 1, decoder_embed_dim), empty(1, tokens, decoder_embed_dim)
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, embed_dim)
        self.blocks, self.norm = blocks(embed_dim, num_heads, depth), torch.nn.LayerNorm(embed_dim, eps=1e-6)
        self.decoder_embed = torch.nn.Linear(embed_dim, decoder_embed_dim)
        self.decoder_blocks = blocks(decoder_embed_dim, 16, decoder_depth)
        self.decoder_norm = torch.nn.LayerNorm(decoder_embed_dim, eps=1e-6)
        self.decoder_pred = torch.nn.Linear(decoder_embed_dim, patch_size**2 * 3)

    @torch.inference_mode()
    def outputs(self, pixels: np.ndarray) -> Outputs:
        x = torch.from_numpy(pixels)
        patches = self.patch_embed(x) + self.pos_embed[:, 1:]
        kept, size = patches.shape[1] // 4, self.patch_embed.patch_size[0]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        latent = torch.cat([cls, patches[:, :kept]], dim=1)
        for block in self.blocks:
            latent = block(latent)
        latent = self.norm(latent)
        y = self.decoder_embed(latent)
        y = torch.cat([y, self.mask_token.expand(len(x), patches.shape[1] - kept, -1)], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            y = block(y)
        logits = self.decoder_pred(self.decoder_norm(y))[:, 1:]
        target = torch.nn.functional.unfold(x, size, stride=size)  # (B, C P P, N)
        target = target.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
        loss = (logits - target)[:, kept:].square().mean()
        return numbers({"last_hidden_state": latent, "logits": logits, "loss": loss})


def run_mae(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    model = AuthorsMAE(**arguments).eval()
    model.load_state_dict(torch.load(source, weights_only=False)["model"])
    return model.outputs(pixels)


def import_torchvision() -> Any:
    """torchvision's Python; its compiled operators, which its ViT does not call, are only declared."""
    library = torch.library.Library("torchvision", "DEF")
    gradients = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", *gradients, *(f"_{name}_backward" for name in gradients)):
        library.define(f"{name}(Tensor a) -> Tensor")
    import torchvision

    torchvision.declared = library  # the declarations live as long as this object
    return torchvision


torchvision = import_torchvision()


@torch.inference_mode()
def run_torchvision(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    model = torchvision.models.VisionTransformer(**arguments).eval()
    if arguments.get("num_classes") == 0:
        del model.heads.head
    model.load_state_dict(state_dict(source))
    found = {}
    model.encoder.register_forward_hook(lambda *call: found.update(last_hidden_state=call[-1]))
    if arguments.get("representation_size"):
        model.heads.act.register_forward_hook(lambda *call: found.update(pooler_output=call[-1]))
    last = model(torch.from_numpy(pixels))
    return numbers(found | ({"logits": last} if hasattr(model.heads, "head") else {}))


def run_linen(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    with np.load(source) as file:
        tree = {key.removeprefix("opt/target/").removeprefix("params/"): file[key] for key in file}
    tree = {key: a.view(ml_dtypes.bfloat16) if a.dtype.kind == "V" else a for key, a in tree.items()}
    positions = tree.get("pos_embedding")
    if positions is not None and math.isqrt(positions.shape[1]) ** 2 + 1 == positions.shape[1]:
        first, tree["pos_embedding"] = np.split(positions, [1], axis=1)  # big_vision adds it, in the dtype of the file
        tree["cls"] = tree["cls"].astype(np.float32) + first.astype(np.float32)
    if any("MlpBlock_3" in key for key in tree):
        tree = renamed(tree, {old: name for name, old in OLD_NUMBERS.items()})
    return linen_outputs(tree, arguments, pixels)


def linen_outputs(tree: dict[str, Any], arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    """Outputs of a Linen model whose parameters are a flat tree with its own names."""
    model, images = LinenViT(**arguments), jnp.asarray(pixels.transpose(0, 2, 3, 1))
    wanted = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), images)["params"], sep="/")
    shapes = [{key: array.shape for key, array in side.items()} for side in (wanted, tree)]
    if shapes[0] != shapes[1]:
        differing = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(f"The parameters do not fit the model: {differing}")
    return numbers(model.apply({"params": unflatten_dict(tree, sep="/")}, images))


def keras_hub_model(arguments: dict[str, Any]) -> Any:
    """A backbone, or a classifier if `num_classes` is among the arguments."""
    import keras_hub

    arguments = dict(arguments)
    head = {name: arguments.pop(name) for name in ("num_classes", "intermediate_dim", "pooling") if name in arguments}
    backbone = keras_hub.models.ViTBackbone(**arguments)
    return keras_hub.models.ViTImageClassifier(backbone=backbone, **head) if head else backbone


def run_keras_hub(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    import keras_hub

    if source.is_dir():
        name = "ViTImageClassifier" if (source / "task.json").exists() else "ViTBackbone"
        model = getattr(keras_hub.models, name).from_preset(str(source), dtype="float32")
    else:
        model = keras_hub_model(arguments | {"dtype": "float32"})
        model.load_weights(source)
    images = pixels.transpose(0, 2, 3, 1)
    if isinstance(model, keras_hub.models.ViTBackbone):
        return numbers({"last_hidden_state": model(images)})
    hidden = model.backbone(images)
    pooled = {"pooler_output": model.intermediate_layer(hidden[:, 0])} if model.intermediate_dim else {}
    return numbers({"last_hidden_state": hidden, **pooled, "logits": model(images)})


def vit_tf_model(arguments: dict[str, Any]) -> Any:
    import vit_tf

    config = {name: value for name, value in arguments.items() if name != "class"}
    return getattr(vit_tf, arguments["class"])(vit_tf.ViTConfig(**config))


def run_vit_tf(source: Path, arguments: dict[str, Any], pixels: np.ndarray) -> Outputs:
    model = vit_tf_model(arguments)
    model(pixels)
    model.load_weights(source)
    return numbers(dict(model(pixels)))


RUN = {
    "timm": run_timm,
    "mae": run_mae,
    "torchvision": run_torchvision,
    "google": run_linen,
    "big_vision": run_linen,
    "keras-hub": run_keras_hub,
    "vit_tf": run_vit_tf,
}


# ---- random weights --------------------------------------------------------------------------------------------------


def draw(rng: np.random.Generator, name: str, shape: Iterable[int]) -> np.ndarray:
    """A random parameter, float32; what multiplies (a norm's weight, layer scale) is about 1."""
    shape = tuple(shape)
    multiplies = name.endswith(("gamma", "scale")) or (name.endswith("weight") and len(shape) == 1)
    return (rng.standard_normal(shape) * 0.3 + multiplies).astype(np.float32)


def seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def randomized(model: Any, name: str) -> Any:
    """A PyTorch or a Keras model with random parameters, the same for the same name."""
    rng = seeded(name)
    if isinstance(model, torch.nn.Module):
        for path, parameter in model.named_parameters():
            parameter.data = torch.from_numpy(draw(rng, path, parameter.shape))
        return model
    for variable in model.weights:
        if "seed_generator" not in variable.path:
            variable.assign(draw(rng, variable.path, variable.shape))
    return model


# ---- golden data -----------------------------------------------------------------------------------------------------

SIZES = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
    "num_classes": 3,
}
ONE_BLOCK = SIZES | {"depth": 1}
SMALL = ONE_BLOCK | {"img_size": 16, "patch_size": 4, "embed_dim": 4}
TORCHVISION = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "mlp_dim": 12,
    "num_classes": 3,
}
LINEN = {"patch_size": [8, 8], "hidden_size": 8, "mlp_dim": 12, "num_heads": 2, "num_layers": 2}
LINEN_SMALL = {"patch_size": [4, 4], "hidden_size": 4, "mlp_dim": 6, "num_heads": 2, "num_layers": 1, "num_classes": 3}
KERAS_HUB = {"image_shape": [32, 32, 3], "patch_size": 8, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 12}

HAS, LACKS = "the file has it", "the file lacks it"


class Golden:
    """The folder being written: one folder a case, and what to know about each."""

    def __init__(self, root: Path) -> None:
        self.root, self.cases = root, dict[str, dict[str, Any]]()
        root.mkdir(parents=True, exist_ok=True)
        for name, size in {"inputs": (32, 32), "inputs_16x24": (16, 24)}.items():
            np.save(root / f"{name}.npy", seeded(name).standard_normal((2, 3, *size), np.float32))

    def folder(self, case: str) -> Path:
        folder = self.root / case
        folder.mkdir(exist_ok=True)
        return folder

    def add(
        self,
        family: str,
        source: Path,
        arguments: dict[str, Any],
        note: str,
        outputs: Outputs | None = None,
        inputs: str = "inputs.npy",
    ) -> None:
        """A case with outputs: given, or the family's own of `source`."""
        case = source.relative_to(self.root).parts[0]
        outputs = outputs or RUN[family](source, arguments, np.load(self.root / inputs))
        np.savez(self.root / case / "outputs.npz", **outputs)
        (self.root / case / "arguments.json").write_text(json.dumps(arguments, indent=1) + "\n")
        file = str(source.relative_to(self.root))
        known = {"family": family, "file": file, "expects": "outputs", "inputs": inputs}
        self.cases[case] = {**known, "arguments": arguments, "note": note}

    def refuse(self, family: str, source: Path, arguments: dict[str, Any], tensor: str, note: str) -> None:
        """A case that is no ViT: `tensor` is what shows it, the beginning of a name where there are several."""
        file = str(source.relative_to(self.root))
        known = {"family": family, "file": file, "expects": "refused", "tensor": tensor}
        self.cases[source.relative_to(self.root).parts[0]] = {**known, "arguments": arguments, "note": note}


def make_timm(golden: Golden) -> None:
    """Folders as `timm.models.save_for_hf` writes them."""
    import timm

    one = {"depth": 1}
    variants: dict[str, tuple[dict[str, Any], str]] = {
        "timm": ({}, "config.json with names of labels, and model.safetensors"),
        "timm_bin": (one, "config.json and pytorch_model.bin"),
        "timm_no_head": (one | {"num_classes": 0}, "no head.*"),
        "timm_no_qkv_bias": (one | {"qkv_bias": False}, "no attn.qkv.bias"),
        "timm_no_proj_bias": (one | {"proj_bias": False}, "no bias of attn.proj, mlp.fc1, mlp.fc2: as if zero"),
        "timm_no_embed_class": (one | {"no_embed_class": True}, "pos_embed has no row for the class token"),
        "timm_layer_scale": (one | {"init_values": 0.1}, "ls1.gamma, ls2.gamma: layer scale, folded on request"),
        "timm_distilled": (one, "dist_token and head_dist: DeiT with both heads"),
        "timm_gelu_tanh": (one | {"act_layer": "gelu_tanh"}, "the activation is in model_args only"),
        "timm_not_square": ({"img_size": [16, 24], "patch_size": [8, 4]}, "image and patch are not square"),
        "timm_12_layers": ({"depth": 12, "embed_dim": 4, "patch_size": 16}, "blocks.10 sorts before blocks.2"),
    }
    for name, (changes, note) in variants.items():
        arguments = SIZES | changes
        architecture = "deit_base_distilled_patch16_224" if name == "timm_distilled" else "vit_base_patch16_224"
        model = randomized(timm.create_model(architecture, **arguments), name)
        safe, labels = name != "timm_bin", {"label_names": ["cat", "dog", "owl"]} if name == "timm" else {}
        timm.models.save_for_hf(model, golden.folder(name), model_config=labels, safe_serialization=safe)
        inputs = "inputs_16x24.npy" if name == "timm_not_square" else "inputs.npy"
        golden.add("timm", golden.root / name, arguments, note, inputs=inputs)


def make_timm_mean(golden: Golden) -> None:
    """A head on the mean of the patches, and its norm."""
    for name, changes in {"timm_avg": {}, "timm_avg_final_norm": {"fc_norm": False}}.items():
        import timm

        arguments = SMALL | {"img_size": 32, "global_pool": "avg"} | changes
        model = randomized(timm.create_model("vit_base_patch16_224", **arguments), name)
        timm.models.save_for_hf(model, golden.folder(name), model_args=arguments)
        golden.add("timm", golden.root / name, arguments, "the head is on the mean of the patches")
    arguments = SMALL | {"img_size": 32, "global_pool": "avg", "class_token": False, "fc_norm": False}
    model = randomized(timm.create_model("vit_base_patch16_224", **arguments), "timm_gap")
    timm.models.save_for_hf(model, golden.folder("timm_gap"), model_args=arguments)
    golden.add("timm", golden.root / "timm_gap", arguments, "no class token, the mean of all patches: I-JEPA's")


def make_dinov2(golden: Golden) -> None:
    """DINOv2 as timm saves it, and as its authors do."""
    import timm

    variants: dict[str, tuple[str, dict[str, Any], str]] = {
        "dinov2": ("vit_small_patch14_dinov2", {}, "as it is trained"),
        "dinov2_registers": ("vit_small_patch14_reg4_dinov2", {"reg_tokens": 2}, "reg_token, no_embed_class"),
        "dinov2_gated": ("vit_giant_patch14_reg4_dinov2", {"mlp_ratio": 4.0}, "mlp.fc1 with room for a gate"),
    }
    for name, (architecture, changes, note) in variants.items():
        arguments = SIZES | {"depth": 1, "num_classes": 0, "init_values": 0.1} | changes
        model = randomized(timm.create_model(architecture, **arguments), name)
        timm.models.save_for_hf(model, golden.folder(f"timm_{name}"), model_args=arguments)
        golden.add("timm", golden.root / f"timm_{name}", arguments, note)
        state, outputs = of_its_authors(model.state_dict()), timm_outputs(model, np.load(golden.root / "inputs.npy"))
        path = golden.folder(f"facebook_{name}") / "model.pth"
        torch.save(state, path)
        note = "the names of the authors' code: register_tokens, w12, w3, mask_token"
        golden.add("timm", path, arguments, note, outputs)
    shared_out = {re.sub(r"^blocks\.", "blocks.0.", key): value for key, value in state.items()}
    head = {"dino_head.last_layer.weight": torch.zeros(6, 4), "dino_head.mlp.0.weight": torch.zeros(4, 8)}
    path = golden.folder("facebook_dinov2_training") / "teacher_checkpoint.pth"
    torch.save({"teacher": prefixed("backbone.", shared_out) | head}, path)
    golden.add("timm", path, arguments, "{'teacher': {'backbone. ...'}}, layers in chunks", outputs)


def make_beit(golden: Golden) -> None:
    """BEiT as timm saves it, and as its authors do."""
    import timm

    variants: dict[str, tuple[dict[str, Any], str]] = {
        "timm_beit": ({}, "tables of each layer, a head on the normalised mean of the patches"),
        "timm_beit_token": (
            {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": True, "init_values": 0.0,
             "global_pool": "token"},
            "a shared table, positions, no scales, a head on the CLS token",
        ),
    }  # fmt: skip
    pixels = np.load(golden.root / "inputs.npy")
    for name, (changes, note) in variants.items():
        arguments = SIZES | {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.1} | changes
        model = randomized(timm.create_model("beit_base_patch16_224", **arguments), name)
        timm.models.save_for_hf(model, golden.folder(name), model_args=arguments)
        golden.add("timm", golden.root / name, arguments, note)
        path, outputs = golden.folder(f"microsoft_{name[5:]}") / "model.pth", timm_outputs(model, pixels)
        index = torch.arange(17 * 17).reshape(17, 17)
        torch.save({"model": model.state_dict() | {"blocks.0.attn.relative_position_index": index}}, path)
        golden.add("timm", path, arguments, "below model, with an index of relative positions", outputs)
    arguments |= {"global_pool": "token", "num_classes": 0}
    model = randomized(timm.create_model("beit_base_patch16_224", **arguments), "microsoft_beit_tokens")
    head = randomized(torch.nn.Linear(8, 5), "microsoft_beit_tokens.lm_head")
    state = model.state_dict() | {f"lm_head.{name}": value for name, value in head.state_dict().items()}
    path = golden.folder("microsoft_beit_tokens") / "model.pth"
    torch.save({"model": state | {"mask_token": torch.ones(1, 1, 8)}}, path)
    with torch.no_grad():
        logits = head(model.eval().forward_features(torch.from_numpy(pixels))[:, 1:]).numpy()
    golden.add("timm", path, arguments, "a mask token, and a head on visual tokens", {"logits": logits})


def make_keras_hub_dinov2(golden: Golden) -> None:
    import keras_hub

    sizes = {"patch_size": 8, "num_layers": 1, "hidden_dim": 8, "num_heads": 2, "intermediate_dim": 12}
    shapes = {"image_shape": (32, 32, 3), "position_embedding_shape": (32, 32)}
    registers = {"num_register_tokens": 2, "use_swiglu_ffn": True, "intermediate_dim": 24}
    for name, changes in {"": {}, "_registers": registers, "_no_mask": {"use_mask_token": False}}.items():
        arguments = sizes | changes
        model = randomized(keras_hub.models.DINOV2Backbone(**arguments, **shapes), f"keras_hub_dinov2{name}")
        model.embeddings.interpolated_position_embeddings.assign(model.embeddings.position_embeddings)
        folder = golden.folder(f"keras_hub_dinov2{name}")
        model.save_to_preset(str(folder))
        pixels = np.load(golden.root / "inputs.npy").transpose(0, 2, 3, 1)
        outputs = {"last_hidden_state": np.asarray(model({"images": pixels}))}
        golden.add("keras_hub", folder, arguments, "a preset of DINOV2Backbone", outputs)


def of_its_authors(state: dict[str, Any]) -> dict[str, Any]:
    """timm's DINOv2 by the names of its authors; the class token is split into one and its position."""
    found = {re.sub("^reg_token", "register_tokens", key): value for key, value in state.items()}
    if state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]:
        found = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for key, t in found.items()}
    found["mask_token"] = torch.full((1, state["cls_token"].shape[2]), 0.5)
    if "reg_token" in state:
        first = torch.full_like(state["cls_token"], 0.25)
        found["cls_token"] = state["cls_token"] - first
        found["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    return found


def prefixed(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in tensors.items()}


def add_wrapped(golden: Golden, name: str, content: Any, model: Any, arguments: dict[str, Any], note: str) -> None:
    """A checkpoint that holds the weights of a model of timm among other things."""
    path = golden.folder(name) / "checkpoint.pth"
    torch.save(content, path)
    golden.add("timm", path, arguments, note, timm_outputs(model, np.load(golden.root / "inputs.npy")))


def make_wrapped(golden: Golden) -> None:
    """What DeiT and timm's training script wrap around timm's names."""

    def add(name: str, wrap: Callable[[dict[str, Any]], Any], note: str, **changes: Any) -> None:
        model = randomized(timm_model(ONE_BLOCK | changes), name)
        add_wrapped(golden, name, wrap(model.state_dict()), model, ONE_BLOCK | changes, note)

    add("deit", lambda state: {"model": state, "epoch": 299}, "{'model': ...}")
    add("deit_distilled", lambda state: {"model": state}, "{'model': ...}, both heads", distilled=True)

    def deit3(state: dict[str, Any]) -> dict[str, Any]:
        return {"model": {re.sub(r"ls(\d)\.gamma", r"gamma_\1", key): value for key, value in state.items()}}

    note = "{'model': ...}, layer scale by the names of DeiT-3, gamma_1 and gamma_2, folded on request"
    add("deit3", deit3, note, no_embed_class=True, init_values=0.1)
    around = {"epoch": 1, "arch": "vit_base_patch16_224", "version": 2, "metric": 50.0}
    note = "{'state_dict': {'module. ...'}}"
    add("timm_training", lambda state: {**around, "state_dict": prefixed("module.", state)}, note)


def make_dino(golden: Golden) -> None:
    import timm

    arguments = ONE_BLOCK | {"num_classes": 0}
    teacher, student = (
        randomized(timm.models.VisionTransformer(**arguments), name) for name in ("dino_teacher", "dino_student")
    )
    add_wrapped(golden, "dino_backbone", teacher.state_dict(), teacher, arguments, "the bare backbone")
    shapes = {f"mlp.{i}.weight": (4, 4 if i else 8) for i in (0, 2, 4)} | {f"mlp.{i}.bias": (4,) for i in (0, 2, 4)}
    shapes |= {"last_layer.weight_g": (6, 1), "last_layer.weight_v": (6, 4)}
    head = {f"head.{key}": torch.from_numpy(draw(seeded(key), key, shape)) for key, shape in shapes.items()}
    full = {
        "student": prefixed("module.", prefixed("backbone.", student.state_dict()) | head),
        "teacher": prefixed("backbone.", teacher.state_dict()) | head,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001, "params": [0, 1]}]},
        "epoch": 100,
        "args": {"arch": "vit_small", "patch_size": 8},
        "dino_loss": {"center": torch.zeros(1, 6)},
    }
    add_wrapped(golden, "dino_full", full, teacher, arguments, "the teacher's backbone counts; heads, loss, optimizer")
    full = full | {"args": argparse.Namespace(arch="vit_small", patch_size=8), "fp16_scaler": None}
    note = "the same, with the Namespace that main_dino.py saves"
    add_wrapped(golden, "dino_namespace", full, teacher, arguments, note)


def make_trainings(golden: Golden) -> None:
    """What training code saves, with what is beside it: DeiT, MAE, and timm's own CheckpointSaver with an average."""
    import timm
    import timm.utils

    def model_of(name: str) -> Any:
        return randomized(timm.models.VisionTransformer(**ONE_BLOCK), name)

    model, average = model_of("deit_args"), model_of("deit_args_ema")
    optimizer = torch.optim.AdamW(model.parameters())
    around = {
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7]).state_dict(),
        "epoch": 1,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": argparse.Namespace(lr=0.001, device="cuda", distributed=False, output_dir=Path("out")),
    }
    content = {"model": model.state_dict(), **around, "model_ema": average.state_dict()}
    add_wrapped(golden, "deit_args", content, average, ONE_BLOCK, "as DeiT's main.py saves; the average counts")
    model = model_of("mae_args")
    content = {"model": model.state_dict(), **around}
    add_wrapped(golden, "mae_args", content, model, ONE_BLOCK, "as MAE's util/misc.py saves")
    arguments = {name: ONE_BLOCK[name] for name in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")}
    arguments |= {"mlp_ratio": 1.5, "decoder_embed_dim": 32, "decoder_depth": 2}
    whole = randomized(AuthorsMAE(**arguments).eval(), "mae")
    path = golden.folder("mae") / "checkpoint.pth"
    torch.save({"model": whole.state_dict(), **around}, path)
    outputs = whole.outputs(np.load(golden.root / "inputs.npy"))
    golden.add(
        "mae", path, arguments, "as MAE's util/misc.py saves a pre-training; the first patches are kept", outputs
    )
    model = model_of("timm_saver")
    average = timm.utils.ModelEmaV3(model_of("timm_saver_ema"))
    folder = golden.folder("timm_saver")
    saver = timm.utils.CheckpointSaver(
        model, optimizer, argparse.Namespace(model="vit", lr=1.0), average, checkpoint_dir=str(folder), max_history=1
    )
    saver.save_checkpoint(epoch=1, metric=50.0)
    for path in folder.glob("*.tar"):
        path.rename(folder / "checkpoint.pth.tar") if path.name.startswith("last") else path.unlink()
    outputs = timm_outputs(average.module, np.load(golden.root / "inputs.npy"))
    note = "as timm's CheckpointSaver saves; the average counts"
    golden.add("timm", folder / "checkpoint.pth.tar", ONE_BLOCK, note, outputs)


def make_heads(golden: Golden) -> None:
    """Heads as people replace them, with the outputs of the same weights under the library's own names."""
    import timm

    def behind_dropout(linear: Any) -> Any:
        return torch.nn.Sequential(torch.nn.Dropout(0.1), linear)

    model = randomized(timm.models.VisionTransformer(**ONE_BLOCK), "timm_new_head")
    outputs = timm_outputs(model, np.load(golden.root / "inputs.npy"))
    model.head = behind_dropout(model.head)
    path = golden.folder("timm_new_head") / "model.pth"
    torch.save(model.state_dict(), path)
    golden.add("timm", path, ONE_BLOCK, "model.head = Sequential(Dropout, Linear)", outputs)

    arguments = TORCHVISION | {"num_layers": 1}
    changes: dict[str, Callable[[Any], Any]] = {
        "torchvision_linear_head": lambda heads: heads.head,
        "torchvision_sequential_head": lambda heads: behind_dropout(heads.head),
        "torchvision_nested_head": lambda heads: torch.nn.Sequential(OrderedDict(head=behind_dropout(heads.head))),
    }
    for name, change in changes.items():
        model = randomized(torchvision.models.VisionTransformer(**arguments), name)
        path = golden.folder(name) / "model.pth"
        torch.save(model.state_dict(), path)
        outputs = RUN["torchvision"](path, arguments, np.load(golden.root / "inputs.npy"))
        model.heads = change(model.heads)
        torch.save(model.state_dict(), path)
        golden.add("torchvision", path, arguments, f"its heads are {', '.join(model.heads.state_dict())}", outputs)


def make_channels(golden: Golden) -> None:
    """A patch projection of 3 channels, "weight" (D, 3, P, Q), and what timm makes of it for each other number."""
    from timm.models import adapt_input_conv

    weight = torch.from_numpy(draw(seeded("timm_channels"), "weight", (8, 3, 4, 4)))
    adapted = {str(n): adapt_input_conv(n, weight).numpy() for n in (1, 2, 4, 5, 9)}
    np.savez(golden.root / "timm_channels.npz", weight=weight.numpy(), **adapted)


def make_transformers(golden: Golden) -> None:
    """Folders of transformers' other vision models; what they compute of DeiT, ViTMAE and ViT-MSN."""
    import transformers

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes |= {"intermediate_size": 12, "hidden_act": "gelu"}
    for name in ("DeiT", "Beit", "Data2VecVision", "Dinov2", "Dinov2WithRegisters", "ViTMSN"):
        config = getattr(transformers, f"{name}Config")(**sizes, mlp_ratio=1.5, num_labels=3)
        case = f"transformers_{config.model_type}"
        model = randomized(getattr(transformers, f"{name}ForImageClassification")(config).eval(), case)
        model.save_pretrained(golden.folder(case))
        with torch.no_grad():
            logits = model(torch.from_numpy(np.load(golden.root / "inputs.npy"))).logits.numpy()
        golden.add("pt", golden.root / case, {}, "known by its own model_type", {"logits": logits})
        if name == "Data2VecVision":
            tf_class = transformers.TFData2VecVisionForImageClassification
            model, case = tf_class.from_pretrained(golden.root / case, from_pt=True), f"{case}_h5"
            model.save_pretrained(golden.folder(case))
            golden.add("tf", golden.root / case, {}, "the same model in TensorFlow's file", {"logits": logits})
    config = transformers.ViTMAEConfig(**sizes, mask_ratio=0.0, decoder_hidden_size=8, decoder_num_hidden_layers=1)
    model = randomized(transformers.ViTMAEModel(config).eval(), "transformers_vit_mae")
    model.save_pretrained(golden.folder("transformers_vit_mae"))
    with torch.no_grad():
        in_order = torch.arange(16.0).expand(2, -1)
        hidden = model(torch.from_numpy(np.load(golden.root / "inputs.npy")), noise=in_order).last_hidden_state.numpy()
    note = "a ViT by its own model_type, without pooler and decoder"
    golden.add("pt", golden.root / "transformers_vit_mae", {}, note, {"last_hidden_state": hidden})


def make_timm_refusals(golden: Golden) -> None:
    """State dicts of models that no ViT expresses."""
    import timm

    variants: dict[str, tuple[dict[str, Any], str]] = {
        "reg_tokens": ({"reg_tokens": 2}, "reg_token"),
        "reg_tokens_no_embed_class": ({"reg_tokens": 2, "no_embed_class": True}, "reg_token"),
        "qk_norm": ({"qk_norm": True}, "blocks.0.attn.q_norm.weight"),
        "scale_norms": ({"scale_attn_norm": True, "scale_mlp_norm": True}, "blocks.0.attn.norm.weight"),
        "avg_no_class_token": ({"global_pool": "avg", "class_token": False}, "cls_token"),
        "map": ({"global_pool": "map", "class_token": False}, "attn_pool.latent"),
        "pre_norm": ({"pre_norm": True}, "norm_pre.weight"),
        "no_final_norm": ({"final_norm": False}, "norm.weight"),
        "no_positions": ({"pos_embed": "none"}, "pos_embed"),
        "swiglu": ({"mlp_layer": timm.layers.SwiGLU}, "blocks.0.mlp.fc1_g.weight"),
    }
    for name, (changes, tensor) in variants.items():
        model = randomized(timm.models.VisionTransformer(**SMALL | changes), name)
        path = golden.folder(f"timm_{name}") / "model.safetensors"
        safetensors.torch.save_file(model.state_dict(), path)
        arguments = {key: getattr(value, "__name__", value) for key, value in (SMALL | changes).items()}
        note = HAS if tensor in model.state_dict() else LACKS
        golden.refuse("timm", path, arguments, tensor, note)


def make_torchvision(golden: Golden) -> None:
    arguments, one = TORCHVISION, {"num_layers": 1}
    variants: dict[str, tuple[dict[str, Any], str]] = {
        "torchvision": ({}, "mlp.0 and mlp.3, as the library saves"),
        "torchvision_published": (
            one,
            "mlp.linear_1 and mlp.linear_2, version 1 of the block, as published files have",
        ),
        "torchvision_pre_logits": (one | {"representation_size": 5}, "a head on top of tanh(pre_logits)"),
    }
    for name, (changes, note) in variants.items():
        state = randomized(torchvision.models.VisionTransformer(**arguments | changes), name).state_dict()
        if name == "torchvision_published":
            for key in [key for key in state if ".mlp." in key]:
                state[key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")] = state.pop(key)
            for block in [key for key in state._metadata if key.endswith(".mlp")]:
                state._metadata[block] = {"version": 1}
        path = golden.folder(name) / "model.pth"
        torch.save(state, path)
        golden.add("torchvision", path, arguments | changes, note)
    small = arguments | one | {"hidden_dim": 4}
    stem = [torchvision.models.vision_transformer.ConvStemConfig(2, 3, 8)]
    model = torchvision.models.VisionTransformer(**small, conv_stem_configs=stem)
    path = golden.folder("torchvision_conv_stem") / "model.pth"
    torch.save(randomized(model, "stem").state_dict(), path)
    golden.refuse("torchvision", path, small, "conv_proj.conv_bn_relu_0.", "a stem of convolutions")


def linen_weights(name: str, arguments: dict[str, Any]) -> dict[str, np.ndarray]:
    """Random weights of a Linen model by their paths."""
    shapes = jax.eval_shape(LinenViT(**arguments).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    rng = seeded(name)
    return {path: draw(rng, path, leaf.shape) for path, leaf in sorted(flatten_dict(shapes, sep="/").items())}


def make_google(golden: Golden) -> None:
    head, early, one = {"num_classes": 3}, {"early_positions": True}, {"num_layers": 1}
    pooled, pixels = one | {"representation_size": 5}, np.load(golden.root / "inputs.npy")
    variants: dict[str, tuple[dict[str, Any], str, str]] = {
        "google": (head, "", "numbers 0, 1, 2, 3, as published files have"),
        "google_linen": (one | head, "", "numbers of Linen, which count each class"),
        "google_pre_logits": (pooled, "", "pre_logits and no head"),
        "google_pre_logits_head": (pooled | head, "", "a head on top of pre_logits"),
        "google_target": (one | head, "opt/target/", "below opt/target/"),
        "big_vision_old": (one | head, "params/", "Transformer/pos_embedding, with a row for the class token"),
        "big_vision": (early | head, "params/", "below params/; positions have no row for the class token"),
        "big_vision_bare": (one | early, "", "no prefix, no head"),
        "big_vision_scan": (early | head | {"scan": True}, "params/", "blocks stacked along axis 0"),
        "big_vision_bfloat16": (one | early | head, "params/", "bfloat16, which numpy saves as |V2"),
    }
    for name, (changes, prefix, note) in variants.items():
        family, arguments = "google" if name.startswith("google") else "big_vision", LINEN | changes
        tree = linen_weights(name, arguments)
        outputs = linen_outputs(tree, arguments, pixels) if name == "big_vision_old" else None
        if family == "google" and name != "google_linen":
            tree = renamed(tree, OLD_NUMBERS)
        if name == "big_vision_old":
            tree = {key.replace("posembed_input/", ""): array for key, array in tree.items()}
        if name == "big_vision_bfloat16":
            tree = {path: array.astype(ml_dtypes.bfloat16) for path, array in tree.items()}
        path = golden.folder(name) / "model.npz"
        np.savez(path, **prefixed(prefix, tree))
        golden.add(family, path, arguments, note, outputs)


def make_google_refusals(golden: Golden) -> None:
    """Names as those models have them; the arrays of what no ViT has are of any shape."""
    pool = {"probe", "LayerNorm_0/scale", "LayerNorm_0/bias", "MlpBlock_0/Dense_0/kernel", "MlpBlock_0/Dense_1/kernel"}
    pool |= {f"MultiHeadDotProductAttention_0/{part}/kernel" for part in ("query", "key", "value", "out")}
    stem = {"conv_root/kernel", "gn_root/scale", "gn_root/bias", "block1/unit1/conv1/kernel", "block1/unit1/gn1/scale"}
    variants: dict[str, tuple[str, set[str], str]] = {
        "google_no_class_token": ("google", set(), "cls"),
        "google_hybrid": ("google", stem, "conv_root/kernel"),
        "big_vision_no_class_token": ("big_vision", set(), "cls"),
        "big_vision_map": ("big_vision", {f"MAPHead_0/{key}" for key in pool}, "MAPHead_0/"),
    }
    positions = "Transformer/posembed_input/pos_embedding"
    for name, (family, more, tensor) in variants.items():
        arguments = LINEN_SMALL | ({"early_positions": True} if family == "big_vision" else {})
        tree = linen_weights(name, arguments)
        if family == "google":
            tree = renamed(tree, OLD_NUMBERS)
        if name == "google_no_class_token":
            tree[positions] = tree[positions][:, 1:]
        if name != "google_hybrid":
            del tree["cls"]
        tree |= {key: draw(seeded(key), key, (2,)) for key in sorted(more)}
        path = golden.folder(name) / "model.npz"
        np.savez(path, **prefixed("params/" if family == "big_vision" else "", tree))
        golden.refuse(family, path, arguments, tensor, LACKS if tensor == "cls" else HAS)


def make_keras_hub(golden: Golden) -> None:
    one, unusual = {"num_layers": 1}, {"layer_norm_epsilon": 0.001, "use_mha_bias": False}
    pooled = one | {"num_classes": 3, "intermediate_dim": 5}
    variants: dict[str, tuple[dict[str, Any], bool, str]] = {
        "keras_hub_preset": (one | {"num_classes": 3}, True, "save_to_preset of a ViTImageClassifier"),
        "keras_hub_backbone_preset": (
            one | unusual,
            True,
            "save_to_preset of a ViTBackbone; epsilon; no biases of mha",
        ),
        "keras_hub": ({"num_layers": 2, "num_classes": 3}, False, "save_weights of a ViTImageClassifier"),
        "keras_hub_bfloat16": (one | {"dtype": "bfloat16"}, False, "save_weights of a ViTBackbone; run in float32"),
        "keras_hub_pre_logits": (pooled, False, "a head on top of pre_logits"),
    }
    for name, (changes, preset, note) in variants.items():
        arguments, folder = KERAS_HUB | changes, golden.folder(name)
        model = randomized(keras_hub_model(arguments), name)
        if preset:
            model.save_to_preset(str(folder))
        else:
            model.save_weights(folder / "model.weights.h5")
        golden.add("keras-hub", folder if preset else folder / "model.weights.h5", arguments, note)
    small = KERAS_HUB | {"num_layers": 0, "hidden_dim": 4}
    refusals = {
        "keras_hub_pooled": ({"num_classes": 3, "pooling": "gap"}, "pooling", "in task.json: gap, not token"),
        "keras_hub_no_class_token": ({"use_class_token": False}, "layers/vi_t_patching_and_embedding/vars/0", LACKS),
    }
    for name, (changes, tensor, note) in refusals.items():
        folder = golden.folder(name)
        randomized(keras_hub_model(small | changes), name).save_to_preset(str(folder))
        golden.refuse("keras-hub", folder, small | changes, tensor, note)


def make_vit_tf(golden: Golden) -> None:
    """Weights files of this package's own Keras models."""
    import keras

    config = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
        "image_size": 32, "patch_size": 8, "encoder_stride": 8,
    }  # fmt: skip
    labels, masked = {"class": "TFViTForImageClassification", "num_labels": 3}, {"class": "TFViTForMaskedImageModeling"}
    variants: dict[str, tuple[dict[str, Any], str, str]] = {
        "vit_tf": ({"class": "TFViTModel", "num_hidden_layers": 2, "pooler_output_size": 5}, "inputs", "with a pooler"),
        "vit_tf_trained": (labels, "inputs", "compiled and trained a step, so that an optimizer is inside"),
        "vit_tf_masked": (masked | {"image_size": [16, 24]}, "inputs_16x24", "with a mask token and a decoder"),
    }
    for name, (changes, inputs, note) in variants.items():
        arguments, pixels = config | changes, np.load(golden.root / f"{inputs}.npy")
        model = vit_tf_model(arguments)
        model(pixels)
        randomized(model, name)
        if name == "vit_tf_trained":
            model.compile(optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
            model.train_on_batch({"pixel_values": pixels, "labels": np.array([0, 2])})
        path = golden.folder(name) / "model.weights.h5"
        model.save_weights(path)
        golden.add("vit_tf", path, arguments, note, inputs=f"{inputs}.npy")


def make(out: Path) -> None:
    golden = Golden(out)
    for fill in (
        make_timm, make_timm_mean, make_wrapped, make_dino, make_dinov2, make_beit, make_trainings, make_heads,
        make_channels, make_transformers, make_timm_refusals, make_torchvision, make_google, make_google_refusals,
        make_keras_hub, make_keras_hub_dinov2, make_vit_tf,
    ):  # fmt: skip
        fill(golden)
    (out / "cases.json").write_text(json.dumps(golden.cases, indent=1) + "\n")


def read_arguments(text: str) -> dict[str, Any]:
    return json.loads(text if text.startswith("{") else Path(text).read_text())


def run(family: str, source: str, arguments: str, pixels: str, out: str) -> None:
    outputs = RUN[family](Path(source), read_arguments(arguments), np.load(pixels))
    if out.endswith(".npz"):
        np.savez(out, **outputs)
    else:
        first = next(name for name in ("logits", "reconstruction", "last_hidden_state") if name in outputs)
        np.save(out, outputs[first])


def save(family: str, arguments: str, out: str) -> None:
    values, folder = read_arguments(arguments), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if family == "timm":
        import timm

        model = timm.create_model(values.pop("architecture", "vit_base_patch16_224"), **values)
        timm.models.save_for_hf(randomized(model, arguments), folder)
    elif family == "torchvision":
        model = torchvision.models.VisionTransformer(**values)
        torch.save(randomized(model, arguments).state_dict(), folder / "model.pth")
    else:
        randomized(keras_hub_model(values), arguments).save_to_preset(out)


def prepare(family: str, folder: str, picture: str, out: str) -> None:
    from PIL import Image

    image = Image.open(picture)
    if family == "timm":
        import timm

        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg, model=model))
        np.save(out, transform(image).numpy())
    else:
        import keras_hub

        pixels = np.asarray(image).reshape(1, image.height, image.width, -1)
        converted = keras_hub.layers.ViTImageConverter.from_preset(folder)(pixels)
        np.save(out, np.asarray(converted)[0].transpose(2, 0, 1))


def serve() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    for line in sys.stdin:
        verb, *rest = json.loads(line)
        try:
            answer = VERBS[verb](*rest)
        except Exception:
            answer = traceback.format_exc()
        print(json.dumps(answer), file=answers, flush=True)


VERBS: dict[str, Callable[..., None]] = {
    "make": lambda out: make(Path(out)), "run": run, "save": save, "prepare": prepare, "serve": serve
}  # fmt: skip

if __name__ == "__main__":
    VERBS[sys.argv[1]](*sys.argv[2:])
