"""`plan`: settings in, what the run will need out."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import torch

from ssrseg.config import Settings
from ssrseg.planning.advice import Change, advise
from ssrseg.planning.fake_step import rehearse
from ssrseg.planning.probe import probe as probed
from ssrseg.training.distributed import device_type

GIB = 2**30
ROOM = 0.9
"""The share of the memory that the estimated peak may fill: allocators and libraries need the rest."""


@dataclass(frozen=True)
class Plan:
    """What a run will need. Memory is in bytes."""

    device: str
    """`cpu`, `cuda`, `mps`; with the card's name where it is here."""
    steps: int
    parameters: dict[str, int]
    """By part."""
    flops: dict[str, tuple[int, int]]
    """Of one step, by part: forward, backward."""
    memory: dict[str, int]
    """Estimated, by part, at the peak of a step."""
    available: int | None
    """Memory of the device; unknown when absent."""
    steps_per_second: float | None
    """Of one process on this machine; not measured when absent."""
    changes: tuple[Change, ...]
    """What to change so that it fits; empty when it does."""
    notes: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Estimated peak of the device's memory."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Does the estimated peak leave room in the available memory? True where that is unknown."""
        return self.available is None or self.peak <= ROOM * self.available

    @property
    def seconds(self) -> float | None:
        """All steps, without loading data and evaluating."""
        return None if self.steps_per_second is None else self.steps / self.steps_per_second

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return dataclasses.asdict(self) | {"peak": self.peak, "fits": self.fits, "seconds": self.seconds}


def plan(settings: Settings, *, probe: bool = True, memory: float | None = None) -> Plan:
    """What a run of `settings` will need on this machine. No data and no weights are read.

    Args:
        settings: of the run.
        probe: time three real steps on noise, unless they would not fit.
        memory: GiB of the device; what is free on the card, or the machine's memory, when absent.

    Raises:
        UserError: the settings name what does not exist, or parts that do not fit together.
    """
    device = device_type(settings.train)
    here = device != "cuda" or torch.cuda.is_available()
    available = available_memory(device) if memory is None else int(memory * GIB)
    needs = rehearse(settings, device)
    limit = float("inf") if available is None else ROOM * available
    changes = advise(settings, device, needs.peak, limit)
    speed, notes = None, []
    if probe and not here:
        notes.append("no CUDA device is here: nothing was timed")
    elif probe and needs.peak > limit:
        notes.append("it does not fit: nothing was timed")
    elif probe:
        speed = probed(settings)
    if settings.train.compile != "off":
        notes.append("memory is estimated without compilation, which usually needs less")
    name = f"{device} ({torch.cuda.get_device_name()})" if device == "cuda" and here else device
    return Plan(
        name, settings.train.steps, needs.parameters, needs.flops, needs.memory, available, speed, changes, tuple(notes)
    )


def available_memory(device: str) -> int | None:
    """Bytes free on the CUDA device, or the machine's memory; nothing where nobody knows."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on this operating system
        return None
