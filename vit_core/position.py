"""Resizing a grid of position embeddings by one matrix per axis (ViT paper, section 3.2).

A grid of shape (h, w, D) becomes R_h @ grid @ R_w^T, so that every backend computes the same numbers with two matmuls.
The kernels are those the field's libraries have used, by name:

hf       torch bicubic to a given size: a = -0.75, half-pixel centres, edges clamped (transformers >= 4.45)
hf-4.44  the same kernel sampled at the scale (m + 0.1) / n, which transformers <= 4.44 and DINO pass to torch
timm     torch bicubic with antialias: a = -0.5, widened when shrinking, weights renormalised at the edges
tf       tf.image.resize bicubic: a = -0.5 from a table of 1024 steps, weights renormalised at the edges
google   linear between aligned corners, as scipy.ndimage.zoom of order 1 (vit_jax, big_vision)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

KERNELS = ("hf", "hf-4.44", "timm", "tf", "google")
CALL_KERNELS = KERNELS[:3]  # which a model can compute with in a call, whatever the size; the others are of files
_TF_TABLE_STEPS = 1024


def cubic(distance: Any, a: float, near: bool) -> Any:
    """Keys' cubic convolution (1981): the inner piece for distances up to 1 (`near`), the outer one from 1 to 2."""
    d = distance
    return ((a + 2) * d - (a + 3)) * d * d + 1 if near else ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def bicubic_matrix(rows: Any, columns: Any, scale: Any, xp: Any = np) -> Any:
    """The "hf" kernel: weights (m, n) for resizing n samples to m.

    `rows` and `columns` are 0..m-1 and 0..n-1 as floating-point arrays of `xp`, a namespace with `clip` and `where`
    such as numpy, torch or keras.ops, in which the result is computed: m may thus be unknown until a traced function
    runs. `scale` is n / m.
    """
    x = (rows + 0.5) * scale - 0.5
    base = x // 1
    weights: Any = 0.0
    for tap in (-1, 0, 1, 2):
        index = xp.clip(base + tap, 0, columns.shape[0] - 1)
        weight = cubic(abs(x - base - tap), -0.75, near=tap in (0, 1))
        weights = weights + xp.where(index[:, None] == columns[None, :], weight[:, None], 0 * weight[:, None])
    return weights


def antialiased_matrix(rows: Any, columns: Any, scale: Any, xp: Any = np) -> Any:
    """The "timm" kernel; arguments as those of `bicubic_matrix`."""
    scale = xp.clip(0 * rows + scale, 0, float("inf"))[:, None]
    stretch = xp.clip(scale, 1, float("inf"))
    centres = scale * (rows[:, None] + 0.5)
    first = xp.clip(centres - 2 * stretch + 0.5, 0, float("inf")) // 1
    last = (centres + 2 * stretch + 0.5) // 1
    distance = abs((columns - centres + 0.5) / stretch)
    weights = xp.where(distance < 1, cubic(distance, -0.5, near=True), cubic(distance, -0.5, near=False))
    inside = xp.logical_and(xp.logical_and(columns >= first, columns < last), distance < 2)
    weights = xp.where(inside, weights, 0 * weights)
    return weights / xp.sum(weights, 1)[:, None]


def bilinear_matrix(rows: Any, columns: Any, scale: Any, xp: Any = np) -> Any:
    """Linear weights between half-pixel centres, edges clamped; arguments as those of `bicubic_matrix`."""
    centres = xp.clip((rows + 0.5) * scale - 0.5, 0, columns.shape[0] - 1)
    return xp.clip(1 - abs(centres[:, None] - columns[None, :]), 0, 1)


def relative_positions(height: int, width: int) -> int:
    """How many relative positions a grid of height x width patches with a CLS token has: T rows of a table.

    Those of two patches come first, by rows and then by columns of the grid; then from CLS to a patch, from a patch to
    CLS, and from CLS to itself.
    """
    return (2 * height - 1) * (2 * width - 1) + 3


def relative_position_index(rows: Any, columns: Any, height: Any, width: Any, xp: Any = np) -> Any:
    """The relative position (S, S) from each token of a grid to each other, the CLS token first, then row by row.

    BEiT's (Bao et al. 2022), which are those of Swin (Liu et al. 2021, section 3.2). `rows` and `columns` are
    0..height-1 and 0..width-1 as integer arrays of `xp`, a namespace as NumPy's.
    """
    across = 2 * width - 1
    patches = xp.reshape(rows[:, None] * across + columns[None, :], (-1,))
    between = patches[:, None] - patches[None, :] + (height - 1) * across + width - 1
    first = (2 * height - 1) * across + 0 * between[:1]
    to_cls = first[0][:, None] + 1
    return xp.concatenate([xp.concatenate([first[:, :1] + 2, first], 1), xp.concatenate([to_cls, between], 1)], 0)


