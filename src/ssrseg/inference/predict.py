"""Folders of images, labelled: what `results` writes of each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from ssrseg.config import InferenceConfig
from ssrseg.data.frames import VIDEO_SUFFIXES
from ssrseg.data.images import count_pages, read_image, set_max_pixels, shown_size
from ssrseg.data.names import IMAGE_SUFFIXES
from ssrseg.data.unmatched import NO_PICTURES, name_files
from ssrseg.errors import UserError, first_line, out_of_memory
from ssrseg.inference.predictor import Predictor
from ssrseg.inference.rasters import Raster, is_large, write_large
from ssrseg.inference.results import CERTAIN, ENDINGS, Kind, Results, values_of_classes
from ssrseg.models.segmenter import Segmenter
from ssrseg.runs.atomic import write_atomically, write_json, writing

BY_BANDS = frozenset[Kind](("ids", "color", "overlay", "geotiff"))
"""What is written of large pictures by bands."""
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
    skipped: tuple[Path, ...] = ()
    """Files in the folder that have the ending of no image that is read."""
    pages: dict[Path, int] = field(default_factory=dict)
    """Image of several pages or frames, the first of which was labelled -> their number."""

    @property
    def complete(self) -> bool:
        """Whether everything was labelled but videos and files that are no pictures, as notes beside them."""
        others = {*NO_PICTURES, *VIDEO_SUFFIXES}
        return not (self.unreadable or self.pages or any(path.suffix.lower() not in others for path in self.skipped))

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
    and `inference` (its `mode`) are those of `Predictor`. In mode `slide`, or by a model that sees images resized, a
    picture of 33 million pixels or more is read (a TIFF), labelled and written by bands, as these three and a GeoTIFF,
    and its overlay is an overview.

    What cannot be labelled, because it cannot be read or does not fit into the memory, is named in the result, as are
    files with the endings of no image.

    Raises:
        UserError: no image was found or none could be read, results would overwrite images or each other, or `out`
            cannot be written.
        RuntimeError, MemoryError: the memory is too small for each of them.
    """
    out = Path(out)
    if inference is not None and inference.max_pixels is not None:
        set_max_pixels(inference.max_pixels)
    jobs, skipped = _jobs([inputs] if isinstance(inputs, str | Path) else inputs, out, kinds)
    predictor = Predictor(model, device, engine, inference or InferenceConfig(), images=len(jobs))
    results = Results(predictor.space)
    if values is not None:
        results.values = values_of_classes(values, predictor.space.names)
    labelling = _Labelling(predictor, results, jobs, kinds)
    for path, image, ids, certain in prefetch(labelling):  # written while the network works
        for kind, place in jobs[path].items():
            write = results.writer(kind, path, image, ids, certain)
            with writing(place):
                write_atomically(place, write)
        if "coco" in kinds:
            results.collect(path.name, ids)
    files = [out / "coco.json"] if "coco" in kinds else []
    for place in files:
        with writing(place):
            write_json(place, results.coco())
    if len(labelling.exhausted) == len(jobs):  # it is not a picture that is too large
        raise labelling.exhausted[0]
    unreadable = labelling.unreadable
    if len(unreadable) == len(jobs):
        raise UserError("None of the images could be read:\n" + "\n".join(unreadable.values()))
    done = {path: places for path, places in jobs.items() if path not in unreadable}
    written = (*(file for places in done.values() for file in places.values()), *files)
    pages = {path: count for path in done if (count := count_pages(path)) > 1}
    return Predictions(tuple(done), written, unreadable, skipped, pages)


