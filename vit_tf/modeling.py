"""The Vision Transformer in Keras: the bare model and its heads, of which other members of the family are made.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6; variables have the paths of its
`modeling_tf_vit`.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N and those before them), D hidden, F mlp,
h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers, ops
from tensorflow import Tensor

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.outputs import of_layers
from vit_core.params import spec_of
from vit_tf.activations import activation
from vit_tf.base import TFViTPreTrainedModel, compiled
from vit_tf.embeddings import ViTEmbeddings
from vit_tf.encoder import ViTEncoder, ViTLayer
from vit_tf.losses import classification_loss, masked_reconstruction_loss
from vit_tf.module import ViTModule
from vit_tf.outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)


class ViTPooler(ViTModule):
    """A dense layer and an activation, of the CLS token."""

    def build(self, input_shape: Any = None) -> None:
        act = activation(self.config.pooler_act)
        self.dense = self.linear(self.config.hidden_size, self.config.pooler_size, "dense", act=act)

    def call(self, hidden_states: Tensor) -> Tensor:
        return self.dense(hidden_states[:, 0])


@keras.saving.register_keras_serializable("vit_tf")
class TFViTModel(TFViTPreTrainedModel):
    """The bare Vision Transformer; returns `BaseModelOutputWithPooling`.

    `add_pooling_layer` adds a dense layer on the CLS token; `use_mask_token` adds the token that takes the place of the
    patches in `bool_masked_pos`. `seed` draws the initial weights that every framework draws from it.
    """

    architecture = "ViTModel"
    layer_class: type[ViTModule] = ViTLayer
    encoder_class: type[ViTEncoder] = ViTEncoder
    pooler_class: type[ViTModule] = ViTPooler
    output_class: type[BaseModelOutputWithPooling[Tensor]] = BaseModelOutputWithPooling

    def __init__(
        self, config: ViTConfig, add_pooling_layer: bool = True, use_mask_token: bool = False, **options: Any
    ) -> None:
        super().__init__(config, self.parts_of(config, add_pooling_layer, use_mask_token), **options)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self.family().arguments(self.architecture, self.parts)}

    def build_parts(self) -> None:
        self.embeddings = self.child(ViTEmbeddings, "embeddings", use_mask_token="mask_token" in self.parts)
        self.encoder = self.child(self.encoder_class, "encoder", layer_class=self.layer_class)
        self.layernorm = self.layer_norm("layernorm") if self.config.final_norm else self.identity("layernorm")
        if "pooler" in self.parts:
            self.pooler = self.child(self.pooler_class, "pooler")

    def watched(self) -> bool:
        """Whether more tokens are read than a call asks for."""
        return False

    @compiled
    def call(
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
        training: bool = False,
    ) -> Any:
        """Pixels (B, C, H, W); `bool_masked_pos` (B, N), 1 where masked; `head_mask` (h,) or (L, h), 1 keeps.

        `attention_mask` is (B, S), 1 to attend, or (B, 1, S, S), added to the scores; the options left at None are the
        configuration's. `tokens` asks for the first so many tokens alone, which is faster: 1 is the CLS token, that the
        pooler reads. Raises ValueError for what does not fit, TypeError for what is no tensor of floats.
        """
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked, self.watched())
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding=interpolate, training=training)
        bias = self.encoder.score_bias(attention_mask, x.dtype, pixel_values, interpolate)
        encoded = self.encoder(x, head_mask, bias, options=options, training=training)
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
        return self.pooler(x) if "pooler" in self.parts else None

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
        all "patches" (B, N, D), as maps with `reshape`, (B, D, h, w) or, where the model was built with channels_last,
        (B, h, w, D). `normalize` applies the final LayerNorm to each. Layers that are not asked for are not computed.
        Raises ValueError for what does not fit.
        """
        depths, pool = calls.depths(self.config, layers), calls.pooling(self.config, pool, reshape)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given = self._named(pixel_values, {})  # a call of one's own may not have the option
        self._check({**given, "interpolate_pos_encoding": interpolate})
        found: tuple[Tensor, ...] = self.base_model._features(
            given["pixel_values"], depths, pool, reshape, normalize, interpolate
        )
        return found

    @compiled
    def _features(
        self, pixels: Tensor, depths: tuple[int, ...], pool: str, reshape: bool, normalize: bool, interpolate: bool
    ) -> tuple[Tensor, ...]:
        x = self.embeddings(pixels, interpolate_pos_encoding=interpolate)
        bias = self.encoder.score_bias(None, x.dtype, pixels, interpolate)
        options = calls.features_options(self.config, depths, pool)
        states = self.encoder(x, None, bias, options=options).hidden_states
        size = self.size_of(pixels) if reshape else None
        return tuple(self.pooled(states[i], pool, size, normalize) for i in depths)

    def pooled(self, x: Tensor, pool: str, size: Sequence[Any] | None = None, normalize: bool = True) -> Tensor:
        """What `features` makes of tokens (B, S, D); maps of the patches of an image of `size`, where that is given."""
        x = self.layernorm(x) if normalize else x
        if pool == "tokens":
            return x
        if pool == "cls":
            return x[:, 0]
        patches = x[:, self.config.num_prefix_tokens :]
        if pool == "mean":
            return tf.reduce_mean(patches, axis=1)
        if size is None:
            return patches
        maps = tf.reshape(patches, (-1, *calls.grid(size, self.config), patches.shape[2]))  # (B, h, w, D)
        return maps if self.channels_axis == 3 else tf.transpose(maps, (0, 3, 1, 2))