def kernel_matrix(kernel: str, rows: Any, columns: Any, size: Any, xp: Any = np) -> Any:
    """Weights (m, n) of one of `CALL_KERNELS`; `rows`, `columns` and `xp` as in `bicubic_matrix`, `size` is m."""
    source = columns.shape[0]
    if kernel == "timm":
        return antialiased_matrix(rows, columns, source / size, xp)
    return bicubic_matrix(rows, columns, source / (size if kernel == "hf" else size + 0.1), xp)


@lru_cache(maxsize=64)
def resize_matrix(source: int, target: int, kernel: str = "hf") -> Matrix:
    """Weights, float64 of shape (target, source), that resize an axis of `source` samples to `target`; read-only.

    Raises ValueError for an unknown kernel or a size below 1.
    """
    if kernel not in KERNELS:
        raise ValueError(f"Unknown interpolation kernel {kernel!r}: expected one of {', '.join(KERNELS)}.")
    if source < 1 or target < 1:
        raise ValueError(f"Grid sizes must be at least 1: got {source} to resize to {target}.")
    matrix: Matrix
    if kernel in CALL_KERNELS:
        rows, columns = (np.arange(n, dtype=np.float64) for n in (target, source))
        matrix = kernel_matrix(kernel, rows, columns, target)
    else:
        matrix = {"tf": _tensorflow, "google": _corner_aligned}[kernel](source, target)
    matrix.setflags(write=False)
    return matrix


def _tensorflow(source: int, target: int) -> Matrix:
    x = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(source / target) - np.float32(0.5)
    base = np.floor(x).astype(int)
    fraction = np.rint((x - base) * _TF_TABLE_STEPS) / _TF_TABLE_STEPS
    matrix = np.zeros((target, source))
    for tap in (-1, 0, 1, 2):
        index, rows = base + tap, np.arange(target)
        inside = (index >= 0) & (index < source)
        weight = cubic(np.abs(fraction - tap), -0.5, near=tap in (0, 1))
        matrix[rows[inside], index[inside]] += weight[inside]
    total: Matrix = matrix.sum(axis=1, keepdims=True)
    return matrix / total


def _corner_aligned(source: int, target: int) -> Matrix:
    x = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    matrix: Matrix = np.maximum(0.0, 1.0 - np.abs(x[:, None] - np.arange(source)))
    return matrix


def sincos(grid: tuple[int, int], width: int, first: int = 1) -> npt.NDArray[np.float32]:
    """A table (1, first + h w, D) of sines and cosines of a grid (height, width); the `first` rows are zeros.

    He et al. 2022, "MAE", appendix A.1, as in the authors' code: a quarter of D each for the sines and cosines of the
    column, and of the row. D must be a multiple of 4.
    """
    frequencies = 10000.0 ** -(np.arange(width // 4) / (width / 4))
    rows, columns = np.indices(grid).reshape(2, -1, 1) * frequencies  # (h w, D / 4) each
    patches = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return np.pad(patches, ((first, 0), (0, 0)))[None].astype(np.float32)


def resize_position_embeddings(
    table: npt.NDArray[Any], source: tuple[int, int], target: tuple[int, int], kernel: str = "hf", first: int = 1
) -> npt.NDArray[Any]:
    """A table (1, first + h w, D) of position embeddings for another grid (height, width).

    The `first` rows, of the tokens before the patches, are untouched. Computed in float64, returned in the table's
    dtype.
    """
    if source == target:
        return table
    rows, columns = (resize_matrix(s, t, kernel) for s, t in zip(source, target, strict=True))
    grid = table[0, first:].reshape(*source, -1).astype(np.float64)
    resized = np.einsum("ah,hwd,bw->abd", rows, grid, columns, optimize=True)
    patches = resized.reshape(1, target[0] * target[1], -1).astype(table.dtype)
    return np.concatenate([table[:, :first], patches], axis=1)


def resize_position_bias(table: npt.NDArray[Any], source: tuple[int, int], target: tuple[int, int]) -> npt.NDArray[Any]:
    """A table (T, h) of biases of relative positions for another grid (height, width), by `bilinear_matrix`.

    The last three rows, with the CLS token, are untouched. Computed in float64, returned in the table's dtype.
    """
    if source == target:
        return table
    before, after = ([2 * n - 1 for n in grid] for grid in (source, target))
    rows, columns = (
        bilinear_matrix(np.arange(t, dtype=np.float64), np.arange(s, dtype=np.float64), s / t)
        for s, t in zip(before, after, strict=True)
    )
    grid = table[:-3].reshape(*before, -1).astype(np.float64)
    resized = np.einsum("ah,hwd,bw->abd", rows, grid, columns, optimize=True)
    return np.concatenate([resized.reshape(-1, table.shape[1]).astype(table.dtype), table[-3:]])
