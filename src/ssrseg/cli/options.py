"""Arguments and options that several commands share, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssrseg.errors import UserError

if TYPE_CHECKING:
    from ssrseg.config import DataConfig, InferenceConfig, Settings

Words = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value", metavar="[KEY.PATH=VALUE]...")]
Preset = Annotated[str | None, typer.Option(help="a published recipe; `ssrseg presets` lists them")]
Config = Annotated[Path | None, typer.Option(help="settings in a YAML file, laid over the preset")]
Source = Annotated[
    list[Path] | None, typer.Option(help="your labelled data, once or more often; replaces the preset's data")
]
Target = Annotated[list[Path] | None, typer.Option(help="your unlabelled images, once or more often")]
Val = Annotated[list[Path] | None, typer.Option(help="labelled target images, only to score with; as often")]
Model = Annotated[str, typer.Argument(help="a model file, or a name on the Hub")]
Deployed = Annotated[Path, typer.Argument(help="a model file, a name on the Hub, or an exported .onnx or .xml file")]
File = Annotated[Path | None, typer.Option(help="the file; printed when absent")]
Correction = Annotated[str | None, typer.Option(help="label shift, after: ia (in a bias) or cr (the head learns on)")]
Mode = Annotated[str | None, typer.Option(help="whole or slide: short for inference.mode")]
Runner = Annotated[str, typer.Option("--engine", help="auto, torch, compiled, openvino")]
Device = Annotated[str, typer.Option(help="auto, or a device of torch's: cpu, cuda, cuda:1, mps")]


def settings_from(words: Words, preset: Preset, config: Config, **roots: list[Path] | None) -> Settings:
    """Resolve the settings of a run from what the command line says."""
    from ssrseg import config as settings_of

    sets = {name: [{"root": str(root)} for root in given] for name, given in roots.items() if given}
    own: dict[str, Any] = {name: each[0] if len(each) == 1 else each for name, each in sets.items()}
    tree = settings_of.compose(preset, config, own, words or [])
    if "auto" in settings_of.flatten(tree).values() or "stages" in tree:
        from ssrseg.planning.scaling import scaled

        tree = scaled(tree)
    return settings_of.resolve(tree)


def inference_from(tree: dict[str, Any], mode: str | None) -> InferenceConfig:
    """Resolve the settings of inference; `mode` is short for `inference.mode`."""
    from ssrseg import config as settings_of

    chosen = tree if mode is None or not isinstance(tree, dict) else settings_of.merge(tree, {"mode": mode})
    return settings_of.resolve_group(settings_of.InferenceConfig, chosen, "inference settings")


def inference_alone(words: Words, mode: str | None, command: str) -> InferenceConfig:
    """Resolve the settings of inference from the words of a command that takes no others."""
    from ssrseg import config as settings_of

    tree = settings_of.assignments(words or [])
    inference = inference_from(tree.pop("inference", {}), mode)
    if tree:
        raise UserError(
            f"{command} takes settings of `inference` only, such as inference.flip=true; found {min(tree)}."
        )
    return inference


def data_from(root: Path, words: Words) -> DataConfig:
    """Resolve the settings of a data set from its folder and words."""
    from ssrseg import config as settings_of

    tree = settings_of.merge({"root": str(root)}, settings_of.assignments(words or []))
    return settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
