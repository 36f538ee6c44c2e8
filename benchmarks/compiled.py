"""ViT-B/16 at 224 pixels in float32 on two threads, compiled by PyTorch: against transformers and timm, weights equal.

Each candidate has a process of its own; they are called in turn. All are compiled for each batch size alike. What a
compilation takes is the time of a first call less that of the next, without inductor's cache of earlier ones.

python benchmarks/compiled.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from apart import THREADS, Call, Candidates, apart
from harness import OURS, THEIRS, TIMM, arguments, interleaved, ratio, report, timm_of

BATCHES = (1, 8)
COMPILED, FROZEN, AOTI = f"{OURS}, compiled", f"{OURS}, compiled and frozen", f"{OURS}, AOTInductor"
ROWS = {
    "inference, float32": (OURS, (f"{THEIRS}, compiled", f"{TIMM}, compiled")),
    "inference, compiled": (COMPILED, (f"{THEIRS}, compiled", f"{TIMM}, compiled", THEIRS, OURS)),
    "inference, compiled and frozen": (FROZEN, (f"{THEIRS}, compiled", OURS)),
    "inference, AOTInductor": (AOTI, (f"{THEIRS}, compiled", OURS)),
}  # ours, and what it is measured against


def ours(folder: Path) -> Any:
    from vit_torch import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(folder)


def theirs(folder: Path) -> Any:
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(folder)


def timms(folder: Path) -> Any:
    return timm_of(folder / "timm")


def logits_of(opened: Callable[[Path], Any], folder: Path, compiled: bool = False, frozen: bool = False) -> Call:
    """The logits of a model, of pixels."""
    import torch
    import torch._inductor.config

    torch.set_num_threads(THREADS)
    model = opened(folder).eval()
    torch._inductor.config.freezing = frozen
    if compiled:
        model = torch.compile(model, dynamic=False)

    @torch.inference_mode(not frozen)  # freezing looks for no_grad
    @torch.no_grad()
    def call(x: np.ndarray) -> Any:
        found = model(torch.from_numpy(x))
        return getattr(found, "logits", found)

    return call


def packaged(folder: Path) -> Call:
    """The file of `vit export --to pt2 --aoti`."""
    import torch

    torch.set_num_threads(THREADS)
    program = torch._inductor.aoti_load_package(str(folder / "aoti.pt2"))
    return lambda x: program(torch.from_numpy(x))


CANDIDATES: Candidates = {
    OURS: partial(logits_of, ours),
    THEIRS: partial(logits_of, theirs),
    TIMM: partial(logits_of, timms),
    COMPILED: partial(logits_of, ours, compiled=True),
    FROZEN: partial(logits_of, ours, compiled=True, frozen=True),
    AOTI: packaged,
    f"{THEIRS}, compiled": partial(logits_of, theirs, compiled=True),
    f"{TIMM}, compiled": partial(logits_of, timms, compiled=True),
}


def write(folder: Path) -> None:
    """The checkpoint, in transformers' format and in timm's, and the program of AOTInductor."""
    from conversion import convert
    from vit_core import export
    from vit_torch import ViTConfig, ViTForImageClassification, ViTImageProcessor

    ViTForImageClassification(ViTConfig.variant("B/16", num_labels=1000), seed=0).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    convert(folder, folder / "timm", to="timm")
    export(folder, folder / "aoti.pt2", "pt2", aoti=True)


def main() -> None:
    given = arguments(__doc__, rounds=15, seconds=20.0)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    results, compiling = {}, {name: [] for name in CANDIDATES if name.endswith("compiled")}
    with TemporaryDirectory() as folder, apart(write, CANDIDATES, Path(folder)) as seconds:
        for batch in BATCHES:
            for name, found in compiling.items():
                found.append(seconds[name](batch) - seconds[name](batch))
            calls = {name: partial(ask, batch) for name, ask in seconds.items()}
            times = interleaved(calls, min_rounds=given.rounds, min_seconds=given.seconds, measure=lambda call: call())
            for case, (one, others) in ROWS.items():
                for other in others:
                    results[f"{case}, batch {batch} ({other})"] = ratio(times[one], times[other])
    for name in list(compiling)[1:]:
        results[f"compilation ({name})"] = ratio(*(np.array(compiling[each]) for each in (COMPILED, name)))
    report("Time of this package as a fraction of", results, given.json)


if __name__ == "__main__":
    main()
