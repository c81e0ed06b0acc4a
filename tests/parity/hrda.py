"""HRDA: a student that looks twice."""

import numpy as np
import torch

from factories import TinyPyramid
from parity.models import CLASSES, as_images, detail_of, fill, head_name, inference, segmenter_of
from parity.pieces import accuracy
from ssrseg.adapt import View
from ssrseg.adapt.terms import Segmentation
from ssrseg.adapt.views import detail_window
from ssrseg.config.data import ImageMargins
from ssrseg.data.transforms import rescale_size, valid_pixels
from ssrseg.models import Detail, build_segmenter
from ssrseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone
from ssrseg.models.weight_names import official_name

DRAWS = 4000
LOG_NAMES = {"fused": "loss_seg", "context": "lr.loss_seg", "detail": "hr.loss_seg"}
HEAD = "decode_head."


def window_of(box):
    """A box [y1, y2, x1, x2] as rows and columns."""
    y1, y2, x1, x2 = map(int, box)
    return slice(y1, y2), slice(x1, x2)


def head(case, same):
    """Context and detail, decoded, fused and back-propagated."""
    params = case.params
    backbone = Backbone(TinyPyramid(tuple(params["in_channels"])), IMAGENET_MEAN, IMAGENET_STD)
    backbone.strides = (params["output_stride"],) * 4
    student = build_segmenter(
        backbone, head_name(params["head"]), CLASSES, dropout=params["dropout"], detail=detail_of(params)
    )
    _fill_decoders(student, case)
    student.double().train(params["train_mode"])  # gradients through statistics of few cells magnify rounding
    features = {
        tag: case.input(tag, shape).double().requires_grad_()
        for part in ("det", "ctx")
        for tag, shape in zip(params["feature_tags"][part], params["feature_shapes"][part], strict=True)
    }
    size, window = tuple(params["hw"]), window_of(params["box"])
    labels = case.rule.fill_labels("gt", (params["batch"], *size), params["salt"], block=params["label_block"])
    same("labels by the rule", labels, case.arrays["labels"])
    labels, trust = torch.from_numpy(labels), case.uniform("w", labels.shape).double()
    view = View("source", torch.zeros(labels.shape)[:, None], labels, trust, window=window)
    seen = watched(student)
    term = Segmentation(
        ("source",),
        detail_weight=params["hr_loss_weight"] or None,
        context_weight=params["lr_loss_weight"] or None,
    )
    losses = term.losses(view, [*features.values()], student)
    torch.stack([*losses.values()]).sum().backward()
    _compare_scales(case, same, seen)
    compare_losses(case.params["log_vars"], "", losses, same)
    compare_accuracies(case.params["log_vars"], "", seen, view, same)
    _compare_gradients(case, same, student, features)


def _fill_decoders(student, case):
    """The weights of head and attention, whose names stand alone."""
    state, params = student.state_dict(), case.params
    for key, value in state.items():
        if not key.startswith("backbone."):
            name = params["prefix"] + official_name(key, student).removeprefix(HEAD)
            filled = case.rule.fill_value(name, value.shape, params["salt"], scale=params.get("scale"))
            state[key] = torch.from_numpy(filled)
    student.load_state_dict(state)


def watched(student):
    """What a student's parts give, as lists by name: `scales`, `head`, `attention`."""
    seen = {"head": [], "attention": [], "scales": []}
    fuse = student._fuse

    def keep(context, detail, features, size, window=None):
        scales = fuse(context, detail, features, size, window)
        seen["scales"].append(scales)
        return scales

    student._fuse = keep
    student.head.register_forward_hook(lambda part, args, logits: seen["head"].append(logits.detach()))
    if student.attention is not None:
        student.attention.register_forward_hook(
            lambda part, args, logits: seen["attention"].append(logits.detach().sigmoid())
        )
    return seen


def _compare_scales(case, same, seen):
    (scales,), (context, detail) = seen["scales"], seen["head"]
    ours = {"context": context, "detail": detail, "fused": scales.fused, "context_times_rest": scales.context}
    if seen["attention"]:
        (ours["attention"],) = seen["attention"]
    for name, value in ours.items():
        same(name, value, case.arrays[name])


def compare_losses(stored, prefix, losses, same):
    """The losses of the scales, by their official names."""
    for name, loss in losses.items():
        same(prefix + LOG_NAMES[name], loss, stored[prefix + LOG_NAMES[name]])


def compare_accuracies(stored, prefix, seen, view, same):
    """Accuracies of the scales that have a loss."""
    scales = seen["scales"][-1]
    of_part = {
        "acc_seg": (scales.fused, view.labels),
        "lr.acc_seg": (scales.context, view.labels),
        "hr.acc_seg": (scales.detail, view.cut().labels),
    }
    for name, (logits, labels) in of_part.items():
        if prefix + name in stored:
            resized = torch.nn.functional.interpolate(logits.detach(), labels.shape[-2:], mode="bilinear")
            same(prefix + name, accuracy(resized, labels), stored[prefix + name])


