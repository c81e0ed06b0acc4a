"""What to change when a run does not fit into the memory: the cheapest for the result first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ssrseg.config import Settings, assignments, merge, resolve
from ssrseg.planning.fake_step import rehearse


@dataclass(frozen=True)
class Change:
    """A change of the settings, on top of those before it."""

    words: tuple[str, ...]
    """`key.path=value`, as on the command line."""
    effect: str
    """What else it does."""
    peak: int
    """Bytes, estimated, with this change and all before it."""


def advise(settings: Settings, device: str, peak: int, limit: float) -> tuple[Change, ...]:
    """Changes until the estimated peak is below `limit` bytes; those that do not lower it are left out.

    Where even the last does not reach it, all that help are given.
    """
    changes: list[Change] = []
    for words, effect in _candidates(settings, device):
        if peak <= limit:
            break
        changed = with_words(settings, words)
        lower = rehearse(changed, device, flops=False).peak
        if lower < peak:
            changes.append(Change(words, effect, lower))
            settings, peak = changed, lower
    return tuple(changes)


def with_words(settings: Settings, words: tuple[str, ...]) -> Settings:
    """The settings with some `key.path=value` changed."""
    return resolve(merge(settings.model_dump(mode="json"), assignments(words)))


def _candidates(settings: Settings, device: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Words and what else they do, in the order in which to try them."""
    train, loader, regularizer = settings.train, settings.loader, settings.method.regularizer
    if not train.activation_checkpointing:
        yield ("train.activation_checkpointing=true",), "the same gradients, a third more time in the backbone"
    if train.precision != "bf16":
        yield ("train.precision=bf16",), "activations of 16 bits: nearly the same gradients"
    if regularizer is not None:
        encoder = "method.regularizer.foundation"
        if regularizer.foundation.input_size != "native":
            yield (
                (f"{encoder}.input_size=native",),
                "the encoder sees the crop as it is: fewer, coarser features",
            )
        half = regularizer.foundation.precision
        if half == "fp32" or (half == "auto" and device != "cuda"):
            yield (f"{encoder}.precision=half",), "nearly the same features of the frozen encoder"
    if loader.batch > 1:
        accumulate = (f"train.accumulate={loader.batch}",) if "accumulate" in type(train).model_fields else ()
        yield ("loader.batch=1", *accumulate), "each step sees fewer images; norms have fewer to normalise by"
    for share in (3 / 4, 1 / 2):
        height, width = (max(64, int(side * share) // 64 * 64) for side in loader.crop)
        yield (f"loader.crop=[{height}, {width}]",), "less context in a crop: another result"
