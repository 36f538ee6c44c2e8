"""The golden data of `tests/golden/processor/fast`: what the fast processors of transformers 4.57.6 make of pictures.

    PYTHONPATH=.venv-oracle/families .venv-oracle/bin/python tests/oracle/fast.py

On a CPU with AVX2, where torchvision 0.28.0 resizes whole numbers; it lies in the folder `families` of the environment.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden" / "processor"
OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
declared = torch.library.Library("torchvision", "DEF")  # its compiled operators, which resizing does not call
for name in ("nms", "qnms", *OPERATORS, *(f"_{each}_backward" for each in OPERATORS)):
    declared.define(f"{name}(Tensor a) -> Tensor")
import transformers  # noqa: E402  # which then finds torchvision

SMALL, LARGE = {"height": 16, "width": 24}, {"height": 61, "width": 48}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CASES = {
    "bilinear": ("ViT", "rgb", {"size": SMALL}),
    "bilinear_up": ("ViT", "rgb", {"size": LARGE, **IMAGENET}),
    "bilinear_far": ("ViT", "big", {"size": {"height": 5, "width": 7}}),
    "bicubic": ("ViT", "big", {"size": SMALL, "resample": 3, **IMAGENET}),
    "bicubic_up": ("ViT", "tiny", {"size": SMALL, "resample": 3}),
    "lanczos": ("ViT", "big", {"size": SMALL, "resample": 1}),
    "rescaled": ("ViT", "rgb", {"size": SMALL, "do_normalize": False, "rescale_factor": 1 / 127.5}),
    "normalised": ("ViT", "rgb", {"size": SMALL, "do_rescale": False}),
    "neither": ("ViT", "big", {"size": SMALL, "do_rescale": False, "do_normalize": False}),
    "crop": ("DeiT", "big", {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 24}}),
    "border": ("DeiT", "rgb", {"size": {"height": 20, "width": 21}, "crop_size": {"height": 25, "width": 24}}),
    "beit": ("Beit", "rgb", {"size": SMALL}),
    "shortest": ("Bit", "big", {"size": {"shortest_edge": 30}, "crop_size": {"height": 24, "width": 24}}),
}


def main() -> None:
    """Write the file of each processor, the name of its picture, and what came out."""
    pictures, cases, outputs = np.load(GOLDEN / "inputs.npz"), {}, {}
    for name, (kind, picture, arguments) in CASES.items():
        processor = getattr(transformers, f"{kind}ImageProcessorFast")(**arguments)
        cases[name] = {"picture": picture, "file": json.loads(processor.to_json_string())}
        outputs[name] = processor(pictures[picture], return_tensors="pt").pixel_values.numpy()
    folder = GOLDEN / "fast"
    folder.mkdir(exist_ok=True)
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    np.savez_compressed(folder / "outputs.npz", **outputs)


if __name__ == "__main__":
    main()