def _compare_gradients(case, same, student, features):
    names = {official_name(key, student).removeprefix(HEAD): p for key, p in student.named_parameters()}
    stored = case.params["parameter_names"]
    decoders = {name for name, p in names.items() if not name.startswith("backbone.")}
    same.exactly("parameters", decoders, set(stored))
    same("gradients", [names[name].grad.norm().item() for name in stored], case.arrays["grad_norms"])
    if "num_parameters" in case.params:
        same.exactly("their number", sum(names[name].numel() for name in stored), case.params["num_parameters"])
    for tag, feature in features.items():
        if f"input_grad/{tag}" not in case.arrays:  # a level that the head does not look at
            same.exactly(f"gradient of {tag}", feature.grad, None)
            continue
        stored = case.arrays[f"input_grad/{tag}"]
        ours = np.concatenate(case.rule.summary(f"grad:{tag}", feature.grad.numpy(), len(stored) - 5))
        same(f"gradient of {tag}", ours, stored)
    _compare_buffers(case, same, student, HEAD)


def _compare_buffers(case, same, student, removed):
    buffers = {official_name(key, student).removeprefix(removed): value for key, value in student.named_buffers()
               if not key.startswith(("mean", "std"))}  # fmt: skip
    for name, stored in case.arrays.items():
        if name.startswith("bn/"):
            same(name, buffers[name.removeprefix("bn/")].flatten()[: len(stored)], stored)


@torch.no_grad()
def whole(case, same):
    """Whole images and windows of them, at inference or as the teacher sees them."""
    params = case.params
    student = fill(segmenter_of(params, dropout=params["dropout"], drop_path=0.0), case, params["prefix"])
    if params["train_mode"]:  # statistics of few cells magnify rounding
        student.double()
    student.train(params["train_mode"])
    seen = watched(student) if not params["test_cfg"].get("stride") else None
    images = as_images(case.input(params["input_tag"], params["input_shape"]), student)
    if "num_parameters" in params:
        same.exactly("parameters", sum(p.numel() for p in student.parameters()), params["num_parameters"])
    infer, step = inference(params["test_cfg"]), params["subsample"]
    logits = infer(student, images, None)
    same("logits_input_res", logits[:, :, ::step, ::step], case.arrays["logits_input_res"])
    if seen is not None:
        _compare_whole(case, same, student, seen, images)
        _compare_buffers(case, same, student, "")
    if "pred" in case.arrays:
        resized, step = infer(student, images, tuple(params["ori_shape"])), params["subsample_ori"]
        same("logits_ori_res", resized[:, :, ::step, ::step], case.arrays["logits_ori_res"])
        differing = (resized.argmax(dim=1) != case.array("pred")).float().mean().item()
        assert differing <= 1e-3, f"{differing:.2%} of the pixels are predicted otherwise"


def _compare_whole(case, same, student, seen, images):
    context, detail = seen["head"]
    boxes = [[w.start for w in window] for window in student._windows(images.shape[-2:])]
    same("windows", boxes, case.arrays["detail_boxes"][:, ::2])
    ours = {"context": context, "detail": student._average(detail, images.shape[-2:]), "fused": seen["scales"][0].fused}
    if seen["attention"]:
        (ours["attention"],) = seen["attention"]
    for name, value in ours.items():
        if name in case.arrays:
            same(name, value, case.arrays[name])


def crop_boxes(case, same):
    """Windows in training, drawn from numpy's own stream as the reference does."""
    for row in case.table:
        size, detail = tuple(row["image_hw"]), Detail(tuple(row["crop_hw"]), divisor=row["divisible"])
        if "error" in row:  # an axis without room: ours is seen from its beginning
            rows, columns = detail_window(size, detail, lambda places: places - 1)
            tight = [side - window + 1 < detail.divisor for side, window in zip(size, detail.window, strict=True)]
            same.exactly(f"{size}: axes without room", [rows.start == 0, columns.start == 0], tight)
            continue
        for seed, box in row["drawn"].items():
            state = np.random.RandomState(int(seed))
            rows, columns = detail_window(size, detail, lambda places, state=state: state.randint(places))
            same.exactly(f"{size}, seed {seed}", [rows.start, rows.stop, columns.start, columns.stop], box)
        state = np.random.RandomState(0)
        drawn = [detail_window(size, detail, lambda places: state.randint(places)) for _ in range(DRAWS)]  # noqa: B023
        for axis, name in enumerate(("tops", "lefts")):
            starts = {window[axis].start for window in drawn}
            same.exactly(f"{size}: {name}", [min(starts), max(starts), len(starts)], row[name])


def margins(case, same):
    """Where an image is valid after resize and flip, by margins of the image as it is stored."""
    for row in case.table:
        width, height = row.get("image_wh", (2048, 1024))
        config = ImageMargins(sides=tuple(row["margins"]), of=(width, height))
        valid = valid_pixels(rescale_size(width, height, tuple(row["scale_wh"])), config)
        valid = valid.flip(-1) if row["flip"] else valid
        same.exactly("shape", list(valid.shape), row["shape"])
        for axis, name in ((1, "valid_rows"), (0, "valid_cols")):
            inside = valid.any(axis).nonzero()
            same.exactly(name, [int(inside[0]), int(inside[-1])], row[name])
        same.exactly("valid pixels", int(valid.sum()), row["valid_pixels"])
