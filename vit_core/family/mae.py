"""MAE: He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners", section 3 and appendix A.1.

A ViT's encoder on the patches that are kept, and a decoder of such layers, in a width of its own, on all of them. Both
have fixed position embeddings of sines. Agrees with `modeling_vit_mae` of transformers 4.57.6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from vit_core.calls import num_kept
from vit_core.config import COMMON_DEFAULTS, ViTConfig, pair
from vit_core.family.table import DECODER_LAYER, LAYER, MASK_TOKEN, PATCHES, POSITIONS, Family, Row, changed, without
from vit_core.family.vit import ATTENTION_SCALE, IN_MEMORY, MLP_SCALE, TRUNK

_OF_DECODER = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_OF_BOTH = (
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "qkv_bias",
    "attn_implementation", "initializer_range",
)  # fmt: skip


class ViTMAEConfig(ViTConfig):
    """Hyper-parameters of an MAE; arguments, names and defaults are those of Hugging Face's `ViTMAEConfig`.

    `mask_ratio` of the patches are removed, at least one is kept. `norm_pix_loss` has the loss on pixels that are
    normalised patch by patch. The sines need widths, of the encoder and of the decoder, that are multiples of 4.
    """

    model_type = "vit_mae"
    reads = ()
    defaults: ClassVar[Mapping[str, Any]] = COMMON_DEFAULTS
    layer_scale, pool, fc_norm = 0.0, "cls", False
    embeddings_dropout_prob = 0.0
    decoder_num_attention_heads: int
    decoder_hidden_size: int
    decoder_num_hidden_layers: int
    decoder_intermediate_size: int
    mask_ratio: float
    norm_pix_loss: bool

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
        decoder_num_attention_heads: int = 16,
        decoder_hidden_size: int = 512,
        decoder_num_hidden_layers: int = 8,
        decoder_intermediate_size: int = 2048,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        **kwargs: Any,
    ) -> None:
        self._set(locals())

    def validate(self) -> None:
        super().validate()
        self._check_width("hidden_size")
        num_kept(self.num_patches, self)
        if self.norm_pix_loss and math.prod(pair(self.patch_size)) * self.num_channels == 1:
            raise ValueError("norm_pix_loss=True is for patches of several numbers, these have one: leave it out.")

    def _check_width(self, name: str) -> None:
        if (width := getattr(self, name)) % 4:
            raise ValueError(f"{name} must be a multiple of 4, for position embeddings of sines: got {width}.")

    @property
    def decoder(self) -> ViTConfig:
        """What the decoder's layers are made of: its own sizes, all else as in the encoder.

        Raises ValueError for sizes that do not fit: files of the encoder alone may say anything of a decoder.
        """
        self._check_width("decoder_hidden_size")
        if self.decoder_hidden_size % self.decoder_num_attention_heads:
            raise ValueError(
                "decoder_hidden_size must be a multiple of decoder_num_attention_heads: got decoder_hidden_size="
                f"{self.decoder_hidden_size} and decoder_num_attention_heads={self.decoder_num_attention_heads}."
            )
        own = {name: getattr(self, f"decoder_{name}") for name in _OF_DECODER}
        return ViTConfig(**own, **{name: getattr(self, name) for name in _OF_BOTH})


_WIDTHS = {"D": "Dd", "F": "Fd"}
_TRUNK = changed(
    without(TRUNK, MASK_TOKEN, ATTENTION_SCALE, MLP_SCALE, "pooler.dense"),
    {POSITIONS: {"init": "sincos", "fixed": True}, PATCHES: {"init": "xavier"}},
)


def _of_decoder(row: Row) -> Row:
    """A row of the encoder's layers as the decoder's have it."""
    return replace(
        row,
        name=row.name.replace(LAYER, DECODER_LAYER),
        shape=tuple(_WIDTHS.get(str(symbol), symbol) for symbol in row.shape),
        layers="decoder_num_hidden_layers",
        also=row.name.replace(LAYER, "decoder.decoder_encoder.layer.{}."),  # as transformers 5.23 saves it
    )


_DECODER = (
    Row("decoder.mask_token", "raw", (1, 1, "Dd"), bias=False),
    Row("decoder.decoder_pos_embed", "raw", (1, "S", "Dd"), bias=False, init="sincos", fixed=True),
    Row("decoder.decoder_embed", "linear", ("Dd", "D")),
    *(_of_decoder(row) for row in _TRUNK if row.name.startswith(LAYER)),
    Row("decoder.decoder_norm", "norm", ("Dd",), init="norm"),
    Row("decoder.decoder_pred", "linear", ("PQC", "Dd")),
)
_DECODER_IN_MEMORY = {
    name.replace(LAYER, DECODER_LAYER): module.replace("layers.{}.", DECODER_LAYER)
    for name, module in IN_MEMORY.items()
}


def _of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The fields that the shapes of the parameters, by canonical name, speak of."""
    if "decoder.mask_token" not in shapes:
        return {}
    norm, first = DECODER_LAYER + "layernorm_before.weight", DECODER_LAYER + "intermediate.dense.weight"
    layers = 0
    while norm.format(layers) in shapes:
        layers += 1
    found = {"decoder_hidden_size": shapes["decoder.mask_token"][-1], "decoder_num_hidden_layers": layers}
    return found | ({"decoder_intermediate_size": shapes[first.format(0)][0]} if first.format(0) in shapes else {})


MAE = Family(
    "MAE",
    ViTMAEConfig,
    {"ViTMAEModel": frozenset(), "ViTMAEForPreTraining": frozenset({"decoder"})},
    (*_TRUNK, *(replace(row, part="decoder", head=True) for row in _DECODER)),
    {**IN_MEMORY, **_DECODER_IN_MEMORY},
    trunk_name="vit",
    of_shapes=_of_shapes,
)
