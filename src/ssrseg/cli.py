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
from ssrseg.runs.folder import GroupFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a segmentation model on one labelled domain for another, unlabelled one.",
)

FULL_OR_CLOSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""A disk that fills or lets nothing be written: no fault of the program. A run goes on with --resume."""

Words = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value", metavar="[KEY.PATH=VALUE]...")]
Mode = Annotated[str | None, typer.Option(help="whole or slide: short for inference.mode")]
Runner = Annotated[str, typer.Option("--engine", help="auto, torch, compiled, openvino")]
Device = Annotated[str, typer.Option(help="auto, or a device of torch's: cpu, cuda, cuda:1, mps")]


@app.command()
def train(
    words: Words = None,
    preset: Annotated[str | None, typer.Option(help="a published recipe; `ssrseg presets` lists them")] = None,
    config: Annotated[Path | None, typer.Option(help="settings in a YAML file, laid over the preset")] = None,
    source: Annotated[Path | None, typer.Option(help="your labelled data; replaces the preset's data")] = None,
    target: Annotated[Path | None, typer.Option(help="your unlabelled images")] = None,
    val: Annotated[Path | None, typer.Option(help="labelled target images, only to score with")] = None,
    out: Annotated[Path, typer.Option(help="the run folder")] = Path("runs/run"),
    resume: Annotated[bool, typer.Option("--resume", help="continue the run, or the group, in --out")] = False,
    seeds: Annotated[str | None, typer.Option(help="a group of runs, e.g. 0,1,2, in --out/seed-0 and so on")] = None,
    devices: Annotated[int | None, typer.Option(help="processes per machine: train.devices")] = None,
    nodes: Annotated[int | None, typer.Option(help="machines: train.nodes")] = None,
    prior_correction: Annotated[
        str | None, typer.Option(help="then correct for label shift: ia (in a bias) or cr (the head learns on)")
    ] = None,
) -> None:
    """Train, and leave a run folder with the model, its scores, curves and pictures."""
    from ssrseg.training.stages import corrected
    from ssrseg.training.train import train as run

    several = [f"train.{name}={count}" for name, count in (("devices", devices), ("nodes", nodes)) if count is not None]
    words = [*(words or []), *several]
    if resume and (words or preset or config or source or target or val or prior_correction):
        raise UserError("--resume reads the settings of the run in --out: give no others.")
    settings = None if resume else _settings(preset, config, source, target, val, words)
    if settings is not None and prior_correction is not None:
        settings = corrected(settings, prior_correction)
    if seeds is not None or (resume and GroupFolder(out).exists):
        _train_group(settings, out, seeds, resume)
        return
    finished = run(settings, out, resume=resume, console=_screen())
    if finished.first:
        typer.echo(f"{finished.folder}")


@app.command("check-data")
def check_data(
    words: Words = None,
    preset: Annotated[str | None, typer.Option(help="as for train")] = None,
    config: Annotated[Path | None, typer.Option(help="as for train")] = None,
    source: Annotated[Path | None, typer.Option(help="as for train")] = None,
    target: Annotated[Path | None, typer.Option(help="as for train")] = None,
    val: Annotated[Path | None, typer.Option(help="as for train")] = None,
    out: Annotated[Path, typer.Option(help="where report and contact sheet go")] = Path("runs/check"),
) -> None:
    """Decode every image and label of a run: counts, colours, classes, and all that is wrong. Code 2: cannot train."""
    from ssrseg.data.checks import report

    found = report.check_data(_settings(preset, config, source, target, val, words), out, console=_screen())
    if not found.trainable:
        raise typer.Exit(2)


def _train_group(settings: settings_of.Settings | None, out: Path, seeds: str | None, resume: bool) -> None:
    """Train a group; a failed seed is exit code 1, and the others are trained nevertheless."""
    from ssrseg.reporting import compare_records, overview, print_table, read_run
    from ssrseg.training import train_seeds

    group = train_seeds(settings, out, _seeds(seeds), resume=resume, console=_screen())
    if group.finished:
        print_table(overview(compare_records([read_run(run) for run in GroupFolder(out).runs()])), _screen())
    typer.echo(f"{group.folder}")
    for seed, why in group.failed.items():
        typer.echo(f"seed {seed} failed: {why}\nContinue the group with --resume --out {out}", err=True)
    if group.failed:
        raise typer.Exit(1)


def _seeds(text: str | None) -> list[int] | None:
    try:
        return None if text is None else [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise UserError(
            f"--seeds takes whole numbers with commas between them, such as 0,1,2; found {text!r}."
        ) from error


@app.command("estimate-priors")
def estimate_priors(
    model: Annotated[str, typer.Argument(help="a model file, or a name on the Hub")],
    words: Words = None,
    preset: Annotated[str | None, typer.Option(help="as for train")] = None,
    config: Annotated[Path | None, typer.Option(help="as for train")] = None,
    source: Annotated[Path | None, typer.Option(help="as for train")] = None,
    target: Annotated[Path | None, typer.Option(help="as for train")] = None,
    out: Annotated[Path, typer.Option(help="the file of class priors")] = Path("priors.json"),
) -> None:
    """Count in how many images every class occurs: by labels in the source, by the model's eyes in the target."""
    from ssrseg.label_shift import estimate_priors as estimate, priors_table

    priors = estimate(model, _settings(preset, config, source, target, None, words), out=out)
    _screen().print(priors_table(priors))
    typer.echo(str(out))


