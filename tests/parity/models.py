"""Networks: backbones, heads, whole segmenters, their names and sizes."""

from types import SimpleNamespace

import torch
from timm.layers.drop import DropPath

from parity.cases import Unsupported
from ssrseg.config import InferenceConfig
from ssrseg.inference.sliding_window import build_inference
from ssrseg.models import BACKBONES, Detail, build_head, build_segmenter
from ssrseg.models.backbones import build_backbone
from ssrseg.models.weight_names import official_name

CLASSES = 19
HEADS = {"daformer": "daformer", "segformer": "segformer", "dlv2red": "deeplabv2", "dlv2": "deeplabv2-whole"}
"""The manifest's names of heads -> ours."""

DEAD = {"segformer": {"decode_head.conv_seg.weight": [CLASSES, 128, 1, 1], "decode_head.conv_seg.bias": [CLASSES]}}
"""Layers that the reference owns and never uses; ours does not have them."""


def head_name(name):
    """Our name of a head of the manifest."""
    name = name.removeprefix("hrda_")
    if name not in HEADS:
        raise Unsupported(f"the head {name!r} is not built here")
    return HEADS[name]


def segmenter_of(params, **options):
    """The network of a case, with random weights."""
    if params["arch"] not in BACKBONES:
        raise Unsupported(f"the backbone {params['arch']!r} is not built here")
    if "hrda" in params or params.get("head", "").startswith("hrda_"):
        options["detail"] = detail_of(params)
    return build_segmenter(params["arch"], head_name(params.get("head", "dlv2red")), CLASSES, **options)


def detail_of(params):
    """The windows, scales and attention of an HRDA case, under their official names."""
    options = {**params.get("head_options", {}), **params.get("hrda", params)}
    window, scales = tuple(options.get("hr_crop_size", (512, 512))), options.get("scales", [0.5, 1])
    if scales[-1] != 1:
        raise Unsupported(f"the scales {scales}")
    attention = "classes" if options.get("attention_classwise", True) else "shared"
    return Detail(
        window,
        stride=None if options.get("hr_slide_overlapping", True) else window,
        scale=float(scales[0]),
        attention=attention if options.get("fixed_attention") is None else float(options["fixed_attention"]),
        divisor=options.get("crop_coord_divisible", 8),
        blurred=bool(options.get("blur_hr_crop")),
    )


def fill(segmenter, case, prefix="", strip=""):
    """Every weight and buffer by the rule, under `prefix` + its official name without `strip`."""
    state = {}
    for key, value in segmenter.state_dict().items():
        name = prefix + official_name(key, segmenter).removeprefix(strip)
        filled = case.rule.fill_value(name, value.shape, case.params["salt"], scale=case.params.get("scale"))
        state[key] = torch.from_numpy(filled)
    segmenter.load_state_dict(state)
    return segmenter


def as_images(normalised, segmenter):
    """Normalised tensors as images of [0, 1] scale, which is what our networks take."""
    mean, std = segmenter.mean.double(), segmenter.std.double()
    return (normalised.double() * std + mean).to(segmenter.mean.dtype)


@torch.no_grad()
def backbone_features(case, same):
    """The four levels."""
    for name, level in zip(("c1", "c2", "c3", "c4"), _features(case, same), strict=True):
        same(name, level, case.arrays[name])


@torch.no_grad()
def backbone_checksums(case, same):
    """The four levels, as summaries."""
    for name, level in zip(("c1", "c2", "c3", "c4"), _features(case, same), strict=True):
        same.summary(case, name, level)


def _features(case, same):
    params = case.params
    segmenter = fill(segmenter_of(params), case, params["prefix"], strip="backbone.").eval()
    _count(same, params, segmenter.backbone)
    normalised = case.input(params["input_tag"], params["input_shape"])
    if "input_head" in case.arrays:
        same("the rule itself", normalised.flatten()[:8], case.arrays["input_head"])
    return segmenter.encode(as_images(normalised, segmenter))


def _count(same, params, module, dead=()):
    if "num_parameters" in params:
        ours = sum(p.numel() for p in module.parameters()) + sum(torch.Size(shape).numel() for shape in dead)
        same.exactly("number of parameters", ours, params["num_parameters"])


