"""The Vision Transformer in JAX: Flax Linen modules for embeddings, encoder and the three models, and their wrappers.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", section 3.1 and equations 1 to 4; for masked image
modelling Xie et al. 2022, "SimMIM". Agrees with `modeling_vit` of transformers 4.57.6; parameters stand in the tree of
its `modeling_flax_vit`.

Dimensions: B batch, C channels, H W pixels, N patches, S tokens (N + 1), D hidden, F mlp, h heads, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from vit_core import calls
from vit_core.config import ViTConfig, pair
from vit_core.position import resize_matrix
from vit_flax.activations import activation
from vit_flax.attention import additive_bias, choose
from vit_flax.layers import LayerNorm, product
from vit_flax.losses import classification_loss, masked_reconstruction_loss
from vit_flax.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
from vit_flax.weights import FlaxViTPreTrainedModel, intercepted, normal, shapes


class ViTModule(nn.Module):
    """What every module knows; `common` hands it down.

    `dtype` is what is computed in, `param_dtype` what parameters are drawn in, `channels_axis` 1 or 3 where pixels have
    their channels; `remat` recomputes each layer in the backward pass, `scan_layers` compiles one layer for all.
    """

    config: ViTConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    channels_axis: int = 1
    remat: bool = False
    scan_layers: bool = False

    @property
    def common(self) -> dict[str, Any]:
        """The same for a module inside this one."""
        return {name: getattr(self, name) for name in ViTModule.__dataclass_fields__ if name not in ("name", "parent")}

    def size_of(self, pixel_values: Array) -> tuple[int, ...]:
        """(height, width) of pixels."""
        return pixel_values.shape[2:] if self.channels_axis == 1 else pixel_values.shape[1:3]

    def linear(self, features: int, use_bias: bool = True) -> nn.Dense:
        """A linear layer."""
        init = normal(self.config.initializer_range)
        return nn.Dense(features, use_bias, self.dtype, self.param_dtype, kernel_init=init, dot_general=product)

    def layer_norm(self) -> LayerNorm:
        """A LayerNorm with the configuration's epsilon."""
        return LayerNorm(self.config.layer_norm_eps, self.dtype, self.param_dtype)


class ViTPatchProjection(ViTModule):
    """The convolution whose kernel and stride are the patch, as one matrix product."""

    @nn.compact
    def __call__(self, pixel_values: Array) -> Array:
        (ph, pw), channels, width = pair(self.config.patch_size), self.config.num_channels, self.config.hidden_size
        init = normal(self.config.initializer_range)
        kernel = self.param("kernel", init, (ph, pw, channels, width), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (width,), self.param_dtype)
        x, kernel, bias = promote_dtype(pixel_values, kernel, bias, dtype=self.dtype)
        batch = x.shape[0]
        if self.channels_axis == 1:
            rows, columns = calls.grid(x.shape[2:], self.config)
            x = x[:, :, : rows * ph, : columns * pw].reshape(batch, channels, rows, ph, columns, pw)
            x = x.transpose(0, 2, 4, 3, 5, 1)  # (B, H / ph, W / pw, ph, pw, C)
        else:
            rows, columns = calls.grid(x.shape[1:3], self.config)
            x = x[:, : rows * ph, : columns * pw].reshape(batch, rows, ph, columns, pw, channels)
            x = x.transpose(0, 1, 3, 2, 4, 5)  # (B, H / ph, W / pw, ph, pw, C)
        x = x.reshape(batch * rows * columns, ph * pw * channels) @ kernel.reshape(-1, width) + bias
        return x.reshape(batch, rows * columns, width)  # (B, N, D)


class ViTPatchEmbeddings(ViTModule):
    """Non-overlapping patches, each projected to D."""

    def setup(self) -> None:
        self.projection = ViTPatchProjection(**self.common)

    def __call__(self, pixel_values: Array) -> Array:
        return self.projection(pixel_values)  # (B, N, D)


