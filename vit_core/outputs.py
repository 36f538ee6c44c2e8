"""What the models return: Hugging Face's output classes, shared by the three backends.

An output is an ordered dict of the fields that are not None, as in transformers 4.57.6: iterating and unpacking give
names. Ints and slices give values, as `to_tuple` does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, Self, TypeVar, cast, overload

from vit_core.pictures.images import shown

T = TypeVar("T")  # a framework's tensor
Output = TypeVar("Output", covariant=True)
ABSENT: Any = None  # what a field of every output is made without


@dataclass(repr=False)
class ModelOutput(OrderedDict[str, Any], Generic[T]):
    """Base of the output classes. A field is the same by attribute and by key; one that is None is no key.

    Made of keywords, or, as libraries rebuild a dict, of one mapping or series of (name, value).
    """

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        first, *others = given.values()
        pairs = None if any(value is not None for value in others) else _pairs(first)
        if pairs is not None:
            given = {**dict.fromkeys(given), **pairs}
        for name, value in given.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={shown(value)}' for name, value in self.items())})"

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def replace(self, **others: Any) -> Self:
        """The same with other values of these fields. Raises TypeError for one that the class has not."""
        found = replace(self, **others)
        for name in self.keys() - self.__dataclass_fields__.keys():  # what it got later
            found[name] = self[name]
        return found

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(f"{key!r}: this {type(self).__name__} has {', '.join(self)}.")
        return super().__getitem__(key)

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.__dataclass_fields__ and value is not None:
            super().__setitem__(name, value)
        elif name in self:
            super().__delitem__(name)

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} has the fields of its class, which stay: take a dict() of it.")

    __delitem__ = pop = popitem = setdefault = update = clear = move_to_end = _refused


class Returns(Protocol[Output]):
    """A model whose calls return this class."""

    @property
    def output_class(self) -> type[Output]:
        """What its calls return."""


class Features(Protocol[Output]):
    """A model's `features`: of one layer they are a tensor, of several a tuple of them. `params` are for Flax."""

    @overload
    def __call__(
        self,
        pixel_values: Any,
        layers: int = -1,
        pool: str | None = None,
        reshape: bool = False,
        normalize: bool = True,
        interpolate_pos_encoding: bool | None = None,
        params: Any = None,
    ) -> Output: ...

    @overload
    def __call__(
        self,
        pixel_values: Any,
        layers: Sequence[int],
        pool: str | None = None,
        reshape: bool = False,
        normalize: bool = True,
        interpolate_pos_encoding: bool | None = None,
        params: Any = None,
    ) -> tuple[Output, ...]: ...


def of_layers(method: Callable[..., T | tuple[T, ...]]) -> Features[T]:
    """A method that gives a tensor for each of `layers`, in a tuple, as one that gives that of a single layer alone.

    Its annotation, which `help()` shows, is that of both.
    """

    @wraps(method)
    def features(self: Any, pixel_values: Any, layers: int | Sequence[int] = -1, *args: Any, **kwargs: Any) -> Any:
        found: Any = method(self, pixel_values, layers, *args, **kwargs)
        return found[0] if isinstance(layers, int) else found

    return cast(Features[T], features)


