"""Train a ViT on handwritten digits with Keras's compile and fit, the augmentation inside the model. A run that was
stopped goes on after its last whole epoch when the same command is given again.

python examples/keras_fit.py --out my-digits
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import keras
import numpy as np
import tensorflow as tf
import typer
from digits import Split, load_split
from keras import layers, ops
from keras_common import VERBOSE, callbacks, plot, schedule
from sklearn.model_selection import train_test_split

from vit_core.assets import DIGITS
from vit_tf import TFViTForImageClassification, ViTConfig, ViTImageProcessor

Data = tuple[np.ndarray, np.ndarray]  # pixels (n, H, W, C), classes as one-hot rows (n, 10)


class RandomAffine(layers.Layer):
    """Pictures (B, H, W, C), in training each rotated, zoomed and shifted; -1 is black.

    They are resampled once. Keras's RandomRotation, RandomZoom and RandomTranslation in a row do it three times, and
    a model trained on what they blur is worse on sharp pictures.
    """

    def __init__(self, degrees: float = 12.0, share: float = 0.12, seed: int | None = None) -> None:
        super().__init__()
        self.degrees, self.share = degrees, share
        self.generator = keras.random.SeedGenerator(seed)

    def call(self, pictures: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return pictures
        batch, height, width, _ = ops.shape(pictures)
        angle, zoom, down, right = (
            keras.random.uniform((batch,), -1, 1, seed=self.generator) * most
            for most in (np.deg2rad(self.degrees), self.share, self.share * height, self.share * width)
        )
        cos, sin, zero = (1 + zoom) * ops.cos(angle), (1 + zoom) * ops.sin(angle), ops.zeros_like(angle)
        x, y = (width - 1) / 2, (height - 1) / 2  # the centre, which stays where it is but for the shift
        rows = (cos, -sin, x - cos * x + sin * y + right, sin, cos, y - sin * x - cos * y + down, zero, zero)
        moved = ops.image.affine_transform(
            pictures + 1, ops.stack(rows, axis=1), "bilinear", "constant", 0, data_format="channels_last"
        )
        return moved - 1


def as_data(split: Split, processor: ViTImageProcessor) -> Data:
    """The pictures and classes of a split as fit takes them."""
    pixels = processor(split.images(), data_format="channels_last", return_tensors="np").pixel_values
    return pixels, keras.utils.to_categorical(split.labels, 10)


def trainable(vit: TFViTForImageClassification, seed: int) -> keras.Model:
    """The classifier behind the augmentation: pixels to logits."""
    inputs = keras.Input((*[vit.config.image_size] * 2, vit.config.num_channels))
    return keras.Model(inputs, vit(RandomAffine(seed=seed)(inputs)).logits)


def train(model: keras.Model, data: Data, out: Path, epochs: int, batch: int, rate: float, decay: float) -> None:
    """Fit, with a tenth of the data to tell when to stop."""
    pixels, labels = data
    parts = train_test_split(pixels, labels, test_size=0.1, stratify=labels, random_state=0)
    pixels, validation_pixels, labels, validation_labels = parts
    model.compile(
        keras.optimizers.AdamW(schedule(rate, epochs * -(-len(pixels) // batch)), weight_decay=decay),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],  # which has its variables now, as "accuracy" has not
    )
    model.optimizer.build(model.trainable_variables)  # variables that the first step makes have it traced twice
    model.fit(
        pixels,
        labels,
        batch_size=batch,
        epochs=epochs,
        validation_data=(validation_pixels, validation_labels),
        callbacks=callbacks(out, patience=20),
        verbose=VERBOSE,
    )


def main(
    out: Annotated[Path, typer.Option(help="Folder for the model, history.csv and history.png.")],
    epochs: int = 60,
    batch: int = 32,
    rate: float = 1.5e-3,
    decay: float = 0.05,
    seed: int = 0,
) -> None:
    """Train, measure once on the held-out fifth, and write an ordinary Hugging Face folder."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    processor = ViTImageProcessor.from_pretrained(DIGITS)
    training, held_out = (as_data(split, processor) for split in load_split())
    vit = TFViTForImageClassification(ViTConfig.from_pretrained(DIGITS), seed=seed, data_format="channels_last")
    model = trainable(vit, seed)
    train(model, training, out, epochs, batch, rate, decay)
    accuracy = model.evaluate(*held_out, batch_size=batch, verbose=0, return_dict=True)["accuracy"]
    print(f"Held-out accuracy: {accuracy:.2%} of {len(held_out[0])}")
    plot(out)
    vit.save_pretrained(out)
    processor.save_pretrained(out)


if __name__ == "__main__":
    typer.run(main)