@app.command()
def adjust(
    model: Annotated[str, typer.Argument(help="a model file, or a name on the Hub")],
    priors: Annotated[str, typer.Argument(help="a file of estimate-priors, or gta5-cityscapes, synthia-cityscapes")],
    out: Annotated[Path, typer.Argument(help="the adjusted model file")],
) -> None:
    """Fold the shift of class priors into a model: no cost at inference, and no target label."""
    from ssrseg.label_shift import adjust as fold

    typer.echo(str(fold(model, priors, out)))


@app.command()
def plan(
    words: Words = None,
    preset: Annotated[str | None, typer.Option(help="a published recipe; `ssrseg presets` lists them")] = None,
    config: Annotated[Path | None, typer.Option(help="settings in a YAML file, laid over the preset")] = None,
    source: Annotated[Path | None, typer.Option(help="your labelled data: it need not exist yet")] = None,
    target: Annotated[Path | None, typer.Option(help="your unlabelled images: they need not exist yet")] = None,
    probe: Annotated[bool, typer.Option(help="time three real steps on noise")] = True,
    memory: Annotated[float | None, typer.Option(help="GiB of the device; asked of the device when absent")] = None,
    out: Annotated[Path | None, typer.Option(help="the plan as JSON")] = None,
) -> None:
    """Say what a run will need, before it runs: FLOPs, memory, time, and what to change if it does not fit."""
    from ssrseg.planning import plan as foresee, plan_tables
    from ssrseg.runs.atomic import write_json

    roots = {"source": source, "target": target}
    own = {name: {"root": str(root)} for name, root in roots.items() if root is not None}
    settings = settings_of.resolve(settings_of.compose(preset, config, own, words or []))
    planned = foresee(settings, probe=probe, memory=memory)
    if out is not None:
        write_json(out, planned.to_dict())
    _screen().print(plan_tables(planned))


@app.command()
def presets() -> None:
    """List the published recipes."""
    table = Table("preset", "what it is", box=None)
    for name, summary in settings_of.presets().items():
        table.add_row(name, summary)
    _screen().print(table)


@app.command()
def evaluate(
    model: Path,
    data: Annotated[Path, typer.Argument(help="folder with images and labels")],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="settings of the data, e.g. spec=camvid; as in training: classes=[...], inference.flip=true"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="scores as JSON")] = None,
    subset: Annotated[str, typer.Option(help="classes whose mean is wanted too, e.g. road,car")] = "",
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
) -> None:
    """Score a model on labelled images: per-class IoU, mIoU, pixel accuracy."""
    from ssrseg.inference import evaluate as score, scores_table

    tree = settings_of.merge({"root": str(data)}, settings_of.assignments(words or []))
    classes, inference = tree.pop("classes", None), _inference(tree.pop("inference", {}), mode)
    scores = score(
        model,
        settings_of.resolve_group(settings_of.DataConfig, tree, "data settings"),
        classes=classes,
        inference=inference,
        subset=[name.strip() for name in subset.split(",") if name.strip()],
        out=out,
        device=device,
        engine=engine,
    )
    _screen().print(scores_table(scores))


@app.command()
def predict(
    model: Path,
    images: Annotated[str, typer.Argument(help="a file, a folder, a quoted glob, or a video")],
    out: Annotated[Path, typer.Option(help="where the label maps and overlays go")],
    words: Annotated[
        list[str] | None,
        typer.Argument(help="as in training: inference.flip=true, 'inference.scales=[0.75, 1]', inference.window=..."),
    ] = None,
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
    every: Annotated[int, typer.Option(help="of a video, label each n-th frame; the others keep its labels")] = 1,
) -> None:
    """Label your own pictures, id map, colour map and overlay of each, or a video."""
    from ssrseg.inference import is_video, predict as label, predict_video

    tree = settings_of.assignments(words or [])
    inference = _inference(tree.pop("inference", {}), mode)
    if tree:
        raise UserError(f"predict takes settings of `inference` only, such as inference.flip=true; found {min(tree)}.")
    if is_video(images):
        video = predict_video(model, images, out, inference=inference, device=device, engine=engine, every=every)
        pace = f"{video.speed:.2f} times the stream's {video.rate:g} frames/s"
        typer.echo(f"{video.frames} frames labelled in {video.seconds:.1f} s ({pace}): {video.path}")
        return
    predictions = label(model, images, out, inference=inference, device=device, engine=engine)
    for path, why in predictions.unreadable.items():
        typer.echo(f"not readable, left out: {path}: {why}", err=True)
    typer.echo(f"{len(predictions)} images labelled: {out}")


