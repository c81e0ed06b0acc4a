"""Frames of videos as images: `CLIP.mp4/000123.bmp` is frame 123, and no file."""

from __future__ import annotations

import math
from pathlib import Path

import cv2

from ssrseg.errors import UserError

VIDEO_SUFFIXES = (
    *(".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".mpg", ".mpeg"),
    *(".ogv", ".mjpeg"),
)


def clip_of(path: Path) -> Path | None:
    """Return the video that a frame is of; nothing for other paths."""
    clip = path.parent
    return clip if clip.suffix.lower() in VIDEO_SUFFIXES and path.suffix == ".bmp" and clip.is_file() else None


def list_frames(clip: Path, interval: float) -> list[Path]:
    """List frames of a video, `interval` seconds apart, the first after half of that.

    Raises `UserError` for what is no video on this machine's disk, or ends before the last of them.
    """
    stream = _open(clip)
    step = max(1.0, interval * (stream.get(cv2.CAP_PROP_FPS) or 25.0))
    count = math.ceil(max(0.0, stream.get(cv2.CAP_PROP_FRAME_COUNT)) / step - 0.5)
    frames = [clip / f"{int((number + 0.5) * step):06}.bmp" for number in range(max(1, count))]
    read_frame(frames[-1])
    return frames


def read_frame(path: Path) -> bytes:
    """Decode a frame as a BMP file; raises `UserError` where the video has none of that number."""
    stream, number = _open(path.parent), int(path.stem)
    stream.set(cv2.CAP_PROP_POS_FRAMES, number)
    found, pixels = stream.read()
    if not found:
        said = int(stream.get(cv2.CAP_PROP_FRAME_COUNT))
        raise UserError(
            f"{path.parent} ends before frame {number}, and says that it has {said}: it is cut off, or its index is "
            "broken. `ffmpeg -i IN -c copy OUT` writes a new one."
        )
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def _open(clip: Path) -> cv2.VideoCapture:
    if not clip.is_file():
        raise UserError(f"{clip} is no file on this machine's disk: unpack videos, or download them first.")
    stream = cv2.VideoCapture(str(clip))
    if not stream.isOpened():
        raise UserError(f"{clip} cannot be read as a video: convert it to MP4 (H.264), which OpenCV reads.")
    return stream
