"""I-JEPA in PyTorch: a ViT without a CLS token.

Paper: Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".
Agrees with `modeling_ijepa` of transformers 4.57.6.
"""

from __future__ import annotations

from vit_core.config import ViTConfig
from vit_core.family import IJEPA
from vit_torch.base import ViTPreTrainedModel
from vit_torch.modeling import ViTForImageClassification, ViTModel


class IJepaPreTrainedModel(ViTPreTrainedModel):
    """Base of I-JEPA's models."""

    config_class = IJEPA.config
    base_model_prefix = IJEPA.trunk


class IJepaModel(IJepaPreTrainedModel, ViTModel):
    """The bare I-JEPA: a ViT without a CLS token; returns `BaseModelOutputWithPooling`."""

    architecture = "IJepaModel"

    def __init__(
        self,
        config: ViTConfig,
        add_pooling_layer: bool = False,
        use_mask_token: bool = False,
        *,
        seed: int | None = None,
    ) -> None:
        super().__init__(config, add_pooling_layer, use_mask_token, seed=seed)


class IJepaForImageClassification(IJepaPreTrainedModel, ViTForImageClassification):
    """A linear classifier on the mean of the patches; returns `ImageClassifierOutput`."""

    architecture = "IJepaForImageClassification"
    trunk_class = IJepaModel
