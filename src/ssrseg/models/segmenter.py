"""The deployed model: normalise, encode, decode."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from timm.models import adapt_input_conv
from torch import Tensor, nn

from ssrseg.errors import UserError
from ssrseg.models.backbones import Backbone, build_backbone, taps_for
from ssrseg.models.description import Description, Detail, Window
from ssrseg.models.heads import Resize, build_attention, build_head, logit_stride
from ssrseg.models.plain import Taps
from ssrseg.runs.atomic import write_atomically


class Scales(NamedTuple):
    """Logits of the scales of a network, at its head's resolution."""

    fused: Tensor
    """(B, K, h, w): what it predicts."""
    context: Tensor | None = None
    """(B, K, h', w') of the whole images, by the share that the detail leaves to them; absent with one scale."""
    detail: Tensor | None = None
    """(B, K, h'', w'') of the window; absent with one scale."""


WEIGHTS = "model.safetensors"
"""The file of a Hub repository or folder; it is what `save_segmenter` writes."""


class Segmenter(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="ssrseg",
    pipeline_tag="image-segmentation",
    tags=["semantic-segmentation", "domain-adaptation"],
):
    """Images in [0, 1] (B, C, H, W) -> logits (B, K, H, W). Knows nothing of how it was trained.

    C is `in_channels`: 3 for RGB.

    `save_pretrained(folder)` and `push_to_hub("user/model")` write model.safetensors, config.json (the description)
    and README.md; what stands in the last is `model_card_kwargs={"card": ssrseg.model_card(run)}`.
    """

    mean: Tensor
    std: Tensor
    detail: Detail | None = None
    """How it looks at details, if it does."""

    def __init__(self, backbone: Backbone, head: nn.Module, num_classes: int, *, align_corners: bool = False) -> None:
        super().__init__()
        self.backbone, self.head, self.num_classes = backbone, head, num_classes
        self.resize = Resize(align_corners=align_corners)
        self.description: Description | None = None
        self._compiled: dict[str, Callable[..., Any]] = {}
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, -1, 1, 1), persistent=False)

    @property
    def in_channels(self) -> int:
        """Bands of the images: 3 for RGB."""
        return self.mean.shape[1]

    @property
    def reading(self) -> tuple[int, tuple[float, float] | None, tuple[float, float] | None]:
        """How image files are read: bands, and what becomes black and white in those of more than 8 bits."""
        if (known := self.description) is None:
            return self.in_channels, None, None
        return self.in_channels, known.value_range, known.percentiles

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels of the image per cell of each feature map."""
        return self.backbone.strides

    def encode(self, images: Tensor, window: Window | None = None) -> list[Tensor]:
        """Images in [0, 1] -> four feature maps (B, C_i, h_i, w_i), finest first.

        `window` is for networks with a `detail` (`MultiResolution`); the others see the whole image alone.
        """
        features: list[Tensor] = self._run("backbone", self.normalised(images))
        return features

    def normalised(self, images: Tensor) -> Tensor:
        """Images in [0, 1] as the backbone takes them."""
        return (images - self.mean) / self.std

    def context(self, images: Tensor) -> Tensor:
        """Images as the last four feature maps see them: as they are."""
        return images

    def scales(self, features: Sequence[Tensor], size: Sequence[int], window: Window | None = None) -> Scales:
        """Features of images of `size` -> logits at the head's resolution."""
        return Scales(self._run("head", features))

    def decode(self, features: Sequence[Tensor], size: Sequence[int], window: Window | None = None) -> Tensor:
        """Features -> logits (B, K, *size); `window` is the one that was encoded."""
        logits: Tensor = self.resize(self.scales(features, size, window).fused, size)
        return logits

    def compile_training(self, *parts: str) -> None:
        """Compile `backbone`, `head` or both as they run in training mode, at the shapes that they meet.

        In eval mode they run as they are: evaluation meets images of many sizes, and compiling for each would take
        longer than evaluating. (`nn.Module.compile` has no way back for eval mode.)
        """
        for name in parts:
            self._compiled[name] = torch.compile(getattr(self, name).forward, dynamic=False)

    def _run(self, name: str, inputs: Any) -> Any:
        part = getattr(self, name)
        return (self._compiled.get(name, part) if part.training else part)(inputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> logits at image size."""
        return self.decode(self.encode(images), images.shape[-2:])

    def _save_pretrained(self, save_directory: Path) -> None:
        save_segmenter(self, save_directory / WEIGHTS)
        text = json.dumps(json.loads(_description(self)), indent=1)
        (save_directory / "config.json").write_text(text + "\n", encoding="utf-8")

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Segmenter:
        """From a folder, or from the Hub, where `options` hold what `hf_hub_download` takes."""
        if Path(model_id).is_dir():
            return load_segmenter(Path(model_id, WEIGHTS))
        known = {"revision", "cache_dir", "force_download", "token", "local_files_only"}
        wanted = {name: value for name, value in options.items() if name in known}
        return load_segmenter(Path(hf_hub_download(model_id, WEIGHTS, **wanted)))

    def generate_model_card(self, *args: Any, card: str | None = None, **kwargs: Any) -> ModelCard:
        """Return the text given, or one of no more than the model itself knows."""
        if card is None:
            about = dataclasses.asdict(self.description) if self.description else {}
            facts = "\n".join(f"- {name}: {value}" for name, value in about.items() if name != "colors")
            card = f"---\n{self._hub_mixin_info.model_card_data.to_yaml()}\n---\n\nA model of ssrseg.\n\n{facts}\n"
        return ModelCard(card)


def build_segmenter(
    backbone: str | Backbone,
    head: str,
    num_classes: int,
    *,
    head_channels: int | None = None,
    drop_path: float | None = None,
    dropout: float = 0.1,
    align_corners: bool = False,
    size: tuple[int, int] | None = None,
    taps: Taps | None = None,
    image_scale: float | None = None,
    detail: Detail | None = None,
) -> Segmenter:
    """Build a segmenter with random weights; raises `UserError` for unknown names.

    Args:
        backbone: a name (`ssrseg.models.BACKBONES`, `timm:<name>`) or a `Backbone`.
        head: a name of `ssrseg.models.HEADS`.
        num_classes: K.
        head_channels: width of the head; the published one when absent.
        drop_path: stochastic depth of the backbone's deepest block; its kind's own when absent (`build_backbone`).
        dropout: channel dropout before the classifier.
        align_corners: how logits are resized.
        size: (height, width) of the images, for backbones that depend on it.
        taps: what a plain ViT's levels are made of; when absent `raw` for the head `upscale`, else `last`.
        image_scale: a plain ViT sees images so many times as large.
        detail: how it looks at details, if it does.
    """
    if isinstance(backbone, str):
        backbone = build_backbone(
            backbone, drop_path=drop_path, size=size, taps=taps_for(backbone, head, taps), scale=image_scale
        )
    decoder = build_head(head, backbone.channels, num_classes, channels=head_channels, dropout=dropout)
    if detail is not None:
        from ssrseg.models.multi_resolution import MultiResolution  # a segmenter itself

        outputs = {"classes": num_classes, "shared": 1}.get(str(detail.attention))
        attention = outputs and build_attention(
            head, backbone.channels, outputs, channels=head_channels, dropout=dropout
        )
        stride = round(logit_stride(head, backbone.strides) / (backbone.sizes.scale or 1))
        return MultiResolution(backbone, decoder, attention or None, num_classes, detail, stride)
    return Segmenter(backbone, decoder, num_classes, align_corners=align_corners)


def build_described(description: Description) -> Segmenter:
    """Build the segmenter of a description, with random weights."""
    segmenter = build_segmenter(
        description.backbone,
        description.head,
        len(description.classes),
        head_channels=description.head_channels,
        align_corners=description.align_corners,
        size=description.image_size,
        taps=description.taps,
        image_scale=description.image_scale,
        detail=description.detail,
    )
    segmenter.description = description
    take_bands(segmenter, description.in_channels, description.mean, description.std)
    return segmenter


def take_bands(
    segmenter: Segmenter, bands: int, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> None:
    """Let a segmenter for RGB take other bands, in place: the first weights are repeated and scaled as timm does it.

    `mean` and `std` are of each band in [0, 1]; the backbone's are repeated when absent, or averaged for one band.
    Raises `UserError` for a backbone that does not begin with a convolution of RGB.
    """
    backbone = segmenter.backbone
    if bands != segmenter.in_channels:
        layers = (layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
        first = next(layers, None)
        if first is not None and first.in_channels == segmenter.in_channels != 3:
            known = segmenter.in_channels
            raise UserError(f"The weights are for images of {known} bands, not {bands}: set model.in_channels={known}.")
        if first is None or first.in_channels != 3 or first.groups != 1:
            raise UserError(
                "This backbone does not begin with a convolution of RGB: it takes model.in_channels=3 only."
            )
        first.weight = nn.Parameter(adapt_input_conv(bands, first.weight.detach()))
        first.in_channels = bands
    for name, given in (("mean", mean), ("std", std)):
        own: tuple[float, ...] = getattr(backbone, name)
        if given is None and bands != len(own):
            given = (sum(own) / 3,) if bands == 1 else tuple(own[i % 3] for i in range(bands))
        if given is not None:
            setattr(backbone, name, given)
            segmenter.register_buffer(name, torch.tensor(given).view(1, -1, 1, 1).to(segmenter.mean), persistent=False)


def save_segmenter(segmenter: Segmenter, path: Path) -> None:
    """Write weights and description as one safetensors file, atomically.

    Raises:
        ValueError: the segmenter has no description.
    """
    metadata = {"ssrseg": _description(segmenter)}
    state, owners = dict[str, Tensor](), set[int]()
    for name, value in segmenter.state_dict().items():
        state[name] = value.clone() if value.data_ptr() in owners else value.contiguous()  # CoaT's layers share weights
        owners.add(value.data_ptr())
    content = save(state, metadata=metadata)  # its `save_file` would hide that a disk is full
    write_atomically(path, lambda partial: partial.write_bytes(content))


def _description(segmenter: Segmenter) -> str:
    if segmenter.description is None:
        raise ValueError("set segmenter.description before saving: without it the file cannot become a model again")
    return json.dumps(dataclasses.asdict(segmenter.description))


def read_description(path: Path) -> Description:
    """Read what a file of `save_segmenter` says of itself; raises `KeyError` and others where it is none."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return TypeAdapter(Description).validate_json(metadata["ssrseg"])


def load_segmenter(path: Path) -> Segmenter:
    """Load a segmenter from a file of `save_segmenter`, in eval mode.

    Raises:
        UserError: no such file, or not one of ours.
    """
    try:
        description = read_description(path)
    except FileNotFoundError as error:
        raise UserError(f"There is no model file {path}.") from error
    except (SafetensorError, KeyError, OSError, ValidationError) as error:
        way = "`ssrseg convert IN OUT` makes one from a published checkpoint."
        if path.suffix in (".onnx", ".xml"):
            way = "Only predict, evaluate and Predictor take exported files: here give the model that it was made of."
        raise UserError(f"{path} is not a model of ssrseg (a safetensors file with its description). {way}") from error
    segmenter = build_described(description)
    try:
        segmenter.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise UserError(f"The weights in {path} are not those of its description {description}: {error}") from error
    return segmenter.eval()
