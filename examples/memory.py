"""How much memory training takes, and how many pictures a device holds: arithmetic from the table of parameters.

python examples/memory.py B/16 L/16 H/14 --memory 80 --devices 8

State: weights, gradients, AdamW's two moments and, if asked for, an average, 4 bytes each. Activations: what PyTorch
keeps of a picture for the backward pass, with fused attention. Not counted: the framework itself, workspaces, and DDP's
buckets, which are another copy of the gradients.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from vit_core.config import ViTConfig, pair
from vit_core.family import LAYER, PARTS
from vit_core.params import count, specs

GIB = 2**30
RESERVE = 0.9  # of a device's memory, for all that is not counted
HALF = 0.63  # of the activations in float32, measured in bfloat16 and float16: the residual stream stays in float32


@dataclass(frozen=True)
class Estimate:
    """Bytes, per device or per picture, and the pictures that fit a device at once."""

    model: str
    parameters: int
    state: int
    state_fsdp: int  # its share, and two whole layers, which is what a device has gathered at once
    picture: int
    picture_checkpointed: int
    batch: int
    batch_fsdp: int
    batch_fsdp_checkpointed: int


def activations(config: ViTConfig, checkpointing: bool) -> int:
    """Bytes that the backward pass needs of a picture in float32.

    In each layer and for each token: the inputs of the first LayerNorm and of the projections, queries, keys and
    values, the context (6 D), 2 numbers of the LayerNorm and one for every head; then, in the last layer for the CLS
    token alone, the inputs of the second LayerNorm and of the MLP (2 D), what the GELU takes and gives (2 F), 2
    numbers. With checkpointing the input of each layer (D), and one layer's in full, while it is computed again.
    """
    tokens, width, layers = config.num_patches + config.num_prefix_tokens, config.hidden_size, config.num_hidden_layers
    attention, rest = 6 * width + 2 + config.num_attention_heads, 2 * width + 2 * config.intermediate_size + 2
    ends = config.num_channels * pair(config.image_size)[0] * pair(config.image_size)[1] + width
    if checkpointing:
        return 4 * (ends + tokens * (layers * width + attention + rest))
    return 4 * (ends + tokens * (layers * attention + (layers - 1) * rest) + rest)


def estimate(name: str, config: ViTConfig, devices: int, memory: float, ema: bool, half: bool) -> Estimate:
    """What training a classifier takes on `devices` devices of `memory` GiB each."""
    parts = PARTS["ViTForImageClassification"]
    parameters = count(config, parts)
    layer = sum(s.size for s in specs(config, parts).values() if s.name.startswith(LAYER.format(0)))
    state = 4 * parameters * (5 if ema else 4)
    state_fsdp = state // devices + 2 * 4 * layer
    picture, checkpointed = (round(activations(config, each) * (HALF if half else 1)) for each in (False, True))
    room = RESERVE * memory * GIB
    batch, fsdp, least = (
        max(int((room - held) // each), 0)
        for held, each in ((state, picture), (state_fsdp, picture), (state_fsdp, checkpointed))
    )
    return Estimate(name, parameters, state, state_fsdp, picture, checkpointed, batch, fsdp, least)


def main(
    models: Annotated[list[str], typer.Argument(metavar="VARIANT...", help="Such as B/16, L/16, H/14.")],
    devices: Annotated[int, typer.Option(min=1)] = 8,
    memory: Annotated[float, typer.Option(min=1e-3, help="GiB of each device.")] = 80,
    image_size: int = 224,
    ema: bool = False,
    precision: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what training ViTs takes: bytes of state on a device, bytes of a picture, pictures on a device."""
    if precision not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--precision must be float32, bfloat16 or float16, got {precision}.")
    try:
        configs = {name: ViTConfig.variant(name, image_size=image_size, num_labels=1000) for name in models}
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    found = [estimate(name, c, devices, memory, ema, precision != "float32") for name, c in configs.items()]
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    table = Table(title=f"{devices} devices of {memory:g} GiB, {image_size} x {image_size} pixels, {precision}")
    heads = (
        "model",
        "parameters",
        "state",
        "state, FSDP",
        "a picture",
        "checkpointed",
        "batch",
        "FSDP",
        "and checkpointed",
    )
    for head in heads:
        table.add_column(head, justify="left" if head == "model" else "right")
    for e in found:
        sizes = [f"{size / GIB:.2f} GiB" for size in (e.state, e.state_fsdp, e.picture, e.picture_checkpointed)]
        batches = [str(b) for b in (e.batch, e.batch_fsdp, e.batch_fsdp_checkpointed)]
        table.add_row(e.model, f"{e.parameters:,}", *sizes, *batches)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
