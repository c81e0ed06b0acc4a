"""A model card from what a run, or a group of seeds, has left: nothing in it was not read from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import compare_records
from ssrseg.reporting.formats import fill, table_markdown
from ssrseg.reporting.grouping import members
from ssrseg.reporting.text_tables import data_of, overview
from ssrseg.runs.records import method_name, read_run, setting


def model_card(run: Path | str, *, license: str | None = None, name: str | None = None) -> str:
    """Write the README.md of a model on the Hub.

    Args:
        run: a run folder, or the folder of a group, whose seeds the scores then have.
        license: identifier on the Hub under which you publish the weights. The card names none unless you do:
            it is yours to decide, within the terms of what the model was made with.
        name: title of the card; the method's and the backbone's when absent.

    Raises:
        UserError: no such run, or a licence that permits what an ingredient's known terms do not.
    """
    runs = [read_run(folder) for folder in members(Path(run))]
    config, environment = runs[0].config, runs[0].environment
    method, backbone = method_name(config), setting(config, "model.backbone")
    parts = list(ingredients(config))
    closed = [part for part in parts if part.noncommercial]
    if license is not None and closed and not ("-nc" in license or license == "other"):
        raise UserError(
            f"{license!r} permits commercial use, but {closed[0].name} is under {closed[0].terms}. "
            "Choose a licence for non-commercial use (cc-by-nc-4.0, other ...), or train from other weights and data."
        )
    front: dict[str, Any] = {"library_name": "ssrseg", "pipeline_tag": "image-segmentation"}
    front["tags"] = ["semantic-segmentation", "domain-adaptation", method.lower().replace(" + ", "-")]
    if license is not None:
        front["license"] = license
    elif closed:  # without the author's licence, this is all that can be said
        front["license"] = "other"
        front |= {"license_name": "non-commercial-ingredients", "license_link": "README.md#licences"}
    data = {}  # by the last folder alone: a path on somebody's disk is nobody's business
    images = "images, some of them labelled" if setting(config, "method.labelled") else "images only"
    for role, label in (("source", "source (labelled)"), ("target", f"target ({images})"), ("val", "scored on")):
        if own := sets_of(config, role):
            data[label] = ", ".join(f"{each.get('spec', 'folders')} ({Path(str(each['root'])).name})" for each in own)
    text = fill(
        "card.md.jinja",
        front=yaml.safe_dump(front, sort_keys=False),
        title=name or f"{method}, {backbone}",
        setting=partial(setting, config),
        method=method,
        runs=runs,
        data=data,
        made_with=", ".join(f"{key} {environment[key]}" for key in ("ssrseg", "torch", "git") if environment.get(key)),
        scores=table_markdown(overview(compare_records(runs))) if any(run.last for run in runs) else None,
        ingredients=parts,
    )
    return f"{text}\n"


def sets_of(config: dict[str, Any], role: str) -> list[dict[str, Any]]:
    """List the data sets of a role in a run's settings: none, one or several."""
    own = setting(config, role)
    return own if isinstance(own, list) else [own] if own else []


@dataclass(frozen=True)
class Ingredient:
    """Something that a model was made with, whose terms it may inherit."""

    role: str
    name: str
    terms: str = "see its own terms"
    noncommercial: bool = False
    """True where this is known; false where it is not known."""


def ingredients(config: dict[str, Any]) -> Iterator[Ingredient]:
    """Yield the weights, then the data, of a run's settings."""
    known = data_of("terms.yaml")

    def terms(kind: str, name: str) -> dict[str, Any]:
        return next((found for start, found in known[kind].items() if name.startswith(start)), {})

    backbone, weights = str(setting(config, "model.backbone")), str(setting(config, "model.pretrained"))
    role = "initial weights of the backbone"
    if weights == "none":
        yield Ingredient(role, f"{backbone}: random", "none needed")
    else:
        published = f"nvidia/{backbone.replace('_', '-')}" if backbone.startswith("mit_b") else f"timm's of {backbone}"
        name = published if weights == "hub" else weights
        yield Ingredient(role, name, **terms("backbones", name))
    parts = ("regularizer", "distillation", "affinity", "teacher.regions")
    found = (setting(config, f"method.{part}.foundation") for part in parts)
    for encoder, weights in dict.fromkeys((each["encoder"], each.get("weights")) for each in found if each is not None):
        local = weights not in ("hub", None) and encoder != "demo"
        name = f"{encoder} ({weights})" if local else str(encoder)
        role = "foundation encoder (training only, not in the model)"
        yield Ingredient(role, name, **({} if local else terms("encoders", name)))
    labels = "labels of some images used" if setting(config, "method.labelled") else "no labels used"
    for key, role in (("source", "source data"), ("target", f"target data ({labels})")):
        for data in sets_of(config, key):
            spec = str(data.get("spec", "folders"))
            name = spec if spec != "folders" else "a data set of the authors'"
            yield Ingredient(role, name, **known["data"].get(spec, {}))
