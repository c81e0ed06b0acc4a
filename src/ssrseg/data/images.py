"""Image files to pixels: imagecodecs decodes, Pillow reads headers and the rarer kinds."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssrseg.config.data import Bound
from ssrseg.data.encodings import BROKEN, ORIENTATION, describe_tiff, load_array, reason_of, upright
from ssrseg.data.storage import open_file, read_bytes
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError

TAIL = 1 << 16
"""Bytes at the end of a PNG in which its orientation may stand, after the pixels."""

SAMPLE_FORMAT, BITS = 339, 258
"""TIFF tags, a value per band: 1 is unsigned, 2 signed, 3 floats; and how many bits it has."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF, and of a BigTIFF."""

Stretch = tuple[float, float] | None
Reading = int | tuple[int, Stretch, Stretch]
"""Bands of images; and the range of values, or the percentiles of each image, that become 0 and 255 in those of more
than 8 bits or of floats."""
Pixels = npt.NDArray[np.uint8]
"""RGB (H, W, 3), or other bands."""
DECODERS: dict[tuple[str | None, str], Callable[[bytes], npt.NDArray[Any]]] = {
    **{("PNG", mode): imagecodecs.png_decode for mode in ("L", "LA", "RGB", "RGBA", "I", "I;16")},
    **{("JPEG", mode): imagecodecs.jpeg8_decode for mode in ("L", "RGB")},
    **{("WEBP", mode): imagecodecs.webp_decode for mode in ("RGB", "RGBA")},
    ("TIFF", "RGB"): imagecodecs.tiff_decode,
}
"""By format and mode, those that give what Pillow gives; Pillow does palettes, CMYK, one bit, other formats."""


def read_image(path: Path, bands: Reading = 3) -> Tensor:
    """Read an image as bytes (C, H, W) of C = `bands`; as RGB, whatever it was: grey, RGBA, CMYK, 16-bit, EXIF-rotated.

    With other `bands` than 3, it is as it is stored and must have so many. Raises `UserError` when it has not, or the
    file is missing, truncated or no image. `bands` may also say what becomes black and white, see `Reading`.
    """
    return to_tensor(read_pixels(path, bands=bands)[0])


def as_rgb(image: Tensor) -> Tensor:
    """Show an image (C, H, W), or a batch, as RGB: its first three bands, the last of them repeated."""
    bands = image.unbind(-3)
    return image if len(bands) == 3 else torch.stack([bands[min(i, len(bands) - 1)] for i in range(3)], -3)


def parts_of(reading: Reading) -> tuple[int, Stretch, Stretch]:
    """Return the bands, and the values or percentiles that become black and white."""
    return (reading, None, None) if isinstance(reading, int) else reading


def plain(reading: Reading) -> Reading:
    """Return the bands alone where nothing else is said."""
    return parts_of(reading)[0] if parts_of(reading)[1:] == (None, None) else reading


def read_bands(path: Path, value_range: Stretch = None, percentiles: Stretch = None) -> Pixels:
    """Read all bands of a `.npy` or image file as bytes (H, W, C); raises `UserError`.

    Of more than 8 bits, and of floats, what lies in the range, or between the percentiles of the image, is spread over
    the bytes; without either, the upper 8 of 16 bits are used.
    """
    pixels = _stored(path, read_bytes(path))
    stretched = value_range is not None or percentiles is not None
    if not (pixels.dtype in (np.uint8, np.uint16) or (stretched and pixels.dtype.kind in "iuf")):
        ways = f", or {_ranges(pixels)}" if pixels.dtype.kind in "iuf" else ""
        expected = "expected uint8 or uint16 (H, W, bands): convert it"
        raise UserError(f"{path} holds {pixels.dtype} {pixels.shape}, {expected}{ways}.")
    if pixels.dtype != np.uint8 and stretched:
        pixels = _stretched(pixels, value_range, percentiles)
    elif pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return np.ascontiguousarray(pixels)


def _ranges(pixels: npt.NDArray[Any]) -> str:
    """Say what to set so that values of an image that are no bytes become such."""
    known = pixels[np.isfinite(pixels)]
    low, high = np.percentile(known if known.size else np.zeros(1), (1, 99)).tolist()
    say = "say which values are black and white"
    return f"{say}: 'model.value_range=[{low:.4g}, {high:.4g}]' (most of its own) or 'model.percentiles=[1, 99]'"


