"""ssrseg: a labelled domain in, a segmentation model for an unlabelled one out.

Every word of the command line is a function here, with the same names (modules are nouns, so that they do not collide).
Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssrseg.config import Settings, resolve
    from ssrseg.config import preset_summaries as presets
    from ssrseg.data.checks.report import check_data
    from ssrseg.data.pack import pack
    from ssrseg.errors import UserError
    from ssrseg.inference import Predictor, evaluate, export, predict
    from ssrseg.label_shift import adjust, estimate_priors
    from ssrseg.models import load
    from ssrseg.models.convert import convert
    from ssrseg.planning.plan import plan
    from ssrseg.reporting import compare, model_card, report
    from ssrseg.training import Extensions, Observer, train, train_seeds

__version__ = metadata.version("ssrseg")

_WHERE = {
    "Extensions": "ssrseg.training:Extensions",
    "Observer": "ssrseg.training:Observer",
    "Predictor": "ssrseg.inference:Predictor",
    "Settings": "ssrseg.config:Settings",
    "UserError": "ssrseg.errors:UserError",
    "check_data": "ssrseg.data.checks.report:check_data",
    "adjust": "ssrseg.label_shift:adjust",
    "compare": "ssrseg.reporting:compare",
    "convert": "ssrseg.models.convert:convert",
    "estimate_priors": "ssrseg.label_shift:estimate_priors",
    "evaluate": "ssrseg.inference:evaluate",
    "export": "ssrseg.inference:export",
    "load": "ssrseg.models:load",
    "model_card": "ssrseg.reporting:model_card",
    "pack": "ssrseg.data.pack:pack",
    "plan": "ssrseg.planning:plan",
    "predict": "ssrseg.inference:predict",
    "presets": "ssrseg.config:preset_summaries",
    "report": "ssrseg.reporting:report",
    "resolve": "ssrseg.config:resolve",
    "train": "ssrseg.training:train",
    "train_seeds": "ssrseg.training:train_seeds",
}

__all__ = [
    "Extensions",
    "Observer",
    "Predictor",
    "Settings",
    "UserError",
    "adjust",
    "check_data",
    "compare",
    "convert",
    "estimate_priors",
    "evaluate",
    "export",
    "load",
    "model_card",
    "pack",
    "plan",
    "predict",
    "presets",
    "report",
    "resolve",
    "train",
    "train_seeds",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ssrseg' has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(module), attribute)
