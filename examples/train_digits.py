"""Train the model that ships in vit_core/assets/digits: a small ViT on handwritten digits, minutes on two cores.

python examples/train_digits.py --out my-digits
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from digits import Split, load_split
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vit_core.pictures.processing import ViTImageProcessor
from vit_torch import ViTConfig, ViTForImageClassification

CARD = """---
license: apache-2.0
library_name: vit-trio
pipeline_tag: image-classification
tags: [vision-transformer, digits]
---
# A small ViT for handwritten digits

A Vision Transformer of {parameters:,} parameters ({layers} layers, width {width}, {heads} heads, patches of
{patch}x{patch} on {size}x{size} pixels) that tells the ten digits apart. It exists so that vit-trio can be tried and
tested without a network; transformers loads it as well.

- **Data**: the Optical Recognition of Handwritten Digits set (E. Alpaydin and C. Kaynak, UCI Machine Learning
  Repository, 1998, CC BY 4.0): the 1,797 pictures of 8x8 pixels and 17 grey levels that scikit-learn bundles.
- **Split**: a fifth ({held_out} pictures, stratified by class, `random_state=0`) was held out before anything else and
  used once, to measure. `pictures/` holds some of them; a file's name is its class and its number in the set.
- **Recipe**: {epochs} epochs from scratch, batches of {batch}, AdamW (learning rate {rate:g}, weight decay {decay:g}),
  one-cycle schedule, label smoothing 0.1, random rotations, zooms and shifts; seed {seed}.
  `examples/train_digits.py` repeats it.
- **Held-out accuracy**: {accuracy:.2%} ({correct} of {held_out}).
- **Limits**: pictures like those of the set, one bright digit, centred, on black. It has seen nothing else.
"""


def augmented(pixels: Tensor) -> Tensor:
    """Pixels (B, C, H, W), each rotated by up to 12 degrees, zoomed by up to 12 % and shifted by up to 12 %."""
    count = len(pixels)
    angle = (torch.rand(count) * 2 - 1) * math.radians(12)
    zoom = 1 + (torch.rand(count) * 2 - 1) * 0.12
    shift = (torch.rand(count, 2, 1) * 2 - 1) * 0.24  # of half the width
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(count, 2, 2)
    affine = torch.cat([rotation * zoom[:, None, None], shift], 2)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels + 1, grid, align_corners=False) - 1  # -1 is black, and what comes in from outside


@torch.inference_mode()
def correct(model: ViTForImageClassification, pixels: Tensor, labels: Tensor) -> int:
    """How many pictures the model names rightly."""
    return int((model.eval()(pixels).logits.argmax(-1) == labels).sum())


def tensors(split: Split, processor: ViTImageProcessor) -> tuple[Tensor, Tensor]:
    """(pixels, labels) as the model takes them."""
    return processor(split.images(), return_tensors="pt").pixel_values, torch.from_numpy(split.labels)


def train(
    model: ViTForImageClassification, pixels: Tensor, labels: Tensor, epochs: int, batch: int, rate: float, decay: float
) -> None:
    """Train to the end, with a progress bar."""
    steps = len(pixels) // batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("epoch", total=epochs)
        for _ in range(epochs):
            model.train()
            total = 0.0
            for index in torch.randperm(len(pixels))[: steps * batch].split(batch):
                logits = model(augmented(pixels[index])).logits
                loss = F.cross_entropy(logits, labels[index], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
            progress.update(bar, advance=1, description=f"epoch, loss {total / steps:.3f}")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    epochs: int = 60,
    batch: int = 64,
    rate: float = 2e-3,
    decay: float = 0.05,
    seed: int = 0,
    pictures: Annotated[int, typer.Option(help="How many held-out pictures to write beside the model.")] = 12,
) -> None:
    """Train, measure once on the held-out fifth, and write an ordinary Hugging Face folder."""
    torch.manual_seed(seed)
    training, held_out = load_split()
    processor = ViTImageProcessor(size={"height": 24, "width": 24}, do_convert_rgb=True)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=24,
        patch_size=4,
        encoder_stride=4,
        layer_norm_eps=1e-6,
        id2label={i: str(i) for i in range(10)},
    )
    model = ViTForImageClassification(config, seed=seed)
    train(model, *tensors(training, processor), epochs, batch, rate, decay)
    right, count = correct(model, *tensors(held_out, processor)), len(held_out.labels)
    print(f"Held-out accuracy: {right / count:.2%} ({right} of {count})")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    card = CARD.format(
        parameters=model.num_parameters(), layers=config.num_hidden_layers, width=config.hidden_size,
        heads=config.num_attention_heads, patch=config.patch_size, size=config.image_size, held_out=count,
        epochs=epochs, batch=batch, rate=rate, decay=decay, seed=seed, accuracy=right / count, correct=right,
    )  # fmt: skip
    (out / "README.md").write_text(card)
    (out / "pictures").mkdir(exist_ok=True)
    for image, label, number in list(zip(held_out.images(), held_out.labels, held_out.numbers, strict=True))[:pictures]:
        image.save(out / "pictures" / f"{label}-{number:04d}.png")


if __name__ == "__main__":
    typer.run(main)
