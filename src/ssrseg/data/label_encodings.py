"""Label files as they are stored: values, palettes or colours, and what is transparent in them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from ssrseg.config.data import Channel
from ssrseg.data.encodings import BROKEN, describe_tiff, load_array, lossy_format, reason_of, upright
from ssrseg.data.images import TAIL, TIFF, decode, orientation_of
from ssrseg.data.polygons import draw_polygons
from ssrseg.data.storage import read_bytes
from ssrseg.errors import UserError

Pixels = npt.NDArray[Any]
"""Values (H, W), of any type, or RGB bytes (H, W, 3)."""
MODES = ("L", "LA", "P", "PA", "I", "F", "1", "RGB", "RGBA")
CHANNELS = get_args(Channel)
"""In the order of a file."""
EXPECTED = (
    "expected one channel of whole numbers, a palette image, or the colours of classes as RGB of 8 bits. "
    "`gdal_translate -b 1 -ot UInt16 IN OUT` writes the first band so; of scores per class, the largest is the value "
    "(`scores.argmax(axis)`)."
)
DEEP = 257
"""A byte of a colour times this is the colour in 16 bits."""


class UnknownEncoding(UserError):
    """A label file that is whole, but holds no class values or colours as they are read here."""


class LossyLabel(UserError):
    """A label file whose compression has changed its values."""


@dataclass(frozen=True)
class StoredLabels:
    """A label file as it is stored, upright."""

    pixels: Pixels
    palette: npt.NDArray[np.uint8] | None = None
    """RGB of each index (N, 3)."""
    clear: npt.NDArray[np.bool_] | None = None
    """Where it is transparent (H, W), which is ignored; absent where nothing or everything is."""
    transparent: tuple[int, ...] = ()
    """Indices of the palette that are: ignored where they are no class."""


def read_stored_labels(path: Path, channel: Channel | None = None) -> StoredLabels:
    """Read a label file as it is stored, or one channel of it; raises `UserError` for what is no label."""
    encoded = read_bytes(path)
    if encoded.lstrip()[:1] == b"{":
        return StoredLabels(draw_polygons(encoded, path))
    if loss := lossy_format(encoded):
        raise LossyLabel(f"{path} is {loss}: its compression has changed the labels. Write labels as PNG.")
    try:
        if path.suffix.lower() == ".npy":
            return _split(_as_label(load_array(encoded), path), channel, path, alpha=False)
        if encoded[:4] in TIFF and (mode := describe_tiff(encoded))[0] not in ("P", "PA", "1"):
            return _split(_read_tiff(encoded, *mode[1:], path), channel, path, alpha=mode[0] in ("LA", "RGBA"))
        with Image.open(io.BytesIO(encoded)) as file:
            if file.mode not in MODES and not file.mode.startswith("I;16"):
                raise UnknownEncoding(f"{path} is a label in {file.mode}: {EXPECTED}")
            palette = file.getpalette("RGB") if file.mode in ("P", "PA") else None
            transparent = _transparent(file)
            # Of a TIFF, Pillow turns what it decodes, and says 1 then.
            pixels = upright(decode(file, encoded), orientation_of(file, encoded[-TAIL:]))
    except (*BROKEN, imagecodecs.TiffError) as error:
        raise UserError(f"{path} cannot be read as a label map: {reason_of(error, encoded)}") from error
    if palette is not None:
        indices = pixels if pixels.ndim == 2 else pixels[..., 0]
        return StoredLabels(indices, np.array(palette, np.uint8).reshape(-1, 3), transparent=transparent)
    deep = encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[24:26] in (b"\x10\x02", b"\x10\x06")
    if deep and pixels.dtype == np.uint8:
        # Of 16 bits and three channels, of which Pillow keeps 8 bits, and not those of the label.
        raise UserError(f"{path} cannot be read as a label map: its PNG data are broken.")
    return _split(pixels, channel, path)


def _read_tiff(encoded: bytes, orientation: int, jpeg: bool, path: Path) -> Pixels:
    """Decode a TIFF of any width and sign."""
    if jpeg:
        raise LossyLabel(
            f"{path} is a TIFF with JPEG inside: its compression has changed the labels. Write them as PNG."
        )
    pixels = imagecodecs.tiff_decode(encoded)
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < min(pixels.shape[1:]):  # band by band
        pixels = np.moveaxis(pixels, 0, -1)
    return upright(_as_label(pixels, path), orientation)


def _transparent(file: Image.Image) -> tuple[int, ...]:
    """Return the indices of a palette that are transparent."""
    said = file.info.get("transparency") if file.mode == "P" else None
    if isinstance(said, bytes):
        return tuple(index for index, alpha in enumerate(said) if alpha == 0)
    return () if said is None else (int(said),)


def _as_label(pixels: Pixels, path: Path) -> Pixels:
    """Refuse an array that is neither values nor colours; one of a single band or page loses that axis."""
    if pixels.ndim == 3 and 1 in (pixels.shape[0], pixels.shape[2]):
        pixels = pixels.squeeze(0 if pixels.shape[0] == 1 else 2)
    wide = pixels.ndim == 3 and pixels.shape[2] > 4
    if pixels.dtype.kind not in "biuf" or pixels.ndim not in (2, 3) or wide or not pixels.size:
        raise UnknownEncoding(f"{path} holds {pixels.dtype} {pixels.shape}: {EXPECTED}")
    return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels


def _split(pixels: Pixels, channel: Channel | None, path: Path, *, alpha: bool = True) -> StoredLabels:
    """Separate values or colours from what is transparent, which the last of two or four bands says if it is `alpha`.

    Of 16 bits and three channels, red holds the values, if they are no colours.
    """
    if pixels.ndim == 2:
        return StoredLabels(pixels)
    count, colours = pixels.shape[2], pixels[..., :3]
    if channel is not None:
        number = count - 1 if channel == "alpha" and count in (2, 4) else CHANNELS.index(channel)
        if number >= count:
            raise UserError(f"{path} has {count} channels, and none is {channel}: choose another `channel`.")
        return StoredLabels(pixels[..., number])
    clear = pixels[..., -1] == 0 if alpha and count in (2, 4) else None
    clear = clear if clear is not None and clear.any() and not clear.all() else None
    if count == 2 and alpha:
        return StoredLabels(pixels[..., 0], clear=clear)
    if colours.dtype == np.uint16 and count > 2 and not (colours % DEEP).any():
        return StoredLabels((colours // DEEP).astype(np.uint8), clear=clear)
    scores = colours.dtype not in (np.uint8, np.uint16) and bool((colours != colours[..., :1]).any())
    if count == 2 or scores:
        raise UnknownEncoding(f"{path} holds {pixels.dtype} {pixels.shape}: {EXPECTED}")
    return StoredLabels(colours if colours.dtype == np.uint8 else colours[..., 0], clear=clear)
