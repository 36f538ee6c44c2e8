"""What a conversion did, as data: every tensor, every file, and what a user should know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One tensor of the target."""

    target: str  # its name in the target's file
    file: str
    source: str  # its name in the source, or the names of those it is made of
    transform: str  # in words; "" where the array is taken as it is
    shape: tuple[int, ...]
    dtype: str
    checksum: str = ""  # XXH3, 128 bits, of its bytes: little-endian, in C order; "" in a dry run


@dataclass(frozen=True)
class Difference:
    """How far two models are apart in one output: at most, and relative to the largest value."""

    backend: str
    output: str
    absolute: float
    relative: float
    tolerance: float  # of the relative difference

    @property
    def ok(self) -> bool:
        """Whether they agree; not-a-number does not."""
        return self.relative <= self.tolerance


@dataclass
class Verification:
    """What was found on reading the target again."""

    tensors: int  # compared
    unequal: list[str] = field(default_factory=list)  # names of those that are not the same to the bit
    differences: list[Difference] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # backends that are not installed

    @property
    def ok(self) -> bool:
        """Whether every tensor is the same to the bit and every output within its tolerance."""
        return not self.unequal and all(difference.ok for difference in self.differences)


@dataclass
class Report:
    """What a conversion did, or would do."""

    source: str  # the weights file, or the index of its shards
    source_format: str
    target: str
    target_format: str
    files: list[str]  # that were written, within the target
    entries: list[Entry] = field(repr=False)
    notes: list[str]
    config: dict[str, Any] = field(repr=False)
    dry_run: bool
    verification: Verification | None = None

    @property
    def ok(self) -> bool:
        """False when a verification was asked for and failed."""
        return self.verification is None or self.verification.ok

    def to_dict(self) -> dict[str, Any]:
        """The report, ready for JSON, which has no infinity and no not-a-number: they are None."""
        values = asdict(self)
        if self.verification is not None:
            values["verification"]["ok"] = self.verification.ok
            for difference in values["verification"]["differences"]:
                finite = {n: v if isfinite(v) else None for n, v in difference.items() if isinstance(v, float)}
                difference.update(finite)
        return values
