"""ViT: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", equations 1 to 4.

The rows `scale` are of the layer scale that DeiT III (Touvron et al. 2022) and others add to it (CaiT,
Touvron et al. 2021, section 2).
"""

from __future__ import annotations

from vit_core.config import ViTConfig
from vit_core.family.table import LAYER, MASK_TOKEN, POSITIONS, Family, Row

ATTENTION_SCALE, MLP_SCALE = LAYER + "attention.output.scale", LAYER + "output.scale"

TRUNK = (
    Row("embeddings.cls_token", "raw", (1, 1, "D"), bias=False),
    Row(MASK_TOKEN, "raw", (1, 1, "D"), bias=False, init="zeros", part="mask_token"),
    Row(POSITIONS, "raw", (1, "S", "D"), bias=False),
    Row("embeddings.patch_embeddings.projection", "conv", ("D", "C", "P", "Q")),
    Row(LAYER + "attention.attention.query", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.attention.key", "linear", ("D", "D"), bias="key_bias"),
    Row(LAYER + "attention.attention.value", "linear", ("D", "D"), bias="qkv_bias"),
    Row(LAYER + "attention.output.dense", "linear", ("D", "D")),
    Row(ATTENTION_SCALE, "raw", ("D",), bias=False, init="layer_scale", when="layer_scale"),
    Row(LAYER + "intermediate.dense", "linear", ("F", "D")),
    Row(LAYER + "output.dense", "linear", ("D", "F")),
    Row(MLP_SCALE, "raw", ("D",), bias=False, init="layer_scale", when="layer_scale"),
    Row(LAYER + "layernorm_before", "norm", ("D",), init="norm"),
    Row(LAYER + "layernorm_after", "norm", ("D",), init="norm"),
    Row("layernorm", "norm", ("D",), init="norm", when="final_norm"),
    Row("pooler.dense", "linear", ("O", "D"), part="pooler"),
)
CLASSIFIER = Row("classifier", "linear", ("K", "D"), part="classifier", head=True)
POOLED_NORM = Row("fc_norm", "norm", ("D",), init="norm", part="classifier", head=True, when="fc_norm")
DECODER = Row("decoder.0", "conv", ("R", "D", 1, 1), part="decoder", head=True)
_LAYER_IN_MEMORY = "layers.{}."
ATTENTION_IN_MEMORY = {
    LAYER + "attention.attention.query": "attention.q_proj",
    LAYER + "attention.attention.key": "attention.k_proj",
    LAYER + "attention.attention.value": "attention.v_proj",
    LAYER + "attention.output.dense": "attention.o_proj",
}
IN_MEMORY = {
    name: _LAYER_IN_MEMORY + module
    for name, module in {
        **ATTENTION_IN_MEMORY,
        LAYER + "intermediate.dense": "mlp.fc1",
        LAYER + "output.dense": "mlp.fc2",
        LAYER + "layernorm_before": "layernorm_before",
        LAYER + "layernorm_after": "layernorm_after",
    }.items()
}

VIT = Family(
    "ViT",
    ViTConfig,
    {
        "ViTModel": frozenset({"pooler"}),
        "ViTForImageClassification": frozenset({"classifier"}),
        "ViTForMaskedImageModeling": frozenset({"mask_token", "decoder"}),
        "ViTBackbone": frozenset(),
    },
    (*TRUNK, CLASSIFIER, POOLED_NORM, DECODER),
    IN_MEMORY,
)
