"""BEiT in PyTorch: a ViT whose attention adds relative position biases, and a head that tells visual tokens.

Paper: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", section 2. Agrees with `modeling_beit` of
transformers 4.57.6, whose modules it has, but for grids that are not square: tables are resized along their own axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import ATTENTION_SCALE, BEIT, MLP_SCALE, POSITION_BIAS, SHARED_POSITION_BIAS, BeitConfig
from vit_core.position import bilinear_matrix, relative_position_index
from vit_torch.attention import additive_bias
from vit_torch.backbone import ViTBackbone
from vit_torch.base import ViTPreTrainedModel
from vit_torch.embeddings import has_own_grid, weight
from vit_torch.encoder import (
    ViTAttention,
    ViTDropPath,
    ViTEncoder,
    ViTIntermediate,
    ViTSelfAttention,
    asked,
    layer_norm,
    scaled,
    wanted,
)
from vit_torch.layers import linear
from vit_torch.losses import visual_token_loss
from vit_torch.modeling import ViTForImageClassification, ViTModel, ViTWithHead
from vit_torch.outputs import BeitModelOutputWithPooling, MaskedLMOutput

# How the tokens of a call stand to each other: rows (S, S) of the tables; what resizes these along (height, width),
# where they are of another grid; and what every layer adds to its scores beside that, (B or 1, h or 1, S or 1, S). A
# plain tuple: programs that hook a layer build another one of what is in it.
BeitPositions = tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]


class BeitRelativePositionBias(nn.Module):
    """What is added to the score of two tokens for their relative position, each head with a table of its own."""

    def __init__(self, config: BeitConfig, name: str) -> None:
        super().__init__()
        self.relative_position_bias_table = weight(config, name)

    def forward(self, positions: BeitPositions) -> Tensor:
        """(B or 1, h, S, S), with the other bias of the positions."""
        rows, resize, beside = positions
        tokens = rows.shape[0]
        table = self.relative_position_bias_table if resize is None else self.resized(*resize)
        bias = table.t().index_select(1, rows.flatten()).view(1, -1, tokens, tokens)
        return bias if beside is None else bias + beside

    def resized(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The table for another grid, by one matrix along each axis; the rows with a CLS token are untouched."""
        table, (height, width) = self.relative_position_bias_table, (rows.shape[1], columns.shape[1])
        wide = torch.promote_types(table.dtype, torch.float32)
        grid = (rows.to(wide) @ table[:-3].to(wide).reshape(height, -1)).reshape(-1, width, table.shape[1])
        return torch.cat([(columns.to(wide) @ grid).flatten(0, 1).to(table.dtype), table[-3:]])


class BeitSelfAttention(ViTSelfAttention):
    """Multi-head self-attention, with the layer's own relative position bias where it has one."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__(config)
        own = config.use_relative_position_bias
        self.relative_position_bias = BeitRelativePositionBias(config, POSITION_BIAS.format(0)) if own else None

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
    ) -> tuple[Tensor, Tensor | None]:
        """As ViT's; the bias is `BeitPositions` where the layer has a table."""
        if self.relative_position_bias is not None:
            bias = self.relative_position_bias(bias)
        return super().forward(hidden_states, head_mask, bias, options)


class BeitAttention(ViTAttention):
    """Self-attention and its output projection."""

    attention_class = BeitSelfAttention