@torch.no_grad()
def head_logits(case, same):
    """A head on given features."""
    params = case.params
    head = build_head(head_name(params["head"]), params["in_channels"], CLASSES, dropout=params["dropout"])
    _count(same, params, head, DEAD.get(params["head"], {}).values())
    holder = SimpleNamespace(head=head, detail=None)
    names = {key: official_name(f"head.{key}", holder).removeprefix("decode_head.") for key in head.state_dict()}
    values = {key: case.rule.fill_value(params["prefix"] + name, head.state_dict()[key].shape, params["salt"],
                                        scale=params.get("scale")) for key, name in names.items()}  # fmt: skip
    head.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})
    head.train(params["train_mode"])
    shapes = zip(params["feature_tags"], params["feature_shapes"], strict=True)
    same("logits", head([case.input(tag, shape) for tag, shape in shapes]), case.arrays["logits"])
    buffers = {names[key]: value for key, value in head.named_buffers()}
    for name, stored in case.arrays.items():
        if name.startswith("bn/"):
            same(name, buffers[name.removeprefix("bn/")].flatten()[: len(stored)], stored)


@torch.no_grad()
def segmentor_checksums(case, same):
    """Levels, logits and logits at image size, as summaries."""
    params = case.params
    segmenter = fill(segmenter_of(params), case, params["prefix"]).eval()
    _count(same, params, segmenter, DEAD.get(params["head"], {}).values())
    images = as_images(case.input(params["input_tag"], params["input_shape"]), segmenter)
    features = segmenter.encode(images)
    for name, level in zip(("c1", "c2", "c3", "c4"), features, strict=True):
        same.summary(case, name, level)
    same.summary(case, "logits", segmenter.head(features))
    same.summary(case, "upsampled", segmenter(images))


@torch.no_grad()
def segmentor(case, same):
    """Whole or slide inference, at input size and at the size of the original image."""
    params = case.params
    segmenter = fill(segmenter_of(params), case, params["prefix"]).eval()
    images = as_images(case.input(params["input_tag"], params["input_shape"]), segmenter)
    step = params["subsample"]
    if "logits_stride4" in case.arrays:
        same("logits_stride4", segmenter.head(segmenter.encode(images)), case.arrays["logits_stride4"])
    infer = inference(params["test_cfg"])
    logits, resized = infer(segmenter, images, None), infer(segmenter, images, tuple(params["ori_shape"]))
    same("logits_input_res", logits[:, :, ::step, ::step], case.arrays["logits_input_res"])
    same("logits_ori_res", resized[:, :, ::step, ::step], case.arrays["logits_ori_res"])
    differing = (resized.argmax(dim=1) != case.array("pred")).float().mean().item()
    assert differing <= 1e-3, f"{differing:.2%} of the pixels are predicted otherwise"  # near-ties in float32


def inference(test_cfg):
    """The case's way from images to logits."""
    windows = {"window": test_cfg["crop_size"], "stride": test_cfg["stride"]} if "stride" in test_cfg else {}
    return build_inference(InferenceConfig(mode=test_cfg["mode"], **windows))


def parameter_counts(case, same):
    """Parameters, tensors and buffers of every network."""
    for arch, stored in case.table["backbones"].items():
        same.exactly(arch, _sizes(_shaped(build_backbone, arch)), stored)
    for label, stored in case.table["heads"].items():
        name, _, suffix = label.rpartition("_")
        arch = "resnet101v1c" if suffix == "r101" else f"mit_{suffix}"
        head = _shaped(build_head, head_name(name), _shaped(build_backbone, arch).channels, CLASSES)
        same.exactly(label, _sizes(head, DEAD.get(name, {})), stored)


def _shaped(build, *words):
    """A network of sizes and names alone."""
    with torch.device("meta"):
        return build(*words)


def _sizes(module, dead=None):
    shapes = [torch.Size(shape).numel() for shape in (dead or {}).values()]
    return {
        "parameters": sum(p.numel() for p in module.parameters()) + sum(shapes),
        "tensors": len(list(module.parameters())) + len(shapes),
        "state_entries": len(module.state_dict()) + len(shapes),
    }


def checkpoint_names(case, same):
    """Official names and shapes of everything we own."""
    params, table = case.params, case.table
    segmenter = _shaped(segmenter_of, params)
    ours = {official_name(key, segmenter): list(value.shape) for key, value in segmenter.state_dict().items()}
    ours |= DEAD.get(params["head"], {})
    same.exactly("names and shapes", ours, table["state"])
    same.exactly("entries", len(ours) * len(table["prefixes"]), table["num_entries"])
    buffers = {official_name(key, segmenter) for key, _ in segmenter.named_buffers() if key in segmenter.state_dict()}
    same.exactly("buffers", buffers, set(table["buffers"]))


def drop_path_rates(case, same):
    """Stochastic depth per stage and block."""
    for arch, stages in case.table.items():
        pyramid = build_backbone(arch).pyramid
        for stage, stored in enumerate(stages):
            blocks = pyramid.get_submodule(f"stages_{stage}").blocks
            same(f"{arch} stage {stage}", [_rate(block) for block in blocks], stored)


def _rate(block):
    rates = {module.drop_prob for module in block.modules() if isinstance(module, DropPath)} or {0.0}
    (rate,) = rates
    return rate
