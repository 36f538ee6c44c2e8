"""MAE in Keras: an encoder of the patches that are kept, and a decoder that reconstructs the others.

Paper: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3. Agrees with `modeling_vit_mae` of
transformers 4.57.6; variables have the paths of its `modeling_tf_vit_mae`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import MAE
from vit_core.params import spec_of
from vit_tf.base import TFViTPreTrainedModel, compiled
from vit_tf.embeddings import resized_positions
from vit_tf.encoder import ViTLayer, computed
from vit_tf.losses import masked_patch_loss
from vit_tf.modeling import TFViTModel, TFViTWithHead
from vit_tf.module import ViTModule
from vit_tf.outputs import ViTMAEForPreTrainingOutput, ViTMAEModelOutput


class TFViTMAEPreTrainedModel(TFViTPreTrainedModel):
    """Base of MAE's models."""

    config_class = MAE.config
    base_model_prefix = MAE.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFViTMAEModel(TFViTMAEPreTrainedModel, TFViTModel):
    """The encoder, of the patches that random masking keeps; returns `ViTMAEModelOutput`.

    `features` are those of all patches, in their order.
    """

    architecture = "ViTMAEModel"
    output_class: type[ViTMAEModelOutput[Tensor]] = ViTMAEModelOutput  # type: ignore[assignment]

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        super().__init__(config, False, False, **options)

    def build_parts(self) -> None:
        super().build_parts()
        self.seed_generator = keras.random.SeedGenerator(name="noise")

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """Pixels (B, C, H, W); `noise` (B, N): the patches of the least are kept, in the order of their noise.

        Without noise it is drawn, in evaluation as in training. `head_mask` is (h,) or (L, h), 1 keeps; the options
        left at None are the configuration's. Raises ValueError for what does not fit, TypeError for what is no tensor
        of floats.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate, training=training)
        batch, tokens, _ = ops.shape(x)
        if noise is None:
            noise = keras.random.uniform((batch, tokens - 1), dtype="float32", seed=self.seed_generator)
        kept = num_kept(tokens - 1, self.config)
        order = tf.argsort(noise, axis=1, stable=True)  # (B, N)
        ids_restore = tf.argsort(order, axis=1)
        x = tf.concat([x[:, :1], taken(x[:, 1:], order[:, :kept])], axis=1)  # (B, 1 + K, D)
        encoded = self.encoder(x, head_mask, None, options=options, training=training)
        output = self.output_class(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            mask=tf.cast(ids_restore >= kept, tf.float32),
            ids_restore=ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTMAEDecoder(ViTModule):
    """Layers in a width of their own on all patches, the mask token in the place of those that were removed."""

    def build(self, input_shape: Any = None) -> None:
        self.of_layers = self.config.decoder
        width = self.config.decoder_hidden_size
        self.decoder_embed = self.linear(self.config.hidden_size, width, "decoder_embed")
        self.mask_token = self.weight("decoder.mask_token")
        self.decoder_pos_embed = self.weight("decoder.decoder_pos_embed", autocast=False)
        layers = range(self.config.decoder_num_hidden_layers)
        self.numbered("decoder_layers", [self.child(ViTLayer, f"decoder_layers.{i}", self.of_layers) for i in layers])
        self.decoder_norm = self.layer_norm("decoder_norm", width)
        outputs, inputs = spec_of(self.config, "decoder.decoder_pred.weight").shape
        self.decoder_pred = self.linear(inputs, outputs, "decoder_pred")
        self.checkpointing = False

    def call(
        self, hidden_states: Tensor, ids_restore: Tensor, size: Sequence[Any] | None = None, training: bool = False
    ) -> Tensor:
        """Pixels (B, N, P Q C) of the encoder's tokens (B, 1 + K, D); `size`, height x width, where it is another."""
        x = self.decoder_embed(hidden_states)
        batch, tokens, width = ops.shape(x)
        removed = ops.shape(ids_restore)[1] + 1 - tokens
        x = tf.concat([x, tf.broadcast_to(tf.cast(self.mask_token, x.dtype), (batch, removed, width))], axis=1)
        x = tf.concat([x[:, :1], taken(x[:, 1:], ids_restore)], axis=1)  # (B, 1 + N, Dd)
        table = self.decoder_pos_embed.value
        x = x + tf.cast(table if size is None else resized_positions(table, size, self.config), x.dtype)
        for layer in self.decoder_layers:
            x = computed(layer, self.checkpointing, x, training=training)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


