"""ssrseg: a labelled domain in, a segmentation model for an unlabelled one out.

Every word of the command line is a function here, with the same names. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from ssrseg.config import Settings as Settings, presets as presets, resolve as resolve
    from ssrseg.data.checks.report import check_data as check_data
    from ssrseg.data.pack import pack as pack
    from ssrseg.errors import UserError as UserError
    from ssrseg.inference import (
        Predictor as Predictor,
        choose as choose,
        evaluate as evaluate,
        export as export,
        predict as predict,
        recalibrate as recalibrate,
        suggest as suggest,
        try_out as try_out,
    )
    from ssrseg.label_shift import adjust as adjust, estimate_priors as estimate_priors
    from ssrseg.models import load as load
    from ssrseg.models.convert import convert as convert
    from ssrseg.planning.plan import plan as plan
    from ssrseg.reporting import compare as compare, model_card as model_card, report as report
    from ssrseg.training import (
        Extensions as Extensions,
        Observer as Observer,
        train as train,
        train_seeds as train_seeds,
    )
    from ssrseg.training.env import env as env

_NAMES = {
    "config": ("Settings", "presets", "resolve"),
    "data.checks.report": ("check_data",),
    "data.pack": ("pack",),
    "errors": ("UserError",),
    "inference": ("Predictor", "choose", "evaluate", "export", "predict", "recalibrate", "suggest", "try_out"),
    "label_shift": ("adjust", "estimate_priors"),
    "models": ("load",),
    "models.convert": ("convert",),
    "planning.plan": ("plan",),
    "reporting": ("compare", "model_card", "report"),
    "training": ("Extensions", "Observer", "train", "train_seeds"),
    "training.env": ("env",),
}
_WHERE = {name: f"ssrseg.{module}" for module, names in _NAMES.items() for name in names}


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("ssrseg")
    if name not in _WHERE:
        raise AttributeError(f"module 'ssrseg' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
