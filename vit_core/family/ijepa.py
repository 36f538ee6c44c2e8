"""I-JEPA: Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture".

A ViT without a CLS token, whose classifier reads the mean of all patches. Agrees with `modeling_ijepa` of transformers
4.57.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from vit_core.config import COMMON_DEFAULTS, ViTConfig
from vit_core.family.table import Family, without
from vit_core.family.vit import CLASSIFIER, IN_MEMORY, TRUNK


class IJepaConfig(ViTConfig):
    """Hyper-parameters of an I-JEPA; arguments, names and defaults are those of Hugging Face's `IJepaConfig`."""

    model_type = "ijepa"
    reads = ()
    tokens = ()
    defaults: ClassVar[Mapping[str, Any]] = {**COMMON_DEFAULTS, "layer_scale": 0.0}
    pool, fc_norm = "mean", False

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
        layer_norm_eps: float = 1e-12,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        pooler_output_size: int | None = None,
        pooler_act: str | Callable[..., Any] = "tanh",
        **kwargs: Any,
    ) -> None:
        self._set(locals())


IJEPA = Family(
    "I-JEPA",
    IJepaConfig,
    {"IJepaModel": frozenset(), "IJepaForImageClassification": frozenset({"classifier"})},
    (*without(TRUNK, "embeddings.cls_token"), CLASSIFIER),
    IN_MEMORY,
)
