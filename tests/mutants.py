"""Does the suite notice? Small faults are put into a copy of the packages, one at a time, and tests must fail on each.

python tests/mutants.py [--only NAME] [--all]     or: make mutants
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

ROOT = Path(__file__).parent.parent
PACKAGES = ("vit_core", "vit_torch", "vit_tf", "vit_flax", "conversion")
COPIED = (*PACKAGES, "tests", "examples", "pyproject.toml", "README.md")
LIMIT = 3600  # seconds for the tests of one mutant; one that hangs is noticed as well
WHOLE_SUITE = ("tests", "")


@dataclass(frozen=True)
class Mutant:
    """One fault: `old`, which stands once in `file`, becomes `new`; `tests` are a file and a `-k` expression."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, str]


def models(keyword: str) -> tuple[str, str]:
    return "tests/test_models.py", keyword


def golden(backend: str, case: str = "eager-base") -> tuple[str, str]:
    return models(f"test_golden_output and {backend}-{case}")


def reference(backend: str, cls: str) -> tuple[str, str]:
    return "tests/test_reference.py", f"{backend}-{cls}"


MUTANTS = (
    Mutant(
        "torch: last norm with PyTorch's own epsilon",
        "vit_torch/modeling.py",
        "layer_norm(config) if config.final_norm",
        "nn.LayerNorm(config.hidden_size) if config.final_norm",
        reference("torch", "ViTModel"),
    ),
    Mutant(
        "tf: norms with Keras's own epsilon",
        "vit_tf/module.py",
        "LayerNorm(epsilon=self.config.layer_norm_eps, dtype",
        "LayerNorm(dtype",
        golden("tf"),
    ),
    Mutant(
        "flax: GELU by tanh",
        "vit_flax/activations.py",
        "return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))",
        "return jax.nn.gelu(x, approximate=True)",
        golden("flax"),
    ),
    Mutant(
        "flax: derivative of the GELU without its density",
        "vit_flax/activations.py",
        "(cdf + x * density) * dx",
        "cdf * dx",
        models("test_golden_gradients and flax"),
    ),
    Mutant(
        "torch: tanh GELU is the exact one",
        "vit_torch/activations.py",
        'F.gelu(x, approximate="tanh")',
        "F.gelu(x)",
        golden("torch", "sdpa-cls_act"),
    ),
    Mutant(
        "tf: scale of the scores forgotten",
        "vit_tf/attention.py",
        "tf.matmul(q * q.shape[-1] ** -0.5, k, transpose_b=True)",
        "tf.matmul(q, k, transpose_b=True)",
        golden("tf"),
    ),
    Mutant(
        "flax: queries and keys swapped",
        "vit_flax/encoder.py",
        "for f in (self.query, self.key, self.value))",
        "for f in (self.key, self.query, self.value))",
        golden("flax"),
    ),
    Mutant(
        "core: the last layer computes the last token",
        "vit_core/calls.py",
        "x[:, : self.tokens]",
        "x[:, -self.tokens :]",
        models("test_a_classifier_is_the_same_with_its_states and torch"),
    ),
    Mutant(
        "torch: hooks see the CLS token alone",
        "vit_torch/layers.py",
        "for module in modules for kind in _HOOKS",
        "for module in modules[:0] for kind in _HOOKS",
        ("tests/test_torch.py", "test_hooks_see_all_tokens"),
    ),
    Mutant(
        "torch: oneDNN multiplies for a layer that is hooked",
        "vit_torch/layers.py",
        "        and _bare(layer)\n",
        "",
        ("tests/test_torch_linear.py", "watched"),
    ),
    Mutant(
        "torch: oneDNN's product is differentiated again",
        "vit_torch/layers.py",
        "if torch.is_grad_enabled() or not _plain(grad, x, weight) else",
        "if not _plain(grad, x, weight) else",
        ("tests/test_torch_linear.py", "gradients_of_gradients"),
    ),
    Mutant(
        "torch: oneDNN computes gradients that nobody wants",
        "vit_torch/layers.py",
        "product(grad, weight.t()) if of_x else None",
        "product(grad, weight.t())",
        ("tests/test_torch_linear.py", "nobody_wants"),
    ),
    Mutant(
        "torch: oneDNN approximates the exact GELU",
        "vit_torch/layers.py",
        '_GELU = {F.gelu: "none",',
        '_GELU = {F.gelu: "tanh",',
        ("tests/test_torch_linear.py", "rounding"),
    ),
    Mutant(
        "torch: the first tokens are a strided view",
        "vit_torch/encoder.py",
        "return view.clone(memory_format=torch.contiguous_format)",
        "return view.contiguous()",
        ("tests/test_torch.py", "test_linear_layers_read_packed_memory"),
    ),
    Mutant(
        "flax: what is recorded shows the CLS token alone",
        "vit_flax/modeling.py",
        "bool(self.scope.mutable)",
        "False",
        ("tests/test_reference.py", "test_who_looks and flax"),
    ),
    Mutant(
        "tf: biases of linear layers ignored",
        "vit_tf/layers.py",
        "x = tf.nn.bias_add(x, self.bias) if self.use_bias else x",
        "x = x",
        golden("tf"),
    ),
    Mutant(
        "torch: head_mask ignored by fused attention",
        "vit_torch/attention.py",
        "return context if head_mask is None else context * head_mask[:, None, None].to(context.dtype)",
        "return context",
        models("test_head_mask_silences_heads and torch"),
    ),
    Mutant(
        "tf: one layer's head_mask for all",
        "vit_tf/encoder.py",
        "mask = head_mask[i] if",
        "mask = head_mask[0] if",
        models("test_head_mask_silences_heads and tf"),
    ),
    Mutant(
        "flax: attention_mask ignored",
        "vit_flax/attention.py",
        "scores = scores if bias is None else scores + bias",
        "scores = scores",
        models("test_attention_mask_hides_tokens and flax"),
    ),
    Mutant(
        "torch: attention_mask inverted",
        "vit_torch/attention.py",
        "zeros.masked_fill(mask == 0,",
        "zeros.masked_fill(mask != 0,",
        models("test_attention_mask_hides_tokens and torch"),
    ),
    Mutant(
        "core: coefficient of the bicubic kernel",
        "vit_core/position.py",
        "cubic(abs(x - base - tap), -0.75,",
        "cubic(abs(x - base - tap), -0.5,",
        ("tests/test_position.py", "test_hf_is_torch_bicubic"),
    ),
    Mutant(
        "core: resized positions column by column",
        "vit_core/position.py",
        "patches = resized.reshape(1, target[0] * target[1], -1)",
        "patches = resized.swapaxes(0, 1).reshape(1, target[0] * target[1], -1)",
        models("test_interpolation_of_any_grid and torch"),
    ),
    Mutant(
        "torch: class token after the patches",
        "vit_torch/embeddings.py",
        "torch.cat([*tokens, x], dim=1)",
        "torch.cat([x, *tokens], dim=1)",
        golden("torch"),
    ),
    Mutant(
        "flax: class token without its position",
        "vit_flax/embeddings.py",
        "x + table.astype(x.dtype)",
        "x + table.astype(x.dtype).at[:, 0].set(0)",
        golden("flax"),
    ),
    Mutant(
        "torch: hidden states after the next norm",
        "vit_torch/encoder.py",
        "                states.append(x)",
        "                states.append(layer.layernorm_before(x))",
        golden("torch"),
    ),
    Mutant(
        "flax: hidden states without the embeddings",
        "vit_flax/encoder.py",
        "hidden_states=(hidden_states, *states)",
        "hidden_states=(*states, x)",
        golden("flax"),
    ),
    Mutant(
        "tf: rows and columns of the pixel shuffle",
        "vit_tf/modeling.py",
        "tf.transpose(x, (0, 3, 1, 4, 2, 5))",
        "tf.transpose(x, (0, 3, 1, 5, 2, 4))",
        models("test_pixel_shuffle_puts_channels_first and tf"),
    ),
    Mutant(
        "torch: masked loss without its epsilon",
        "vit_torch/losses.py",
        "(pixel_mask.sum() + 1e-5)",
        "pixel_mask.sum()",
        models("test_nothing_masked_is_no_loss and torch"),
    ),
    Mutant(
        "flax: masked loss not divided by the channels",
        "vit_flax/losses.py",
        "(pixel_mask.sum() + 1e-5) / config.num_channels",
        "(pixel_mask.sum() + 1e-5)",
        models("test_reconstruction_of_any_shape and flax"),
    ),
    Mutant(
        "tf: the mask keeps patches instead of replacing them",
        "vit_tf/embeddings.py",
        "x = tf.where(tf.cast(bool_masked_pos, bool)[..., None], tf.cast(self.mask_token, x.dtype), x)",
        "x = tf.where(tf.cast(bool_masked_pos, bool)[..., None], x, tf.cast(self.mask_token, x.dtype))",
        models("test_masked_patches_do_not_matter and tf"),
    ),
    Mutant(
        "torch: labels smoothed",
        "vit_torch/losses.py",
        "F.cross_entropy(logits, labels.long())",
        "F.cross_entropy(logits, labels.long(), label_smoothing=0.1)",
        models("test_losses and torch"),
    ),
    Mutant(
        "flax: mean over ignored labels too",
        "vit_flax/losses.py",
        "each.sum() / kept.sum()",
        "each.mean()",
        models("test_losses and flax"),
    ),
    Mutant(
        "tf: softmax in float32 whatever the dtype",
        "vit_tf/attention.py",
        "wide = scores.dtype if scores.dtype == tf.float64 else tf.float32",
        "wide = tf.float32",
        reference("tf", "ViTModel"),
    ),
    Mutant(
        "torch: pooler without its activation",
        "vit_torch/modeling.py",
        "self.activation(self.dense(hidden_states[:, 0]))",
        "self.dense(hidden_states[:, 0])",
        golden("torch"),
    ),
    Mutant(
        "torch: attention dropout in evaluation",
        "vit_torch/encoder.py",
        "self.config.attention_probs_dropout_prob if self.training else 0.0",
        "self.config.attention_probs_dropout_prob",
        ("tests/test_torch.py", "test_dropout_only_in_training"),
    ),
    Mutant(
        "tf: dropout in evaluation",
        "vit_tf/encoder.py",
        "x = scaled(self.dropout(self.dense(hidden_states), training=training), self.scale)",
        "x = scaled(self.dropout(self.dense(hidden_states), training=True), self.scale)",
        ("tests/test_tf.py", "test_dropout_only_in_training_and_by_the_seed"),
    ),
    Mutant(
        "core: the seed has no part in the draw",
        "vit_core/initialization.py",
        "SeedSequence([seed, stream])",
        "SeedSequence([0, stream])",
        ("tests/test_initialization.py", "test_seeded_draw"),
    ),
    Mutant(
        "core: Flax files not transposed",
        "vit_core/params.py",
        '{**_KERNELS, ("norm", "weight"): "scale"}, axes=_KERNEL_AXES)',
        '{**_KERNELS, ("norm", "weight"): "scale"})',
        ("tests/test_msgpack.py", "test_golden_files_hold_what_the_pytorch_files_hold"),
    ),
    Mutant(
        "core: channels of a kernel swapped",
        "vit_core/params.py",
        '"conv": (2, 3, 1, 0)',
        '"conv": (2, 3, 0, 1)',
        ("tests/test_checkpoint.py", "test_formats_hold_the_same_arrays"),
    ),
    Mutant(
        "core: maps of msgpack in the order of the model",
        "vit_core/files/msgpack.py",
        "for name in sorted(node):",
        "for name in node:",
        ("tests/test_msgpack.py", "test_flax_writes_the_same"),
    ),
    Mutant(
        "core: the entry comes before what it names",
        "vit_core/files/saving.py",
        "        _move(saved, folder, {name for name in names if _OWN.fullmatch(name)} - entries)\n"
        "        _move(saved, folder, entries)",
        "        _move(saved, folder, entries)\n"
        "        _move(saved, folder, {name for name in names if _OWN.fullmatch(name)} - entries)",
        ("tests/test_saving.py", "test_a_kill_at_any_step and another"),
    ),
    Mutant(
        "core: files that were replaced while they were read are taken",
        "vit_core/files/saving.py",
        "            if _state(path) == before:\n                return result",
        "            return result",
        ("tests/test_saving.py", "test_a_save_at_any_moment_of_a_read"),
    ),
    Mutant(
        "core: an old entry is taken away before the new one is there",
        "vit_core/files/saving.py",
        "        _move(stage, folder, entries)\n        _take_away(folder, gone, stage)",
        "        _take_away(folder, gone, stage)\n        _move(stage, folder, entries)",
        ("tests/test_saving.py", "test_a_kill_at_any_step and same"),
    ),
    Mutant(
        "torch: a state dict that is given is not saved",
        "vit_torch/base.py",
        'given.get("state_dict", own).items()',
        "own.items()",
        ("tests/test_what_is_saved.py", "weights_that_are_given"),
    ),
    Mutant(
        "flax: parameters that are given are not saved",
        "vit_flax/base.py",
        'self._flat(given["params"] if given else self.params)',
        "self._flat(self.params)",
        ("tests/test_what_is_saved.py", "weights_that_are_given"),
    ),
    Mutant(
        "tf: LoRA's kernels without its product",
        "vit_tf/base.py",
        "np.asarray(ops.convert_to_numpy(layer.kernel))",
        "np.asarray(ops.convert_to_numpy(layer._kernel))",
        ("tests/test_what_is_saved.py", "lora"),
    ),
    Mutant(
        "core: weights of other containers survive a save",
        "vit_core/pretrained.py",
        'for c in CONTAINERS if c.format == "pt" or not variant for pattern',
        'for c in CONTAINERS[:1] if c.format == "pt" or not variant for pattern',
        ("tests/test_what_is_saved.py", "no_other_weights"),
    ),
    Mutant(
        "core: wrong shapes are initialised anew unasked",
        "vit_core/loading.py",
        "elif ignore_mismatched_sizes or (fresh_head and spec.row.head):",
        "elif True:",
        ("tests/test_pretrained.py", "test_all_wrong_shapes_are_listed_at_once and torch"),
    ),
    Mutant(
        "core: missing parameters are not reported",
        "vit_core/loading.py",
        "report.missing_keys.append(shown)",
        "pass",
        ("tests/test_pretrained.py", "test_classifier_and_decoder_on_a_trunk and torch"),
    ),
    Mutant(
        "torch: DeiT's patches begin one token early",
        "vit_torch/modeling.py",
        "patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]",
        "patches = trunk.last_hidden_state[:, 1 : 1 + self.config.num_patches]",
        golden("torch", "sdpa-deit_mim"),
    ),
    Mutant(
        "torch: DeiT's answer is its CLS token's alone",
        "vit_torch/deit.py",
        '"logits": (ours + teachers) / 2',
        '"logits": ours',
        golden("torch", "eager-deit_teacher"),
    ),
    Mutant(
        "tf: both heads of DeiT read the CLS token",
        "vit_tf/deit.py",
        "self.distillation_classifier(x[:, 1])",
        "self.distillation_classifier(x[:, 0])",
        golden("tf", "eager-deit_teacher"),
    ),
    Mutant(
        "flax: the temperature of distillation does not scale the loss",
        "vit_flax/losses.py",
        "return tau * tau * (jnp.exp(teacher)",
        "return (jnp.exp(teacher)",
        ("tests/test_members.py", "test_the_losses_of_distillation and flax"),
    ),
    Mutant(
        "torch: the scale of the MLP's branch is left out",
        "vit_torch/encoder.py",
        "self.drop_path(scaled(self.dropout(linear(self.dense, hidden_states)), self.scale))",
        "self.drop_path(self.dropout(linear(self.dense, hidden_states)))",
        ("tests/test_conversion.py", "test_layer_scale_is_the_blocks_own and torch"),
    ),
    Mutant(
        "flax: the rows of tokens are resized with the patches'",
        "vit_flax/embeddings.py",
        "jnp.concatenate([table[:, :first], resized], axis=1)",
        "jnp.concatenate([table[:, :1], table[:, :1], resized], axis=1)",
        golden("flax", "sdpa-deit_48x48"),
    ),
    Mutant(
        "core: DeiT's CLS token is drawn",
        "vit_core/family/deit.py",
        '{"embeddings.cls_token": _ZEROS, POSITIONS: _ZEROS}',
        "{POSITIONS: _ZEROS}",
        ("tests/test_members.py", "test_it_starts_as_its_table_says and torch"),
    ),
    Mutant(
        "core: a crop keeps its size in a model of other pictures",
        "vit_core/pictures/processing.py",
        '"size": resized, "crop_size": size}',
        '"size": resized, "crop_size": stated.crop_size}',
        ("tests/test_image_processing.py", "test_pictures_of_another_size"),
    ),
    Mutant(
        "core: any member's class takes any member's checkpoint",
        "vit_core/pretrained.py",
        "if checkpoint.family is not cls.family() and",
        "if False and",
        ("tests/test_names.py", "test_another_members_class_refuses_a_checkpoint and torch"),
    ),
    Mutant(
        "conversion: order of queries and keys in timm's array",
        "vit_core/formats/timm.py",
        'module("blocks.{}.attn.qkv", QUERY, KEY, VALUE)',
        'module("blocks.{}.attn.qkv", KEY, QUERY, VALUE)',
        ("tests/test_conversion.py", "test_outputs_are_those_of_the_library_that_wrote_it and torch and timm"),
    ),
    Mutant(
        "conversion: one norm for the other in google's files",
        "vit_core/formats/google.py",
        '_norm(_BLOCK + "LayerNorm_0", LAYER + "layernorm_before")',
        '_norm(_BLOCK + "LayerNorm_0", LAYER + "layernorm_after")',
        ("tests/test_conversion.py", "test_outputs_are_those_of_the_library_that_wrote_it and torch"),
    ),
    Mutant(
        "torch: registers stand behind the patches",
        "vit_torch/embeddings.py",
        "[x[:, :first], self.register_tokens.expand(x.shape[0], -1, -1), x[:, first:]]",
        "[x, self.register_tokens.expand(x.shape[0], -1, -1)]",
        golden("torch", "sdpa-dinov2_reg"),
    ),
    Mutant(
        "tf: the gate and what it opens for change places",
        "vit_tf/dinov2.py",
        "tf.nn.silu(gate) * x",
        "tf.nn.silu(x) * gate",
        golden("tf", "eager-dinov2_swiglu"),
    ),
    Mutant(
        "flax: the second branch of a DINOv2 layer is not scaled",
        "vit_flax/dinov2.py",
        "self.layer_scale2(self.mlp(self.norm2(x)))",
        "self.mlp(self.norm2(x))",
        golden("flax", "eager-dinov2"),
    ),
    Mutant(
        "core: positions of DINOv2 with registers are resized without antialiasing",
        "vit_core/family/dinov2.py",
        '"position_kernel": "timm"',
        '"position_kernel": "hf"',
        golden("torch", "sdpa-dinov2_reg"),
    ),
    Mutant(
        "torch: the mean of DINOv2's head takes the registers in",
        "vit_torch/dinov2.py",
        "patches = x[:, self.config.num_prefix_tokens :].mean(1)",
        "patches = x[:, 1:].mean(1)",
        golden("torch", "sdpa-dinov2_reg_cls"),
    ),
    Mutant(
        "core: every layer of DINOv2 has another rate of drop path",
        "vit_core/family/dinov2.py",
        "return (self.drop_path_rate,) * self.num_hidden_layers",
        "return super().drop_path_rates",
        ("tests/test_features.py", "test_the_rates_of_the_layers"),
    ),
    Mutant(
        "torch: what drop path leaves is not scaled",
        "vit_torch/encoder.py",
        "nn.functional.dropout(x.new_ones(x.shape[0], 1, 1), self.rate)",
        "nn.functional.dropout(x.new_ones(x.shape[0], 1, 1), self.rate) * (1 - self.rate)",
        ("tests/test_features.py", "test_what_drop_path_expects and torch"),
    ),
    Mutant(
        "core: features compute every layer",
        "vit_core/calls.py",
        "depth=max(depths))",
        "depth=None)",
        ("tests/test_features.py", "test_later_layers_are_not_computed"),
    ),
    Mutant(
        "core: MAE keeps the patches of the most noise",
        "vit_torch/mae.py",
        "order = noise.argsort(dim=1, **stable)",
        "order = noise.argsort(dim=1, descending=True, **stable)",
        golden("torch", "eager-mae"),
    ),
    Mutant(
        "tf: MAE's targets have the biased variance",
        "vit_tf/losses.py",
        "/ (target.shape[-1] - 1)",
        "/ target.shape[-1]",
        ("tests/test_models.py", "test_golden_output and tf and mae_pretraining_norm"),
    ),
    Mutant(
        "core: rows and columns of relative positions change places",
        "vit_core/position.py",
        "rows[:, None] * across + columns[None, :]",
        "columns[None, :] * across + rows[:, None]",
        ("tests/test_reference.py", "torch-BeitModel"),
    ),
    Mutant(
        "torch: the second branch of BEiT's layers is not scaled",
        "vit_torch/beit.py",
        "self.drop_path(scaled(mlp, self.lambda_2))",
        "self.drop_path(mlp)",
        golden("torch", "eager-beit_cls"),
    ),
    Mutant(
        "core: BEiT's keys have a bias",
        "vit_core/family/beit.py",
        "qkv_bias, key_bias, apply_layernorm = True, False, False",
        "qkv_bias, key_bias, apply_layernorm = True, True, False",
        ("tests/test_flax.py", "test_parameters_have_the_tree and beit_cls"),
    ),
    Mutant(
        "core: BEiT's two scales have one name in files",
        "vit_core/family/beit.py",
        'LAYER + "lambda_2"',
        'LAYER + "lambda_1"',
        ("tests/test_flax.py", "test_parameters_have_the_tree and beit_cls"),
    ),
    Mutant(
        "core: the norm of BEiT's head is read as the trunk's",
        "vit_core/params.py",
        "renamed = [row for row in family.table if row.head and row.file]",
        "renamed = []",
        ("tests/test_flax.py", "test_parameters_have_the_tree and beit_mim"),
    ),
    Mutant(
        "tf: the mean of BEiT's pooler takes the CLS token in",
        "vit_tf/beit.py",
        "tf.reduce_mean(hidden_states[:, 1:], axis=1)",
        "tf.reduce_mean(hidden_states, axis=1)",
        golden("tf", "eager-beit_cls"),
    ),
    Mutant(
        "flax: the layers do without BEiT's shared bias",
        "vit_flax/beit.py",
        "(*positions[:2], shared(positions))",
        "(*positions[:2], bias)",
        golden("flax", "sdpa-beit_mim"),
    ),
    Mutant(
        "torch: visual tokens are told from states without a norm",
        "vit_torch/beit.py",
        "linear(self.lm_head, self.layernorm(patches))",
        "linear(self.lm_head, patches)",
        golden("torch", "sdpa-beit_mim"),
    ),
    Mutant(
        "torch: MAE's pictures are put together across",
        "vit_torch/mae.py",
        "x.permute(0, 5, 1, 3, 2, 4)",
        "x.permute(0, 5, 2, 4, 1, 3)",
        ("tests/test_mae.py", "test_patches_and_back and torch"),
    ),
    Mutant(
        "core: a pooler that the file has not is drawn",
        "vit_core/pretrained.py",
        'unpooled = not asked and not pooled and any(spec.part == "pooler" for spec in own)',
        "unpooled = False",
        ("tests/test_pretrained.py", "test_trunk_of_a_classifier and torch"),
    ),
    Mutant(
        "core: the weights of a resize are not rounded as Pillow does",
        "vit_core/pictures/graph.py",
        "o.where(weights < 0, -o.floor(0.5 - weights * one), o.floor(0.5 + weights * one))",
        "weights * one",
        ("tests/test_export_input.py", "test_a_graph_is_the_processor"),
    ),
    Mutant(
        "core: the bits of torchvision's weights are those of the rows in the crop",
        "vit_core/pictures/graph.py",
        "o.largest(every)",
        "o.largest(weights)",
        ("tests/test_export_input.py", "test_a_graph_is_the_processor"),
    ),
    Mutant(
        "core: float32 for sums of levels that it does not hold",
        "vit_core/pictures/torchvision.py",
        "(1 << 24) * 1.0005",
        "(1 << 27)",
        ("tests/test_image_processing.py", "test_torchvisions_resize_is_that_of_pytorch"),
    ),
    Mutant(
        "export: int8 that loses classes is kept",
        "vit_core/app/export/exporting.py",
        "same = self.agreement is None or self.agreement >= self.agreement_needed",
        "same = True",
        ("tests/test_export_int8.py", "test_what_loses_classes_is_not_kept"),
    ),
    Mutant(
        "export: one scale for a whole weight",
        "vit_torch/onnx_int8.py",
        '"per_channel": True',
        '"per_channel": False',
        ("tests/test_export_int8.py", "test_what_is_no_linear_layer_stays_in_float"),
    ),
    Mutant(
        "serve: a queue without an end",
        "vit_core/app/serve/batching.py",
        "if self.taken + number > self.places:",
        "if False:",
        ("tests/test_serve.py", "test_a_server_that_is_full_says_so"),
    ),
)


