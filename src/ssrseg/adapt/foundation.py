"""Train-only: frozen encoders used as functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from ssrseg.adapt.sam_attention import without_padding
from ssrseg.config.method import FoundationConfig
from ssrseg.errors import UserError
from ssrseg.models.backbones import Backbone
from ssrseg.models.weight_files import find_network, read_weights


class Frozen:
    """Apply a frozen encoder: images in [0, 1] (B, 3, H, W) -> features (B, D, h, w), without gradient.

    Deliberately not an `nn.Module`: no module registers it, so it is in no `parameters()`, no `state_dict()`
    and no checkpoint. It normalises and resizes by itself.
    """

    def __init__(
        self,
        module: nn.Module,
        features: Callable[[Tensor], Tensor],
        *,
        channels: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        input_size: tuple[int, int] | None = None,
        divisor: int = 1,
        precision: Literal["fp32", "half", "auto"] = "fp32",
        note: str = "",
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.features = features
        self.channels = channels
        self.mean, self.std = torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)
        self.input_size, self.divisor, self.note = input_size, divisor, note
        self.precision: Literal["fp32", "half", "auto"] = precision
        self.half = False
        self._seen: WeakTensorKeyDictionary | None = None

    def shared(self) -> Frozen:
        """Encode the same tensor of images once, however many ask: features stay as long as the images do."""
        self._seen = WeakTensorKeyDictionary()
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Frozen:
        """Move in place, and to bfloat16 where `precision` asks for it on this device."""
        self.module.to(device, dtype)
        self.mean, self.std = self.mean.to(device, dtype), self.std.to(device, dtype)
        self.half = self.runs_half(torch.device(device).type)
        if self.half:  # the features are still in the type of the images
            self.module.to(torch.bfloat16)
        return self

    def runs_half(self, device_type: str) -> bool:
        """Tell whether `precision` asks for bfloat16 on this kind of device."""
        return self.precision == "half" or (self.precision == "auto" and device_type == "cuda")

    # Not inference_mode: its tensors may not enter the student's graph.
    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if self._seen is None:
            return self._encode(images)
        if images not in self._seen:
            self._seen[images] = self._encode(images)
        features: Tensor = self._seen[images]
        return features

    def _encode(self, images: Tensor) -> Tensor:
        height, width = self.input_size or _padded(images.shape[-2:], self.divisor)
        if images.shape[1] != (own := self.mean.shape[1]):  # SSR's sees RGB: the first bands, the last repeated
            bands = images.unbind(1)
            images = torch.stack([bands[min(i, len(bands) - 1)] for i in range(own)], dim=1)
        images = (images - self.mean) / self.std  # before the resizing: there are fewer pixels
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        if not self.half:
            return self.features(images)
        with torch.autocast(images.device.type, enabled=False):  # its casts would only cost time
            return self.features(images.to(torch.bfloat16)).to(images.dtype)


def _padded(size: torch.Size, divisor: int) -> tuple[int, int]:
    height, width = (-(-side // divisor) * divisor for side in size)
    return height, width


def frozen_backbone(backbone: Backbone) -> Frozen:
    """Freeze the deepest level of a copy of `backbone` as it is now: DAFormer's ImageNet features."""
    copy = deepcopy(backbone)
    return Frozen(copy, lambda images: copy(images)[-1], channels=copy.channels[-1], mean=copy.mean, std=copy.std)


ENCODERS = {
    "sam-vit-b": "samvit_base_patch16.sa1b",
    "sam-vit-l": "samvit_large_patch16.sa1b",
    "sam-vit-h": "samvit_huge_patch16.sa1b",
}
"""Short names; `timm:<name>` reaches every other encoder of timm."""
ANOTHER = f"choose another encoder, such as {', '.join(ENCODERS)}."


def build_encoders(
    configs: Mapping[str, FoundationConfig], crop: tuple[int, int], given: Frozen | None = None
) -> dict[str, Frozen]:
    """Build the encoder of each setting: parts that name the same one share it. `given` stands for all of them.

    Raises:
        UserError: see `build_encoder`.
    """
    built: dict[FoundationConfig, Frozen] = {}
    for setting, config in configs.items():
        if config not in built:
            built[config] = given or build_encoder(config, crop, setting)
    encoders = {setting: built[config] for setting, config in configs.items()}
    for encoder in set(encoders.values()):
        if [*encoders.values()].count(encoder) > 1:
            encoder.shared()
    return encoders


