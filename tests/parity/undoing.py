"""DACS, FADA and Undoing as released: networks, losses, priors, lists, names and whole training steps."""

import re
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from factories import TinyPyramid
from parity.steps import _summary
from ssrseg.adapt import Batch, adapt, build_method
from ssrseg.adapt.alignment import Discriminator, domain_loss, soft_classes
from ssrseg.adapt.augment import gaussian_blur
from ssrseg.adapt.batch import View
from ssrseg.adapt.views import Mixed, class_mask
from ssrseg.config import ClassBalancedConfig, SGDConfig
from ssrseg.config.method import AlignmentConfig, MethodConfig, MixedConfig, SegmentationConfig, TeacherConfig
from ssrseg.data import SPACES, samplers
from ssrseg.data.class_statistics import ClassStatistics
from ssrseg.data.samplers import ClassBalancedSampler, class_weights, generator_of
from ssrseg.inference.metrics import Scores
from ssrseg.inference.sliding_window import averaged, whole
from ssrseg.label_shift import published_priors
from ssrseg.label_shift.priors import fold_shift, image_scores
from ssrseg.models import Segmenter, build_segmenter, load_published
from ssrseg.models.backbones import Backbone
from ssrseg.models.deeplab import frozen_norms
from ssrseg.models.heads import Resize
from ssrseg.training.optim import build_optimizer, learning_rate, set_learning_rates

HEADS = {"aspp": "deeplabv2-whole", "aspp_modified": "aspp-attentive"}
VGG_LAYERS = {**{str(place): str(place) for place in range(23)}, "24": "23", "26": "25", "28": "27"}
"""Our numbers, torchvision's, -> those of a sequence without the fourth and fifth pooling."""
ATTENTIVE = (
    (r"^branches\.(\d)\.", r"conv2d_list.\1."),
    (r"^squeeze\.1\.", "bottleneck.0.se.0."),
    (r"^squeeze\.3\.", "bottleneck.0.se.2."),
    (r"^fuse\.0\.", "bottleneck.1."),
    (r"^fuse\.1\.", "bottleneck.2."),
    (r"^classify\.", "head.1."),
)
DISCRIMINATOR = ((r"^trunk\.", "D."), (r"^source\.", "cls1."), (r"^target\.", "cls2."))
ALIGNED = Resize(align_corners=True)
"""Resizes as the releases do: corners aligned."""
DEAD_BRANCHES = ("layer5.conv2d_list.2.", "layer5.conv2d_list.3.")
"""DACS's head owns four branches and returns after the second."""


def renamed(name, rules):
    """A name with regular expressions replaced."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def released_name(name):
    """The release's name of a tensor of our learner or segmenter: `feature_extractor.`, `classifier.`, `model_D.`."""
    name = name.removeprefix("student.")
    if name.startswith("terms.alignment.discriminator."):
        return "model_D." + renamed(name.removeprefix("terms.alignment.discriminator."), DISCRIMINATOR)
    if name.startswith("head."):
        return "classifier." + renamed(name.removeprefix("head."), ATTENTIVE)
    plain = name.removeprefix("backbone.pyramid.")
    if plain.startswith("features."):
        _, place, leaf = plain.split(".")
        plain = f"{VGG_LAYERS[place]}.{leaf}"
    return "feature_extractor.backbone." + renamed(plain, ((r"^fc6\.", "29."), (r"^fc7\.", "31.")))


def dacs_name(name):
    """DACS's name of a tensor of our segmenter."""
    plain = name.removeprefix("student.").removeprefix("backbone.pyramid.")
    return renamed(plain, ((r"^head\.branches\.", "layer5.conv2d_list."),))


def fill(module, case, name_of, prefix=""):
    """Every weight and buffer by the rule, in the module's precision; first layers for blue, green, red are turned."""
    state = {}
    for key, value in module.state_dict().items():
        filled = case.rule.fill_value(
            prefix + name_of(key), value.shape, case.params["salt"], scale=case.params.get("scale")
        )
        state[key] = torch.from_numpy(filled)
    if is_own(state):
        state["head.classify.bias"] = torch.zeros_like(state["head.classify.bias"])
    first = next((key for key in state if re.search(r"pyramid\.(conv1|features\.0)\.weight$", key)), None)
    if first is not None and turned(module):
        state[first] = state[first].flip(1)
    module.load_state_dict(state)
    return module


