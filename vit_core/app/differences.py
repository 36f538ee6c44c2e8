"""How far two computations of one model are apart."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass
class Difference:
    """How far two backends, a backend and a file, or two checkpoints are apart in one output or tensor."""

    backends: tuple[str, str]
    output: str
    tolerance: float  # of the relative difference
    absolute: float = 0.0
    largest: float = 0.0  # value of the output in either

    def add(self, ours: Array, theirs: Array) -> None:
        """Take in what the two give for a batch."""
        same = ours.shape == theirs.shape
        with np.errstate(invalid="ignore"):  # infinities on both sides differ by NaN, which no maximum loses
            apart = np.abs(ours - theirs).max(initial=0) if same else np.nan
        self.absolute = float(np.maximum(self.absolute, apart))
        self.largest = float(np.max([self.largest, np.abs(ours).max(initial=0), np.abs(theirs).max(initial=0)]))

    @property
    def relative(self) -> float:
        """The difference relative to the largest value."""
        return self.absolute / (self.largest or 1.0)

    @property
    def ok(self) -> bool:
        """Whether the two agree; not-a-number does not."""
        return self.relative <= self.tolerance

    @property
    def figures(self) -> tuple[str, str, str]:
        """For a table: the difference, the relative one, and what is allowed."""
        return f"{self.absolute:.2g}", f"{self.relative:.2g}", f"{self.tolerance:.2g}"

    @property
    def numbers(self) -> dict[str, float | None]:
        """For JSON, which has no infinity and no not-a-number: they are None."""
        found = {"absolute": self.absolute, "relative": self.relative}
        return {name: value if isfinite(value) else None for name, value in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"backends": list(self.backends), "output": self.output, **self.numbers, "ok": self.ok}
