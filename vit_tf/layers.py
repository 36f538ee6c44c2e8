"""Keras's layers, computed in the form that TensorFlow runs fast and at the precision the model needs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from vit_tf.losses import wide


@keras.saving.register_keras_serializable("vit_tf")
class Dense(layers.Dense):
    """Keras's Dense as one product of matrices, which TensorFlow fuses with the bias and an exact GELU.

    The activation comes before the tokens get their shape back: a reshape in between would undo the fusion.
    """

    def call(self, inputs: Any, training: Any = None) -> Tensor:
        *leading, width = ops.shape(inputs)
        x = tf.matmul(tf.reshape(inputs, (-1, width)), self.kernel)
        x = tf.nn.bias_add(x, self.bias) if self.use_bias else x
        return tf.reshape(x if self.activation is None else self.activation(x), (*leading, self.units))

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """As Keras's own Dense, which refuses classes derived from it."""
        super().quantize(mode, type_check=False, config=config)

    def load_own_variables(self, store: Any) -> None:
        """As Keras's, whose files have LoRA's product in the kernel; LoRA starts anew from there.

        Keras itself sets both of its factors to zero, where neither has a gradient.
        """
        factor = ops.copy(self.lora_kernel_a) if self.lora_enabled else None
        super().load_own_variables(store)
        if factor is not None:
            self.lora_kernel_a.assign(factor)


@keras.saving.register_keras_serializable("vit_tf")
class LayerNorm(layers.LayerNormalization):
    """Keras's LayerNormalization over the last axis with the two-pass variance (Ba et al. 2016, section 3).

    Computed in float32 or wider, the result in the layer's compute dtype.
    """

    def call(self, inputs: Any) -> Tensor:
        x = tf.cast(inputs, wide(inputs.dtype))
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + self.epsilon)
        gamma, beta = (tf.cast(p, x.dtype) for p in (self.gamma, self.beta))
        return tf.cast(centred * inverse * gamma + beta, inputs.dtype)
