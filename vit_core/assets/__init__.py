"""The model that comes with the package, and pictures to try it on."""

import os
from pathlib import Path

DIGITS = Path(__file__).parent / "digits"  # a small trained classifier


def is_digits(model: str) -> bool:
    """Whether a name is the folder of the digits model."""
    return os.path.exists(model) and DIGITS.samefile(model)