def _pairs(value: Any) -> dict[str, Any] | None:
    """What a mapping or a series of (name, value) holds; None of anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterator):
        value = tuple(value)
    named = isinstance(value, (list, tuple)) and all(  # no unions, which PyTorch 2.8 does not compile
        isinstance(each, (list, tuple)) and len(each) == 2 and isinstance(each[0], str) for each in value
    )
    return dict(value) if named else None


@dataclass(repr=False)
class BaseModelOutput(ModelOutput[T]):
    """Of the encoder; the fields are those of `BaseModelOutputWithPooling`, before the final LayerNorm."""

    last_hidden_state: T = ABSENT
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


@dataclass(repr=False)
class BaseModelOutputWithPooling(ModelOutput[T]):
    """Of ViTModel. Shapes with S tokens, the CLS token first."""

    last_hidden_state: T = ABSENT  # (B, S, D), after the final LayerNorm
    pooler_output: T | None = None  # (B, pooler_output_size)
    hidden_states: tuple[T, ...] | None = None  # L + 1 of (B, S, D), before the final LayerNorm
    attentions: tuple[T, ...] | None = None  # L of (B, h, S, S), after the softmax


@dataclass(repr=False)
class ImageClassifierOutput(ModelOutput[T]):
    """Of ViTForImageClassification."""

    loss: T | None = None  # scalar
    logits: T = ABSENT  # (B, num_labels)
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


@dataclass(repr=False)
class MaskedImageModelingOutput(ModelOutput[T]):
    """Of ViTForMaskedImageModeling."""

    loss: T | None = None  # scalar
    reconstruction: T = ABSENT  # (B, C, H, W), or (B, H, W, C) where the model was built with channels_last
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None

    @property
    def logits(self) -> T:
        """The older name of `reconstruction` in transformers."""
        return self.reconstruction


@dataclass(repr=False)
class DeiTForImageClassificationWithTeacherOutput(ModelOutput[T]):
    """Of DeiTForImageClassificationWithTeacher."""

    loss: T | None = None  # scalar
    logits: T = ABSENT  # (B, num_labels), the mean of the two below
    cls_logits: T = ABSENT  # (B, num_labels), on the CLS token
    distillation_logits: T = ABSENT  # (B, num_labels), on the distillation token
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


@dataclass(repr=False)
class ViTMAEModelOutput(ModelOutput[T]):
    """Of ViTMAEModel, with K kept patches."""

    last_hidden_state: T = ABSENT  # (B, 1 + K, D), the CLS token and the kept patches in the order of their noise
    mask: T = ABSENT  # (B, N) float32, 1 where a patch is removed, 0 where it is kept
    ids_restore: T = ABSENT  # (B, N), the place of each patch in the order of the noise
    hidden_states: tuple[T, ...] | None = None  # L + 1 of (B, 1 + K, D)
    attentions: tuple[T, ...] | None = None  # L of (B, h, 1 + K, 1 + K)


@dataclass(repr=False)
class ViTMAEForPreTrainingOutput(ModelOutput[T]):
    """Of ViTMAEForPreTraining; states and attentions are the encoder's."""

    loss: T | None = None  # scalar
    logits: T = ABSENT  # (B, N, P Q C), the pixels of each patch, channels last
    mask: T = ABSENT  # (B, N) float32, 1 where a patch is removed, 0 where it is kept
    ids_restore: T = ABSENT  # (B, N), the place of each patch in the order of the noise
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


@dataclass(repr=False)
class BeitModelOutputWithPooling(BaseModelOutputWithPooling[T]):
    """Of BeitModel: the pooled output (B, D) is the normalised mean of the patches, or the CLS token."""


@dataclass(repr=False)
class MaskedLMOutput(ModelOutput[T]):
    """Of BeitForMaskedImageModeling."""

    loss: T | None = None  # scalar
    logits: T = ABSENT  # (B, N, vocab_size)
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


@dataclass(repr=False)
class BackboneOutput(ModelOutput[T]):
    """Of ViTBackbone."""

    feature_maps: tuple[T, ...] = ABSENT  # (B, D, h, w) each, in the order of the stages
    hidden_states: tuple[T, ...] | None = None
    attentions: tuple[T, ...] | None = None


OUTPUTS: tuple[type[ModelOutput[Any]], ...] = (
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
    DeiTForImageClassificationWithTeacherOutput,
    ViTMAEModelOutput,
    ViTMAEForPreTrainingOutput,
    BeitModelOutputWithPooling,
    MaskedLMOutput,
    BackboneOutput,
)

__all__ = [
    "OUTPUTS", "BackboneOutput", "BaseModelOutput", "BaseModelOutputWithPooling", "BeitModelOutputWithPooling",
    "DeiTForImageClassificationWithTeacherOutput", "ImageClassifierOutput", "MaskedImageModelingOutput",
    "MaskedLMOutput", "ModelOutput", "ViTMAEForPreTrainingOutput", "ViTMAEModelOutput",
]  # fmt: skip


class ClassGradients(NamedTuple):
    """What goes into each layer, and its attentions, with the gradients of a label's logit by them: L of each.

    states: (B, S, D), before the layer. attentions: (B, h, S, S), after the softmax.
    """

    states: tuple[Any, ...]
    attentions: tuple[Any, ...]
    by_states: tuple[Any, ...]
    by_attentions: tuple[Any, ...]
