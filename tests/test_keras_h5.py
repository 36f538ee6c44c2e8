"""Keras 3's .weights.h5, read and written without Keras: Keras loads what is written; attacks are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
import pytest
from conftest import CHECKPOINTS
from test_h5 import bits, structure

from conversion import read
from vit_core.files.keras_hdf5 import is_keras_h5, read_keras_h5, write_keras_h5
from vit_core.files.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of Keras's variables
DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool",
)  # fmt: skip
NAME = "layers/dense/vars/0"


@pytest.fixture
def model_of() -> Callable[[str], Any]:
    keras = pytest.importorskip("keras")

    def build(dtype: str) -> Any:
        keras.utils.set_random_seed(0)
        inputs = keras.Input((4,), name="pixels")
        hidden = keras.layers.Dense(3, name="hidden", dtype=dtype)(inputs)
        hidden = keras.layers.Dropout(0.1, name="dropout")(hidden)
        outputs = keras.layers.Dense(2, name="predictions", dtype=dtype)(hidden)
        return keras.Model(inputs, outputs, name="classifier")

    return build


def names_of(path: Path) -> dict[str, str]:
    """The names that Keras gave to the groups of variables."""
    found: dict[str, str] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda path, item: found.update({path: str(item.attrs["name"])}) if "name" in item.attrs else None
        )
    return found


# ---- Keras -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_keras_writes(tmp_path: Path, dtype: str, model_of: Callable[[str], Any]) -> None:
    """Without the variables of the optimizer; written again, it is built as Keras built it."""
    model = model_of(dtype)
    model.compile("adam", "mse")
    model.save_weights(tmp_path / "with.weights.h5")
    tensors = read_keras_h5(tmp_path / "with.weights.h5")
    assert [(n, t.dtype.name, t.source) for n, t in tensors.items()] == [
        (f"layers/{layer}/vars/{i}", dtype, f"layers/{layer}/vars/{i}")
        for layer in ("dense", "dense_1")
        for i in (0, 1)
    ]
    expected = [np.asarray(weight) for layer in model.layers for weight in layer.get_weights()]
    assert [t.read().tobytes() for t in tensors.values()] == [w.tobytes() for w in expected]
    model_of(dtype).save_weights(tmp_path / "theirs.weights.h5")
    names = names_of(tmp_path / "theirs.weights.h5")
    assert names["layers/dense_1/vars"] == "predictions"
    write_keras_h5(tmp_path / "ours.weights.h5", read_keras_h5(tmp_path / "theirs.weights.h5"), names)
    assert structure(tmp_path / "ours.weights.h5") == structure(tmp_path / "theirs.weights.h5")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keras_loads_what_is_written(tmp_path: Path, dtype: str, model_of: Callable[[str], Any]) -> None:
    model = model_of(dtype)
    shapes = {"dense": [(4, 3), (3,)], "dense_1": [(3, 2), (2,)]}
    arrays = {
        f"layers/{layer}/vars/{i}": np.random.default_rng(i).random(shape).astype(getattr(ml_dtypes, dtype, dtype))
        for layer, both in shapes.items()
        for i, shape in enumerate(both)
    }
    path = tmp_path / "m.weights.h5"
    write_keras_h5(path, {n: Tensor.of(a) for n, a in arrays.items()}, {"layers/dense_1/vars": "predictions"})
    model.load_weights(path)
    loaded = [np.asarray(weight) for layer in model.layers for weight in layer.get_weights()]
    assert [w.tobytes() for w in loaded] == [a.tobytes() for a in arrays.values()]


def test_told_apart_from_tf_keras(tmp_path: Path) -> None:
    for path in CHECKPOINTS.glob("*/tf_h5*/*.h5"):
        assert not is_keras_h5(path)
    write_keras_h5(tmp_path / "m.h5", {NAME: Tensor.of(np.ones(3))})
    assert is_keras_h5(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "a") as file:
        file.attrs["layer_names0"] = [b"vit"]  # as where there are very many
    assert not is_keras_h5(tmp_path / "m.h5")
    (tmp_path / "m.h5").write_text("text")
    with pytest.raises(ValueError, match=r"m\.h5 is damaged or not a model in HDF5"):
        is_keras_h5(tmp_path / "m.h5")


def test_a_whole_model_in_hdf5_is_named(tmp_path: Path) -> None:
    """What `model.save("m.h5")` of Keras 3 writes."""
    write_keras_h5(tmp_path / "m.h5", {"model_weights/dense/sequential/dense/kernel": Tensor.of(np.ones((3, 2)))})
    with pytest.raises(ValueError, match=r"m\.h5 is a whole model of Keras \(model\.save\): load it with Keras"):
        read(tmp_path / "m.h5")


# ---- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_is_kept(tmp_path: Path, dtype: str) -> None:
    array = np.arange(12).reshape(3, 4).astype(getattr(ml_dtypes, dtype, dtype))
    arrays = {"a/vars/0": array, "a/vars/1": array[:0], "b/vars/0": np.array(array[0, 1]), "vars/0": array.T}
    tensors = {name: Tensor.of(a) for name, a in arrays.items()}
    write_keras_h5(tmp_path / "m.h5", tensors)
    assert bits(read_keras_h5(tmp_path / "m.h5")) == bits(tensors)


def test_unwritable_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.weights\.h5 can't hold a/vars/0 \(complex128\)"):
        write_keras_h5(tmp_path / "m.h5", {"a/vars/0": Tensor.of(np.ones(2, np.complex128))})
    assert not list(tmp_path.iterdir())


def test_one_tensor_at_a_time_and_whole_or_not_at_all(tmp_path: Path) -> None:
    events: list[str] = []

    def read(name: str) -> np.ndarray:
        events.append(f"read {name}")
        if name == "c":
            raise OSError("unreadable")
        return np.ones(3)

    def tensor(name: str) -> Tensor:
        return Tensor((3,), np.dtype("f8"), lambda: read(name), name, lambda: events.append(f"release {name}"))

    (tmp_path / "m.h5").write_bytes(b"old")
    with pytest.raises(OSError, match="unreadable"):
        write_keras_h5(tmp_path / "m.h5", {f"{name}/vars/0": tensor(name) for name in "abc"})
    assert events == ["read a", "release a", "read b", "release b", "read c"]
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_nothing_is_read_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain array is a view of the mapped file; one in chunks is the library's to read."""
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset(NAME, data=np.ones(3))
        file.create_dataset("chunks/vars/0", data=np.ones(3), chunks=(3,))

    def read(*_: Any) -> None:
        raise AssertionError("a dataset was read")

    monkeypatch.setattr(h5py.Dataset, "__getitem__", read)
    tensors = read_keras_h5(tmp_path / "m.h5")
    with pytest.raises(AssertionError, match="was read"):
        tensors["chunks/vars/0"].read()
    tensors[NAME].read()[:] = 2
    assert tensors[NAME].read().tolist() == [2, 2, 2]
    tensors[NAME].release()
    assert tensors[NAME].read().tolist() == [1, 1, 1]


