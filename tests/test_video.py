"""A video in, a video out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from factories import small_segmenter, tiny_segmenter
from ssrseg.cli import app
from ssrseg.errors import UserError
from ssrseg.inference import Predictor, predict_video
from ssrseg.models import save_segmenter

FRAMES, WIDTH, HEIGHT = 7, 96, 64


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "drive.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (WIDTH, HEIGHT))
    for number in range(FRAMES):
        shade = 30 * number
        video.write(np.full((HEIGHT, WIDTH, 3), (255 - shade, 40, shade), np.uint8))  # blue to red
    video.release()
    return path


class ByShade(torch.nn.Module):
    """Class 0 where blue outweighs red, else class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        red, _, blue = images.unbind(1)
        rest = torch.full((len(images), 2, *images.shape[-2:]), -9.0)
        return torch.cat([torch.stack([blue, red], 1), rest], 1)


@pytest.fixture
def by_shade(monkeypatch: pytest.MonkeyPatch) -> ByShade:
    network = ByShade()
    monkeypatch.setattr("ssrseg.inference.predictor.open_engine", lambda *_, **__: network)
    return network


def shown(path: Path) -> list[np.ndarray]:
    stream, frames = cv2.VideoCapture(str(path)), []
    while (read := stream.read())[0]:
        frames.append(read[1][:, :, ::-1].astype(int))
    return frames


def test_each_frame_shows_its_own_classes(clip: Path, tmp_path: Path, by_shade: ByShade) -> None:
    model = tiny_segmenter()
    result = predict_video(model, clip, tmp_path / "out", kind="color")
    assert result.path == tmp_path / "out" / "drive_color.mp4"
    assert result.frames == by_shade.seen == FRAMES
    assert result.speed == pytest.approx(FRAMES / result.seconds / 12.5)
    stream = cv2.VideoCapture(str(result.path))
    sizes = [stream.get(key) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)]
    assert sizes == [WIDTH, HEIGHT, 12.5]
    colors = Predictor(model, "cpu").colors.astype(int)
    frames = shown(result.path)
    assert len(frames) == FRAMES
    for number, frame in enumerate(frames):
        expected = colors[int(30 * number > 255 - 30 * number)]
        assert abs(frame.reshape(-1, 3).mean(0) - expected).max() < 12  # it is compressed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["drive_color.mp4"]


def test_every_third_frame_is_labelled_and_all_are_shown(clip: Path, tmp_path: Path, by_shade: ByShade) -> None:
    result = predict_video(tiny_segmenter(), clip, tmp_path, every=3)
    assert by_shade.seen == 3
    assert len(shown(result.path)) == result.frames == FRAMES


def test_the_command_says_whether_it_keeps_up(clip: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    save_segmenter(small_segmenter(), model)
    run = CliRunner().invoke(app, ["predict", str(model), str(clip), "--out", str(tmp_path / "out")])
    assert run.exit_code == 0, run.output
    assert "7 frames labelled" in run.output
    assert "times the stream's 12.5 frames/s" in run.output


def test_what_is_no_video_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 99)
    with pytest.raises(UserError, match="cannot be read as a video"):
        predict_video(tiny_segmenter(), broken, tmp_path / "out")
    with pytest.raises(UserError, match="There is no video"):
        predict_video(tiny_segmenter(), tmp_path / "absent.mp4", tmp_path / "out")
    with pytest.raises(UserError, match="every is 0"):
        predict_video(tiny_segmenter(), broken, tmp_path / "out", every=0)
    assert not (tmp_path / "out").exists()
