"""Fine-tune a ViT on a folder of pictures, one folder for each class, named after it.

python examples/keras_image_folder.py my-pictures --out my-vit [--model google/vit-base-patch16-224-in21k] [--freeze]

Keras resizes as it reads, without antialiasing: shrink pictures beforehand that are many times larger than the model's.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import tensorflow as tf
import typer
from keras_common import VERBOSE, callbacks, plot, schedule
from PIL import Image

from vit_core.backends import DIGITS
from vit_core.config import pair
from vit_tf import TFViTForImageClassification, ViTConfig, ViTImageProcessor

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # what Keras reads


def checked_classes(folder: Path, validation: float) -> list[str]:
    """The names of the classes. Raises typer.BadParameter that lists all that is wrong with the pictures."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise typer.BadParameter(f"{folder} has {len(classes)} class folders, expected one for each of two or more.")
    pictures = {path: [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES] for path in classes}
    wrong = [f"{path} holds no picture ({', '.join(SUFFIXES)})" for path, found in pictures.items() if not found]
    every = sorted(p for found in pictures.values() for p in found)
    with ThreadPoolExecutor() as pool:
        wrong += [problem for problem in pool.map(unreadable, every) if problem]
    if not wrong and len(every) * validation < 1:
        wrong.append(f"{len(every)} pictures in {folder} are too few to validate on a share of {validation:g}")
    if wrong:
        raise typer.BadParameter("; ".join(wrong) + ".")
    return [path.name for path in classes]


def unreadable(path: Path) -> str:
    """Why TensorFlow can't decode a picture, or nothing."""
    try:
        tf.io.decode_image(path.read_bytes(), channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        reason = re.sub(r"\{\{.*?\}\} | \[Op.*", "", error.message)  # the names of TensorFlow's own nodes
        return f"{path} can't be read: {reason.rstrip('.')}"
    return ""


def preparation(processor: ViTImageProcessor, channels: int) -> keras.Sequential:
    """The layers that rescale and normalise as the processor does. Raises typer.BadParameter for one that crops."""
    if processor.do_center_crop:
        raise typer.BadParameter("The processor of this model crops pictures, which this script does not.")
    layers = [keras.Input((None, None, channels))]
    if processor.do_rescale:
        layers.append(keras.layers.Rescaling(processor.rescale_factor))
    if processor.do_normalize:
        variance = np.square(processor.image_std)
        layers.append(keras.layers.Normalization(mean=processor.image_mean, variance=variance))
    return keras.Sequential(layers)


def datasets(
    folder: Path, config: ViTConfig, processor: ViTImageProcessor, batch: int, validation: float, seed: int
) -> list[tf.data.Dataset]:
    """[training, validation] of pixels (B, H, W, C), as the processor gives them, and classes (B,)."""
    filters = {Image.Resampling.LANCZOS: "lanczos3"}
    found = keras.utils.image_dataset_from_directory(
        folder,
        class_names=list(config.id2label.values()),
        color_mode="rgb" if config.num_channels == 3 else "grayscale",
        batch_size=batch,
        image_size=pair(config.image_size),
        seed=seed,
        validation_split=validation,
        subset="both",
        interpolation=filters.get(processor.resample, Image.Resampling(processor.resample).name.lower()),
        data_format="channels_last",
    )
    prepare = preparation(processor, config.num_channels)
    return [part.map(lambda pixels, labels: (prepare(pixels), labels)).prefetch(1) for part in found]


def main(
    pictures: Annotated[Path, typer.Argument(help="Folder of class folders.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for the model, history.csv and history.png.")],
    model: Annotated[str, typer.Option(help="Checkpoint to start from: folder or hub id.")] = str(DIGITS),
    freeze: Annotated[bool, typer.Option(help="Train the head alone.")] = False,
    validation: Annotated[float, typer.Option(help="Share of the pictures to validate on.", min=0.01, max=0.9)] = 0.2,
    epochs: int = 10,
    batch: int = 32,
    rate: float = 5e-4,
    seed: int = 0,
) -> None:
    """Fine-tune with a head for the folder's classes, and write an ordinary Hugging Face folder."""
    keras.utils.set_random_seed(seed)
    classes = checked_classes(pictures, validation)
    processor = ViTImageProcessor.from_pretrained(model)
    vit, report = TFViTForImageClassification.from_pretrained(
        model,
        id2label=dict(enumerate(classes)),
        label2id={name: i for i, name in enumerate(classes)},
        data_format="channels_last",
        seed=seed,
        output_loading_info=True,
    )
    fresh = [name for name, *_ in report.mismatched_keys] + report.missing_keys
    print(f"{len(classes)} classes: {', '.join(classes)}. Initialised anew: {', '.join(fresh) or 'nothing'}.")
    vit.vit.trainable = not freeze
    training, held_out = datasets(pictures, vit.config, processor, batch, validation, seed)
    optimizer = keras.optimizers.AdamW(schedule(rate, epochs * len(training)), weight_decay=0.01)
    vit.compile(optimizer, metrics=["accuracy"])
    vit.fit(
        training,
        epochs=epochs,
        validation_data=held_out,
        callbacks=callbacks(out, patience=5),
        shuffle=False,  # the dataset does that
        verbose=VERBOSE,
    )
    accuracy = vit.evaluate(held_out, verbose=0, return_dict=True)["accuracy"]
    print(f"Validation accuracy: {accuracy:.2%}")
    plot(out)
    vit.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
