"""The networks of a run, run once on tensors without data at every size that they will meet, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Generator

from ssrseg.adapt.batch import View
from ssrseg.adapt.methods import build_method
from ssrseg.adapt.terms import Term
from ssrseg.adapt.views import BlockMask
from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.data import find_images, resolve_space
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError
from ssrseg.inference.sliding_window import Size, build_inference
from ssrseg.training.setup import build_student

HEADERS = 8
"""Images of each data set whose size is looked up, evenly spread."""
STEPS = (32, 64, 128, 224)
"""Nearest crops are looked for among multiples of these."""

_fitting: set[str] = set()
"""Settings that fit, so that the seeds of a group ask once."""


@dataclass(frozen=True)
class Misfit:
    """A size that cannot pass."""

    text: str
    setting: str
    """What would change it."""
    size: Size


def rehearse(settings: Settings, *, regularized: bool = True) -> None:
    """Run student, teacher, terms and frozen encoders as training will, and the inference of whole images.

    No weights are read, and of the data the headers of a few files. The regularizer is left out unless `regularized`.

    Raises:
        UserError: a size cannot pass; the message names the nearest settings with which all can.
    """
    if not regularized:
        settings = settings.model_copy(update={"method": settings.method.model_copy(update={"regularizer": None})})
    sizes = sorted(set(_image_sizes(settings)) - {settings.loader.crop})
    images = sizes[:1] + sizes[1:][-1:]  # the least tall and the tallest
    names = resolve_space(settings.classes, settings.source).names
    key = settings.model_dump_json(include={"model", "method", "loader", "inference"}) + str((names, images))
    if key in _fitting or find_misfit(settings, images) is None:
        _fitting.add(key)
        return
    found = find_misfit(settings, images, "cpu")  # with data: there may be operations that do not run without
    if found is None:
        return
    other = (word for word in _alternatives(settings, found) if find_misfit(with_word(settings, word), images) is None)
    works = " or ".join(islice(other, 2))
    raise UserError(f"{found.text}\n" + (f"This works: {works}." if works else "Choose another backbone or head."))


def find_misfit(settings: Settings, images: Sequence[Size], device: str = "meta") -> Misfit | None:
    """Find the first size that cannot pass: of crops, then of whole `images`."""
    settings, loader = without_weights(settings), settings.loader
    space, masked = resolve_space(settings.classes, settings.source), settings.method.masked
    if masked is not None and (why := _reason(BlockMask(Generator(), 0.5, masked.block), (1, 3, *loader.of_target))):
        return Misfit(f"No mask has blocks of {masked.block} pixels: {why}", "method.masked.block", loader.of_target)
    with torch.device(device), torch.no_grad():
        student, _ = build_student(settings, space)
        unmasked = settings.method.model_copy(update={"masked": None})  # its maker has data; `_views` makes the view
        # The ImageNet features are those of the student's own backbone at the size that it has seen.
        method = build_method(
            unmasked, student, classes=space.names, crop=loader.crop, imagenet=lambda _: torch.zeros(())
        )
        for encoder in method.frozen:
            encoder.to(device)
        method.learner.train()
        done = dict[Size, set[str]]()
        for view in _views(settings, student.in_channels):
            count, _, height, width = view.images.shape
            named = cast(Mapping[str, Term], method.learner.terms)
            terms = {name for name, term in named.items() if view.name in term.views}
            if terms <= done.get((height, width), set()):
                continue
            done[height, width] = terms
            if why := _reason(method.learner, view):
                setting = "loader.target_crop" if loader.target_crop == (height, width) else "loader.crop"
                what = f"The student cannot train on crops, {count} of {height}x{width} pixels ({view.name}): {why}"
                return Misfit(what, setting, (height, width))
        student.eval()
        infer = build_inference(settings.inference)
        for height, width in images:
            if why := _reason(infer, student, torch.zeros(1, student.in_channels, height, width), None):
                what = f"The student cannot label whole images of {height}x{width} pixels: {why}"
                return Misfit(what, "inference", (height, width))
    return None


def _views(settings: Settings, bands: int) -> Iterator[View]:
    """Yield the views that the method's makers make, without data; a teacher sees the target's size too."""
    method, loader = settings.method, settings.loader
    masked = method.masked and method.masked.images_of
    shapes = {"source": (loader.batch, loader.crop)}
    shapes |= {"target": (loader.batch, loader.of_target)} if method.alignment or method.teacher else {}
    shapes |= {"mixed": (loader.batch, loader.crop)} if method.mixed else {}
    if masked:
        shapes["masked"] = (loader.batch, loader.of_target if masked == "target" else loader.crop)
    for name, (count, size) in shapes.items():
        labels, trust = torch.zeros(count, *size, dtype=torch.int64), torch.ones(count, *size)
        yield View(name, torch.zeros(count, bands, *size), labels, None if name == "source" else trust)


def _image_sizes(settings: Settings) -> Iterator[Size]:
    """Yield (height, width) of some images that will be labelled whole."""
    for data in (settings.val, settings.target if settings.selection is not None else None):
        paths = [] if data is None else find_images(data)
        for path in paths[:: max(1, len(paths) // HEADERS)]:
            width, height = read_header(path).shown
            if data is not None and data.resize is not None:
                width, height = rescale_size(width, height, data.resize)
            yield height, width


def _reason(function: Callable[..., Any], *inputs: Any) -> str:
    """Run a function; return why that is not possible, in a line, empty if it is."""
    try:
        function(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, UserError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _alternatives(settings: Settings, misfit: Misfit) -> Iterator[str]:
    """Yield `key.path=value` words that may help, the nearest first."""
    (height, width), crop = misfit.size, settings.loader.crop
    if misfit.setting == "inference":
        yield f"inference={{mode: slide, window: {[*crop]}, stride: {[-(-2 * side // 3) for side in crop]}}}"
        return
    if misfit.setting == "method.masked.block":
        yield f"method.masked.block={max(1, min(height, width) // 2)}"
        return
    if settings.loader.batch == 1:
        yield "loader.batch=2"
    near = {(max(1, height // s) * s, max(1, width // s) * s) for s in STEPS}
    near |= {(-(-height // s) * s, -(-width // s) * s) for s in STEPS} | {(2 * height, 2 * width)}
    for size in sorted(near - {misfit.size}, key=lambda size: abs(size[0] - height) + abs(size[1] - width)):
        yield f"{misfit.setting}={[*size]}"


def with_word(settings: Settings, word: str) -> Settings:
    """Change one `key.path=value` of the settings."""
    return resolve(merge(settings.model_dump(mode="json"), assignments([word])))


def without_weights(settings: Settings) -> Settings:
    """Ask for the same networks with random weights: they cost the same, and no file is needed."""
    over: dict[str, Any] = {"model": {"pretrained": "none", "start": None}}
    if settings.method.regularizer is not None:
        over["method"] = {"regularizer": {"foundation": {"weights": "none"}}}
    return resolve(merge(settings.model_dump(mode="json"), over))
