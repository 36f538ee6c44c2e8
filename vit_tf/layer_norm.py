"""LayerNorm with the two-pass variance (Ba et al. 2016, section 3)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from keras import layers
from tensorflow import Tensor

from vit_tf.losses import wide


class LayerNorm(layers.LayerNormalization):
    """Keras's LayerNormalization over the last axis, computed as (x - mean) / sqrt(var + eps) * gamma + beta.

    Computed in float32 or wider, the result in the layer's compute dtype.
    """

    def call(self, inputs: Any) -> Tensor:
        x = tf.cast(inputs, wide(inputs.dtype))
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + self.epsilon)
        gamma, beta = (tf.cast(p, x.dtype) for p in (self.gamma, self.beta))
        return tf.cast(centred * inverse * gamma + beta, inputs.dtype)
