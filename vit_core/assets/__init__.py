"""The model that comes with the package, and pictures to try it on."""

from pathlib import Path

DIGITS = Path(__file__).parent / "digits"  # a small trained classifier
