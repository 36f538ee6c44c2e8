"""The Vision Transformer in JAX: the bare model and its heads, of which other members of the family are made.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6; parameters stand in the tree of
its `modeling_flax_vit`. Flax Linen modules compute, and the classes at the end wrap them.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N and those before them), D hidden, F mlp,
h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from flax import linen as nn
from jax import Array

from vit_core import calls
from vit_core.config import pair
from vit_core.family import family_of
from vit_core.outputs import of_layers
from vit_flax.activations import activation
from vit_flax.base import FlaxViTPreTrainedModel, intercepted, shapes
from vit_flax.embeddings import ViTEmbeddings
from vit_flax.encoder import ViTEncoder, ViTLayer
from vit_flax.losses import classification_loss, masked_reconstruction_loss
from vit_flax.module import ViTModule
from vit_flax.outputs import (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    ModelOutput,
)


class ViTPooler(ViTModule):
    """A dense layer and an activation, of the CLS token."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.pooler_size)

    def __call__(self, hidden_states: Array) -> Array:
        return activation(self.config.pooler_act)(self.dense(hidden_states[:, 0]))


class FlaxViTModule(ViTModule):
    """The bare Vision Transformer as a Linen module; see `FlaxViTModel`."""

    layer_class: ClassVar[type[nn.Module]] = ViTLayer
    encoder_class: ClassVar[type[ViTEncoder]] = ViTEncoder
    pooler_class: ClassVar[type[nn.Module]] = ViTPooler
    output_class: ClassVar[type[BaseModelOutputWithPooling[Array]]] = BaseModelOutputWithPooling
    add_pooling_layer: bool = True
    use_mask_token: bool = False

    def setup(self) -> None:
        self.embeddings = ViTEmbeddings(**self.common, use_mask_token=self.use_mask_token)
        self.encoder = self.encoder_class(**self.common, layer_class=self.layer_class)
        self.layernorm = self.layer_norm() if self.config.final_norm else lambda x: x
        if self.add_pooling_layer:
            self.pooler = self.pooler_class(**self.common)

    def watched(self) -> bool:
        """Whether the last layer leaves no tokens out: it is scanned over, or a caller may see it."""
        return self.scan_layers or intercepted() or (self.scope is not None and bool(self.scope.mutable))

    def __call__(
        self,
        pixel_values: Array | None = None,
        bool_masked_pos: Array | None = None,
        head_mask: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        tokens: int | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTModel`; pure, for `module.apply({"params": params}, ...)`."""
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked, self.watched())
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        calls.check_inputs(
            self.config,
            shapes(pixel_values, bool_masked_pos, head_mask, attention_mask),
            interpolate=interpolate,
            has_mask_token=self.embeddings.mask_token is not None,
            channels_axis=self.channels_axis,
        )
        assert pixel_values is not None

        x = self.embeddings(pixel_values, bool_masked_pos, interpolate_pos_encoding=interpolate, train=train)
        bias = self.encoder.score_bias(attention_mask, x.dtype, self.size_of(pixel_values), interpolate)
        encoded = self.encoder(x, head_mask, bias, options, train)
        x = self.layernorm(encoded.last_hidden_state)
        output = self.output_class(
            last_hidden_state=options.first(x, tokens),
            pooler_output=self.pool(x),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def pool(self, x: Array) -> Array | None:
        """The pooled output (B, O) of the normalised tokens (B, S, D), where there is any."""
        return self.pooler(x) if self.add_pooling_layer else None

    @of_layers
    def features(
        self,
        pixel_values: Array,
        layers: int | Sequence[int] = -1,
        pool: str | None = None,
        reshape: bool = False,
        normalize: bool = True,
        interpolate_pos_encoding: bool | None = None,
    ) -> Array | tuple[Array, ...]:
        """As those of the wrapper classes; pure, for `module.apply({"params": params}, ..., method="features")`."""
        depths, pool = calls.depths(self.config, layers), calls.pooling(self.config, pool, reshape)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given = shapes(pixel_values, None, None, None)
        axis = self.channels_axis
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False, channels_axis=axis)

        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
        bias = self.encoder.score_bias(None, x.dtype, self.size_of(pixel_values), interpolate)
        options = calls.features_options(self.config, depths, pool, FlaxViTModule.watched(self))
        states = self.encoder(x, None, bias, options).hidden_states
        assert states is not None
        size = self.size_of(pixel_values) if reshape else None
        return tuple(self.pooled(states[i], pool, size, normalize) for i in depths)

    def pooled(self, x: Array, pool: str, size: Sequence[int] | None = None, normalize: bool = True) -> Array:
        """What `features` makes of tokens (B, S, D); maps of the patches of an image of `size`, where that is given."""
        normal = self.layernorm(x) if normalize or self.is_initializing() else x  # to initialise makes all there is
        x = normal if normalize else x
        if pool == "tokens":
            return x
        if pool == "cls":
            return x[:, 0]
        patches = x[:, self.config.num_prefix_tokens :]
        if pool == "mean":
            return patches.mean(1)
        if size is None:
            return patches
        grid = calls.grid(size, self.config)
        maps = patches.reshape(patches.shape[0], *grid, patches.shape[2])  # (B, H / ph, W / pw, D)
        return maps if self.channels_axis == 3 else maps.transpose(0, 3, 1, 2)


class ViTWithHead(ViTModule):
    """The trunk, under its member's name, and a head on its tokens: what every such model has."""

    trunk_class: ClassVar[type[FlaxViTModule]] = FlaxViTModule
    output_class: ClassVar[type[ModelOutput[Array]]]
    tokens: ClassVar[int | None] = None  # of the trunk's, the first ones that the head reads; None for all
    trunk_parts: ClassVar[tuple[str, ...]] = ()  # the optional ones of the trunk that the head needs

    def setup(self) -> None:
        family = family_of(self.config)
        taken: dict[str, Any] = family.arguments(family.bare, self.trunk_parts)
        setattr(self, family.trunk, self.trunk_class(**self.common, **taken))
        self.build_head()

    @property
    def base_model(self) -> Any:
        """The trunk."""
        return getattr(self, family_of(self.config).trunk)

    @nn.nowrap
    def build_head(self) -> None:
        """Make the layers of the head."""
        raise NotImplementedError

    def encoded(
        self,
        *inputs: Any,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        train: bool,
    ) -> tuple[calls.Options, BaseModelOutputWithPooling]:
        """The options of a call, and the trunk's output of these inputs, in the order of the trunk's own."""
        tokens = self.tokens if self.config.pool == "cls" else None
        asked = (output_attentions, output_hidden_states, return_dict, tokens)
        options = calls.resolve_options(self.config, *asked, self.base_model.watched())
        asked = (options.output_attentions, options.output_hidden_states, True, options.tokens)
        return options, self.base_model(*inputs, *asked, train)

    def features(self, pixel_values: Array, *args: Any, **kwargs: Any) -> Any:
        """Those of the trunk; see `FlaxViTModule.features`."""
        return self.base_model.features(pixel_values, *args, **kwargs)

    def answer(self, options: calls.Options, trunk: BaseModelOutputWithPooling, **found: Any) -> Any:
        """The output of what the head has found, as the call asks for it."""
        output = self.output_class(**found, hidden_states=trunk.hidden_states, attentions=trunk.attentions)
        return output if options.return_dict else output.to_tuple()


class FlaxViTForImageClassificationModule(ViTWithHead):
    """The classifier as a Linen module; see `FlaxViTForImageClassification`."""

    output_class: ClassVar[type[ImageClassifierOutput[Array]]] = ImageClassifierOutput
    tokens: ClassVar[int | None] = 1
    reads: ClassVar[str] = "last_hidden_state"  # of the trunk's output

    @nn.nowrap
    def build_head(self) -> None:
        self.classifier = self.build_classifier()
        self.fc_norm = self.layer_norm() if self.config.fc_norm else lambda x: x

    @nn.nowrap
    def build_classifier(self) -> Callable[[Array], Array]:
        """A linear layer to the labels; without labels the identity."""
        return self.linear(self.config.num_labels) if self.config.num_labels else lambda x: x

    def logits(self, x: Array) -> dict[str, Array]:
        """What the head makes of what it `reads`, tokens (B, S, D), by its names in the output."""
        mean = self.config.pool == "mean"
        x = x[:, self.config.num_prefix_tokens :].mean(1) if mean else x[:, 0]
        return {"logits": self.classifier(self.fc_norm(x))}

    def __call__(
        self,
        pixel_values: Array | None = None,
        head_mask: Array | None = None,
        labels: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTForImageClassification`; pure, for `module.apply({"params": params}, ...)`."""
        options, trunk = self.encoded(
            pixel_values,
            None,
            head_mask,
            interpolate_pos_encoding,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
            train=train,
        )
        found = self.logits(trunk[self.reads])
        loss = classification_loss(found["logits"], labels, self.config) if labels is not None else None
        return self.answer(options, trunk, loss=loss, **found)


class ViTPixelShuffle(ViTModule):
    """Channels to pixels: (B, H / ph, W / pw, C rh rw) to the model's layout of (B, C, H, W)."""

    def __call__(self, x: Array) -> Array:
        (batch, rows, columns, _), channels = x.shape, self.config.num_channels
        rh, rw = pair(self.config.encoder_stride)
        x = x.reshape(batch, rows, columns, channels, rh, rw)
        if self.channels_axis == 1:
            x = x.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * rh, columns, rw)
            return x.reshape(batch, channels, rows * rh, columns * rw)
        x = x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * rh, columns, rw, channels)
        return x.reshape(batch, rows * rh, columns * rw, channels)


