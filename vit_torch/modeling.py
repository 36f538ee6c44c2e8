"""The Vision Transformer in PyTorch: embeddings, encoder and the three models.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6, whose parameter names it keeps.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N + 1), D hidden, F mlp, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.position import bicubic_matrix
from vit_torch.activations import ViTActivation
from vit_torch.attention import additive_bias, choose
from vit_torch.losses import classification_loss, masked_reconstruction_loss
from vit_torch.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from vit_torch.weights import ViTPreTrainedModel, hooked, shapes


class ViTPatchEmbeddings(nn.Module):
    """Non-overlapping patches, each projected to D."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = pair(config.patch_size)
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)


class ViTEmbeddings(nn.Module):
    """CLS token and patches plus position embeddings (equation 1); masked patches give way to the mask token."""

    def __init__(self, config: ViTConfig, use_mask_token: bool = False) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_patches + 1, config.hidden_size))
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Tensor, bool_masked_pos: Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> Tensor:
        height, width = pixel_values.shape[2:]
        x = self.patch_embeddings(pixel_values.to(self.patch_embeddings.projection.weight.dtype))
        if bool_masked_pos is not None:
            assert self.mask_token is not None
            x = torch.where(bool_masked_pos[..., None] != 0, self.mask_token, x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)  # (B, S, D)
        positions = self.resized_positions(height, width) if interpolate_pos_encoding else self.position_embeddings
        return self.dropout(x + positions)

    def resized_positions(self, height: int, width: int) -> Tensor:
        """The position embeddings for an image of height x width pixels; the CLS row is untouched."""
        table, source = self.position_embeddings, self.config.grid
        target = calls.grid((height, width), self.config)
        wide = torch.promote_types(table.dtype, torch.float32)
        rows, columns = (
            bicubic_matrix(
                torch.arange(t, dtype=torch.float64, device=table.device),
                torch.arange(s, dtype=torch.float64, device=table.device),
                s / t,
                torch,
            ).to(wide)
            for s, t in zip(source, target, strict=True)
        )
        grid = (rows @ table[0, 1:].to(wide).reshape(source[0], -1)).reshape(-1, source[1], table.shape[2])
        patches = (columns @ grid).flatten(0, 1)[None].to(table.dtype)
        return torch.cat([table[:, :1], patches], dim=1)


