"""Whole training steps, in float64: losses, gradients, the optimiser's steps and the teacher's."""

import re
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from parity.cases import Unsupported
from parity.models import CLASSES, DEAD, as_images, fill, segmenter_of
from parity.pieces import accuracy
from ssrseg.adapt import Batch, Masked, Mixed, Source, adapt, build_method
from ssrseg.adapt.foundation import Frozen, frozen_backbone
from ssrseg.adapt.views import Zoomed
from ssrseg.config import OptimConfig
from ssrseg.config.method import (
    FeatureDistanceConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    SegmentationConfig,
    TeacherConfig,
)
from ssrseg.models.weight_names import official_name
from ssrseg.training.optim import build_optimizer

LOG_NAMES = {
    "source/segmentation": "decode",
    "source/regularizer": "enhanced",
    "mixed/segmentation": "mix.decode",
    "mixed/regularizer": "enhanced_mix",
    "masked/segmentation": "masked.decode",
}
SCALES = {"fused": "loss_seg", "context": "lr.loss_seg", "detail": "hr.loss_seg"}
"""Parts of the segmentation loss of a student that looks twice."""
MASK_MODES = {"separatetrg": "target", "separatesrc": "source", "separate": "both"}
HEADS = (1, 2, 5, 8)
"""The authors' attention heads, whatever the backbone's width."""
SSR_NAMES = (
    (r"^terms\.regularizer\.stages\.(\d)\.embed\.", r"embedding_layer.\1.proj."),
    (r"^terms\.regularizer\.stages\.(\d)\.attend\.", r"fusion_layer.\1."),
)


def train_step(case, same):
    """Iterations of DACS, DAFormer or MIC, with or without SSR."""
    torch.manual_seed(0)
    run = Run(case)
    for iteration in range(case.params["n_iters"]):
        run.step(iteration, same)
    run.compare_end(same)


def method_config(params):
    """The official options as our settings."""
    uda = params["uda"]
    for option in ("mask_alpha", "mask_pseudo_threshold"):
        if uda.get(option, "same") != "same":
            raise Unsupported(f"{option}: a second teacher for the masked view")
    mixed, masked = (None, None) if uda.get("source_only") else (MixedConfig(augment=None), _masked(uda))
    things = uda.get("imnet_feature_dist_classes")
    distance = FeatureDistanceConfig(
        weight=uda.get("imnet_feature_dist_lambda") or 1,
        classes=None if things is None else tuple(map(str, things)),
        min_share=uda.get("imnet_feature_dist_scale_min_ratio", 0.75),
        of_detail=params.get("hrda", {}).get("feature_scale") == "all",
    )
    numbers = params.get("hrda", {})
    shares = {f"{ours}_weight": numbers.get(f"{official}_loss_weight") or None
              for ours, official in (("detail", "hr"), ("context", "lr"))}  # fmt: skip
    return MethodConfig(
        segmentation=SegmentationConfig(**shares),
        teacher=TeacherConfig(decay=uda.get("alpha", 0.999), threshold=uda.get("pseudo_threshold", 0.968)),
        mixed=mixed,
        masked=masked,
        feature_distance=distance if uda.get("imnet_feature_dist_lambda") else None,
        regularizer=RegularizerConfig(stages=params["stages"], heads=HEADS) if "stub" in params else None,
    )


def _masked(uda):
    if not uda.get("mask_mode"):
        return None
    if uda["mask_mode"] not in MASK_MODES:
        raise Unsupported(f"mask_mode {uda['mask_mode']!r}: its augmentation's draws are not stored")
    return MaskedConfig(
        images_of=MASK_MODES[uda["mask_mode"]],
        ratio=uda["mask_generator"]["mask_ratio"],
        block=uda["mask_generator"]["mask_block_size"],
        weight=uda.get("mask_lambda", 1),
        augment=None,
    )


