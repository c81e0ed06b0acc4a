"""What published numbers depend on and a straightforward reading of the papers would get otherwise: one test each."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from factories import CLASSES, tiny_frozen, tiny_segmenter
from ssrseg.adapt import (
    IGNORE,
    Batch,
    ClassMix,
    Source,
    StrongAugment,
    Teacher,
    adapt,
    build_method,
    feature_distance,
    pseudo_label,
    segmentation_loss,
)
from ssrseg.config.method import (
    FeatureDistanceConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    TeacherConfig,
)
from ssrseg.models import build_head


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pasted_classes(of_batch: bool) -> list[set[int]]:
    labels = torch.tensor([[[0, 1, 2, 3]], [[4, 5, IGNORE, IGNORE]]])
    seen: list[set[int]] = [set(), set()]
    for seed in range(300):
        pasted = ClassMix(generator(seed), of_batch)(labels)
        for image in range(2):
            drawn = set(labels[image][pasted[image]].tolist())
            seen[image].add(len(drawn))
    return seen


def test_mixed_classes_are_drawn_from_the_whole_batch_and_ignore_is_one_of_them():
    # 4 of the 7 values of the batch are drawn: an image may get from 1 (0 for the second) to all of its own.
    first, second = pasted_classes(of_batch=True)
    assert first == {1, 2, 3, 4}
    assert second == {0, 1, 2, 3}


def test_mixed_classes_can_be_drawn_per_image():
    first, second = pasted_classes(of_batch=False)
    assert (first, second) == ({2}, {2})  # ceil(4 / 2), and ceil(3 / 2) with the ignore label


def test_the_references_jitter_probability_is_the_chance_of_no_jitter():
    images = torch.rand(1, 3, 8, 8, generator=generator())
    strong = StrongAugment(generator(), jitter_skipped=0.2, blur_skipped=1.0)
    jittered = sum(not torch.equal(strong(images), images) for _ in range(400))
    assert jittered / 400 == pytest.approx(0.8, abs=0.06)


def test_the_trust_is_one_share_per_batch_taken_before_rows_are_cut():
    logits = torch.zeros(2, 2, 4, 4)
    logits[0, 0] = 10  # the first image is sure, the second is not
    valid = torch.ones(2, 4, 4, dtype=torch.bool)
    valid[:, :2] = False
    weights = pseudo_label(logits, valid, 0.968).trust
    assert (weights[:, 2:] == 0.5).all()
    assert (weights[:, :2] == 0).all()


def test_losses_average_over_ignored_and_untrusted_pixels_too():
    logits = torch.zeros(1, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [IGNORE, IGNORE]]])
    assert segmentation_loss(logits, labels).item() == pytest.approx(math.log(2) / 2)
    weights = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    assert segmentation_loss(logits, labels, weights).item() == pytest.approx(math.log(2) / 4)
    assert segmentation_loss(logits, torch.full_like(labels, IGNORE)).item() == 0


def test_the_teacher_uses_batch_statistics_and_drops_nothing():
    teacher = Teacher(tiny_segmenter(dropout=0.9), threshold=None)
    images, valid = torch.rand(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool)
    norms = [module for module in teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # running statistics that would show
        nn.init.constant_(norm.running_mean, 50.0)
    one, other = teacher(images, valid).labels, teacher(images, valid).labels
    assert torch.equal(one, other)
    assert all(norm.running_mean.max() < 50 for norm in norms)
    teacher.segmenter.eval()
    assert not torch.equal(teacher(images, valid).labels, one)


def test_the_average_skips_buffers_and_starts_as_a_copy():
    student = tiny_segmenter(seed=1)
    teacher = Teacher(tiny_segmenter(seed=2), decay=0.9)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.running_mean, 3.0)
    teacher.update(student, 0)
    for mine, theirs in zip(teacher.segmenter.parameters(), student.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not any((b == 3).any() for name, b in teacher.named_buffers() if "running_mean" in name)


@pytest.mark.parametrize(("step", "kept"), [(1, 1 / 2), (2, 2 / 3), (8, 8 / 9), (9, 0.9), (1000, 0.9)])
def test_the_average_warms_up(step: int, kept: float):
    student = tiny_segmenter()
    teacher = Teacher(student, decay=0.9)
    before = student.head.classify.bias.clone()
    with torch.no_grad():
        student.head.classify.bias += 1
    teacher.update(student, step)
    torch.testing.assert_close(teacher.segmenter.head.classify.bias, before + 1 - kept)


def test_the_feature_distance_without_any_location_is_zero_with_zero_gradient():
    features = torch.rand(1, 4, 2, 2, requires_grad=True)
    loss = feature_distance(features, torch.rand(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (features.grad == 0).all()


def test_equal_features_have_a_finite_gradient():
    features = torch.ones(1, 4, 2, 2, requires_grad=True)
    feature_distance(features, torch.ones(1, 4, 2, 2)).backward()
    assert features.grad.isfinite().all()


def test_depthwise_convolutions_of_the_head_start_small():
    torch.manual_seed(0)
    head = build_head("daformer", (64, 128, 320, 512), 19)
    weight = head.branches[1].depthwise.conv.weight
    assert weight.shape == (1024, 1, 3, 3)
    # The fan is not divided by the groups: 0.47 otherwise.
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (1024 * 9)), rel=0.03)


class NoSync(TorchDispatchMode):
    """Fails where a step would wait for the device: a value read, or a size that depends on values."""

    FORBIDDEN = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.unique", "aten._unique2")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not str(func).startswith(self.FORBIDDEN), f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


FULL = MethodConfig(
    teacher=TeacherConfig(threshold=0.3),
    mixed=MixedConfig(),
    masked=MaskedConfig(block=8),
    feature_distance=FeatureDistanceConfig(classes=("car", "tree")),
    regularizer=RegularizerConfig(),
)


def made_and_batch():
    method = build_method(FULL, tiny_segmenter(), classes=CLASSES, crop=(64, 64), foundation=tiny_frozen())
    labels = torch.randint(0, 4, (2, 64, 64), generator=generator())
    images = torch.rand(2, 2, 3, 64, 64, generator=generator())
    return method, Batch(images[0], labels, images[1], torch.ones(2, 64, 64, dtype=torch.bool))


def test_a_step_never_waits_for_the_device():
    method, batch = made_and_batch()
    with NoSync():
        for step in range(4):  # enough draws for jitter and blur to happen
            method.teacher.update(method.learner.student, step)
            losses = adapt(method.learner, method.teacher, method.makers, batch, lambda loss: loss.backward())
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_the_detector_of_waiting_works():
    with NoSync(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(1).item()


def test_views_are_images_in_0_1_from_loader_to_network():
    method, batch = made_and_batch()
    method.teacher.update(method.learner.student, 0)
    pseudo = method.teacher(batch.target, batch.valid)
    for make in method.makers:
        images = make(batch, pseudo).images
        assert images.min() >= 0
        assert images.max() <= 1
    assert Source()(batch, pseudo).images is batch.source
