"""The painter of the demo's two domains: deterministic, complete, and apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssrseg.demo.dataset import MARKER, STREETS
from streets import lens
from streets.anything import draw_anything
from streets.canvas import FAR, Canvas, Scene
from streets.dataset import CAMERA_DOMAIN, GAME_DOMAIN, Domain, write_dataset
from streets.projection import View
from streets.scenes import CAMERA, CAR, GAME, PERSON, RIDER, ROAD, SKY, TRUCK, VEGETATION, draw_scene

SIZE = (64, 128)
DOMAINS = {"game": GAME_DOMAIN, "camera": CAMERA_DOMAIN}


def shares(domain: Domain, count: int = 60) -> np.ndarray:
    counts = np.zeros(len(STREETS.classes))
    for seed in range(count):
        scene = draw_scene(domain.layout, SIZE, np.random.default_rng(seed))
        counts += np.bincount(scene.classes.ravel(), minlength=len(STREETS.classes))
    return counts / counts.sum()


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)
def test_a_seed_gives_one_picture(domain: Domain) -> None:
    (image, classes), (again, same) = (domain.sample(SIZE, np.random.default_rng(3)) for _ in range(2))
    other, _ = domain.sample(SIZE, np.random.default_rng(4))
    assert image.shape == (*SIZE, 3)
    assert classes.shape == SIZE
    assert image.dtype == classes.dtype == np.uint8
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(classes, same)
    assert (image != other).any()


@pytest.mark.parametrize("size", [(128, 256), (60, 100)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    for seed in range(4):
        image, classes = CAMERA_DOMAIN.sample(size, np.random.default_rng(seed))
        assert image.shape == (*size, 3)
        assert classes.max() < len(STREETS.classes)


SHARES = {
    # percent of the pixels of 200 scenes: from, to
    "game": {
        "road": (20, 34), "sidewalk": (4, 10), "building": (25, 45), "fence": (0.2, 1.5), "pole": (1, 4),
        "traffic sign": (0.4, 2), "vegetation": (2, 8), "sky": (4, 11), "person": (0.7, 3), "rider": (0.4, 2.5),
        "car": (5, 14), "truck": (2.5, 9),
    },
    "camera": {
        "road": (17, 30), "sidewalk": (4, 11), "building": (17, 34), "fence": (0.8, 4), "pole": (2, 6),
        "traffic sign": (0.8, 3), "vegetation": (6, 17), "sky": (4, 11), "person": (2.5, 7), "rider": (1.5, 5),
        "car": (6, 16), "truck": (0.8, 4),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DOMAINS)
def test_every_class_has_its_share(name: str) -> None:
    found = dict(zip((title for title, _ in STREETS.classes), 100 * shares(DOMAINS[name], 200), strict=True))
    outside = {
        title: share for title, share in found.items() if not SHARES[name][title][0] < share < SHARES[name][title][1]
    }
    assert not outside
    assert SHARES[name].keys() == found.keys()


def test_labels_are_shifted_between_the_domains() -> None:
    game, camera = shares(GAME_DOMAIN), shares(CAMERA_DOMAIN)
    for frequent in (PERSON, RIDER, VEGETATION):
        assert camera[frequent] > 1.5 * game[frequent]
    assert camera[TRUCK] < game[TRUCK] / 1.5


def test_pictures_differ_between_the_domains_for_one_layout() -> None:
    scene = [draw_scene(GAME, SIZE, np.random.default_rng(0)) for _ in DOMAINS]
    np.testing.assert_array_equal(scene[0].codes, scene[1].codes)
    restyled = Domain(GAME, CAMERA_DOMAIN.look)
    image, classes = GAME_DOMAIN.sample(SIZE, np.random.default_rng(0))
    other, same = restyled.sample(SIZE, np.random.default_rng(0))
    np.testing.assert_array_equal(classes, same)
    assert np.abs(image.astype(int) - other).mean() > 20


def test_no_class_is_told_by_its_colour_alone() -> None:
    images, labels = zip(*(CAMERA_DOMAIN.sample(SIZE, np.random.default_rng(seed)) for seed in range(40)), strict=True)
    colours = np.stack(images).reshape(-1, 3) // 16 @ np.array([256, 16, 1])
    classes = np.stack(labels).ravel()
    table = np.zeros((4096, len(STREETS.classes)), np.int64)
    np.add.at(table, (colours, classes), 1)
    correct = table[np.arange(4096), table.argmax(1)].sum() / len(classes)
    assert correct < 0.75, "a look-up of colours labels most pixels"


def test_maps_agree_with_each_other() -> None:
    for seed in range(5):
        scene = draw_scene(CAMERA, SIZE, np.random.default_rng(seed))
        np.testing.assert_array_equal(scene.depth == FAR, scene.classes == SKY)
        for thing in np.unique(scene.objects):
            assert len(np.unique(scene.classes[scene.objects == thing])) == 1


def test_perspective_makes_far_cars_small() -> None:
    near, far = [], []
    for seed in range(30):
        scene = draw_scene(GAME, SIZE, np.random.default_rng(seed))
        for thing in np.unique(scene.objects[scene.classes == CAR]):
            seen = scene.objects == thing
            (near if scene.depth[seen].min() < 10 else far).append(seen.sum())
    assert np.median(near) > 3 * np.median(far)


def test_the_ground_is_nearer_further_down() -> None:
    scene = draw_scene(GAME, SIZE, np.random.default_rng(1))
    for column in range(0, SIZE[1], 8):
        depths = scene.depth[scene.classes[:, column] == ROAD, column]
        assert (np.diff(depths) < 0).all()


def area(outline: list[float]) -> Scene:
    """A scene of one front, 10 pixels a metre, that has this outline."""
    canvas = Canvas(View(size=(60, 80), focal=100, horizon=30, vanish=40.3, eye=1.5), sky=SKY)
    canvas.front(CAR, canvas.thing(), [(0, [outline])], 0, 10)
    return canvas.scene()


@pytest.mark.parametrize("side", [0.5, 1.0, 1.37])
def test_outlines_keep_their_size(side: float) -> None:
    seen = (area([-side, 0, side, 0, side, side, -side, side]).classes == CAR).sum()
    assert seen == pytest.approx(2 * side * side * 100, rel=0.12)  # OpenCV alone would add half a pixel all around


def test_the_nearest_is_seen_whatever_came_first() -> None:
    boxes = {PERSON: 8.0, CAR: 12.0, TRUCK: 20.0}
    shape = [(0, [[-1.0, 0, 1.0, 0, 1.0, 2.0, -1.0, 2.0]])]
    scenes = []
    for kinds in ((PERSON, CAR, TRUCK), (TRUCK, PERSON, CAR)):
        canvas = Canvas(View(size=(60, 80), focal=100, horizon=30, vanish=40.3, eye=1.5), sky=SKY)
        for kind in kinds:
            canvas.front(kind, canvas.thing(), shape, 0, boxes[kind])
        canvas.side(ROAD, canvas.thing(), [(0, [[0.0, 0, 30.0, 0, 30.0, 3.0, 0.0, 3.0]])], 0.5, 5)
        scenes.append(canvas.scene())
    np.testing.assert_array_equal(scenes[0].classes, scenes[1].classes)
    left, right = scenes[0].classes[30, :40], scenes[0].classes[30, 41:]
    assert set(left) == {SKY, PERSON}  # hides all behind it
    assert ROAD in right  # what stands along the street is nearer on one part, farther on the other
    columns = np.flatnonzero(right == PERSON)
    assert len(columns)
    assert (right[columns.max() + 1 :] != PERSON).all()


def test_a_hole_shows_what_is_behind() -> None:
    canvas = Canvas(View(size=(60, 80), focal=100, horizon=30, vanish=40.3, eye=1.5), sky=SKY)
    outer, inner = ([-r, 1.5 - r, r, 1.5 - r, r, 1.5 + r, -r, 1.5 + r] for r in (1.0, 0.5))
    canvas.front(CAR, canvas.thing(), [(0, [outer, inner])], 0, 10)
    canvas.front(TRUCK, canvas.thing(), [(0, [outer])], 0, 20)
    classes = canvas.scene().classes
    assert classes[30, 40] == TRUCK
    assert classes[30, 33] == CAR
    assert classes[5, 5] == SKY


def test_compression_is_stronger_at_lower_quality() -> None:
    image, _ = GAME_DOMAIN.sample(SIZE, np.random.default_rng(0))
    errors = [np.abs(lens.compress(image, quality).astype(int) - image).mean() for quality in (95, 60, 20)]
    assert 0 < errors[0] < errors[1] < errors[2] < 15


@pytest.mark.parametrize("size", [(16, 16), (700, 600)])
def test_noise_has_the_strength_it_is_given(size: tuple[int, int]) -> None:
    gray = np.full((*size, 3), 64, np.uint8)
    noise = lens.noisy(gray, 0.01, 0.02, np.random.default_rng(0)).astype(float) - 64
    assert noise.std() == pytest.approx(255 * (0.01 + 0.02 * np.sqrt(64 / 255)), rel=0.1)
    assert abs(noise.mean()) < 0.5


def test_dataset_has_the_promised_folders_and_no_target_labels(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_dataset(
        tmp_path / "d", source=3, target=2, val=1, size=SIZE, progress=lambda done, total: seen.append((done, total))
    )
    folders = {folder: len(list((tmp_path / "d" / folder).glob("*.png"))) for folder in (
        "game/images", "game/labels", "camera/train/images", "camera/train/labels", "camera/val/images",
        "camera/val/labels",
    )}  # fmt: skip
    assert list(folders.values()) == [3, 3, 2, 0, 1, 1]
    assert seen == [(done, 6) for done in range(1, 7)]
    for kind, mode in (("images", "RGB"), ("labels", "L")):
        with Image.open(tmp_path / "d/game" / kind / "00000.png") as picture:
            assert (picture.mode, picture.size) == (mode, SIZE[::-1])
            assert kind == "images" or np.asarray(picture).max() < len(STREETS.classes)


def test_dataset_is_written_once_and_the_same_everywhere(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "deep" / "b"
    for root in (first, second):
        write_dataset(root, source=2, target=1, val=1, size=SIZE, seed=7)
    assert files(first) == files(second)
    calls: list[int] = []
    write_dataset(first, source=2, target=1, val=1, size=SIZE, seed=7, progress=lambda done, _: calls.append(done))
    assert calls == []


def test_pictures_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", source=1, target=1, val=1, size=SIZE)
    write_dataset(tmp_path / "more", source=2, target=2, val=1, size=SIZE)
    few, more = files(tmp_path / "few"), files(tmp_path / "more")
    few.pop(MARKER)
    assert few.items() <= more.items()


def test_an_interrupted_dataset_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "d", source=3, target=1, val=1, size=SIZE, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_anything_is_deterministic_and_has_objects() -> None:
    image, ids = draw_anything(SIZE, np.random.default_rng(1))
    again, same = draw_anything(SIZE, np.random.default_rng(1))
    assert image.shape == (*SIZE, 3)
    assert ids.shape == SIZE
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(ids, same)
    counts = [len(np.unique(draw_anything(SIZE, np.random.default_rng(seed))[1])) for seed in range(20)]
    assert min(counts) >= 2
    assert np.mean(counts) > 6
