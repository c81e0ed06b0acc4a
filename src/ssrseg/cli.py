"""The command line: every word is the Python function of the same name."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ssrseg import config as settings_of
from ssrseg.errors import UserError
from ssrseg.runs.atomic import FULL, write_json, write_text
from ssrseg.runs.folder import GroupFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a segmentation model on one labelled domain for another, unlabelled one.",
)

Words = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value", metavar="[KEY.PATH=VALUE]...")]
Preset = Annotated[str | None, typer.Option(help="a published recipe; `ssrseg presets` lists them")]
Config = Annotated[Path | None, typer.Option(help="settings in a YAML file, laid over the preset")]
Source = Annotated[Path | None, typer.Option(help="your labelled data; replaces the preset's data")]
Target = Annotated[Path | None, typer.Option(help="your unlabelled images")]
Val = Annotated[Path | None, typer.Option(help="labelled target images, only to score with")]
Model = Annotated[str, typer.Argument(help="a model file, or a name on the Hub")]
File = Annotated[Path | None, typer.Option(help="the file; printed when absent")]
Correction = Annotated[str | None, typer.Option(help="label shift, after: ia (in a bias) or cr (the head learns on)")]
Mode = Annotated[str | None, typer.Option(help="whole or slide: short for inference.mode")]
Runner = Annotated[str, typer.Option("--engine", help="auto, torch, compiled, openvino")]
Device = Annotated[str, typer.Option(help="auto, or a device of torch's: cpu, cuda, cuda:1, mps")]


@app.command()
def train(
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    val: Val = None,
    out: Annotated[Path, typer.Option(help="the run folder")] = Path("runs/run"),
    resume: Annotated[bool, typer.Option("--resume", help="continue the run, or the group, in --out")] = False,
    seeds: Annotated[str | None, typer.Option(help="a group of runs, e.g. 0,1,2, in --out/seed-0 and so on")] = None,
    devices: Annotated[int | None, typer.Option(help="processes per machine: train.devices")] = None,
    nodes: Annotated[int | None, typer.Option(help="machines: train.nodes")] = None,
    prior_correction: Correction = None,
) -> None:
    """Train, and leave a run folder with the model, its scores, curves and pictures."""
    from ssrseg.training.stages import corrected
    from ssrseg.training.train import train as run

    several = [f"train.{name}={count}" for name, count in (("devices", devices), ("nodes", nodes)) if count is not None]
    words = [*(words or []), *several]
    if resume and (words or preset or config or source or target or val or prior_correction):
        raise UserError("--resume reads the settings of the run in --out: give no others.")
    settings = None if resume else _settings(words, preset, config, source=source, target=target, val=val)
    if settings is not None and prior_correction is not None:
        settings = corrected(settings, prior_correction)
    if seeds is not None or (resume and GroupFolder(out).exists):
        _train_group(settings, out, seeds, resume)
        return
    finished = run(settings, out, resume=resume, console=Console())
    if finished.first:
        typer.echo(f"{finished.folder}")


def _train_group(settings: settings_of.Settings | None, out: Path, seeds: str | None, resume: bool) -> None:
    """Train a group; a failed seed is exit code 1, and the others are trained nevertheless."""
    from ssrseg.reporting import compare_records, overview, print_table, read_run
    from ssrseg.training import train_seeds

    try:
        wanted = None if seeds is None else [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        example = "such as 0,1,2"
        raise UserError(f"--seeds takes whole numbers with commas between them, {example}; found {seeds!r}.") from error
    group = train_seeds(settings, out, wanted, resume=resume, console=Console())
    if group.finished:
        print_table(overview(compare_records([read_run(run) for run in GroupFolder(out).runs()])), Console())
    typer.echo(f"{group.folder}")
    for seed, why in group.failed.items():
        typer.echo(f"seed {seed} failed: {why}\nContinue the group with --resume --out {out}", err=True)
    if group.failed:
        raise typer.Exit(1)


@app.command("check-data")
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

    settings = _settings(words, preset, config, source=source, target=target, val=val)
    if not report.check_data(settings, out, console=Console()).trainable:
        raise typer.Exit(2)


@app.command("estimate-priors")
def estimate_priors(
    model: Model,
    words: Words = None,
    preset: Preset = None,
    config: Config = None,
    source: Source = None,
    target: Target = None,
    out: Annotated[Path, typer.Option(help="the file of class priors")] = Path("priors.json"),
) -> None:
    """Count in how many images every class occurs: by labels in the source, by the model's eyes in the target."""
    from ssrseg import label_shift

    priors = label_shift.estimate_priors(model, _settings(words, preset, config, source=source, target=target), out=out)
    Console().print(label_shift.priors_table(priors))
    typer.echo(str(out))


