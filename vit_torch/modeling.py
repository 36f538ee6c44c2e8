"""The Vision Transformer in PyTorch: the bare model and its heads, of which other members of the family are made.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6, whose parameter names it keeps.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N and those before them), D hidden, F mlp,
h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.family import HEADS
from vit_core.outputs import of_layers
from vit_core.params import spec_of
from vit_torch.activations import ViTActivation
from vit_torch.base import ViTPreTrainedModel, shapes, watched
from vit_torch.embeddings import ViTEmbeddings
from vit_torch.encoder import ViTEncoder, ViTLayer, layer_norm, packed
from vit_torch.losses import classification_loss, masked_reconstruction_loss
from vit_torch.outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)


class ViTPooler(nn.Module):
    """A dense layer and an activation, of the CLS token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_size)
        self.activation = ViTActivation(config.pooler_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.activation(self.dense(hidden_states[:, 0]))


class ViTModel(ViTPreTrainedModel):
    """The bare Vision Transformer; returns `BaseModelOutputWithPooling`.

    `add_pooling_layer` adds a dense layer on the CLS token; `use_mask_token` adds the token that takes the place of the
    patches in `bool_masked_pos`. `seed` draws the initial weights that every framework draws from it.
    """

    architecture = "ViTModel"
    layer_class: type[nn.Module] = ViTLayer
    encoder_class: type[ViTEncoder] = ViTEncoder
    pooler_class: type[nn.Module] = ViTPooler
    output_class: type[BaseModelOutputWithPooling[Tensor]] = BaseModelOutputWithPooling

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool = True,
        use_mask_token: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(config, self.parts_of(config, add_pooling_layer, use_mask_token))
        self.embeddings = ViTEmbeddings(config, "mask_token" in self.parts)
        self.encoder = self.encoder_class(config, self.layer_class)
        self.layernorm = layer_norm(config) if config.final_norm else nn.Identity()
        self.pooler = self.pooler_class(config) if "pooler" in self.parts else None
        self.init_weights(seed)

    def watched(self) -> bool:
        """Whether something may see that the last layer leaves tokens out."""
        return self._watched_after(len(self.encoder.layer))

    def _watched_after(self, depth: int) -> bool:
        """Whether that may be so in the layer that is the last of so many, or in what follows."""
        return watched(self, self.encoder, *self.encoder.layer[depth - 1].modules(), self.layernorm)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        tokens: int | None = None,
    ) -> Any:
        """Pixels (B, C, H, W); `bool_masked_pos` (B, N), 1 where masked; `head_mask` (h,) or (L, h), 1 keeps.

        `attention_mask` is (B, S), 1 to attend, or (B, 1, S, S), added to the scores; the options left at None are the
        configuration's. `tokens` asks for the first so many tokens alone, which is faster: 1 is the CLS token, that the
        pooler reads. Raises ValueError for what does not fit, TypeError for what is no tensor of floats.
        """
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked, self.watched())
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        calls.check_inputs(
            self.config,
            shapes(pixel_values, bool_masked_pos, head_mask, attention_mask),
            interpolate=interpolate,
            has_mask_token=self.embeddings.mask_token is not None,
        )

        x = self.embeddings(pixel_values, bool_masked_pos=bool_masked_pos, interpolate_pos_encoding=interpolate)
        assert pixel_values is not None
        bias = self.encoder.score_bias(attention_mask, x.dtype, pixel_values, interpolate)
        encoded = self.encoder(x, head_mask, bias, options)
        x = self.layernorm(encoded.last_hidden_state)
        output = self.output_class(
            last_hidden_state=options.first(x, tokens),
            pooler_output=self.pool(x),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def pool(self, x: Tensor) -> Tensor | None:
        """The pooled output (B, O) of the normalised tokens (B, S, D), where there is any."""
        return self.pooler(x) if self.pooler is not None else None

    @of_layers
    def features(
        self,
        pixel_values: Tensor,
        layers: int | Sequence[int] = -1,
        pool: str | None = None,
        reshape: bool = False,
        normalize: bool = True,
        interpolate_pos_encoding: bool | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Features of pixels (B, C, H, W) after one layer, a tensor, or after several, a tuple of them.

        `layers` counts as `hidden_states` does: 0 is the embeddings, -1 the last layer. `pool` takes the CLS token,
        "cls" (B, D), which is the default, the mean of the patches, "mean" (B, D), the default without a CLS token, or
        all "patches" (B, N, D), as maps (B, D, h, w) with `reshape`. `normalize` applies the final LayerNorm to each.
        Layers that are not asked for are not computed. Raises ValueError for what does not fit.
        """
        depths, pool = calls.depths(self.config, layers), calls.pooling(self.config, pool, reshape)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given = shapes(pixel_values, None, None, None)
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False)
        found: tuple[Tensor, ...] = self.base_model._features(
            pixel_values, depths, pool, reshape, normalize, interpolate
        )
        return found

    def _features(
        self, pixels: Tensor, depths: tuple[int, ...], pool: str, reshape: bool, normalize: bool, interpolate: bool
    ) -> tuple[Tensor, ...]:
        x = self.embeddings(pixels, interpolate_pos_encoding=interpolate)
        bias = self.encoder.score_bias(None, x.dtype, pixels, interpolate)
        options = calls.features_options(self.config, depths, pool, self._watched_after(max(depths)))
        states = self.encoder(x, None, bias, options).hidden_states
        size = pixels.shape[2:] if reshape else None
        return tuple(self.pooled(states[i], pool, size, normalize) for i in depths)

    def pooled(self, x: Tensor, pool: str, size: Sequence[int] | None = None, normalize: bool = True) -> Tensor:
        """What `features` makes of tokens (B, S, D); maps of the patches of an image of `size`, where that is given."""
        x = self.layernorm(x) if normalize else x
        if pool == "tokens":
            return x
        if pool == "cls":
            return x[:, 0]
        patches = x[:, self.config.num_prefix_tokens :]
        if pool == "mean":
            return patches.mean(1)
        if size is None:
            return patches
        return torch.unflatten(packed(patches.transpose(1, 2)), 2, calls.grid(size, self.config))


class ViTWithHead(ViTPreTrainedModel):
    """The trunk, under its member's name, and a head on its tokens: what every such model has."""

    if TYPE_CHECKING:  # the trunk, by the name that a member has for it: nn.Module's own word is Tensor | Module
        vit: ViTModel
        deit: ViTModel
        beit: ViTModel
        dinov2: ViTModel
        dinov2_with_registers: ViTModel
        ijepa: ViTModel

    trunk_class: type[ViTModel] = ViTModel
    output_class: type[ModelOutput[Tensor]]
    tokens: int | None = None  # of the trunk's, the first ones that the head reads; None for all
    features = ViTModel.features

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, self.parts_of(config))
        trunk = self.trunk_class(
            config, **self.family().arguments(self.trunk_class.architecture, self.parts), seed=seed
        )
        setattr(self, self.base_model_prefix, trunk)
        self.build_head()
        self.init_weights(seed, HEADS)

    def build_head(self) -> None:
        """Make the layers of the head."""
        raise NotImplementedError

    def encoded(
        self, *inputs: Any, output_attentions: bool | None, output_hidden_states: bool | None, return_dict: bool | None
    ) -> tuple[calls.Options, BaseModelOutputWithPooling]:
        """The options of a call, and the trunk's output of these inputs, in the order of the trunk's own."""
        tokens = self.tokens if self.config.pool == "cls" else None
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked, self.base_model.watched())
        asked = (options.output_attentions, options.output_hidden_states, True, options.tokens)
        return options, self.base_model(*inputs, *asked)

    def answer(self, options: calls.Options, trunk: BaseModelOutputWithPooling, **found: Any) -> Any:
        """The output of what the head has found, as the call asks for it."""
        output = self.output_class(**found, hidden_states=trunk.hidden_states, attentions=trunk.attentions)
        return output if options.return_dict else output.to_tuple()


