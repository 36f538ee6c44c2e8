"""The arithmetic of examples/memory.py against what PyTorch keeps for a backward pass."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import pytest
import typer
from trainings import need

from vit_core.config import ViTConfig

MEASURED = 0.02  # relative: 0.0002 in float32
KINDS = ("bfloat16", "checkpointing")


@pytest.fixture
def memory() -> Any:
    need("torch")
    return import_module("memory")


def saved(config: ViTConfig, pictures: int, bfloat16: bool = False, checkpointing: bool = False) -> int:
    """Bytes of all tensors but parameters that are kept for the backward pass."""
    import torch

    torch.set_num_threads(1)
    model = import_module("vit_torch").ViTForImageClassification(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    pixels = torch.rand(pictures, 3, config.image_size, config.image_size)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        loss = model(pixels, labels=torch.zeros(pictures, dtype=torch.long)).loss
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


def test_activations(memory: Any) -> None:
    config = ViTConfig.variant("Ti/16")
    found = {each: saved(config, 2, **{each: True}) - saved(config, 1, **{each: True}) for each in KINDS}
    plain = saved(config, 2) - saved(config, 1)
    assert memory.activations(config, False) == pytest.approx(plain, rel=MEASURED)
    assert found["bfloat16"] / plain == pytest.approx(memory.HALF, rel=MEASURED)
    whole, shorter = (memory.activations(config.copy(num_hidden_layers=depth), False) for depth in (3, 2))
    again = whole - shorter  # of one layer, computed again while going back
    assert memory.activations(config, True) == pytest.approx(found["checkpointing"] + again, rel=MEASURED)


def test_the_estimate(memory: Any, capsys: Any) -> None:
    memory.main(["B/16"], devices=8, memory=16, ema=True, as_json=True)
    (found,) = json.loads(capsys.readouterr().out)
    assert found["parameters"] == 86_567_656
    assert found["state"] == 5 * 4 * found["parameters"]
    layer = 12 * 768**2 + 13 * 768
    assert found["state_fsdp"] == found["state"] // 8 + 2 * 4 * layer
    room = 0.9 * 16 * 2**30
    assert found["batch"] == int((room - found["state"]) / found["picture"])
    assert found["batch"] < found["batch_fsdp"] < found["batch_fsdp_checkpointed"]
    memory.main(["Ti/16", "H/14"], image_size=384)
    printed = capsys.readouterr().out
    assert "Ti/16" in printed and "384 x 384" in printed
    with pytest.raises(typer.BadParameter, match="Unknown variant 'X/16'"):
        memory.main(["X/16"])
