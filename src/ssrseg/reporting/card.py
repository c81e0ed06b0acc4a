"""A model card from what a run, or a group of seeds, has left: nothing in it was not read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import compare_records
from ssrseg.reporting.formats import fill, table_markdown
from ssrseg.reporting.grouping import members
from ssrseg.reporting.text_tables import overview
from ssrseg.runs.records import method_name, read_run, setting

OWN = "see its own terms"

DATA = {
    "cityscapes": ("Cityscapes' own licence: non-commercial research and teaching", True),
    "gta5": ("Playing for Data: research and educational use", True),
    "synthia": ("CC BY-NC-SA 3.0", True),
}
"""Layout -> terms, and whether they exclude commercial use. Only what is known for certain; all else is `OWN`."""

ENCODERS = {"sam-": "Apache-2.0", "demo": "Apache-2.0, part of ssrseg"}
"""Beginning of a foundation encoder's name -> terms of its published weights."""

NVIDIA = ("NVIDIA Source Code License for SegFormer: non-commercial", True)


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
    config = runs[0].config
    method, backbone = method_name(config), setting(config, "model.backbone")
    parts = ingredients(config)
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
    versions = {key: runs[0].environment.get(key) for key in ("ssrseg", "torch", "git")}
    facts = {
        "source (labelled)": _data(config, "source"),
        "target (images only)": _data(config, "target"),
        "scored on": _data(config, "val"),
        "steps": setting(config, "train.steps"),
        "crop, batch": f"{setting(config, 'loader.crop')}, {setting(config, 'loader.batch')} of each domain",
        "seeds": ", ".join(str(run.seed) for run in runs),
        "made with": ", ".join(f"{key} {value}" for key, value in versions.items() if value),
    }
    text = fill(
        "card.md.jinja",
        front=yaml.safe_dump(front, sort_keys=False),
        title=name or f"{method}, {backbone}",
        network=f"{backbone} with the {setting(config, 'model.head')} head",
        method=method,
        classes=runs[0].classes,
        facts=facts,
        scores=table_markdown(overview(compare_records(runs))) if any(run.last for run in runs) else None,
        ingredients=parts,
    )
    return f"{text}\n"


def _data(config: dict[str, Any], role: str) -> str | None:
    """Name the layout and the last folder: a path on somebody's disk is nobody's business."""
    data = setting(config, role)
    return None if data is None else f"{data.get('spec', 'folders')} ({Path(str(data['root'])).name})"


@dataclass(frozen=True)
class Ingredient:
    """Something that a model was made with, whose terms it may inherit."""

    role: str
    name: str
    terms: str
    noncommercial: bool = False
    """True where this is known; false where it is not known."""


def ingredients(config: dict[str, Any]) -> list[Ingredient]:
    """List the weights, then the data, of a run's settings."""
    found = [_backbone(config)]
    if setting(config, "method.regularizer") is not None:
        encoder, weights = (setting(config, f"method.regularizer.foundation.{key}") for key in ("encoder", "weights"))
        terms = next((known for start, known in ENCODERS.items() if str(encoder).startswith(start)), OWN)
        local = weights not in ("hub", None) and encoder != "demo"
        name = f"{encoder} ({weights})" if local else str(encoder)
        found.append(Ingredient("foundation encoder (training only, not in the model)", name, OWN if local else terms))
    for role, what in (("source", "source data"), ("target", "target data (no labels used)")):
        if (data := setting(config, role)) is not None:
            spec = str(data.get("spec", "folders"))
            name = spec if spec != "folders" else "a data set of the authors'"
            found.append(Ingredient(what, name, *DATA.get(spec, (OWN, False))))
    return found


def _backbone(config: dict[str, Any]) -> Ingredient:
    backbone, weights = str(setting(config, "model.backbone")), str(setting(config, "model.pretrained"))
    role = "initial weights of the backbone"
    if weights == "none":
        return Ingredient(role, f"{backbone}: random", "none needed")
    published = f"nvidia/{backbone.replace('_', '-')}" if backbone.startswith("mit_b") else f"timm's of {backbone}"
    name = published if weights == "hub" else weights
    return Ingredient(role, name, *(NVIDIA if name.startswith("nvidia/mit-") else (OWN, False)))
