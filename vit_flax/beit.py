"""BEiT in JAX: a ViT whose attention adds relative position biases, and a head that tells visual tokens.

Paper: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", section 2. Agrees with `modeling_beit` of
transformers 4.57.6, whose modules it has, but for grids that are not square: tables are resized along their own axes.
Parameters stand in the tree of its `modeling_flax_beit`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, overload

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.family import ATTENTION_SCALE, BEIT, MLP_SCALE, POSITION_BIAS, SHARED_POSITION_BIAS
from vit_core.outputs import Output
from vit_core.position import bilinear_matrix, relative_position_index
from vit_flax.attention import additive_bias
from vit_flax.backbone import FlaxViTBackbone, FlaxViTBackboneModule
from vit_flax.base import FlaxViTPreTrainedModel, Params, Wraps
from vit_flax.encoder import ViTAttention, ViTDropPath, ViTEncoder, ViTIntermediate, ViTSelfAttention, scaled
from vit_flax.layers import wider
from vit_flax.losses import check_visual_token_labels, visual_token_loss
from vit_flax.modeling import (
    FlaxViTForImageClassification,
    FlaxViTForImageClassificationModule,
    FlaxViTModel,
    FlaxViTModule,
    ViTWithHead,
)
from vit_flax.module import ViTModule
from vit_flax.outputs import BeitModelOutputWithPooling, MaskedLMOutput

# How the tokens of a call stand to each other: rows (S, S) of the tables; what resizes these along (height, width),
# where they are of another grid; and what every layer adds to its scores beside that, (B or 1, h or 1, S or 1, S). A
# plain tuple: programs that hook a layer build another one of what is in it.
BeitPositions = tuple[Array, tuple[Array, Array] | None, Array | None]


class BeitRelativePositionBias(ViTModule):
    """What is added to the score of two tokens for their relative position, each head with a table of its own."""

    table: str = POSITION_BIAS

    def setup(self) -> None:
        self.relative_position_bias_table = self.weight(self.table)

    def __call__(self, positions: BeitPositions) -> Array:
        """(B or 1, h, S, S), with the other bias of the positions."""
        rows, resize, beside = positions
        table = self.relative_position_bias_table if resize is None else self.resized(*resize)
        bias = table.T[:, rows][None].astype(self.dtype)
        return bias if beside is None else bias + beside

    def resized(self, rows: Array, columns: Array) -> Array:
        """The table for another grid, by one matrix along each axis; the rows with a CLS token are untouched."""
        table, (height, width) = self.relative_position_bias_table, (rows.shape[1], columns.shape[1])
        target, heads = (rows.shape[0], columns.shape[0]), table.shape[1]
        wide = wider(table.dtype)
        grid = (rows.astype(wide) @ table[:-3].astype(wide).reshape(height, -1)).reshape(target[0], width, heads)
        patches = (columns.astype(wide) @ grid).reshape(target[0] * target[1], heads)
        return jnp.concatenate([patches.astype(table.dtype), table[-3:]])


class BeitSelfAttention(ViTSelfAttention):
    """Multi-head self-attention, with the layer's own relative position bias where it has one."""

    def setup(self) -> None:
        super().setup()
        own = self.config.use_relative_position_bias
        self.relative_position_bias = BeitRelativePositionBias(**self.common) if own else None

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> tuple[Array, Array | None]:
        """As ViT's; the bias is `BeitPositions` where the layer has a table."""
        if self.relative_position_bias is not None:
            bias = self.relative_position_bias(bias)
        return self.attended(hidden_states, head_mask, bias, options, train)


class BeitAttention(ViTAttention):
    """Self-attention and its output projection."""

    attention_class = BeitSelfAttention