def is_own(state):
    """Whether a state has the classifier's bias that the modified head of the release has not."""
    return "head.squeeze.1.weight" in state


def turned(segmenter):
    """Whether the release's images are in the order blue, green, red."""
    return segmenter.backbone.std[0] < 0.1  # Caffe's statistics


def as_images(normalised, segmenter):
    """The release's normalised tensors as our images: RGB of [0, 1] scale."""
    normalised = normalised.double().flip(1) if turned(segmenter) else normalised.double()
    return normalised * segmenter.std.double() + segmenter.mean.double()


def backbone_name(params):
    """Our name of the release's network; which norms it has is the case's to say."""
    arch = params["arch"]
    if arch.startswith("vgg"):
        return f"{arch}-dilated"
    return f"{arch}-{'frozen' if params.get('frozen_bn', True) else 'dilated'}"


def network_of(case):
    """A case's segmenter of Undoing in float64, filled."""
    params = case.params
    segmenter = build_segmenter(
        backbone_name(params), HEADS[params["head"]], params["num_classes"],
        drop_path=0.0, dropout=params.get("dropout", 0.0), align_corners=True,
    )  # fmt: skip
    return fill(segmenter.double(), case, released_name)


def count(module):
    """The number of parameters and, of frozen norms, nothing."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def network(case, same):
    """Deepest features, logits, logits at image size."""
    params, segmenter = case.params, network_of(case).eval()
    sizes = params["num_parameters"]
    own = segmenter.num_classes if is_own(segmenter.state_dict()) else 0
    same.exactly("parameters of the backbone", count(segmenter.backbone), sizes["backbone"])
    same.exactly("parameters of the head", count(segmenter.head) - own, sizes["head"])
    normalised = case.input(params["input_tag"], params["input_shape"])
    same("the rule itself", normalised.flatten()[:8], case.arrays["input_head"])
    images = as_images(normalised, segmenter)
    features = segmenter.encode(images)
    same.summary(case, "features", features[-1])
    same("features", features[-1][0, :6, :4, :4], case.arrays["features_crop"])
    same("logits", segmenter.head(features), case.arrays["logits"])
    upsampled = segmenter(images)
    same.summary(case, "upsampled", upsampled)
    same("upsampled", upsampled[0, :, 3:9, 5:11], case.arrays["upsampled_crop"])


def frozen_norm(case, same):
    """Fixed affine functions without epsilon, in training mode, and their gradients."""
    shape = case.params["shape"]
    for i, norm in enumerate(case.params["norms"]):
        module = nn.Sequential(nn.BatchNorm2d(shape[1])).double()
        state = {
            key: torch.from_numpy(case.rule.fill_value(norm["prefix"] + key.removeprefix("0."), value.shape,
                                                       case.params["salt"], scale=norm["scale"]))
            for key, value in module.state_dict().items()
        }  # fmt: skip
        module.load_state_dict(state)
        frozen_norms(module)
        module.double().train()
        same.exactly("nothing is trained", list(module.parameters()), [])
        images = case.input(f"x{i}", shape).double().requires_grad_()
        output = module(images)
        (output * case.input(f"dy{i}", shape).double()).sum().backward()
        same(f"y{i}", output, case.arrays[f"y{i}"])
        same(f"dx{i}", images.grad, case.arrays[f"dx{i}"])


def discriminator(case, same):
    """Answers, answers at image size, gradients of their mean square."""
    params = case.params
    module = Discriminator(params["in_channels"], params["num_classes"]).double()
    fill(module, case, lambda key: renamed(key, DISCRIMINATOR), params["prefix"])
    same.exactly("parameters", count(module), params["num_parameters"])
    features = case.input("features", params["feature_shape"]).double().requires_grad_()
    logits = module(features)
    upsampled = ALIGNED(logits, params["size"])
    upsampled.square().mean().backward()
    same("logits", logits, case.arrays["logits"])
    same.summary(case, "upsampled", upsampled)
    same.summary(case, "dfeatures", features.grad)
    for key, weight in module.named_parameters():
        name = renamed(key, DISCRIMINATOR)
        same(name, _summary(case, f"grad:{params['prefix']}{name}", weight.grad), case.arrays[f"grad/{name}"])


def domain_losses(case, same):
    """Clipped soft classes, and the loss of either domain with its gradient."""
    params = case.params
    logits = params["gain"] * case.input("logits", params["logits_shape"]).double()
    soft = soft_classes(logits, params["temperature"], params["clip"])
    same.summary(case, "soft", soft)
    same("sum of the soft classes", soft.sum(dim=1), case.arrays["soft_sum"])
    for domain, name in enumerate(("source", "target")):
        answers = case.input("answers", params["answers_shape"]).double().requires_grad_()
        loss = domain_loss(answers, soft, domain)
        loss.backward()
        same(name, loss, case.arrays[name])
        same.summary(case, f"d{name}", answers.grad)


class Steps:
    """A method of a release, built for a case, and its iterations."""

    def __init__(self, case, student, config, name_of, optim):
        self.case, self.student, self.name_of, self.optim = case, student, name_of, optim
        names = published_priors(f"{'gta5' if case.params['num_classes'] == 19 else 'synthia'}-cityscapes").classes
        self.method = build_method(config, student, classes=names)
        self.learner = self.method.learner.double()
        self.optimizer = build_optimizer(self.learner, optim, discriminator_lr=1e-4)
        self.names = {name: name_of(name) for name, p in self.learner.named_parameters() if p.requires_grad}

    def images(self, tag, iteration, size):
        """Images of an iteration."""
        return as_images(self.case.input(f"{tag}{iteration}", (self.case.params["batch"], 3, *size)), self.student)

    def labels(self, iteration, size):
        """Labels of an iteration."""
        params = self.case.params
        drawn = self.case.rule.fill_labels(
            f"gt{iteration}", (params["batch"], *size), params["salt"], num_classes=params["num_classes"],
            block=params["label_block"], ignore=params["label_ignore"],
        )  # fmt: skip
        return torch.from_numpy(drawn)

    def step(self, iteration, batch, makers, length):
        """Losses of one iteration; gradients are left in place."""
        set_learning_rates(self.optimizer, self.optim, iteration, length)
        self.optimizer.zero_grad(set_to_none=True)
        return adapt(self.learner, self.method.teacher, makers, batch, lambda loss: loss.backward())

    def compare_gradients(self, iteration, same):
        """Norms of all, and some values."""
        gradients = {self.names[name]: p.grad for name, p in self.learner.named_parameters() if name in self.names}
        stored = zip(self.case.params["parameter_names"], self.case.arrays[f"it{iteration}/grad_norms"], strict=True)
        compared = set()
        for name, norm in stored:
            if name not in gradients and name.startswith(DEAD_BRANCHES):
                same(f"gradient of {name}, which is used by nothing", 0.0, norm)
                continue
            gradient = turn_gradient(self, name, gradients[name])
            same(f"it{iteration} gradient of {name}", 0.0 if gradient is None else gradient.norm(), norm)
            compared.add(name)
        same.exactly("parameters", set(gradients) - self.own(gradients), compared)
        self._compare(f"it{iteration}/grad/", "grad:", gradients, same)

    def own(self, gradients):
        """Parameters that only ours has: the bias of the modified head."""
        return {"classifier.head.1.bias"} & set(gradients)

    def _compare(self, start, tag, tensors, same):
        for key, value in self.case.arrays.items():
            name = key.removeprefix(start)
            if name != key and name in tensors:
                same(key, _summary(self.case, f"{tag}{name}", turn_gradient(self, name, tensors[name])), value)

    def compare_end(self, same, start="final/", norms="final_norms", weights=None):
        """Weights after the last step: norms of all, and some values."""
        weights = weights or {self.names[name]: p for name, p in self.learner.named_parameters() if name in self.names}
        if norms in self.case.arrays:
            for name, norm in zip(self.case.params["parameter_names"], self.case.arrays[norms], strict=True):
                if name in weights:
                    same(f"{norms} of {name}", weights[name].norm(), norm)
        self._compare(start, "w:", weights, same)


def turn_gradient(steps, name, tensor):
    """The first layer in the release's order of colours."""
    first = name.removeprefix("feature_extractor.backbone.") in ("conv1.weight", "0.weight")
    return tensor.flip(1) if first and turned(steps.student) and tensor is not None else tensor


