"""MAE in JAX: an encoder of the patches that are kept, and a decoder that reconstructs the others.

Paper: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3. Agrees with `modeling_vit_mae` of
transformers 4.57.6, whose modules it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.config import pair
from vit_core.family import MAE
from vit_core.params import spec_of
from vit_flax.base import FlaxViTPreTrainedModel, shapes
from vit_flax.embeddings import expanded, patches, resized_positions
from vit_flax.encoder import ViTLayer, computed, layers_of
from vit_flax.losses import masked_patch_loss
from vit_flax.modeling import FlaxViTModel, FlaxViTModule, ViTWithHead
from vit_flax.module import ViTModule
from vit_flax.outputs import ViTMAEForPreTrainingOutput, ViTMAEModelOutput


class FlaxViTMAEModule(FlaxViTModule):
    """The encoder as a Linen module; see `FlaxViTMAEModel`."""

    output_class: ClassVar[type[ViTMAEModelOutput[Array]]] = ViTMAEModelOutput  # type: ignore[assignment]
    add_pooling_layer: ClassVar[bool] = False  # type: ignore[misc]
    use_mask_token: ClassVar[bool] = False  # type: ignore[misc]

    def __call__(  # type: ignore[override]
        self,
        pixel_values: Array | None = None,
        noise: Array | None = None,
        head_mask: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTMAEModel`; pure, for `module.apply({"params": params}, ...)`.

        Without noise it is drawn with the key of `rngs={"noise": key}`.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given, axis = shapes(pixel_values, None, head_mask, None, noise=noise), self.channels_axis
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False, channels_axis=axis)
        assert pixel_values is not None

        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate, train=train)
        if noise is None:
            noise = jax.random.uniform(self.make_rng("noise"), (x.shape[0], x.shape[1] - 1))
        kept = calls.num_kept(noise.shape[1], self.config)
        order = jnp.argsort(noise, axis=1, stable=True)  # (B, N)
        ids_restore = jnp.argsort(order, axis=1)
        x = jnp.concatenate([x[:, :1], taken(x[:, 1:], order[:, :kept])], axis=1)  # (B, 1 + K, D)
        encoded = self.encoder(x, head_mask, None, options, train)
        output = self.output_class(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            mask=(ids_restore >= kept).astype(jnp.float32),
            ids_restore=ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTMAEDecoder(ViTModule):
    """Layers in a width of their own on all patches, the mask token in the place of those that were removed."""

    def setup(self) -> None:
        self.decoder_embed = self.linear(self.config.decoder_hidden_size)
        self.mask_token = self.weight("decoder.mask_token")
        self.decoder_pos_embed = self.weight("decoder.decoder_pos_embed")
        self.decoder_layers = layers_of(ViTLayer, **{**self.common, "config": self.config.decoder})
        self.decoder_norm = self.layer_norm()
        self.decoder_pred = self.linear(spec_of(self.config, "decoder.decoder_pred.weight").shape[0])

    def __call__(
        self, hidden_states: Array, ids_restore: Array, size: Sequence[int] | None = None, train: bool = False
    ) -> Array:
        """Pixels (B, N, P Q C) of the encoder's tokens (B, 1 + K, D); `size`, height x width, where it is another."""
        x = self.decoder_embed(hidden_states)
        removed = jnp.broadcast_to(self.mask_token, (1, ids_restore.shape[1] + 1 - x.shape[1], x.shape[2]))
        x = jnp.concatenate([x, expanded(removed, x)], axis=1)
        x = jnp.concatenate([x[:, :1], taken(x[:, 1:], ids_restore)], axis=1)  # (B, 1 + N, Dd)
        table = self.decoder_pos_embed
        x = x + (table if size is None else resized_positions(table, size, self.config)).astype(x.dtype)
        x, _ = computed(self.decoder_layers, x, train=train)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]


