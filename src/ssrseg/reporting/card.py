"""A model card from what a run, or a group of seeds, has left: nothing in it was not read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ssrseg.errors import UserError
from ssrseg.reporting.comparison import compare_records
from ssrseg.reporting.formats import table_markdown
from ssrseg.reporting.grouping import members
from ssrseg.reporting.text_tables import overview
from ssrseg.runs.records import RunRecord, method_name, read_run, setting

NOT_FOR = """\
- decisions that touch the safety or the rights of people, such as driving or surveillance, without a validation of
  your own;
- images of other domains than the target that it was adapted to: it was never measured there;
- classes outside its list: every pixel gets one of them, however sure or unsure the model is.
"""


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
    closed = [part for part in ingredients(config) if part.noncommercial]
    if license is not None and closed and not _restricts(license):
        raise UserError(
            f"{license!r} permits commercial use, but {closed[0].name} is under {closed[0].terms}. "
            "Choose a licence for non-commercial use (cc-by-nc-4.0, other ...), or train from other weights and data."
        )
    title = name or f"{method_name(config)}, {setting(config, 'model.backbone')}"
    parts = (_about(config, runs), _use(), _training(config, runs), _scores(runs), _terms(config))
    front = yaml.safe_dump(_front(config, license, bool(closed)), sort_keys=False)
    return f"---\n{front}---\n\n# {title}\n\n" + "\n\n".join(parts) + f"\n\n## Not for\n\n{NOT_FOR}"


def _restricts(license: str) -> bool:
    return "-nc" in license or license == "other"


def _front(config: dict[str, Any], license: str | None, closed: bool) -> dict[str, Any]:
    """Write the metadata: without a licence of the author's, non-commercial ingredients are all that can be said."""
    front: dict[str, Any] = {"library_name": "ssrseg", "pipeline_tag": "image-segmentation"}
    front["tags"] = ["semantic-segmentation", "domain-adaptation", method_name(config).lower().replace(" + ", "-")]
    if license is not None:
        front["license"] = license
    elif closed:
        front |= {
            "license": "other",
            "license_name": "non-commercial-ingredients",
            "license_link": "README.md#licences",
        }
    return front


def _about(config: dict[str, Any], runs: Sequence[RunRecord]) -> str:
    classes = runs[0].classes
    network = f"{setting(config, 'model.backbone')} with the {setting(config, 'model.head')} head"
    text = f"Semantic segmentation: {network}, trained with {method_name(config)} by ssrseg."
    return f"{text}\n\nClasses, in the order of their ids: {', '.join(classes)}." if classes else text


def _use() -> str:
    return (
        '```python\nimport ssrseg\n\nmodel = ssrseg.load("OWNER/NAME")  '
        "# a torch module: RGB in [0, 1] (B, 3, H, W) -> logits\n```\n\n"
        "or `ssrseg predict OWNER/NAME images --out predictions`."
    )


def _training(config: dict[str, Any], runs: Sequence[RunRecord]) -> str:
    crop, batch = setting(config, "loader.crop"), setting(config, "loader.batch")
    facts = {
        "source (labelled)": _data(config, "source"),
        "target (images only)": _data(config, "target"),
        "scored on": _data(config, "val"),
        "steps": setting(config, "train.steps"),
        "crop, batch": f"{crop}, {batch} of each domain",
        "seeds": ", ".join(str(run.seed) for run in runs),
        "made with": _versions(runs[0]),
    }
    lines = [f"- {key}: {value}" for key, value in facts.items() if value]
    return "## Training\n\n" + "\n".join(lines)


def _data(config: dict[str, Any], role: str) -> str | None:
    """Name the layout and the last folder: a path on somebody's disk is nobody's business."""
    data = setting(config, role)
    return None if data is None else f"{data.get('spec', 'folders')} ({Path(str(data['root'])).name})"


def _versions(run: RunRecord) -> str:
    known = {key: run.environment.get(key) for key in ("ssrseg", "torch", "git")}
    return ", ".join(f"{key} {value}" for key, value in known.items() if value)


def _scores(runs: Sequence[RunRecord]) -> str:
    if not any(run.last for run in runs):
        return "## Scores\n\nNone: the runs had no labelled target images. How good the model is has not been measured."
    return f"## Scores\n\n{table_markdown(overview(compare_records(runs)))}"


def _terms(config: dict[str, Any]) -> str:
    rows = "\n".join(f"| {part.role} | {part.name} | {part.terms} |" for part in ingredients(config))
    text = "The code of ssrseg is Apache-2.0. The weights were made with these, whose terms may bind them:"
    return f"## Licences\n\n{text}\n\n| | | terms |\n|---|---|---|\n{rows}"


OWN = "see its own terms"


@dataclass(frozen=True)
class Ingredient:
    """Something that a model was made with."""

    role: str
    name: str
    terms: str
    noncommercial: bool = False
    """Known to be; false says nothing."""


DATA = {
    "cityscapes": ("Cityscapes' own licence: non-commercial research and teaching", True),
    "gta5": ("Playing for Data: research and educational use", True),
    "synthia": ("CC BY-NC-SA 3.0", True),
}
"""Layout -> terms, and whether they exclude commercial use."""

ENCODERS = {"sam-": "Apache-2.0", "demo": "Apache-2.0, part of ssrseg"}
"""Beginning of a foundation encoder's name -> terms of its published weights."""

NVIDIA = ("NVIDIA Source Code License for SegFormer: non-commercial", True)


def ingredients(config: dict[str, Any]) -> list[Ingredient]:
    """List the weights, then the data, of a run's settings."""
    found = [_backbone(config)]
    if setting(config, "method.regularizer") is not None:
        encoder, weights = (setting(config, f"method.regularizer.foundation.{key}") for key in ("encoder", "weights"))
        terms = next((known for start, known in ENCODERS.items() if str(encoder).startswith(start)), OWN)
        local = weights not in ("hub", None) and encoder != "demo"
        name = f"{encoder} ({weights})" if local else str(encoder)
        found.append(Ingredient("foundation encoder (training only, not in the model)", name, OWN if local else terms))
    for role in ("source", "target"):
        if (data := setting(config, role)) is not None:
            spec = str(data.get("spec", "folders"))
            terms, closed = DATA.get(spec, (OWN, False))
            name = spec if spec != "folders" else "a data set of the authors'"
            found.append(
                Ingredient(f"{role} data" + (" (no labels used)" if role == "target" else ""), name, terms, closed)
            )
    return found


def _backbone(config: dict[str, Any]) -> Ingredient:
    backbone, weights = str(setting(config, "model.backbone")), str(setting(config, "model.pretrained"))
    role = "initial weights of the backbone"
    if weights == "none":
        return Ingredient(role, f"{backbone}: random", "none needed")
    published = f"nvidia/{backbone.replace('_', '-')}" if backbone.startswith("mit_b") else f"timm's of {backbone}"
    name = published if weights == "hub" else weights
    terms, closed = NVIDIA if name.startswith("nvidia/mit-") else (OWN, False)
    return Ingredient(role, name, terms, closed)
