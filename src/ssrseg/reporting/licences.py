"""Whose terms a trained model inherits: of the weights it began with, of the encoder that helped, of the data.

Only what is known for certain is said; everything else is "see its own terms".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssrseg.runs.records import setting

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
    """Weights, then data, of a run's settings."""
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