class BeitOutput(ViTModule):
    """The second linear layer of the MLP; its scale and the residual are its layer's."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, train: bool = False) -> Array:
        return self.dropout(self.dense(hidden_states), deterministic=not train)


class BeitLayer(ViTModule):
    """One pre-norm block, whose branches are scaled; `drop_path` is their rate."""

    def setup(self) -> None:
        self.attention = BeitAttention(**self.common)
        self.intermediate = ViTIntermediate(**self.common)
        self.output = BeitOutput(**self.common)
        self.drop_path = ViTDropPath(**self.common)
        self.layernorm_before = self.layer_norm()
        self.layernorm_after = self.layer_norm()
        scales = self.config.layer_scale_init_value
        self.lambda_1 = self.weight(ATTENTION_SCALE) if scales else None
        self.lambda_2 = self.weight(MLP_SCALE) if scales else None

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
        drop_path: Array | None = None,
    ) -> Any:
        x = self.layernorm_before(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options, train))
        x = options.wanted(hidden_states) + self.drop_path(scaled(attended, self.lambda_1), drop_path)
        mlp = self.output(self.intermediate(self.layernorm_after(x)), train)
        return options.joined(x + self.drop_path(scaled(mlp, self.lambda_2), drop_path), probs)


class BeitEncoder(ViTEncoder):
    """L layers, and the relative position bias that they share."""

    def setup(self) -> None:
        super().setup()
        shared = self.config.use_shared_relative_position_bias
        table = SHARED_POSITION_BIAS
        self.relative_position_bias = BeitRelativePositionBias(**self.common, table=table) if shared else None

    def score_bias(self, attention_mask: Array | None, dtype: Any, size: Sequence[int], interpolate: bool) -> Any:
        """As ViT's, with the shared relative position bias; `BeitPositions` where each layer has a bias of its own."""
        own, shared = self.config.use_relative_position_bias, self.relative_position_bias
        bias = additive_bias(attention_mask, dtype)
        if not own and shared is None:
            return bias
        positions = self.positions(size, interpolate, bias)
        if shared is not None:
            positions = (*positions[:2], shared(positions))
        return positions if own else positions[2]

    def positions(self, size: Sequence[int], interpolate: bool, bias: Array | None) -> BeitPositions:
        """How the tokens of an image of `size`, height x width, stand to each other."""
        (height, width), source = calls.grid(size, self.config), self.config.grid
        index = relative_position_index(jnp.arange(height), jnp.arange(width), height, width, jnp)
        if not interpolate or calls.has_own_grid(size, self.config):
            return index, None, bias
        rows, columns = (resizing(2 * s - 1, 2 * t - 1) for s, t in zip(source, (height, width), strict=True))
        return index, (rows, columns), bias


def resizing(source: int, target: Any) -> Array:
    """`bilinear_matrix`, (target, source); computed by the program for a `target` that is symbolic, in `jax.export`."""
    xp: Any = np if isinstance(target, int) else jnp
    rows, columns = (xp.arange(n, dtype=float) for n in (target, source))
    return jnp.asarray(bilinear_matrix(rows, columns, source / xp.asarray(target, float), xp))


class BeitPooler(ViTModule):
    """The normalised mean of the patches, or the CLS token."""

    def setup(self) -> None:
        self.layernorm = self.layer_norm() if self.config.use_mean_pooling else None

    def __call__(self, hidden_states: Array) -> Array:
        return hidden_states[:, 0] if self.layernorm is None else self.layernorm(hidden_states[:, 1:].mean(1))


class FlaxBeitModule(FlaxViTModule):
    """The bare BEiT as a Linen module; see `FlaxBeitModel`."""

    layer_class = BeitLayer
    encoder_class = BeitEncoder
    pooler_class = BeitPooler
    output_class: ClassVar[type[BeitModelOutputWithPooling[Array]]] = BeitModelOutputWithPooling
    use_mask_token: ClassVar[bool] = False  # type: ignore[misc]

    def watched(self) -> bool:
        """Whether more than the CLS token is read: by the pooler, or by a caller."""
        return (self.add_pooling_layer and self.config.pool == "mean") or super().watched()


