"""What surrounds the step: data, sampling, schedule, parameter groups, metrics."""

import math
import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from parity.cases import Unsupported
from parity.models import CLASSES, DEAD, segmenter_of
from ssrseg.adapt import Learner
from ssrseg.config import OptimConfig, RareClassConfig
from ssrseg.data import SPACES, SPECS
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.label_mapping import lookup_table, map_ids
from ssrseg.data.label_spaces import IGNORE
from ssrseg.data.samplers import RareClassSampler, rare_class_probabilities
from ssrseg.data.transforms import is_varied, pad, rescale_size, resize_image, resize_labels, retry
from ssrseg.inference import evaluate_model
from ssrseg.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from ssrseg.models.weight_names import official_name
from ssrseg.training.optim import build_optimizer, learning_rate

DATASETS = {"gta": "gta5", "synthia": "synthia", "cityscapes": "cityscapes"}
CROP = (512, 512)


def rescaled(case, same):
    """The size of an image that fits a bound."""
    for row in case.table:
        ours = rescale_size(*row["old_wh"], tuple(row["scale"]))
        same.exactly(f"{row['old_wh']} in {row['scale']}", list(ours), row["new_wh"])


def pipeline(case, same):
    """Resize, flip, normalise, pad. We pad with black, before normalising; the reference with its mean colour."""
    params = case.params
    drawn = case.rule.fill_image("rgb", (*params["hw"], 3), params["salt"])
    image, labels = torch.from_numpy(drawn).permute(2, 0, 1), case.array("labels")
    size = rescale_size(params["hw"][1], params["hw"][0], tuple(params["scale_wh"]))
    image, labels = resize_image(image, size), resize_labels(labels, size)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    for name, flip in (("plain", lambda x: x), ("flip", lambda x: x.flip(-1))):
        ours = (flip(image).float() / 255 - mean) / std
        height, width = ours.shape[-2:]
        same(f"{name}_img", ours, case.arrays[f"{name}_img"][:, :height, :width])
        same(f"{name}_lab", pad(flip(labels), params["pad_hw"], IGNORE), case.arrays[f"{name}_lab"])


def cat_max_ratio(case, same):
    """Whether a crop is kept at first sight."""
    ours = [is_varied(labels, case.params["cat_max_ratio"]) for labels in case.array("labels")]
    same("accepted", ours, case.arrays["accepted"])


def rare_classes(case, same):
    """Class probabilities, each class's files, and the crop that is kept."""
    table = case.table
    files = [row["file"].rpartition("/")[2] for row in table["sample_class_stats"]]
    rows = [[row.get(str(c), 0) for c in range(CLASSES)] for row in table["sample_class_stats"]]
    statistics = ClassStatistics(torch.tensor(rows))
    for temperature, stored in table["temperatures"].items():
        classes, probabilities = rare_class_probabilities(statistics.totals, float(temperature))
        same.exactly(f"order at {temperature}", classes.tolist(), stored["classes"])
        same(f"probabilities at {temperature}", probabilities, stored["probs"])
    config = RareClassConfig(min_pixels=table["min_pixels"], min_crop_ratio=table["min_crop_ratio"])
    sampler = RareClassSampler(statistics, config, CROP)
    for c, stored in table["files_with_enough_pixels"].items():
        same.exactly(f"files of {c}", sorted(files[i] for i in sampler.files[int(c)]), sorted(stored))
    for trial in table["retry_trials"]:
        reads = []
        counts = trial["pixels_of_class_per_crop"]
        kept = retry(lambda: reads.append(0) or len(reads) - 1, lambda i: counts[i] > sampler.enough)  # noqa: B023
        same.exactly("the crop that is kept", (kept, len(reads)), (trial["returned_crop"], trial["n_source_reads"]))


def label_map(case, same):
    """Raw ids to class ids, and the class counts of an image that holds every id once."""
    if case.params["dataset"] not in DATASETS:
        raise Unsupported(f"the data set {case.params['dataset']!r} has no layout here")
    table = lookup_table(SPECS[DATASETS[case.params["dataset"]]].ids)
    same("ids", table, case.arrays["id_to_train_id"])
    if "json" in case.record:
        mapped = map_ids(torch.arange(256, dtype=torch.uint8), table)
        counts = torch.bincount(mapped, minlength=256)[:CLASSES]
        stored = {int(c): n for c, n in case.table["class_stats_entry"].items() if c != "file"}
        same.exactly("counts", {c: int(n) for c, n in enumerate(counts) if n}, stored)


def lr_schedule(case, same):
    """Learning rates of backbone and head; a schedule's name says whether it warms up, and a rate of its own."""
    params, steps = case.params, case.table["max_iters"]
    for name, rows in case.table.items():
        if not isinstance(rows, list) or name == "columns":
            continue
        options = _schedule(name, params["warmup"])
        own = re.search(r"_sgd_(\d+)_(\d+)", name)
        base = float(f"{own[1]}.{own[2]}") if own else params["base_lr"]
        factor = 1 if own else params["head_lr_mult"]
        for step, backbone, head in rows:
            same(f"{name} at {step}", learning_rate(base, step, steps, **options), backbone)
            same(f"{name} at {step}, head", learning_rate(base * factor, step, steps, **options), head)


def _schedule(name, warmup):
    if name.startswith("poly10warm"):
        return {
            "warmup": warmup["warmup_iters"],
            "power": warmup["power"],
            "min_lr": warmup["min_lr"],
            "warmup_ratio": warmup["warmup_ratio"],
        }
    if name == "poly10":  # the ablation without warm-up; its floor lies above the backbone's rate
        return {"warmup": 0, "min_lr": 1e-4}
    raise Unsupported(f"the schedule {name!r}")


def param_groups(case, same):
    """Every parameter's factors of rate and decay."""
    params, stored = case.params, dict(case.table)
    student = segmenter_of(params)
    optimizer = build_optimizer(Learner(student, {}), OptimConfig(lr=params["base_lr"], weight_decay=params["base_wd"]))
    ours = {
        official_name(name.removeprefix("student."), student): [
            round(group["lr"] / params["base_lr"], 9),
            round(group["weight_decay"] / params["base_wd"], 9),
        ]
        for group in optimizer.param_groups
        for name in group["names"]
    }
    for name in DEAD.get(params["head"], {}):
        stored.pop(name, None)
    same.exactly("factors", ours, stored)
    for option in ("betas", "eps", "amsgrad"):
        if option in params:
            same.exactly(option, tuple(_listed(optimizer.defaults[option])), tuple(_listed(params[option])))


def _listed(value):
    return value if isinstance(value, list | tuple) else [value]


class Paint(nn.Module):
    """A model that is right about everything the picture says."""

    num_classes = CLASSES


def metrics(case, same):
    """IoU and accuracy, accumulated over images."""
    dataset = []
    for i in range(len(case.params["shapes"])):
        image = case.array(f"pred_{i}")[None].expand(3, -1, -1).contiguous()
        dataset.append(SimpleNamespace(image=image, labels=case.array(f"gt_{i}")))

    def infer(model, images, size):
        return F.one_hot((images[:, 0] * 255).round().long(), CLASSES).permute(0, 3, 1, 2)

    scores = evaluate_model(Paint(), dataset, infer, device="cpu", classes=SPACES["cityscapes19"].names)
    same("aAcc", scores.pixel_accuracy, case.arrays["aAcc"])
    same("mIoU", scores.miou, case.arrays["mIoU"])
    for name, values in (("IoU", scores.iou), ("Acc", scores.accuracy)):
        same(name, [math.nan if value is None else value for value in values], case.arrays[name])