@dataclass
class _Labelling:
    """Yield path, image, ids and, where a kind needs them, probabilities of what is to be written; note what is not."""

    predictor: Predictor
    results: Results
    jobs: Mapping[Path, dict[Kind, Path]]
    kinds: Sequence[Kind]
    unreadable: dict[Path, str] = field(default_factory=dict)
    exhausted: list[Exception] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Path, Tensor, Tensor, Tensor | None]]:
        for path, image in zip(self.jobs, prefetch(map(self._read, self.jobs)), strict=True):
            try:
                if isinstance(image, UserError):
                    self.unreadable[path] = str(image)
                elif isinstance(image, Raster):
                    with image, writing(self.jobs[path][self.kinds[0]]):
                        write_large(self.predictor, path, image, self.results, self.jobs[path])
                else:
                    certain = None if CERTAIN.isdisjoint(self.kinds) else self.predictor.probabilities(image)
                    yield path, image, self.predictor(image) if certain is None else certain.argmax(0), certain
            except Exception as error:  # of torch, or of the runtime of an exported file
                if not out_of_memory(error):
                    raise
                windows = "smaller inference.window" if self.predictor.inference.mode == "slide" else "--mode slide"
                self.unreadable[path] = f"{path} does not fit into the memory: use {windows} ({first_line(error)})."
                self.exhausted.append(error)

    def _read(self, path: Path) -> Tensor | Raster | UserError:
        try:
            if BY_BANDS.issuperset(self.kinds) and is_large(self.predictor, shown_size(path)[::-1]):
                return Raster(path, self.predictor.reading)
            return read_image(path, self.predictor.reading)
        except UserError as error:
            return error
        except MemoryError as error:
            return UserError(f"{path} does not fit into the memory: {first_line(error)}.")


def _jobs(
    inputs: Sequence[Path | str], out: Path, kinds: Sequence[Kind]
) -> tuple[dict[Path, dict[Kind, Path]], tuple[Path, ...]]:
    """Find every image, and where its results go; also the files that are not read."""
    owners: dict[Path, Path] = {}
    skipped: list[Path] = []
    for word in inputs:
        found, root = _files(word, out)
        images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES or Path(word).is_file()]
        skipped += [path for path in found if path not in images]
        if not images:
            listed = f" It holds {name_files(found)}, which are not read." if found else ""
            raise UserError(f"There is no image at {word}: expected an image, a folder with images, or a glob.{listed}")
        for path in images:
            stem = out / path.relative_to(root).with_suffix("")
            other = owners.setdefault(stem, path)
            if _real(other) != _real(path):
                raise UserError(
                    f"{other} and {path} would have the same results, {stem}_*: label them into two folders."
                )
    each = [kind for kind in kinds if kind in ENDINGS]  # the others are one file for all
    jobs = {path: {kind: stem.with_name(stem.name + ENDINGS[kind]) for kind in each} for stem, path in owners.items()}
    originals = {_real(path) for path in jobs}
    for path, results in jobs.items():
        if taken := [result for result in results.values() if result.resolve() in originals]:
            raise UserError(
                f"The result of {path} would overwrite the image {taken[0]}: give another folder for results."
            )
    return jobs, tuple(skipped)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # `resolve` raises for a link to itself


def find_pictures(folder: Path | str) -> list[Path]:
    """Find all images in a folder and below; none where there is no folder."""
    return [file for file in Path(folder).rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]


def _files(word: Path | str, out: Path) -> tuple[list[Path], Path]:
    """Find the files that a word means, sorted, and the folder that results are named relative to."""
    path = Path(word).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        root, found = path, list(path.rglob("*"))
    else:
        signs = [any(sign in part for sign in "*?[") for part in path.parts]
        there = [Path(*path.parts[: i + 1]).exists() for i in range(len(signs))]  # as a folder called `run [2]`
        fixed = next((i for i, sign in enumerate(signs) if sign and not there[i]), len(signs))
        root, pattern = Path(*path.parts[:fixed]), path.parts[fixed:]
        found = list(root.glob(str(Path(*pattern)))) if pattern and root.is_dir() else []
    inside = out.resolve() if out.resolve() != root.resolve() else None
    # Pipes and links to nothing among them, to be named.
    files = [file for file in found if not file.is_dir() and (inside is None or inside not in _real(file).parents)]
    return sorted(file for file in files if not file.name.startswith(".")), root


def prefetch(items: Iterable[T], count: int = 2) -> Iterator[T]:
    """Iterate in order, up to `count` items made in advance by one thread; errors come in their turn."""
    source = iter(items)
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[Future[Any]] = deque(reader.submit(next, source, _END) for _ in range(count))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(reader.submit(next, source, _END))
            yield item