def build_encoder(
    config: FoundationConfig, crop: tuple[int, int], setting: str = "method.regularizer.foundation"
) -> Frozen:
    """Build the frozen encoder of a run; `crop` (height, width) of the training is its input size when it is `native`.

    Raises:
        UserError: unknown encoder, size or level, or its weights cannot be had; `setting` is named.
    """
    square = None if config.input_size == "native" else (config.input_size, config.input_size)
    if config.encoder == "demo":
        from ssrseg.demo import encoder as demo  # only for those who ask for it

        if config.level != -1:
            raise UserError(f"{setting}.level={config.level}: the demo's encoder has one level. Leave it out.")
        module: Any = demo.untrained_encoder() if config.weights == "none" else demo.demo_encoder()
        mean, std, divisor, channels, note = demo.MEAN, demo.STD, demo.PATCH, demo.CHANNELS, ""
    else:
        name = ENCODERS.get(config.encoder, config.encoder.removeprefix("timm:"))
        if name == config.encoder or not timm.is_model(name.partition(".")[0]):
            known = ", ".join(ENCODERS)
            raise UserError(f"There is no foundation encoder {config.encoder!r}: choose {known} or timm:<name>.")
        options, divisor, channels = _options_for(name, square, crop, config.level, setting)
        module, note = _create(name, config, options, setting)
        mean, std = (tuple(module.pretrained_cfg[key]) for key in ("mean", "std"))
    if config.weights == "none":
        note = f"{config.encoder}: random weights, which is a control and not a method"
    module = without_padding(module)
    return Frozen(
        module,
        feature_map(module, config.level),
        channels=channels,
        mean=mean,
        std=std,
        input_size=square,
        divisor=divisor,
        precision=config.precision,
        note=note,
    )