@app.command()
def adjust(
    model: Model,
    priors: Annotated[str, typer.Argument(help="a file of estimate-priors, or gta5-cityscapes, synthia-cityscapes")],
    out: Annotated[Path, typer.Argument(help="the adjusted model file")],
) -> None:
    """Fold the shift of class priors into a model: no cost at inference, and no target label."""
    from ssrseg.label_shift import adjust as fold

    typer.echo(str(fold(model, priors, out)))


@app.command()
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

    settings = _settings(words, preset, config, source=source, target=target)
    planned = planning.plan(settings, probe=probe, memory=memory)
    if out is not None:
        write_json(out, planned.to_dict())
    Console().print(planning.plan_tables(planned))


@app.command()
def presets() -> None:
    """List the published recipes."""
    table = Table("preset", "what it is", box=None)
    for name, summary in settings_of.presets().items():
        table.add_row(name, summary)
    Console().print(table)


@app.command()
def evaluate(
    model: Path,
    data: Annotated[Path, typer.Argument(help="folder with images and labels")],
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="scores as JSON")] = None,
    subset: Annotated[str, typer.Option(help="classes whose mean is wanted too, e.g. road,car")] = "",
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
) -> None:
    """Score a model on labelled images: per-class IoU, mIoU, pixel accuracy.

    Settings are those of the data, e.g. spec=camvid, and as in training classes=[...] and inference.flip=true.
    """
    from ssrseg import inference as use

    tree = settings_of.merge({"root": str(data)}, settings_of.assignments(words or []))
    classes, inference = tree.pop("classes", None), _inference(tree.pop("inference", {}), mode)
    settings = settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
    mean_of = [name.strip() for name in subset.split(",") if name.strip()]
    scores = use.evaluate(
        model, settings, classes=classes, inference=inference, subset=mean_of, out=out, device=device, engine=engine
    )
    Console().print(use.scores_table(scores))


@app.command()
def predict(
    model: Path,
    images: Annotated[str, typer.Argument(help="a file, a folder, a quoted glob, or a video")],
    out: Annotated[Path, typer.Option(help="where the label maps and overlays go")],
    words: Words = None,
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
    every: Annotated[int, typer.Option(help="of a video, label each n-th frame; the others keep its labels")] = 1,
) -> None:
    """Label your own pictures, id map, colour map and overlay of each, or a video.

    Settings are those of inference, e.g. inference.flip=true, 'inference.scales=[0.75, 1]', inference.window=...
    """
    from ssrseg import inference as use

    tree = settings_of.assignments(words or [])
    inference = _inference(tree.pop("inference", {}), mode)
    if tree:
        raise UserError(f"predict takes settings of `inference` only, such as inference.flip=true; found {min(tree)}.")
    if use.is_video(images):
        video = use.predict_video(model, images, out, inference=inference, device=device, engine=engine, every=every)
        pace = f"{video.speed:.2f} times the stream's {video.rate:g} frames/s"
        typer.echo(f"{video.frames} frames labelled in {video.seconds:.1f} s ({pace}): {video.path}")
        return
    predictions = use.predict(model, images, out, inference=inference, device=device, engine=engine)
    for path, why in predictions.unreadable.items():
        typer.echo(f"not readable, left out: {path}: {why}", err=True)
    typer.echo(f"{len(predictions)} images labelled: {out}")


@app.command()
def pack(
    data: Annotated[Path, typer.Argument(help="folder with images, and labels; or a URL")],
    out: Annotated[Path, typer.Argument(help="a new .zip file")],
    words: Words = None,
    images_only: Annotated[bool, typer.Option("--images-only", help="no labels, as for a target")] = False,
) -> None:
    """Pack a data set into one .zip file, for clusters and object storage; e.g. spec=gta5 'resize=[1280, 720]'."""
    from ssrseg.data.pack import pack as write

    tree = settings_of.merge({"root": str(data)}, settings_of.assignments(words or []))
    group = settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
    typer.echo(f"{write(group, out, images_only=images_only)} images packed: {out}")