class Run:
    """A method built for a case, and what it does at every iteration."""

    def __init__(self, case):
        self.case, params = case, case.params
        options = {"drop_path": params["drop_path"], "dropout": params["dropout"]}
        self.student = fill(segmenter_of(params, **options).double(), case, "model.")
        imagenet = frozen_backbone(fill(segmenter_of(params).double(), case, "imnet_model.").backbone)
        self.method = build_method(
            method_config(params),
            self.student,
            classes=[str(i) for i in range(CLASSES)],
            crop=tuple(params["hw"]),
            imagenet=imagenet.to("cpu", torch.float64),
            foundation=stub(case) if "stub" in params else None,
        )
        self.learner = self.method.learner.double()
        self._fill_regularizer()
        fill(self.method.teacher.double().segmenter, case, "ema_model.")
        self.optimizer = optimizer_of(self.learner, params)
        self.views, self.logits, self.parts, self.term = {}, {}, {}, None
        self._listen()

    def official(self, name):
        """The case's name of a parameter of the learner."""
        if not name.startswith("student."):
            return _official_ssr(name)
        plain = official_name(name.removeprefix("student."), self.student)
        return "model." + plain if "stub" in self.case.params else plain

    def _fill_regularizer(self):
        state = self.learner.state_dict()
        for name, value in state.items():
            if not name.startswith("student."):
                filled = self.case.rule.fill_value(_official_ssr(name), value.shape, self.case.params["salt"])
                state[name] = torch.from_numpy(filled)
        self.learner.load_state_dict(state)

    def _listen(self):
        """Keep the views, and the logits that each term decodes."""

        def on_view(learner, args):
            (self.view,) = args
            self.views[self.view.name] = self.view

        decode = self.student.scales

        def scales(features, size, window=None):
            found = decode(features, size, window)
            self.logits[f"{self.view.name}/{self.term}"] = found
            return found

        segmentation = self.learner.terms["segmentation"]
        parts_of = segmentation.losses

        def losses(view, features, student):
            self.parts[view.name] = parts_of(view, features, student)
            return self.parts[view.name]

        self.learner.register_forward_pre_hook(on_view)
        self.student.scales, segmentation.losses = scales, losses
        for name, term in self.learner.terms.items():
            term.register_forward_pre_hook(lambda term, args, name=name: setattr(self, "term", name))

    def step(self, iteration, same):
        """One iteration, compared."""
        at = f"it{iteration}/"
        batch = self._batch(iteration, same)
        self.method.teacher.update(self.student, iteration)
        self.optimizer.zero_grad(set_to_none=True)
        losses = adapt(self.learner, self._label, self._makers(at), batch, lambda loss: loss.backward())
        self._compare_logs(iteration, losses, same)
        self._compare_trust(at, same)
        self._compare_gradients(at, same)
        self.optimizer.step()

    def _label(self, images, valid, inside):
        pseudo = self.method.teacher(images, valid, inside)
        self.pseudo = pseudo
        if "stub" not in self.case.params:
            return pseudo
        # The SSR authors' code kept the trust in float32 while the rest of these cases ran in float64.
        return replace(pseudo, trust=pseudo.trust.float().double())

    def _batch(self, iteration, same):
        params, uda, rule = self.case.params, self.case.params["uda"], self.case.rule
        (height, width), count = params["hw"], params["batch"]
        shape = (count, 3, height, width)
        drawn = rule.fill_labels(f"gt{iteration}", (count, height, width), params["salt"], block=params["label_block"])
        labels = torch.from_numpy(drawn)
        if f"it{iteration}/labels" in self.case.arrays:
            same("labels by the rule", labels, self.case.arrays[f"it{iteration}/labels"])
        valid = torch.ones(count, height, width, dtype=torch.bool)
        valid[:, : uda.get("pseudo_weight_ignore_top", 0)] = False
        valid[:, height - uda.get("pseudo_weight_ignore_bottom", 0) :] = False
        if share := params.get("valid_mask"):  # "fill_uniform('valid{it}', (B,1,H,W)) > 0.3"
            drawn = self.case.uniform(f"valid{iteration}", (count, 1, height, width))
            valid &= (drawn > float(share.rpartition(">")[2]))[:, 0]
        source, target = (
            as_images(self.case.input(f"{tag}{iteration}", shape), self.student) for tag in ("src", "tgt")
        )
        return Batch(source, labels, target, valid)

    def _makers(self, at):
        """The method's view makers with the stored draws in the place of their own."""
        params = self.case.params

        def drawn(name, shape):
            bits = np.unpackbits(self.case.arrays[at + name])[: np.prod(shape)]
            return torch.from_numpy(bits).bool().view(shape)

        def zoomed(maker):
            return replace(maker, maker=with_draws[type(maker.maker)](maker.maker), draw=lambda size: next(windows))

        boxes = self.case.arrays.get(at + "crop_boxes", [])
        windows = iter([(slice(*map(int, box[:2])), slice(*map(int, box[2:]))) for box in boxes])
        with_draws = {
            Zoomed: zoomed,
            Source: lambda maker: maker,
            Mixed: lambda maker: replace(maker, draw=lambda labels: drawn("mix_mask", labels.shape)),
            Masked: lambda maker: replace(maker, draw=lambda shape: drawn("block_mask", (shape[0], 1, *params["hw"]))),
        }
        return [with_draws[type(maker)](maker) for maker in self.method.makers]

    def _compare_logs(self, iteration, losses, same):
        stored = self.case.params["log_vars"][iteration]
        ours = {f"{LOG_NAMES[name]}.loss_seg": loss for name, loss in losses.items() if name in LOG_NAMES}
        for view, parts in self.parts.items():
            start = LOG_NAMES[f"{view}/segmentation"]
            ours |= {f"{start}.{SCALES[part]}": loss for part, loss in parts.items()}
        if "source/feature_distance" in losses:
            ours["src.loss_imnet_feat_dist"] = losses["source/feature_distance"]
        same.exactly("logged losses", set(ours), {name for name in stored if ".acc_seg" not in name})
        for name, loss in ours.items():
            expected = stored[name] if stored[name] == stored[name] else 0.0  # the mean of nothing is NaN there
            same(f"iteration {iteration}: {name}", loss, expected)
        for name, scales in self.logits.items():
            view = self.views[name.partition("/")[0]]
            seen = {"acc_seg": (scales.fused, view), "lr.acc_seg": (scales.context, view)}
            seen["hr.acc_seg"] = (scales.detail, view.cut())
            for part, (logits, cut) in seen.items():
                if (logged := f"{LOG_NAMES[name]}.{part}") in stored or part == "acc_seg":
                    resized = F.interpolate(logits.detach(), cut.labels.shape[-2:], mode="bilinear")
                    same(f"iteration {iteration}: {logged}", accuracy(resized, cut.labels), stored[logged])

    def _compare_trust(self, at, same):
        if at + "pseudo_label" in self.case.arrays:
            same(at + "pseudo_label", self.pseudo.labels, self.case.arrays[at + "pseudo_label"])
            same(at + "pseudo_share", self.pseudo.trust.max(), self.case.arrays[at + "pseudo_share"])
        if at + "mix_weight_values" in self.case.arrays:
            weights = self.views["mixed"].trust
            same(at + "distinct trusts", weights.unique(), self.case.arrays[at + "mix_weight_values"])
            same(at + "mean trust", weights.mean(), self.case.arrays[at + "mix_weight_mean"])

    def _compare_gradients(self, at, same):
        gradients = {self.official(name): p.grad for name, p in self.learner.named_parameters()}
        stored = dict(zip(self.case.params["parameter_names"], self.case.arrays[at + "grad_norms"], strict=True))
        for name, norm in stored.items():
            if name in gradients:
                same(f"{at}gradient of {name}", gradients[name].norm(), norm)
            else:
                self._is_idle(name, same)
                same(f"{at}gradient of {name}", 0.0, norm)
        missing = set(gradients) - set(stored)
        same.exactly("parameters that the reference lacks", missing, set())
        for key, value in self.case.arrays.items():
            name = key.removeprefix(at + "grad/")
            if name != key and name in gradients:
                same(key, _summary(self.case, f"grad:{name}", gradients[name]), value)

    def _is_idle(self, name, same):
        """The reference also owns layers that nothing reaches: those of other stages, and dead ones."""
        dead = name.removeprefix("model.") in DEAD.get(self.case.params["head"], {})
        other_stage = re.match(r"(embedding_layer|fusion_layer)\.(\d)\.", name)
        idle = dead or (other_stage and int(other_stage[2]) not in self.case.params["stages"])
        same.exactly(f"{name} is used by nothing", bool(idle), True)

    def compare_end(self, same):
        """Weights and BatchNorm statistics of student and teacher after the last optimiser step."""
        students = {self.official(name): p for name, p in self.learner.named_parameters()}
        prefix = "model." if "stub" in self.case.params else ""
        teacher = self.method.teacher.segmenter
        teachers = {prefix + official_name(name, teacher): p for name, p in teacher.named_parameters()}
        buffers = {
            "final/bn_student/": {official_name(name, self.student): b for name, b in self.student.named_buffers()},
            "final/bn_teacher/": {official_name(name, teacher): b for name, b in teacher.named_buffers()},
        }
        for key, value in self.case.arrays.items():
            if not key.startswith("final/"):
                continue
            group = next((start for start in (*buffers, "final/student/", "final/teacher/") if key.startswith(start)),
                         "final/")  # fmt: skip
            name = key.removeprefix(group)
            if group in buffers:
                same(key, buffers[group][name].flatten()[: len(value)], value)
            elif name in (owned := teachers if group == "final/teacher/" else students):
                same(key, _summary(self.case, f"w:{name}", owned[name]), value)
            else:
                self._is_idle(name, same)


