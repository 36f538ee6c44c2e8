"""BEiT in Keras: a ViT whose attention adds relative position biases, and a head that tells visual tokens.

Paper: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", section 2. Agrees with `modeling_beit` of
transformers 4.57.6, but for grids that are not square: tables are resized along their own axes; variables have the
paths of its `modeling_flax_beit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig
from vit_core.family import ATTENTION_SCALE, BEIT, MLP_SCALE, POSITION_BIAS, SHARED_POSITION_BIAS
from vit_core.position import bilinear_matrix, relative_position_index
from vit_tf.attention import additive_bias
from vit_tf.backbone import TFViTBackbone
from vit_tf.base import TFViTPreTrainedModel, compiled
from vit_tf.encoder import ViTAttention, ViTDropPath, ViTEncoder, ViTIntermediate, ViTSelfAttention, scaled
from vit_tf.losses import visual_token_loss, wide
from vit_tf.modeling import TFViTForImageClassification, TFViTModel, TFViTWithHead
from vit_tf.module import ViTModule
from vit_tf.outputs import BeitModelOutputWithPooling, MaskedLMOutput

# How the tokens of a call stand to each other: rows (S, S) of the tables; the grid (height, width) to resize these to,
# where they are of another; and what every layer adds to its scores beside that, (B or 1, h or 1, S or 1, S). Tensors
# of integers are what a layer's dtype policy leaves as they are: matrices that resize it would round.
BeitPositions = tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]


class BeitRelativePositionBias(ViTModule):
    """What is added to the score of two tokens for their relative position, each head with a table of its own."""

    def __init__(self, row: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.row = row

    def build(self, input_shape: Any = None) -> None:
        self.relative_position_bias_table = self.weight(self.row, autocast=False)

    def call(self, positions: BeitPositions) -> Tensor:
        """(B or 1, h, S, S), with the other bias of the positions."""
        (rows, resize, beside), table = positions, self.relative_position_bias_table.value
        # A reshape to its own shape: its gradient is dense, where that of a gather alone is a tf.IndexedSlices.
        table = tf.reshape(table, table.shape) if resize is None else self.resized(*resize)
        bias = tf.transpose(tf.gather(tf.cast(table, self.compute_dtype), rows), (2, 0, 1))[None]
        return bias if beside is None else bias + beside

    def resized(self, height: Tensor, width: Tensor) -> Tensor:
        """The table for another grid, by one matrix along each axis; the rows with a CLS token are untouched."""
        table, source = self.relative_position_bias_table.value, self.config.grid
        rows, columns = (
            tf.cast(
                bilinear_matrix(
                    tf.range(tf.cast(2 * t - 1, tf.float64), dtype=tf.float64),
                    tf.range(2 * s - 1, dtype=tf.float64),
                    (2 * s - 1) / tf.cast(2 * t - 1, tf.float64),
                    ops,
                ),
                wide(table.dtype),
            )
            for s, t in zip(source, (height, width), strict=True)
        )
        grid = rows @ tf.reshape(tf.cast(table[:-3], rows.dtype), (rows.shape[1], -1))
        grid = columns @ tf.reshape(grid, (-1, columns.shape[1], table.shape[1]))
        return tf.concat([tf.cast(tf.reshape(grid, (-1, table.shape[1])), table.dtype), table[-3:]], axis=0)


class BeitSelfAttention(ViTSelfAttention):
    """Multi-head self-attention, with the layer's own relative position bias where it has one."""

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        name, self.relative_position_bias = "relative_position_bias", None
        if self.config.use_relative_position_bias:
            self.relative_position_bias = self.child(BeitRelativePositionBias, name, row=POSITION_BIAS.format(0))

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ViT's; the bias is `BeitPositions` where the layer has a table."""
        if self.relative_position_bias is not None:
            bias = self.relative_position_bias(bias)
        return super().call(hidden_states, head_mask, bias, options, training)


class BeitAttention(ViTAttention):
    """Self-attention and its output projection."""

    attention_class = BeitSelfAttention


class BeitOutput(ViTModule):
    """The second linear layer of the MLP; its scale and the residual are its layer's."""

    def build(self, input_shape: Any = None) -> None:
        self.dense = self.linear(self.config.intermediate_size, self.config.hidden_size, "dense")
        self.dropout = self.dropout_layer(self.config.hidden_dropout_prob)

    def call(self, hidden_states: Tensor, training: bool = False) -> Tensor:
        return self.dropout(self.dense(hidden_states), training=training)


class BeitLayer(ViTModule):
    """One pre-norm block, whose branches are scaled."""

    def __init__(self, drop_path: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # One for each branch, whose masks are of the same call: a layer that recomputes counts each once a call.
        self.drop_path1 = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path1")
        self.drop_path2 = ViTDropPath(drop_path, dtype=self.dtype_policy, name="drop_path2")

    def build(self, input_shape: Any = None) -> None:
        self.attention = self.child(BeitAttention, "attention")
        self.intermediate = self.child(ViTIntermediate, "intermediate")
        self.output_ = self.child(BeitOutput, "output")
        self.layernorm_before = self.layer_norm("layernorm_before")
        self.layernorm_after = self.layer_norm("layernorm_after")
        scales = self.config.layer_scale_init_value
        self.lambda_1 = self.weight(ATTENTION_SCALE.format(0)) if scales else None
        self.lambda_2 = self.weight(MLP_SCALE.format(0)) if scales else None

    def call(
        self,
        hidden_states: Tensor,
        head_mask: Tensor | None = None,
        bias: Any = None,
        options: calls.Options = calls.DEFAULT,
        training: bool = False,
    ) -> Any:
        x = self.layernorm_before(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options=options, training=training))
        x = options.wanted(hidden_states) + self.drop_path1(scaled(attended, self.lambda_1), training=training)
        mlp = self.output_(self.intermediate(self.layernorm_after(x)), training=training)
        return options.joined(x + self.drop_path2(scaled(mlp, self.lambda_2), training=training), probs)


