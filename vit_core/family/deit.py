"""DeiT: Touvron et al. 2021, "Training data-efficient image transformers & distillation through attention", section 4.

A ViT with a distillation token after the CLS token, and a head on each. Agrees with `modeling_deit` of transformers
4.57.6, which starts tokens and position embeddings at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from vit_core.config import COMMON_DEFAULTS, ViTConfig
from vit_core.family.table import POSITIONS, Family, Row, after, changed
from vit_core.family.vit import CLASSIFIER, DECODER, IN_MEMORY, TRUNK


class DeiTConfig(ViTConfig):
    """Hyper-parameters of a DeiT: arguments, names and defaults are those of a ViT.

    Further keywords say how `DeiTForImageClassificationWithTeacher` is trained (section 4): `distillation` "hard"
    (equation 3) or "soft" (equation 2), `distillation_weight` of the teacher's term, from 0 to 1, and
    `distillation_temperature`. Their defaults are those of the authors' code; the paper's soft distillation has 0.1
    and 3.0.
    """

    model_type = "deit"
    reads = ()
    tokens = ("cls_token", "distillation_token")
    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON_DEFAULTS, "layer_scale": 0.0, "distillation": "hard", "distillation_weight": 0.5,
        "distillation_temperature": 1.0,
    }  # fmt: skip
    pool, fc_norm = "cls", False
    distillation: str
    distillation_weight: float
    distillation_temperature: float


_ZEROS = {"init": "zeros"}
DEIT = Family(
    "DeiT",
    DeiTConfig,
    {
        "DeiTModel": frozenset({"pooler"}),
        "DeiTForImageClassification": frozenset({"classifier"}),
        "DeiTForImageClassificationWithTeacher": frozenset({"cls_classifier", "distillation_classifier"}),
        "DeiTForMaskedImageModeling": frozenset({"mask_token", "decoder"}),
    },
    (
        *after(
            changed(TRUNK, {"embeddings.cls_token": _ZEROS, POSITIONS: _ZEROS}),
            "embeddings.cls_token",
            Row("embeddings.distillation_token", "raw", (1, 1, "D"), bias=False, init="zeros"),
        ),
        CLASSIFIER,
        *(replace(CLASSIFIER, name=name, part=name) for name in ("cls_classifier", "distillation_classifier")),
        DECODER,
    ),
    IN_MEMORY,
)
