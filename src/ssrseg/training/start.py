"""Start a student from a model: the same network, and its classes by their names."""

from __future__ import annotations

from shlex import quote

from ssrseg.config import ModelConfig
from ssrseg.errors import UserError
from ssrseg.models.classes import classifier_weights, copy_weights, differing, matching
from ssrseg.models.segmenter import Segmenter, take_bands


def start_from(student: Segmenter, start: Segmenter, config: ModelConfig, classes: tuple[str, ...]) -> str:
    """Give the student of `classes` the weights of `start`, which is `model.start`; returns a note on its classes.

    Raises:
        UserError: it is another network, or `model.start_classes` does not allow its classes.
    """
    _refuse_other_network(student, start, config)
    known = start.description.classes if start.description else ()
    rows = matching(classes, known)
    if config.start_classes == "renamed" and len(known) == len(classes):
        rows = list(range(len(classes)))
    elif config.start_classes != "shared" and (None in rows or len(known) != len(classes)):
        raise UserError(_other_classes(known, classes, config))
    own = start.backbone
    take_bands(student, start.in_channels, config.mean or own.mean, config.std or own.std)
    copy_weights(student, start, rows)
    return f"the student starts from {config.start}" + _explained(rows, known, classes)


def _explained(rows: list[int | None], known: tuple[str, ...], classes: tuple[str, ...]) -> str:
    """Say what became of the classes, where they are not simply the same."""
    kept = [(name, known[row]) for name, row in zip(classes, rows, strict=True) if row is not None]
    spelled = [name if name == there else f"{name} (there: {there})" for name, there in kept]
    if len(kept) == len(classes) == len(known):
        if any(name != there for name, there in kept):
            return f": its classes go by other names: {', '.join(spelled)}"
        return "" if known == classes else ": its classes stand in another order, and so do the rows of its classifier"
    fresh = [name for name, row in zip(classes, rows, strict=True) if row is None]
    gone = [name for i, name in enumerate(known) if i not in rows]
    return (
        f": {len(kept)} classes keep their rows of the classifier: {', '.join(spelled) or 'none'}; "
        f"{len(fresh)} start fresh: {', '.join(fresh) or 'none'}; left out: {', '.join(gone) or 'none'}"
    )


def _other_classes(known: tuple[str, ...], classes: tuple[str, ...], config: ModelConfig) -> str:
    ways = [
        ("model.start_classes=shared", "shared classes keep their rows of the classifier, the others start fresh"),
        ("model.start_classes=renamed", "it is the same classes in the same order, under other names"),
        (_backbone_alone(config), "its backbone alone"),
    ]
    if len(known) != len(classes):
        ways.pop(1)
    listed = "\n".join(f"  {words}: {what}" for words, what in ways)
    return f"model.start: {config.start}: {differing(known, classes)}\nChoose what to take:\n{listed}"


def _backbone_alone(config: ModelConfig) -> str:
    return f"model.start=null {quote(f'model.pretrained={config.start}')}"


def _refuse_other_network(student: Segmenter, start: Segmenter, config: ModelConfig) -> None:
    """Raise `UserError` unless all weights but the classifier's rows are of the same shapes."""
    by_class = classifier_weights(student)
    here, there = (
        {name: tuple(value.shape[name in by_class :]) for name, value in network.state_dict().items()}
        for network in (student, start)
    )
    its = start.description
    if here == there and its is not None and its.taps != config.taps:  # the same weights, which mean something else
        raise UserError(
            f"model.start: {config.start} has model.taps={its.taps or 'null'}, found {config.taps or 'null'}: "
            f"set model.taps={its.taps or 'null'}."
        )
    if here == there:
        return
    settings = {
        "backbone": config.backbone,
        "in_channels": config.in_channels,
        "head": config.head,
        "head_channels": config.head_channels,
    }
    others = {} if its is None else {key: getattr(its, key) for key in settings if getattr(its, key) != settings[key]}
    words = " ".join(quote(f"model.{key}={'null' if value is None else value}") for key, value in others.items())
    first = next(name for name in {**there, **here} if here.get(name) != there.get(name))
    same = {name for name in here if name.startswith("backbone.")} == {n for n in there if n.startswith("backbone.")}
    ways = [f"  {words}: its network"] if words else []
    if same and all(here[name] == there[name] for name in here if name.startswith("backbone.")):
        ways.append(f"  {_backbone_alone(config)}: its backbone alone")
    listed = "\n".join(ways or ["  model.start=null: nothing"])
    raise UserError(
        f"model.start: {config.start} is another network than this run's: {first} is {there.get(first, 'not there')}, "
        f"expected {here.get(first, 'none')}.\nChoose what to take:\n{listed}"
    )