SGD = {"kind": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "warmup": 0, "power": 0.9, "head_lr_factor": 10.0}


def undoing_steps(case, config):
    """The iterations of a stage of Undoing."""
    params, rates = case.params, case.params["lr"][0]
    lr = rates["feature_extractor"] if "feature_extractor" in rates else rates["classifier"] / 10
    optim = SGDConfig(**SGD, lr=lr, length=params["schedule_length"])
    steps = Steps(case, network_of(case), config, released_name, optim)
    for name, value in steps.learner.state_dict().items():
        if ".discriminator." in name:
            official = released_name(name)
            value.copy_(torch.from_numpy(case.rule.fill_value(official, value.shape, params["salt"])))
    return steps


def undoing_step(case, same, config, logged):
    """Iterations of a stage, compared."""
    steps, params = undoing_steps(case, config), case.params
    source_hw, target_hw = params["source_hw"], params["target_hw"]
    valid = torch.ones(params["batch"], *target_hw, dtype=torch.bool)
    steps.learner.train()
    before = {name: b.clone() for name, b in steps.student.backbone.state_dict().items()}
    for iteration in range(params["n_iters"]):
        target = steps.images("tgt", iteration, target_hw)
        batch = Batch(steps.images("src", iteration, source_hw), steps.labels(iteration, source_hw), target, valid)
        losses = steps.step(iteration, batch, steps.method.makers, params["schedule_length"])
        logged(same, {name: float(loss) for name, loss in losses.items()}, params["losses"][iteration])
        compare_rates(steps, iteration, same)
        steps.compare_gradients(iteration, same)
        steps.optimizer.step()
    steps.compare_end(same)
    if params.get("backbone_untouched"):
        same.exactly("backbone", all(torch.equal(before[k], v) for k, v in steps.student.backbone.state_dict().items()),
                     True)  # fmt: skip
    buffers = {released_name(name): b for name, b in steps.student.named_buffers() if "backbone." in name}
    for key, value in case.arrays.items():
        if key.startswith("final_bn/"):
            same(key, buffers[key.removeprefix("final_bn/")].flatten()[: len(value)], value)


