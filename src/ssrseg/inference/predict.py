"""Folders of images, labelled: what `results` writes of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.data.images import read_image
from ssrseg.data.layouts import IMAGE_SUFFIXES
from ssrseg.errors import UserError
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.results import CERTAIN, ENDINGS, Kind, Results, values_of_classes
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_atomically, write_json, writing

T = TypeVar("T")
_END = object()


@dataclass(frozen=True)
class Predictions:
    """The result of `predict`."""

    images: tuple[Path, ...]
    """Those that were labelled."""
    files: tuple[Path, ...]
    """Those that were written."""
    unreadable: dict[Path, str]
    """Image -> why it was left out."""

    def __len__(self) -> int:
        return len(self.images)


def predict(
    model: Path | str | Segmenter,
    inputs: Path | str | Sequence[Path | str],
    out: Path,
    *,
    inference: InferenceConfig | None = None,
    kinds: Sequence[Kind] = ("ids", "color", "overlay"),
    values: str | None = None,
    device: str = "auto",
    engine: str = "auto",
) -> Predictions:
    """Label images and write the results at the images' own size.

    `inputs` are a file, a folder (with its sub-folders), a glob, or several of them; `out` is the folder for
    `<name>_ids.png`, `<name>_color.png` and `<name>_overlay.jpg`, or those of `ENDINGS` that `kinds` asks for. With
    `values`, ids are written as those of a layout, such as `cityscapes`, or as `road=7,car=26` says. Sub-folders of an
    input folder or glob are kept; earlier results in `out` are overwritten, inputs never. `model`, `device`, `engine`
    and `inference` (its `mode`) are those of `Predictor`.

    Raises:
        UserError: no image was found or none could be read, results would overwrite images or each other, or `out`
            cannot be written.
    """
    out = Path(out)
    jobs = _jobs([inputs] if isinstance(inputs, str | Path) else inputs, out, kinds)
    predictor = Predictor(model, device, engine, inference or InferenceConfig(), images=len(jobs))
    results = Results(predictor.space)
    if values is not None:
        results.values = values_of_classes(values, predictor.space.names)
    unreadable: dict[Path, str] = {}

    def labelled() -> Iterator[tuple[Path, Tensor, Tensor, Tensor | None]]:
        for path, image in zip(jobs, prefetch(_read(job, predictor.bands) for job in jobs), strict=True):
            if isinstance(image, UserError):
                unreadable[path] = str(image)
            elif CERTAIN.isdisjoint(kinds):
                yield path, image, predictor(image), None
            else:
                certain = predictor.probabilities(image)
                yield path, image, certain.argmax(0), certain

    for path, image, ids, certain in prefetch(labelled()):  # written while the network works
        for kind, place in jobs[path].items():
            write = results.writer(kind, image, ids, certain)
            with writing(place):
                write_atomically(place, write)
        if "coco" in kinds:
            results.collect(path.name, ids)
    files = [out / "coco.json"] if "coco" in kinds else []
    for place in files:
        with writing(place):
            write_json(place, results.coco())
    if len(unreadable) == len(jobs):
        raise UserError("None of the images could be read:\n" + "\n".join(unreadable.values()))
    done = {path: places for path, places in jobs.items() if path not in unreadable}
    written = (*(file for places in done.values() for file in places.values()), *files)
    return Predictions(tuple(done), written, unreadable)


def _read(path: Path, bands: int) -> Tensor | UserError:
    try:
        return read_image(path, bands)
    except UserError as error:
        return error


def _jobs(inputs: Sequence[Path | str], out: Path, kinds: Sequence[Kind]) -> dict[Path, dict[Kind, Path]]:
    """Find every image, and where its results go."""
    owners: dict[Path, Path] = {}
    for word in inputs:
        for path, root in _images(word, out):
            stem = out / path.relative_to(root).with_suffix("")
            other = owners.setdefault(stem, path)
            if other.resolve() != path.resolve():
                raise UserError(
                    f"{other} and {path} would have the same results, {stem}_*: label them into two folders."
                )
    each = [kind for kind in kinds if kind in ENDINGS]  # the others are one file for all
    jobs = {path: {kind: stem.with_name(stem.name + ENDINGS[kind]) for kind in each} for stem, path in owners.items()}
    images = {path.resolve() for path in jobs}
    for path, results in jobs.items():
        if taken := [result for result in results.values() if result.resolve() in images]:
            raise UserError(
                f"The result of {path} would overwrite the image {taken[0]}: give another folder for results."
            )
    return jobs


def find_pictures(folder: Path | str) -> list[Path]:
    """Find all images in a folder and below; none where there is no folder."""
    return [file for file in Path(folder).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]


def _images(word: Path | str, out: Path) -> Iterator[tuple[Path, Path]]:
    """Find the images that a word means, each with the folder that its results are named relative to."""
    path = Path(word)
    if path.is_file():
        yield path, path.parent
        return
    if path.is_dir():
        root, found = path, find_pictures(path)
    else:
        fixed = next((i for i, part in enumerate(path.parts) if any(sign in part for sign in "*?[")), len(path.parts))
        root, pattern = Path(*path.parts[:fixed]), path.parts[fixed:]
        found = list(root.glob(str(Path(*pattern)))) if pattern and root.is_dir() else []
    inside = out.resolve() if out.resolve() != root.resolve() else None
    files = [file for file in found if file.is_file() and (inside is None or inside not in file.resolve().parents)]
    if not files:
        raise UserError(f"There is no image at {word}: expected an image, a folder with images, or a glob.")
    yield from ((file, root) for file in sorted(files))


def prefetch(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """Iterate in order, up to `count` items made in advance by one thread; errors come in their turn."""
    source = iter(items)
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Any]] = deque(reader.submit(next, source, _END) for _ in range(count))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(reader.submit(next, source, _END))
            yield item
