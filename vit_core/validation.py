"""What each field of the configuration may hold: one check a field, (name, value) -> the value as it is kept.

A check raises ValueError that names the field, what it must be and what was given.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeGuard

import numpy as np

from vit_core.position import CALL_KERNELS

ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6",
    "selu", "sigmoid", "silu", "swish", "tanh",
)  # fmt: skip
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")


def is_series(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether it is a list, or what a library has in the place of one: OmegaConf's, a column of `datasets`."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


_LARGEST = (1 << 64) - 1  # size or ratio: what is computed of some of them stays a float


def check_integer(name: str, value: Any, minimum: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        kind = "a positive integer" if minimum == 1 else f"an integer of at least {minimum}"
        raise ValueError(f"{name} must be {kind}, got {value!r}.")
    if int(value) > _LARGEST:
        raise ValueError(f"{name} must be an integer of at most 64 bits, got {value!r}.")
    return int(value)


def _size(name: str, value: Any) -> int | tuple[int, int]:
    try:
        if is_series(value):
            height, width = value
            return check_integer(name, height), check_integer(name, width)
        return check_integer(name, value)
    except ValueError:
        raise ValueError(f"{name} must be a positive integer or a (height, width) pair, got {value!r}.") from None


def _number(name: str, value: Any, maximum: float = sys.float_info.max) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 <= value <= maximum:
        finite = maximum == sys.float_info.max
        kind = "a finite number of at least 0" if finite else f"a number from 0 to {maximum:g}"
        raise ValueError(f"{name} must be {kind}, got {value!r}.")
    return float(value)


def _flag(name: str, value: Any) -> bool:
    if value not in (True, False) or isinstance(value, float):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return bool(value)


def _activation(name: str, value: Any) -> Any:
    if not callable(value) and value not in ACTIVATIONS:
        raise ValueError(f"{name} must be one of {', '.join(ACTIVATIONS)}, or a callable, got {value!r}.")
    return value


def _one_of(*words: str) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in words:
            raise ValueError(f"{name} must be {' or '.join(words)}, got {value!r}.")
        return value

    return check


def _below_one(name: str, value: Any) -> float:
    if _number(name, value, maximum=1.0) == 1:
        raise ValueError(f"{name} must be below 1, got {value!r}.")
    return float(value)


def _stages(name: str, value: Any) -> list[Any] | None:
    kind = int if name == "out_indices" else str
    if value is not None and not (is_series(value) and all(type(each) is kind for each in value)):
        raise ValueError(f"{name} must be a list of {'names' if kind is str else 'numbers'}, or None, got {value!r}.")
    return None if value is None else list(value)


def _as_given(name: str, value: Any) -> float:
    """A whole one as an int, where it came as one: so it is written back."""
    number = _number(name, value)
    return number if isinstance(value, np.number) else value


def _positive(name: str, value: Any) -> float:
    if not _number(name, value):
        raise ValueError(f"{name} must be above 0, got {value!r}.")
    return _as_given(name, value)


def _ratio(name: str, value: Any) -> float:
    """A whole one as an int, which transformers 5 insists on."""
    _number(name, value, _LARGEST)
    ratio = _positive(name, value)
    return int(ratio) if ratio == int(ratio) else ratio


def _problem_type(name: str, value: Any) -> Any:
    if value is not None and value not in PROBLEM_TYPES:
        raise ValueError(f"{name} must be one of {', '.join(PROBLEM_TYPES)}, or None, got {value!r}.")
    return value


def _optional_width(name: str, value: Any) -> int | None:
    return None if value is None else check_integer(name, value, minimum=0)


def dtype_name(value: Any) -> str:
    """The name "float32" of "float32", "torch.float32", torch.float32, np.float32 or jnp.float32."""
    return str(getattr(value, "__name__", value)).rpartition(".")[2]


def _optional_dtype(name: str, value: Any) -> str | None:
    return None if value is None else dtype_name(value)


def _architectures(name: str, value: Any) -> list[str] | None:
    if value is not None and not (is_series(value) and all(isinstance(each, str) for each in value)):
        raise ValueError(f"{name} must be a list of names of classes, or None, got {value!r}.")
    return None if value is None else list(value)


def _id2label(name: str, value: Any) -> dict[int, str]:
    try:
        pairs = enumerate(value) if is_series(value) else dict(value).items()
        labels = {int(key): str(label) for key, label in pairs}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must map label numbers to names, got {value!r}.") from None
    if len(labels) != len(value):
        raise ValueError(f"{name} must name each label number once, got {value!r}.")
    if lacking := [i for i in range(len(labels)) if i not in labels]:
        shown = ", ".join(map(str, lacking[:8]))
        raise ValueError(f"{name} must number its labels from 0 to {len(labels) - 1}, lacks {shown}.")
    return labels


def _label2id(name: str, value: Any) -> dict[str, int]:
    try:
        return {str(label): int(key) for label, key in dict(value).items()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must map label names to numbers, got {value!r}.") from None


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "vocab_size",
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        ),
        check_integer,
    ),
    **dict.fromkeys(("image_size", "patch_size", "encoder_stride"), _size),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), partial(_number, maximum=1.0)),
    **dict.fromkeys(
        (
            "initializer_range",
            "layer_norm_eps",
            "layer_scale",
            "layerscale_value",
            "layer_scale_init_value",
        ),
        _number,
    ),
    **dict.fromkeys(
        (
            "qkv_bias",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "skip_unread_tokens",
            "fc_norm",
            "use_swiglu_ffn",
            "use_mask_token",
            "use_absolute_position_embeddings",
            "use_relative_position_bias",
            "use_shared_relative_position_bias",
            "use_mean_pooling",
            "add_fpn",
            "apply_layernorm",
            "reshape_hidden_states",
            "norm_pix_loss",
        ),
        _flag,
    ),
    **dict.fromkeys(("drop_path_rate", "mask_ratio"), _below_one),
    "position_kernel": _one_of(*CALL_KERNELS),
    "pool": _one_of("cls", "mean"),
    "mlp_ratio": _ratio,
    "num_register_tokens": partial(check_integer, minimum=0),
    **dict.fromkeys(("out_features", "out_indices", "stage_names"), _stages),
    **dict.fromkeys(("hidden_act", "pooler_act"), _activation),
    "distillation": _one_of("hard", "soft"),
    "distillation_weight": partial(_number, maximum=1.0),
    "distillation_temperature": _positive,
    "problem_type": _problem_type,
    "pooler_output_size": _optional_width,
    "dtype": _optional_dtype,
    "id2label": _id2label,
    "label2id": _label2id,
    "architectures": _architectures,
}


def keeps(name: str, value: Any) -> bool:
    """Whether a part of a checkpoint is kept: True for "keep", False for "drop". Raises ValueError for another."""
    if value not in ("keep", "drop"):
        raise ValueError(f'{name} must be "keep" or "drop", got {value!r}.')
    return bool(value == "keep")