def _official_ssr(name):
    for pattern, replacement in SSR_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _summary(case, tag, tensor):
    return np.concatenate(case.rule.summary(tag, tensor.detach().numpy(), 16))


def optimizer_of(learner, params):
    """The run's optimiser at a constant rate."""
    optimizer = build_optimizer(learner, OptimConfig(lr=params["lr"], head_lr_factor=params["lr_mult_head"]))
    if params["wd_mult_norm"]:
        for group in optimizer.param_groups:
            group["weight_decay"] = group["weight_decay"] or 0.01 * params["wd_mult_norm"]
    return optimizer


def stub(case):
    """The stand-in for the frozen encoder: tanh(W . avg_pool(x)) of the resized image."""
    text = case.params["stub"]
    pool = int(re.search(r"avg_pool2d\(x, (\d+)\)", text)[1])
    size = tuple(map(int, re.search(r"\(B, 3, (\d+), (\d+)\)", text).groups()))
    shape = tuple(map(int, re.search(r"'stub\.weight', \((\d+), (\d+)\)", text).groups()))
    weight = torch.from_numpy(case.rule.fill_value("stub.weight", shape, case.params["salt"])).double()

    def features(images):
        return torch.tanh(torch.einsum("dc,bchw->bdhw", weight, F.avg_pool2d(images, pool)))

    backbone = segmenter_of(case.params).backbone
    encoder = Frozen(nn.Identity(), features, channels=shape[0], mean=backbone.mean, std=backbone.std, input_size=size)
    return encoder.to("cpu", torch.float64)
