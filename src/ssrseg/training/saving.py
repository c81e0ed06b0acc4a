"""Saving during training: the complete state every so often, and when a signal ends the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ssrseg.models.segmenter import save_segmenter
from ssrseg.training.checkpoint import save_checkpoint
from ssrseg.training.loop import Observer, StepResult
from ssrseg.training.setup import RunContext
from ssrseg.training.signals import Interrupted, Stop

Warn = Callable[[int, str], None]
"""Step and text -> console and journal."""


class Saving(Observer):
    """Writes the complete state every `checkpoint_every` steps and the deployable student at the end.

    It comes last, so that a checkpoint holds what the other observers did in its step, and it watches in every
    process, as each has its own generators.

    Args:
        context: the run.
        observers: whose states are kept, by name.
        stop: whether a signal has asked the run to end; asked every step, among several processes every `log_every`.
        warn: told when a checkpoint could not be written; training goes on.
    """

    everywhere = True

    def __init__(self, context: RunContext, observers: Mapping[str, Observer], stop: Stop, warn: Warn) -> None:
        self._context, self._config, self._observers = context, context.settings.train, observers
        self._stop, self._warn = stop, warn

    def stepped(self, result: StepResult) -> None:
        """Save when it is time; raises `Interrupted` after a signal."""
        config, last = self._config, result.step == self._config.steps
        signum = self._stop.agreed(self._context.fabric, due=result.step % config.log_every == 0)
        if result.step % config.checkpoint_every == 0 or last or signum:
            self.save(result.step)
        if signum and not last:
            # None leaves, which a launcher takes for a death, while the first one writes.
            self._context.fabric.barrier()
            raise Interrupted(signum, result.step)

    def finished(self) -> None:
        """The last student: it exists when all is done."""
        if self._context.fabric.is_global_zero:
            save_segmenter(self._context.method.learner.student, self._context.folder.student_last)

    def save(self, step: int) -> None:
        """Save after `step` completed steps; all processes do."""
        run = self._context
        states = {name: observer.state() for name, observer in self._observers.items()}
        path = run.folder.checkpoint
        try:
            save_checkpoint(path, run.fabric, run.method, run.optimizer, step=step, observers=states)
        except OSError as error:
            self._warn(step, f"the state could not be saved at step {step}: {error}. The last checkpoint is kept.")