def _options_for(
    name: str, square: tuple[int, int] | None, crop: tuple[int, int], level: int, setting: str
) -> tuple[Mapping[str, Any], int, int]:
    """Find how to build timm's `name` for its input, what divides its sides, and the channels of a level.

    Tried on tensors without data. Plain ViTs take every multiple of their patch; what has neither windows nor positions
    takes any size; the rest is built for the very size.
    """
    options, module = _without_data(name)
    divisor: int = module.feature_info[-1].get("reduction", 32) if hasattr(module, "feature_info") else 32
    size = square or _padded(torch.Size(crop), divisor)

    def sized_for(size: tuple[int, int]) -> tuple[Mapping[str, Any], int]:
        with torch.device("meta"), torch.no_grad():
            # Not SAM, which interpolates its positions: built at another size, published weights would not fit.
            sized, built = ({} if name.startswith("samvit_") else {**options, "img_size": size}), module
            if sized and "dynamic_img_size" not in sized:
                try:
                    built = timm.create_model(name, **sized).eval()
                except TypeError:  # convolutional ones have no image size
                    sized = {}
            return sized, feature_map(built, level)(torch.empty(1, 3, *size)).shape[1]

    def works(side: int) -> bool:
        try:
            return sized_for((side, side))[1] > 0
        except (RuntimeError, AssertionError, ValueError, UserError):
            return False

    try:
        sized, channels = sized_for(size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
    else:
        return sized, divisor, channels
    if "feature index" in reason:
        raise UserError(f"{setting}.level={level}: {name} has {len(module.feature_info)} levels, -1 is the last.")
    wrong = f"{name} takes no images of {size[0]}x{size[1]} pixels ({reason.rstrip('.')})"
    near = {size[0] // divisor * divisor, -(-size[0] // divisor) * divisor} - {0}
    if sizes := " or ".join(str(side) for side in sorted(near) if works(side)):
        raise UserError(f"{wrong}: set {setting}.input_size to {sizes}, a multiple of {divisor}.")
    raise UserError(f"{wrong}: {ANOTHER}")


@lru_cache
def _without_data(name: str) -> tuple[Mapping[str, Any], Any]:
    """Build timm's `name` on tensors without data, for images of any size if it can; and the options for that."""
    any_size: dict[str, Any] = {} if name.startswith("samvit_") else {"dynamic_img_size": True}
    with torch.device("meta"):
        for options in (any_size, {}):
            try:
                return options, timm.create_model(name, **options).eval()
            except TypeError:  # it has no such option
                continue
    raise UserError(f"timm cannot build {name!r}.")


def _create(name: str, config: FoundationConfig, options: Mapping[str, Any], setting: str) -> tuple[Any, str]:
    """Build timm's module, and a note about its weights."""
    weights, sam, note = config.weights, name.startswith("samvit_"), ""
    options = {**options, "pretrained": weights != "none"}
    if weights not in ("hub", "none"):
        state, note = _weights_of(name, config, setting)
        if sam:  # timm translates names that begin as those of the published file
            state = {f"image_encoder.{key}": value for key, value in state.items()}
        options["pretrained_cfg_overlay"] = {"state_dict": state}
    try:
        module: Any = timm.create_model(name, **options)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of {name} cannot be loaded from {weights!r}: {error}\n"
            f"Set {setting}.weights to a local file (for SAM: sam_vit_b_01ec64.pth or its like)."
        ) from error
    if sam:  # else channels lie apart in all of SAM's residuals, and each norm copies them
        module.patch_embed.register_forward_hook(lambda layer, images, tokens: tokens.contiguous())
    return module, note


def _weights_of(name: str, config: FoundationConfig, setting: str) -> tuple[dict[str, Tensor], str]:
    """Read the encoder's weights from a file, and what is said about the rest of it."""
    with torch.device("meta"):
        known = timm.create_model(name).state_dict().keys()
    file = read_weights(Path(config.weights).expanduser())
    setting = f"{setting}.part="

    def fit(weights: Mapping[str, Tensor]) -> float:
        return len(weights.keys() & known) / len(known)

    network = find_network(file, fit, part=config.part, setting=setting)
    inside = {network.path + key for key in network.tensors}
    around = network.path[: network.path[:-1].rfind(".") + 1]
    beside = Counter(key.removeprefix(around).partition(".")[0] for key in file.tensors if key not in inside)
    said = [f"under `{network.path[:-1]}`"] if network.path else []
    if beside:
        said.append(f"left out: {', '.join(f'{count} of {part}' for part, count in beside.items())}")
    said += [f"also in the file: {setting}{other}" for other in network.others.values() if other]
    return dict(network.tensors), f"{name}: from {config.weights}, {'; '.join(said)}" if said else ""


def feature_map(module: Any, level: int = -1) -> Callable[[Tensor], Tensor]:
    """Return the function that gives a level of a timm model's features as a map (B, D, h, w), whatever its layout.

    Levels are stages of a pyramid and blocks of a ViT, counted from the end; the last is what the model itself ends
    with, after its norm.
    """
    channels: int = module.num_features

    def at_level(images: Tensor) -> Tensor:
        if not hasattr(module, "forward_intermediates"):
            raise UserError(f"{type(module).__name__} gives no map of its level {level}: {ANOTHER}")
        maps: list[Tensor] = module.forward_intermediates(images, indices=[level], intermediates_only=True)
        return maps[0]

    def features(images: Tensor) -> Tensor:
        output: Any = module.forward_features(images)
        if not isinstance(output, Tensor) or output.ndim == 3:  # tokens, or a list of several kinds
            if not hasattr(getattr(module, "patch_embed", None), "dynamic_feat_size"):
                raise UserError(f"{type(module).__name__} gives tokens whose grid is unknown: {ANOTHER}")
            height, width = module.patch_embed.dynamic_feat_size(images.shape[-2:])
            tokens = output[:, module.num_prefix_tokens :]
            output = tokens.transpose(1, 2).reshape(len(tokens), channels, height, width)
        elif output.shape[1] != channels:
            output = output.permute(0, 3, 1, 2)
        return cast(Tensor, output)

    return features if level == -1 else at_level
