"""A page on this computer: pictures, a video or the webcam, source-only beside adapted, and labels to keep."""

from __future__ import annotations

import importlib
import os
import tempfile
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ssrseg.config import InferenceConfig, read_yaml, resolve
from ssrseg.data.frames import list_frames
from ssrseg.data.images import read_image
from ssrseg.errors import UserError
from ssrseg.inference.predictor import Images, Predictor, as_pixels
from ssrseg.inference.results import draw
from ssrseg.models.weights import load
from ssrseg.runs.folder import SOURCE, RecipeFolder, RunFolder, resume_command

LOOPBACK = {"server_name": "127.0.0.1", "share": False, "ssr_mode": False, "run_history": False, "footer_links": []}
"""No address for others, no second server, no memory of pictures, no links."""


class Look(NamedTuple):
    """What the page shows of an image, at the image's own size."""

    before: Image.Image  # the source-only model's classes over the image; without one, the image
    after: Image.Image  # the model's
    legend: str  # HTML: classes, colours, shares of the pixels
    confidence: Image.Image  # the model's largest probability, of which 255 is 1
    ids: Image.Image  # the model's class ids as grey values


def models_of(place: Path | str) -> tuple[Path | str, Path | str | None]:
    """Find the last student in the folder of a run or recipe, and its source-only one; another place is a model."""
    recipe, run = RecipeFolder(Path(place)), RunFolder(Path(place))
    if not recipe.exists:
        return (run.student_last, run.settings().model.start) if run.exists else (place, None)
    stages = [recipe.stage(stage.name) for stage in resolve(read_yaml(recipe.config)).stages]
    done = [stage.student_last for stage in stages if stage.finished]
    if not done:
        raise UserError(f"No stage of {place} has finished: go on with `{resume_command(recipe.path)}`.")
    source = recipe.stage(SOURCE).student_last
    return done[-1], source if source in done[:-1] else None


def open_models(model: Path | str, start: Path | str | None = None, **how: Any) -> list[Predictor]:
    """Open the source-only model, where there is one, and the model; `how` is for `Predictor`.

    Raises:
        UserError: no such model, models of different classes, or one that takes other bands than RGB.
    """
    model, begun = models_of(model)
    networks = [load(each) for each in (start or begun, model) if each is not None]
    if wrong := [network.in_channels for network in networks if network.in_channels != 3]:
        raise UserError(f"A browser shows RGB, and this model takes {wrong[0]} bands: use `ssrseg predict`.")
    opened = [Predictor(network, **how) for network in networks]
    theirs, ours = (", ".join(opened[number].space.names) for number in (0, -1))
    if theirs != ours:
        raise UserError(
            f"The start's classes are {theirs}; the model's are {ours}: give the start that it went on from, or the "
            "model file alone."
        )
    return opened


def look(models: list[Predictor], image: Images) -> Look:
    """Label an image, as `Predictor` takes it, with what `open_models` returns; raises `UserError` as that does."""
    pixels, space = as_pixels(image), models[-1].space
    sure = [each.probabilities(pixels).cpu() for each in models]
    ids = [each.argmax(0) for each in sure]
    pictures = [Image.fromarray(pixels.permute(1, 2, 0).numpy())]
    pictures += [draw("overlay", pixels, each, models[-1].colors) for each in ids]
    counts = [(torch.bincount(each.flatten(), minlength=len(space.names)) / each.numel()).tolist() for each in ids]
    heads = ["source-only", "this model"][-len(models) :]
    rows = [f"<th></th><th>class</th>{''.join(f'<th>{head}</th>' for head in heads)}"]
    for color, name, *shares in zip(space.colors, space.names, *counts, strict=True):
        cells = "".join(f"<td>{share:.1%}</td>" for share in shares)
        rows.append(f'<td style="background: rgb{color}; width: 2em"></td><td>{escape(name)}</td>{cells}')
    legend = "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    confidence = Image.fromarray((255 * sure[-1].amax(0)).round().byte().numpy())
    return Look(pictures[-2], pictures[-1], legend, confidence, draw("ids", pixels, ids[-1], models[-1].colors))


def moment(clip: Path | str, at: float) -> Image.Image:
    """Read a frame of a video: the first where `at` is 0, the last where it is 1; raises `UserError`."""
    frames = list_frames(Path(clip), interval=0)
    return Image.fromarray(read_image(frames[round(at * (len(frames) - 1))]).permute(1, 2, 0).numpy())


def build_page(models: list[Predictor], name: str, folder: Path) -> Any:
    """Build the page, a `gradio.Blocks`; what one downloads is written to `folder`.

    Raises `UserError` without gradio.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # some of its calls ask this alone
    try:
        gr: Any = importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        raise UserError(f"The page needs gradio ({error}): pip install 'ssrseg[try]'") from error

    def show(image: Image.Image | None) -> list[Any]:
        if image is None:
            return [None, "", None, gr.update(value=None, interactive=False)]
        try:
            seen = look(models, image)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        seen.ids.save(folder / "ids.png")
        file = gr.update(value=folder / "ids.png", interactive=True)
        return [(seen.before, seen.after), seen.legend, seen.confidence, file]

    def frame(clip: str | None, at: float) -> Any:
        try:
            return moment(clip, at) if clip else gr.skip()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    kept: dict[str, Any] = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}  # no "share"
    with gr.Blocks(analytics_enabled=False, title="ssrseg try", delete_cache=(600, 3600)) as page:
        gr.Markdown(f"### {name}\nPictures stay on this computer.")
        with gr.Row():
            with gr.Column(min_width=300):
                image = gr.Image(type="pil", label="a picture", sources=["upload", "webcam", "clipboard"], buttons=[])
                with gr.Accordion("a frame of a video", open=False):
                    video = gr.Video(label="a video", sources=["upload", "webcam"], buttons=[])
                    at = gr.Slider(0, 1, 0, label="which frame, from the first to the last")
            with gr.Column(scale=2, min_width=300):
                left = "source-only" if len(models) > 1 else "the picture"
                pair = gr.ImageSlider(label=f"left {left}, right this model", **kept)
                legend = gr.HTML()
                confidence = gr.Image(label="confidence: white is sure", **kept)
                button = gr.DownloadButton("class ids as PNG", interactive=False)
        image.change(show, image, [pair, legend, confidence, button])
        gr.on([video.change, at.release], frame, [video, at], image)
    return page


def try_out(
    model: Path | str,
    start: Path | str | None = None,
    *,
    device: str = "auto",
    mode: str | InferenceConfig = "whole",
    port: int | None = None,
) -> None:
    """Serve a page to this computer alone that shows what a model predicts, until the user interrupts.

    Args:
        model: as in `Predictor`; or the folder of a run or recipe: its last student, beside what that went on from.
        start: the source-only model to compare with, of the same classes.
        device: as in `Predictor`.
        mode: as in `Predictor`.
        port: of 127.0.0.1; a free one from 7860 when absent.

    Raises:
        UserError: gradio is missing, the port is taken, or as `open_models`.
    """
    models = open_models(model, start, device=device, mode=mode)
    with tempfile.TemporaryDirectory() as folder:
        page = build_page(models, Path(model).name, Path(folder))
        try:
            address = page.launch(**LOOPBACK, server_port=port, quiet=True, prevent_thread_lock=True)[1]
        except OSError as error:
            raise UserError(f"The page cannot be served: {error} Choose another --port.") from error
        print(f"{address} for this computer alone; Ctrl-C ends it", flush=True)
        page.block_thread()
