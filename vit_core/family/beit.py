"""BEiT: Bao et al. 2022, "BEiT: BERT Pre-Training of Image Transformers", section 2.

A ViT whose attention knows how far apart two tokens are (a relative position bias, Shaw et al. 2018, in the form of Liu
et al. 2021, "Swin Transformer", section 3.2), whose layers scale their branches (CaiT, Touvron et al. 2021, section 2),
and whose masked patches are told by their visual tokens. Agrees with `modeling_beit` of transformers 4.57.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from vit_core.config import COMMON_DEFAULTS, ViTConfig
from vit_core.family.table import LAYER, MASK_TOKEN, POSITIONS, Family, Row, after, changed, without
from vit_core.family.vit import ATTENTION_SCALE, CLASSIFIER, IN_MEMORY, MLP_SCALE, TRUNK

_TABLE = "relative_position_bias.relative_position_bias_table"
POSITION_BIAS, SHARED_POSITION_BIAS = LAYER + "attention.attention." + _TABLE, "encoder." + _TABLE


class BeitConfig(ViTConfig):
    """Hyper-parameters of a BEiT; arguments, names and defaults are those of Hugging Face's `BeitConfig`.

    `vocab_size` is the number of visual tokens. Each layer has a relative position bias of its own with
    `use_relative_position_bias`, all of them share one with `use_shared_relative_position_bias`, and the embeddings
    have positions with `use_absolute_position_embeddings`. `layer_scale_init_value` is what the scales of a layer's
    branches start at, 0 for none. With `use_mean_pooling` the pooler takes the mean of the patches and normalises it,
    and the sequence is not normalised; else the sequence is, and the pooled output is its CLS token. Pictures of any
    size are taken. The fields from `pool_scales` to `semantic_loss_ignore_index` are of a segmentation head, and kept
    as they come.
    """

    model_type = "beit"
    reads = ("data2vec-vision",)
    always_interpolates = True
    defaults: ClassVar[Mapping[str, Any]] = COMMON_DEFAULTS
    qkv_bias, key_bias, apply_layernorm = True, False, False
    layer_scale, fc_norm = 0.0, False  # of a ViT: here they have names and forms of their own
    vocab_size: int
    use_mask_token: bool
    use_absolute_position_embeddings: bool
    use_relative_position_bias: bool
    use_shared_relative_position_bias: bool
    layer_scale_init_value: float
    use_mean_pooling: bool
    add_fpn: bool

    def __init__(
        self,
        /,
        vocab_size: int = 8192,
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
        use_mask_token: bool = False,
        use_absolute_position_embeddings: bool = False,
        use_relative_position_bias: bool = False,
        use_shared_relative_position_bias: bool = False,
        layer_scale_init_value: float = 0.1,
        drop_path_rate: float = 0.1,
        use_mean_pooling: bool = True,
        pool_scales: Any = (1, 2, 3, 6),
        use_auxiliary_head: Any = True,
        auxiliary_loss_weight: Any = 0.4,
        auxiliary_channels: Any = 256,
        auxiliary_num_convs: Any = 1,
        auxiliary_concat_input: Any = False,
        semantic_loss_ignore_index: Any = 255,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        add_fpn: bool = False,
        reshape_hidden_states: bool = True,
        **kwargs: Any,
    ) -> None:
        out_indices = kwargs.pop("segmentation_indices", out_indices)  # its older name
        if kwargs.get("model_type") in self.reads and out_indices == [3, 5, 7, 11] and num_hidden_layers < 11:
            out_indices = None  # Data2VecVision's default, which it writes whatever its depth
        pool_scales = list(pool_scales) if isinstance(pool_scales, tuple) else pool_scales
        self._set(locals())

    @property
    def pool(self) -> str:  # type: ignore[override]
        """What the pooler reads."""
        return "mean" if self.use_mean_pooling else "cls"

    @property
    def final_norm(self) -> bool:
        """Whether the sequence is normalised at the end."""
        return not self.use_mean_pooling


_ZEROS = {"init": "zeros"}
_SCALE = {"init": "layer_scale_init_value", "when": "layer_scale_init_value"}
_HEADS = (
    CLASSIFIER,
    Row("lm_head.layernorm", "norm", ("D",), init="norm", part="lm_head", head=True, file="layernorm"),
    Row("lm_head", "linear", ("V", "D"), part="lm_head", head=True),
)
_TRUNK = changed(
    without(TRUNK, "pooler.dense"),
    {
        "embeddings.cls_token": _ZEROS,
        MASK_TOKEN: {"part": "", "when": "use_mask_token"},
        POSITIONS: {**_ZEROS, "when": "use_absolute_position_embeddings"},
        ATTENTION_SCALE: {"file": LAYER + "lambda_1", **_SCALE},
        MLP_SCALE: {"file": LAYER + "lambda_2", **_SCALE},
    },
)


def _bias(name: str, when: str) -> Row:
    return Row(name, "raw", ("T", "H"), bias=False, init="zeros", when=when)


_OF_LAYER = _bias(POSITION_BIAS, "use_relative_position_bias")
_ROWS = (
    *after(_TRUNK, LAYER + "attention.attention.value", _OF_LAYER),
    _bias(SHARED_POSITION_BIAS, "use_shared_relative_position_bias"),
    Row("pooler.layernorm", "norm", ("D",), init="norm", part="pooler", when="use_mean_pooling"),
    *_HEADS,
)
_GAUSSIAN = {row.name: {"init": "untruncated"} for row in _ROWS if row.kind in ("linear", "conv")}


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields that the shapes of the parameters, by canonical name, speak of."""
    own, shared = shapes.get(POSITION_BIAS.format(0)), shapes.get(SHARED_POSITION_BIAS)
    found: dict[str, Any] = {
        "use_mask_token": MASK_TOKEN in shapes,
        "use_absolute_position_embeddings": POSITIONS in shapes,
        "use_relative_position_bias": own is not None,
        "use_shared_relative_position_bias": shared is not None,
        "use_mean_pooling": "layernorm.weight" not in shapes,
    }
    if ATTENTION_SCALE.format(0) not in shapes:
        found["layer_scale_init_value"] = 0.0
    if (table := own or shared) is not None:
        found["num_attention_heads"] = table[1]
    if (head := shapes.get("lm_head.weight")) is not None:
        found["vocab_size"] = head[0]
    return found


BEIT = Family(
    "BEiT",
    BeitConfig,
    {
        "BeitModel": frozenset({"pooler"}),
        "BeitForImageClassification": frozenset({"pooler", "classifier"}),
        "BeitForMaskedImageModeling": frozenset({"lm_head"}),
        "BeitBackbone": frozenset(),
    },
    changed(_ROWS, _GAUSSIAN),
    {
        **IN_MEMORY,
        ATTENTION_SCALE: "layers.{}.lambda_1",
        MLP_SCALE: "layers.{}.lambda_2",
        POSITION_BIAS: "layers.{}." + _TABLE,
        SHARED_POSITION_BIAS: "shared_position_bias.relative_position_bias_table",
    },
    also_read=("data2vec_vision",),  # the image models of Baevski et al. 2022, "data2vec", which are BEiTs
    of_shapes=_of_shapes,
)