@keras.saving.register_keras_serializable("vit_tf")
class TFViTMAEForPreTraining(TFViTMAEPreTrainedModel, TFViTWithHead):
    """The encoder and the decoder; returns `ViTMAEForPreTrainingOutput`, with the loss of the removed patches."""

    architecture = "ViTMAEForPreTraining"
    trunk_class = TFViTMAEModel
    output_class: type[ViTMAEForPreTrainingOutput[Tensor]] = ViTMAEForPreTrainingOutput

    def build_head(self) -> None:
        self.decoder = self.child(ViTMAEDecoder, "decoder")

    def set_attn_implementation(self, attn_implementation: str | None) -> None:
        super().set_attn_implementation(attn_implementation)
        self.decoder.of_layers.attn_implementation = attn_implementation

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """As `TFViTMAEModel`; states and attentions are the encoder's, and so is `head_mask`."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        asked = (options.output_attentions, options.output_hidden_states, True)
        trunk = self.base_model(pixel_values, noise, head_mask, interpolate, *asked, training=training)
        size = self.size_of(pixel_values) if interpolate else None
        logits = self.decoder(trunk.last_hidden_state, trunk.ids_restore, size=size, training=training)
        loss = self.forward_loss(pixel_values, logits, trunk.mask, interpolate)
        return self.answer(options, trunk, loss=loss, logits=logits, mask=trunk.mask, ids_restore=trunk.ids_restore)

    def forward_loss(
        self, pixel_values: Tensor, pred: Tensor, mask: Tensor, interpolate_pos_encoding: bool = False
    ) -> Tensor:
        """Mean squared error of the pixels (B, N, P Q C) of the removed patches, those of `mask` (B, N) 1.

        It is 0 where none is removed.
        """
        target = self.patchify(pixel_values, interpolate_pos_encoding)
        return masked_patch_loss(target, pred, mask, self.config)

    def patchify(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """Pixels, in the model's layout, patch by patch, (B, N, P Q C): its rows, their columns, channels last.

        Raises ValueError for another size than the model's, unless `interpolate_pos_encoding`.
        """
        shape = tuple(pixel_values.shape)
        calls.check_pixel_values(shape, self.config, interpolate_pos_encoding, self.channels_axis)
        x = pixel_values if self.channels_axis == 3 else tf.transpose(pixel_values, (0, 2, 3, 1))  # (B, H, W, C)
        (ph, pw), (rows, columns) = pair(self.config.patch_size), calls.grid(ops.shape(x)[1:3], self.config)
        values = ph * pw * self.config.num_channels
        x = tf.reshape(x[:, : rows * ph, : columns * pw], (-1, rows, ph, columns, pw, self.config.num_channels))
        return tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, values))

    def unpatchify(self, patchified_pixel_values: Tensor, original_image_size: Sequence[Any] | None = None) -> Tensor:
        """Pixels, in the model's layout, of patches (B, N, P Q C) of an image of this size, by default the model's.

        Raises ValueError for another number of patches.
        """
        size = pair(self.config.image_size) if original_image_size is None else original_image_size
        calls.check_patches(tuple(patchified_pixel_values.shape), size, self.config)
        (ph, pw), (rows, columns) = pair(self.config.patch_size), calls.grid(size, self.config)
        x = tf.reshape(patchified_pixel_values, (-1, rows, columns, ph, pw, self.config.num_channels))
        x = tf.reshape(tf.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * ph, columns * pw, self.config.num_channels))
        return x if self.channels_axis == 3 else tf.transpose(x, (0, 3, 1, 2))


def taken(x: Tensor, ids: Tensor) -> Tensor:
    """Of tokens (B, n, D) those of these numbers (B, m), (B, m, D)."""
    return tf.gather(x, ids, axis=1, batch_dims=1)


def num_kept(patches: Any, config: ViTConfig) -> Any:
    """How many of so many patches the encoder sees, with an assertion in the graph where only it knows their number."""
    if type(patches) is int:
        return calls.num_kept(patches, config)
    kept = tf.cast(tf.cast(patches, tf.float64) * (1 - config.mask_ratio), tf.int32)
    message = tf.strings.format(calls.none_kept("{}", config), patches)
    with tf.control_dependencies([tf.debugging.Assert(kept > 0, [message])]):
        return tf.identity(kept)
