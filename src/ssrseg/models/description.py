"""What a model is, in words that its weights file keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssrseg.models.plain import Taps

Window = tuple[slice, slice]
"""Rows and columns of an image."""


@dataclass(frozen=True)
class Detail:
    """How a network looks at images twice: at all of a smaller one, and at windows of them as they are (HRDA)."""

    window: tuple[int, int] = (512, 512)
    """(height, width); an image that is smaller is seen whole."""
    stride: tuple[int, int] | None = None
    """Of the windows at inference; half of them when absent."""
    scale: float = 0.5
    """Factor of height and width of the image that gives the context."""
    attention: Literal["classes", "shared"] | float = "classes"
    """How much the detail counts, everywhere: learned for each class or for all together, or a constant."""
    divisor: int = 8
    """Windows in training begin at multiples of this."""
    blurred: bool = False
    """See the windows halved and doubled again: an ablation."""


@dataclass(frozen=True)
class Description:
    """The architecture and classes of a model, in the metadata of its weights file."""

    backbone: str
    head: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...] = ()
    resize: tuple[int, int] | None = None
    """(width, height) that bounded the images of the domain the model was made for."""
    head_channels: int | None = None
    """Width of the head; the published one when absent."""
    align_corners: bool = False
    """How logits are resized: DACS and Undoing align the corners."""
    in_channels: int = 3
    """Bands of the images."""
    value_range: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    """What becomes black and white in images of more than 8 bits, where it was set."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    """Of each band in [0, 1]; the backbone's, repeated, when absent."""
    image_size: tuple[int, int] | None = None
    """(height, width) that the backbone was built for, where its weights depend on it."""
    taps: Taps | None = None
    image_scale: float | None = None
    """Of plain ViTs, as in `build_backbone`."""
    detail: Detail | None = None
    """Of a network that sees context and detail (`MultiResolution`)."""
