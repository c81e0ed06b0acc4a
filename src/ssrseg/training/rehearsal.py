"""The networks of a run, run once on tensors without data at every size that they will meet, before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from shlex import quote
from typing import Any, cast

import torch
from torch import Generator

from ssrseg.adapt.batch import View
from ssrseg.adapt.methods import build_method
from ssrseg.adapt.terms import Term
from ssrseg.adapt.views import BlockMask, detail_window
from ssrseg.config import Settings, datasets, with_words
from ssrseg.data import find_images, resolve_space
from ssrseg.data.checks.inspect import read_header
from ssrseg.data.transforms import rescale_size
from ssrseg.errors import UserError, out_of_memory
from ssrseg.inference.sliding_window import Size, build_inference
from ssrseg.models.segmenter import Segmenter
from ssrseg.training.deterministic import REFUSAL
from ssrseg.training.setup import build_student, built_size

HEADERS = 8
"""Images of each data set whose size is looked up, evenly spread."""
SMALL = 2**15
"""Pixels up to which a network runs faster with data on the CPU than without."""
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

    No pretrained weights are read, and of the data the headers of a few files. What uses a frozen encoder is left out
    unless `regularized`, and where that sees every crop at a size of its own, which it was built for.

    Raises:
        UserError: a size cannot pass; the message names the nearest settings with which all can.
    """
    method = settings.method.replace_foundations(
        lambda foundation: foundation if regularized and foundation.input_size == "native" else None
    )
    settings = settings.model_copy(update={"method": method})
    sizes = sorted(set(_image_sizes(settings)) - {settings.loader.crop})
    images = sizes[:1] + sizes[1:][-1:]  # the least tall and the tallest
    names = resolve_space(settings.classes, settings.source).names
    key = settings.model_dump_json(include={"model", "method", "loader", "inference"}) + str((names, images))
    if key in _fitting:
        return
    if (found := _confirmed(settings, images)) is None:
        _fitting.add(key)
        return
    other = (quote(word) for word in _alternatives(settings, found) if _works(settings, word, images))
    works = " or ".join(islice(other, 2))
    raise UserError(f"{found.text}\n" + (f"This works: {works}." if works else "Choose another backbone or head."))


def _confirmed(settings: Settings, images: Sequence[Size]) -> Misfit | None:
    """Find what cannot pass without data, where that is faster, and with it: some operations run on data alone."""
    loader = settings.loader
    crops = (loader.batch * height * width for height, width in (loader.crop, loader.of_target))
    small = max(*crops, *(height * width for height, width in images)) <= SMALL
    found = None
    for device in ("cpu",) if small else ("meta", "cpu"):
        if (found := find_misfit(settings, images, device)) is None:
            break
    return found


def _works(settings: Settings, word: str, images: Sequence[Size]) -> bool:
    try:
        return _confirmed(with_words(settings, [word]), images) is None
    except UserError:  # it breaks another rule of the settings
        return False


def find_misfit(settings: Settings, images: Sequence[Size], device: str = "meta") -> Misfit | None:
    """Find the first size that cannot pass: of crops, then of whole `images`."""
    size, settings, loader = built_size(settings), without_weights(settings), settings.loader
    space, masked = resolve_space(settings.classes, settings.source), settings.method.masked
    if masked is not None and (why := _reason(BlockMask(Generator(), 0.5, masked.block), (1, 3, *loader.of_target))):
        return Misfit(f"No mask has blocks of {masked.block} pixels: {why}", "method.masked.block", loader.of_target)
    with torch.random.fork_rng([]), torch.device(device), torch.no_grad():
        student, _ = build_student(settings, space, size)
        unmasked = settings.method.model_copy(update={"masked": None})  # its maker has data; `_views` makes the view
        # The ImageNet features are those of the student's own backbone at the size that it has seen.
        method = build_method(
            unmasked, student, classes=space.names, crop=loader.crop, imagenet=lambda _: torch.zeros(())
        )
        for encoder in method.frozen:
            encoder.to(device)
        method.learner.train()
        done = dict[Size, set[str]]()
        for view in _views(settings, student):
            count, _, height, width = view.images.shape
            named = cast(Mapping[str, Term], method.learner.terms)
            terms = {name for name, term in named.items() if view.name in term.views}
            teacher = method.teacher.segmenter if view.name == "target" else None
            terms |= {"segmentation"} if teacher is not None else set()  # it is the student's network
            if terms <= done.get((height, width), set()):
                continue
            done.setdefault((height, width), set()).update(terms)
            why = _reason(method.learner, view)
            if why := why or (_reason(teacher, view.images) if teacher is not None else ""):
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


def _views(settings: Settings, student: Segmenter) -> Iterator[View]:
    """Yield the views that the method's makers make, without data; a teacher sees the target's size too."""
    method, loader = settings.method, settings.loader
    masked = method.masked and method.masked.images_of
    shapes = {"source": (loader.batch, loader.crop)}
    shapes |= {"target": (loader.batch, loader.of_target)} if method.has_target_view or method.teacher else {}
    shapes |= {"labelled": (loader.of_labelled, loader.crop)} if method.labelled else {}
    shapes |= {"mixed": (loader.batch, loader.crop)} if method.mixed else {}
    if masked:
        shapes["masked"] = (loader.batch, loader.of_target if masked == "target" else loader.crop)
    for name, (count, size) in shapes.items():
        labels, trust = torch.zeros(count, *size, dtype=torch.int64), torch.ones(count, *size)
        window = None if student.detail is None else detail_window(size, student.detail, lambda places: 0)
        images = torch.zeros(count, student.in_channels, *size)
        yield View(name, images, labels, None if name == "source" else trust, window=window)


def _image_sizes(settings: Settings) -> Iterator[Size]:
    """Yield (height, width) of some images that will be labelled whole."""
    for data in (*datasets(settings.val), *datasets(settings.target if settings.selection is not None else None)):
        for path in find_images(data, at_most=HEADERS):
            width, height = read_header(path).shown
            if data.resize is not None:
                width, height = rescale_size(width, height, data.resize)
            yield height, width


def _reason(function: Callable[..., Any], *inputs: Any) -> str:
    """Run a function; return why that is not possible, in a line, empty if it is."""
    try:
        function(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, UserError, MemoryError) as error:
        if out_of_memory(error) or REFUSAL in str(error):  # it is not the size, or not on the run's own device
            return ""
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


def without_weights(settings: Settings) -> Settings:
    """Ask for the same networks with random weights: they cost the same, and no file is needed."""
    model = settings.model.model_copy(update={"pretrained": "none", "start": None})
    method = settings.method.replace_foundations(lambda each: each.model_copy(update={"weights": "none"}))
    return settings.model_copy(update={"model": model, "method": method})
