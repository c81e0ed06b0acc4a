"""Settings that follow from a run's length and its images: `auto` in a recipe becomes a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssrseg.config import DataConfig, merge, resolve_group
from ssrseg.data import find_images, read_image
from ssrseg.data.datasets import bounded
from ssrseg.errors import UserError
from ssrseg.models.backbones import is_plain

LOOKED_AT = 8
"""Images of each domain whose sizes are taken, evenly spread."""

OF_STEPS: dict[str, Callable[[int], float]] = {
    "optim.warmup": lambda steps: round(0.04 * steps),
    "method.teacher.decay": lambda steps: round(min(max(1 - 40 / steps, 0.99), 0.999), 4),
    "train.evaluate_every": lambda steps: max(1, steps // 8),
    "train.checkpoint_every": lambda steps: max(1, min(2000, steps // 4)),
    "train.pictures_every": lambda steps: max(1, steps // 4),
}
"""Setting -> its number in a run of so many steps: the published 1500 are 4 % of 40,000, and a teacher with the decay
0.999 averages over the last 2.5 % of them; over 100 steps at least, as one of 30 followed its student in taking a road
for pavement (benchmarks/results/real.md)."""


OF_BACKBONE: dict[str, Callable[[str], float | None]] = {
    "optim.backbone_lr_factor": lambda name: 0.05 if is_plain(name) else 1.0,
    "optim.layer_decay": lambda name: 0.9 if is_plain(name) else None,
}
"""Setting -> its number for a backbone: what a plain ViT has learned is lost at the rate that suits a pyramid."""


def scaled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what is `auto` in a tree of settings and of its stages, as `ssrseg.config.compose` makes it.

    These may be: the settings of `OF_STEPS` and `OF_BACKBONE`; `method.masked.block`, a sixteenth of the crop's shorter
    side (MIC: 32 of 512); and `loader.crop`, three quarters of the smallest image's height and width in multiples of
    32, 512 at most.

    Raises:
        UserError: `loader.crop` is `auto` and there is no image, or one cannot be read.
    """
    whole = merge(dict(tree), {})
    if _get(whole, "loader.crop") == "auto":
        crop = crop_of(whole) if whole.get("source") else [512, 512]  # `resolve` will say that there is no source
        whole = merge(whole, {"loader": {"crop": crop}})
    base = {key: value for key, value in whole.items() if key != "stages"}
    if isinstance(stages := whole.get("stages"), list | tuple):  # else `resolve` says so, as of a stage
        whole["stages"] = [
            {**stage, "settings": merge(own, _numbers(merge(base, own)))}
            if isinstance(stage, dict) and isinstance(own := stage.get("settings"), dict) and own
            else stage
            for stage in stages
        ]
    return merge(whole, _numbers(base))


def crop_of(tree: Mapping[str, Any]) -> list[int]:
    """Choose (height, width) of crops by the images of source and target; see `scaled`."""
    heights, widths = zip(*_sizes(tree), strict=True)
    return [max(32, min(512, 3 * min(sides) // 4 // 32 * 32)) for sides in (heights, widths)]


def _sizes(tree: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for domain in ("source", "target"):
        for own in tree[domain] if isinstance(tree.get(domain), list) else filter(None, [tree.get(domain)]):
            data = resolve_group(DataConfig, own, domain)
            for path in find_images(data, at_most=LOOKED_AT):
                height, width = bounded(read_image(path), data.resize).shape[-2:]
                yield height, width


def _numbers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of what is `auto`, as numbers."""
    found: dict[str, Any] = {}
    ways: dict[str, tuple[str, Callable[[Any], Any]]] = {
        **{path: ("train.steps", number) for path, number in OF_STEPS.items()},
        **{path: ("model.backbone", number) for path, number in OF_BACKBONE.items()},
        "method.masked.block": ("loader.crop", _block),
    }
    for path, (of, number) in ways.items():
        if _get(tree, path) != "auto":
            continue
        if (known := _get(tree, of)) is None:
            raise UserError(f"{path} is auto, which depends on {of}: set both, or a number.")
        try:
            value: Any = number(known)
        except (TypeError, AttributeError, ZeroDivisionError) as error:
            raise UserError(f"{path} is auto, which depends on {of}, found {known!r}: mend that.") from error
        for key in reversed(path.split(".")):
            value = {key: value}
        found = merge(found, value)
    return found


def _block(crop: list[int]) -> int:
    return max(8, min(crop) // 16)


def _get(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
