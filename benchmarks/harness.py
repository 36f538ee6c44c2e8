"""Timing candidates against each other on a noisy machine: taken in turn, compared round by round, quoted as ratios.

Within a round every candidate runs once, in an order that turns round each time, so that what slows the machine down
slows all of them. A ratio is that of the medians; its spread is the 10th to 90th percentile of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vit_core.calls import num_kept
from vit_core.config import ViTConfig, pair
from vit_core.family import ViTMAEConfig

OURS, THEIRS, HUB, TIMM = "vit_trio", "transformers", "keras-hub", "timm"
Seconds = dict[str, np.ndarray]
_declared: list[Any] = []  # operators live as long as what declares them


def seconds_of(call: Callable[[], Any]) -> float:
    """The wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    min_rounds: int = 10,
    min_seconds: float = 10.0,
    warm_up: int = 2,
    measure: Callable[[Callable[[], Any]], Any] = seconds_of,
) -> Seconds:
    """What `measure` gives for each candidate in each round, (rounds,) or (rounds, quantities)."""
    names = list(candidates)
    measured: dict[str, list[Any]] = {name: [] for name in names}
    start = time.perf_counter()
    rounds = 0
    while rounds < warm_up + min_rounds or time.perf_counter() - start < min_seconds:
        for name in names if rounds % 2 else reversed(names):
            measured[name].append(measure(candidates[name]))
        rounds += 1
        if rounds == warm_up:
            start = time.perf_counter()
    return {name: np.array(values[warm_up:]) for name, values in measured.items()}


def ratio(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Ours as a fraction of theirs: below 1, ours takes less."""
    low, high = np.percentile(ours / theirs, [10, 90])
    values = {"ratio": np.median(ours) / np.median(theirs), "p10": low, "p90": high}
    return {**{name: round(float(value), 3) for name, value in values.items()}, "rounds": len(ours)}


def forward_flops(config: ViTConfig, batch: int, last_tokens: int = 1) -> int:
    """Of the forward pass of a classifier, from its shapes; a multiplication and an addition count as two.

    `last_tokens`: how many tokens the last layer computes after its attention; in this package the CLS token alone.
    """
    tokens, layer = config.num_patches + 1, partial(_of_layer, config)
    layers = (config.num_hidden_layers - 1) * layer(tokens, tokens) + layer(tokens, last_tokens)
    return 2 * batch * (_of_patches(config, config.hidden_size) + layers + config.hidden_size * config.num_labels)


def mae_flops(config: ViTMAEConfig, batch: int) -> int:
    """Of the forward pass of an MAE, as `forward_flops`."""
    seen, tokens, decoder = num_kept(config.num_patches, config) + 1, config.num_patches + 1, config.decoder
    encoder = config.num_hidden_layers * _of_layer(config, seen, seen)
    others = decoder.num_hidden_layers * _of_layer(decoder, tokens, tokens)
    between = seen * config.hidden_size * decoder.hidden_size
    ends = _of_patches(config, config.hidden_size) + _of_patches(config, decoder.hidden_size)
    return 2 * batch * (ends + encoder + between + others)


def _of_layer(config: ViTConfig, tokens: int, computed: int) -> int:
    """Multiplications of a layer that computes so many of its tokens after its attention."""
    width = config.hidden_size
    attention = tokens * (3 * width * width + 2 * tokens * width)
    return attention + computed * (width * width + 2 * width * config.intermediate_size)


def _of_patches(config: ViTConfig, width: int) -> int:
    """Multiplications of a layer from, or to, the pixels of all patches."""
    return config.num_patches * math.prod(pair(config.patch_size)) * config.num_channels * width


@cache
def find_families() -> None:
    """Let timm and torchvision be imported, in the environment of `make oracle`, where they stand beside the others.

    Before transformers is imported, if that is to prepare pictures by torchvision; else after.
    """
    import torch

    sys.path.append(str(Path(sys.prefix) / "families"))
    operators = torch.library.Library("torchvision", "DEF")  # which neither a ViT nor a resize calls
    pools = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for name in ("nms", "qnms", *pools, *(f"_{pool}_backward" for pool in pools)):
        operators.define(f"{name}(Tensor a) -> Tensor")
    _declared.append(operators)


def timm_of(folder: Path, **options: Any) -> Any:
    """timm's model of a folder; see `find_families`, which this calls."""
    find_families()
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options)


def arguments(description: str | None, **defaults: float) -> argparse.Namespace:
    """The command line that every benchmark has: --json, --rounds and --seconds a case."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=int(defaults.get("rounds", 10)), help="at least so many")
    parser.add_argument("--seconds", type=float, default=defaults.get("seconds", 10.0), help="at least so long")
    return parser.parse_args()


def report(title: str, results: Mapping[str, Mapping[str, Any]], as_json: bool) -> None:
    """Print results, {case: {column: value}}, as a table or as JSON."""
    if as_json:
        print(json.dumps(results, indent=2))
        return
    columns = list(dict.fromkeys(column for row in results.values() for column in row))
    table = Table("case", *columns, title=title)
    for case, row in results.items():
        table.add_row(case, *(str(row.get(column, "")) for column in columns))
    Console().print(table)
