"""Any ViT checkpoint into any other, without loss and without any framework.

`containers` knows files: bytes <-> named, lazily read arrays. `formats` knows families: those names <-> canonical ones.
"""

from conversion.converting import convert
from conversion.reading import read
from conversion.targets import TARGETS

__all__ = ["TARGETS", "convert", "read"]