# ---- files of other writers, damage and attacks ------------------------------------------------------------------


def test_big_endians_chunks_and_what_an_optimizer_holds(tmp_path: Path) -> None:
    """Nothing in the optimizer's group is looked at, a link that leads out of the file included."""
    array = np.linspace(0, 1, 300).reshape(30, 10)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.create_dataset("a/vars/0", data=array.astype(">f4"), chunks=(7, 3), compression="gzip")
        file.create_dataset("a/vars/1", data=np.zeros(10**6), compression="gzip")
        file.create_dataset("a/optimizer/vars/0", data=array)
        file.create_group("optimizer")["x"] = h5py.ExternalLink("elsewhere.h5", "x")
    tensors = read_keras_h5(tmp_path / "m.h5")
    assert list(tensors) == ["a/optimizer/vars/0", "a/vars/0", "a/vars/1"]
    assert tensors["a/vars/0"].read().dtype == tensors["a/vars/0"].dtype == np.float32
    np.testing.assert_array_equal(tensors["a/vars/0"].read(), array.astype(np.float32))
    assert not tensors["a/vars/1"].read().any()


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource(str(secret), "x", (3,))
    file.create_virtual_dataset(NAME, layout)


def constant_chunk(file: h5py.File) -> None:
    """64 GiB, of which a single chunk is there, packed into some bytes."""
    file.create_dataset(NAME, (2**36,), "i1", chunks=(2**10,), scaleoffset=0)[:1024] = 1


def opaque(file: h5py.File, size: int, said: str) -> None:
    dataset = file.create_dataset(NAME, data=np.zeros(3, f"V{size}"))
    dataset.attrs["dtype"] = said


