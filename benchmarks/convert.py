"""Converting a ViT-L/16 of 1.2 GB between the Hugging Face formats, in a fresh process, against copying the file.

Wall time of the whole process against `cp` of the same file, taken in turn, and the peak resident set. One row compares
with what transformers offers: a PyTorch file loaded into its Flax class and saved, for a ViT-B/16.

python benchmarks/convert.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from fresh_process import python, time_and_peak
from harness import OURS, THEIRS, arguments, interleaved, ratio, report

MAKE = """
import sys
from pathlib import Path
import numpy as np
from vit_core import ViTConfig
from vit_core.formats.huggingface import write_checkpoint
from vit_core.params import specs
from vit_core.files.tensor import Tensor
folder = Path(sys.argv[1])
folder.mkdir(parents=True)
config = ViTConfig.variant(sys.argv[2], num_labels=1000, architectures=["ViTForImageClassification"])
config.save_pretrained(folder)
draw = np.random.default_rng(0).standard_normal
table = specs(config, {"classifier"})
tensors = {n: Tensor(s.shape, np.dtype("f4"), lambda s=s: draw(s.shape, np.float32)) for n, s in table.items()}
write_checkpoint(folder, tensors, table, "ViTForImageClassification")
"""
CONVERT = """
import sys
from conversion import convert
sync = len(sys.argv) == 4
convert(sys.argv[1] + "/source", sys.argv[1] + "/target", to=sys.argv[2], container=sys.argv[3], sync=sync)
"""
TRANSFORMERS = """
import sys
from transformers import FlaxViTForImageClassification
model = FlaxViTForImageClassification.from_pretrained(sys.argv[1] + "/source", from_pt=True)
model.save_pretrained(sys.argv[1] + "/target")
"""
WAYS = [
    ("torch", "safetensors"),
    ("torch", "bin"),
    ("tf", "safetensors"),
    ("tf", "h5"),
    ("flax", "safetensors"),
    ("flax", "msgpack"),
    ("torch", "safetensors", "--no-sync"),
]
Measured = tuple[float, float]


def fresh(command: list[str], folder: Path) -> Measured:
    """Seconds and MiB of a process that finds none of the targets, and a disk that has nothing left to write."""
    for name in ("target", "copy"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "copy").mkdir()
    os.sync()
    return time_and_peak(command, {"USE_TF": "0"})


def beside_cp(name: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Times as multiples of those of `cp`, and peaks as fractions of the size of the file."""
    folder, file = Path(name), Path(name, "source", "model.safetensors")
    time_and_peak([*python(MAKE, str(file.parent)), "L/16"], {})
    commands = {"cp": ["cp", str(file), str(folder / "copy")]}
    commands |= {" ".join(way): [*python(CONVERT, name), *way] for way in WAYS}
    measured = interleaved(
        {way: partial(fresh, command, folder) for way, command in commands.items()},
        min_rounds=rounds, min_seconds=seconds, warm_up=1, measure=lambda call: call(),
    )  # fmt: skip
    times = {way: ratio(values[:, 0], measured["cp"][:, 0]) for way, values in measured.items() if way != "cp"}
    size = np.full(len(measured["cp"]), file.stat().st_size / 2**20)
    peaks = {way: ratio(values[:, 1], size) for way, values in measured.items() if way != "cp"}
    return {
        **{f"ViT-L/16 to {way}, wall time (cp)": row for way, row in times.items()},
        **{f"ViT-L/16 to {way}, peak memory (size of the file)": row for way, row in peaks.items()},
    }


def beside_transformers(name: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """A PyTorch file of a ViT-B/16 to Flax's msgpack, against loading it into transformers' Flax class and saving."""
    time_and_peak([*python(MAKE, f"{name}/source"), "B/16"], {})
    commands = {OURS: [*python(CONVERT, name), "flax", "msgpack"], THEIRS: python(TRANSFORMERS, name)}
    measured = interleaved(
        {each: partial(fresh, command, Path(name)) for each, command in commands.items()},
        min_rounds=rounds, min_seconds=seconds, warm_up=1, measure=lambda call: call(),
    )  # fmt: skip
    return {
        f"ViT-B/16 from torch to flax msgpack, {quantity}": ratio(measured[OURS][:, i], measured[THEIRS][:, i])
        for i, quantity in enumerate(("wall time", "peak memory"))
    }


def main() -> None:
    given = arguments(__doc__, rounds=8, seconds=0.0)
    results: dict[str, dict[str, float]] = {}
    for part in (beside_cp, beside_transformers):
        with TemporaryDirectory() as folder:
            results.update(part(folder, given.rounds, given.seconds))
    report("Converting, as a multiple of what stands in brackets, else of transformers", results, given.json)


if __name__ == "__main__":
    main()
