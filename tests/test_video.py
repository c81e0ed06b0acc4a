"""A video in, a video out."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from factories import CLASSES, random_image, small_segmenter, tiny_segmenter, write_pairs
from ssrseg.cli import app, main
from ssrseg.config import resolve
from ssrseg.data import find_images, read_image
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


def test_a_folder_of_clips_is_labelled_with_its_pictures(clip: Path, tmp_path: Path) -> None:
    model, folder, out = tmp_path / "model.safetensors", tmp_path / "clips", tmp_path / "out"
    save_segmenter(small_segmenter(), model)
    (folder / "north").mkdir(parents=True)
    shutil.copy(clip, folder / "a.avi")
    shutil.copy(clip, folder / "north" / "b.avi")
    words = ["predict", str(model), str(folder), "--out", str(out), "--frames", "2", "--write", "ids"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert len(shown(out / "a_overlay.mp4")) == len(shown(out / "north" / "b_overlay.mp4")) == 2
    Image.new("RGB", (64, 64)).save(folder / "c.png")
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 0, run.output
    assert (out / "c_ids.png").is_file()
    (folder / "0.mp4").write_bytes(b"no video" * 99)
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 1, run.output
    assert "left out" in run.output
    assert "0.mp4 cannot be read as a video" in run.output
    assert "1 images labelled" in run.output
    (folder / "0.mp4").rename(folder / "a.mp4")
    with pytest.raises(UserError, match=r"a\.avi and .*a\.mp4 would have the same result: give one another name"):
        CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_stream_is_labelled_until_the_user_stops_it(
    clip: Path, tmp_path: Path, by_shade: ByShade, monkeypatch
) -> None:
    real = cv2.VideoCapture
    opened = []

    class Camera:
        def __init__(self, source: object) -> None:
            opened.append(source)
            self.stream, self.left = real(str(clip)), 4

        def __getattr__(self, name: str) -> object:
            return getattr(self.stream, name)

        def read(self) -> object:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return self.stream.read()

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    result = predict_video(tiny_segmenter(), "0", tmp_path)
    assert (opened, result.path.name) == ([0], "camera-0_overlay.mp4")
    assert 0 < result.frames <= 4
    result = predict_video(tiny_segmenter(), "rtsp://host/gate", tmp_path, frames=2)
    assert (opened[1:], result.path.name, result.frames) == (["rtsp://host/gate"], "gate_overlay.mp4", 2)
    monkeypatch.undo()
    with pytest.raises(UserError, match="no camera or stream 97"):
        predict_video(tiny_segmenter(), "97", tmp_path)


def test_a_video_is_a_target(clip: Path, tmp_path: Path) -> None:
    data = {"root": str(tmp_path), "spec": "video", "frame_interval": 0.16}  # two frames of 12.5 a second
    run = resolve({"source": {"root": "nowhere"}, "target": data, "classes": ["a", "b"]})
    frames = find_images(run.target)
    assert [frame.relative_to(tmp_path).as_posix() for frame in frames] == [
        f"drive.avi/{number:06}.bmp" for number in (1, 3, 5)
    ]
    for frame, number in zip(frames, (1, 3, 5), strict=True):
        red, _, blue = read_image(frame).float().mean((1, 2)).tolist()
        assert (red, blue) == (pytest.approx(30 * number, abs=12), pytest.approx(255 - 30 * number, abs=12))
    content = clip.read_bytes()
    clip.write_bytes(content[:4000])
    with pytest.raises(UserError, match=r"drive\.avi (ends before frame|cannot be read)"):
        find_images(run.target)
    clip.unlink()
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("drive.avi", content)
    with pytest.raises(UserError, match=r"clips\.zip/drive\.avi is no file on this machine's disk: unpack videos"):
        find_images(run.target)
    shutil.unpack_archive(tmp_path / "clips.zip", tmp_path)
    assert find_images(run.target) == frames


def test_a_video_is_trained_on(clip: Path, tmp_path: Path) -> None:
    write_pairs(tmp_path / "source", 2)
    words = ["train", "--preset", "dacs-segformer", "--source", str(tmp_path / "source"), "--target", str(tmp_path)]
    sizes = ["loader={crop: [32, 32], batch: 2, workers: 0}", "optim.warmup=0", "train={steps: 1, accelerator: cpu}"]
    model = ["model={backbone: timm:test_resnet, head_channels: 8, pretrained: none}", f"classes={list(CLASSES)}"]
    more = ["target={spec: video, frame_interval: 0.2, images: drive.avi}", "--out", str(tmp_path / "run")]
    with mock.patch("sys.argv", ["ssrseg", *words, *sizes, *model, *more]), pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code


def test_a_clip_that_is_cut_off_says_how_much_of_it_was_labelled(tmp_path: Path) -> None:
    clip, model = tmp_path / "clip.avi", tmp_path / "model.safetensors"
    video = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 64))
    for seed in range(12):
        video.write(random_image(64, 64, seed=seed))
    video.release()
    save_segmenter(small_segmenter(), model)
    whole = CliRunner().invoke(app, ["predict", str(model), str(clip), "--out", str(tmp_path / "a"), "--device", "cpu"])
    assert whole.exit_code == 0
    clip.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    cut = CliRunner().invoke(app, ["predict", str(model), str(clip), "--out", str(tmp_path / "b"), "--device", "cpu"])
    assert cut.exit_code == 1
    assert re.search(r"is cut off: [2-9] of its 12 frames could be read", cut.output)
