from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from factories import COLORS, random_image, small_segmenter, tiny_segmenter
from ssrseg.cli import app
from ssrseg.config import InferenceConfig
from ssrseg.errors import UserError
from ssrseg.inference import predict
from ssrseg.inference.predict import prefetch
from ssrseg.inference.sliding_window import averaged, predict_ids, whole
from ssrseg.models import Description, Segmenter, save_segmenter

KINDS = ("_ids.png", "_color.png", "_overlay.jpg")


@pytest.fixture
def model() -> Segmenter:
    model = tiny_segmenter().eval()
    model.description = Description("tiny", "daformer", ("a", "b", "c", "d"), COLORS)
    return model


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/a.png, photos/far/b.png (other size), photos/far/away/a.jpg, and a note."""
    folder = tmp_path / "photos"
    for i, name in enumerate(("a.png", "far/b.png", "far/away/a.jpg")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_image(64, 64 + 20 * i, seed=i)).save(path)
    (folder / "note.txt").write_text("not an image")
    return folder


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def expected_ids(model: Segmenter, path: Path) -> np.ndarray:
    image = torch.from_numpy(pixels(path)).permute(2, 0, 1)
    with torch.no_grad():
        return predict_ids(model, image, whole, tuple(image.shape[-2:])).numpy()


def test_a_folder_keeps_its_sub_folders(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    done = predict(model, photos, tmp_path / "out", device="cpu")
    stems = ("a", "far/away/a", "far/b")
    assert tree(tmp_path / "out") == sorted(stem + kind for stem in stems for kind in KINDS)
    assert sorted(done.files) == sorted(tmp_path / "out" / name for name in tree(tmp_path / "out"))
    assert len(done) == 3
    assert done.unreadable == {}


def test_pictures_show_the_prediction(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    predict(model, photos / "far" / "b.png", tmp_path, device="cpu")
    ids = pixels(tmp_path / "b_ids.png")
    assert ids.shape == (64, 84)
    assert ids.dtype == np.uint8
    assert np.array_equal(ids, expected_ids(model, photos / "far" / "b.png"))
    assert len(np.unique(ids)) > 1
    with Image.open(tmp_path / "b_color.png") as picture:
        assert picture.mode == "P"
        colored = np.array(picture.convert("RGB"))
    assert np.array_equal(colored, np.array(COLORS, np.uint8)[ids])
    overlay = pixels(tmp_path / "b_overlay.jpg").astype(float)
    blend = (colored.astype(float) + pixels(photos / "far" / "b.png")) / 2
    assert np.abs(overlay - blend).mean() < 10  # JPEG


def test_the_network_sees_the_size_it_was_made_for(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    model.description = Description("tiny", "daformer", ("a", "b", "c", "d"), COLORS, resize=(42, 32))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    predict(model, photos / "far" / "b.png", tmp_path, device="cpu", kinds=["ids"])
    assert sizes[-1] == (32, 42)  # before it, the check of the engine
    assert pixels(tmp_path / "b_ids.png").shape == (64, 84)
    assert tree(tmp_path) == ["b_ids.png", *(f"photos/{name}" for name in tree(photos))]


def test_globs_and_lists(model: Segmenter, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def label(inputs: object, out: str) -> list[str]:
        predict(model, inputs, tmp_path / out, kinds=["ids"], device="cpu")
        return tree(tmp_path / out)

    assert label(str(photos / "far" / "*.png"), "1") == ["b_ids.png"]
    assert label(str(photos / "**" / "*.png"), "2") == ["a_ids.png", "far/b_ids.png"]
    assert label([photos / "a.png", photos / "far" / "b.png", photos / "a.png"], "3") == ["a_ids.png", "b_ids.png"]
    monkeypatch.chdir(photos)
    assert label("*.png", "4") == ["a_ids.png"]
    assert label("far/*/*.jpg", "5") == ["away/a_ids.png"]
    assert label(".", "6") == ["a_ids.png", "far/away/a_ids.png", "far/b_ids.png"]


def test_inference_settings_are_used(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    path = photos / "far" / "b.png"
    predict(model, path, tmp_path, inference=InferenceConfig(flip=True), kinds=["ids"], device="cpu")
    image = torch.from_numpy(pixels(path)).permute(2, 0, 1)
    with torch.no_grad():
        expected = predict_ids(model, image, averaged(whole, flip=True), (64, 84)).numpy()
    assert np.array_equal(pixels(tmp_path / "b_ids.png"), expected)
    assert not np.array_equal(expected, expected_ids(model, path))


def test_unreadable_images_are_left_out_and_named(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:60])
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.png").symlink_to("nothing.png")
    (photos / "loop.png").symlink_to("loop.png")
    done = predict(model, photos, tmp_path / "out", device="cpu")
    assert len(done) == 3
    assert [path.stem for path in done.unreadable] == ["broken", "gone", "loop", "pipe"]
    assert all(str(path) in why for path, why in done.unreadable.items())
    with pytest.raises(UserError, match=r"None of the images could be read:\n.*broken\.png"):
        predict(model, photos / "broken.png", tmp_path / "out", device="cpu")


@pytest.mark.parametrize("word", ["missing", "missing.png", "photos/*.bmp", "missing/*.png"])
def test_nothing_found_is_an_error(model: Segmenter, photos: Path, tmp_path: Path, word: str) -> None:
    with pytest.raises(UserError, match=r"no image at .*(missing|bmp)"):
        predict(model, tmp_path / word, tmp_path / "out", device="cpu")


def test_images_are_never_overwritten(model: Segmenter, photos: Path) -> None:
    Image.fromarray(random_image()).save(photos / "a_ids.png")
    before = (photos / "a_ids.png").read_bytes()
    with pytest.raises(UserError, match=r"would overwrite the image .*a_ids\.png"):
        predict(model, photos, photos, device="cpu")
    assert (photos / "a_ids.png").read_bytes() == before
    assert not (photos / "a_color.png").exists()
    predict(model, photos, photos / "labels", device="cpu")


def test_results_never_overwrite_each_other(model: Segmenter, photos: Path, tmp_path: Path) -> None:
    twins = [photos / "a.png", photos / "far" / "away" / "a.jpg"]
    with pytest.raises(UserError, match=r"a\.png and .*a\.jpg would have the same results, .*: label them into two"):
        predict(model, twins, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
    for number, twin in enumerate(twins):
        predict(model, twin, tmp_path / "out" / str(number), device="cpu")


def test_results_inside_the_folder_are_not_labelled_again(model: Segmenter, photos: Path) -> None:
    for _ in range(2):
        assert len(predict(model, photos, photos / "out", kinds=["ids"], device="cpu")) == 3
    assert len(tree(photos / "out")) == 3


def test_a_model_file_in_training_mode_and_without_colors(photos: Path, tmp_path: Path) -> None:
    model = small_segmenter()
    save_segmenter(model, tmp_path / "model.safetensors")
    predict(tmp_path / "model.safetensors", photos / "a.png", tmp_path / "out", device="cpu")
    assert np.array_equal(pixels(tmp_path / "out" / "a_ids.png"), expected_ids(model.eval(), photos / "a.png"))

    plain = tiny_segmenter().train()
    predict(plain, photos / "a.png", tmp_path / "plain", device="cpu")
    assert plain.training
    colors = pixels(tmp_path / "plain" / "a_color.png")
    ids = pixels(tmp_path / "plain" / "a_ids.png")
    with Image.open(tmp_path / "plain" / "a_color.png") as picture:
        colors = np.array(picture.convert("RGB"))
    distinct = {tuple(color) for color in colors.reshape(-1, 3)}
    assert len(distinct) == len(np.unique(ids)) > 1


def test_the_words_of_the_command_line(photos: Path, tmp_path: Path) -> None:
    model, path = small_segmenter(), photos / "far" / "b.png"
    save_segmenter(model, tmp_path / "model.safetensors")

    def label(*words: str) -> Result:
        start = ["predict", str(tmp_path / "model.safetensors"), str(path), "--out", str(tmp_path / "out")]
        return CliRunner().invoke(app, [*start, *words])

    scores = InferenceConfig(mode="slide", window=(32, 32), stride=(16, 16), flip=True, scales=(0.75, 1.25))
    words = ["--mode", "slide", "inference.window=[32, 32]", "inference.stride=[16, 16]", "inference.flip=true"]
    run = label(*words, "inference.scales=[0.75, 1.25]", "--device", "cpu")
    assert run.exit_code == 0, run.output
    predict(model, path, tmp_path / "expected", inference=scores, kinds=["ids"], device="cpu")
    expected = pixels(tmp_path / "expected" / "b_ids.png")
    assert np.array_equal(pixels(tmp_path / "out" / "b_ids.png"), expected)
    assert not np.array_equal(expected, expected_ids(model.eval(), path))
    for word, mistake in (
        ("inference.flop=true", "Did you mean 'flip'"),
        ("spec=gta5", "settings of `inference` only.*found spec"),
    ):
        refused = label(word).exception
        assert isinstance(refused, UserError)
        assert re.search(mistake, str(refused))
    assert "cannot be used here" in str(label("--device", "gpu").exception)


def test_items_are_prefetched_in_order_and_errors_come_in_their_turn() -> None:
    assert list(prefetch(range(7))) == list(range(7))
    assert list(prefetch([])) == []
    made = []

    def source() -> object:
        for i in range(5):
            made.append(i)
            yield i
        raise ValueError("five")

    items = prefetch(source(), 2)
    assert next(items) == 0
    assert [next(items) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(items)
    assert made == list(range(5))


def test_inputs_below_brackets_and_the_home_are_found(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "run [2]"
    folder.mkdir()
    Image.fromarray(random_image()).save(folder / "a[1].png")
    for word in (folder, folder / "*.png", folder / "a[1].png", folder / "a[[]1].png", "~/run [2]"):
        assert len(predict(model, word, tmp_path / "out", device="cpu", kinds=("ids",))) == 1, word