class TFViTWithHead(TFViTPreTrainedModel):
    """The trunk, under its member's name, and a head on its tokens: what every such model has."""

    trunk_class: type[TFViTModel] = TFViTModel
    tokens: int | None = None  # of the trunk's, the first ones that the head reads; None for all
    features = TFViTModel.features

    def build_parts(self) -> None:
        options = {"data_format": self.data_format, "dtype": self.dtype_policy, "name": self.base_model_prefix}
        parts = self.family().arguments(self.trunk_class.architecture, self.parts)
        setattr(self, self.base_model_prefix, self.trunk_class(self.config, **parts, **options))
        self.build_head()

    def build_head(self) -> None:
        """Make the layers of the head."""
        raise NotImplementedError

    def encoded(
        self,
        *inputs: Any,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        training: bool,
    ) -> tuple[calls.Options, BaseModelOutputWithPooling]:
        """The options of a call, and the trunk's output of these inputs, in the order of the trunk's own."""
        tokens = self.tokens if self.config.pool == "cls" else None
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked)
        asked = (options.output_attentions, options.output_hidden_states, True, options.tokens)
        return options, self.base_model(*inputs, *asked, training=training)

    def answer(self, options: calls.Options, trunk: BaseModelOutputWithPooling, **found: Any) -> Any:
        """The output of what the head has found, as the call asks for it."""
        output = self.output_class(**found, hidden_states=trunk.hidden_states, attentions=trunk.attentions)
        return output if options.return_dict else output.to_tuple()


@keras.saving.register_keras_serializable("vit_tf")
class TFViTForImageClassification(TFViTWithHead):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `config.pool="mean"` it is on the mean of the patches, normalised where `config.fc_norm` says so. With
    `num_labels=0` the logits are what it would read.
    """

    architecture = "ViTForImageClassification"
    output_class: type[ImageClassifierOutput[Tensor]] = ImageClassifierOutput
    tokens: int | None = 1
    reads = "last_hidden_state"  # of the trunk's output

    def build_head(self) -> None:
        self.classifier = self.build_classifier("classifier")
        self.fc_norm = self.layer_norm("fc_norm") if self.config.fc_norm else self.identity("fc_norm")

    def build_classifier(self, name: str) -> layers.Layer:
        """The linear layer to the labels of this name; without labels the identity."""
        if not self.config.num_labels:
            return self.identity(name)
        outputs, inputs = spec_of(self.config, f"{name}.weight").shape
        return self.linear(inputs, outputs, name)

    def logits(self, x: Tensor) -> dict[str, Tensor]:
        """What the head makes of what it `reads`, tokens (B, S, D), by its names in the output."""
        mean = self.config.pool == "mean"
        x = tf.reduce_mean(x[:, self.config.num_prefix_tokens :], axis=1) if mean else x[:, 0]
        return {"logits": self.classifier(self.fc_norm(x))}

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """As `TFViTModel`; `labels` (B,) of classes, or (B, K) of numbers, give the loss of `config.problem_type`."""
        options, trunk = self.encoded(
            pixel_values,
            None,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            training=training,
        )
        found = self.logits(trunk[self.reads])
        loss = classification_loss(found["logits"], labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, **found)


class ViTPixelShuffle(ViTModule):
    """Channels to pixels: (B, H / ph, W / pw, C rh rw) to the model's layout of (B, C, H, W)."""

    def call(self, x: Tensor) -> Tensor:
        (rh, rw), channels = pair(self.config.encoder_stride), self.config.num_channels
        _, rows, columns, _ = ops.shape(x)
        x = tf.reshape(x, (-1, rows, columns, channels, rh, rw))
        if self.channels_axis == 1:
            return tf.reshape(tf.transpose(x, (0, 3, 1, 4, 2, 5)), (-1, channels, rows * rh, columns * rw))
        return tf.reshape(tf.transpose(x, (0, 1, 4, 2, 5, 3)), (-1, rows * rh, columns * rw, channels))


class ViTDecoder(ViTModule):
    """The 1x1 convolution of masked image modelling and the shuffle, under the names that a sequence gives them."""

    def build(self, input_shape: Any = None) -> None:
        rh, rw = pair(self.config.encoder_stride)
        self.conv_ = self.conv(self.config.hidden_size, rh * rw * self.config.num_channels, (1, 1), "0")
        self.shuffle = self.child(ViTPixelShuffle, "1")

    def call(self, x: Tensor) -> Tensor:
        return self.shuffle(self.conv_(x))


@keras.saving.register_keras_serializable("vit_tf")
class TFViTForMaskedImageModeling(TFViTWithHead):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"
    output_class: type[MaskedImageModelingOutput[Tensor]] = MaskedImageModelingOutput

    def build_head(self) -> None:
        self.decoder = self.child(ViTDecoder, "decoder")

    @compiled
    def call(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        head_mask: Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool = False,
    ) -> Any:
        """As `TFViTModel`; with `bool_masked_pos` (B, N) the output has the loss of the masked pixels."""
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
        reconstruction = self.reconstruct(patches, self.size_of(pixel_values))
        loss = None
        if bool_masked_pos is not None:
            args = (pixel_values, reconstruction, bool_masked_pos, self.config, self.channels_axis)
            loss = masked_reconstruction_loss(*args)
        return self.answer(options, trunk, loss=loss, reconstruction=reconstruction)

    def reconstruct(self, patches: Tensor, size: Sequence[Any]) -> Tensor:
        """Pixels, in the model's layout, of the encoded patches (B, N, D) of an image of `size`, height x width."""
        rows, columns = calls.grid(size, self.config)
        return self.decoder(tf.reshape(patches, (-1, rows, columns, patches.shape[2])))
