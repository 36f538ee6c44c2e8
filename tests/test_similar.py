"""`vit similar`: the neighbours of a picture among vectors, whose model it is asked with; the contact sheet."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_within
from command import Command, process
from PIL import Image
from tolerances import cosine

from vit_core.app.canvas import INK
from vit_core.app.cli import main
from vit_core.app.cli.vectors import SUFFIXES, Vectors, read_vectors
from vit_core.app.contact_sheet import Cell, contact_sheet
from vit_core.assets import DIGITS

PICTURES = sorted((DIGITS / "pictures").iterdir())
TWO, OTHER_TWO = (path for path in PICTURES if path.name.startswith("2-"))
torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from vit_core.app.cli.similar import nearest  # noqa: E402

torch.set_num_threads(1)  # the models are tiny: a second thread only waits


@pytest.fixture
def vit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("COLUMNS", raising=False)
    return Command("vit", main, capsys)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of the digits, with the mean of two layers, in JSON lines."""
    out = tmp_path_factory.mktemp("vectors") / "x.jsonl"
    assert main(["embed", str(DIGITS / "pictures"), "--out", str(out), "--pool", "mean", "--layers", "4,-1"]) == 0
    return out


def test_neighbours_are_the_nearest_by_cosine() -> None:
    random = np.random.default_rng(0)
    values = random.normal(size=(50, 7)).astype(np.float32)
    names = [f"{i}.png" for i in range(50)]
    unit = np.float64(values) / np.linalg.norm(np.float64(values), axis=1, keepdims=True)
    settings: Any = {}
    for without in (None, 3):
        distances = 1 - unit @ unit[3]
        order = [i for i in np.argsort(distances) if i != without][:6]
        found = nearest(Vectors(names, values, settings), values[3], 6, without)
        assert [each.file for each in found] == [names[i] for i in order]
        assert_within(np.abs([each.distance for each in found] - distances[order]).max(), cosine(7))
    assert len(nearest(Vectors(names, values, settings), values[3], 99, 3)) == 49


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_and_its_picture_have_the_same_neighbours(vit: Command, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    source, copied = tmp_path / f"x{suffix}", tmp_path / "copy.png"
    shutil.copy(TWO, copied)
    assert vit("embed", DIGITS / "pictures", "--out", source).code == 0
    of_row = vit.json("similar", TWO, "--in", source, "-k", 3)
    assert (of_row["query"], of_row["in"], of_row["model"]) == (str(TWO), str(source), str(DIGITS))
    assert len(of_row["neighbours"]) == 3
    assert of_row["neighbours"][0]["file"] == str(OTHER_TWO)
    of_picture = vit.json("similar", copied, "--in", source, "-k", 4)["neighbours"]
    assert of_picture[0]["file"] == str(TWO)
    assert_within(abs(of_picture[0]["distance"]), cosine(read_vectors(source).settings["dimensions"]))
    assert [each["file"] for each in of_picture[1:]] == [each["file"] for each in of_row["neighbours"]]


def test_a_table(vit: Command, vectors: Path) -> None:
    lines = vit("similar", TWO, "--in", vectors, "-k", 2).out.splitlines()
    assert (vit.code, vit.err) == (0, "")
    (first,) = (line.split() for line in lines if OTHER_TWO.name in line)
    assert first[0] == str(OTHER_TWO)
    assert first[1] == f"{vit.json('similar', TWO, '--in', vectors)['neighbours'][0]['distance']:.4f}"


def test_a_row_is_found_without_a_framework(vectors: Path) -> None:
    code = (
        "import sys; from vit_core.app.cli import main\n"
        f"code = main(['similar', {str(TWO)!r}, '--in', {str(vectors)!r}])\n"
        "print(code, sorted({'torch', 'tensorflow', 'jax', 'flax', 'keras'} & set(sys.modules)), file=sys.stderr)"
    )
    result = process(sys.executable, "-c", code)
    assert result.stderr == "0 []\n"
    assert OTHER_TWO.name in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_model_in_a_folder_whose_name_is_no_text(vit: Command, tmp_path: Path) -> None:
    model = shutil.copytree(DIGITS, tmp_path / os.fsdecode(b"\xff"))
    for suffix in (".npy", ".jsonl"):
        source = tmp_path / f"x{suffix}"
        assert vit("embed", TWO, OTHER_TWO, "--model", model, "--out", source).code == 0
        found = vit.json("similar", model / "pictures" / TWO.name, "--in", source)
        assert (found["model"], found["neighbours"][0]["file"]) == (str(model), str(TWO))


def test_a_query_is_made_as_the_vectors_were(vit: Command, vectors: Path, tmp_path: Path) -> None:
    """The same pool, layers, model and image processor; a model of the same weights elsewhere, and no other one."""
    import vit_torch

    picture = shutil.copy(TWO, tmp_path / "two.png")
    model = vit_torch.ViTForImageClassification.from_pretrained(DIGITS)
    processor = vit_torch.ViTImageProcessor.from_pretrained(DIGITS)
    expected = vit.json("similar", picture, "--in", vectors)["neighbours"]
    assert_within(abs(expected[0]["distance"]), cosine(read_vectors(vectors).settings["dimensions"]))
    shutil.copytree(DIGITS, tmp_path / "moved")
    assert vit.json("similar", picture, "--in", vectors, "--model", tmp_path / "moved")["neighbours"] == expected
    with torch.no_grad():
        model.vit.layernorm.bias[0] += 1e-3
    for each in (model, processor):
        each.save_pretrained(tmp_path / "trained")
    words = f"{tmp_path / 'trained'} is not what {vectors} was made with, which was {DIGITS} with other weights,"
    assert words in vit.refused("similar", picture, "--in", vectors, "--model", tmp_path / "trained")
    processor.image_mean = [0.4] * len(processor.image_mean)
    processor.save_pretrained(tmp_path / "processor")
    refused = vit.refused("similar", picture, "--in", vectors, "--image-processor", tmp_path / "processor")
    assert f"{DIGITS} is not what {vectors} was made with" in refused


def test_the_contact_sheet(vit: Command, vectors: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert vit("similar", TWO, "--in", vectors, "--sheet", sheet, "-k", 7).code == 0
    with Image.open(sheet) as drawing:
        assert drawing.size == (2 * 48 + 6 * 264 - 24, 132 + 2 * (240 + 68 + 24) - 24 + 48)
        query = np.asarray(drawing.convert("L").crop((48, 132, 48 + 240, 132 + 240)), np.float64)
    with Image.open(TWO) as picture:
        large = picture.convert("L").resize((240, 240), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(query, np.asarray(large, np.float64))


def test_a_neighbour_that_is_gone(vit: Command, tmp_path: Path) -> None:
    for path in (TWO, OTHER_TWO, PICTURES[-1]):
        shutil.copy(path, tmp_path)
    out, gone = tmp_path / "x.npy", tmp_path / OTHER_TWO.name
    assert vit("embed", tmp_path, "--out", out).code == 0
    gone.unlink()
    vit("similar", tmp_path / TWO.name, "--in", out, "--sheet", tmp_path / "sheet.jpg", "--json")
    assert vit.code == 1
    assert vit.err == f"vit: --sheet: There is no image file {gone}: check the path.\n"
    assert json.loads(vit.out)["neighbours"][0]["file"] == str(gone)
    with Image.open(tmp_path / "sheet.jpg") as drawing:
        assert (drawing.format, drawing.width) == ("JPEG", 2 * 48 + 3 * 264 - 24)


def test_cells_that_can_not_be_drawn_say_so() -> None:
    drawing = contact_sheet("Nearest", [Cell(Image.new("RGB", (10, 20), "red"), "a.png", ""), Cell(None, "b.png", "")])
    assert drawing.getpixel((48 + 120, 132 + 120)) == (255, 0, 0)
    assert drawing.getpixel((48 - 3, 132)) == INK  # the frame of what was asked about
    empty = np.asarray(drawing)[132:372, 48 + 264 : 48 + 504]
    assert 0 < (empty < 200).any(-1).mean() < 0.05  # some text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TWO, "--in", "x.csv"], "x.csv must end in one of .npy, .jsonl, .parquet, as what `vit embed` writes does."),
        ([TWO, "--in", "x.npy"], "There is no file x.npy: write it with `vit embed PICTURES --out x.npy`."),
        ([TWO, "--model", "x"], f"{TWO} is a row of "),
        ([TWO, "--model", "x", "--backend", "tf"], "and needs no model: leave out --model, --backend."),
        (["no.png"], "There is neither a row nor an image file no.png: rows of "),
        ([DIGITS / "pictures"], f"similar takes one picture, but {DIGITS / 'pictures'} stands for 12: pass one"),
        ([TWO, "--sheet", "x.gif"], "--sheet x.gif must end in one of .png, .jpg, .jpeg, .webp"),
        ([TWO, "--sheet", TWO], f"--sheet {TWO} is the picture itself, which would be lost: write elsewhere."),
    ],
)  # fmt: skip
def test_what_can_not_be(vit: Command, vectors: Path, arguments: list[Any], message: str) -> None:
    given = arguments if "--in" in arguments else [*arguments, "--in", vectors]
    assert message in vit.refused("similar", *given)


def test_a_missing_library_is_one_line(vit: Command, vectors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    refused = vit.refused("similar", TWO, "--in", vectors)
    assert refused.startswith("vit: vit similar needs scikit-learn (")
    assert refused.endswith('): pip install "vit-trio[similar]"\n')


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_vectors_of_no_picture(vit: Command, tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    out = tmp_path / f"x{suffix}"
    assert vit("embed", tmp_path / "broken.png", "--out", out).code == 1
    with pytest.raises(ValueError, match=f"^{out} holds no vectors: none of its pictures could be read"):
        read_vectors(out)
