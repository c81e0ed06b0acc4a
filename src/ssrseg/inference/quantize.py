"""A model in 8-bit integers for OpenVINO, and what that costs on images of its domain."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from ssrseg.config import ClassConfig, Data, DataConfig, datasets
from ssrseg.config.data import Bound
from ssrseg.data import find_bounded, read_image
from ssrseg.data.datasets import bounded
from ssrseg.data.layouts import listing_of
from ssrseg.errors import UserError
from ssrseg.inference.evaluate import evaluate_model, labelled_for
from ssrseg.inference.export import EXAMPLE, export, facts_of
from ssrseg.inference.exported import run_on_cpu
from ssrseg.inference.metrics import Scores, confusion_matrix
from ssrseg.inference.sliding_window import Size, whole
from ssrseg.models.segmenter import Segmenter
from ssrseg.models.weights import load
from ssrseg.runs.atomic import writing

ENOUGH = 20
"""Images from which one half is for the ranges and the other to measure on."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
LOAD = """\
model = openvino.Core().read_model({path!r})
about = json.loads(model.get_rt_info("ssrseg").astype(str))["description"] or {{}}
program = openvino.compile_model(model, "CPU")"""


@dataclass(frozen=True)
class Quantized:
    """The file of a quantised model, and what it costs."""

    path: Path
    calibrated: int
    """Images that the ranges are of."""
    measured: int
    """Images that both models are compared on."""
    apart: bool
    """Whether those are other images."""
    agreement: Scores
    """Of the quantised model, with the classes of the model itself as the truth."""
    before: Scores | None
    """Of the model itself on those of the images that are labelled; absent where none is."""
    after: Scores | None
    """Of the quantised model on the same."""

    def __str__(self) -> str:
        same = f"{self.agreement.pixel_accuracy:.2%} of the pixels have the model's class"
        text = f"{self.path}: ranges of {self.calibrated} images; on {self.measured} "
        text += f"{'others' if self.apart else 'of the same'} {same} (mIoU with it {self.agreement.miou:.2%})"
        if self.before is None or self.after is None:
            return f"{text}; without labels nothing else can be said."
        change = 100 * (self.after.miou - self.before.miou)
        return f"{text}; mIoU {100 * self.after.miou:.2f}, the model's is {100 * self.before.miou:.2f} ({change:+.2f})."

    @property
    def example(self) -> str:
        """A script that labels a picture with the file, without this package."""
        load, run = LOAD.format(path=str(self.path)), "logits = program([images])[0]"
        return EXAMPLE.format(package="openvino", load=load, fit="", run=run, classes="logits.argmax(1)")


def quantize(
    model: Path | str | Segmenter,
    target: Data | Path | str,
    out: Path,
    *,
    val: Data | None = None,
    classes: str | Sequence[ClassConfig | str] | None = None,
    images: int = 100,
    size: Size = (512, 1024),
) -> Quantized:
    """Write a model as OpenVINO's `.xml` and `.bin` with weights and arithmetic of 8-bit integers, by NNCF.

    It takes and gives what an ONNX file of `export` does, which it is made of. The ranges of activations are those of
    up to `images` unlabelled images of the `target`, evenly spread, resized as the model's description says. What it
    costs is measured on those of `val`, else on as many others of the target, else, of less than `ENOUGH`, on the same;
    where all of them have labels, which `classes` are for as in `evaluate`, the loss of mIoU too. `size` is that of
    `export`. Attention stays as precise as NNCF advises for transformers.

    Raises:
        UserError: packages are missing, the model takes one size only, there are no images, or `out` is no `.xml` file.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"Quantising needs {', '.join(missing)}: pip install 'ssrseg[int8]'")
    out, segmenter = Path(out), load(model)
    if out.suffix != ".xml":
        raise UserError(f"Expected the name of an .xml file, found {out}.")
    data = DataConfig(root=Path(target)) if isinstance(target, Path | str) else target
    shown = find_bounded(data, at_most=images if val is not None else 2 * images)
    apart = val is not None or len(shown) >= ENOUGH
    ranges = shown[::2] if apart and val is None else shown
    others = find_bounded(val) if val is not None else shown[1::2] if apart else shown

    def pixels(image: tuple[Path, Bound | None]) -> Tensor:
        known = segmenter.description.resize if segmenter.description else None
        return bounded(read_image(image[0], segmenter.reading), image[1] or known)[None].float() / 255

    with tempfile.TemporaryDirectory() as folder:
        report = export(segmenter, Path(folder) / "model.onnx", size=size)
        if report.size is not None:
            raise UserError("This model takes images of one size only: export it as ONNX, it cannot be quantised here.")
        openvino: Any = importlib.import_module("openvino")
        plain = openvino.Core().read_model(report.onnx)
        attends = any(isinstance(part, nn.LayerNorm) for part in segmenter.modules())
        small = _quantized(plain, [pixels(image).numpy() for image in ranges], attends)
        networks = [run_on_cpu(one) for one in (plain, small)]
    agreement = torch.zeros(segmenter.num_classes, segmenter.num_classes, dtype=torch.int64)
    for image in others:
        truth, ids = (network(pixels(image)).argmax(1) for network in networks)
        agreement += confusion_matrix(truth, ids, segmenter.num_classes)
    names = segmenter.description.classes if segmenter.description else tuple(map(str, range(segmenter.num_classes)))
    scores: list[Scores] = []
    if all(map(_is_labelled, datasets(val or data))):
        labelled, space, _ = labelled_for(segmenter, val or data, classes)
        paths = {path for path, _ in others}
        part = Subset(labelled, [number for number, pair in enumerate(labelled.pairs) if pair.image in paths])
        scores = [evaluate_model(one, part, whole, device="cpu", classes=space.names) for one in networks]
    small.set_rt_info(facts_of(segmenter), "ssrseg")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        openvino.save_model(small, out)
    before, after = scores or (None, None)
    return Quantized(out, len(ranges), len(others), apart, Scores(names, agreement), before, after)


def _quantized(program: Any, images: Sequence[Any], attends: bool) -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # else it tells its makers that it was used
    nncf: Any = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    kind = nncf.ModelType.TRANSFORMER if attends else None
    return nncf.quantize(program, nncf.Dataset(images), subset_size=len(images), model_type=kind)


def _is_labelled(data: DataConfig) -> bool:
    listing = listing_of(data)
    return bool(listing.pairs) and not listing.without_label
