"""The weights of Keras 3 (`.weights.h5`), also those of keras-hub's presets, read and written without Keras.

Agrees with `save_weights` and `load_weights` of Keras 3.15: the variables of a layer are the datasets `0`, `1` ... of
a group `vars` below the layer's path, an attribute of that group is the layer's name, and bfloat16 is two bytes of no
type with an attribute that says what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py

from vit_core.files.disk import refuse_stand_in
from vit_core.files.elsewhere import elsewhere
from vit_core.files.hdf5 import Described, atomic_h5, describe, described_tensors, member, opened_h5, write_dataset
from vit_core.files.names import KERAS_WEIGHTS
from vit_core.files.tensor import Tensor

_OPTIMIZER = "optimizer"  # the top-level group of what a model does not need
_MAX_PATH = 1024  # characters, which bounds the depth as well


def is_keras_h5(path: Path) -> bool:
    """Whether an HDF5 file is one of Keras 3's: a `tf_model.h5` lists its layers in an attribute, they do not.

    Raises OSError when the file can't be opened, ValueError when it is damaged.
    """
    with path.open("rb") as opened:
        refuse_stand_in(path, opened.read(512))
    return bool(elsewhere(lists_no_layers, path))


def lists_no_layers(path: str) -> bool:
    with opened_h5(path, "model in HDF5") as file:
        return not {"layer_names", "layer_names0"} & set(file.attrs)


def read_keras_h5(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by their paths, as in `layers/dense/vars/0`, without those of the optimizer.

    An array is read when it is used; the file stays open as long as one of them is there. Nothing outside the file is
    ever opened. Raises OSError when the file can't be opened, ValueError when it is damaged.
    """
    return described_tensors(path, arrays_in)


def arrays_in(path: str) -> list[Described]:
    """What a `.weights.h5` holds, for `described_tensors`."""
    return describe(path, KERAS_WEIGHTS, _datasets)


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """(path, dataset) of everything but the optimizer. No link is followed, and nothing is met twice."""
    seen = {h5py.h5o.get_info(file.id).addr}
    waiting = [(name, file, name) for name in reversed(file) if name != _OPTIMIZER]
    while waiting:
        path, group, name = waiting.pop()
        if len(path) > _MAX_PATH:
            raise ValueError(f"a path that begins with {path[:40]!r} exceeds {_MAX_PATH} characters")
        node = member(group, name)
        address = h5py.h5o.get_info(node.id).addr
        if address in seen:
            raise ValueError(f"{path!r} is there under another name, too")
        seen.add(address)
        if isinstance(node, h5py.Group):
            waiting += [(f"{path}/{name}", node, name) for name in reversed(node)]
        else:
            yield path, node


def write_keras_h5(path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, str] | None = None) -> None:
    """Write a file, whole or not at all, holding one tensor in memory at a time.

    The keys are paths such as `layers/dense/vars/0`. `names` gives the names of layers by their groups, as in
    {"layers/dense/vars": "predictions"}; Keras writes such a group for a layer without variables, too. Raises
    ValueError for a dtype that is no number's, OSError when the disk is full.
    """
    with atomic_h5(path, KERAS_WEIGHTS, tensors) as file:
        for group, name in (names or {}).items():
            file.require_group(group).attrs["name"] = name
        for name, tensor in tensors.items():
            write_dataset(file, name, tensor)
