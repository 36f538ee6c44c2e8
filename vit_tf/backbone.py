"""A ViT in Keras as a backbone: maps of its patches after the stages that the configuration names.

The maps are those of transformers' `Dinov2Backbone` (4.57.6), for heads of detection and segmentation.
"""

from __future__ import annotations

from typing import Any

import keras
from tensorflow import Tensor

from vit_core import calls
from vit_core.backbone import Backbone
from vit_core.config import ViTConfig
from vit_tf.base import compiled
from vit_tf.modeling import TFViTModel
from vit_tf.outputs import BackboneOutput


@keras.saving.register_keras_serializable("vit_tf")
class TFViTBackbone(TFViTModel, Backbone):
    """The bare model as a backbone; returns `BackboneOutput`.

    `config.out_features`, or `config.out_indices`, says after which stages there are maps.
    """

    architecture = "ViTBackbone"
    output_class: type[BackboneOutput[Tensor]] = BackboneOutput  # type: ignore[assignment]

    def __init__(self, config: ViTConfig, **options: Any) -> None:
        super().__init__(config, False, False, **options)

    @compiled
    def call(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        training: bool = False,
    ) -> Any:
        """Maps (B, D, h, w), or with `config.reshape_hidden_states=False` all tokens (B, S, D), of pixels (B, C, H, W).

        Maps are (B, h, w, D) where the model was built with channels_last. Raises ValueError for what does not fit,
        TypeError for what is no tensor of floats.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate, training=training)
        bias = self.encoder.score_bias(None, x.dtype, pixel_values, interpolate)
        encoded = self.encoder(x, None, bias, options=calls.backbone_options(self.config, options), training=training)
        assert encoded.hidden_states is not None
        pool = "patches" if self.config.reshape_hidden_states else "tokens"
        size, normalize = self.size_of(pixel_values), self.config.apply_layernorm
        output = self.output_class(
            feature_maps=tuple(
                self.pooled(encoded.hidden_states[i], pool, size, normalize) for i in self.config.stages
            ),
            hidden_states=encoded.hidden_states if options.output_hidden_states else None,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()

    def main_output(self, output: Any) -> Tensor:
        """What a user's loss and metrics are applied to: the last map."""
        return super().main_output(output)[-1]
