"""The position-resize matrix: each kernel against the library whose name it bears."""

from __future__ import annotations

import numpy as np
import pytest
import tolerances
from closeness import assert_close
from conftest import GOLDEN
from reference import position_bias

from vit_core.position import (
    KERNELS,
    relative_position_index,
    relative_positions,
    resize_matrix,
    resize_position_bias,
    resize_position_embeddings,
)

SIZES = [(n, m) for n in (1, 2, 3, 4, 7, 14) for m in (1, 2, 3, 5, 8, 14, 24, 37)]


def torch_matrix(source: int, target: int, **options: object) -> np.ndarray:
    """The matrix that torch.nn.functional.interpolate applies, read off by resizing the identity."""
    torch = pytest.importorskip("torch")
    identity = torch.eye(source, dtype=torch.float64)[None, None]
    if "scale_factor" not in options:
        options["size"] = (target, source)
    matrix: np.ndarray = torch.nn.functional.interpolate(identity, mode="bicubic", **options)[0, 0].numpy()
    return matrix


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_hf_is_torch_bicubic(source: int, target: int) -> None:
    np.testing.assert_allclose(resize_matrix(source, target), torch_matrix(source, target), atol=1e-12)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_hf_before_4_45_is_torch_bicubic_by_scale(source: int, target: int) -> None:
    expected = torch_matrix(source, target, scale_factor=((target + 0.1) / source, 1.0))
    np.testing.assert_allclose(resize_matrix(source, target, "hf-4.44"), expected, atol=1e-12)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_timm_is_torch_bicubic_with_antialias(source: int, target: int) -> None:
    np.testing.assert_allclose(
        resize_matrix(source, target, "timm"), torch_matrix(source, target, antialias=True), atol=1e-12
    )


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_google_is_scipy_zoom(source: int, target: int) -> None:
    zoom = pytest.importorskip("scipy.ndimage").zoom
    expected = zoom(np.eye(source), (target / source, 1), order=1)
    assert expected.shape == (target, source)
    np.testing.assert_allclose(resize_matrix(source, target, "google"), expected, atol=1e-12)


def test_tf_is_what_tensorflow_recorded() -> None:
    recorded = np.load(GOLDEN / "position" / "tf_image_bicubic.npz")
    assert len(recorded) == 8
    for key, expected in recorded.items():
        source, target = map(int, key.split("_"))
        np.testing.assert_allclose(resize_matrix(source, target, "tf"), expected, atol=tolerances.POSITION_TF)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_a_constant_stays_constant(kernel: str, source: int, target: int) -> None:
    matrix = resize_matrix(source, target, kernel)
    assert matrix.shape == (target, source)
    np.testing.assert_allclose(matrix.sum(1), 1.0, atol=1e-12)
    if source == target and kernel != "hf-4.44":
        np.testing.assert_allclose(matrix, np.eye(source), atol=1e-7)


def test_the_cls_row_is_untouched() -> None:
    table = np.random.default_rng(0).standard_normal((1, 1 + 3 * 4, 5)).astype(np.float16)
    resized = resize_position_embeddings(table, (3, 4), (6, 2))
    assert (resized.shape, resized.dtype) == ((1, 13, 5), np.dtype(np.float16))
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    grid = table[0, 1:].reshape(3, 4, 5).astype(np.float64)
    expected = np.einsum("ah,hwd,bw->abd", resize_matrix(3, 6), grid, resize_matrix(4, 2)).reshape(12, 5)
    assert_close(resized[0, 1:].astype(np.float64), expected, tolerances.UNIT_ROUNDOFF["float16"])


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="Unknown interpolation kernel 'cubic': expected one of hf, "):
        resize_matrix(4, 6, "cubic")
    with pytest.raises(ValueError, match="at least 1: got 4 to resize to 0"):
        resize_matrix(4, 0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (4, 3)])
def test_the_index_of_relative_positions(height: int, width: int) -> None:
    """As the NumPy reading counts them, token by token."""
    count = relative_positions(height, width)
    index = relative_position_index(np.arange(height), np.arange(width), height, width)
    np.testing.assert_array_equal(index, position_bias(np.arange(count)[:, None], height, width)[0, 0])
    assert set(index.ravel()) == set(range(count))


@pytest.mark.parametrize(("source", "target"), [((4, 4), (6, 3)), ((2, 5), (2, 5)), ((3, 4), (1, 8))])
def test_tables_of_relative_positions_are_resized_linearly(source: tuple[int, int], target: tuple[int, int]) -> None:
    """As PyTorch does without aligned corners, the rows with a CLS token left alone."""
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).standard_normal((relative_positions(*source), 2))
    height, width = (2 * n - 1 for n in source)
    grid = torch.from_numpy(table[:-3].reshape(1, height, width, 2)).permute(0, 3, 1, 2)
    size = tuple(2 * n - 1 for n in target)
    wanted = torch.nn.functional.interpolate(grid, size=size, mode="bilinear").permute(0, 2, 3, 1).reshape(-1, 2)
    found = resize_position_bias(table, source, target)
    assert_close(found[:-3], wanted.numpy(), tolerances.SAME_FUNCTION_FLOAT64)
    np.testing.assert_array_equal(found[-3:], table[-3:])
