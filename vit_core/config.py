"""ViTConfig: the hyper-parameters of a Vision Transformer, validated.

Paper: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", table 1 (variants) and section 3.1.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self

from vit_core.files.documents import refuse_attributes
from vit_core.keywords import OF_CONFIGS, unread
from vit_core.pretrained_config import LABELS, OTHER_NAMES, RUNTIME_DEFAULTS, STAGES, PretrainedConfig
from vit_core.validation import CHECKS, check_integer

# Width D, depth L, mlp F, heads h of the named variants (ViT paper, table 1; Ti, S: Touvron et al. 2021, DeiT,
# table 1; g, G: Zhai et al. 2022, "Scaling Vision Transformers", table 2).
VARIANTS = {
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}

COMMON_DEFAULTS: dict[str, Any] = {
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "skip_unread_tokens": True,
    "drop_path_rate": 0.0,
    "position_kernel": "hf",
    "problem_type": None,
    "architectures": None,
    "dtype": None,
}
BACKBONE_DEFAULTS: dict[str, Any] = {
    "out_features": None,
    "out_indices": None,
    "apply_layernorm": True,
    "reshape_hidden_states": True,
}
_MOST_UNNAMED = 1 << 18  # labels that one number in a file can make: 60 MB of names


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """A size given once for both axes, or as (height, width), as (height, width)."""
    return (size, size) if isinstance(size, int) else size


def _stage_number(name: str) -> int:
    """The number of a stage of a backbone; -1 of what is no name of one."""
    match = re.fullmatch("stage([1-9][0-9]{0,5})", name)
    return 0 if name == "stem" else int(match[1]) if match else -1


class _Stages:
    """A field of a backbone's stages. It keeps what is set, and gives the stages that both fields come to."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, config: ViTConfig | None, owner: type) -> list[Any]:
        if config is None or self.name not in vars(config):
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}")
        stages = config.stages
        return list(stages) if self.name == "out_indices" else [config.stage_names[i] for i in stages]

    def __set__(self, config: ViTConfig, value: Any) -> None:
        vars(config)[self.name] = value


