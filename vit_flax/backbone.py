"""A ViT in JAX as a backbone: maps of its patches after the stages that the configuration names.

The maps are those of transformers' `Dinov2Backbone` (4.57.6), for heads of detection and segmentation.
"""

from __future__ import annotations

from typing import Any, ClassVar

from jax import Array

from vit_core import calls
from vit_core.backbone import Backbone
from vit_flax.base import shapes
from vit_flax.modeling import FlaxViTModel, FlaxViTModule
from vit_flax.outputs import BackboneOutput


class FlaxViTBackboneModule(FlaxViTModule):
    """The backbone as a Linen module; see `FlaxViTBackbone`."""

    output_class: ClassVar[type[BackboneOutput[Array]]] = BackboneOutput  # type: ignore[assignment]
    add_pooling_layer: ClassVar[bool] = False  # type: ignore[misc]
    use_mask_token: ClassVar[bool] = False  # type: ignore[misc]

    def __call__(  # type: ignore[override]
        self,
        pixel_values: Array,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        train: bool = False,
    ) -> Any:
        """As `FlaxViTBackbone`; pure, for `module.apply({"params": params}, ...)`."""
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given, axis = shapes(pixel_values, None, None, None), self.channels_axis
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False, channels_axis=axis)

        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate, train=train)
        bias = self.encoder.score_bias(None, x.dtype, self.size_of(pixel_values), interpolate)
        encoded = self.encoder(x, None, bias, calls.backbone_options(self.config, options), train)
        assert encoded.hidden_states is not None
        pool = "patches" if self.config.reshape_hidden_states else "tokens"
        maps = tuple(
            self.pooled(encoded.hidden_states[i], pool, self.size_of(pixel_values), self.config.apply_layernorm)
            for i in self.config.stages
        )
        output = self.output_class(
            feature_maps=maps,
            hidden_states=encoded.hidden_states if options.output_hidden_states else None,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()


class FlaxViTBackbone(FlaxViTModel, Backbone):
    """The bare model as a backbone; returns `BackboneOutput`.

    `config.out_features`, or `config.out_indices`, says after which stages there are maps: (B, D, h, w), where the
    model was built with channels_last (B, h, w, D), or with `config.reshape_hidden_states=False` all tokens (B, S, D).
    """

    architecture = "ViTBackbone"
    module_class: ClassVar[type[FlaxViTBackboneModule]] = FlaxViTBackboneModule
