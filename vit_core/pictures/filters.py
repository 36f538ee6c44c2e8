"""Pillow's filters: weights of pixels by their distance from a centre, over the operations of whatever computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL.Image import Resampling


def box(o: Any, x: Any) -> Any:
    return o.where((x > -0.5) & (x <= 0.5), 1.0, 0.0 * x)


def _bilinear(o: Any, x: Any) -> Any:
    return o.where(abs(x) < 1, 1 - abs(x), 0.0)


# Numbers that float32 holds, as which PyTorch writes them to ONNX: Pillow's own for this filter, and pi in two parts.
_HALF, _REST = float(np.float32(0.54)), float(np.float32(0.46))
_PI = float(np.float32(math.pi))
_PI_REST = float(np.float32(math.pi - _PI))


def _hamming(o: Any, x: Any) -> Any:
    return o.where(abs(x) < 1, _sinc(o, x) * (_HALF + _REST * o.sin(_angle(abs(x) + 0.5))), 0.0)


def _bicubic(o: Any, x: Any) -> Any:
    x = abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return o.where(x < 1, near, o.where(x < 2, far, 0.0))


def _lanczos(o: Any, x: Any) -> Any:
    return o.where(abs(x) < 3, _sinc(o, x) * _sinc(o, x / 3), 0.0)


def _sinc(o: Any, x: Any) -> Any:
    angle = o.where(x == 0, 1.0, _angle(x))
    return o.where(x == 0, 1.0, o.sin(angle) / angle)


def _angle(x: Any) -> Any:
    return x * _PI + x * _PI_REST


# Twice the support, in rows, and the weight; nearest has none.
FILTERS: dict[Resampling, tuple[int, Callable[[Any, Any], Any] | None]] = {
    Resampling.NEAREST: (1, None),
    Resampling.BOX: (1, box),
    Resampling.BILINEAR: (2, _bilinear),
    Resampling.HAMMING: (2, _hamming),
    Resampling.BICUBIC: (4, _bicubic),
    Resampling.LANCZOS: (6, _lanczos),
}
