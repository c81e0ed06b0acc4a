"""The algorithm's pieces, one function each."""

import math
from unittest.mock import patch

import torch
from torch import nn

from parity.cases import _values
from ssrseg.adapt import (
    IGNORE,
    BlockMask,
    FeatureDistance,
    StrongAugment,
    Teacher,
    augment,
    feature_distance,
    pseudo_label,
    segmentation_loss,
)
from ssrseg.adapt.augment import color_jitter, gaussian_blur
from ssrseg.adapt.terms import downscale_labels
from ssrseg.adapt.views import block_mask, choose_half, class_mask, classes_present
from ssrseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssrseg.models.heads import Resize

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
"""Thing classes of the reference's configurations."""


def classmix(case, same):
    """Masks from chosen classes; mixed images, labels and weights."""
    batch, height, width = case.params["shape"]
    labels, pseudo = case.array("labels", torch.int64), case.array("pseudo_labels", torch.int64)
    source, target = case.input("src", (batch, 3, height, width)), case.input("tgt", (batch, 3, height, width))
    weights = case.uniform("pw", (batch, height, width))
    present = classes_present(labels).any(dim=0)
    same("classes in the batch", present.nonzero()[:, 0], case.arrays["classes_in_batch"])
    how_many = choose_half(present[None], torch.rand(1, 256)).sum()
    for i in range(batch):
        chosen = case.array(f"chosen_{i}")
        same("how many are chosen", how_many, len(chosen))
        pasted = class_mask(labels[i : i + 1], torch.zeros(1, 256, dtype=torch.bool).index_fill(1, chosen, True))
        same(f"mask_{i}", pasted[:, None], case.arrays[f"mask_{i}"])
        images = torch.where(pasted[:, None], source[i : i + 1], target[i : i + 1])
        same(f"mixed_img_{i}", images, case.arrays[f"mixed_img_{i}"])
        mixed = torch.where(pasted, labels[i : i + 1], pseudo[i : i + 1])
        same(f"mixed_lbl_{i}", mixed[:, None], case.arrays[f"mixed_lbl_{i}"])
        trust = torch.where(pasted, torch.ones(1, height, width), weights[i : i + 1])
        same(f"mixed_weight_{i}", trust[:, None], case.arrays[f"mixed_weight_{i}"])


def strong_augmentation(case, same):
    """Colour jitter with given factors and order, blur with given sigma, and which draws trigger them."""
    params = case.params
    images = case.uniform("rgb", params["shape"])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    names = ("brightness", "contrast", "saturation", "hue")
    for k in range(len(params["seeds"])):
        factors = torch.stack([case.array(f"jitter_{k}/{name}_factor", torch.float32) for name in names])
        jittered = color_jitter(images, factors, [case.arrays[f"jitter_{k}/order"].tolist()] * len(images))
        same(f"jitter_{k}", (jittered - mean) / std, case.arrays[f"jitter_{k}"])
        blurred = gaussian_blur(images, [case.arrays[f"blur_{k}/sigma"].item()] * len(images))
        same(f"blur_{k}", (blurred - mean) / std, case.arrays[f"blur_{k}"])
    gates = zip(case.arrays["gate_u"], case.arrays["gate_jitter"], case.arrays["gate_blur"], strict=True)
    for draw, jitter, blur in gates:
        fired = _fired(float(draw), params["probability_threshold"])
        same.exactly(f"what fires at {draw}", fired, (bool(jitter), bool(blur)))


def _fired(draw, skipped):
    def constant(*size, generator=None):
        return torch.full(size, draw, dtype=torch.float64)

    strong = StrongAugment(torch.Generator(), jitter_skipped=skipped)
    image = torch.zeros(1, 3, 32, 32)
    with (
        patch.object(augment.torch, "rand", constant),
        patch.object(augment, "color_jitter", side_effect=lambda images, *_: images) as jitter,
        patch.object(augment, "gaussian_blur", side_effect=lambda images, *_: images) as blur,
    ):
        strong(image)
    return jitter.called, blur.called


def downscale_label_ratio(case, same):
    """Labels at feature resolution, and where the thing classes are."""
    classes = case.params["n_classes"]
    things = FeatureDistance(lambda images: images, classes, classes=THINGS).things
    for j, scaling in enumerate(case.params["cases"]):
        labels = case.array(f"gt_{j}", torch.int64)
        small = downscale_labels(labels, scaling["scale_factor"], classes, scaling["min_ratio"])
        same(f"out_{j}", small[:, None], case.arrays[f"out_{j}"])
        same(f"thing_mask_{j}", things[small][:, None], case.arrays[f"thing_mask_{j}"])


def masked_feature_distance(case, same):
    """The distance and the norm of its gradient; an empty mask gives 0 where the reference gives NaN."""
    reference = case.input("f2", case.params["shape"])
    mask = case.array("mask", torch.bool)[:, 0]
    for name, where in (("masked", mask), ("unmasked", None), ("empty", torch.zeros_like(mask))):
        features = case.input("f1", case.params["shape"]).requires_grad_()
        distance = feature_distance(features, reference, where)
        distance.backward()
        stored = case.arrays[name]
        same(name, distance, 0.0 if math.isnan(stored) else stored)
        same(f"{name} gradient", features.grad.norm(), case.arrays[f"{name}_grad_norm"])