class ViTForImageClassification(ViTWithHead):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `config.pool="mean"` it is on the mean of the patches, normalised where `config.fc_norm` says so. With
    `num_labels=0` the logits are what it would read.
    """

    architecture = "ViTForImageClassification"
    output_class: type[ImageClassifierOutput[Tensor]] = ImageClassifierOutput
    tokens: int | None = 1
    reads = "last_hidden_state"  # of the trunk's output

    def build_head(self) -> None:
        self.fc_norm = layer_norm(self.config) if self.config.fc_norm else nn.Identity()
        self.classifier = self.build_classifier("classifier")  # the last of the children, as elsewhere

    def build_classifier(self, name: str) -> nn.Module:
        """The linear layer to the labels of this name; without labels the identity."""
        if not self.config.num_labels:
            return nn.Identity()
        outputs, inputs = spec_of(self.config, f"{name}.weight").shape
        return nn.Linear(inputs, outputs)

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        """What the head makes of what it `reads`, tokens (B, S, D), by its names in the output."""
        mean = self.config.pool == "mean"
        x = x[:, self.config.num_prefix_tokens :].mean(1) if mean else x[:, 0]
        return {"logits": self.classifier(self.fc_norm(x))}

    def forward(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As `ViTModel`; `labels` (B,) of classes, or (B, K) of numbers, give the loss of `config.problem_type`."""
        options, trunk = self.encoded(
            pixel_values,
            None,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        found = self.logits(trunk[self.reads])
        loss = classification_loss(found["logits"], labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, **found)


class ViTPixelShuffle(nn.Module):
    """Channels to pixels: (B, C rh rw, H / ph, W / pw) to (B, C, H, W)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.stride = pair(config.encoder_stride)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.unflatten(x, 1, (-1, *self.stride)).permute(0, 1, 4, 2, 5, 3)  # (B, C, H / ph, rh, W / pw, rw)
        return x.flatten(4, 5).flatten(2, 3)


class ViTForMaskedImageModeling(ViTWithHead):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"
    output_class: type[MaskedImageModelingOutput[Tensor]] = MaskedImageModelingOutput

    def build_head(self) -> None:
        rh, rw = pair(self.config.encoder_stride)
        conv = nn.Conv2d(self.config.hidden_size, rh * rw * self.config.num_channels, kernel_size=1)
        self.decoder = nn.Sequential(conv, ViTPixelShuffle(self.config))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As `ViTModel`; with `bool_masked_pos` (B, N) the output has the loss of the masked pixels."""
        if bool_masked_pos is not None:
            calls.check_reconstruction(self.config)
        options, trunk = self.encoded(
            pixel_values,
            bool_masked_pos,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )
        assert pixel_values is not None
        patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]
        reconstruction = self.reconstruct(patches, pixel_values.shape[2:])
        loss = None
        if bool_masked_pos is not None:
            loss = masked_reconstruction_loss(pixel_values, reconstruction, bool_masked_pos, self.config)
        return self.answer(options, trunk, loss=loss, reconstruction=reconstruction)

    def reconstruct(self, patches: Tensor, size: Sequence[int]) -> Tensor:
        """Pixels (B, C, H, W) of the encoded patches (B, N, D) of an image of `size`, height x width."""
        return self.decoder(torch.unflatten(packed(patches.transpose(1, 2)), 2, calls.grid(size, self.config)))
