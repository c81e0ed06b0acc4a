"""Commands on trained models and data sets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ssrseg.cli.options import (
    Deployed,
    Device,
    Mode,
    Model,
    Runner,
    Words,
    data_from,
    inference_alone,
    inference_from,
    settings_from,
)
from ssrseg.errors import UserError

if TYPE_CHECKING:
    from ssrseg.inference.quantize import Quantized

RESULTS = "ids, color, overlay, confidence, probabilities, geojson, geotiff, coco"
"""`ssrseg.inference.results.Kind`, whose module is slow to load."""


def evaluate(
    model: Deployed,
    data: Annotated[Path, typer.Argument(help="folder with images and labels; or settings in YAML, whose val it is")],
    words: Words = None,
    out: Annotated[Path | None, typer.Option(help="scores as JSON")] = None,
    subset: Annotated[str, typer.Option(help="classes whose mean is wanted too, e.g. road,car")] = "",
    per_image: Annotated[Path | None, typer.Option(help="a CSV file: each image's scores, the worst first")] = None,
    boundary: Annotated[bool, typer.Option("--boundary", help="boundary IoU too, for thin classes")] = False,
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
) -> None:
    """Score a model on labelled images: IoU, Dice, precision, accuracy (recall) per class and on average.

    Settings are those of the data, e.g. spec=camvid, and as in training classes=[...] and inference.flip=true; after a
    YAML file, such as a run's config.yaml, they are those of a run.
    """
    from ssrseg import config as settings_of, inference as use

    settings: settings_of.Data
    if data.suffix in (".yaml", ".yml"):
        run = settings_from(words, None, data)
        if run.val is None:
            raise UserError(f"{data} has no val to score: set val.root to a folder with images and labels.")
        settings, classes = run.val, run.classes
        inference = inference_from(run.inference.model_dump(), mode)
    else:
        tree = settings_of.merge({"root": str(data)}, settings_of.assignments(words or []))
        classes, inference = tree.pop("classes", None), inference_from(tree.pop("inference", {}), mode)
        settings = settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
    mean_of = [name.strip() for name in subset.split(",") if name.strip()]
    how: dict[str, Any] = {"inference": inference, "device": device, "engine": engine, "console": Console(stderr=True)}
    kept: dict[str, Any] = {"subset": mean_of, "out": out, "per_image": per_image, "boundary": boundary}
    scores = use.evaluate(model, settings, classes=classes, **kept, **how)
    Console().print(use.scores_table(scores))


def predict(
    model: Deployed,
    images: Annotated[
        str, typer.Argument(help="a file, folder or quoted glob; a video, camera (0) or stream (rtsp://...)")
    ],
    out: Annotated[Path, typer.Option(help="where the label maps and overlays go")],
    words: Words = None,
    mode: Mode = None,
    engine: Runner = "auto",
    device: Device = "auto",
    every: Annotated[int, typer.Option(help="of a video, label each n-th frame; the others keep its labels")] = 1,
    frames: Annotated[int | None, typer.Option(min=1, help="of a video or stream, how many are read")] = None,
    write: Annotated[str, typer.Option(help=f"any of {RESULTS}")] = "ids,color,overlay",
    values: Annotated[str | None, typer.Option(help="of ids: those of a layout (cityscapes), or road=7,car=26")] = None,
) -> None:
    """Label your own pictures, id map, colour map and overlay of each or what `--write` names, or videos.

    Code 1: some were left out, which are named.

    Settings are those of inference, e.g. inference.flip=true, 'inference.scales=[0.75, 1]', inference.window=...
    """
    from ssrseg import inference as use
    from ssrseg.data.unmatched import name_files
    from ssrseg.inference.predict import find_pictures
    from ssrseg.inference.results import kinds_of

    inference = inference_alone(words, mode, "predict")
    complete, clips = True, use.find_videos(images)
    pictures = find_pictures(images) if clips else []
    for clip, folder in clips:
        try:
            video = use.predict_video(
                model, clip, out / folder, inference=inference, every=every, frames=frames, device=device, engine=engine
            )
        except use.UnreadableVideo as error:
            if len(clips) + len(pictures) == 1:
                raise
            typer.echo(f"left out: {error}", err=True)
            complete = False
            continue
        pace = f"{video.speed:.2f} times the stream's {video.rate:g} frames/s"
        typer.echo(f"{video.frames} frames labelled in {video.seconds:.1f} s ({pace}): {video.path}")
        if not video.complete:
            typer.echo(f"{clip} is cut off: {video.frames} of its {video.claimed} frames could be read.", err=True)
            complete = False
    if clips and not pictures:
        raise typer.Exit(0 if complete else 1)
    kinds = kinds_of(write)
    predictions = use.predict(
        model, images, out, inference=inference, kinds=kinds, values=values, device=device, engine=engine
    )
    for why in predictions.unreadable.values():
        typer.echo(f"left out: {why}", err=True)
    for path, count in predictions.pages.items():
        typer.echo(f"left out: all but the first of {count} pages of {path}: save them as files of their own", err=True)
    if skipped := [path for path in predictions.skipped if not (use.is_video(path) and path.is_file())]:
        typer.echo(f"left out, not read: {name_files(skipped)}. Save pictures as PNG.", err=True)
    typer.echo(f"{len(predictions)} images labelled: {out}")
    if not complete or not predictions.complete:
        raise typer.Exit(1)


def recalibrate(
    model: Model,
    out: Annotated[Path, typer.Argument(help="the new model file")],
    target: Annotated[Path, typer.Option(help="unlabelled images of the domain that the model is to work in")],
    words: Words = None,
    keep: Annotated[float, typer.Option(help="share of the model's own statistics: 0 to 1")] = 0.5,
    images: Annotated[int, typer.Option(min=1, help="how many are looked at, evenly spread")] = 200,
    device: Device = "auto",
) -> None:
    """Give a model the BatchNorm statistics of unlabelled target images: no training, no label.

    Settings are those of the data, e.g. spec=camvid.
    """
    from ssrseg.inference import recalibrate as run

    found = run(model, data_from(target, words), out, keep=keep, images=images, device=device)
    typer.echo(f"{found.layers} BatchNorm layers, {found.images} images: {found.path}")


def choose(
    out: Annotated[Path, typer.Argument(help="the new model file")],
    models: Annotated[list[str], typer.Argument(help="model files, or names on the Hub")],
    target: Annotated[Path, typer.Option(help="unlabelled images of the domain that the model is to work in")],
    start: Annotated[str | None, typer.Option(help="the source-only model that they were adapted from")] = None,
    images: Annotated[int, typer.Option(min=1, help="how many are looked at, evenly spread")] = 32,
    mode: Mode = None,
    device: Device = "auto",
) -> None:
    """Choose among models, and BatchNorm statistics for each, by unlabelled target images: no training, no label.

    Settings among the models are those of the data, e.g. spec=camvid.
    """
    from ssrseg import inference as use

    files, words = [name for name in models if "=" not in name], [name for name in models if "=" in name]
    data = data_from(target, words)
    inference = inference_from({}, mode)
    named = {file: file for file in files}
    found = use.choose(named, data, out, start=start, images=images, device=device, inference=inference)
    Console().print(use.choice_table(found))
    typer.echo(f"{found.path}")


def suggest(
    model: Model,
    target: Annotated[Path, typer.Option(help="folder with unlabelled images; nested: 'images=*.jpg'")],
    words: Words = None,
    count: Annotated[int, typer.Option(help="how many images")] = 20,
    out: Annotated[Path, typer.Option(help="where the list and the files to label go")] = Path("runs/suggested"),
    mode: Mode = None,
    device: Device = "auto",
) -> None:
    """Say which target images to label first: unlike each other, and hard for the model; with files to label."""
    from ssrseg.inference.suggest import labels_glob, suggest as run

    data = data_from(target, words)
    found = run(model, data, out, count=count, device=device, inference=inference_from({}, mode))
    for each in found:
        typer.echo(f"{each.image}  uncertainty {each.uncertainty:.3f}")
    told = {"labels_root": out, "labels": labels_glob(data), "labelled.stems": out / "stems.txt"}
    typer.echo(
        f"{len(found)} images; paint {out / 'labels'}, look at {out / 'contact-sheet.png'}, and train with "
        + shlex.join(f"target.{key}={value}" for key, value in told.items())
    )


def try_out(
    model: Annotated[str, typer.Argument(help="a model file, a name on the Hub, or the folder of a run or recipe")],
    start: Annotated[str | None, typer.Option(help="the source-only model to compare with")] = None,
    words: Words = None,
    mode: Mode = None,
    device: Device = "auto",
    port: Annotated[int | None, typer.Option(help="of this computer; a free one when absent")] = None,
) -> None:
    """Open a page for this computer alone: drop a picture, see source-only beside adapted, keep the labels.

    Settings are those of inference, as in `predict`.
    """
    from ssrseg.inference import try_out as open_page

    open_page(model, start, device=device, mode=inference_alone(words, mode, "try"), port=port)


def pack(
    data: Annotated[Path, typer.Argument(help="folder with images, and labels; or a URL")],
    out: Annotated[Path, typer.Argument(help="a new .zip file")],
    words: Words = None,
    images_only: Annotated[bool, typer.Option("--images-only", help="no labels, as for a target")] = False,
) -> None:
    """Pack a data set into one .zip file, for clusters and object storage; e.g. spec=gta5 'resize=[1280, 720]'."""
    from ssrseg.data.pack import pack as write

    typer.echo(f"{write(data_from(data, words), out, images_only=images_only)} images packed: {out}")


def export(
    model: Path,
    out: Annotated[Path, typer.Argument(help="the .onnx file; with --int8, an .xml file of OpenVINO")],
    words: Words = None,
    size: Annotated[str, typer.Option(help="width x height to trace and check with, and of --static")] = "1024x512",
    static: Annotated[bool, typer.Option("--static", help="one image of --size; else any size, padded inside")] = False,
    labels: Annotated[bool, typer.Option("--labels", help="give classes, uint8, in place of logits")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="weights and arithmetic in float16")] = False,
    opset: Annotated[int | None, typer.Option(help="of ONNX; torch's choice when absent")] = None,
    int8: Annotated[
        Path | None, typer.Option(help="target images, or settings in YAML: 8-bit integers for OpenVINO by them")
    ] = None,
) -> None:
    """Write a model as ONNX for images of any size, checked against torch, and print a script that loads it.

    Settings are those of the data of --int8, e.g. spec=camvid.
    """
    from ssrseg.inference import export as write

    width, by, height = size.partition("x")
    if not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--size is width x height, such as 1280x720; found {size}.")
    sides = int(height), int(width)
    if int8 is not None:
        if static or labels or fp16 or opset is not None:
            raise UserError("--int8 gives logits of images of any size: leave --static, --labels, --fp16, --opset out.")
        found = _quantize(model, out, int8, words, sides)
        typer.echo(f"{found}\n\n{found.example}")
        return
    if words:
        raise UserError(f"export takes settings with --int8 only; found {words[0]}.")
    report = write(model, out, size=sides, dynamic=not static, labels=labels, half=fp16, opset=opset)
    typer.echo(f"{report}\n\n{report.example}")


def _quantize(model: Path, out: Path, images: Path, words: Words, size: tuple[int, int]) -> Quantized:
    from ssrseg import config as settings_of
    from ssrseg.inference.quantize import quantize

    if images.suffix not in (".yaml", ".yml"):
        tree = settings_of.merge({"root": str(images)}, settings_of.assignments(words or []))
        classes = tree.pop("classes", None)
        data = settings_of.resolve_group(settings_of.DataConfig, tree, "data settings")
        return quantize(model, data, out, classes=classes, size=size)
    run = settings_from(words, None, images)
    if run.target is None:
        raise UserError(f"{images} has no target: set target.root to a folder of its images.")
    return quantize(model, run.target, out, val=run.val, classes=run.classes, size=size)


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a published checkpoint: DAFormer, MIC, SSR, SegFormer ...")],
    out: Annotated[Path, typer.Argument(help="the .safetensors file")],
    part: Annotated[str | None, typer.Option(help="which network of several: ema_model ...")] = None,
    backbone: Annotated[str | None, typer.Option(help="recognised when absent")] = None,
    head: Annotated[str | None, typer.Option(help="recognised when absent")] = None,
    classes: Annotated[str, typer.Option(help="names, where they are not in it, e.g. road,car")] = "",
) -> None:
    """Turn a published checkpoint into a model file; pickle is never executed."""
    from ssrseg.models.convert import convert as write

    names = [name.strip() for name in classes.split(",") if name.strip()]
    typer.echo(str(write(checkpoint, out, backbone=backbone, head=head, classes=names or None, part=part)))