class BeitEncoder(ViTEncoder):
    """L layers, and the relative position bias that they share."""

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        name, self.relative_position_bias = "relative_position_bias", None
        if self.config.use_shared_relative_position_bias:
            self.relative_position_bias = self.child(BeitRelativePositionBias, name, row=SHARED_POSITION_BIAS)

    def score_bias(
        self, attention_mask: Tensor | None, dtype: tf.DType, pixel_values: Tensor, interpolate: bool
    ) -> Any:
        """As ViT's, with the shared relative position bias; `BeitPositions` where each layer has a bias of its own."""
        own, shared = self.config.use_relative_position_bias, self.relative_position_bias
        bias = additive_bias(attention_mask, dtype)
        if not own and shared is None:
            return bias
        positions = self.positions(self.size_of(pixel_values), interpolate, bias)
        if shared is not None:
            positions = (*positions[:2], shared(positions))
        return positions if own else positions[2]

    def positions(self, size: Sequence[Any], interpolate: bool, bias: Tensor | None) -> BeitPositions:
        """How the tokens of an image of `size`, height x width, stand to each other."""
        height, width = calls.grid(size, self.config)
        index = relative_position_index(tf.range(height), tf.range(width), height, width, ops)
        if not interpolate or calls.has_own_grid(size, self.config):
            return index, None, bias
        return index, (tf.convert_to_tensor(height), tf.convert_to_tensor(width)), bias


class BeitPooler(ViTModule):
    """The normalised mean of the patches, or the CLS token."""

    def build(self, input_shape: Any = None) -> None:
        self.layernorm = self.layer_norm("layernorm") if self.config.use_mean_pooling else None

    def call(self, hidden_states: Tensor) -> Tensor:
        if self.layernorm is None:
            return hidden_states[:, 0]
        return self.layernorm(tf.reduce_mean(hidden_states[:, 1:], axis=1))


class TFBeitPreTrainedModel(TFViTPreTrainedModel):
    """Base of BEiT's models."""

    config_class = BEIT.config
    base_model_prefix = BEIT.trunk


@keras.saving.register_keras_serializable("vit_tf")
class TFBeitModel(TFBeitPreTrainedModel, TFViTModel):
    """The bare BEiT; returns `BeitModelOutputWithPooling`."""

    architecture = "BeitModel"
    layer_class = BeitLayer
    encoder_class = BeitEncoder
    pooler_class = BeitPooler
    output_class: type[BeitModelOutputWithPooling[Tensor]] = BeitModelOutputWithPooling

    def __init__(self, config: ViTConfig, add_pooling_layer: bool = True, **options: Any) -> None:
        super().__init__(config, add_pooling_layer, False, **options)

    def watched(self) -> bool:
        """Whether more than the CLS token is read, by the pooler."""
        return ("pooler" in self.parts and self.config.pool == "mean") or super().watched()


@keras.saving.register_keras_serializable("vit_tf")
class TFBeitForImageClassification(TFBeitPreTrainedModel, TFViTForImageClassification):
    """A linear classifier on the pooled output; returns `ImageClassifierOutput`."""

    architecture = "BeitForImageClassification"
    trunk_class = TFBeitModel
    reads = "pooler_output"

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(x)}


@keras.saving.register_keras_serializable("vit_tf")
class TFBeitForMaskedImageModeling(TFBeitPreTrainedModel, TFViTWithHead):
    """A linear layer that tells the visual token of every patch; returns `MaskedLMOutput`."""

    architecture = "BeitForMaskedImageModeling"
    trunk_class = TFBeitModel
    output_class: type[MaskedLMOutput[Tensor]] = MaskedLMOutput

    def build_head(self) -> None:
        self.layernorm = self.layer_norm("layernorm")
        self.lm_head = self.linear(self.config.hidden_size, self.config.vocab_size, "lm_head")

    @compiled
    def call(
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
        training: bool = False,
    ) -> Any:
        """As `TFBeitModel`; `labels` (n_masked,), the visual tokens of the masked patches, give the loss."""
        options, trunk = self.encoded(
            pixel_values,
            bool_masked_pos,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            training=training,
        )
        patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]
        logits = self.lm_head(self.layernorm(patches))
        loss = visual_token_loss(logits, bool_masked_pos, labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, logits=logits)


@keras.saving.register_keras_serializable("vit_tf")
class TFBeitBackbone(TFBeitPreTrainedModel, TFViTBackbone):
    """The bare BEiT as a backbone; returns `BackboneOutput`."""

    architecture = "BeitBackbone"
    layer_class = BeitLayer
    encoder_class = BeitEncoder
