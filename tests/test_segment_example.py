"""examples/segment.py: the labels of a first frame propagated over a video that is made here, in every framework."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import process
from PIL import Image
from trainings import EXAMPLES, need

from conversion import convert
from vit_core.assets import DIGITS


@pytest.fixture(scope="module")
def segment() -> Any:
    need("torch")
    import_module("torch").set_num_threads(1)  # the model is tiny: a second thread only waits
    return import_module("segment")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of the two shapes, and their masks."""
    folder = tmp_path_factory.mktemp("video")
    import_module("moving_shape").main(folder, frames=6)
    return folder


def intersection_over_union(found: Path, expected: Path) -> list[float]:
    """Of the disc and of the square, in each frame but the first."""
    shares = []
    for path in sorted(expected.iterdir())[1:]:
        one, other = (np.asarray(Image.open(each)) for each in (found / path.name, path))
        shares += [((one == n) & (other == n)).sum() / ((one == n) | (other == n)).sum() for n in (1, 2)]
    return shares


def test_objects_are_followed(backend: Any, segment: Any, video: Path, tmp_path: Path, capsys: Any) -> None:
    masks = video / "masks"
    segment.main(
        video / "frames", masks / "000.png", tmp_path, truth=masks, backend=backend.name, size=144, as_json=True
    )
    document = json.loads(capsys.readouterr().out)
    shares = intersection_over_union(tmp_path, masks)
    assert document.pop("j") == pytest.approx(np.mean(shares), abs=1e-12)
    assert document == {"frames": 6, "out": str(tmp_path), "objects": 2}
    assert min(shares) >= 0.7
    first, last = (np.asarray(Image.open(masks / f"{i:03}.png")) for i in (0, 5))
    assert not ((first == 1) & (last == 1)).any()  # they have moved: to leave the mask where it is would not do
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000.png")), first)


def test_labels_come_from_the_likest_patches_that_are_near(segment: Any) -> None:
    """Element by element: of the k likest among the near ones of all known frames, exp(cosine / T) times the labels."""
    random, grid, radius, k, temperature = np.random.default_rng(0), (3, 4), 1, 3, 0.2

    def unit() -> np.ndarray:
        vectors = random.normal(size=(12, 5))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    known = [(unit(), random.dirichlet([1, 1], size=12)) for _ in range(2)]
    features = unit()
    expected = []
    for n in range(12):
        near = [m for m in range(12) if abs(n // 4 - m // 4) <= radius and abs(n % 4 - m % 4) <= radius]
        asked = sorted(
            ((features[n] @ each[m], labels[m]) for each, labels in known for m in near), key=lambda p: -p[0]
        )
        weights = [np.exp(likeness / temperature) for likeness, _ in asked[:k]]
        expected.append(sum(w * label for w, (_, label) in zip(weights, asked, strict=False)) / sum(weights))
    found = segment.asked(features, known, segment.neighbourhood(grid, radius), k, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    everything = segment.asked(features, known, segment.neighbourhood(grid, 9), 99, temperature)
    np.testing.assert_allclose(everything.sum(1), 1, rtol=1e-12)


def test_masks_and_patches(segment: Any, tmp_path: Path) -> None:
    mask = np.zeros((8, 12), np.uint8)
    mask[:4, 4:8], mask[4:6, :4] = 7, 9
    picture = Image.fromarray(mask)
    picture.putpalette([3, 2, 1] * 256)
    picture.save(tmp_path / "mask.png")
    labels, numbers, palette = segment.read_mask(tmp_path / "mask.png")
    assert labels.tolist() == [0, 7, 9] and palette[:3] == [3, 2, 1]
    patches = segment.patched(numbers, 3, (2, 3))
    np.testing.assert_allclose(patches, [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0.5, 0, 0.5], [1, 0, 0], [1, 0, 0]])
    assert segment.enlarged(patches, (2, 3), mask.shape)[1, 5] == 1


@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_of_other_channels(segment: Any, video: Path, tmp_path: Path, channels: int) -> None:
    convert(DIGITS, tmp_path / "model", to="torch", num_channels=channels)
    segment.main(video / "frames", video / "masks" / "000.png", tmp_path / "out", model=str(tmp_path / "model"))
    assert min(intersection_over_union(tmp_path / "out", video / "masks")) > 0.5


def test_masks_of_more_than_eight_bits(segment: Any, tmp_path: Path) -> None:
    """Their numbers stay, as do those of two values; fractions are none."""
    wide = np.array([[0, 256], [512, 256]], np.uint16)
    for name, values in {"wide.png": wide, "two.png": wide > 0, "fractions.tiff": wide / np.float32(512)}.items():
        Image.fromarray(values).save(tmp_path / name)
    labels, numbers, _ = segment.read_mask(tmp_path / "wide.png")
    np.testing.assert_array_equal(labels[numbers], wide)
    assert segment.read_mask(tmp_path / "two.png")[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="a mask has whole numbers, got float32: save it with a palette or in grey"):
        segment.read_mask(tmp_path / "fractions.tiff")


def test_the_queue_and_the_first_frame(segment: Any) -> None:
    """With no queue the first frame alone is asked; with one of two, that and the two before."""
    seen: list[int] = []

    def counted(features: Any, known: Any, *_: Any) -> np.ndarray:
        seen.append(len(known))
        return np.full((4, 2), 0.5)

    kept, segment.asked = segment.asked, counted
    try:
        for queue in (0, 2):
            frames = iter([(np.ones((4, 3)), (2, 2))] * 5)
            assert len(list(segment.propagated(frames, np.eye(8, dtype=int), 2, queue, 5, 0.1, 12))) == 5
    finally:
        segment.asked = kept
    assert seen == [1, 1, 1, 1, 1, 2, 3, 3]


def test_what_can_not_be(segment: Any, video: Path, tmp_path: Path) -> None:
    mask = video / "masks" / "000.png"
    with pytest.raises(ValueError, match="holds the frames or the mask, which would be lost: write elsewhere"):
        segment.main(video / "frames", mask, video / "frames")
    with pytest.raises(ValueError, match="a mask has one number a pixel, got 3: save it with a palette"):
        segment.main(video / "frames", video / "frames" / "000.png", tmp_path)
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match="has 96 x 96 pixels, the mask 5 x 5"):
        segment.main(video / "frames", tmp_path / "small.png", tmp_path / "out")
    (tmp_path / "one").mkdir()
    shutil.copy(video / "frames" / "000.png", tmp_path / "one")
    with pytest.raises(ValueError, match="no frame but the first has an object there, so that nothing can be compared"):
        segment.main(tmp_path / "one", mask, tmp_path / "out", truth=mask.parent)


def test_the_command(video: Path, tmp_path: Path) -> None:
    need("torch")
    masks = video / "masks"
    options = ("--mask", masks / "000.png", "--out", tmp_path / "found", "--truth", masks, "--layer", 2)
    result = process(sys.executable, "-W", "error", EXAMPLES / "segment.py", video / "frames", *options)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"frames 6, out {tmp_path / 'found'}, objects 2, j 0.")
