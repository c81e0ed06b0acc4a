"""Commands before and around a training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ssrseg.cli.options import Config, Correction, Device, Model, Preset, Source, Target, Val, Words, settings_from
from ssrseg.errors import OutOfMemory, UserError
from ssrseg.runs.atomic import write_json

if TYPE_CHECKING:
    from ssrseg.config import Settings


def train(
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    val: Val = None,
    out: Annotated[Path, typer.Option(help="the run folder")] = Path("runs/run"),
    resume: Annotated[
        bool, typer.Option("--resume", help="continue what is in --out; words change its settings")
    ] = False,
    seeds: Annotated[str | None, typer.Option(help="a group of runs, e.g. 0,1,2, in --out/seed-0 and so on")] = None,
    devices: Annotated[int | None, typer.Option(help="processes per machine: train.devices")] = None,
    nodes: Annotated[int | None, typer.Option(help="machines: train.nodes")] = None,
    prior_correction: Correction = None,
) -> None:
    """Train, and leave a run folder with the model, its scores, curves and pictures."""
    from ssrseg.runs.folder import GroupFolder, RunFolder, resume_command
    from ssrseg.training.stages import corrected
    from ssrseg.training.train import train as run

    several = [f"train.{name}={count}" for name, count in (("devices", devices), ("nodes", nodes)) if count is not None]
    words = [*(words or []), *several]
    if resume and (preset or config or source or target or val or prior_correction):
        raise UserError(
            "--resume reads the settings of the run in --out: give no others, but for words that change single ones "
            "from now on, as train.steps=60000 or source.root=FOLDER."
        )
    if resume and (folders := [word for word in words if "=" not in word and Path(word).is_dir()]):
        raise UserError(f"--resume continues what --out names: {resume_command(Path(folders[0]))}")
    if resume:
        settings = resumed(out, words)
    else:
        settings = settings_from(words, preset, config, source=source, target=target, val=val)
    if settings is not None and prior_correction is not None:
        settings = corrected(settings, prior_correction)
    if seeds is not None or (resume and GroupFolder(out).exists):
        _train_group(settings, out, seeds, resume)
        return
    try:
        finished = run(settings, out, resume=resume, console=Console())
    except OutOfMemory as error:
        from ssrseg import planning

        said = [str(error)]
        with suppress(Exception):  # an addition, when memory is short
            begun = filter(lambda run: run.exists and not run.finished, map(RunFolder, (out, *sorted(out.iterdir()))))
            said.append(planning.what_to_change(next(begun).settings()))  # of a recipe, the stage that failed
        raise OutOfMemory("\n".join(said)) from error
    if finished.first:
        typer.echo(f"{finished.folder}")


def resumed(out: Path, words: list[str]) -> Settings | None:
    """Read the settings of what is to go on, changed by words; none without, or where nothing has begun."""
    from ssrseg.runs.folder import GroupFolder, RecipeFolder, RunFolder

    begun = [kind(out).config for kind in (GroupFolder, RecipeFolder, RunFolder) if kind(out).exists]
    return settings_from(words, None, begun[0]) if words and begun else None


def _train_group(settings: Settings | None, out: Path, seeds: str | None, resume: bool) -> None:
    """Train a group; a failed seed is exit code 1, and the others are trained nevertheless."""
    from ssrseg.reporting import compare_records, members, overview, print_table, read_run
    from ssrseg.runs.folder import resume_command
    from ssrseg.training import train_seeds

    try:
        wanted = None if seeds is None else [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        example = "such as 0,1,2"
        raise UserError(f"--seeds takes whole numbers with commas between them, {example}; found {seeds!r}.") from error
    group = train_seeds(settings, out, wanted, resume=resume, console=Console())
    if group.finished:
        print_table(overview(compare_records([read_run(run) for run in members(out)])), Console())
    typer.echo(f"{group.folder}")
    for seed, why in group.failed.items():
        typer.echo(f"seed {seed} failed: {why}\nContinue the group with: {resume_command(out)}", err=True)
    if group.failed:
        raise typer.Exit(1)


def check_data(
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    val: Val = None,
    out: Annotated[Path, typer.Option(help="where report and contact sheet go")] = Path("runs/check"),
) -> None:
    """Decode every image and label of a run: counts, colours, classes, and all that is wrong. Code 2: cannot train."""
    from ssrseg.data.checks import report

    settings = settings_from(words, preset, config, source=source, target=target, val=val)
    if not report.check_data(settings, out, console=Console()).trainable:
        raise typer.Exit(2)


def estimate_priors(
    model: Model,
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    out: Annotated[Path, typer.Option(help="the file of class priors")] = Path("priors.json"),
    device: Device = "auto",
) -> None:
    """Count in how many images every class occurs: by labels in the source, by the model's eyes in the target."""
    from ssrseg import label_shift

    settings = settings_from(words, preset, config, source=source, target=target)
    priors = label_shift.estimate_priors(model, settings, out=out, device=device)
    Console().print(label_shift.priors_table(priors))
    typer.echo(str(out))


def adjust(
    model: Model,
    priors: Annotated[str, typer.Argument(help="a file of estimate-priors, or gta5-cityscapes, synthia-cityscapes")],
    out: Annotated[Path, typer.Argument(help="the adjusted model file")],
) -> None:
    """Fold the shift of class priors into a model: no cost at inference, and no target label."""
    from ssrseg.label_shift import adjust as fold

    typer.echo(str(fold(model, priors, out)))


def plan(
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    probe: Annotated[bool, typer.Option(help="time three real steps on noise")] = True,
    memory: Annotated[float | None, typer.Option(help="GiB of the device; asked of the device when absent")] = None,
    out: Annotated[Path | None, typer.Option(help="the plan as JSON")] = None,
) -> None:
    """Say what a run will need, before it runs: FLOPs, memory, time, and what to change if it does not fit."""
    from ssrseg import planning

    settings = settings_from(words, preset, config, source=source, target=target)
    planned = planning.plan(settings, probe=probe, memory=memory)
    if out is not None:
        write_json(out, planned.to_dict())
    Console().print(planning.plan_tables(planned))


def presets(
    name: Annotated[
        str | None, typer.Argument(help="one of them: its memory and operations on a GPU, by `plan`")
    ] = None,
) -> None:
    """List the published recipes with the licences of their weights; say what one of them needs on a GPU."""
    from ssrseg import config as settings_of, planning

    summaries = settings_of.presets()
    table = Table("preset", "what it is", "licence of its weights", box=None)
    for each in summaries if name is None else [name]:
        weights = planning.licences(settings_of.read_preset(each))
        table.add_row(each, summaries[each], "; ".join(f"{of}: {licence}" for of, licence in weights.items()))
    Console().print(table)
    if name is not None:
        typer.echo(planning.needs_of_preset(name))


def demo(
    out: Annotated[Path | None, typer.Option(help="where data, runs and report go; below `runs` when absent")] = None,
    streets: Annotated[bool, typer.Option(help="drawn streets instead: DAFormer, DAFormer + SSR")] = False,
) -> None:
    """Adapt from bright to dim images of cell nuclei, embedded ones: source-only, target statistics, DACS, oracle."""
    from ssrseg.demo.dataset import NUCLEI, STREETS
    from ssrseg.demo.demo import demo as show

    out = out or Path("runs/demo-streets" if streets else "runs/demo")
    show(out, STREETS if streets else NUCLEI, console=Console())
