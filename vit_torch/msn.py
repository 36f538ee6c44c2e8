"""MSN in PyTorch: a ViT without a pooler.

Paper: Assran et al. 2022, "Masked Siamese Networks for Label-Efficient Learning". Agrees with `modeling_vit_msn` of
transformers 4.57.6.
"""

from __future__ import annotations

from vit_core.config import ViTConfig
from vit_core.family import MSN
from vit_torch.base import ViTPreTrainedModel
from vit_torch.modeling import ViTForImageClassification, ViTModel


class ViTMSNPreTrainedModel(ViTPreTrainedModel):
    """Base of MSN's models."""

    config_class = MSN.config
    base_model_prefix = MSN.trunk


class ViTMSNModel(ViTMSNPreTrainedModel, ViTModel):
    """The bare MSN; returns `BaseModelOutputWithPooling` without a pooled output."""

    architecture = "ViTMSNModel"

    def __init__(self, config: ViTConfig, use_mask_token: bool = False, *, seed: int | None = None) -> None:
        super().__init__(config, False, use_mask_token, seed=seed)


class ViTMSNForImageClassification(ViTMSNPreTrainedModel, ViTForImageClassification):
    """A linear classifier on the CLS token after the final LayerNorm; returns `ImageClassifierOutput`."""

    architecture = "ViTMSNForImageClassification"
    trunk_class = ViTMSNModel
