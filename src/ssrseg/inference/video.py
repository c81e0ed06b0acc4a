"""Videos, labelled: the classes' colours over the frames, or alone, as a video of the same size and rate."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.data.frames import VIDEO_SUFFIXES
from ssrseg.errors import UserError
from ssrseg.inference.predict import prefetch
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.results import draw
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import writing

TOLERANCE = 0.02
"""Share of the frames by which the number that a file claims may be wrong."""
VideoKind = Literal["color", "overlay"]
"""Class ids have no place in a video: its compression would change them."""


@dataclass(frozen=True)
class LabelledVideo:
    """The result of `predict_video`."""

    path: Path
    frames: int
    seconds: float
    """Wall time from the first frame read to the last one written."""
    rate: float
    """Frames per second of the stream."""
    claimed: int
    """Frames that the file says to have; 0 where it does not."""

    @property
    def complete(self) -> bool:
        """Whether all frames could be read, as far as the file says how many there are."""
        return self.frames >= self.claimed - max(1, round(TOLERANCE * self.claimed))

    @property
    def speed(self) -> float:
        """Frames labelled per second over the stream's rate: 1 or more keeps up with it."""
        return self.frames / self.seconds / self.rate


class UnreadableVideo(UserError):
    """A file that is no video, or holds no frame."""


def is_video(path: Path | str) -> bool:
    """Return whether the name is that of a video, a camera's number, or a stream's address."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES or is_live(path)


def is_live(path: Path | str) -> bool:
    """Return whether this is a camera by its number, or a stream by its address, as `rtsp://host/camera`."""
    return "://" in str(path) or (str(path).isdecimal() and not Path(path).exists())


def find_videos(place: Path | str) -> list[tuple[Path | str, Path]]:
    """Find what `predict_video` takes at a place: it, or all videos in that folder and below.

    With each is the folder that it lies in, relative to the place. Raises `UserError` for two of one name, whose
    results would be one file.
    """
    if is_video(place):
        return [(place, Path())]
    found = sorted(path for path in Path(place).rglob("*") if path.is_file() and is_video(path))
    for one, other in itertools.pairwise(sorted(found, key=lambda path: path.with_suffix(""))):
        if one.with_suffix("") == other.with_suffix(""):
            raise UserError(f"{one} and {other} would have the same result: give one another name.")
    return [(path, path.parent.relative_to(place)) for path in found]


def predict_video(
    model: Path | str | Segmenter,
    clip: Path | str,
    out: Path,
    *,
    inference: InferenceConfig | None = None,
    kind: VideoKind = "overlay",
    every: int = 1,
    frames: int | None = None,
    device: str = "auto",
    engine: str = "auto",
) -> LabelledVideo:
    """Label the frames of a video; frames are read and written while the network works.

    The result is `<name>_<kind>.mp4` in the folder `out`, at the clip's size and rate. With `every`, each n-th frame is
    labelled and the others keep the labels of the last one, which makes a stream n times as fast. A camera by its
    number and a stream by its address, as `rtsp://host/camera`, are labelled until they end, `frames` are read or the
    user interrupts; what was labelled is kept. `model`, `device`,
    `engine` and `inference` (its `mode`) are those of `Predictor`.

    Raises:
        UserError: the clip is missing, no video or without a frame, or the result cannot be written.
    """
    live, source, out = is_live(clip), str(clip), Path(out)
    clip = Path(f"camera-{source}" if source.isdecimal() else source.partition("://")[2]) if live else Path(clip)
    if every < 1:
        raise UserError(f"every is {every}: label each frame (1), or each n-th.")
    path = out / f"{clip.stem}_{kind}.mp4"
    if not live and not clip.is_file():
        raise UserError(f"There is no video {clip}.")
    stream = cv2.VideoCapture(int(source)) if source.isdecimal() and live else cv2.VideoCapture(source)
    if not stream.isOpened() and live:
        raise UserError(f"There is no camera or stream {source}: check its number or address, and who else uses it.")
    if not stream.isOpened():
        raise UnreadableVideo(f"{clip} cannot be read as a video: convert it to MP4 (H.264), which OpenCV reads.")
    rate = stream.get(cv2.CAP_PROP_FPS) or 25.0
    count = max(0, int(stream.get(cv2.CAP_PROP_FRAME_COUNT)))
    predictor = Predictor(model, device, engine, inference or InferenceConfig(), images=-(-count // every))
    colors = predictor.colors
    partial_path = path.with_name(f".{path.name}.partial.mp4")  # the container follows the ending
    began, done, video = time.perf_counter(), 0, None

    def labelled() -> Iterator[tuple[Tensor, Tensor]]:
        ids = torch.empty(0)
        for number, frame in enumerate(prefetch(itertools.islice(_frames(stream), frames))):
            if number % every == 0:
                ids = predictor(frame)
            yield frame, ids

    try:
        with contextlib.suppress(*([KeyboardInterrupt] if live else [])):
            for frame, ids in prefetch(labelled()):  # written while the network works
                if video is None:
                    video = _create(partial_path, rate, (frame.shape[2], frame.shape[1]))
                video.write(np.asarray(draw(kind, frame, ids, colors).convert("RGB"))[:, :, ::-1])
                done += 1
        if video is None:
            raise UnreadableVideo(f"{clip} has no frame that can be read.")
        video.release()
        partial_path.replace(path)
    finally:
        if video is not None:
            video.release()
        partial_path.unlink(missing_ok=True)
    return LabelledVideo(path, done, time.perf_counter() - began, rate, 0 if live else min(count, frames or count))


def _create(path: Path, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    with writing(path):
        video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not video.isOpened():
        raise UserError(f"Cannot write a video to {path.parent}: is there room, and may it be written to?")
    return video


def _frames(stream: cv2.VideoCapture) -> Iterator[Tensor]:
    """Read RGB bytes (3, H, W) of each frame."""
    while (read := stream.read())[0]:
        yield torch.from_numpy(np.ascontiguousarray(read[1][:, :, ::-1])).permute(2, 0, 1)
