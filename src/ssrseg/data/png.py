"""RGB PNGs, decoded only as far down as a crop needs them."""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

isal: Any
"""The same as zlib, three times faster; absent where it is not installed."""
try:
    isal = importlib.import_module("isal.isal_zlib")
except ImportError:
    isal = None

PLAIN = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tIME", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD"}
"""Chunks that neither turn an image nor make libpng complain of them, once per image."""
TEXTS = {b"tEXt", b"iTXt", b"zTXt"}
ORIENTED = (b"Raw profile", b"XML:com.adobe.xmp")
"""How texts begin that may hold an orientation."""
Pixels = npt.NDArray[np.uint8]
"""RGB (H, W, 3)."""
BLOCK = 65_535
"""Bytes in a block of a stream that is not compressed."""


def is_plain(encoded: bytes) -> bool:
    """Whether a PNG is 8-bit RGB, not interlaced, upright and whole."""
    if encoded[24:26] != b"\x08\x02" or encoded[28] != 0:
        return False
    kinds = set()
    for kind, content in _chunks(encoded):
        if kind not in PLAIN and (kind not in TEXTS or bytes(content[:20]).startswith(ORIENTED)):
            return False
        kinds.add(kind)
    return kinds >= {b"IDAT", b"IEND"}


def decode_rows(encoded: bytes, rows: int) -> Pixels | None:
    """The first `rows` rows at least, (h, W, 3), of a plain PNG; nothing when it is broken."""
    if isal is not None:
        encoded = inflated(encoded, rows) or b"broken"
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    return None if image is None else np.asarray(image, np.uint8)


def inflated(encoded: bytes, rows: int) -> bytes | None:
    """A plain PNG of the first rows alone, not compressed; nothing when it is broken.

    What OpenCV does with a PNG is half inflating, all of it and slowly. Of this one it has only the filters to undo.
    """
    width, height = struct.unpack_from(">II", encoded, 16)
    rows = min(rows, height)
    length = rows * (1 + 3 * width)
    compressed = b"".join(content for kind, content in _chunks(encoded, checked=True) if kind == b"IDAT")
    try:
        filtered = isal.decompressobj().decompress(compressed, length)
    except isal.error:
        return None
    if len(filtered) < length:
        return None
    header = struct.pack(">II", width, rows) + encoded[24:29]
    chunks = _chunk(b"IHDR", [header]), _chunk(b"IDAT", _stored(filtered)), _chunk(b"IEND", [])
    return b"".join([encoded[:8], *(part for chunk in chunks for part in chunk)])


def _chunks(encoded: bytes, checked: bool = False) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and content of each whole chunk; if `checked`, until one is damaged."""
    view, place = memoryview(encoded), 8
    while place + 12 <= len(encoded):
        (length,) = struct.unpack_from(">I", encoded, place)
        end = place + 8 + length
        if end + 4 > len(encoded):
            return
        if checked and isal.crc32(view[place + 4 : end]) != struct.unpack_from(">I", encoded, end)[0]:
            return
        yield encoded[place + 4 : place + 8], view[place + 8 : end]
        place = end + 4


Parts = list[bytes | memoryview]
"""Of a file, in order: joined once, as copies cost more than checksums."""


def _chunk(kind: bytes, content: Parts) -> Parts:
    check = functools.reduce(lambda known, part: isal.crc32(part, known), content, isal.crc32(kind))
    return [struct.pack(">I", sum(map(len, content))), kind, *content, struct.pack(">I", check)]


def _stored(content: bytes) -> Parts:
    """A zlib stream without compression."""
    view = memoryview(content)
    parts: Parts = [b"\x78\x01"]
    for start in range(0, len(content), BLOCK):
        block = view[start : start + BLOCK]
        last = start + BLOCK >= len(content)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    return [*parts, struct.pack(">I", isal.adler32(content))]
