"""Checksums that a file has are checked where its bytes are read anyway; a report of loading has one a tensor."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from conftest import CHECKPOINTS, GOLDEN
from xxhash import xxh3_128_hexdigest

import conversion
from vit_core.app.cli import main
from vit_core.family import PARTS
from vit_core.files.pytorch import read_pytorch_bin
from vit_core.files.tensor import raw_bytes
from vit_core.formats.huggingface import find_weights, read_checkpoint
from vit_core.loading import fit

SOURCES = {
    "vit.npz": GOLDEN / "families" / "google_linen" / "model.npz",
    "pytorch_model.bin": CHECKPOINTS / "cls" / "pt_bin" / "pytorch_model.bin",
}


def place(path: Path, entry: str) -> int:
    """Where the last byte of an entry that is not compressed lies."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.endswith(entry))
        data = archive.read(info)
    return path.read_bytes().index(data) + len(data) - 1


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture(params=[("vit.npz", "Dense_0/kernel.npy"), ("pytorch_model.bin", "data/7")], ids=lambda p: p[0])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A file of weights beside its configuration, and the offset of one of its bytes."""
    name, entry = request.param
    path = Path(shutil.copy(SOURCES[name], tmp_path / name))
    if name == "pytorch_model.bin":
        shutil.copy(SOURCES[name].with_name("config.json"), tmp_path)
    return path, place(path, entry)


def test_one_bit_is_noticed_by_all_who_read_everything(
    source: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, at = source
    conversion.convert(path, tmp_path / "good", to="torch")
    assert main(["inspect", str(path), "--check"]) == 0
    flipped(path, at)
    assert main(["inspect", str(path)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["inspect", str(path), "--check"]) == 2
    assert f"{path} is damaged in" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"is damaged in .* \(its checksum is wrong\)"):
        conversion.convert(path, tmp_path / "bad", to="torch")
    assert not (tmp_path / "bad").exists()


def test_check_reads_what_has_no_checksum_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(shutil.copy(GOLDEN / "families" / "google_linen" / "model.npz", tmp_path / "m.npz"))
    packed = tmp_path / "packed.npz"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
        infos = archive.infolist()
    largest = max(infos, key=lambda info: info.compress_size)
    flipped(packed, largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2)
    assert main(["inspect", str(packed), "--check"]) == 2
    assert "packed.npz is damaged in" in capsys.readouterr().err


def test_pickles_are_checked_when_they_are_read(tmp_path: Path) -> None:
    path = Path(shutil.copy(SOURCES["pytorch_model.bin"], tmp_path / "pytorch_model.bin"))
    data = path.read_bytes()
    flipped(path, data.index(b"classifier.bias"))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin.*the checksum of its data\.pkl is wrong"):
        read_pytorch_bin(path)


def test_files_without_checksums_are_read(tmp_path: Path) -> None:
    """As PyTorch writes them after `torch.serialization.set_crc32_options(False)`: zeros in their place."""
    path = Path(shutil.copy(SOURCES["pytorch_model.bin"], tmp_path / "pytorch_model.bin"))
    with zipfile.ZipFile(path) as archive:
        checksums = {info.CRC.to_bytes(4, "little") for info in archive.infolist() if info.file_size}
    data = path.read_bytes()
    for checksum in checksums:
        data = data.replace(checksum, bytes(4))
    path.write_bytes(data)
    for tensor in read_pytorch_bin(path).values():
        tensor.verify()


@pytest.mark.parametrize("folder", ["pt_bin", "pt_safetensors_sharded", "tf_h5", "flax_msgpack"])
def test_a_report_has_the_checksum_of_each_tensor(folder: str) -> None:
    plain = read_checkpoint(find_weights(CHECKPOINTS / "cls" / "pt_safetensors"))
    expected = {t.source: xxh3_128_hexdigest(raw_bytes(t)) for t in plain.tensors.values()}
    checkpoint = read_checkpoint(find_weights(CHECKPOINTS / "cls" / folder))
    assert checkpoint.config is not None
    _, report = fit(checkpoint, checkpoint.config, PARTS["ViTForImageClassification"])
    assert report.checksums() == expected
    assert "_taken" not in report.keys() and "_taken" not in repr(report)  # noqa: SIM118


def test_a_report_of_a_damaged_file_says_so(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINTS / "cls" / "pt_bin", tmp_path, dirs_exist_ok=True)
    flipped(tmp_path / "pytorch_model.bin", place(tmp_path / "pytorch_model.bin", "data/7"))
    checkpoint = read_checkpoint(find_weights(tmp_path))
    assert checkpoint.config is not None
    _, report = fit(checkpoint, checkpoint.config, PARTS["ViTForImageClassification"])
    with pytest.raises(ValueError, match="its checksum is wrong"):
        report.checksums()
