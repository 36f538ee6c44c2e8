"""What heads of detection and segmentation ask of a backbone beside its maps: names, numbers and widths of its stages.

The attributes are those of transformers' `BackboneMixin` (4.57.6).
"""

from __future__ import annotations

from vit_core.config import ViTConfig


class Backbone:
    """The stages of a model, as its configuration names them; what is set here is set there."""

    config: ViTConfig

    @property
    def stage_names(self) -> list[str]:
        """What the embeddings and the layers are called."""
        return self.config.stage_names

    @property
    def out_indices(self) -> list[int]:
        """The numbers of the stages that there are maps of."""
        return self.config.out_indices

    @out_indices.setter
    def out_indices(self, indices: list[int]) -> None:
        self.config.out_indices = indices

    @property
    def out_features(self) -> list[str]:
        """The names of the stages that there are maps of."""
        return self.config.out_features

    @out_features.setter
    def out_features(self, names: list[str]) -> None:
        self.config.out_features = names

    @property
    def num_features(self) -> list[int]:
        """The width of every stage."""
        return [self.config.hidden_size] * len(self.stage_names)

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """The width of every stage by its name."""
        return dict(zip(self.stage_names, self.num_features, strict=True))

    @property
    def channels(self) -> list[int]:
        """The width of every map."""
        return [self.out_feature_channels[name] for name in self.out_features]