class ViTSelfAttention(nn.Module):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> tuple[Tensor, Tensor | None]:
        x, heads = hidden_states, (self.config.num_attention_heads, -1)
        q, k, v = (f(x).unflatten(2, heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, h, S, d)
        attend = choose(self.config.attn_implementation, options.output_attentions)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        context, probs = attend(q, k, v, bias, head_mask, dropout)
        return context.transpose(1, 2).flatten(2), probs  # (B, S, D)


class ViTSelfOutput(nn.Module):
    """The output projection of an attention (equation 8); the residual is its layer's."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(self.dense(hidden_states))


class ViTAttention(nn.Module):
    """Self-attention and its output projection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = ViTSelfAttention(config)
        self.output = ViTSelfOutput(config)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        context, probs = self.attention(hidden_states, head_mask, bias, options)
        return options.joined(self.output(wanted(context, options)), probs)


class ViTIntermediate(nn.Module):
    """The first linear layer of the MLP, and its activation."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.intermediate_act_fn = ViTActivation(config.hidden_act)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class ViTOutput(nn.Module):
    """The second linear layer of the MLP, and the residual."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return input_tensor + self.dropout(self.dense(hidden_states))


class ViTLayer(nn.Module):
    """One pre-norm block: attention, then the MLP (equations 2 and 3)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.attention = ViTAttention(config)
        self.intermediate = ViTIntermediate(config)
        self.output = ViTOutput(config)
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        attended, probs = options.parted(self.attention(self.layernorm_before(hidden_states), head_mask, bias, options))
        x = wanted(hidden_states, options) + attended
        return options.joined(self.output(self.intermediate(self.layernorm_after(x)), x), probs)


class ViTEncoder(nn.Module):
    """L layers; with `checkpointing`, training recomputes each of them in the backward pass."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.checkpointing: dict[str, Any] | None = None

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Tensor | None = None,
        options: calls.Options = calls.DEFAULT,
    ) -> BaseModelOutput:
        x, states, attentions = hidden_states, [hidden_states], []
        for i, layer in enumerate(self.layer):
            mask = head_mask[i] if head_mask is not None and head_mask.dim() == 2 else head_mask
            args = (x, mask, bias, options.of_layer(i, len(self.layer)))
            if self.checkpointing is not None and self.training:
                returned = checkpoint(layer, *args, **self.checkpointing)
            else:
                returned = layer(*args)
            x, probs = options.parted(returned)
            if options.output_hidden_states:
                states.append(x)
            if options.output_attentions:
                attentions.append(probs)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=tuple(states) if options.output_hidden_states else None,
            attentions=tuple(attentions) if options.output_attentions else None,
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

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool = True,
        use_mask_token: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(config, self.parts_of(config, add_pooling_layer, use_mask_token))
        self.embeddings = ViTEmbeddings(config, use_mask_token)
        self.encoder = ViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = ViTPooler(config) if add_pooling_layer else None
        self.init_weights(seed)

    def watched(self) -> bool:
        """Whether a hook may see that the last layer or what follows leaves tokens out."""
        return hooked(self, self.encoder, *self.encoder.layer[-1].modules(), self.layernorm)

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
        calls.check_inputs(
            self.config,
            shapes(pixel_values, bool_masked_pos, head_mask, attention_mask),
            interpolate=bool(interpolate_pos_encoding),
            has_mask_token=self.embeddings.mask_token is not None,
        )

        x = self.embeddings(pixel_values, bool_masked_pos, bool(interpolate_pos_encoding))
        bias = additive_bias(attention_mask, x.dtype)
        encoded = self.encoder(x, head_mask, bias, options)
        x = self.layernorm(encoded.last_hidden_state)[:, :tokens]
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.pooler is not None else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTForImageClassification(ViTPreTrainedModel):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `num_labels=0` the logits are that token's features.
    """

    architecture = "ViTForImageClassification"

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, self.parts_of(config))
        self.vit = ViTModel(config, add_pooling_layer=False, seed=seed)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels else nn.Identity()
        self.init_weights(seed, {"classifier"})

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
        asked = (output_attentions, output_hidden_states, return_dict, 1)
        options = calls.resolve_options(self.config, *asked, self.vit.watched())
        trunk = self.vit(
            pixel_values,
            head_mask=head_mask,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
            tokens=options.tokens,
        )
        logits = self.classifier(trunk.last_hidden_state[:, 0])
        output = ImageClassifierOutput(
            loss=classification_loss(logits, labels, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTPixelShuffle(nn.Module):
    """Channels to pixels: (B, C rh rw, H / ph, W / pw) to (B, C, H, W)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.stride = pair(config.encoder_stride)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (-1, *self.stride)).permute(0, 1, 4, 2, 5, 3)  # (B, C, H / ph, rh, W / pw, rw)
        return x.flatten(4, 5).flatten(2, 3)


class ViTForMaskedImageModeling(ViTPreTrainedModel):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, self.parts_of(config))
        self.vit = ViTModel(config, add_pooling_layer=False, use_mask_token=True, seed=seed)
        rh, rw = pair(config.encoder_stride)
        conv = nn.Conv2d(config.hidden_size, rh * rw * config.num_channels, kernel_size=1)
        self.decoder = nn.Sequential(conv, ViTPixelShuffle(config))
        self.init_weights(seed, {"decoder"})

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
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        if bool_masked_pos is not None:
            calls.check_reconstruction(self.config)
        trunk = self.vit(
            pixel_values,
            bool_masked_pos=bool_masked_pos,
            head_mask=head_mask,
            attention_mask=attention_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            output_attentions=options.output_attentions,
            output_hidden_states=options.output_hidden_states,
            return_dict=True,
        )
        assert pixel_values is not None
        reconstruction = self.reconstruct(trunk.last_hidden_state[:, 1:], pixel_values.shape[2:])
        loss = None
        if bool_masked_pos is not None:
            loss = masked_reconstruction_loss(pixel_values, reconstruction, bool_masked_pos, self.config)
        output = MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def reconstruct(self, patches: Tensor, size: Sequence[int]) -> Tensor:
        """Pixels (B, C, H, W) of the encoded patches (B, N, D) of an image of `size`, height x width."""
        return self.decoder(packed(patches.transpose(1, 2)).unflatten(2, calls.grid(size, self.config)))


def wanted(x: Tensor, options: calls.Options) -> Tensor:
    """`options.wanted`, in memory of its own."""
    first = options.wanted(x)
    return x if first is x else packed(first)


def packed(view: Tensor) -> Tensor:
    """A copy without strides, which exporters and quantised kernels misread: `contiguous` is none for a batch of 1."""
    return view.clone(memory_format=torch.contiguous_format)
