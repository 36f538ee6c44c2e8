"""DINOv2: Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision", section 4; with registers:
Darcet et al. 2023, "Vision Transformers Need Registers", section 2.

A ViT whose layers scale their branches (CaiT, Touvron et al. 2021, section 2), whose largest size has a gated MLP
(Shazeer 2020, "GLU Variants Improve Transformer"), and which takes pictures of any size. Agrees with `modeling_dinov2`
and `modeling_dinov2_with_registers` of transformers 4.57.6.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from vit_core.config import COMMON_DEFAULTS, ViTConfig
from vit_core.family.table import LAYER, MASK_TOKEN, REGISTERS, Family, Row, after, changed, without
from vit_core.family.vit import ATTENTION_IN_MEMORY, ATTENTION_SCALE, CLASSIFIER, MLP_SCALE, TRUNK

GATE, GATED = LAYER + "mlp.weights_in", LAYER + "mlp.weights_out"


class Dinov2Config(ViTConfig):
    """Hyper-parameters of a DINOv2; arguments, names and defaults are those of Hugging Face's `Dinov2Config`.

    `layerscale_value` is what the scales of a layer's branches start at. The MLP is `mlp_ratio` times as wide as the
    model; with `use_swiglu_ffn`, gated, two thirds of that, rounded up to a multiple of 8. `drop_path_rate` is the same
    for every layer. Position embeddings are resized to every picture, with `position_kernel`: "hf-4.44" is that of the
    authors' code at sizes other than the model's.
    """

    model_type = "dinov2"
    reads = ()
    always_interpolates = True
    defaults: ClassVar[Mapping[str, Any]] = COMMON_DEFAULTS
    layer_scale, pool, fc_norm = 0.0, "cls", False  # of a ViT: here they have names and forms of their own
    mlp_ratio: float
    layerscale_value: float
    use_swiglu_ffn: bool
    use_mask_token: bool

    def __init__(
        self,
        /,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float = 4,
        hidden_act: str | Callable[..., Any] = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-6,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 14,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: float = 1.0,
        drop_path_rate: float = 0.0,
        use_swiglu_ffn: bool = False,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        use_mask_token: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set(locals())

    def _set(self, given: dict[str, Any]) -> None:
        width = given["kwargs"].pop("intermediate_size", None)
        super()._set(given)
        if width not in (None, self.intermediate_size):
            warnings.warn(
                f"{type(self).__name__} does not read intermediate_size={width!r}: the MLP is {self.intermediate_size} "
                f"wide, by mlp_ratio={self.mlp_ratio:g}. Remove it, or pass another mlp_ratio.",
                stacklevel=3,
            )

    @property
    def intermediate_size(self) -> int:  # type: ignore[override]
        """F, the width of the MLP."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    def validate(self) -> None:
        super().validate()
        if not self.intermediate_size:
            raise ValueError(f"mlp_ratio={self.mlp_ratio:g} leaves an MLP of width 0: pass a larger one.")

    @property
    def plain_mlp(self) -> bool:
        """Whether the MLP has no gate."""
        return not self.use_swiglu_ffn

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        return (self.drop_path_rate,) * self.num_hidden_layers


class Dinov2WithRegistersConfig(Dinov2Config):
    """Hyper-parameters of a DINOv2 with registers, those of Hugging Face's `Dinov2WithRegistersConfig`.

    As `Dinov2Config`, with `num_register_tokens`; positions are resized with antialiasing.
    """

    model_type = "dinov2_with_registers"
    defaults: ClassVar[Mapping[str, Any]] = {**COMMON_DEFAULTS, "position_kernel": "timm"}
    use_mask_token = True
    num_register_tokens: int

    def __init__(
        self,
        /,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float = 4,
        hidden_act: str | Callable[..., Any] = "gelu",
        hidden_dropout_prob: float = 0.0,
        attention_probs_dropout_prob: float = 0.0,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-6,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = 16,
        num_channels: int = 3,
        qkv_bias: bool = True,
        layerscale_value: float = 1.0,
        drop_path_rate: float = 0.0,
        use_swiglu_ffn: bool = False,
        num_register_tokens: int = 4,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        apply_layernorm: bool = True,
        reshape_hidden_states: bool = True,
        **kwargs: Any,
    ) -> None:
        self._set(locals())


