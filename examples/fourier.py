"""A view of your own: source images in the colours of the target (FDA: Fourier domain adaptation).

The low frequencies' amplitudes of a source image become those of a target image; phases, and so the labels, stay.

    python examples/fourier.py SETTINGS.yaml runs/fourier
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssrseg import Extensions, Settings, resolve, train
from ssrseg.adapt import Batch, Pseudo, Segmentation, View
from ssrseg.config import read_yaml


@dataclass(frozen=True)
class FourierSource:
    """Make the view `fourier`.

    Args:
        share: half the side of the exchanged square of frequencies, as a share of the image's shorter side.
    """

    share: float = 0.01

    def __call__(self, batch: Batch, pseudo: Pseudo) -> View:
        images = exchange_amplitudes(batch.source, batch.target, self.share)
        return View("fourier", images, batch.labels)  # no trust given: these labels are true ones


def exchange_amplitudes(source: Tensor, target: Tensor, share: float) -> Tensor:
    """Give images (B, 3, H, W) the low frequencies' amplitudes of others of the same size; in [0, 1] again."""
    height, width = source.shape[-2:]
    ours, theirs = (torch.fft.fftshift(torch.fft.fft2(images), dim=(-2, -1)) for images in (source, target))
    amplitude, reach = ours.abs(), int(share * min(height, width))
    rows, columns = (slice(side // 2 - reach, side // 2 + reach + 1) for side in (height, width))
    amplitude[..., rows, columns] = theirs.abs()[..., rows, columns]
    spectrum = torch.fft.ifftshift(torch.polar(amplitude, ours.angle()), dim=(-2, -1))
    images: Tensor = torch.fft.ifft2(spectrum).real.clamp(0, 1)
    return images


def extensions(settings: Settings) -> Extensions:
    """The view, and the segmentation loss on it: a view without a term is an error."""
    return Extensions(terms={"fourier": Segmentation({"fourier"})}, makers=[FourierSource()])


if __name__ == "__main__":
    settings = resolve(read_yaml(Path(sys.argv[1])))
    train(settings, Path(sys.argv[2]), extensions=extensions(settings))