class ViTEmbeddings(ViTModule):
    """CLS token and patches plus position embeddings (equation 1); masked patches give way to the mask token."""

    use_mask_token: bool = False

    def setup(self) -> None:
        width, init = self.config.hidden_size, normal(self.config.initializer_range)
        self.cls_token = self.param("cls_token", init, (1, 1, width), self.param_dtype)
        if self.use_mask_token:
            self.mask_token = self.param("mask_token", nn.initializers.zeros, (1, 1, width), self.param_dtype)
        self.position_embeddings = self.param(
            "position_embeddings", init, (1, self.config.num_patches + 1, width), self.param_dtype
        )
        self.patch_embeddings = ViTPatchEmbeddings(**self.common)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(
        self,
        pixel_values: Array,
        bool_masked_pos: Array | None = None,
        interpolate_pos_encoding: bool = False,
        train: bool = False,
    ) -> Array:
        size = self.size_of(pixel_values)
        x = self.patch_embeddings(pixel_values)
        if bool_masked_pos is not None:
            x = jnp.where(bool_masked_pos[..., None] != 0, self.mask_token.astype(x.dtype), x)
        cls_token = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, x.shape[2])).astype(x.dtype)
        x = jnp.concatenate([cls_token, x], axis=1)  # (B, S, D)
        positions = self.resized_positions(size) if interpolate_pos_encoding else self.position_embeddings
        return self.dropout(x + positions.astype(x.dtype), deterministic=not train)

    def resized_positions(self, size: Sequence[int]) -> Array:
        """The position embeddings for an image of `size`, height x width in pixels; the CLS row is untouched."""
        table, source, target = self.position_embeddings, self.config.grid, calls.grid(size, self.config)
        wide = jnp.promote_types(table.dtype, jnp.float32)
        rows, columns = (jnp.asarray(resize_matrix(s, t), wide) for s, t in zip(source, target, strict=True))
        grid = (rows @ table[0, 1:].astype(wide).reshape(source[0], -1)).reshape(-1, source[1], table.shape[2])
        patches = (columns @ grid).reshape(1, -1, table.shape[2]).astype(table.dtype)
        return jnp.concatenate([table[:, :1], patches], axis=1)


