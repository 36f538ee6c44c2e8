"""Where a model looks: attention rollout, and a picture of it.

Paper: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3. NumPy and Pillow only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_core.app.canvas import GREY, INK, LARGE, LINE, MARGIN, MEDIUM, SMALL, Canvas, Size, fit, scaled

Array = NDArray[np.float64]


def rollout(attentions: Sequence[Array]) -> Array:
    """How much of each token reaches each token through all layers: L of (..., h, S, S) to (..., S, S).

    A layer passes on the mean of its heads plus, for the residual connection, the identity, each row scaled to sum to
    one; the layers are multiplied, the last one on the left. Every row of the result sums to one.
    """
    if not attentions:
        raise ValueError("There are no attentions: call the model with output_attentions=True.")
    flow = np.eye(attentions[0].shape[-1])
    for attention in attentions:
        layer = attention.mean(axis=-3) + np.eye(attention.shape[-1])
        flow = layer / layer.sum(axis=-1, keepdims=True) @ flow
    return flow


def cls_to_patches(weights: Array, grid: tuple[int, int]) -> Array:
    """The CLS token's row of weights (..., S, S), over the grid of patches, the last tokens: (..., rows, columns)."""
    return weights[..., 0, -grid[0] * grid[1] :].reshape(*weights.shape[:-2], *grid)


# ---- colours -----------------------------------------------------------------------------------------------------

# Eleven colours of inferno (S. van der Walt and N. Smith, public domain): lightness grows evenly from black to pale.
_INFERNO = "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4"


def colours(values: Array) -> NDArray[np.uint8]:
    """RGB colours (..., 3) of values from 0 to 1."""
    anchors = np.array([list(bytes.fromhex(code)) for code in _INFERNO.split()])
    at = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, at, anchors[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def overlay(picture: Image.Image, weights: Array, size: Size) -> Image.Image:
    """The picture in grey at `size`, lit by a smooth heat map of weights (rows, columns): darkest at the least."""
    low, high = float(weights.min()), float(weights.max())
    unit = (weights - low) / (high - low) if high > low else np.zeros_like(weights)
    smooth = Image.fromarray(unit.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    heat = colours(np.clip(np.asarray(smooth, np.float64), 0, 1)).astype(np.float64)
    grey = np.asarray(scaled(picture.convert("L"), size), np.float64)[..., None]
    mixed = heat * (0.55 + 0.45 * grey / 255) + 0.3 * grey * (1 - heat / 255)
    return Image.fromarray(mixed.round().astype(np.uint8))


# ---- the drawing -------------------------------------------------------------------------------------------------

_WIDTH, _GAP = 1320, 28  # pixels: of the content, between panels
_PANEL, _HEAD = 430, 312  # the longest edge of a large panel, and of a head's
_BAR = (221, 81, 58)  # a colour


def draw(
    picture: Image.Image,
    flow: Array,
    heads: Array,
    *,
    layer: int,
    title: str,
    subtitle: str,
    predictions: Sequence[tuple[str, float]] = (),
) -> Image.Image:
    """The picture, the rollout `flow` (rows, columns) over it, `predictions` as bars, and each of `heads` over it.

    heads: (h, rows, columns), of the layer of that number. The result is 1416 pixels wide.
    """
    columns, edge = _columns(len(heads))
    panel, head = fit(picture.size, _PANEL), fit(picture.size, edge)
    top, lines = 150, math.ceil(len(heads) / columns)
    middle = top + 40 + max(panel[1], 64 * len(predictions)) + 56
    height = middle + 52 + lines * (head[1] + 58) + MARGIN - 24
    canvas = _Drawing((_WIDTH + 2 * MARGIN, height))
    canvas.text((MARGIN, 40), title, LARGE, INK, _WIDTH)
    canvas.text((MARGIN, 98), subtitle, SMALL, GREY, _WIDTH)

    for left, caption, image in (
        (MARGIN, f"Picture, {picture.width} x {picture.height} px", scaled(picture, panel)),
        (MARGIN + _PANEL + _GAP, "Attention rollout, all layers", overlay(picture, flow, panel)),
    ):
        canvas.text((left, top), caption, SMALL, GREY, _PANEL)
        canvas.panel((left, top + 40), _PANEL, image)
    left = MARGIN + 2 * _PANEL + _GAP + 16
    canvas.legend((left, top + 40), panel[1], flow)
    canvas.bars((left + 120, top), MARGIN + _WIDTH - left - 120, predictions)

    heading = f"Heads of layer {layer}: what the CLS token attends to, each up to the share shown"
    canvas.text((MARGIN, middle), heading, MEDIUM, INK, _WIDTH)
    for i, weights in enumerate(heads):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (edge + _GAP), middle + 52 + row * (head[1] + 58)
        canvas.panel((x, y), edge, overlay(picture, weights, head))
        canvas.text((x, y + head[1] + 8), f"head {i}", SMALL, INK, edge)
        canvas.text_at_right((x, y + head[1] + 8), edge, _percent(weights.max()))
    return canvas.image


def _columns(heads: int) -> tuple[int, int]:
    """How many heads stand side by side, and the longest edge of each."""
    columns = 6 if heads == 12 else math.ceil(heads / math.ceil(heads / 8))
    return columns, min(_HEAD, (_WIDTH - (columns - 1) * _GAP) // columns)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


class _Drawing(Canvas):
    """The canvas of a drawing of attention."""

    def legend(self, at: Size, height: int, weights: Array) -> None:
        """The colours from the greatest weight, at the top, to the least."""
        ramp = colours(np.linspace(1, 0, height)[:, None].repeat(22, axis=1))
        self.image.paste(Image.fromarray(ramp), at)
        self.text((at[0] + 32, at[1] - 4), _percent(weights.max()), SMALL, GREY, 88)
        if height > 60:
            self.text((at[0] + 32, at[1] + height - 22), _percent(weights.min()), SMALL, GREY, 88)

    def bars(self, at: Size, width: int, predictions: Sequence[tuple[str, float]]) -> None:
        """A line of label and score, and a bar, for each prediction."""
        left, top = at
        if predictions:
            self.text(at, "Predictions", SMALL, GREY, width)
        for i, (label, score) in enumerate(predictions):
            y = top + 40 + 64 * i
            self.text((left, y), label, MEDIUM, INK, width - 100)
            self.text_at_right((left, y + 4), width, _percent(score))
            self.pen.rectangle((left, y + 36, left + width, y + 42), fill=LINE)
            self.pen.rectangle((left, y + 36, left + round(width * min(max(score, 0), 1)), y + 42), fill=_BAR)
