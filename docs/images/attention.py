"""What the README's picture was made with: crops of two photographs of scikit-learn, and a small ViT to train on them.

The classes are crops that hold some of the pagoda, some of a flower, or none of either. From the top of the repository:

    python docs/images/attention.py crops start china.png
    python examples/finetune_torch.py crops --out run --model start --epochs 10 --rate 2e-3 --layer-decay 1 --flip
    vit attend china.png --model run --out attention.png
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from vit_torch import ViTConfig, ViTForImageClassification, ViTImageProcessor

CROPS, SIZE = 250, 128  # of each class; pixels
PAGODA = [(205, 30), (95, 110), (85, 180), (62, 270), (80, 350), (300, 390), (340, 360), (370, 330), (350, 250)]
PAGODA += [(330, 180), (320, 120)]
FLOWERS = [(170, 85, 445, 360), (288, 375, 470, 487)]  # boxes around the two


def main(crops: Path, start: Path, picture: Path) -> None:
    """Write the crops, a folder for each class, the model that training starts from, and the picture to look at."""
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    masks = [Image.new("L", each.size) for each in photographs]
    ImageDraw.Draw(masks[0]).polygon(PAGODA, fill=1)
    for box in FLOWERS:
        ImageDraw.Draw(masks[1]).ellipse(box, fill=1)
    things = {"pagoda": (photographs[0], np.asarray(masks[0])), "flower": (photographs[1], np.asarray(masks[1]))}
    labels = sorted({*things, "neither"})

    generator, made = np.random.default_rng(0), Counter[str]()
    while any(made[label] < CROPS for label in labels):
        thing = str(generator.choice(list(things)))
        photograph, mask = things[thing]
        edge = int(generator.integers(110, 400))
        x, y = (int(generator.integers(0, end)) for end in (640 - edge, 427 - edge + 1))
        share = mask[y : y + edge, x : x + edge].mean()
        label = thing if 0.15 < share < 0.7 else "neither" if not share else None
        if label is not None and made[label] < CROPS:
            crop = photograph.crop((x, y, x + edge, y + edge)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            (crops / label).mkdir(parents=True, exist_ok=True)
            crop.save(crops / label / f"{made[label]:03}.png")
            made[label] += 1

    config = ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        id2label=dict(enumerate(labels)),
    )
    ViTForImageClassification(config, seed=0).save_pretrained(start)
    ViTImageProcessor(size=SIZE, do_convert_rgb=True).save_pretrained(start)
    photographs[0].crop((40, 0, 467, 427)).save(picture)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