class ViTDecoder(ViTModule):
    """The 1x1 convolution of masked image modelling and the shuffle, under the names that a sequence gives them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rh, rw = pair(self.config.encoder_stride)
        init, features = self.kernel_init, rh * rw * self.config.num_channels
        conv = nn.Conv(features, (1, 1), dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=init, name="0")
        return ViTPixelShuffle(**self.common, name="1")(conv(x))


class FlaxViTForMaskedImageModelingModule(ViTWithHead):
    """Masked image modelling as a Linen module; see `FlaxViTForMaskedImageModeling`."""

    output_class: ClassVar[type[MaskedImageModelingOutput[Array]]] = MaskedImageModelingOutput
    trunk_parts = ("mask_token",)

    @nn.nowrap
    def build_head(self) -> None:
        self.decoder = ViTDecoder(**self.common)

    def __call__(
        self,
        pixel_values: Array | None = None,
        bool_masked_pos: Array | None = None,
        head_mask: Array | None = None,
        interpolate_pos_encoding: bool | None = None,
        attention_mask: Array | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTForMaskedImageModeling`; pure, for `module.apply({"params": params}, ...)`."""
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
            train=train,
        )
        assert pixel_values is not None
        patches = trunk.last_hidden_state[:, self.config.num_prefix_tokens :]
        reconstruction = self.reconstruct(patches, self.size_of(pixel_values))
        loss = None
        if bool_masked_pos is not None:
            args = (pixel_values, reconstruction, bool_masked_pos, self.config, self.channels_axis)
            loss = masked_reconstruction_loss(*args)
        return self.answer(options, trunk, loss=loss, reconstruction=reconstruction)

    def reconstruct(self, patches: Array, size: Sequence[int]) -> Array:
        """Pixels, in the model's layout, of the encoded patches (B, N, D) of an image of `size`, height x width."""
        rows, columns = calls.grid(size, self.config)
        return self.decoder(patches.reshape(patches.shape[0], rows, columns, patches.shape[2]))


class FlaxViTModel(FlaxViTPreTrainedModel):
    """The bare Vision Transformer; returns `BaseModelOutputWithPooling`.

    `add_pooling_layer` adds a dense layer on the CLS token; `use_mask_token` adds the token that takes the place of the
    patches in `bool_masked_pos`. `tokens` of a call asks for the first so many tokens alone, which is faster: 1 is the
    CLS token, that the pooler reads.
    """

    architecture = "ViTModel"
    module_class: ClassVar[type[FlaxViTModule]] = FlaxViTModule


class FlaxViTForImageClassification(FlaxViTPreTrainedModel):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `config.pool="mean"` it is on the mean of the patches, normalised where `config.fc_norm` says so. With
    `num_labels=0` the logits are what it would read.
    """

    architecture = "ViTForImageClassification"
    module_class: ClassVar[type[FlaxViTForImageClassificationModule]] = FlaxViTForImageClassificationModule


class FlaxViTForMaskedImageModeling(FlaxViTPreTrainedModel):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"
    module_class: ClassVar[type[FlaxViTForMaskedImageModelingModule]] = FlaxViTForMaskedImageModelingModule