class ViTConfig(PretrainedConfig):
    """Hyper-parameters of a ViT; arguments, names and defaults are those of Hugging Face's `ViTConfig`.

    `image_size`, `patch_size` and `encoder_stride` are an int or a (height, width) pair, in pixels. `hidden_act`
    and `pooler_act` are names of `ACTIVATIONS`, or a callable where the backend can take one. A falsy
    `pooler_output_size` means `hidden_size`. Further keyword arguments are kept as attributes and written back; these
    are known:

    - `layer_scale`: what the scales of a layer's branches start at (Touvron et al. 2021, "CaiT", section 2); 0 for a
      ViT, which has none.
    - `drop_path_rate`: how likely the last layer's branches are left out for one picture in training (Huang et al.
      2016, "Deep Networks with Stochastic Depth"); it grows linearly from 0 in the first layer.
    - `pool`: whether the classifier reads the CLS token, "cls", or the mean of the patches, "mean"; with `fc_norm` the
      LayerNorm is of that mean, and there is none of the sequence.
    - `position_kernel`: one of `vit_core.position.CALL_KERNELS`, with which position embeddings are resized.
    - `out_features` or `out_indices`: the stages of which a backbone gives maps, "stem" (0) and "stage1" (1) to the
      last one, which is the default. Whichever is set, both say so. The maps are normalised with `apply_layernorm`,
      (B, D, h, w) with `reshape_hidden_states`.
    - `skip_unread_tokens`: False to compute also those tokens of the last layer that the model does not read.

    Raises ValueError, naming the field and its value, for anything a model could not be built from.
    """

    model_type: ClassVar[str] = "vit"
    reads: ClassVar[tuple[str, ...]] = ("vit_mae", "vit_msn")  # other model types whose files hold what its models have
    # Of fields that a config.json holds where they differ.
    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON_DEFAULTS, **BACKBONE_DEFAULTS, "layer_scale": 0.0, "pool": "cls", "fc_norm": False,
    }  # fmt: skip
    tokens: ClassVar[tuple[str, ...]] = ("cls_token",)  # before the patches, each with a position
    always_interpolates: ClassVar[bool] = False  # whether a picture of another size is taken without being asked
    num_register_tokens = 0  # between those tokens and the patches, without positions
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str | Callable[..., Any]
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float
    layer_norm_eps: float
    image_size: int | tuple[int, int]
    patch_size: int | tuple[int, int]
    num_channels: int
    qkv_bias: bool
    encoder_stride: int | tuple[int, int]
    pooler_output_size: int | None
    pooler_act: str | Callable[..., Any]
    id2label: dict[int, str]
    label2id: dict[str, int]
    output_attentions: bool
    output_hidden_states: bool
    return_dict: bool
    skip_unread_tokens: bool
    drop_path_rate: float
    position_kernel: str
    out_features = _Stages()
    out_indices = _Stages()
    apply_layernorm: bool
    reshape_hidden_states: bool
    layer_scale: float
    pool: str
    fc_norm: bool
    problem_type: str | None
    architectures: list[str] | None
    dtype: str | None
    attn_implementation: str | None
    name_or_path: str

    def __init__(
        self,
        /,  # "self" may be a key of a file
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
        encoder_stride: int | tuple[int, int] = 16,
        pooler_output_size: int | None = None,
        pooler_act: str | Callable[..., Any] = "tanh",
        **kwargs: Any,
    ) -> None:
        self._set(locals())

    def _set(self, given: dict[str, Any]) -> None:
        """Set the fields to the arguments of an `__init__`, its locals, with further ones in "kwargs"."""
        kwargs, fields = dict(given["kwargs"]), {name: given[name] for name in self.fields() if name in given}
        for name, value in fields.items():
            setattr(self, name, value)
        self._check_model_type(kwargs.pop("model_type", self.model_type))
        for other, name in OTHER_NAMES.items():
            if (value := kwargs.pop(other, None)) is not None:
                kwargs[name] = kwargs.get(name) or value
        labels = {name: kwargs.pop(name, None) for name in LABELS}
        # Which transformers writes, and reads off the number of layers.
        stages = CHECKS["stage_names"]("stage_names", kwargs.pop("stage_names", None))
        kwargs = {name: value for name, value in kwargs.items() if not self._follows(name, value)}
        refuse_attributes(type(self), kwargs)
        for name, value in {**self.defaults, **RUNTIME_DEFAULTS, **kwargs}.items():
            if name not in fields:
                setattr(self, name, value)
        if stages and vars(self).get("out_features") == list(stages[-1:]):
            self.out_features = self.out_indices = None  # the default, which it writes out
        self._set_labels(**labels)
        self.validate()
        for name in OF_CONFIGS:
            if kwargs.get(name):
                warnings.warn(unread(name, kwargs[name]), stacklevel=3)

    def _follows(self, name: str, value: Any) -> bool:
        """Whether a value is that of the class, or follows from the fields: a file may say it as well."""
        return hasattr(type(self), name) and getattr(self, name, NotImplemented) == value

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = CLASSES.get(vars(cls).get("model_type", ""))
        if "model_type" in vars(cls) and not (known and known.__module__.startswith("vit_core.")):
            CLASSES[cls.model_type] = cls

    def _check_model_type(self, stored: str) -> None:
        if stored in (self.model_type, *self.reads):
            return
        other = config_class(stored)
        raise ValueError(
            f"{type(self).__name__} is of model_type {self.model_type!r}, got {stored!r}: that is of {other.__name__}."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        check = CHECKS.get(name)
        object.__setattr__(self, name, check(name, value) if check else value)
        if name == "id2label":
            self.label2id = {label: i for i, label in self.id2label.items()}
        if name in STAGES and "id2label" in vars(self):  # all is set: this one holds now
            vars(self)[STAGES[name]] = None

    def _compared(self) -> dict[str, Any]:
        """Every field, the stages as the numbers that they come to."""
        found = super()._compared()
        with suppress(ValueError):  # of stages that the layers no longer have
            found |= {"out_features": None, "out_indices": self.stages}
        return found

    def _set_labels(self, num_labels: Any, id2label: Any, label2id: Any) -> None:
        if id2label is None and label2id:
            named = CHECKS["label2id"]("label2id", label2id)
            if num_labels in (None, len(named)):
                id2label = {number: label for label, number in named.items()}
        if id2label is None:
            self.num_labels = 2 if num_labels is None else num_labels
        else:
            self.id2label = id2label
            if num_labels is not None and num_labels != len(self.id2label):
                raise ValueError(
                    f"num_labels={num_labels!r} does not match id2label, which has {len(self.id2label)} labels: "
                    "pass one of the two, or both of the same size."
                )
        if label2id is not None:
            self.label2id = label2id

    @property
    def num_labels(self) -> int:
        """K, the number of labels: always the length of `id2label`."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        count = check_integer("num_labels", num_labels, minimum=0)
        if count > _MOST_UNNAMED:
            raise ValueError(
                f"num_labels={count} is more than the {_MOST_UNNAMED} labels that are named by their numbers alone: "
                "pass id2label with the names of them all."
            )
        if count != len(getattr(self, "id2label", ())) or not hasattr(self, "id2label"):
            self.id2label = {i: f"LABEL_{i}" for i in range(count)}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (height, width)."""
        (height, width), (ph, pw) = pair(self.image_size), pair(self.patch_size)
        return height // ph, width // pw

    @property
    def num_patches(self) -> int:
        """N, the number of patches of an image of `image_size`."""
        return self.grid[0] * self.grid[1]

    @property
    def position_prefix(self) -> int:
        """How many rows stand before those of the patches in the position embeddings."""
        return len(self.tokens)

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return len(self.tokens) + self.num_register_tokens

    @property
    def key_bias(self) -> bool:
        """Whether keys have a bias, as queries and values do."""
        return self.qkv_bias

    @property
    def final_norm(self) -> bool:
        """Whether the sequence is normalised at the end."""
        return not self.fc_norm

    @property
    def embeddings_dropout_prob(self) -> float:
        """The rate of dropout of the embeddings."""
        return self.hidden_dropout_prob

    @property
    def unknown_to_others(self) -> list[str]:
        """What the models have that those of transformers have no place for."""
        found = ["layer scales"] * bool(self.layer_scale)
        return found + ["a head on the mean of the patches"] * ("pool" in self.defaults and self.pool == "mean")

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """How likely a branch of each layer is left out in training."""
        last = self.num_hidden_layers - 1
        return tuple(self.drop_path_rate * i / last if last else self.drop_path_rate for i in range(last + 1))

    @property
    def stage_names(self) -> list[str]:
        """What a backbone calls the embeddings, and then the layers."""
        return ["stem", *(f"stage{i}" for i in range(1, self.num_hidden_layers + 1))]

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of the stages of which a backbone gives maps, in order. Raises ValueError for another."""
        last, features, indices = self.num_hidden_layers, *(vars(self).get(name) for name in STAGES)
        if features is None and indices is None:
            return (last,)
        named = [_stage_number(name) for name in features or ()]
        by_number = [i + last + 1 if i < 0 else i for i in indices or ()]
        numbers = by_number if features is None else named
        fits = all(0 <= i <= last for i in numbers) and sorted({*numbers}) == numbers
        if not fits or (features is not None and indices is not None and named != by_number):
            raise ValueError(
                f"out_features and out_indices must be stages, stem and stage1 to stage{last}, in this order and each "
                f"once, and the same where both are given: got out_features={features} and out_indices={indices}."
            )
        return tuple(numbers)

    @property
    def pooler_size(self) -> int:
        """Q, the width of the pooled output."""
        return self.pooler_output_size or self.hidden_size

    def validate(self) -> None:
        """Check the fields against each other; each alone is checked when it is set. Raises ValueError."""
        if self.fc_norm and self.pool == "cls":
            raise ValueError('fc_norm=True is a norm of the mean of the patches: pass pool="mean" with it.')
        _ = self.stages
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads: got hidden_size={self.hidden_size} and "
                f"num_attention_heads={self.num_attention_heads}."
            )
        if 0 in self.grid:
            raise ValueError(
                f"image_size must be at least one patch: got image_size={self.image_size} and "
                f"patch_size={self.patch_size}."
            )
        if pruned := getattr(self, "pruned_heads", None):
            raise ValueError(
                f"pruned_heads={pruned!r}: checkpoints with pruned heads are not supported; save the "
                "model with all its heads and pass a head_mask instead."
            )

    @classmethod
    def variant(cls, name: str, **overrides: Any) -> Self:
        """The configuration of a named variant, e.g. "B/16": width, depth and heads from the letter, then the patch.

        >>> ViTConfig.variant("L/32", image_size=384).hidden_size
        1024
        """
        letter, _, patch = name.partition("/")
        if letter not in VARIANTS or not patch.isdecimal():
            raise ValueError(
                f"Unknown variant {name!r}: expected one of {', '.join(VARIANTS)}, a slash and a patch size."
            )
        width, depth, mlp, heads = VARIANTS[letter]
        values = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "intermediate_size": mlp,
            "num_attention_heads": heads,
            "patch_size": int(patch),
            "encoder_stride": int(patch),
        }
        return cls(**{**values, **overrides})


CLASSES = {ViTConfig.model_type: ViTConfig}  # by model_type; each joins when it is defined


def config_class(model_type: str) -> type[ViTConfig]:
    """The class of a model_type, or the one that says it reads it. Raises ValueError, with those known, for others."""
    readers = (cls for cls in CLASSES.values() if model_type in cls.reads)
    found = CLASSES.get(str(model_type)) or next(readers, None)
    if found is None:
        known = sorted({*CLASSES, *(name for cls in CLASSES.values() for name in cls.reads)})
        raise ValueError(f"model_type is {model_type!r}, expected one of {', '.join(known)}.")
    return found


class AutoConfig(ViTConfig):
    """The configuration class that a file's model_type names: `from_pretrained` gives one of that class."""

    def __init__(self) -> None:
        raise TypeError("AutoConfig is not made itself: AutoConfig.from_pretrained(folder), or for_model(model_type).")

    @classmethod
    def _class_for(cls, values: Mapping[str, Any]) -> Any:
        return config_class(values.get("model_type", ViTConfig.model_type))

    @staticmethod
    def for_model(model_type: str, **values: Any) -> ViTConfig:
        """A configuration of a model_type with these values. Raises ValueError for one that is not known."""
        return config_class(model_type)(**values)