class FlaxViTMAEForPreTrainingModule(ViTWithHead):
    """The encoder and the decoder as a Linen module; see `FlaxViTMAEForPreTraining`."""

    trunk_class = FlaxViTMAEModule
    output_class: ClassVar[type[ViTMAEForPreTrainingOutput[Array]]] = ViTMAEForPreTrainingOutput

    @nn.nowrap
    def build_head(self) -> None:
        self.decoder = ViTMAEDecoder(**self.common)

    def __call__(
        self,
        pixel_values: Array | None = None,
        noise: Array | None = None,
        head_mask: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTMAEModule`; states and attentions are the encoder's, and so is `head_mask`."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        asked = (options.output_attentions, options.output_hidden_states, True)
        trunk = self.base_model(pixel_values, noise, head_mask, interpolate, *asked, train)
        assert pixel_values is not None
        size = self.size_of(pixel_values) if interpolate else None
        logits = self.decoder(trunk.last_hidden_state, trunk.ids_restore, size=size, train=train)
        loss = self.forward_loss(pixel_values, logits, trunk.mask, interpolate)
        return self.answer(options, trunk, loss=loss, logits=logits, mask=trunk.mask, ids_restore=trunk.ids_restore)

    def forward_loss(
        self, pixel_values: Array, pred: Array, mask: Array, interpolate_pos_encoding: bool = False
    ) -> Array:
        """Mean squared error of the pixels (B, N, P Q C) of the removed patches, those of `mask` (B, N) 1.

        It is 0 where none is removed.
        """
        target = self.patchify(pixel_values, interpolate_pos_encoding)
        return masked_patch_loss(target, pred, mask, self.config)

    def patchify(self, pixel_values: Array, interpolate_pos_encoding: bool = False) -> Array:
        """Pixels, in the model's layout, patch by patch, (B, N, P Q C): its rows, their columns, channels last.

        Raises ValueError for another size than the model's, unless `interpolate_pos_encoding`.
        """
        shape, axis = pixel_values.shape, self.channels_axis
        calls.check_pixel_values(shape, self.config, interpolate_pos_encoding, axis)
        return patches(pixel_values, self.config, axis)

    def unpatchify(self, patchified_pixel_values: Array, original_image_size: Sequence[int] | None = None) -> Array:
        """Pixels, in the model's layout, of patches (B, N, P Q C) of an image of this size, by default the model's.

        Raises ValueError for another number of patches.
        """
        size = pair(self.config.image_size) if original_image_size is None else original_image_size
        x, channels = patchified_pixel_values, self.config.num_channels
        calls.check_patches(x.shape, size, self.config)
        (ph, pw), (rows, columns), batch = pair(self.config.patch_size), calls.grid(size, self.config), x.shape[0]
        x = x.reshape(batch, rows, columns, ph * pw * channels).reshape(batch, rows, columns, ph, pw, channels)
        if self.channels_axis == 1:
            x = x.transpose(0, 5, 1, 3, 2, 4).reshape(batch, channels, rows * ph, columns, pw)
            return x.reshape(batch, channels, rows * ph, columns * pw)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * ph, columns, pw, channels)
        return x.reshape(batch, rows * ph, columns * pw, channels)


class FlaxViTMAEPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of MAE's models."""

    config_class = MAE.config
    base_model_prefix = MAE.trunk

    def rngs(self, inputs: dict[str, Any], dropout_rng: Any, train: bool) -> dict[str, Any]:
        found, noise_rng = super().rngs(inputs, dropout_rng, train), inputs.pop("noise_rng", None)
        if inputs.get("noise") is not None:
            return found
        if noise_rng is None:
            raise ValueError(
                "Which patches are kept is drawn: pass a key for it, such as noise_rng=jax.random.key(0), or noise=."
            )
        return {**found, "noise": noise_rng}


class FlaxViTMAEModel(FlaxViTMAEPreTrainedModel, FlaxViTModel):
    """The encoder, of the patches that random masking keeps; returns `ViTMAEModelOutput`.

    A call takes `noise` (B, N): the patches of the least are kept, in the order of their noise. Without noise it is
    drawn, in evaluation as in training, with `noise_rng`, a key. `features` are those of all patches, in their order.
    """

    architecture = "ViTMAEModel"
    module_class: ClassVar[type[FlaxViTMAEModule]] = FlaxViTMAEModule


class FlaxViTMAEForPreTraining(FlaxViTMAEPreTrainedModel):
    """The encoder and the decoder; returns `ViTMAEForPreTrainingOutput`, with the loss of the removed patches.

    It is called as `FlaxViTMAEModel` is.
    """

    architecture = "ViTMAEForPreTraining"
    module_class: ClassVar[type[FlaxViTMAEForPreTrainingModule]] = FlaxViTMAEForPreTrainingModule

    def forward_loss(
        self, pixel_values: Array, pred: Array, mask: Array, interpolate_pos_encoding: bool = False
    ) -> Array:
        """As that of `FlaxViTMAEForPreTrainingModule`."""
        loss: Array = self.module.forward_loss(pixel_values, pred, mask, interpolate_pos_encoding)
        return loss

    def patchify(self, pixel_values: Array, interpolate_pos_encoding: bool = False) -> Array:
        """As that of `FlaxViTMAEForPreTrainingModule`."""
        patchified: Array = self.module.patchify(pixel_values, interpolate_pos_encoding)
        return patchified

    def unpatchify(self, patchified_pixel_values: Array, original_image_size: Sequence[int] | None = None) -> Array:
        """As that of `FlaxViTMAEForPreTrainingModule`."""
        pixels: Array = self.module.unpatchify(patchified_pixel_values, original_image_size)
        return pixels


def taken(x: Array, ids: Array) -> Array:
    """Of tokens (B, n, D) those of these numbers (B, m), (B, m, D)."""
    ids = ids + jnp.zeros_like(x[:, :1, 0], ids.dtype)  # divided among devices as the tokens are
    return jax.vmap(lambda tokens, places: tokens[places])(x, ids)