def mutated(mutant: Mutant, text: str) -> str:
    """The text with the fault. Raises SystemExit for a mutant whose text does not stand in it exactly once."""
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"The mutant {mutant.name!r} is stale: its text stands {text.count(mutant.old)} times in {mutant.file}, "
            f"expected once:\n{mutant.old}"
        )
    return text.replace(mutant.old, mutant.new)


def copied(folder: Path) -> Path:
    """A copy of the packages and tests, from which Python imports. Raises RuntimeError when it does not."""
    ignore = shutil.ignore_patterns("__pycache__", "oracle", ".hypothesis")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    names = ", ".join(PACKAGES)
    code = f"from importlib.util import find_spec\nfor n in '{names}'.split(', '): print(find_spec(n).origin)"
    found = subprocess.check_output([sys.executable, "-c", code], cwd=folder, env=environment(folder), text=True)
    if not all(line.startswith(f"{folder}{os.sep}") for line in found.split()):
        raise RuntimeError(f"Python imports {found.split()}, expected packages of {folder}: run it in this repository.")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Without compiled files: two mutants of one size within a second would share one."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return os.environ | quiet | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def pytest(folder: Path, file: str, keyword: str) -> tuple[str, str]:
    """(passed, failed, skipped or broken; the first test that failed, or the end of the output)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", file, "-k", keyword]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(folder), text=True, capture_output=True, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        return "failed", f"no end after {LIMIT} s"
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", done.stdout, re.MULTILINE)
    if done.returncode == 1 and failed:
        return "failed", failed[1]
    if done.returncode == 0:
        return ("passed" if re.search(r"\d+ passed", done.stdout) else "skipped"), ""
    return "broken", (done.stdout + done.stderr)[-2000:]


@contextmanager
def fault(mutant: Mutant, folder: Path) -> Iterator[None]:
    """The copy with the fault in it."""
    file = folder / mutant.file
    text = file.read_text()
    file.write_text(mutated(mutant, text))
    try:
        yield
    finally:
        file.write_text(text)


def check(mutant: Mutant | tuple[str, str], folder: Path, all_tests: bool) -> tuple[str, str]:
    """What pytest says of a mutant; of a pair, a file and a keyword, what it says without any fault."""
    if isinstance(mutant, tuple):
        return pytest(folder, *mutant)
    with fault(mutant, folder):
        return pytest(folder, *(WHOLE_SUITE if all_tests else mutant.tests))


def sound(chosen: list[Mutant]) -> list[tuple[str, str]]:
    """The tests of the mutants, file by file: they have to pass before a fault is put in."""
    files = sorted({mutant.tests[0] for mutant in chosen})
    return [(f, " or ".join(sorted({f"({m.tests[1]})" for m in chosen if m.tests[0] == f}))) for f in files]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Part of the names of the mutants to run.")] = None,
    all_tests: Annotated[bool, typer.Option("--all", help="Run the whole suite on each mutant.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Mutants at a time.")] = 2,
) -> None:
    """Put in each fault and run its tests; the exit code is 1 when one is not noticed."""
    chosen = [m for m in MUTANTS if not only or any(part in m.name for part in only)]
    if not chosen:
        raise SystemExit(
            f"No mutant is called {', '.join(only or [])}: there are\n" + "\n".join(m.name for m in MUTANTS)
        )
    for mutant in chosen:
        mutated(mutant, (ROOT / mutant.file).read_text())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=Console(stderr=True)) as progress:
        copies: SimpleQueue[Path] = SimpleQueue()
        for i in range(jobs):
            copies.put(copied(Path(folder).resolve() / str(i)))

        def run(work: list[Mutant] | list[tuple[str, str]], title: str) -> list[tuple[str, str]]:
            bar = progress.add_task(title, total=len(work))

            def one(item: Mutant | tuple[str, str]) -> tuple[str, str]:
                copy = copies.get()
                try:
                    return check(item, copy, all_tests)
                finally:
                    copies.put(copy)
                    progress.advance(bar)

            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(one, work))

        clean = [WHOLE_SUITE] if all_tests else sound(chosen)
        for (file, _), (state, said) in zip(clean, run(clean, "without faults"), strict=True):
            if state in ("failed", "broken"):
                raise SystemExit(f"{file} does not pass without any fault: {said}")
        found = run(chosen, "mutants")
    show(chosen, found)


WORDS = {
    "failed": "killed",
    "passed": "[bold red]survived[/]",
    "skipped": "not run: skipped",
    "broken": "[red]broken[/]",
}


def show(chosen: list[Mutant], found: list[tuple[str, str]]) -> None:
    """Print the table. Raises SystemExit when a mutant survived, or broke the tests before they ran."""
    table = Table("Mutant", "", Column("Noticed by", overflow="fold"), box=None)
    for mutant, (state, said) in zip(chosen, found, strict=True):
        table.add_row(mutant.name, WORDS[state], escape(said))
    Console().print(table)
    states = [state for state, _ in found]
    print(f"{states.count('failed')} of {len(chosen)} killed.")
    if {"passed", "broken"} & set(states):
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