class BeitOutput(nn.Module):
    """The second linear layer of the MLP; its scale and the residual are its layer's."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dropout(linear(self.dense, hidden_states))


class BeitLayer(nn.Module):
    """One pre-norm block, whose branches are scaled."""

    def __init__(self, config: BeitConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention = BeitAttention(config)
        self.intermediate = ViTIntermediate(config)
        self.output = BeitOutput(config)
        self.drop_path = ViTDropPath(drop_path)
        self.layernorm_before = layer_norm(config)
        self.layernorm_after = layer_norm(config)
        scales = config.layer_scale_init_value
        self.lambda_1 = weight(config, ATTENTION_SCALE.format(0)) if scales else None
        self.lambda_2 = weight(config, MLP_SCALE.format(0)) if scales else None

    def forward(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
    ) -> Any:
        args = asked(self.layernorm_before(hidden_states), head_mask, bias, options)
        attended, probs = options.parted(self.attention(*args))
        x = wanted(hidden_states, options) + self.drop_path(scaled(attended, self.lambda_1))
        mlp = self.output(self.intermediate(self.layernorm_after(x)))
        return options.joined(x + self.drop_path(scaled(mlp, self.lambda_2)), probs)


class BeitEncoder(ViTEncoder):
    """L layers, and the relative position bias that they share."""

    def __init__(self, config: BeitConfig, layer_class: type[nn.Module] = BeitLayer) -> None:
        super().__init__(config, layer_class)
        self.config = config
        shared = config.use_shared_relative_position_bias
        self.relative_position_bias = BeitRelativePositionBias(config, SHARED_POSITION_BIAS) if shared else None

    def score_bias(
        self, attention_mask: Tensor | None, dtype: torch.dtype, pixel_values: Tensor, interpolate: bool
    ) -> Any:
        """As ViT's, with the shared relative position bias; `BeitPositions` where each layer has a bias of its own."""
        own, shared = self.config.use_relative_position_bias, self.relative_position_bias
        bias = additive_bias(attention_mask, dtype)
        if not own and shared is None:
            return bias
        positions = self.positions(pixel_values, interpolate, bias)
        if shared is not None:
            positions = (*positions[:2], shared(positions))
        return positions if own else positions[2]

    def positions(self, pixel_values: Tensor, interpolate: bool, bias: Tensor | None) -> BeitPositions:
        """How the tokens of pictures stand to each other, where these are: parameters may come there layer by layer."""
        size, device = pixel_values.shape[2:], pixel_values.device
        (height, width), source = calls.grid(size, self.config), self.config.grid
        rows, columns = (torch.arange(n, device=device) for n in (height, width))
        index = relative_position_index(rows, columns, height, width, torch)
        if not interpolate or has_own_grid(size, self.config):
            return index, None, bias
        resize = (
            bilinear_matrix(
                torch.arange(2 * t - 1, dtype=torch.float64, device=device),
                torch.arange(2 * s - 1, dtype=torch.float64, device=device),
                (2 * s - 1) / (2 * t - 1),
                torch,
            )
            for s, t in zip(source, (height, width), strict=True)
        )
        return index, (next(resize), next(resize)), bias


class BeitPooler(nn.Module):
    """The normalised mean of the patches, or the CLS token."""

    def __init__(self, config: BeitConfig) -> None:
        super().__init__()
        self.layernorm = layer_norm(config) if config.use_mean_pooling else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states[:, 0] if self.layernorm is None else self.layernorm(hidden_states[:, 1:].mean(1))


class BeitPreTrainedModel(ViTPreTrainedModel):
    """Base of BEiT's models."""

    config_class = BEIT.config
    base_model_prefix = BEIT.trunk


class BeitModel(BeitPreTrainedModel, ViTModel):
    """The bare BEiT; returns `BeitModelOutputWithPooling`."""

    architecture = "BeitModel"
    layer_class = BeitLayer
    encoder_class = BeitEncoder
    pooler_class = BeitPooler
    output_class: type[BeitModelOutputWithPooling[Tensor]] = BeitModelOutputWithPooling

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, *, seed: int | None = None) -> None:
        super().__init__(config, add_pooling_layer, False, seed=seed)

    def watched(self) -> bool:
        """Whether more than the CLS token is read: by the pooler, or by a hook."""
        return (self.pooler is not None and self.config.pool == "mean") or super().watched()


class BeitForImageClassification(BeitPreTrainedModel, ViTForImageClassification):
    """A linear classifier on the pooled output; returns `ImageClassifierOutput`."""

    architecture = "BeitForImageClassification"
    trunk_class = BeitModel
    reads = "pooler_output"

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(x)}


class BeitForMaskedImageModeling(BeitPreTrainedModel, ViTWithHead):
    """A linear layer that tells the visual token of every patch; returns `MaskedLMOutput`."""

    architecture = "BeitForMaskedImageModeling"
    trunk_class = BeitModel
    output_class: type[MaskedLMOutput[Tensor]] = MaskedLMOutput

    def build_head(self) -> None:
        self.layernorm = layer_norm(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """As `BeitModel`; `labels` (n_masked,), the visual tokens of the masked patches, give the loss."""
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
        patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]
        logits = linear(self.lm_head, self.layernorm(patches))
        loss = visual_token_loss(logits, bool_masked_pos, labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, logits=logits)


class BeitBackbone(BeitPreTrainedModel, ViTBackbone):
    """The bare BEiT as a backbone; returns `BackboneOutput`."""

    architecture = "BeitBackbone"
    layer_class = BeitLayer
    encoder_class = BeitEncoder
