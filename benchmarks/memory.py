"""Peak memory of a fresh process that loads a model, converts, or trains, beyond what it held after its imports.

Loading and converting are held against the size of the checkpoint. A training step, of one picture, is held against the
arithmetic of AdamW, 16 bytes a parameter: weights, gradients and two moments.

python benchmarks/memory.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from convert import MAKE
from fresh_process import python
from harness import arguments, interleaved, ratio, report

PEAK = """
import sys
def peak():
    with open("/proc/self/status") as status:
        return int(status.read().split("VmHWM:")[1].split()[0]) * 1024
"""
LOADED = """
import {module} as package
package.ViTForImageClassification({config}, **{options})
before = peak()
model = package.ViTForImageClassification.from_pretrained(sys.argv[1], **{options})
print(peak() - before)
"""
SMALL = (
    "package.ViTConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8, image_size=16)"
)
CONVERTED = """
from conversion import convert
before = peak()
convert(sys.argv[1], sys.argv[1] + "/target", to="flax", max_shard_size="2GB", overwrite=True)
print(peak() - before)
"""
TORCH_STEP = """
import torch
from vit_torch import ViTConfig, ViTForImageClassification
model = ViTForImageClassification(ViTConfig.variant("L/16", num_labels=1000), seed=0)
before = peak() - 4 * model.num_parameters()
optimizer = torch.optim.AdamW(model.train().parameters())
for _ in range(2):
    model(pixel_values=torch.zeros(1, 3, 224, 224), labels=torch.zeros(1, dtype=torch.long)).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print((peak() - before) / (16 * model.num_parameters()))
"""
JAX_STEP = """
import jax, jax.numpy as jnp, optax
from vit_flax import ViTConfig, ViTForImageClassification
model = ViTForImageClassification(ViTConfig.variant("L/16", num_labels=1000), seed=0)
count, params = model.num_parameters(), model.params
before = peak() - 4 * count
model.params = model.params_shape_tree
optimizer = optax.adamw(1e-3)
state = jax.jit(optimizer.init)(params)
x, labels = jnp.zeros((1, 3, 224, 224)), jnp.zeros(1, int)

def step(params, state):
    loss = lambda params: model.module.apply({"params": params}, x, labels=labels, train=True).loss
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

step = jax.jit(step, donate_argnums=(0, 1))
for _ in range(2):
    params, state = jax.block_until_ready(step(params, state))
print((peak() - before) / (16 * count))
"""
LOADING = {"torch": ("vit_torch", {}), "tf": ("vit_tf", {}), "flax": ("vit_flax", {})}
LOADING["flax, scan_layers"] = ("vit_flax", {"scan_layers": True})


def printed(code: str, folder: str = "") -> float:
    """The number that a fresh process prints."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(python(PEAK + code, folder), env=environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def of_size(variant: str, rounds: int) -> dict[str, dict[str, float]]:
    """Peaks of loading and of converting, as multiples of the checkpoint's size."""
    with TemporaryDirectory() as folder:
        subprocess.run([*python(MAKE, f"{folder}/source"), variant], check=True)
        size = sum(file.stat().st_size for file in Path(folder, "source").glob("*.safetensors"))
        programs = {
            f"{variant} in {name}": LOADED.format(module=module, options=options, config=SMALL)
            for name, (module, options) in LOADING.items()
        }
        programs[f"{variant} from torch to flax, in shards"] = CONVERTED
        found = interleaved(
            {name: partial(printed, code, f"{folder}/source") for name, code in programs.items()},
            min_rounds=rounds, min_seconds=0, warm_up=0, measure=lambda call: call(),
        )  # fmt: skip
    return {
        f"memory, ViT-{name} (size of the file)": ratio(peaks, np.full(rounds, size)) for name, peaks in found.items()
    }


def main() -> None:
    given = arguments(__doc__, rounds=3, seconds=0.0)
    results = {}
    for variant in ("L/16", "H/14"):
        results |= of_size(variant, given.rounds)
    for name, code in (("torch", TORCH_STEP), ("flax", JAX_STEP)):
        peaks = np.array([printed(code) for _ in range(given.rounds)])
        results[f"memory, ViT-L/16, training step in {name} (16 bytes a parameter)"] = ratio(peaks, np.ones(len(peaks)))
    report("Peak memory as a multiple of what stands in brackets", results, given.json)


if __name__ == "__main__":
    main()