class FlaxBeitForImageClassificationModule(FlaxViTForImageClassificationModule):
    """The classifier as a Linen module; see `FlaxBeitForImageClassification`."""

    trunk_class = FlaxBeitModule
    trunk_parts = ("pooler",)
    reads = "pooler_output"

    def logits(self, x: Array) -> dict[str, Array]:
        return {"logits": self.classifier(x)}


class FlaxBeitForMaskedImageModelingModule(ViTWithHead):
    """Masked image modelling as a Linen module; see `FlaxBeitForMaskedImageModeling`."""

    trunk_class = FlaxBeitModule
    output_class: ClassVar[type[MaskedLMOutput[Array]]] = MaskedLMOutput

    @nn.nowrap
    def build_head(self) -> None:
        self.layernorm = self.layer_norm()
        self.lm_head = self.linear(self.config.vocab_size)

    def __call__(
        self,
        pixel_values: Array | None = None,
        bool_masked_pos: Array | None = None,
        head_mask: Array | None = None,
        labels: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxBeitForMaskedImageModeling`; pure, for `module.apply({"params": params}, ...)`."""
        options, trunk = self.encoded(
            pixel_values,
            bool_masked_pos,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            train=train,
        )
        patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]
        logits = self.lm_head(self.layernorm(patches))
        loss = visual_token_loss(logits, bool_masked_pos, labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, logits=logits)


class FlaxBeitBackboneModule(FlaxViTBackboneModule):
    """The backbone as a Linen module; see `FlaxBeitBackbone`."""

    layer_class = BeitLayer
    encoder_class = BeitEncoder


class FlaxBeitPreTrainedModel(FlaxViTPreTrainedModel):
    """Base of BEiT's models, whose second argument is the mask of the patches, as in transformers."""

    config_class = BEIT.config
    base_model_prefix = BEIT.trunk

    @overload
    def __call__(
        self: Wraps[Output], *inputs: Any, return_dict: Literal[True] | None = None, **options: Any
    ) -> Output: ...

    @overload
    def __call__(self, *inputs: Any, **options: Any) -> Any: ...

    def __call__(  # type: ignore[misc]
        self,
        pixel_values: Any = None,
        bool_masked_pos: Any = None,
        params: Params | None = None,
        dropout_rng: Any = None,
        train: bool = False,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> Any:
        """As ViT's."""
        if bool_masked_pos is not None:
            inputs["bool_masked_pos"] = bool_masked_pos
        asked = (output_attentions, output_hidden_states, return_dict)
        return super().__call__(pixel_values, params, dropout_rng, train, *asked, **inputs)


class FlaxBeitModel(FlaxBeitPreTrainedModel, FlaxViTModel):
    """The bare BEiT; returns `BeitModelOutputWithPooling`."""

    architecture = "BeitModel"
    module_class: ClassVar[type[FlaxBeitModule]] = FlaxBeitModule


class FlaxBeitForImageClassification(FlaxBeitPreTrainedModel, FlaxViTForImageClassification):
    """A linear classifier on the pooled output; returns `ImageClassifierOutput`."""

    architecture = "BeitForImageClassification"
    module_class = FlaxBeitForImageClassificationModule


class FlaxBeitForMaskedImageModeling(FlaxBeitPreTrainedModel):
    """A linear layer that tells the visual token of every patch; returns `MaskedLMOutput`.

    `labels` (n_masked,), the visual tokens of the masked patches of all pictures in order, give the loss.
    """

    architecture = "BeitForMaskedImageModeling"
    module_class: ClassVar[type[FlaxBeitForMaskedImageModelingModule]] = FlaxBeitForMaskedImageModelingModule

    def check_labels(self, inputs: Mapping[str, Any]) -> None:
        check_visual_token_labels(inputs.get("bool_masked_pos"), inputs["labels"], self.config)


class FlaxBeitBackbone(FlaxBeitPreTrainedModel, FlaxViTBackbone):
    """The bare BEiT as a backbone; returns `BackboneOutput`."""

    architecture = "BeitBackbone"
    module_class = FlaxBeitBackboneModule
