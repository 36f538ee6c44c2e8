"""DINOv2-B/14 on two threads in PyTorch, float32: this package against transformers and timm, weights equal.

The whole of the last hidden state at 224 and at 518 pixels, the CLS token's features alone, and pictures through the
pipeline of features, from a PIL picture of 640 x 480 to an array.

python benchmarks/dinov2.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from harness import OURS, THEIRS, TIMM, arguments, interleaved, ratio, report, timm_of
from PIL import Image

import vit_torch
from conversion import convert

CONFIG = vit_torch.Dinov2Config(image_size=518)
NOT_OURS = {THEIRS: "", TIMM: " (timm)"}
PICTURES = 8


def models(folder: Path) -> dict[str, Any]:
    """The three models by name, as each is by default."""
    ours = vit_torch.Dinov2Model(CONFIG, seed=0).eval()
    ours.save_pretrained(folder)
    vit_torch.BitImageProcessor(size={"shortest_edge": 256}).save_pretrained(folder)
    theirs = transformers.Dinov2Model.from_pretrained(folder).eval()
    convert(folder, folder / "timm", to="timm")
    timm = timm_of(folder / "timm", dynamic_img_size=True).eval()
    return {OURS: ours, THEIRS: theirs, TIMM: timm}


@torch.inference_mode()
def states(name: str, model: Any, x: torch.Tensor) -> torch.Tensor:
    """The last hidden state (B, S, D)."""
    return model.forward_features(x) if name == TIMM else model(x).last_hidden_state


def against_others(case: str, calls: dict[str, Callable[[], Any]], rounds: int, seconds: float) -> dict[str, Any]:
    """The ratios of ours to each of the others, by case."""
    times = interleaved(calls, min_rounds=rounds, min_seconds=seconds)
    return {case + suffix: ratio(times[OURS], times[name]) for name, suffix in NOT_OURS.items() if name in times}


@torch.inference_mode()
def forward(found: dict[str, Any], size: int, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Every token, and the CLS token alone, of which the others compute all that they are asked for."""
    x = torch.randn((batch, 3, size, size), generator=torch.Generator().manual_seed(0))
    outputs = {name: states(name, model, x) for name, model in found.items()}
    torch.testing.assert_close(outputs[OURS], outputs[THEIRS], rtol=1e-3, atol=1e-4)
    if size == CONFIG.image_size:  # timm resizes positions by another kernel
        torch.testing.assert_close(outputs[OURS], outputs[TIMM], rtol=1e-3, atol=1e-4)
    calls = {name: partial(states, name, model, x) for name, model in found.items()}
    title = f"DINOv2-B/14 at {size}, batch {batch}"
    rows = against_others(title, calls, rounds, seconds)
    cls = {OURS: partial(found[OURS].features, x), THEIRS: lambda: found[THEIRS](x).pooler_output}
    return rows | against_others(f"{title}, CLS token", cls, rounds, seconds)


def pipelines(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Pictures to vectors, in batches of 8, as each library's pipeline does by itself."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)) for _ in range(PICTURES)]
    task, given = "image-feature-extraction", {"pool": True, "batch_size": PICTURES}
    ours = vit_torch.pipeline(task, model=str(folder))
    theirs = transformers.pipeline(task, model=str(folder), framework="pt")
    calls = {OURS: partial(ours, pictures, **given), THEIRS: partial(theirs, pictures, **given)}
    found = [np.asarray(call()).reshape(PICTURES, -1) for call in calls.values()]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-3)
    return against_others("DINOv2-B/14, pipeline of features, 8 pictures", calls, rounds, seconds)


def main() -> None:
    given = arguments(__doc__, rounds=10, seconds=10.0)
    torch.set_num_threads(2)
    transformers.logging.set_verbosity_error()
    with TemporaryDirectory() as name:
        folder = Path(name)
        found, results = models(folder), {}
        for size, batch in ((224, 1), (224, 8), (518, 1)):
            results.update(forward(found, size, batch, given.rounds, given.seconds))
        results.update(pipelines(folder, given.rounds, given.seconds))
    report("Time of this package as a fraction of the others'", results, given.json)


if __name__ == "__main__":
    main()
