"""Maps over a picture, drawn: of one picture on a page of its own, of several in rows of a sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vit_core.app.canvas import GREY, INK, LARGE, LINE, MARGIN, MEDIUM, PALE, SMALL, Canvas, Size, fit, scaled

Array = NDArray[Any]


class Map(NamedTuple):
    """What is drawn over a picture, and its caption, with a note at the right.

    values: weights (rows, columns), booleans (rows, columns) of patches that are kept, or colours (rows, columns, 3)
    from 0 to 1.
    """

    values: Array
    caption: str
    note: str = ""


@dataclass
class View:
    """A picture, None where it can't be read, the map of it all, and those of heads, tokens or components.

    predictions: labels and scores, the highest first.
    """

    name: str
    picture: Image.Image | None = None
    map: Map | None = None
    parts: list[Map] = field(default_factory=list)
    predictions: Sequence[tuple[str, float]] = ()

    @property
    def title(self) -> str:
        """What the picture is of."""
        return f"{self.predictions[0][0]} ({percent(self.predictions[0][1])})" if self.predictions else ""


# ---- colours -----------------------------------------------------------------------------------------------------

# Eleven colours of inferno (S. van der Walt and N. Smith, public domain): lightness grows evenly from black to pale.
_INFERNO = "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4"


def colours(values: Array) -> NDArray[np.uint8]:
    """RGB colours (..., 3) of values from 0 to 1."""
    anchors = np.array([list(bytes.fromhex(code)) for code in _INFERNO.split()])
    at = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(values, at, anchors[:, c]) for c in range(3)], axis=-1).round().astype(np.uint8)


def overlay(picture: Image.Image, values: Array, size: Size) -> Image.Image:
    """The values of a `Map` over its picture, at `size`."""
    if values.ndim == 3:
        return Image.fromarray((255 * values).round().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return _kept(picture, values, size) if values.dtype == bool else _lit(picture, values, size)


def _lit(picture: Image.Image, weights: Array, size: Size) -> Image.Image:
    """The picture in grey, lit by a smooth heat map of weights (rows, columns): darkest at the least."""
    low, high = float(weights.min()), float(weights.max())
    unit = (weights - low) / (high - low) if high > low else np.zeros_like(weights)
    smooth = Image.fromarray(unit.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    heat = colours(np.clip(np.asarray(smooth, np.float64), 0, 1)).astype(np.float64)
    grey = np.asarray(scaled(picture.convert("L"), size), np.float64)[..., None]
    mixed = heat * (0.55 + 0.45 * grey / 255) + 0.3 * grey * (1 - heat / 255)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _kept(picture: Image.Image, kept: Array, size: Size) -> Image.Image:
    """The picture as it is in the patches that are kept, in a colour of the scale; dark elsewhere."""
    mask = Image.fromarray(kept).resize(size, Image.Resampling.NEAREST)
    shown = np.asarray(scaled(picture.convert("RGB"), size), np.float64)
    within, without = 0.55 * shown + 0.45 * np.array(_BAR), 0.25 * shown
    return Image.fromarray(np.where(np.asarray(mask)[..., None], within, without).round().astype(np.uint8))


def cut_out(picture: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """The picture, transparent where the mask (height, width) is false."""
    found = picture.convert("RGB")
    found.putalpha(Image.fromarray(mask).convert("L"))
    return found


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent."""
    return f"{100 * share:.{digits}f} %"


def ends(low: float, high: float) -> tuple[str, str]:
    """Two shares in per cent, with as many digits as it takes to tell them apart."""
    digits = next((n for n in range(1, 17) if percent(low, n) != percent(high, n)), 1)
    return percent(low, digits), percent(high, digits)


# ---- a page of one picture ---------------------------------------------------------------------------------------

_WIDTH, _GAP = 1320, 28  # pixels: of the content, between panels
_PANEL, _HEAD = 430, 312  # the longest edge of a large panel, and of a head's
_BAR = (221, 81, 58)  # a colour


def draw(view: View, *, title: str, subtitle: str, heading: str) -> Image.Image:
    """The picture, its map over it, its predictions as bars, and under a heading each of its parts over it.

    The result is 1416 pixels wide.
    """
    assert view.picture is not None and view.map is not None
    columns, edge = _columns(len(view.parts))
    panel, small = fit(view.picture.size, _PANEL), fit(view.picture.size, edge)
    top, lines = 150, math.ceil(len(view.parts) / columns)
    middle = top + 40 + max(panel[1], 64 * len(view.predictions)) + 56
    canvas = _Drawing((_WIDTH + 2 * MARGIN, middle + 52 + lines * (small[1] + 58) + MARGIN - 24))
    canvas.text((MARGIN, 40), title, LARGE, INK, _WIDTH)
    canvas.text((MARGIN, 98), subtitle, SMALL, GREY, _WIDTH)

    caption = f"Picture, {view.picture.width} x {view.picture.height} px"
    canvas.part((MARGIN, top), _PANEL, caption, scaled(view.picture, panel))
    caption = f"{view.map.caption} {view.map.note}"
    canvas.part((MARGIN + _PANEL + _GAP, top), _PANEL, caption, overlay(view.picture, view.map.values, panel))
    left = MARGIN + 2 * _PANEL + _GAP + 16
    if view.map.values.ndim == 2:
        canvas.legend((left, top + 40), panel[1], view.map.values)
    canvas.bars((left + 120, top), MARGIN + _WIDTH - left - 120, view.predictions)

    canvas.text((MARGIN, middle), heading, MEDIUM, INK, _WIDTH)
    for i, each in enumerate(view.parts):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (edge + _GAP), middle + 52 + row * (small[1] + 58)
        canvas.panel((x, y), edge, overlay(view.picture, each.values, small))
        canvas.text((x, y + small[1] + 8), each.caption, SMALL, INK, edge)
        canvas.text_at_right((x, y + small[1] + 8), edge, each.note)
    return canvas.image