def pseudo_labels(case, same):
    """Labels, one trust per batch, and where it is cut."""
    params = case.params
    batch, _, height, width = params["shape"]
    logits = params["gain"] * case.input("logits", params["shape"])
    anywhere = torch.ones(batch, height, width, dtype=torch.bool)
    rows = torch.arange(height)
    kept = (rows >= params["ignore_top"]) & (rows < height - params["ignore_bottom"])
    valid = case.uniform("valid", (batch, 1, height, width))[:, 0] > 0.3
    threshold = params["threshold"]
    found = pseudo_label(logits, anywhere, threshold)
    same("label", found.labels, case.arrays["label"])
    same("weight_value", found.trust.max(), case.arrays["weight_value"])
    same.exactly("constant", bool(found.trust.min() == found.trust.max()), bool(case.arrays["weight_is_constant"]))
    cut = pseudo_label(logits, anywhere & kept[:, None], threshold)
    same("weight_after_margins", cut.trust, case.arrays["weight_after_margins"])
    masked = pseudo_label(logits, valid, threshold)
    same("weight_after_valid_mask", masked.trust, case.arrays["weight_after_valid_mask"])
    free = pseudo_label(logits, anywhere, None)
    same("weight_no_threshold", free.trust.mean(), case.arrays["weight_no_threshold"])


def decode_loss(case, same):
    """Resized logits, weighted cross entropy over all pixels, its gradient; accuracy over all pixels."""
    params = case.params
    labels = case.array("labels", torch.int64)
    weights = case.uniform("w", labels.shape)
    for name, trust in (("plain", None), ("weighted", weights)):
        logits = case.input("logits", (params["batch"], 19, *params["logits_hw"])).requires_grad_()
        resized = Resize(align_corners=False)(logits, labels.shape[-2:])
        loss = segmentation_loss(resized, labels, trust)
        loss.backward()
        same(f"{name}_loss", loss, case.arrays[f"{name}_loss"])
        same(f"{name}_grad", logits.grad, case.arrays[f"{name}_grad"])
        same(f"{name}_acc", accuracy(resized, labels), case.arrays[f"{name}_acc"])
    ignored = segmentation_loss(resized, torch.full_like(labels, IGNORE))
    same("all_ignored_loss", ignored, case.arrays["all_ignored_loss"])


def accuracy(logits, labels):
    """Percent of all pixels, ignored ones in the divisor: what the reference logs."""
    return 100 * (logits.argmax(dim=1) == labels).double().mean()


def block_masks(case, same):
    """Masks from given draws, the grid of the draw, and the share that stays visible."""
    for j, masking in enumerate(case.params["cases"]):
        draw = case.array(f"draw_{j}")
        _, _, height, width = masking["shape"]
        visible = block_mask(draw, masking["ratio"], (height, width))
        same(f"mask_{j}", visible, case.arrays[f"mask_{j}"])
        with patch("ssrseg.adapt.views.torch.rand", side_effect=lambda size, generator: torch.ones(size)) as rand:
            BlockMask(torch.Generator(), masking["ratio"], masking["block"])(torch.Size(masking["shape"]))
        same.exactly("grid", list(rand.call_args.args[0]), list(draw.shape))
        side = 64 * masking["block"]
        many = BlockMask(torch.Generator().manual_seed(0), masking["ratio"], masking["block"])
        kept = many(torch.Size((1, 3, side, side))).float().mean().item()
        spread = math.sqrt(masking["ratio"] * (1 - masking["ratio"]) / 4096)
        assert abs(kept - case.arrays[f"kept_fraction_{j}"]) < 5 * math.sqrt(2) * spread, "share of visible blocks"


def ema(case, same):
    """The teacher after its initialisation and after each update; the rate at every iteration."""
    alpha, steps = case.params["alpha"], case.params["iterations"]
    stored = _stored_state(case, "init/")
    student = _module(stored)
    _fill(student, "student0.", case)
    teacher = Teacher(student, decay=alpha).double()
    _fill(teacher.segmenter, "teacher.", case)
    teacher.update(student, 0)
    _compare(teacher, stored, same, "initialised")
    for j, step in enumerate(steps):
        _fill(student, f"student{j + 1}.", case)
        teacher.update(student, step)
        _compare(teacher, _stored_state(case, f"after{j}/"), same, f"after iteration {step}")
    for decay, iteration, used in case.arrays["effective_alpha"]:
        same(f"rate {decay} at {iteration}", _rate(float(decay), int(iteration)), used)


def _rate(decay, iteration):
    one = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(one.weight)
    teacher = Teacher(one, decay=decay)
    nn.init.zeros_(teacher.segmenter.weight)
    teacher.update(one, iteration)
    return 1 - teacher.segmenter.weight.item()


def _stored_state(case, prefix):
    return {name.removeprefix(prefix): value for name, value in case.arrays.items() if name.startswith(prefix)}


def _module(state):
    """A module with these parameters and buffers."""
    root = nn.Module()
    for name, value in state.items():
        path, _, leaf = name.rpartition(".")
        owner = root
        for part in path.split("."):
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        tensor = torch.zeros(value.shape, dtype=torch.float64)
        if leaf.startswith(("running", "num_batches")):
            owner.register_buffer(leaf, tensor)
        else:
            owner.register_parameter(leaf, nn.Parameter(tensor))
    return root


def _fill(module, prefix, case):
    salt = case.params["salt"]
    values = {key: case.rule.fill_value(prefix + key, value.shape, salt) for key, value in module.state_dict().items()}
    module.load_state_dict({key: torch.from_numpy(value) for key, value in values.items()})


def _compare(teacher, stored, same, when):
    state = teacher.segmenter.state_dict()
    for name, value in stored.items():
        same(f"{name} {when}", _values(state[name]), value)
