"""A picture from whatever it comes in: anything `load_image` takes, an address, a data URL or base64."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator
from http.client import HTTPException, IncompleteRead
from io import BytesIO
from os.path import exists, lexists
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import Request, urlopen

from PIL import Image, ImageOps

from vit_core.pictures.images import heif_hint, load_image, name_of

_MOST_BYTES, _MOST_SECONDS = 1 << 28, 600  # of a picture from an address
_BASE64 = re.compile(r"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
_UNWRAPPED = str.maketrans("", "", "\r\n")
_ADDRESSES = "http://", "https://"
_SHOWN = 5  # kinds of files
_SAFE = "/%:=&?~+!$,;'@()*[]"  # what stays as it is in an address


def read_image(source: Any, timeout: float | None = None) -> Image.Image:
    """The picture in anything `load_image` takes, upright, at an http(s) address, or in a data URL or base64.

    An address may hold user:password@, which that host alone is told, and no error. It may be silent for `timeout`
    seconds, 30 if None. Raises OSError or ValueError.
    """
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(load_image(source))
    if not isinstance(source, str):
        return load_image(source)
    if _is_encoded(source):
        try:
            return load_image(b64decode(source.rpartition(",")[2].translate(_UNWRAPPED), validate=True))
        except binascii.Error as error:
            raise ValueError(f"The image {source[:40]!r}... is no base64 ({error}): pass a path or bytes.") from error
    if not source.startswith(_ADDRESSES):
        return load_image(source)
    parts = urlsplit(source)
    login, _, host = parts.netloc.rpartition("@")
    path, query = (quote(each, _SAFE) for each in (parts.path, parts.query))
    try:
        address = urlunsplit((parts.scheme, host.encode("idna").decode(), path, query, ""))
    except UnicodeError as error:
        raise OSError(f"{host[:100]} is no name of a host ({error}): check the address.") from error
    name, request = name_of(address), Request(address, headers={"User-Agent": "vit-trio"})
    if login:
        request.add_unredirected_header("Authorization", f"Basic {b64encode(unquote(login).encode()).decode()}")
    try:
        with urlopen(request, timeout=timeout or 30) as response:
            content = b"".join(_chunks(response, name))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()
        raise OSError(
            f"{name} can't be fetched ({getattr(error, 'reason', error)}): check the address and the network."
        ) from error
    file = BytesIO(content)
    file.name = name  # for errors to name
    return load_image(file)


def is_missing(source: Any) -> bool:
    """Whether it is a path where nothing is."""
    return isinstance(source, str) and not (source.startswith(_ADDRESSES) or _is_encoded(source) or lexists(source))


def counted_suffixes(files: Iterable[Path]) -> str:
    """How many files there are of each suffix, the most frequent first, and what reads those of phones."""
    found = Counter(path.suffix.lower() for path in files)
    shown = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in found.most_common(_SHOWN))
    more = f" and {len(found) - _SHOWN} other kinds" if len(found) > _SHOWN else ""
    return shown + more + heif_hint(*found)


def _is_encoded(source: str) -> bool:
    encoded = len(source) >= 64 and _BASE64.fullmatch(source) is not None and not exists(source)
    return source.startswith("data:image/") or encoded


def _chunks(response: Any, name: str) -> Iterator[bytes]:
    """What an address answers, piece by piece. Raises ValueError for more than a picture has, and for too long."""
    size, stated, end = 0, response.length, monotonic() + _MOST_SECONDS
    while (stated is None or size < stated) and (chunk := response.read1(1 << 16)):
        if (size := size + len(chunk)) > _MOST_BYTES:
            raise ValueError(f"{name} answers with more than {_MOST_BYTES} bytes: save it and pass the file.")
        if monotonic() > end:
            raise ValueError(f"{name} takes more than {_MOST_SECONDS} seconds to answer: save it and pass the file.")
        yield chunk
    if stated is not None and size < stated:
        raise IncompleteRead(b"", stated - size)
