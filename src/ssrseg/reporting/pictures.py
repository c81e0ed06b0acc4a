"""Pictures of a run, small enough to travel inside one page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ssrseg.runs.records import Sheet

MAX_SIZE = (1200, 1600)
"""(width, height) in pixels: sharp enough on a phone and on half a desktop screen."""


@dataclass(frozen=True)
class Picture:
    """A picture as a `data:` address."""

    caption: str
    uri: str
    width: int
    height: int


@dataclass
class Album:
    """Embeds pictures until a budget of characters is spent."""

    budget: int

    def embed(self, sheet: Sheet) -> Picture | None:
        """The picture, downscaled; `None` when it is unreadable (half-written) or the budget is spent."""
        if self.budget <= 0:
            return None
        try:
            with Image.open(sheet.path) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError):  # Pillow's word for a broken PNG is SyntaxError
            return None
        image.thumbnail(MAX_SIZE)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling=0)  # full colour resolution, for the edges of label maps
        picture = Picture(sheet.view, data_uri(buffer.getvalue(), "jpeg"), *image.size)
        self.budget -= len(picture.uri)
        return picture


def data_uri(content: bytes, kind: str) -> str:
    """A picture file as an address; `kind` is `jpeg` or `png`."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()


def spaced(numbers: Sequence[int], count: int) -> list[int]:
    """At most `count` of the numbers, evenly spaced, the first and the last among them; the last when count is 1."""
    if len(numbers) <= count:
        return list(numbers)
    if count == 1:
        return [numbers[-1]]
    return [numbers[round(i * (len(numbers) - 1) / (count - 1))] for i in range(count)]
