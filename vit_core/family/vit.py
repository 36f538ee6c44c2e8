"""ViT: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 1 to 4.

The rows `scale` are of the layer scale that DeiT III (Touvron et al. 2022) and others add to it (CaiT,
Touvron et al. 2021, section 2).
"""

from __future__ import annotations

from vit_core.config import ViTConfig
from vit_core.family.table import LAYER, POSITIONS, Family, Row

TRUNK = (
    Row("embeddings.cls_token", "raw", (1, 1, "D"), bias=False),
    Row("embeddings.mask_token", "raw", (1, 1, "D"), bias=False, init="zeros", part="mask_token"),
    Row(POSITIONS, "raw", (1, "S", "D"), bias=False),
    Row("embeddings.patch_embeddings.projection", "conv", ("D", "C", "P", "Q")),
    Row(LAYER + "attention.attention.query", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.attention.key", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.attention.value", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.output.dense", "linear", ("D", "D")),
    Row(LAYER + "attention.output.scale", "raw", ("D",), bias=False, init="layer_scale", when="layer_scale"),
    Row(LAYER + "intermediate.dense", "linear", ("F", "D")),
    Row(LAYER + "output.dense", "linear", ("D", "F")),
    Row(LAYER + "output.scale", "raw", ("D",), bias=False, init="layer_scale", when="layer_scale"),
    Row(LAYER + "layernorm_before", "norm", ("D",), init="norm"),
    Row(LAYER + "layernorm_after", "norm", ("D",), init="norm"),
    Row("layernorm", "norm", ("D",), init="norm"),
    Row("pooler.dense", "linear", ("O", "D"), part="pooler"),
)
CLASSIFIER = Row("classifier", "linear", ("K", "D"), part="classifier", head=True)
DECODER = Row("decoder.0", "conv", ("R", "D", 1, 1), part="decoder", head=True)

VIT = Family(
    "ViT",
    ViTConfig,
    {
        "ViTModel": frozenset({"pooler"}),
        "ViTForImageClassification": frozenset({"classifier"}),
        "ViTForMaskedImageModeling": frozenset({"mask_token", "decoder"}),
    },
    (*TRUNK, CLASSIFIER, DECODER),
)
