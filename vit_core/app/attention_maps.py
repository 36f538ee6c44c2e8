"""Where a model looks: attention rollout, and a picture of it.

Paper: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3. NumPy and Pillow only.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[np.float64]
Size = tuple[int, int]  # (width, height) in pixels


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


def scaled(picture: Image.Image, size: Size) -> Image.Image:
    """The picture at `size`: its pixels as crisp squares where it is far smaller, smooth otherwise."""
    crisp = size[0] >= 3 * picture.width
    return picture.resize(size, Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)


# ---- the drawing -------------------------------------------------------------------------------------------------

_MARGIN, _WIDTH, _GAP = 48, 1320, 28  # pixels: around everything, of the content, between panels
_PANEL, _HEAD = 430, 312  # the longest edge of a large panel, and of a head's
Colour = tuple[int, int, int]
_INK, _GREY, _LINE, _PALE, _BAR = (24, 24, 27), (113, 113, 122), (228, 228, 231), (244, 244, 245), (221, 81, 58)
_LARGE, _MEDIUM, _SMALL = 44, 25, 20  # sizes of text


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
    panel, head = _fit(picture.size, _PANEL), _fit(picture.size, edge)
    top, lines = 150, math.ceil(len(heads) / columns)
    middle = top + 40 + max(panel[1], 64 * len(predictions)) + 56
    height = middle + 52 + lines * (head[1] + 58) + _MARGIN - 24
    canvas = _Canvas((_WIDTH + 2 * _MARGIN, height))
    canvas.text((_MARGIN, 40), title, _LARGE, _INK, _WIDTH)
    canvas.text((_MARGIN, 98), subtitle, _SMALL, _GREY, _WIDTH)

    for left, caption, image in (
        (_MARGIN, f"Picture, {picture.width} x {picture.height} px", scaled(picture, panel)),
        (_MARGIN + _PANEL + _GAP, "Attention rollout, all layers", overlay(picture, flow, panel)),
    ):
        canvas.text((left, top), caption, _SMALL, _GREY, _PANEL)
        canvas.panel((left, top + 40), _PANEL, image)
    left = _MARGIN + 2 * _PANEL + _GAP + 16
    canvas.legend((left, top + 40), panel[1], flow)
    canvas.bars((left + 120, top), _MARGIN + _WIDTH - left - 120, predictions)

    heading = f"Heads of layer {layer}: what the CLS token attends to, each up to the share shown"
    canvas.text((_MARGIN, middle), heading, _MEDIUM, _INK, _WIDTH)
    for i, weights in enumerate(heads):
        row, column = divmod(i, columns)
        x, y = _MARGIN + column * (edge + _GAP), middle + 52 + row * (head[1] + 58)
        canvas.panel((x, y), edge, overlay(picture, weights, head))
        canvas.text((x, y + head[1] + 8), f"head {i}", _SMALL, _INK, edge)
        canvas.text_at_right((x, y + head[1] + 8), edge, _percent(weights.max()))
    return canvas.image


def _columns(heads: int) -> tuple[int, int]:
    """How many heads stand side by side, and the longest edge of each."""
    columns = 6 if heads == 12 else math.ceil(heads / math.ceil(heads / 8))
    return columns, min(_HEAD, (_WIDTH - (columns - 1) * _GAP) // columns)


def _fit(size: Size, edge: int) -> Size:
    """The size with its longer side scaled to `edge`."""
    scale = edge / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def printable(text: str) -> str:
    """The text in characters that Pillow's own font has: accents are dropped, what is left over becomes `?`."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if " " <= c <= "~" else "?" for c in plain)


class _Canvas:
    """A white image to draw on."""

    def __init__(self, size: Size) -> None:
        self.image = Image.new("RGB", size, "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, at: Size, text: str, size: int, colour: Colour, width: int) -> None:
        """One line, cut with an ellipsis where it is wider than `width`."""
        font = ImageFont.load_default(size)
        text = printable(text)[: width + 1]  # no letter is narrower than a pixel
        if font.getlength(text) > width:
            while text and font.getlength(f"{text}...") > width:
                text = text[:-1]
            text += "..."
        self.pen.text(at, text, font=font, fill=colour)

    def text_at_right(self, at: Size, width: int, text: str) -> None:
        """One line, in grey, that ends where the `width` does."""
        start = at[0] + width - math.ceil(ImageFont.load_default(_SMALL).getlength(text))
        self.pen.text((start, at[1]), text, font=ImageFont.load_default(_SMALL), fill=_GREY)

    def panel(self, at: Size, width: int, image: Image.Image) -> None:
        """An image in the middle of a frame of its height."""
        x, y = at
        self.pen.rectangle((x - 1, y - 1, x + width, y + image.height), fill=_PALE, outline=_LINE)
        self.image.paste(image, (x + (width - image.width) // 2, y))

    def legend(self, at: Size, height: int, weights: Array) -> None:
        """The colours from the greatest weight, at the top, to the least."""
        ramp = colours(np.linspace(1, 0, height)[:, None].repeat(22, axis=1))
        self.image.paste(Image.fromarray(ramp), at)
        self.text((at[0] + 32, at[1] - 4), _percent(weights.max()), _SMALL, _GREY, 88)
        if height > 60:
            self.text((at[0] + 32, at[1] + height - 22), _percent(weights.min()), _SMALL, _GREY, 88)

    def bars(self, at: Size, width: int, predictions: Sequence[tuple[str, float]]) -> None:
        """A line of label and score, and a bar, for each prediction."""
        left, top = at
        if predictions:
            self.text(at, "Predictions", _SMALL, _GREY, width)
        for i, (label, score) in enumerate(predictions):
            y = top + 40 + 64 * i
            self.text((left, y), label, _MEDIUM, _INK, width - 100)
            self.text_at_right((left, y + 4), width, _percent(score))
            self.pen.rectangle((left, y + 36, left + width, y + 42), fill=_LINE)
            self.pen.rectangle((left, y + 36, left + round(width * min(max(score, 0), 1)), y + 42), fill=_BAR)
