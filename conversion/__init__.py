"""Any ViT checkpoint into any other, without loss and without any framework.

`containers` knows files: bytes <-> named, lazily read arrays. `formats` knows families: those names <-> canonical ones.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conversion.converting import convert
    from conversion.reading import read
    from conversion.targets import TARGETS

__all__ = ["TARGETS", "convert", "read"]

_ROOMS = {"TARGETS": "targets", "convert": "converting", "read": "reading"}


def __getattr__(name: str) -> Any:
    """Each is imported when it is asked for: a backend, which only reads, starts without the rest."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