def cycle(file: h5py.File) -> None:
    group = file.create_group("layers/dense")
    group["again"] = file["layers"]


def linked_twice(file: h5py.File) -> None:
    file[NAME] = np.ones(3, np.float32)
    file["layers/other"] = file[NAME]


def deep(file: h5py.File) -> None:
    group: Any = file
    for _ in range(600):
        group = group.create_group("a")


def no_utf8(file: h5py.File) -> None:
    file.id.links.create_soft(b"\xff\xfe", b"/x")


ATTACKS: dict[str, tuple[str, Callable[[h5py.File, Path], Any]]] = {
    "soft link": ("'0' below /layers/dense/vars is a link", lambda f, _: f.update({NAME: h5py.SoftLink("/x")})),
    "soft link to itself": ("is a link", lambda f, _: f.update({"a": h5py.SoftLink("/")})),
    "external link": ("is a link", lambda f, s: f.update({NAME: h5py.ExternalLink(str(s), "x")})),
    "external group": ("is a link", lambda f, s: f.update({"layers": h5py.ExternalLink(str(s), "/")})),
    "external data": (
        "in another file",
        lambda f, s: f.create_dataset(NAME, (3,), "f4", external=[(str(s), 0, 12)]),
    ),
    "virtual": ("in another file", virtual),
    "cycle": ("under another name", lambda f, _: cycle(f)),
    "cycle of the root": ("under another name", lambda f, _: f.update({"a": f["/"]})),
    "one array twice": ("under another name", lambda f, _: linked_twice(f)),
    "deep": ("exceeds 1024", lambda f, _: deep(f)),
    "long name": ("exceeds 1024", lambda f, _: f.create_group("a" * 2000)),
    "name in no encoding": ("", lambda f, _: no_utf8(f)),
    "terabytes": ("not all there", lambda f, _: f.create_dataset(NAME, (2**40,), "f4")),
    "terabytes in no chunks": ("not all there", lambda f, _: f.create_dataset(NAME, (2**40,), "f4", chunks=(1024,))),
    "terabytes in a chunk": ("not all there", lambda f, _: constant_chunk(f)),
    "opaque": ("has dtype", lambda f, _: f.create_dataset(NAME, data=np.zeros(3, "V2"))),
    "opaque of something else": ("has dtype", lambda f, _: opaque(f, 2, "float16")),
    "opaque of another size": ("has dtype", lambda f, _: opaque(f, 4, "bfloat16")),
    "texts": ("has dtype", lambda f, _: f.create_dataset(NAME, data=["a", "b"])),
    "complex": ("has dtype", lambda f, _: f.create_dataset(NAME, data=np.ones(2, "c8"))),
    "fields": ("has dtype", lambda f, _: f.create_dataset(NAME, data=np.ones(2, [("x", "f4")]))),
    "no shape": ("shape None", lambda f, _: f.create_dataset(NAME, data=h5py.Empty("f4"))),
    "a type": ("is no array", lambda f, _: f.update({NAME: np.dtype("f4")})),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_treacherous_files_are_named(tmp_path: Path, kind: str) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = file[NAME] = np.ones(3, np.float32)
    words, attack = ATTACKS[kind]
    with h5py.File(tmp_path / "m.weights.h5", "w") as file:
        attack(file, tmp_path / "secret.h5")
    with pytest.raises(ValueError, match=rf"m\.weights\.h5 is damaged or not a \.weights\.h5 \(.*{words}"):
        read_keras_h5(tmp_path / "m.weights.h5")


def test_damaged_files_and_stand_ins(tmp_path: Path) -> None:
    path = tmp_path / "m.weights.h5"
    write_keras_h5(path, {f"layers/{i}/vars/0": Tensor.of(np.ones(300)) for i in range(20)})
    good = path.read_bytes()
    damage = {
        good[:-100]: "truncated",
        good[: len(good) // 2]: "truncated",
        b"": "signature",
        b"text" * 99: "signature",
    }
    for content, words in damage.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"m\.weights\.h5 is damaged or not a .*{words}"):
            read_keras_h5(path)
    for content, words in {b"version https://git-lfs.github.com/spec/v1\n": "git lfs", b"<html>": "HTML page"}.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            read_keras_h5(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_keras_h5(tmp_path / "nowhere.h5")