class ViTSelfAttention(ViTModule):
    """Multi-head self-attention before its output projection (appendix A, equations 5 to 7)."""

    def setup(self) -> None:
        self.query = self.linear(self.config.hidden_size, self.config.qkv_bias)
        self.key = self.linear(self.config.hidden_size, self.config.qkv_bias)
        self.value = self.linear(self.config.hidden_size, self.config.qkv_bias)
        self.dropout = nn.Dropout(self.config.attention_probs_dropout_prob)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> tuple[Array, Array | None]:
        x, (batch, tokens, width) = hidden_states, hidden_states.shape
        heads = (batch, tokens, self.config.num_attention_heads, width // self.config.num_attention_heads)
        q, k, v = (f(x).reshape(heads).swapaxes(1, 2) for f in (self.query, self.key, self.value))  # (B, h, S, d)
        attend = choose(self.config.attn_implementation, options.output_attentions)
        dropout = partial(self.dropout, deterministic=False) if train and self.dropout.rate else None
        context, probs = attend(q, k, v, bias, head_mask, dropout)
        return context.swapaxes(1, 2).reshape(x.shape), probs  # (B, S, D)


class ViTSelfOutput(ViTModule):
    """The output projection of an attention (equation 8); the residual is its layer's."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, train: bool = False) -> Array:
        return self.dropout(self.dense(hidden_states), deterministic=not train)


class ViTAttention(ViTModule):
    """Self-attention and its output projection."""

    def setup(self) -> None:
        self.attention = ViTSelfAttention(**self.common)
        self.output = ViTSelfOutput(**self.common)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> Any:
        context, probs = self.attention(hidden_states, head_mask, bias, options, train)
        return options.joined(self.output(options.wanted(context), train), probs)


class ViTIntermediate(ViTModule):
    """The first linear layer of the MLP, and its activation."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.intermediate_size)

    def __call__(self, hidden_states: Array) -> Array:
        return activation(self.config.hidden_act)(self.dense(hidden_states))


class ViTOutput(ViTModule):
    """The second linear layer of the MLP, and the residual."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(self, hidden_states: Array, input_tensor: Array, train: bool = False) -> Array:
        return input_tensor + self.dropout(self.dense(hidden_states), deterministic=not train)


class ViTLayer(ViTModule):
    """One pre-norm block: attention, then the MLP (equations 2 and 3)."""

    def setup(self) -> None:
        self.attention = ViTAttention(**self.common)
        self.intermediate = ViTIntermediate(**self.common)
        self.output = ViTOutput(**self.common)
        self.layernorm_before = self.layer_norm()
        self.layernorm_after = self.layer_norm()

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> Any:
        x = self.layernorm_before(hidden_states)
        attended, probs = options.parted(self.attention(x, head_mask, bias, options, train))
        x = options.wanted(hidden_states) + attended
        return options.joined(self.output(self.intermediate(self.layernorm_after(x)), x, train), probs)


class ViTLayers(ViTModule):
    """L layers in a row, named by their numbers."""

    block: type[ViTLayer] = ViTLayer

    def setup(self) -> None:
        self.layers = [self.block(**self.common, name=str(i)) for i in range(self.config.num_hidden_layers)]

    def __call__(
        self, x: Array, head_mask: Array | None, bias: Array | None, options: calls.Options, train: bool
    ) -> tuple[Array, tuple[Any, Any]]:
        found = []
        for i, layer in enumerate(self.layers):
            mask = None if head_mask is None else head_mask[i]
            x, probs = options.parted(layer(x, mask, bias, options.of_layer(i, len(self.layers)), train))
            found.append((x, probs))
        return x, tuple(zip(*found, strict=True))  # type: ignore[return-value]


class ViTEncoder(ViTModule):
    """L layers, rematerialised or scanned over where the module says so."""

    def setup(self) -> None:
        block = nn.remat(ViTLayer, prevent_cse=not self.scan_layers, static_argnums=(4, 5)) if self.remat else ViTLayer
        self.layer = block(**self.common) if self.scan_layers else ViTLayers(**self.common, block=block)

    def __call__(
        self,
        hidden_states: Array,
        head_mask: Array | None = None,
        bias: Array | None = None,
        options: calls.Options = calls.DEFAULT,
        train: bool = False,
    ) -> BaseModelOutput:
        if head_mask is not None:
            head_mask = jnp.broadcast_to(head_mask, (self.config.num_hidden_layers, self.config.num_attention_heads))
        run = self.scanned if self.scan_layers else self.layer
        x, (states, probs) = run(hidden_states, head_mask, bias, options, train)
        return BaseModelOutput(
            last_hidden_state=x,
            hidden_states=(hidden_states, *states) if options.output_hidden_states else None,
            attentions=tuple(probs) if options.output_attentions else None,
        )

    def scanned(
        self, x: Array, head_mask: Array | None, bias: Array | None, options: calls.Options, train: bool
    ) -> tuple[Array, tuple[Any, Any]]:
        """As `ViTLayers`, by one layer whose parameters are stacked; none leaves tokens out."""
        asked = options.of_all_tokens

        def step(layer: ViTLayer, x: Array, mask: Array | None) -> tuple[Array, tuple[Array, Array | None]]:
            x, probs = asked.parted(layer(x, mask, bias, asked, train))
            return x, (x, probs)

        scan: Any = nn.scan(
            step,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            length=self.config.num_hidden_layers,
            check_constancy_invariants=False,  # there are none to check: it would trace the layer a second time
        )
        return scan(self.layer, x, head_mask)


class ViTPooler(ViTModule):
    """A dense layer and an activation, of the CLS token."""

    def setup(self) -> None:
        self.dense = self.linear(self.config.pooler_size)

    def __call__(self, hidden_states: Array) -> Array:
        return activation(self.config.pooler_act)(self.dense(hidden_states[:, 0]))


class FlaxViTModule(ViTModule):
    """The bare Vision Transformer as a Linen module; see `FlaxViTModel`."""

    add_pooling_layer: bool = True
    use_mask_token: bool = False

    def setup(self) -> None:
        self.embeddings = ViTEmbeddings(**self.common, use_mask_token=self.use_mask_token)
        self.encoder = ViTEncoder(**self.common)
        self.layernorm = self.layer_norm()
        if self.add_pooling_layer:
            self.pooler = ViTPooler(**self.common)

    def watched(self) -> bool:
        """Whether a caller may see that the last layer leaves tokens out: what it records, or intercepts."""
        return intercepted() or (self.scope is not None and bool(self.scope.mutable))

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
        calls.check_inputs(
            self.config,
            shapes(pixel_values, bool_masked_pos, head_mask, attention_mask),
            interpolate=bool(interpolate_pos_encoding),
            has_mask_token=self.use_mask_token,
            channels_axis=self.channels_axis,
        )
        assert pixel_values is not None

        x = self.embeddings(pixel_values, bool_masked_pos, bool(interpolate_pos_encoding), train)
        bias = additive_bias(attention_mask, x.dtype)
        encoded = self.encoder(x, head_mask, bias, options, train)
        x = self.layernorm(encoded.last_hidden_state)[:, :tokens]
        output = BaseModelOutputWithPooling(
            last_hidden_state=x,
            pooler_output=self.pooler(x) if self.add_pooling_layer else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class FlaxViTForImageClassificationModule(ViTModule):
    """The classifier as a Linen module; see `FlaxViTForImageClassification`."""

    def setup(self) -> None:
        self.vit = FlaxViTModule(**self.common, add_pooling_layer=False)
        if self.config.num_labels:
            self.classifier = self.linear(self.config.num_labels)

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
            train=train,
        )
        features = trunk.last_hidden_state[:, 0]
        logits = self.classifier(features) if self.config.num_labels else features
        output = ImageClassifierOutput(
            loss=classification_loss(logits, labels, self.config) if labels is not None else None,
            logits=logits,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class ViTPixelShuffle(ViTModule):
    """Channels to pixels: (B, H / ph, W / pw, C rh rw) to the model's layout of (B, C, H, W)."""

    def __call__(self, x: Array) -> Array:
        (batch, rows, columns, _), channels = x.shape, self.config.num_channels
        rh, rw = pair(self.config.encoder_stride)
        x = x.reshape(batch, rows, columns, channels, rh, rw)
        if self.channels_axis == 1:
            return x.transpose(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * rh, columns * rw)
        return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * rh, columns * rw, channels)