def compare_rates(steps, iteration, same):
    """Learning rates of an iteration, by module."""
    for group in steps.optimizer.param_groups:
        module = steps.names[group["names"][0]].partition(".")[0]
        same(f"rate of {module}", group["lr"], steps.case.params["lr"][iteration][module])


def align_step(case, same):
    """Stage 2: class-level alignment."""
    params = case.params
    config = MethodConfig(
        segmentation=SegmentationConfig(temperature=params["temperature"], over_labelled=("source",)),
        alignment=AlignmentConfig(
            weight=params["adversarial_weight"], temperature=params["temperature"], clip=params["clip"]
        ),
    )

    def logged(same, ours, stored):
        same("source", ours["source/segmentation"], stored["loss_seg"])
        same("told on the source", ours["source/alignment"], stored["loss_D_src"])
        same("told and fooled on the target", ours["target/alignment"], stored["loss_D_tgt"] + stored["loss_adv_tgt"])

    undoing_step(case, same, config, logged)


def _segmentation(same, ours, stored):
    same.exactly("losses", list(ours), ["source/segmentation"])
    same("loss", ours["source/segmentation"], stored["loss_seg"])


def refine_step(case, same):
    """Stage 4b: the head alone, on logits pushed back to the source's priors."""
    _priors(case, same)
    priors = case.params["priors"]
    config = MethodConfig(trains="head", segmentation=SegmentationConfig(priors=priors))
    undoing_step(case, same, config, _segmentation)


def supervised_step(case, same):
    """Stages 1 and 6."""
    config = MethodConfig(segmentation=SegmentationConfig(over_labelled=("source",)))
    undoing_step(case, same, config, _segmentation)


