"""A picture's own memory, by Arrow's C data interface, where Pillow (11.2) hands it out: looked at where it lies."""

from __future__ import annotations

import ctypes

from PIL import Image


class _ArrowArray(ctypes.Structure):
    """An array as Arrow's C data interface has it, up to the last field that is read."""


_ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class Memory:
    """What NumPy takes for an array (H, W, 4) of uint8: an RGB picture, with a fourth channel that Pillow does not use.

    To be read alone, though NumPy is not told so: PyTorch warns of arrays that can't be written. It is kept while an
    array looks at it, whatever becomes of the picture. Raises ValueError where it is in parts.
    """

    def __init__(self, picture: Image.Image) -> None:
        _, self._kept = picture.__arrow_c_array__()
        array = _ArrowArray.from_address(_pointer(self._kept, b"arrow_array"))
        address = array.children[0].contents.buffers[1]  # after that of what is null
        shape = (picture.height, picture.width, 4)
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": "|u1", "data": (address, False)}
