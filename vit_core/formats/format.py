"""What a format is: a table of rules, what it can't express, and what the files beside its weights say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from vit_core.config import ViTConfig
from vit_core.family import (
    ATTENTION_SCALE,
    MLP_SCALE,
    PARTS,
    VIT,
    Family,
    family_of,
    has_head,
    parted,
)
from vit_core.files.tensor import Tensor
from vit_core.formats.huggingface import Container
from vit_core.formats.prefixes import Under, find_prefix
from vit_core.formats.rules import Heads, Rule

Tensors = Mapping[str, Tensor]


@dataclass
class Side:
    """What the files beside the weights say: fields of a ViTConfig, of a preprocessor_config.json, and remarks."""

    config: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    family: Family | None = None  # the member that they name


@dataclass(frozen=True)
class Format:
    """One format of checkpoints: names and layouts of its arrays, and the functions that a table can't state."""

    name: str
    title: str
    container: Container  # that is written; `container.stem` and `.suffix` make the file's name
    rules: tuple[Rule, ...]
    families: tuple[Family, ...] = (VIT,)  # the members that it has models of
    written: bool = True  # whether it can be written, too
    pools_mean: bool = False  # whether it has heads on the mean of the patches
    hidden_act: str = "gelu"
    fixed_act: bool = True  # whether its code computes `hidden_act` whatever the configuration says
    layer_norm_eps: float | None = 1e-6  # None: the default of the member
    states_eps: bool = False  # whether its configuration says another eps
    states_resample: bool = False  # whether its documents name the filter that pictures are resized with
    states_crop: Callable[[dict[str, Any]], bool] = lambda processor: not processor.get("do_center_crop")
    """Whether those documents state what a preprocessor crops."""
    states_labels: bool = False  # whether its documents hold the names of the labels
    has_qkv_bias: bool = True  # whether its models always have biases of queries, keys and values
    refused: tuple[tuple[str, str], ...] = ()  # (pattern of a name, why no ViT of this package has it)
    left_out: tuple[tuple[str, str], ...] = ()  # (pattern of a name, what it is): no part of the model
    head: str = "head"  # the place of the head: what its names begin with
    absent: Mapping[str, str] = field(default_factory=dict)  # canonical parts it can't hold, and why
    speaks_of: Callable[[Tensors], Family | None] = lambda tensors: None  # the member that a form of an array is of
    prepare: Callable[[Tensors], Tensors] = lambda tensors: tensors  # other spellings to those of the rules
    finish: Callable[[dict[str, Tensor], ViTConfig], dict[str, Tensor]] = lambda tensors, config: tensors  # for writing
    files: Callable[[dict[str, Tensor]], dict[str, dict[str, Tensor]]] | None = None  # of several weights files
    beside: tuple[str, ...] = ()  # files of a folder of weights that not every model has: none may outlive its model
    read_side: Callable[[Path], Side] = lambda path: Side()
    write_side: Callable[[ViTConfig, str, dict[str, Any] | None], dict[str, Any]] = lambda config, arch, processor: {}
    """JSON documents by file name, of a configuration, the model's architecture and its preprocessor."""

    def match(self, tensors: Tensors) -> tuple[dict[str, tuple[Rule, str]], dict[str, str]]:
        """The rule and the layer of every name that has one, and what is left out, with the reason."""
        found: dict[str, tuple[Rule, str]] = {}
        left: dict[str, str] = {}
        for name in tensors:
            if rule := self.rule_of(name):
                found[name] = rule
            elif reason := first_match(self.left_out, name):
                left[name] = reason
        return found, left

    @cached_property
    def rule_of(self) -> Callable[[str], tuple[Rule, str] | None]:
        """The rule and the layer of a name; None where it has none. Looked up once: prefixes and members are tried."""
        rules = self.rules
        return lru_cache(1 << 12)(
            lambda name: next(((rule, layer) for rule in rules if (layer := rule.layer_of(name)) is not None), None)
        )

    @property
    def has_head_axis(self) -> bool:
        """Whether its arrays have an axis for the heads, which says how many there are."""
        return any(rule.steps and isinstance(rule.steps[-1], Heads) for rule in self.rules)

    def in_head(self, name: str) -> bool:
        """Whether a name is one in the place of the head."""
        return name.startswith((f"{self.head}.", f"{self.head}/"))

    def find(self, tensors: dict[str, Tensor], prefix: str | None = None) -> Under:
        """The tensors that stand under this format's names, in the spelling of its rules, and those that do not."""
        known = {name: tensor for name, tensor in tensors.items() if not first_match(self.left_out, name)}
        once = [name for rule in self.rules for name in (rule.native, *rule.also) if "{" not in name]
        found = find_prefix(known, once, self.prepare, lambda inside: len(self.match(inside)[0]), prefix)
        return replace(found, outside=found.outside | {n: t for n, t in tensors.items() if n not in known})

    def check_member(self, config: ViTConfig, architecture: str) -> None:
        """Raise ValueError for a model of a member, or with a head, that this format has none of."""
        family = family_of(config)
        if family not in self.families and not (VIT in self.families and family.model_type in ViTConfig.reads):
            titles = ", ".join(each.title for each in self.families)
            raise ValueError(f"{self.title} has no {family.title}, but {titles}: choose another format.")
        if config.pool == "mean" and not self.pools_mean and has_head(PARTS[architecture]):
            raise ValueError(f"{self.title} has no place for a head on the mean of the patches: pass head='drop'.")

    def to_native(self, tensors: Tensors, config: ViTConfig) -> dict[str, Tensor]:
        """Canonical tensors as a file of this format has them. Raises ValueError for what has no place in it."""
        layers = {layer for name in tensors if (layer := parted(name)[1])}
        native: dict[str, Tensor] = {}
        placed: set[str] = set()
        for rule in self.rules:
            for layer in sorted(layers, key=int) if "{}" in rule.canonical[0] else [""]:
                tensor = rule.to_native(tensors, layer, config.num_attention_heads)
                if tensor is not None:
                    native[rule.name(layer)] = tensor
                    placed.update(name.replace("{}", layer) for name in rule.canonical)
        lost = [name for name in tensors if name not in placed or name.startswith(tuple(self.absent))]
        if lost:
            absent = {ATTENTION_SCALE: FOLD, MLP_SCALE: FOLD, **self.absent}
            templates = {parted(name)[0] for name in lost}
            reasons = sorted({why for name in templates for part, why in absent.items() if name.startswith(part)})
            raise ValueError(
                f"{self.title} has no place for {', '.join(lost[:8])}: "
                + ("; ".join(reasons) or "choose another format")
                + "."
            )
        return self.finish(native, config)


FOLD = "pass fold_layer_scale=True to multiply its layer scales into the layers before them, which rounds"


@lru_cache(1 << 12)
def first_match(patterns: tuple[tuple[str, str], ...], name: str) -> str | None:
    """The reason that stands beside the first pattern that a name matches."""
    return next((reason for pattern, reason in patterns if re.search(pattern, name)), None)