def _columns(parts: int) -> tuple[int, int]:
    """How many parts stand side by side, and the longest edge of each."""
    columns = 6 if parts == 12 else math.ceil(parts / math.ceil(parts / 8))
    return columns, min(_HEAD, (_WIDTH - (columns - 1) * _GAP) // columns)


class _Drawing(Canvas):
    """The canvas of a drawing of maps."""

    def part(self, at: Size, width: int, caption: str, image: Image.Image) -> None:
        """An image in a frame below its caption."""
        self.text(at, caption, SMALL, GREY, width)
        self.panel((at[0], at[1] + 40), width, image)

    def square(self, at: Size, image: Image.Image) -> None:
        """An image in the middle of a square of a sheet."""
        x, y = at
        self.pen.rectangle((x - 1, y - 1, x + _EDGE, y + _EDGE), fill=PALE, outline=LINE)
        self.image.paste(image, (x + (_EDGE - image.width) // 2, y + (_EDGE - image.height) // 2))

    def legend(self, at: Size, height: int, weights: Array) -> None:
        """The colours from the greatest weight, at the top, to the least."""
        ramp = colours(np.linspace(1, 0, height)[:, None].repeat(22, axis=1))
        self.image.paste(Image.fromarray(ramp), at)
        least, greatest = ends(float(weights.min()), float(weights.max()))
        self.text((at[0] + 32, at[1] - 4), greatest, SMALL, GREY, 88)
        if height > 60:
            self.text((at[0] + 32, at[1] + height - 22), least, SMALL, GREY, 88)

    def bars(self, at: Size, width: int, predictions: Sequence[tuple[str, float]]) -> None:
        """A line of label and score, and a bar, for each prediction."""
        left, top = at
        if predictions:
            self.text(at, "Predictions", SMALL, GREY, width)
        for i, (label, score) in enumerate(predictions):
            y = top + 40 + 64 * i
            self.text((left, y), label, MEDIUM, INK, width - 100)
            self.text_at_right((left, y + 4), width, percent(score))
            self.pen.rectangle((left, y + 36, left + width, y + 42), fill=LINE)
            self.pen.rectangle((left, y + 36, left + round(width * min(max(score, 0), 1)), y + 42), fill=_BAR)


# ---- a sheet of several ------------------------------------------------------------------------------------------

_EDGE, _BETWEEN, _CAPTION = 150, 16, 60  # pixels of a square, between squares, and of the text below a picture
_LEAST = 900  # pixels of the width, which the text above needs
MOST_ROWS = 64  # so that the sheet fits into every format


def sheet(views: Sequence[View], *, title: str, subtitle: str) -> Image.Image:
    """A row for each picture: itself, its map, and its parts, under their captions. Not all can be unreadable."""
    first = next(view for view in views if view.map is not None)
    assert first.map is not None
    captions = ["Picture", first.map.caption, *(_caption(i, views) for i in range(len(first.parts)))]
    step, top = _EDGE + _BETWEEN, 190
    width, height = max(len(captions) * step - _BETWEEN, _LEAST), top + len(views) * (_EDGE + _CAPTION) + MARGIN - 24
    canvas = _Drawing((width + 2 * MARGIN, height))
    canvas.text((MARGIN, 40), title, LARGE, INK, width)
    canvas.text((MARGIN, 98), subtitle, SMALL, GREY, width)
    for i, caption in enumerate(captions):
        canvas.text((MARGIN + i * step, top - 34), caption, SMALL, GREY, _EDGE)
    for row, view in enumerate(views):
        y = top + row * (_EDGE + _CAPTION)
        if view.picture is None:
            canvas.text((MARGIN, y + _EDGE // 2 - 12), "can't be read", SMALL, GREY, _EDGE)
        for i, square in enumerate(_squares(view)):
            canvas.square((MARGIN + i * step, y), square)
        note = f"{view.map.caption} {view.map.note}" if view.map and view.map.note else ""
        canvas.text((MARGIN, y + _EDGE + 6), ", ".join(filter(None, (view.name, view.title, note))), SMALL, INK, width)
    return canvas.image


def _caption(part: int, views: Sequence[View]) -> str:
    """That of a column of parts, with their note where it is the same for all pictures."""
    caption, *others = {(view.parts[part].caption, view.parts[part].note) for view in views if view.map is not None}
    return caption[0] if others or not caption[1] else ", ".join(caption)


def _squares(view: View) -> list[Image.Image]:
    """The pictures of a row: none where the picture can't be read."""
    if view.picture is None or view.map is None:
        return []
    size = fit(view.picture.size, _EDGE)
    maps = (overlay(view.picture, each.values, size) for each in (view.map, *view.parts))
    return [scaled(view.picture, size), *maps]
