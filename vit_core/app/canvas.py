"""A white image to draw on, with text and pictures in frames: what the drawings of this package are made on."""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Size = tuple[int, int]  # (width, height) in pixels
Colour = tuple[int, int, int]

MARGIN = 48  # pixels around everything
INK, GREY, LINE, PALE = (24, 24, 27), (113, 113, 122), (228, 228, 231), (244, 244, 245)
LARGE, MEDIUM, SMALL = 44, 25, 20  # sizes of text


def scaled(picture: Image.Image, size: Size) -> Image.Image:
    """The picture at `size`: its pixels as crisp squares where it is far smaller, smooth otherwise."""
    crisp = size[0] >= 3 * picture.width
    return picture.resize(size, Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS)


def fit(size: Size, edge: int) -> Size:
    """The size with its longer side scaled to `edge`."""
    scale = edge / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def lettered(text: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """The text, and a font of its letters: Pillow's own for ASCII, else DejaVu Sans, the system's or matplotlib's.

    A letter that the font lacks loses its accent; without one it becomes `?`, and is warned of.
    """
    font: Any = ImageFont.load_default(size)
    if text.isascii() and text.isprintable():
        return text, font
    font = next(_dejavu(size), font)
    lacking = _glyph(font, "\U0010ffff")  # which is no letter

    def has(letter: str) -> bool:
        return letter.isprintable() and _glyph(font, letter) != lacking

    def shown(letter: str) -> str:
        plain = "".join(c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c))
        return letter if has(letter) else plain if plain and all(map(has, plain)) else "?"

    drawn = "".join(map(shown, unicodedata.normalize("NFC", text)))
    if drawn.count("?") > text.count("?"):
        warnings.warn(
            "the picture has ? in the place of letters that no font here has: DejaVu Sans, which comes with matplotlib "
            "as well, has those of most alphabets.",
            stacklevel=2,
        )
    return drawn, font


def _dejavu(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    """DejaVu Sans, where it is found."""
    matplotlib = find_spec("matplotlib")
    folders = (matplotlib and matplotlib.submodule_search_locations) or []
    for path in (Path("DejaVuSans.ttf"), *(Path(each, "mpl-data/fonts/ttf/DejaVuSans.ttf") for each in folders)):
        with suppress(OSError):
            yield ImageFont.truetype(path, size)


def _glyph(font: ImageFont.FreeTypeFont, letter: str) -> tuple[Size, bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


class Canvas:
    """A white image to draw on."""

    def __init__(self, size: Size) -> None:
        self.image = Image.new("RGB", size, "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, at: Size, text: str, size: int, colour: Colour, width: int) -> None:
        """One line, cut with an ellipsis where it is wider than `width`."""
        text, font = lettered(text[: width + 1], size)  # no letter is narrower than a pixel
        if font.getlength(text) > width:
            while text and font.getlength(f"{text}...") > width:
                text = text[:-1]
            text += "..."
        self.pen.text(at, text, font=font, fill=colour)

    def text_at_right(self, at: Size, width: int, text: str) -> None:
        """One line, in grey, that ends where the `width` does."""
        start = at[0] + width - math.ceil(ImageFont.load_default(SMALL).getlength(text))
        self.pen.text((start, at[1]), text, font=ImageFont.load_default(SMALL), fill=GREY)

    def panel(self, at: Size, width: int, image: Image.Image) -> None:
        """An image in the middle of a frame of its height."""
        x, y = at
        self.pen.rectangle((x - 1, y - 1, x + width, y + image.height), fill=PALE, outline=LINE)
        self.image.paste(image, (x + (width - image.width) // 2, y))
