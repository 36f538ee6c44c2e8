"""MSN: Assran et al. 2022, "Masked Siamese Networks for Label-Efficient Learning".

A ViT without a pooler. Agrees with `modeling_vit_msn` of transformers 4.57.6, which starts tokens and position
embeddings at zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from vit_core.config import COMMON_DEFAULTS, ViTConfig
from vit_core.family.table import POSITIONS, Family, changed, without
from vit_core.family.vit import CLASSIFIER, IN_MEMORY, TRUNK


class ViTMSNConfig(ViTConfig):
    """Hyper-parameters of an MSN; arguments, names and defaults are those of Hugging Face's `ViTMSNConfig`."""

    model_type = "vit_msn"
    reads = ()
    defaults: ClassVar[Mapping[str, Any]] = {**COMMON_DEFAULTS, "layer_scale": 0.0}
    pool, fc_norm = "cls", False

    def __init__(
        self,
        /,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str | Callable[..., Any] = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-6,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set(locals())


_ZEROS = {"init": "zeros"}
MSN = Family(
    "MSN",
    ViTMSNConfig,
    {"ViTMSNModel": frozenset(), "ViTMSNForImageClassification": frozenset({"classifier"})},
    (*changed(without(TRUNK, "pooler.dense"), {"embeddings.cls_token": _ZEROS, POSITIONS: _ZEROS}), CLASSIFIER),
    IN_MEMORY,
    trunk_name="vit",
)
