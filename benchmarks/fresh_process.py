"""A fresh process that imports, loads a ViT-B/16 from a folder and classifies one picture, as each library documents.

Wall time and peak memory (resident set) of the whole process, this package against transformers, taken in turn, in
PyTorch, TensorFlow and JAX. The folder is made once, so that both find the weights in the system's file cache.
transformers is told to import the framework in question only: by itself it imports every one that is installed, and
takes longer.

python benchmarks/fresh_process.py [--json] [--rounds N] [--seconds S]     in the environment of `make oracle`
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from harness import OURS, THEIRS, arguments, interleaved, ratio, report

MAKE = """
import sys, numpy as np
from PIL import Image
from {module} import ViTConfig, ViTForImageClassification, ViTImageProcessor
config = ViTConfig.variant("B/16", num_labels=1000)
ViTForImageClassification(config, seed=0).save_pretrained(sys.argv[1], save_format="{save_format}")
ViTImageProcessor(do_convert_rgb=True).save_pretrained(sys.argv[1])
noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
Image.fromarray(noise).save(sys.argv[1] + "/picture.png")
"""
CLASSIFY = """
import sys, torch
from PIL import Image
from {module} import AutoImageProcessor, ViTForImageClassification
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = ViTForImageClassification.from_pretrained(sys.argv[1])
inputs = processor(Image.open(sys.argv[1] + "/picture.png"), return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])
"""

CLASSIFY_FLAX = """
import sys
from PIL import Image
from {module} import AutoImageProcessor, FlaxViTForImageClassification
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = FlaxViTForImageClassification.from_pretrained(sys.argv[1])
inputs = processor(Image.open(sys.argv[1] + "/picture.png"), return_tensors="np")
logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])
"""
CLASSIFY_TF = """
import sys
from PIL import Image
from {module} import AutoImageProcessor, TFViTForImageClassification
processor = AutoImageProcessor.from_pretrained(sys.argv[1])
model = TFViTForImageClassification.from_pretrained(sys.argv[1])
inputs = processor(Image.open(sys.argv[1] + "/picture.png"), return_tensors="tf")
logits = model(**inputs).logits
print(model.config.id2label[logits.numpy().argmax(-1).item()])
"""
PROGRAMS = {"vit_torch": CLASSIFY, "vit_tf": CLASSIFY_TF, "vit_flax": CLASSIFY_FLAX}
# In TensorFlow transformers reads PyTorch's names no longer: its loop over a file fails with the newest safetensors.
SAVE_FORMATS = {"vit_torch": "torch", "vit_tf": "tf", "vit_flax": "torch"}
SWITCHES = {"vit_torch": "USE_TORCH", "vit_tf": "USE_TF", "vit_flax": "USE_FLAX"}  # by which transformers is told


def python(code: str, folder: str) -> list[str]:
    """The command that runs this code with the folder as its argument."""
    return [sys.executable, "-W", "ignore", "-c", code, folder]


def time_and_peak(command: list[str], settings: dict[str, str]) -> tuple[float, float]:
    """Seconds from start to end of a process, and the largest memory it held, in MiB.

    This process must stay small: what it holds is counted as the child's until the child has loaded its program.
    """
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment = {**os.environ, **quiet, **settings, "PYTHONPATH": str(Path(__file__).parent.parent)}
    start = time.perf_counter()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"The process that is measured ended with {child.returncode}: its error stands above.")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def measure(backend: str, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """The ratios of one backend: of wall times and of peaks."""
    others_off = {switch: "0" for name, switch in SWITCHES.items() if name != backend}
    with TemporaryDirectory() as folder:
        time_and_peak(python(MAKE.format(module=backend, save_format=SAVE_FORMATS[backend]), folder), {})
        commands = {
            name: python(PROGRAMS[backend].format(module=module), folder)
            for name, module in ((OURS, backend), (THEIRS, "transformers"))
        }
        measured = interleaved(
            {name: partial(time_and_peak, command, others_off) for name, command in commands.items()},
            min_rounds=rounds,
            min_seconds=seconds,
            measure=lambda call: call(),
        )
    prefix = "" if backend == "vit_torch" else f"{backend.removeprefix('vit_')}, "
    return {
        f"{prefix}fresh process, {quantity}": ratio(measured[OURS][:, i], measured[THEIRS][:, i])
        for i, quantity in enumerate(("wall time", "peak memory"))
    }


def main() -> None:
    given = arguments(__doc__, rounds=12, seconds=10.0)
    results: dict[str, dict[str, float]] = {}
    for backend in PROGRAMS:
        results.update(measure(backend, given.rounds, given.seconds))
    report("This package as a fraction of transformers", results, given.json)


if __name__ == "__main__":
    main()