def _priors(case, same):
    shift = case.array("log_target") - case.array("log_source")
    # Ours is in float32, and a constant does not matter.
    ours = published_priors(case.params["priors"]).shift.double()
    same("shift of the priors", ours - ours.mean(), shift - shift.mean())
    return ours


def refine_loss(case, same):
    """The loss of given logits, and its gradient."""
    params = case.params
    logits = (params["gain"] * case.input("logits", params["logits_shape"]).double()).requires_grad_()
    batch, classes, height, width = params["logits_shape"]
    labels = case.rule.fill_labels("gt", (batch, height, width), params["salt"], num_classes=params["num_classes"],
                                   block=params["label_block"], ignore=params["label_ignore"])  # fmt: skip
    labels = torch.from_numpy(labels)
    _priors(case, same)
    config = MethodConfig(segmentation=SegmentationConfig(priors=params["priors"]))
    names = published_priors(params["priors"]).classes
    method = build_method(config, build_segmenter("mit_b0", "segformer", classes), classes=names)
    term = method.learner.terms["segmentation"].double()
    student = SimpleNamespace(
        scales=lambda features, size, window: (features[0], None, None), resize=lambda logits, size: logits
    )
    view = View("source", logits, labels)
    loss = term(view, [logits], student)
    loss.backward()
    same("loss", loss, case.arrays["loss"])
    same.summary(case, "dlogits", logits.grad)


class Given(Segmenter):
    """A network whose logits are given; the one layer that can take a bias is the identity."""

    def __init__(self, logits):
        nn.Module.__init__(self)
        classes = logits.shape[1]
        self.num_classes, self.resize, self.logits = classes, ALIGNED, logits
        self.backbone, self.head = Backbone(TinyPyramid(), (0.5,) * 3, (0.5,) * 3), nn.Module()
        self.head.classifier = nn.Conv2d(classes, classes, 1).double()
        self.head.classifier.weight.data = torch.eye(classes).double()[:, :, None, None]
        self.head.classifier.bias.data.zero_()
        self.head.classifiers = (self.head.classifier,)

    def encode(self, images):
        """The given logits, mirrored where the images are."""
        return [self.logits.flip(-1) if images[0, 0, 0, 0] > images[0, 0, 0, -1] else self.logits]

    def decode(self, features, size):
        """At a size, corners aligned."""
        return self.resize(self.head.classifier(features[0]), size)


@torch.no_grad()
def adjusted(case, same):
    """Inference adjustment at label size, and averaged with the mirror image; scales follow another rule."""
    params = case.params
    shift = published_priors(params["priors"]).shift
    same("bias", shift - shift.mean(), case.arrays["bias_centred"])
    logits = params["gain"] * case.input("logits", params["logits_shape"]).double()
    model, size = fold_shift(Given(logits), shift), tuple(params["size"])
    height, width = (8 * side for side in logits.shape[-2:])
    images = torch.linspace(0, 1, 3 * height * width).view(1, 3, height, width).double()
    probabilities = whole(model, images, size).softmax(dim=1)
    same("probabilities", probabilities[0, :, ::3, ::3], case.arrays["probabilities"])
    same.summary(case, "probabilities_all", probabilities)
    same.exactly("decisions", (probabilities[0].argmax(dim=0).numpy() == case.arrays["pred"]).mean(), 1.0)
    same.summary(case, "flipped", averaged(whole, flip=True)(model, images, size).softmax(dim=1))


@torch.no_grad()
def target_counts(case, same):
    """Scores per image and class, and in how many images they exceed the source's frequency."""
    params, frequency = case.params, case.array("frequency")
    classes, height, width = params["logits_shape"]
    scores = []
    for i in range(params["images"]):
        offset = 1.5 * case.input(f"offset{i}", (classes, 1, 1)).double()
        logits = (
            params["gain"] * case.input(f"z{i}", (classes, height, width)).double() + frequency.log()[:, None, None]
        )
        upsampled = ALIGNED((logits + offset)[None], params["size"])
        scores.append(image_scores(upsampled.softmax(dim=1))[0])
    scores = torch.stack(scores)
    same("scores", scores, case.arrays["scores"])
    same("counts", (scores > frequency).sum(dim=0), case.arrays["counts"])


