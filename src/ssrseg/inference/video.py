"""A video, labelled: the classes' colours over its frames, or alone, as a video of the same size and rate."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError
from ssrseg.inference.engines import open_engine
from ssrseg.inference.predict import colors_of, draw, label_image
from ssrseg.inference.prefetch import Behind, ahead
from ssrseg.inference.sliding_window import Progress, build_inference, evaluating, open_model, pick_device
from ssrseg.models.segmenter import Segmenter

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
VideoKind = Literal["color", "overlay"]
"""Class ids have no place in a video: its compression would change them."""


@dataclass(frozen=True)
class Labelled:
    """What a call of `predict_video` left behind."""

    path: Path
    frames: int
    seconds: float
    """Wall time from the first frame read to the last one written."""
    rate: float
    """Frames per second of the stream."""

    @property
    def speed(self) -> float:
        """Frames labelled per second over the stream's rate: 1 or more keeps up with it."""
        return self.frames / self.seconds / self.rate


def is_video(path: Path | str) -> bool:
    """Whether the name is that of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def predict_video(
    model: Path | str | Segmenter,
    clip: Path | str,
    out: Path,
    *,
    inference: InferenceConfig | None = None,
    kind: VideoKind = "overlay",
    every: int = 1,
    device: str = "auto",
    engine: str = "auto",
    progress: Progress | None = None,
) -> Labelled:
    """Label the frames of a video; frames are read and written while the network works.

    Args:
        model: a segmenter, which is moved to `device`, or the file of one.
        clip: a video that OpenCV reads.
        out: the folder for `<name>_<kind>.mp4`, at the clip's size and rate.
        inference: how a frame becomes logits; as a whole when absent.
        kind: the colours over the frames, or alone.
        every: label each n-th frame; the others keep the labels of the last one. Makes a stream n times as fast.
        device: `auto` or a device of torch's.
        engine: what runs the network, see `ssrseg.inference.engines.open_engine`.
        progress: told after every frame; the number of all frames is the file's own claim.

    Raises:
        UserError: the clip is missing, no video or without a frame, or the result cannot be written.
    """
    clip, out = Path(clip), Path(out)
    if every < 1:
        raise UserError(f"every is {every}: label each frame (1), or each n-th.")
    stream = _open(clip)
    rate = stream.get(cv2.CAP_PROP_FPS) or 25.0
    count = max(0, int(stream.get(cv2.CAP_PROP_FRAME_COUNT)))
    segmenter = open_model(model).to(pick_device(device))
    infer = build_inference(inference or InferenceConfig())
    colors = colors_of(segmenter)
    network = open_engine(segmenter, engine, images=-(-count // every))
    path = out / f"{clip.stem}_{kind}.mp4"
    if path.resolve() == clip.resolve():
        raise UserError(f"The result would overwrite {clip}: give another folder for results.")
    partial_path = path.with_name(f".{path.name}.partial.mp4")  # the container follows the ending
    began, done, ids = time.perf_counter(), 0, torch.empty(0)
    try:
        with evaluating(segmenter), _Writer(partial_path, rate) as writer, Behind() as writing:
            for frame in ahead(_frames(stream)):
                if done % every == 0:
                    ids = label_image(segmenter, frame, infer, network).cpu()
                writing.do(partial(writer.write, frame, ids, kind, colors))
                done += 1
                if progress is not None:
                    progress(done, max(done, count))
        if not done:
            raise UserError(f"{clip} has no frame that can be read.")
        partial_path.replace(path)
    finally:
        stream.release()
        partial_path.unlink(missing_ok=True)
    return Labelled(path, done, time.perf_counter() - began, rate)


def _open(clip: Path) -> cv2.VideoCapture:
    if not clip.is_file():
        raise UserError(f"There is no video {clip}.")
    stream = cv2.VideoCapture(str(clip))
    if not stream.isOpened():
        raise UserError(f"{clip} cannot be read as a video: convert it to MP4 (H.264), which OpenCV reads.")
    return stream


def _frames(stream: cv2.VideoCapture) -> Iterator[Tensor]:
    """RGB bytes (3, H, W) each."""
    while True:
        read, frame = stream.read()
        if not read:
            return
        yield torch.from_numpy(np.ascontiguousarray(frame[:, :, ::-1])).permute(2, 0, 1)


class _Writer:
    """Opened at the first frame, whose size the video has."""

    def __init__(self, path: Path, rate: float) -> None:
        self._path, self._rate = path, rate
        self._video: cv2.VideoWriter | None = None

    def write(self, frame: Tensor, ids: Tensor, kind: VideoKind, colors: np.ndarray) -> None:
        picture = np.asarray(draw(kind, frame, ids, colors).convert("RGB"))
        if self._video is None:
            self._video = self._start(picture.shape[1], picture.shape[0])
        self._video.write(picture[:, :, ::-1])

    def _start(self, width: int, height: int) -> cv2.VideoWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot write {self._path.parent}: {error.strerror or error}.") from error
        video = cv2.VideoWriter(str(self._path), cv2.VideoWriter.fourcc(*"mp4v"), self._rate, (width, height))
        if not video.isOpened():
            raise UserError(f"Cannot write a video to {self._path.parent}: is there room, and may it be written to?")
        return video

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._video is not None:
            self._video.release()
