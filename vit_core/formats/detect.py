"""What kind of file it is, by its content."""

from __future__ import annotations

import zipfile
from pathlib import Path

from vit_core.files.disk import refuse_stand_in
from vit_core.formats.google import NPZ
from vit_core.formats.huggingface import FLAX_MSGPACK, PYTORCH_BIN, SAFETENSORS, TF_H5, Container
from vit_core.formats.keras import KERAS_H5

_HDF5, _ZIP, _PICKLE = b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"\x80\x02"
_TEXTS = (*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB)  # how a msgpack string begins


def container_of(path: Path) -> Container:
    """The container that a file's first bytes speak of.

    Raises FileNotFoundError for a missing file, ValueError for a file of no kind that is known.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}: check the path.")
    with path.open("rb") as file:
        first = file.read(64)
    refuse_stand_in(path, first)
    if first.startswith(_HDF5):
        from vit_core.files.keras_hdf5 import is_keras_h5

        return KERAS_H5 if is_keras_h5(path) else TF_H5
    if first.startswith(_ZIP):
        return NPZ if _holds_arrays(path) else PYTORCH_BIN
    if first[8:9] == b"{":  # before pickles: the length of a header, in the bytes before, may begin as they do
        return SAFETENSORS
    if first.startswith(_PICKLE):
        return PYTORCH_BIN
    if _begins_a_map(first):
        return FLAX_MSGPACK
    known = next((c for c in (SAFETENSORS, PYTORCH_BIN, TF_H5, FLAX_MSGPACK, NPZ) if path.suffix == c.suffix), None)
    if known is None:
        raise ValueError(
            f"{path} is no file of weights that is known, it begins with {first[:8]!r}: expected safetensors, "
            "PyTorch's zip or pickle, HDF5, msgpack or npz."
        )
    return known


def _begins_a_map(first: bytes) -> bool:
    """Whether these are the first bytes of a msgpack map whose first key is a text."""
    if not first:
        return False
    header = {0xDE: 3, 0xDF: 5}.get(first[0], 1)
    return (0x80 < first[0] < 0x90 or header > 1) and len(first) > header and first[header] in _TEXTS


def _holds_arrays(path: Path) -> bool:
    """Whether a zip archive is NumPy's, not PyTorch's. What can't be read is left to PyTorch's reader to refuse."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return path.suffix == NPZ.suffix