def class_balanced(case, same):
    """The classes' distribution from what was seen, and what comes of a block: within 4.5 standard errors."""
    params = case.params
    shows = np.unpackbits(case.arrays["shows"])[: params["files"] * params["num_classes"]]
    shows = torch.from_numpy(shows).view(params["files"], params["num_classes"]).long()
    present = shows.any(dim=0)
    for histogram, stored in zip(case.array("histogram"), case.arrays["probabilities"], strict=True):
        weights = class_weights(histogram.double(), params["offset"]) * present
        same("distribution", weights / weights.sum(), stored)
    repeats = 20
    classes, seen = torch.zeros(repeats, params["num_classes"]), torch.zeros(repeats, params["num_classes"])
    for seed in range(repeats):
        order = torch.randperm(params["files"], generator=torch.Generator().manual_seed(seed))
        drawn, kinds = _block(ClassStatistics(shows[order]), ClassBalancedConfig(block=params["block"]), seed)
        classes[seed] = torch.bincount(torch.tensor(kinds), minlength=params["num_classes"]) / params["block"]
        seen[seed] = shows[order][drawn].float().mean(dim=0)
    for name, ours in (("class_share", classes), ("seen_share", seen)):
        spread = case.array(f"{name}_std") * (1 / repeats + 1 / params["repeats"]) ** 0.5
        far = (ours.mean(dim=0) - case.array(f"{name}_mean")).abs() > 4.5 * spread + 1e-9
        same.exactly(f"{name}: classes outside", far.nonzero().flatten().tolist(), [])


def _block(statistics, config, seed):
    """The images of a block, and the classes that they were drawn for."""
    chosen, present = [], (statistics.pixels > 0).any(dim=0).nonzero().flatten().tolist()
    multinomial = torch.multinomial

    def noted(weights, *args, **options):
        drawn = multinomial(weights, *args, **options)
        chosen.append(present[int(drawn)])
        return drawn

    sampler = ClassBalancedSampler(statistics, config, seed)
    with patch.object(samplers.torch, "multinomial", noted):
        drawn = [sampler(number, generator_of(seed, 0, 0)).file for number in range(config.block)]
    return drawn, chosen


def metrics(case, same):
    """IoU and accuracy per class; the release counts an absent class as 0, which ours leaves out of the mean."""
    classes = case.params["num_classes"]
    confusion = torch.zeros(classes, classes, dtype=torch.long)
    for i in range(len(case.params["shapes"])):
        truth, ours = (case.array(f"{name}_{i}", torch.long).flatten() for name in ("gt", "pred"))
        known = truth < classes
        confusion += torch.bincount(truth[known] * classes + ours[known], minlength=classes**2).view(classes, classes)
    scores = Scores(tuple(map(str, range(classes))), confusion)
    iou = [value or 0.0 for value in scores.iou]
    same("IoU", iou, case.arrays["iou"])
    same("accuracy", [value or 0.0 for value in scores.accuracy], case.arrays["accuracy"])
    same("mean over all classes", sum(iou) / classes, case.arrays["miou"])


def lr_schedule(case, same):
    """Learning rates of backbone, head and discriminator."""
    params = case.params
    for stage, iteration, *stored in ([None, *row] if case.kind == "dacs_lr_schedule" else row for row in case.table):
        own = params if stage is None else params["stages"][str(stage)]
        bases = (own["lr"], 10 * own["lr"], own.get("discriminator"))
        for base, rate in zip(bases, stored, strict=False):
            if rate is not None:
                ours = learning_rate(base, iteration, own["length"], warmup=0, power=params["power"])
                same(f"stage {stage}, iteration {iteration}", ours, rate)


def undoing_names(case, same):
    """A checkpoint of the release is read: every tensor is loaded where it belongs."""
    params = case.params
    segmenter = build_segmenter(backbone_name(params), HEADS[params["head"]], params["num_classes"], align_corners=True)
    checkpoint = {
        part: {name: _numbered(f"{part}.{name}", shape) for name, shape in table["state"].items()}
        for part, table in case.table.items()
    }
    load_published(segmenter, checkpoint)
    ours = {released_name(key): value for key, value in segmenter.state_dict().items()}
    theirs = {
        f"{part}.{name}": value
        for part in ("feature_extractor", "classifier")
        for name, value in checkpoint[part].items()
    }
    _compare_loaded(ours, theirs, segmenter, same)


