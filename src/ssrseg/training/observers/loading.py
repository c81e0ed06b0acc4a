"""What the user should know of how batches came about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ssrseg.data.loader import Raw
from ssrseg.training.loop import Observer
from ssrseg.training.observers.console import Screen
from ssrseg.training.observers.journal import Journal


class LoaderNotes(Observer):
    """Says what happened when it first does, and at the end how often it did."""

    def __init__(self, journal: Journal, screen: Screen) -> None:
        self._journal, self._screen = journal, screen
        self._counts: Counter[str] = Counter()
        self._step = 0

    def state(self) -> dict[str, Any]:
        """How often each was said."""
        return {"counts": dict(self._counts)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._counts = Counter(state["counts"])

    def computed(self, step: int, raws: Sequence[Raw], losses: Sequence[Mapping[str, Tensor]]) -> None:
        """Count the notes of a step's batches."""
        self._step = step
        for note in (note for raw in raws for note in raw.notes):
            if note not in self._counts:
                self._say(note)
            self._counts[note] += 1

    def finished(self) -> None:
        """Say what happened more than once."""
        for note, count in self._counts.items():
            if count > 1:
                self._say(f"{count} times: {note}")

    def _say(self, text: str) -> None:
        self._screen.say(text)
        self._journal.write("note", self._step, text=text)
