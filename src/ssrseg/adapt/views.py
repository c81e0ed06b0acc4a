"""View makers: what the student is trained on, made of the batch and the teacher's labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ssrseg.adapt import distributed
from ssrseg.adapt.batch import Batch, Pseudo, View, to_device
from ssrseg.errors import UserError
from ssrseg.models.description import Detail, Window

Images = Callable[[Tensor], Tensor]


def unchanged(images: Tensor) -> Tensor:
    """Return the images as they are: no augmentation."""
    return images


def clean_of(images: Tensor, augment: Images) -> Tensor | None:
    """Return the images that `augment` will change, for `View.clean`; `None` where it leaves them as they are."""
    return None if augment is unchanged else images


@dataclass(frozen=True)
class Zoomed:
    """Let a maker's view have a window, for a student that looks twice (HRDA).

    Args:
        maker: of the view.
        draw: (height, width) of its images -> window.
    """

    maker: Callable[[Batch, Pseudo], View]
    draw: Callable[[tuple[int, int]], Window]

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        view = self.maker(batch, pseudo)
        height, width = view.images.shape[-2:]
        return replace(view, window=self.draw((height, width)))


@dataclass(frozen=True)
class DetailWindow:
    """Draw where images are seen in detail: one window for the whole batch, alike in every process."""

    generator: Generator
    detail: Detail

    def __call__(self, size: tuple[int, int]) -> Window:
        """Map the (height, width) of images to a window."""
        return detail_window(size, self.detail, lambda count: int(torch.randint(count, (), generator=self.generator)))


def detail_window(size: tuple[int, int], detail: Detail, draw: Callable[[int], int]) -> Window:
    """Draw a window of images of `size`, which begins at multiples of the divisor, but never at the last (HRDA's code).

    An axis without room for a draw is seen from its beginning. `draw` gives a number below its argument, rows first.
    """
    spans = []
    for side, window in zip(size, detail.window, strict=True):
        places = (side - window + 1) // detail.divisor
        start = detail.divisor * draw(places) if places > 0 else 0
        spans.append(slice(start, start + min(window, side)))
    return spans[0], spans[1]


@dataclass(frozen=True)
class Source:
    """Make the source view: the labelled domain, augmented or not.

    Args:
        augment: applied to the images.
        style: (source, target) images -> source images that look like the target's, before they are augmented.
    """

    augment: Images = unchanged
    style: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        images = batch.source if self.style is None else self.style(batch.source, batch.target)
        clean = batch.source if self.style is not None else clean_of(images, self.augment)
        return View("source", self.augment(images), batch.labels, inside=batch.source_inside, clean=clean)


@dataclass(frozen=True)
class Labelled:
    """Make the labelled view: the few target images that have labels.

    Args:
        augment: applied to the images.
        weight: factor of the trust.
    """

    augment: Images = unchanged
    weight: float = 1.0

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        images, labels = batch.labelled, batch.labelled_labels
        if images is None or labels is None:
            raise UserError("The batch has no labelled target images: target.labelled names them.")
        trust = None if self.weight == 1 else torch.full_like(images[:, 0], self.weight)
        clean = clean_of(images, self.augment)
        return View("labelled", self.augment(images), labels, trust, batch.labelled_inside, clean)


@dataclass(frozen=True)
class Target:
    """Make the target view: the unlabelled domain with the teacher's labels, for alignment and terms of your own."""

    augment: Images = unchanged

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        images, clean = self.augment(batch.target), clean_of(batch.target, self.augment)
        return View("target", images, pseudo.labels, pseudo.trust, batch.target_inside, clean)


@dataclass(frozen=True)
class Mixed:
    """Paste classes of the source, with trust 1, onto the target (ClassMix, as DACS and DAFormer use it).

    Args:
        draw: source labels (B, H, W) -> which pixels to paste (B, H, W) bool.
        augment: applied to the mixed images, after mixing.
    """

    draw: Callable[[Tensor], Tensor]
    augment: Images = unchanged

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        pasted = self.draw(batch.labels)
        images = torch.where(pasted[:, None], batch.source, batch.target)
        labels = torch.where(pasted, batch.labels, pseudo.labels)
        trust = torch.where(pasted, 1, pseudo.trust)
        return View("mixed", self.augment(images), labels, trust, clean=clean_of(images, self.augment))


@dataclass(frozen=True)
class ClassMix:
    """Draw half of the classes (rounded up) for every image: labels (B, H, W) -> pixels to paste (B, H, W) bool.

    Ignored pixels count as a class: pasted, they bring no loss. The draw is made of random keys on the CPU
    and a sort on the device: nothing waits for the labels.

    Args:
        generator: on the CPU, alike in every process.
        of_batch: draw from the classes of the whole batch, over all processes (MIC's port of DACS), else of each
            image (DACS).
    """

    generator: Generator
    of_batch: bool = True

    def __call__(self, labels: Tensor) -> Tensor:
        present = classes_present(labels)
        if self.of_batch:
            present = distributed.all_any(present.any(dim=0, keepdim=True)).expand_as(present)
        count, values = present.shape
        keys = torch.rand(distributed.world() * count, values, generator=self.generator)[distributed.rows(count)]
        return class_mask(labels, choose_half(present, to_device(keys, labels.device)))


def classes_present(labels: Tensor) -> Tensor:
    """Return which of the 256 label values occur in each image: (B, 256) bool."""
    present = torch.zeros(len(labels), 256, dtype=torch.bool, device=labels.device)
    return present.scatter_(1, labels.flatten(1), True)


def choose_half(present: Tensor, keys: Tensor) -> Tensor:
    """Choose the ceil(n / 2) present classes with the smallest keys, per image: (B, 256) bool."""
    rank = torch.where(present, keys, torch.inf).argsort(dim=1).argsort(dim=1)
    return rank < (present.sum(dim=1, keepdim=True) + 1) // 2


def class_mask(labels: Tensor, chosen: Tensor) -> Tensor:
    """Select the pixels whose class is chosen for their image: (B, H, W) and (B, 256) bool -> (B, H, W) bool."""
    return chosen.gather(1, labels.flatten(1)).view_as(labels)


@dataclass(frozen=True)
class Masked:
    """Hide most blocks of the images, which the student must label from context (MIC).

    Args:
        draw: image shape (B, 3, H, W) -> visible pixels (B, 1, H, W) bool.
        fill: the colour of hidden pixels (1, 3, 1, 1): the mean colour of the network's normalisation.
        select: makes the images, labels and trust to mask: `Target()`, `Source()` or `first_of_both`.
        weight: lambda of the paper, a factor of the trust.
        augment: applied before masking.
    """

    draw: Callable[[torch.Size], Tensor]
    fill: Tensor
    select: Callable[[Batch, Pseudo], View]
    weight: float = 1.0
    augment: Images = unchanged

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        view = self.select(batch, pseudo)
        images = self.augment(view.images)
        visible = to_device(self.draw(images.shape), images.device)
        trust = torch.ones_like(images[:, 0]) if view.trust is None else view.trust
        masked = torch.where(visible, images, to_device(self.fill, images.device))
        return View("masked", masked, view.labels, self.weight * trust, clean=view.images)


def first_of_both(batch: Batch, pseudo: Pseudo) -> View:
    """Select the first source and the first target image of this process (the reference's mode `separate`)."""
    trust = torch.stack([torch.ones_like(pseudo.trust[0]), pseudo.trust[0]])
    images = torch.stack([batch.source[0], batch.target[0]])
    return View("both", images, torch.stack([batch.labels[0], pseudo.labels[0]]), trust)


@dataclass(frozen=True)
class BlockMask:
    """Draw which square blocks stay visible (MIC, section 3.2)."""

    generator: Generator
    ratio: float = 0.7
    block: int = 32

    def __call__(self, shape: torch.Size) -> Tensor:
        """Map an image shape (B, C, H, W) to visible pixels (B, 1, H, W) bool."""
        batch, _, height, width = shape
        grid = (distributed.world() * batch, 1, round(height / self.block), round(width / self.block))
        draw = torch.rand(grid, generator=self.generator)[distributed.rows(batch)]
        return block_mask(draw, self.ratio, (height, width))


def block_mask(draw: Tensor, ratio: float, size: tuple[int, int]) -> Tensor:
    """Show the blocks whose draw exceeds `ratio`: draw (B, 1, h, w) in [0, 1) -> bool (B, 1) + `size`."""
    return F.interpolate((draw > ratio).float(), size, mode="nearest").bool()
