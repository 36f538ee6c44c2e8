"""Pictures in a TensorFlow graph: decoded, turned upright and prepared, as the image processor does it."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow import Tensor

from vit_core.pictures.graph import PictureOperations, Preparation
from vit_core.pictures.images import is_scaled
from vit_core.pictures.processing import ViTImageProcessor

_HEAD = 1 << 16  # bytes of a file in which its EXIF is looked for
# What turns a picture of EXIF orientation 0 to 8 upright: whether rows become columns, then which axes are turned.
_TURNS = np.array([(0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (1, 1, 0)])


def _wide(x: Tensor | float) -> Tensor:
    return tf.convert_to_tensor(x, tf.float64)


OPERATIONS = PictureOperations(
    lengths=lambda x: [known or found for known, found in zip(x.shape, tf.unstack(tf.shape(x)), strict=True)],
    larger=tf.maximum,
    scalar=lambda length: tf.cast(length, tf.float64),
    count=lambda length: tf.range(tf.cast(length, tf.float64), dtype=tf.float64),
    floor=tf.floor,
    sin=tf.sin,
    where=lambda condition, a, b: tf.where(condition, _wide(a), _wide(b)),
    total=lambda x: tf.reduce_sum(x, -1, keepdims=True),
    largest=tf.reduce_max,
    running=tf.cumsum,
    either=lambda condition, a, b, *x: tf.cond(condition, lambda: a(*x), lambda: b(*x)),
    reshape=tf.reshape,
    transpose=tf.transpose,
    take=lambda x, places: tf.gather(x, tf.cast(places, tf.int32)),
    wide=lambda x: tf.cast(x, tf.float64),
    narrow=lambda x: tf.cast(x, tf.uint8),
    single=lambda x: tf.cast(x, tf.float32),
    constant=tf.constant,
)


def prepared(preparation: Preparation, pictures: Tensor) -> Tensor:
    """Pixels (B, C, h, w) in float32 of 8-bit pictures (B, H, W, C)."""
    return preparation(OPERATIONS, pictures)


@keras.saving.register_keras_serializable("vit_tf")
class Preprocessing(keras.layers.Layer):
    """Pixels in float32 of pictures (B, H, W, C), or one (H, W, C), of 0 to 255, as an image processor makes them.

    Made by `processor.as_keras_layer()`. Integers, or floats, as Keras's own input pipelines give them, which are
    rounded: floats of 0 to 1 would be black, or nearly so, of which an eager call warns. The pixels are those of the
    processor to the last bit, of pictures of any size, one for the batch: (B, C, h, w), or (B, h, w, C) with
    `data_format="channels_last"`. Raises ValueError for a processor that makes pixels of many sizes, and for pictures
    of another shape. num_channels: 1 or 3; if None, as many as have a mean of their own, or 3.
    """

    def __init__(
        self, processor: Any, data_format: str = "channels_first", num_channels: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**{"dtype": "float32", "autocast": False, "trainable": False, **kwargs})
        if data_format not in ("channels_first", "channels_last"):
            raise ValueError(f"data_format must be channels_first or channels_last, got {data_format!r}.")
        processor = ViTImageProcessor.from_dict(processor) if isinstance(processor, dict) else processor
        self.processor, self.data_format = processor, data_format
        self.preparation = Preparation.of(processor, num_channels)

    def call(self, pictures: Tensor) -> Tensor:
        """pictures: (B, H, W, C) or (H, W, C), 0 to 255."""
        channels = self.preparation.channels
        if pictures.shape.rank not in (3, 4) or pictures.shape[-1] not in (None, channels):
            raise ValueError(
                f"Pictures must have shape (B, H, W, {channels}) or (H, W, {channels}), got {pictures.shape}."
            )
        if pictures.shape.rank == 3:
            return self.call(pictures[None])[0]
        if pictures.dtype.is_floating:
            if tf.executing_eagerly() and len(pictures) and is_scaled(pictures.numpy()):
                warnings.warn("Pictures are from 0 to 1, where 255 is white: multiply them by 255.", stacklevel=2)
            pictures = tf.clip_by_value(tf.round(pictures), 0, 255)
        pixels = prepared(self.preparation, tf.cast(pictures, tf.uint8))
        return pixels if self.data_format == "channels_first" else tf.transpose(pixels, (0, 2, 3, 1))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """For Keras."""
        size, channels = self.preparation.size, self.preparation.channels
        return (*input_shape[:-3], *((channels, *size) if self.data_format == "channels_first" else (*size, channels)))

    def get_config(self) -> dict[str, Any]:
        """For Keras: the arguments."""
        own = {"processor": self.processor.to_dict(), "num_channels": self.preparation.channels}
        return {**super().get_config(), **own, "data_format": self.data_format}


def opened(preparation: Preparation, data: Tensor) -> Tensor:
    """Pixels (B, 3, h, w) in float32 of encoded pictures (B,), each of which has its own size."""

    def one(data: Tensor) -> Tensor:
        return prepared(preparation, decoded(data)[None])[0]

    return tf.map_fn(one, data, fn_output_signature=tf.TensorSpec((3, *preparation.size), tf.float32))


def decoded(data: Tensor) -> Tensor:
    """The picture (H, W, 3) in 8 bits in the bytes () of a JPEG, a PNG or a GIF of one frame, upright.

    As Pillow decodes them, but for gray PNGs of 16 bits, of which this takes the upper 8.
    """
    picture = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # which decodes the others as well
    turn = tf.gather(_TURNS, _orientation(data))
    picture = tf.transpose(picture, tf.where(turn[0] == 1, (1, 0, 2), (0, 1, 2)))
    picture = tf.reverse(picture, tf.where(turn[1:] == 1)[:, 0])
    return tf.ensure_shape(picture, (None, None, 3))


def _orientation(data: Tensor) -> Tensor:
    """The orientation in a JPEG's EXIF, 1 to 8; 0 where there is none that can be."""
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _HEAD), tf.uint8), tf.int32)
    head = tf.pad(head, [[0, 12]])
    last = tf.size(head) - 1

    found = tf.ones_like(head[:-9], tf.bool)
    for i, byte in ((0, 0xFF), (1, 0xE1), *enumerate(b"Exif\0\0", start=4)):  # a segment APP1, behind its length
        found &= head[i : i + tf.size(found)] == byte
    start = tf.argmax(found, output_type=tf.int32) + 10
    big = tf.gather(head, tf.minimum(start, last)) == ord("M")

    def word(place: Tensor) -> Tensor:
        """The number of 16 bits at a place, in the byte order of the EXIF; 0 beyond the head."""
        first, second = (tf.gather(head, tf.clip_by_value(place + i, 0, last)) for i in (0, 1))
        return tf.where(big, 256 * first + second, first + 256 * second)

    directory = start + tf.where(big, word(start + 6), word(start + 4))
    entries = directory + 2 + 12 * tf.range(tf.minimum(word(directory), _HEAD // 12))
    entries = tf.boolean_mask(entries, word(entries) == 0x0112)[:1]
    value = tf.reduce_sum(word(entries + 8))
    known = tf.reduce_any(found) & (value <= 8) & (tf.gather(head, 0) == 0xFF)
    return tf.where(known, value, 0)
