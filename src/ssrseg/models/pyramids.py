"""timm's architectures as pyramids of four levels, and the sizes of images that each takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import timm
import torch

from ssrseg.errors import UserError
from ssrseg.models.plain import PlainPyramid, Taps, plain_stride

Size = tuple[int, int]
"""(height, width)."""
STRIDE = 32
"""Of the coarsest level."""
ODD, EVEN = (107, 75), (96, 160)
"""Sizes to try: halved again and again, the first is odd at many levels, rounded up or down; the other at none."""
WINDOWED = {"strict_img_size": False, "always_partition": True}
"""Swin's: windows keep their side whatever the image's, which is padded to them, as in segmentation since the paper."""
NO_PYRAMID = (
    "this program's heads need four, each coarser than the one before, such as strides 4, 8, 16 and 32. Pyramids are "
    "mit_b2, timm:convnext_tiny, timm:swin_tiny_patch4_window7_224, timm:hiera_tiny_224; one is made of a plain ViT "
    "such as dinov2-s."
)


@dataclass(frozen=True)
class ImageSizes:
    """The sizes of images that a pyramid takes."""

    built: Size | None = None
    """The size that it was built for; absent where its weights are the same for every size."""
    multiple: Size = (1, 1)
    """Heights and widths must be multiples of these."""
    largest: Size | None = None
    """The only size, up to which smaller images are padded; absent where there is no bound."""
    scale: float | None = None
    """Images are resized to the multiples instead of padded: so many times as large, rounded down, but never smaller
    than they are."""

    def seen(self, size: Sequence[int]) -> Size:
        """Compute the (height, width) at which the pyramid sees an image that it has resized or padded."""
        scale = self.scale or 1.0
        height, width = (
            step * max(-(-side // step), int(scale * side) // step)
            for side, step in zip(size, self.multiple, strict=True)
        )
        return height, width


def create_pyramid(
    name: str, options: Mapping[str, Any], drop_path: float, *, weights: bool = False, taps: Taps = "last"
) -> Any:
    """Create the last four levels of timm's `name`, or make four of a plain ViT; `weights` downloads published ones.

    Raises:
        UserError: it is no pyramid of four levels.
    """
    if (patch := plain_stride(name)) is not None:
        return PlainPyramid(_create(name, drop_path, {**options, "pretrained": weights, "num_classes": 0}), patch, taps)
    options = {**options, "pretrained": weights, "features_only": True}
    try:
        pyramid = _create(name, drop_path, options)
        strides = list(pyramid.feature_info.reduction())
        if len(strides) > 4:
            last = tuple(pyramid.feature_info.out_indices[-4:])
            pyramid = _create(name, drop_path, {**options, "out_indices": last})
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise UserError(f"timm cannot build {name!r} as a pyramid: {error}") from error
    if len(strides) < 4 or len(set(strides)) == 1:
        levels = f"are all of stride {strides[0]}" if len(set(strides)) == 1 else f"have the strides {strides}"
        raise UserError(f"'timm:{name}' is no pyramid of four levels: its features {levels}; {NO_PYRAMID}")
    return pyramid


@lru_cache
def options_for(name: str, size: Size | None) -> tuple[Mapping[str, Any], ImageSizes]:
    """Find how to build timm's `name` so that it takes images of `size` and larger ones, and which it takes.

    Tried on tensors without data, in this order: as it is; with windows that do not follow the image; built for
    `size`, if there is one, rounded up to multiples of `STRIDE`; at its published size.

    Raises:
        UserError: it is no pyramid, or takes none of these sizes.
    """
    reason: Exception | None = None
    for options, candidates in _ways(name, size):
        with torch.device("meta"):
            try:
                pyramid = create_pyramid(name, options, 0.0).eval()
            except TypeError:  # it has no such option
                continue
            except UserError as error:
                if not options:
                    raise
                reason = reason or error
                continue
        table = plain_stride(name) is None and any(
            weight.endswith("rel_pos_h") for weight, _ in pyramid.named_parameters()
        )
        for image, sizes in candidates:
            if table:  # MViTv2's positions are looked up in one of its published size, which needs data to fail
                sizes = replace(sizes, largest=_published(name))
            try:
                with torch.no_grad():
                    pyramid(torch.empty(1, 3, *image, device="meta"))
            except (RuntimeError, ValueError, AssertionError, IndexError) as error:
                reason = error
            else:
                return options, sizes
    raise UserError(f"'timm:{name}' runs neither at the size of the crops, {size}, nor at its published one: {reason}")


def _ways(name: str, size: Size | None) -> Iterator[tuple[dict[str, Any], list[tuple[Size, ImageSizes]]]]:
    """Yield options, and images to try with what is known if they work."""
    if (patch := plain_stride(name)) is not None:
        resized = (4 * patch, 6 * patch), ImageSizes(multiple=(2 * patch, 2 * patch), scale=1.0)
        yield {"dynamic_img_size": True}, [resized]
        yield {}, [resized]
    even = EVEN, ImageSizes(multiple=(STRIDE, STRIDE))
    yield {}, [(ODD, ImageSizes()), even]
    yield dict(WINDOWED), [even]
    if size is not None:
        height, width = (-(-side // STRIDE) * STRIDE for side in size)
        side = max(height, width)
        for built in dict.fromkeys([(height, width), (side, side)]):
            yield {"img_size": built}, _at(built, built)
    yield {}, _at(_published(name), None)


def _published(name: str) -> Size:
    config: Any = timm.get_pretrained_cfg(name)
    height, width = config.input_size[-2:] if config else (224, 224)
    return height, width


def _at(size: Size, built: Size | None) -> list[tuple[Size, ImageSizes]]:
    several = (2 * size[0], 3 * size[1])
    return [(several, ImageSizes(built, multiple=size)), (size, ImageSizes(built, multiple=size, largest=size))]


def _create(name: str, drop_path: float, options: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(name, drop_path_rate=drop_path, **options)
    except TypeError:  # the architecture has no stochastic depth
        return timm.create_model(name, **options)