@app.command()
def export(model: Path, out: Annotated[Path, typer.Argument(help="the .onnx file")]) -> None:
    """Write a model as ONNX with dynamic size, checked against torch."""
    from ssrseg.inference import export as write

    typer.echo(str(write(model, out)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="the HTML page")] = None,
) -> None:
    """Make one HTML page of one run or several."""
    from ssrseg.reporting import report as write

    typer.echo(str(write(runs, out)))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders, or folders of groups or stages")],
    against: Annotated[str | None, typer.Option(help="the group to compare with; the first when absent")] = None,
    teacher: Annotated[bool, typer.Option("--teacher", help="the teacher's scores, not the student's")] = False,
    table1: Annotated[bool, typer.Option("--table1", help="add the paper's table of stages, ours beside it")] = False,
    table2: Annotated[bool, typer.Option("--table2", help="add the paper's table of methods, ours beside it")] = False,
    format: Annotated[str | None, typer.Option(help="markdown, latex, csv or html; by --out's name if absent")] = None,
    out: File = None,
    allow_unfinished: Annotated[bool, typer.Option("--allow-unfinished", help="take the latest scores")] = False,
) -> None:
    """Compare groups of runs: mean and deviation over seeds, paired differences, what is within noise."""
    from ssrseg import reporting

    format = format or (reporting.format_of(out) if out is not None else None)
    found = reporting.compare(
        runs,
        against=against,
        network="teacher" if teacher else "student",
        table1=table1,
        table2=table2,
        allow_unfinished=allow_unfinished,
    )
    if format is None:
        reporting.print_comparison(found, Console())
    else:
        _write_or_print(reporting.comparison_text(found, format), out)


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="a run folder, or the folder of a group")],
    out: File = None,
    license: Annotated[str | None, typer.Option(help="under which you publish the weights, e.g. cc-by-nc-4.0")] = None,
) -> None:
    """Write the model card of a run: method, data, scores with seeds, whose terms apply, what it is not for."""
    from ssrseg.reporting import model_card

    _write_or_print(model_card(run, license=license), out)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a published checkpoint: DAFormer, MIC, SSR, SegFormer ...")],
    out: Annotated[Path, typer.Argument(help="the .safetensors file")],
    part: Annotated[str, typer.Option(help="`model` (the student) or `ema_model` (the teacher)")] = "model",
) -> None:
    """Turn a published checkpoint into a model file; pickle is never executed."""
    from ssrseg.models.convert import convert as write

    typer.echo(str(write(checkpoint, out, part=part)))


@app.command()
def demo(out: Annotated[Path, typer.Option(help="where data, runs and report go")] = Path("runs/demo")) -> None:
    """Train on an embedded two-domain set of drawn streets: source-only, DAFormer, DAFormer + SSR."""
    from ssrseg.demo.demo import demo as show

    show(out, console=Console())


def _settings(words: Words, preset: Preset, config: Config, **roots: Path | None) -> settings_of.Settings:
    own = {name: {"root": str(root)} for name, root in roots.items() if root is not None}
    return settings_of.resolve(settings_of.compose(preset, config, own, words or []))


def _inference(tree: dict[str, Any], mode: str | None) -> settings_of.InferenceConfig:
    chosen = tree if mode is None else settings_of.merge(tree, {"mode": mode})
    return settings_of.resolve_group(settings_of.InferenceConfig, chosen, "inference settings")


def _write_or_print(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=not text.endswith("\n"))
    else:
        write_text(out, text)
        typer.echo(f"{out}")


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback.

    The code is 2, or 3 when a run stopped because its numbers went wrong (`docs/guards.md`).
    """
    try:
        app()
    except (UserError, OSError) as error:
        if isinstance(error, UserError):
            text, code = str(error), error.exit_code
        elif error.errno in {*FULL, errno.EROFS}:  # a disk that lets nothing be written is no fault of the program
            where = f" ({error.filename})" if error.filename else ""
            text, code = f"cannot write: {error.strerror}{where}. Make room, or write elsewhere with --out.", 2
        else:
            raise
        shown = text.encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
        Console(stderr=True).print(f"error: {shown}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(code)
