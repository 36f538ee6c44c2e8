"""What the models return: Hugging Face's output classes, shared by the three backends.

A field is reached by attribute, by key, and, over the fields that are not None, by int and slice; an output unpacks
into those fields (`loss, logits = output`) and spreads into keywords (`f(**output)`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any


@dataclass
class ModelOutput:
    """Base of the output classes. Fields that were not asked for are None and are skipped by everything below."""

    def __post_init__(self) -> None:
        """Refuse, with TypeError, the nameless values that torch.nn.DataParallel gathers from several devices."""
        if isinstance(getattr(self, fields(self)[0].name), map):
            raise TypeError(
                f"torch.nn.DataParallel can't gather a {type(self).__name__} from several devices: call the model with "
                "return_dict=False, or use DistributedDataParallel."
            )

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None, in order."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        """(name, value) of the fields that are not None, in order."""
        return tuple(zip(self.keys(), self.values(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return self.values()

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` when it is None or no field."""
        return getattr(self, name) if name in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.values()[key]
        if key not in self:
            raise KeyError(f"{key!r}: this {type(self).__name__} has {', '.join(self.keys())}.")
        return getattr(self, key)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __len__(self) -> int:
        return len(self.keys())


@dataclass
class BaseModelOutputWithPooling(ModelOutput):
    """Of ViTModel. Shapes with S tokens, the CLS token first."""

    last_hidden_state: Any = None  # (B, S, D), after the final LayerNorm
    pooler_output: Any = None  # (B, pooler_output_size)
    hidden_states: tuple[Any, ...] | None = None  # L + 1 of (B, S, D), before the final LayerNorm
    attentions: tuple[Any, ...] | None = None  # L of (B, h, S, S), after the softmax


@dataclass
class ImageClassifierOutput(ModelOutput):
    """Of ViTForImageClassification."""

    loss: Any = None  # scalar
    logits: Any = None  # (B, num_labels)
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None


@dataclass
class MaskedImageModelingOutput(ModelOutput):
    """Of ViTForMaskedImageModeling."""

    loss: Any = None  # scalar
    reconstruction: Any = None  # (B, C, H, W), or (B, H, W, C) where the model was built with channels_last
    hidden_states: tuple[Any, ...] | None = None
    attentions: tuple[Any, ...] | None = None

    @property
    def logits(self) -> Any:
        """The older name of `reconstruction` in transformers."""
        return self.reconstruction


OUTPUTS: tuple[type[ModelOutput], ...] = (
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    MaskedImageModelingOutput,
)