@app.command()
def pack(
    data: Annotated[Path, typer.Argument(help="folder with images, and labels; or a URL")],
    out: Annotated[Path, typer.Argument(help="a new .zip file")],
    words: Annotated[
        list[str] | None, typer.Argument(help="settings of the data as key=value, e.g. spec=gta5 'resize=[1280, 720]'")
    ] = None,
    images_only: Annotated[bool, typer.Option("--images-only", help="no labels, as for a target")] = False,
) -> None:
    """Pack a data set into one .zip file, for clusters and object storage."""
    from ssrseg.data.pack import pack as write

    tree = settings_of.merge({"root": str(data)}, settings_of.assignments(words or []))
    group = settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
    typer.echo(f"{write(group, out, images_only=images_only)} images packed: {out}")


@app.command()
def export(
    model: Path,
    out: Annotated[Path, typer.Argument(help="the .onnx file")],
) -> None:
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
    table1: Annotated[
        bool, typer.Option("--table1", help="add the paper's ablation of stages, ours beside it")
    ] = False,
    table2: Annotated[bool, typer.Option("--table2", help="add the paper's table of methods, ours beside it")] = False,
    format: Annotated[str | None, typer.Option(help="markdown, latex, csv or html; by --out's name if absent")] = None,
    out: Annotated[Path | None, typer.Option(help="the file; printed when absent")] = None,
    allow_unfinished: Annotated[bool, typer.Option("--allow-unfinished", help="take the latest scores")] = False,
) -> None:
    """Compare groups of runs: mean and deviation over seeds, paired differences, what is within noise."""
    from ssrseg.reporting import compare as set_against, comparison_text, format_of, print_comparison
    from ssrseg.runs.atomic import write_atomically

    format = format or (format_of(out) if out is not None else None)
    found = set_against(
        runs,
        against=against,
        network="teacher" if teacher else "student",
        table1=table1,
        table2=table2,
        allow_unfinished=allow_unfinished,
    )
    if format is None:
        print_comparison(found, _screen())
        return
    text = comparison_text(found, format)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomically(out, lambda partial: partial.write_text(text, encoding="utf-8"))
        typer.echo(f"{out}")


@app.command()
def card(
    run: Annotated[Path, typer.Argument(help="a run folder, or the folder of a group")],
    out: Annotated[Path | None, typer.Option(help="the file; printed when absent")] = None,
    license: Annotated[str | None, typer.Option(help="under which you publish the weights, e.g. cc-by-nc-4.0")] = None,
) -> None:
    """Write the model card of a run: method, data, scores with seeds, whose terms apply, what it is not for."""
    from ssrseg.reporting import model_card
    from ssrseg.runs.atomic import write_atomically

    text = model_card(run, license=license)
    if out is None:
        typer.echo(text)
    else:
        write_atomically(out, lambda partial: partial.write_text(text, encoding="utf-8"))
        typer.echo(f"{out}")


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

    show(out, console=_screen())


def _settings(
    preset: str | None,
    config: Path | None,
    source: Path | None,
    target: Path | None,
    val: Path | None,
    words: list[str] | None,
) -> Any:
    roots = {"source": source, "target": target, "val": val}
    own = {name: {"root": str(root)} for name, root in roots.items() if root is not None}
    return settings_of.resolve(settings_of.compose(preset, config, own, words or []))


def _inference(tree: dict[str, Any], mode: str | None) -> settings_of.InferenceConfig:
    chosen = tree if mode is None else settings_of.merge(tree, {"mode": mode})
    return settings_of.resolve_group(settings_of.InferenceConfig, chosen, "inference settings")


def _screen() -> Console:
    return Console()


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback.

    The code is 2, or 3 when a run stopped because its numbers went wrong (`docs/guards.md`).
    """
    try:
        app()
    except UserError as error:
        _say_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in FULL_OR_CLOSED:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _say_error(f"cannot write: {error.strerror}{where}. Make room, or write elsewhere with --out.")
        sys.exit(2)


def _say_error(text: str) -> None:
    shown = text.encode(errors="replace").decode()  # a name that is no UTF-8 cannot be printed
    Console(stderr=True).print(f"error: {shown}", style="red", markup=False, highlight=False, soft_wrap=True)
