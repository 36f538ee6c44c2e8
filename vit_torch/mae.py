"""MAE in PyTorch: an encoder of the patches that are kept, and a decoder that reconstructs the others.

Paper: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3. Agrees with `modeling_vit_mae` of
transformers 4.57.6, whose modules it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import MAE
from vit_core.params import spec_of
from vit_torch.base import ViTPreTrainedModel, shapes
from vit_torch.embeddings import resized_positions, weight
from vit_torch.encoder import ViTLayer, computed, layer_norm
from vit_torch.layers import linear
from vit_torch.losses import masked_patch_loss
from vit_torch.modeling import ViTModel, ViTWithHead
from vit_torch.outputs import ViTMAEForPreTrainingOutput, ViTMAEModelOutput


class ViTMAEPreTrainedModel(ViTPreTrainedModel):
    """Base of MAE's models."""

    config_class = MAE.config
    base_model_prefix = MAE.trunk


class ViTMAEModel(ViTMAEPreTrainedModel, ViTModel):
    """The encoder, of the patches that random masking keeps; returns `ViTMAEModelOutput`.

    `features` are those of all patches, in their order.
    """

    architecture = "ViTMAEModel"
    output_class: type[ViTMAEModelOutput[Tensor]] = ViTMAEModelOutput  # type: ignore[assignment]

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, False, False, seed=seed)

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Pixels (B, C, H, W); `noise` (B, N): the patches of the least are kept, in the order of their noise.

        Without noise it is drawn, in evaluation as in training. `head_mask` is (h,) or (L, h), 1 keeps; the options
        left at None are the configuration's. Raises ValueError for what does not fit, TypeError for what is no tensor
        of floats.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given = shapes(pixel_values, None, head_mask, None, noise=noise)
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False)

        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
        if noise is None:
            noise = torch.rand(x.shape[0], x.shape[1] - 1, device=x.device)
        kept = calls.num_kept(noise.shape[1], self.config)
        stable = {} if torch.onnx.is_in_onnx_export() else {"stable": True}  # as ONNX's is, without saying so
        order = noise.argsort(dim=1, **stable)  # (B, N)
        ids_restore = order.argsort(dim=1)
        x = torch.cat([x[:, :1], taken(x[:, 1:], order[:, :kept])], dim=1)  # (B, 1 + K, D)
        encoded = self.encoder(x, head_mask, None, options)
        output = self.output_class(
            last_hidden_state=self.layernorm(encoded.last_hidden_state),
            mask=(ids_restore >= kept).float(),
            ids_restore=ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTMAEDecoder(nn.Module):
    """Layers in a width of their own on all patches, the mask token in the place of those that were removed."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config, self.of_layers = config, config.decoder
        self.decoder_embed = nn.Linear(config.hidden_size, config.decoder_hidden_size)
        self.mask_token = weight(config, "decoder.mask_token")
        self.decoder_pos_embed = weight(config, "decoder.decoder_pos_embed")
        layers = range(config.decoder_num_hidden_layers)
        self.decoder_layers = nn.ModuleList(ViTLayer(self.of_layers) for _ in layers)
        self.decoder_norm = layer_norm(self.of_layers)
        outputs, inputs = spec_of(config, "decoder.decoder_pred.weight").shape
        self.decoder_pred = nn.Linear(inputs, outputs)
        self.checkpointing: dict[str, Any] | None = None

    def forward(self, hidden_states: Tensor, ids_restore: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Pixels (B, N, P Q C) of the encoder's tokens (B, 1 + K, D); `size`, height x width, where it is another."""
        x = linear(self.decoder_embed, hidden_states)
        removed = ids_restore.shape[1] + 1 - x.shape[1]
        x = torch.cat([x, self.mask_token.expand(x.shape[0], removed, -1)], dim=1)
        x = torch.cat([x[:, :1], taken(x[:, 1:], ids_restore)], dim=1)  # (B, 1 + N, Dd)
        table = self.decoder_pos_embed
        x = x + (table if size is None else resized_positions(table, size, self.config))
        for layer in self.decoder_layers:
            x = computed(layer, self.checkpointing, x)
        return linear(self.decoder_pred, self.decoder_norm(x))[:, 1:]


class ViTMAEForPreTraining(ViTMAEPreTrainedModel, ViTWithHead):
    """The encoder and the decoder; returns `ViTMAEForPreTrainingOutput`, with the loss of the removed patches."""

    architecture = "ViTMAEForPreTraining"
    trunk_class = ViTMAEModel
    output_class: type[ViTMAEForPreTrainingOutput[Tensor]] = ViTMAEForPreTrainingOutput

    def build_head(self) -> None:
        self.decoder = ViTMAEDecoder(self.config)

    def set_attn_implementation(self, attn_implementation: str | None) -> None:
        super().set_attn_implementation(attn_implementation)
        self.decoder.of_layers.attn_implementation = attn_implementation

    def forward(
        self,
        pixel_values: Tensor | None = None,
        noise: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As `ViTMAEModel`; states and attentions are the encoder's, and so is `head_mask`."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        asked = (options.output_attentions, options.output_hidden_states, True)
        trunk = self.base_model(pixel_values, noise, head_mask, interpolate, *asked)
        assert pixel_values is not None
        size = pixel_values.shape[2:] if interpolate else None
        logits = self.decoder(trunk.last_hidden_state, trunk.ids_restore, size=size)
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
        """Pixels (B, C, H, W) patch by patch, (B, N, P Q C): its rows, their columns, channels last.

        Raises ValueError for another size than the model's, unless `interpolate_pos_encoding`.
        """
        calls.check_pixel_values(tuple(pixel_values.shape), self.config, interpolate_pos_encoding)
        (ph, pw), (rows, columns) = pair(self.config.patch_size), calls.grid(pixel_values.shape[2:], self.config)
        x = pixel_values[:, :, : rows * ph, : columns * pw]
        x = torch.unflatten(torch.unflatten(x, 3, (columns, pw)), 2, (rows, ph))  # (B, C, H / ph, ph, W / pw, pw)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, patchified_pixel_values: Tensor, original_image_size: Sequence[int] | None = None) -> Tensor:
        """Pixels (B, C, H, W) of patches (B, N, P Q C) of an image of this size, by default the model's.

        Raises ValueError for another number of patches.
        """
        size = pair(self.config.image_size) if original_image_size is None else original_image_size
        calls.check_patches(tuple(patchified_pixel_values.shape), size, self.config)
        (ph, pw), (rows, columns) = pair(self.config.patch_size), calls.grid(size, self.config)
        x = torch.unflatten(torch.unflatten(patchified_pixel_values, 2, (ph, pw, -1)), 1, (rows, columns))
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # of (B, C, H / ph, ph, W / pw, pw)


def taken(x: Tensor, ids: Tensor) -> Tensor:
    """Of tokens (B, n, D) those of these numbers (B, m), (B, m, D)."""
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[2]))