class ViTDecoder(ViTModule):
    """The 1x1 convolution of masked image modelling and the shuffle, under the names that a sequence gives them."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rh, rw = pair(self.config.encoder_stride)
        init, features = normal(self.config.initializer_range), rh * rw * self.config.num_channels
        conv = nn.Conv(features, (1, 1), dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=init, name="0")
        return ViTPixelShuffle(**self.common, name="1")(conv(x))


class FlaxViTForMaskedImageModelingModule(ViTModule):
    """Masked image modelling as a Linen module; see `FlaxViTForMaskedImageModeling`."""

    def setup(self) -> None:
        self.vit = FlaxViTModule(**self.common, add_pooling_layer=False, use_mask_token=True)
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
            train=train,
        )
        assert pixel_values is not None
        size = self.size_of(pixel_values)
        reconstruction = self.reconstruct(trunk.last_hidden_state[:, 1:], size)
        loss = None
        if bool_masked_pos is not None:
            args = (pixel_values, reconstruction, bool_masked_pos, self.config, self.channels_axis)
            loss = masked_reconstruction_loss(*args)
        output = MaskedImageModelingOutput(
            loss=loss,
            reconstruction=reconstruction,
            hidden_states=trunk.hidden_states,
            attentions=trunk.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def reconstruct(self, patches: Array, size: Sequence[int]) -> Array:
        """Pixels, in the model's layout, of the encoded patches (B, N, D) of an image of `size`, height x width."""
        rows, columns = calls.grid(size, self.config)
        return self.decoder(patches.reshape(-1, rows, columns, patches.shape[2]))


class FlaxViTModel(FlaxViTPreTrainedModel):
    """The bare Vision Transformer; returns `BaseModelOutputWithPooling`.

    `add_pooling_layer` adds a dense layer on the CLS token; `use_mask_token` adds the token that takes the place of the
    patches in `bool_masked_pos`. `tokens` of a call asks for the first so many tokens alone, which is faster: 1 is the
    CLS token, that the pooler reads.
    """

    architecture = "ViTModel"
    module_class = FlaxViTModule


class FlaxViTForImageClassification(FlaxViTPreTrainedModel):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`.

    With `num_labels=0` the logits are that token's features.
    """

    architecture = "ViTForImageClassification"
    module_class = FlaxViTForImageClassificationModule


class FlaxViTForMaskedImageModeling(FlaxViTPreTrainedModel):
    """A 1x1 convolution and a pixel shuffle that reconstruct the image; returns `MaskedImageModelingOutput`."""

    architecture = "ViTForMaskedImageModeling"
    module_class = FlaxViTForMaskedImageModelingModule