def _stretched(pixels: npt.NDArray[Any], value_range: Stretch, percentiles: Stretch) -> Pixels:
    known = np.isfinite(pixels)
    low, high = value_range or np.percentile(pixels[known] if known.any() else 0, percentiles or (0, 100)).tolist()
    shares = (pixels.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    return (255 * np.where(known, shares, 0).clip(0, 1) + 0.5).astype(np.uint8)


def _stored(path: Path, encoded: bytes) -> npt.NDArray[Any]:
    """Decode all bands of a `.npy` or image file as they are stored (H, W, C)."""
    try:
        if path.suffix.lower() == ".npy":
            pixels = load_array(encoded)
        elif encoded[:4] in TIFF:
            pixels = imagecodecs.tiff_decode(encoded)
        else:
            with Image.open(io.BytesIO(encoded)) as file:
                if file.mode.startswith("I;16"):
                    pixels = decode(file, encoded)
                else:
                    turned = ImageOps.exif_transpose(file)
                    pixels = np.array(turned.convert("RGB") if turned.mode in ("P", "1") else turned)
                    if _is_deep_png(encoded):
                        pixels = upright(imagecodecs.png_decode(encoded), orientation_of(file, encoded[-TAIL:]))
    except (*BROKEN, imagecodecs.TiffError) as error:
        raise UserError(f"{path} cannot be read as an image: {reason_of(error, encoded)}") from error
    if pixels.ndim not in (2, 3):
        raise UserError(f"{path} holds {pixels.dtype} {pixels.shape}, expected (H, W, bands): convert it.")
    if pixels.ndim == 3 and pixels.shape[0] < min(pixels.shape[1:]):  # band by band
        pixels = np.moveaxis(pixels, 0, -1)
    if encoded[:4] in TIFF:
        pixels = upright(pixels, describe_tiff(encoded)[1])
    stored: npt.NDArray[Any] = pixels.reshape(*pixels.shape[:2], -1)
    return stored


def _is_deep_png(encoded: bytes) -> bool:
    return encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[24:25] == b"\x10"


def deep_values(path: Path) -> tuple[float, float] | None:
    """Return the value that all but a thousandth of an image's are below, and the largest that its 16 bits can hold.

    Nothing for an image of other depth. Raises `UserError` for what is no image.
    """
    encoded = read_bytes(path)
    if not (path.suffix.lower() == ".npy" or encoded[:4] in TIFF or _is_deep_png(encoded)):
        return None
    pixels = _stored(path, encoded)
    return (float(np.percentile(pixels, 99.9)), 65535.0) if pixels.dtype == np.uint16 else None


def read_pixels(path: Path, bound: Bound | None = None, bands: Reading = 3) -> tuple[Pixels, tuple[int, int]]:
    """Read an image as bytes (H, W, C) of C = `bands`, RGB for 3; see `read_image`.

    Args:
        path: the file.
        bound: (width, height). A JPEG that is to be half as large or smaller in it is scaled by 2, 4 or 8 while it is
            decoded, by leaving out frequencies; no image is when absent.
        bands: of the image, see `read_image`.

    Returns:
        The pixels, and the (width, height) that the image has when it is not scaled.
    """
    count, *stretch = parts_of(bands)
    encoded = read_bytes(path)
    deep = stretch != [None, None] and (encoded[:4] in TIFF or _is_deep_png(encoded))
    if count != 3 or path.suffix.lower() == ".npy" or deep or _strange(encoded):
        pixels = read_bands(path, *stretch)
        if count == 3 and (pixels.shape[2] == 1 or (deep and pixels.shape[2] <= 4)):
            pixels = _to_rgb(pixels)
        if (found := pixels.shape[2]) != count:
            train = f"train with model.in_channels={found}, if all images have so many"
            first = " (`gdal_translate -b 1 -b 2 -b 3 IN OUT` keeps three.)" if found > count == 3 else ""
            raise UserError(f"{path} has {found} bands, expected {count}: convert it, or {train}.{first}")
        return pixels, (pixels.shape[1], pixels.shape[0])
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            size = _scale_while_decoding(file, bound) if bound is not None and file.format == "JPEG" else None
            upright = orientation_of(file, encoded[-TAIL:]) == 1
            if size is None and upright and (file.format, file.mode) in DECODERS:
                pixels = _to_rgb(decode(file, encoded))
            else:
                pixels = _convert(file, path)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {reason_of(error, encoded)}") from error
    return pixels, size or (pixels.shape[1], pixels.shape[0])


def set_max_pixels(count: int) -> None:
    """Set how many pixels an image may have in this process; Pillow has a limit of 179 million.

    It protects from files of a few bytes that unpack to more than the memory holds.
    """
    Image.MAX_IMAGE_PIXELS = -(-count // 2)  # Pillow warns of more than this, and refuses twice as many


def count_pages(path: Path) -> int:
    """Count the pages or frames of an image file; 1 where that cannot be told."""
    if path.suffix.lower() == ".npy":
        return 1
    try:
        with open_file(path) as file, Image.open(file) as image:
            # A phone's JPEG of format MPO holds a preview or depth beside the photograph.
            return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
    except (*BROKEN, UserError):
        return 1


def shown_size(path: Path) -> tuple[int, int]:
    """Read the (width, height) of an image as the camera held it; raises `UserError` for what is none."""
    if path.suffix.lower() in (".npy", ".tif", ".tiff") and (bands := bands_beyond_pillow(path)) is not None:
        return bands[:2]
    try:
        with open_file(path) as opened, Image.open(opened) as file:
            begin = opened.tell()
            opened.seek(max(0, opened.seek(0, io.SEEK_END) - TAIL))
            tail = opened.read()
            opened.seek(begin)  # where Pillow goes on
            width, height = file.size
            return (height, width) if orientation_of(file, tail) >= 5 else (width, height)
    except BROKEN as error:
        raise UserError(f"{path} cannot be read as an image: {reason_of(error, read_bytes(path))}") from error


def decode(file: Image.Image, encoded: bytes) -> npt.NDArray[Any]:
    """Decode a file as it is stored: neither turned nor converted; of a palette, the indices; 16 bits as such.

    `file` is the opened one, of which nothing was decoded yet. Raises one of `BROKEN` for a damaged one.
    """
    decoder = DECODERS.get((file.format, file.mode))
    whole = file.format != "JPEG" or encoded.endswith(b"\xff\xd9")  # libjpeg makes the rest of half a file up
    if decoder is not None and whole and not getattr(file, "is_animated", False):
        try:
            pixels = decoder(encoded)
            if pixels.ndim == 3 and pixels.shape[1:] == (file.height, file.width):  # band by band
                pixels = np.moveaxis(pixels, 0, -1)
            if pixels.shape[:2] == (file.height, file.width):
                return pixels
        except Exception:  # of many kinds, which do not say what is wrong; Pillow does
            pass
    return np.array(file)


def orientation_of(file: Image.Image, tail: bytes) -> int:
    """Return the EXIF orientation, without decoding where that can be; `tail` are the file's last `TAIL` bytes."""
    if file.format == "TIFF":
        return int(getattr(file, "tag_v2", {}).get(ORIENTATION, 1))  # of a BigTIFF Pillow reads no EXIF
    late = any(mark in tail for mark in (b"eXIf", b"Raw profile type", b"com.adobe.xmp"))
    # A PNG's own `getexif` decodes it all, as its EXIF may come last.
    exif = Image.Image.getexif(file) if file.format == "PNG" and not late else file.getexif()
    return int(exif.get(ORIENTATION, 1))


def to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, C) -> (C, H, W), contiguous."""
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def _to_rgb(pixels: npt.NDArray[Any]) -> Pixels:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] < 3:  # grey, with alpha or without
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], -1)[..., :1], 3, axis=2)
    return pixels[..., :3]


def bands_beyond_pillow(path: Path) -> tuple[int, int, int] | None:
    """Return (width, height, bands) of a `.npy` file, or of a TIFF that Pillow has no mode for; nothing for others."""
    if path.suffix.lower() != ".npy" and not _strange(read_bytes(path)):
        return None
    height, width, bands = _stored(path, read_bytes(path)).shape
    return width, height, bands


def _strange(encoded: bytes) -> bool:
    if encoded[:4] not in TIFF:
        return False
    try:
        with Image.open(io.BytesIO(encoded)) as file:
            formats, bits = (getattr(file, "tag_v2", {}).get(tag, (1,)) for tag in (SAMPLE_FORMAT, BITS))
            return 2 in formats and 8 in bits  # signed bytes, which Pillow takes for others
    except BROKEN as error:
        return isinstance(error, UnidentifiedImageError)


def _convert(file: Image.Image, path: Path) -> Pixels:
    image = ImageOps.exif_transpose(file)
    if image.mode in ("F", "I"):
        ways = _ranges(np.asarray(image))
        raise UserError(f"{path} has 32 bits per pixel, expected 8 or 16: convert it first, or {ways}.")
    if image.mode.startswith("I;16"):  # Pillow would cut, not scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _scale_while_decoding(file: Image.Image, bound: Bound) -> tuple[int, int] | None:
    """Ask for a smaller image; returns how large it would have been, or nothing if it is not to be half as large."""
    stored = file.size
    # The bound holds for the long and the short side, so it does not matter whether the image will be turned.
    file.draft(None, rescale_size(*stored, bound))
    if file.size == stored:
        return None
    return stored[::-1] if file.getexif().get(ORIENTATION, 1) >= 5 else stored
