"""One word for every place where a model can lie: a file, a folder, the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import hf_hub_download

from ssrseg.errors import UserError
from ssrseg.models.segmenter import WEIGHTS, Segmenter, load_segmenter

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
FILES = (".safetensors", ".pth", ".pt", ".onnx", ".ckpt", ".bin")


def load(model: Path | str) -> Segmenter:
    """A model in eval mode.

    Args:
        model: a file of `save_segmenter`, a folder of `save_pretrained`, or a Hub id `owner/name[@revision]`. What
            exists on this disk is never looked for on the Hub.

    Raises:
        UserError: no such model, not one of ours, another folder (the models in it are named), or the Hub cannot be
            reached.
    """
    path = Path(model)
    if path.is_dir():
        if not (path / WEIGHTS).is_file():
            inside = sorted(str(found) for found in path.glob("*.safetensors"))
            names = f": give one of {', '.join(inside)}." if inside else " without a *.safetensors file."
            raise UserError(f"Expected a model file, found the folder {path}{names}")
        return load_segmenter(path / WEIGHTS)
    if path.exists() or path.suffix in FILES or not HUB_ID.fullmatch(str(model)):
        return load_segmenter(path)
    return load_segmenter(_download(str(model)))


def _download(spec: str) -> Path:
    name, _, revision = spec.partition("@")
    try:
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
    except (OSError, ValueError) as error:  # the Hub's own errors are OSErrors
        raise UserError(
            f"There is neither a model file {spec} nor such a model on the Hub: {str(error).splitlines()[0]}\n"
            "Give a path, or owner/name[@revision] of a Hub repository that holds a model of ssrseg."
        ) from error
