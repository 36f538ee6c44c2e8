"""A picture of pictures: one that was asked about, and those that are like it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from vit_core.app.canvas import GREY, INK, LARGE, LINE, MARGIN, PALE, SMALL, Canvas, fit, scaled

_COLUMNS, _EDGE, _GAP = 6, 240, 24  # pictures side by side, pixels of each, and between them
_TOP, _CAPTION = 132, 68  # pixels above the first row, and of the text below a picture


class Cell(NamedTuple):
    """A picture, None where it can't be read, and the two lines below it."""

    picture: Image.Image | None
    name: str
    note: str


def contact_sheet(title: str, cells: Sequence[Cell]) -> Image.Image:
    """The pictures in rows of six, each in a square; the first, which was asked about, in a dark frame."""
    columns = min(_COLUMNS, len(cells))
    width = columns * (_EDGE + _GAP) - _GAP
    height = _TOP + math.ceil(len(cells) / columns) * (_EDGE + _CAPTION + _GAP) - _GAP + MARGIN
    canvas = Canvas((width + 2 * MARGIN, height))
    canvas.text((MARGIN, 40), title, LARGE, INK, width)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        x, y = MARGIN + column * (_EDGE + _GAP), _TOP + row * (_EDGE + _CAPTION + _GAP)
        frame = (x - 3, y - 3, x + _EDGE + 2, y + _EDGE + 2)
        canvas.pen.rectangle(frame, fill=PALE, outline=LINE if i else INK, width=1 if i else 3)
        if cell.picture is None:
            canvas.text((x + 12, y + _EDGE // 2 - 12), "can't be read", SMALL, GREY, _EDGE - 24)
        else:
            picture = scaled(cell.picture, fit(cell.picture.size, _EDGE))
            canvas.image.paste(picture, (x + (_EDGE - picture.width) // 2, y + (_EDGE - picture.height) // 2))
        canvas.text((x, y + _EDGE + 10), cell.name, SMALL, INK, _EDGE)
        canvas.text((x, y + _EDGE + 36), cell.note, SMALL, GREY, _EDGE)
    return canvas.image