def dacs_names(case, same):
    """A checkpoint of DACS is read: student or teacher, every tensor where it belongs, but for two dead branches."""
    params = case.params
    for part in case.table["prefixes"]:
        checkpoint = {
            prefix: {name: _numbered(f"{prefix}.{name}", shape) for name, shape in case.table["state"].items()}
            for prefix in case.table["prefixes"]
        }
        segmenter = build_segmenter("resnet101-caffe", "deeplabv2", params["num_classes"], align_corners=True)
        load_published(segmenter, checkpoint, part=part)
        ours = {dacs_name(key): value for key, value in segmenter.state_dict().items()}
        theirs = {key: value for key, value in checkpoint[part].items() if not key.startswith(DEAD_BRANCHES)}
        _compare_loaded(ours, theirs, segmenter, same)


def _compare_loaded(ours, theirs, segmenter, same):
    counter = "num_batches_tracked"
    ours = {name: value for name, value in ours.items() if not name.endswith(counter)}
    theirs = {name: value for name, value in theirs.items() if not name.endswith(counter)}
    same.exactly("names", set(ours) - {"classifier.head.1.bias"}, set(theirs))
    for name, value in theirs.items():
        turn = turned(segmenter) and name.removeprefix("feature_extractor.backbone.") in ("conv1.weight", "0.weight")
        same.exactly(name, torch.equal(ours[name].flatten(), (value.flip(1) if turn else value).flatten()), True)


def _numbered(name, shape):
    """A tensor that no other name has."""
    generator = torch.Generator().manual_seed(hash(name) % 2**31)
    return torch.rand(shape, generator=generator)


def dacs_segmenter(case):
    """DACS's network in float64, filled; the depth is the case's."""
    depth = case.params.get("arch", "resnet101-caffe")
    segmenter = build_segmenter(depth, "deeplabv2", case.params["num_classes"], drop_path=0.0, align_corners=True)
    return fill(segmenter.double(), case, dacs_name, case.params["prefix"])


@torch.no_grad()
def dacs_network(case, same):
    """Stages, logits of the two live branches, logits at image size, and what training mode leaves in the norms."""
    params, segmenter = case.params, dacs_segmenter(case)
    dead = (4 - len(segmenter.head.branches)) * count(segmenter.head.branches[0])
    same.exactly("parameters", count(segmenter) + dead, params["num_parameters"])
    trainable = sum(p.numel() for p in segmenter.parameters() if p.requires_grad)
    same.exactly("trained parameters", trainable + dead, params["num_trainable"])
    segmenter.train(params["train_mode"])
    images = as_images(case.input(params["input_tag"], params["input_shape"]), segmenter)
    features = segmenter.encode(images)
    for number, level in enumerate(features, start=1):
        same.summary(case, f"layer{number}", level)
    logits = segmenter.head(features)
    same("logits", logits, case.arrays["logits"])
    upsampled = segmenter.decode(features, images.shape[-2:])
    same.summary(case, "upsampled", upsampled)
    same("upsampled", upsampled[0, :, 3:9, 5:11], case.arrays["upsampled_crop"])
    buffers = {dacs_name(name): value for name, value in segmenter.named_buffers()}
    for key, value in case.arrays.items():
        if key.startswith("bn/"):
            same(key, buffers[key.removeprefix("bn/")].flatten()[: len(value)], value)


