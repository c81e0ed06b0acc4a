"""What a case is, and what it means to be the same."""

import importlib.util
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from parity import fill_rule

NOISE = 1e-8
"""Sizes below this are rounding noise: the denominator of a relative difference is never smaller."""


class Unsupported(Exception):
    """A case about something that the package deliberately has not."""


@dataclass(frozen=True)
class Case:
    """One entry of a manifest."""

    folder: Path
    record: dict

    @property
    def id(self):
        """Its name."""
        return self.record["id"]

    @property
    def kind(self):
        """What is compared."""
        return self.record["kind"]

    @property
    def params(self):
        """How it was made."""
        return self.record["params"]

    @cached_property
    def arrays(self):
        """The stored arrays, by name."""
        with np.load(self.folder / self.record["file"]) as file:
            return dict(file)

    @cached_property
    def table(self):
        """The stored table."""
        return json.loads((self.folder / self.record["json"]).read_text())

    @cached_property
    def rule(self):
        """The fill rule that lies beside the manifest, else ours."""
        path = self.folder / "fill_rule.py"
        if not path.is_file():
            return fill_rule
        spec = importlib.util.spec_from_file_location("fixtures_fill_rule", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def array(self, name, dtype=None):
        """A stored array as a tensor."""
        return torch.from_numpy(self.arrays[name]).to(dtype)

    def input(self, tag, shape):
        """A standard-normal input."""
        return torch.from_numpy(self.rule.fill_input(tag, shape, self.params["salt"]))

    def uniform(self, tag, shape):
        """An input uniform in [0, 1)."""
        return torch.from_numpy(self.rule.fill_uniform(tag, shape, self.params["salt"]))


def read_cases(folder):
    """The cases of a fixtures folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return [Case(folder, record) for record in manifest["cases"]]


@dataclass
class Same:
    """Asserts equality within a case's tolerance, and keeps the worst relative difference.

    A difference is relative to the largest value of its array: an element near zero says nothing about precision.
    """

    rtol: float
    atol: float
    worst: float = 0.0
    compared: int = field(default=0)

    def __call__(self, what, ours, stored):
        """`ours` and `stored` have one shape and agree; NaN agrees with NaN."""
        ours, stored = _values(ours), _values(stored)
        assert ours.shape == stored.shape, f"{what}: shape {ours.shape}, stored {stored.shape}"
        assert (np.isnan(ours) == np.isnan(stored)).all(), f"{what}: not a number in other places"
        difference = np.nan_to_num(np.abs(ours - stored))
        bound = self.atol + self.rtol * np.abs(np.nan_to_num(stored))
        assert (difference <= bound).all(), (
            f"{what}: differs by {difference.max():.3g} where {bound.flat[difference.argmax()]:.3g} is allowed"
        )
        self.compared += 1
        if difference.size:
            largest = max(np.abs(np.nan_to_num(stored)).max(), NOISE)
            self.worst = max(self.worst, float(difference.max() / largest))

    def exactly(self, what, ours, stored):
        """Both are equal: names, counts, decisions."""
        assert ours == stored, f"{what}: {ours!r}, stored {stored!r}"
        self.compared += 1

    def summary(self, case, name, array, *, tag=None):
        """The statistics and picked values of a large array."""
        statistics, picked = case.rule.summary(tag or name, _values(array))
        self(f"{name}: statistics", statistics, case.arrays[f"{name}_stats"])
        self(f"{name}: values", picked, case.arrays[f"{name}_picked"])
        self.exactly(f"{name}: shape", list(array.shape), case.arrays[f"{name}_shape"].tolist())


def _values(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().numpy()
    return np.asarray(array, np.float64)
