"""Any ViT checkpoint into any other, without loss and without any framework.

How files are read, and what their names stand for, is `vit_core.files` and `vit_core.formats`; here they are written.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vit_core import __version__

if TYPE_CHECKING:
    from conversion.converting import convert
    from conversion.targets import TARGETS
    from vit_core.formats.reading import read

__all__ = ["TARGETS", "__version__", "convert", "read"]

_ROOMS = {"TARGETS": "conversion.targets", "convert": "conversion.converting", "read": "vit_core.formats.reading"}


def __getattr__(name: str) -> Any:
    """Each is imported when it is asked for, so that the command starts without the rest."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
