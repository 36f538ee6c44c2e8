"""A ViT in PyTorch as a backbone: maps of its patches after the stages that the configuration names.

The maps are those of transformers' `Dinov2Backbone` (4.57.6), for heads of detection and segmentation.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from vit_core import calls
from vit_core.backbone import Backbone
from vit_core.config import ViTConfig
from vit_torch.base import shapes
from vit_torch.modeling import ViTModel
from vit_torch.outputs import BackboneOutput


class ViTBackbone(ViTModel, Backbone):
    """The bare model as a backbone; returns `BackboneOutput`.

    `config.out_features`, or `config.out_indices`, says after which stages there are maps.
    """

    architecture = "ViTBackbone"
    output_class: type[BackboneOutput[Tensor]] = BackboneOutput  # type: ignore[assignment]

    def __init__(self, config: ViTConfig, *, seed: int | None = None) -> None:
        super().__init__(config, False, False, seed=seed)

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """As a call, without the keywords that it does not know: so transformers' models call their backbone."""
        known = inspect.signature(self.forward).parameters
        return self(*args, **{name: value for name, value in kwargs.items() if name in known})

    def forward(  # type: ignore[override]
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> Any:
        """Maps (B, D, h, w), or with `config.reshape_hidden_states=False` all tokens (B, S, D), of pixels (B, C, H, W).

        Raises ValueError for what does not fit, TypeError for what is no tensor of floats.
        """
        options = calls.resolve_options(self.config, output_attentions, output_hidden_states, return_dict)
        interpolate = calls.interpolates(self.config, interpolate_pos_encoding)
        given = shapes(pixel_values, None, None, None)
        calls.check_inputs(self.config, given, interpolate=interpolate, has_mask_token=False)

        x = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
        bias = self.encoder.score_bias(None, x.dtype, pixel_values, interpolate)
        encoded = self.encoder(x, None, bias, calls.backbone_options(self.config, options))
        assert encoded.hidden_states is not None
        pool = "patches" if self.config.reshape_hidden_states else "tokens"
        maps = tuple(
            self.pooled(encoded.hidden_states[i], pool, pixel_values.shape[2:], self.config.apply_layernorm)
            for i in self.config.stages
        )
        output = self.output_class(
            feature_maps=maps,
            hidden_states=encoded.hidden_states if options.output_hidden_states else None,
            attentions=encoded.attentions,
        )
        return output if options.return_dict else output.to_tuple()