_SCALE = {"init": "layerscale_value", "when": ""}
_TRUNK = changed(
    without(TRUNK, "pooler.dense"),
    {
        MASK_TOKEN: {"shape": (1, "D"), "part": "", "when": "use_mask_token"},
        LAYER + "layernorm_before": {"file": LAYER + "norm1"},
        LAYER + "layernorm_after": {"file": LAYER + "norm2"},
        LAYER + "intermediate.dense": {"file": LAYER + "mlp.fc1", "when": "plain_mlp"},
        LAYER + "output.dense": {"file": LAYER + "mlp.fc2", "when": "plain_mlp"},
        ATTENTION_SCALE: {"file": LAYER + "layer_scale1.lambda1", **_SCALE},
        MLP_SCALE: {"file": LAYER + "layer_scale2.lambda1", **_SCALE},
    },
)
_GATED = (
    Row(GATE, "linear", ("2F", "D"), when="use_swiglu_ffn"),
    Row(GATED, "linear", ("D", "F"), when="use_swiglu_ffn"),
)
_TABLE = (
    *after(_TRUNK, LAYER + "output.dense", *_GATED),
    *changed((CLASSIFIER,), {"classifier": {"shape": ("K", "2D")}}),
)
_REGISTERS = Row(REGISTERS, "raw", (1, "G", "D"), bias=False, init="zeros", when="num_register_tokens")
_IN_MEMORY: dict[str, str | tuple[str, ...]] = {
    **{name: LAYER + module for name, module in ATTENTION_IN_MEMORY.items()},
    GATE: (LAYER + "mlp.gate_proj", LAYER + "mlp.up_proj"),
    GATED: LAYER + "mlp.down_proj",
}


def _of_shapes(shapes: Mapping[str, tuple[int, ...]], has_registers: bool) -> dict[str, Any]:
    """The fields that the shapes of the parameters, by canonical name, speak of."""
    gated, width = f"{GATED.format(0)}.weight" in shapes, shapes["embeddings.cls_token"][-1]
    inner = shapes[f"{(GATED if gated else LAYER + 'output.dense').format(0)}.weight"][1]
    found: dict[str, Any] = {"use_swiglu_ffn": gated, "use_mask_token": MASK_TOKEN in shapes}
    if has_registers:
        found["num_register_tokens"] = shapes.get(REGISTERS, (1, 0))[1]
    ratios = (4.0, 1.5 * inner / width if gated else inner / width, math.nextafter(inner / width, math.inf))
    sizes: dict[str, Any] = {"hidden_size": width, "num_attention_heads": 1, "use_swiglu_ffn": gated}
    fitting = (ratio for ratio in ratios if Dinov2Config(mlp_ratio=ratio, **sizes).intermediate_size == inner)
    if (ratio := next(fitting, None)) is None:
        raise ValueError(f"A gated MLP of width {inner} is no DINOv2's, whose widths are multiples of 8.")
    return found | {"mlp_ratio": ratio}


def _family(title: str, name: str, config: type[ViTConfig], table: tuple[Row, ...]) -> Family:
    models = {
        f"{name}Model": frozenset[str](),
        f"{name}ForImageClassification": frozenset({"classifier"}),
        f"{name}Backbone": frozenset[str](),
    }
    of_shapes = partial(_of_shapes, has_registers=_REGISTERS in table)
    return Family(title, config, models, table, _IN_MEMORY, of_shapes=of_shapes)


DINOV2 = _family("DINOv2", "Dinov2", Dinov2Config, _TABLE)
DINOV2_WITH_REGISTERS = _family(
    "DINOv2 with registers",
    "Dinov2WithRegisters",
    Dinov2WithRegistersConfig,
    after(_TABLE, "embeddings.cls_token", _REGISTERS),
)