def dacs_step(case, same):
    """Whole iterations: supervised, teacher, mixing, trust, mixed loss, SGD, average after the step."""
    params = case.params
    config = MethodConfig(
        segmentation=SegmentationConfig(over_labelled=("source",)),
        teacher=TeacherConfig(decay=0.99, threshold=params["threshold"], after_step=True),
        mixed=MixedConfig(classes_of="image", augment=None),
    )
    optim = SGDConfig(**SGD, lr=params["rows"][0]["lr"][0], steps_by_depth=params["listed"])
    steps = Steps(case, dacs_segmenter(case), config, dacs_name, optim)
    teacher, size = steps.method.teacher.double(), params["hw"]
    steps.learner.train()
    for iteration, row in enumerate(params["rows"]):
        teacher.update(steps.student, iteration)
        labels = steps.labels(iteration, size)
        bits = np.unpackbits(case.arrays[f"it{iteration}/mix_mask"])[: labels.numel()]
        mask = torch.from_numpy(bits).bool().view(labels.shape)
        chosen = torch.zeros(len(labels), 256, dtype=torch.bool)
        for image, classes in enumerate(row["chosen"]):
            chosen[image, classes] = True
        same.exactly("the mask of the chosen classes", torch.equal(class_mask(labels, chosen), mask), True)
        mixed, makers = {}, []
        for maker in steps.method.makers:
            makers.append(_with_mask(maker, mask, mixed) if isinstance(maker, Mixed) else maker)
        batch = Batch(steps.images("src", iteration, size), labels, steps.images("tgt", iteration, size),
                      torch.ones_like(labels, dtype=torch.bool))  # fmt: skip
        losses = steps.step(iteration, batch, makers, params["n_iters"])
        same("L_l", losses["source/segmentation"], row["L_l"])
        same("L_u", losses["mixed/segmentation"], row["L_u"])
        _compare_mixed(case, iteration, mixed["view"], steps.student, same)
        steps.compare_gradients(iteration, same)
        steps.optimizer.step()
    teacher.update(steps.student, params["n_iters"])
    steps.compare_end(same, "final/student/", "final_norms/student")
    teachers = {dacs_name(name): p for name, p in teacher.segmenter.named_parameters()}
    steps.compare_end(same, "final/teacher/", "final_norms/teacher", teachers)
    buffers = {dacs_name(name): b for name, b in steps.student.named_buffers()}
    for key, value in case.arrays.items():
        if key.startswith("final/bn_student/"):
            same(key, buffers[key.removeprefix("final/bn_student/")].flatten()[: len(value)], value)


def _with_mask(maker, mask, seen):
    from dataclasses import replace

    drawn = replace(maker, draw=lambda labels: mask)

    def make(batch, pseudo):
        seen["view"] = drawn(batch, pseudo)
        return seen["view"]

    return make


def _compare_mixed(case, iteration, view, student, same):
    at = f"it{iteration}/"
    same(at + "mixed labels", view.labels, case.arrays[at + "mixed_labels"])
    same(at + "distinct trusts", view.trust.unique(), case.arrays[at + "mix_weight_values"])
    same(at + "mean trust", view.trust.mean(), case.arrays[at + "mix_weight_mean"])
    normalised = ((view.images - student.mean) / student.std).flip(1)
    same.summary(case, at + "mixed_images", normalised)


def dacs_param_groups(case, same):
    """Factors of rate and decay, and how often an iteration steps a parameter."""
    segmenter = build_segmenter("resnet101-caffe", "deeplabv2", case.params["num_classes"])
    config = SGDConfig(**SGD, lr=1.0, steps_by_depth=True)
    method = build_method(MethodConfig(), segmenter, classes=SPACES["cityscapes19"].names)
    optimizer = build_optimizer(method.learner, config)
    ours = {
        dacs_name(name): [round(group["lr"], 9), round(group["weight_decay"] / 5e-4, 9), group["steps"]]
        for group in optimizer.param_groups
        for name in group["names"]
    }
    stored = {name: value for name, value in case.table.items() if not name.startswith(DEAD_BRANCHES)}
    same.exactly("factors", ours, stored)


def dacs_blur(case, same):
    """Blur of given sigma: the kernel is as long as the side asks for, the borders are reflected."""
    params = case.params
    for i, (size, sigma) in enumerate(zip(params["sizes"], params["sigmas"], strict=True)):
        images = case.input(f"x{i}", (1, 3, *size)).double()
        same(f"y{i}", gaussian_blur(images, [sigma]), case.arrays[f"y{i}"])
    for side, length in params["kernel_of_side"].items():
        spike = torch.zeros(1, 3, int(side), 2).double()
        spike[:, :, int(side) // 2] = 1
        blurred = gaussian_blur(spike, [1e6])[0, 0, :, 0]
        same.exactly(f"kernel of {side}", int((blurred > 0).sum()), length)
