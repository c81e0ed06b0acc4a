"""Adversarial terms: who gets which gradient, and the numbers of the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from factories import CLASSES, tiny_segmenter
from ssrseg.adapt import Learner, Term, View
from ssrseg.adapt.alignment import Alignment, Discriminator, domain_loss
from ssrseg.config import SGDConfig
from ssrseg.training.optim import build_optimizer, set_learning_rates

K = len(CLASSES)


def view(name: str) -> View:
    draws = torch.Generator().manual_seed(len(name))
    return View(name, torch.rand(2, 3, 64, 64, generator=draws), torch.randint(0, K, (2, 64, 64), generator=draws))


def gradients(term: Term, name: str) -> dict[str, Tensor]:
    learner = Learner(tiny_segmenter(), {"term": term}).eval()
    (loss,) = learner(view(name)).values()
    loss.backward()
    return {key: weight.grad for key, weight in learner.named_parameters() if weight.grad is not None}


def test_the_published_discriminators_size() -> None:
    for channels, expected in ((2048, 5_057_702), (1024, 2_698_406)):
        assert sum(weight.numel() for weight in Discriminator(channels, 19).parameters()) == expected


def test_a_constant_discriminator_costs_log_2k() -> None:
    soft = torch.rand(2, K, 8, 8)
    expected = soft.sum(dim=1).mean() * math.log(2 * K)
    for domain in (0, 1):
        assert domain_loss(torch.zeros(2, 2 * K, 8, 8), soft, domain).item() == pytest.approx(expected.item(), rel=1e-5)


def test_swapping_the_halves_swaps_the_domains() -> None:
    answers, soft = torch.randn(2, 2 * K, 8, 8), torch.rand(2, K, 8, 8)
    swapped = torch.cat([answers[:, K:], answers[:, :K]], dim=1)
    assert domain_loss(answers, soft, 0).item() == pytest.approx(domain_loss(swapped, soft, 1).item(), rel=1e-6)


def test_the_source_view_teaches_the_discriminator_alone() -> None:
    assert {name.split(".")[0] for name in gradients(Alignment(10, K), "source")} == {"terms"}


def test_the_target_view_moves_the_backbone_never_the_head() -> None:
    found = gradients(Alignment(10, K), "target")
    assert any(name.startswith("student.backbone.") for name in found)
    assert not any(name.startswith("student.head.") for name in found)


def test_fooling_does_not_teach_the_discriminator() -> None:
    """With weight 0 or 1 of fooling, the discriminator's gradient is the same and the backbone's is not."""
    term, other = Alignment(10, K, weight=0.0), Alignment(10, K, weight=1.0)
    other.load_state_dict(term.state_dict())
    without, with_it = gradients(term, "target"), gradients(other, "target")
    mine = [name for name in without if name.startswith("terms.")]
    assert mine
    assert all(torch.equal(without[name], with_it[name]) for name in mine)
    backbone = [name for name in with_it if name.startswith("student.backbone.")]
    assert any(with_it[name].abs().max() > 0 for name in backbone)
    assert all(without[name].abs().max() == 0 for name in backbone if name in without)


def test_the_alignment_loss_is_the_formula() -> None:
    student, term = tiny_segmenter().eval(), Alignment(10, K, weight=0.5, temperature=1.8, clip=0.4)
    seen = view("target")
    features = student.encode(seen.images)
    soft = (student.decode(features, (64, 64)) / 1.8).softmax(dim=1).clamp(max=0.4)
    answers = torch.nn.functional.interpolate(
        term.discriminator(features[-1]), (64, 64), mode="bilinear", align_corners=False
    ).log_softmax(dim=1)
    own = -(soft * answers[:, K:]).sum(1).mean()
    other = -(soft * answers[:, :K]).sum(1).mean()
    assert term(seen, features, student).item() == pytest.approx((0.5 * own + 0.5 * other).item(), rel=1e-5)


def test_student_and_discriminator_have_optimisers_of_their_own() -> None:
    learner = Learner(tiny_segmenter(), {"alignment": Alignment(10, K)})
    config = SGDConfig(lr=0.1, warmup=0, weight_decay=0)
    optimizer = build_optimizer(learner, config, discriminator_lr=0.01)
    set_learning_rates(optimizer, config, 50, 100)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([0.005, 0.05, 0.5])
    before = {name: weight.detach().clone() for name, weight in learner.named_parameters()}
    for weight in learner.parameters():
        weight.grad = torch.full_like(weight, 2.0)
    optimizer.step()
    for name, weight in learner.named_parameters():
        # Adam's first step is its rate, whatever the gradient; SGD's is rate times gradient.
        expected = 0.005 if "discriminator" in name else 2 * (0.5 if name.startswith("student.head.") else 0.05)
        assert torch.allclose(before[name] - weight, torch.full_like(weight, expected), atol=1e-5), name
    state = optimizer.state_dict()
    again = build_optimizer(learner, config, discriminator_lr=0.01)
    again.load_state_dict(state)
    set_learning_rates(again, config, 50, 100)
    assert [group["lr"] for group in again.param_groups] == [group["lr"] for group in optimizer.param_groups]
    optimizer.found_inf = torch.ones(())
    held = {name: weight.detach().clone() for name, weight in learner.named_parameters()}
    optimizer.step()
    assert all(torch.equal(held[name], weight) for name, weight in learner.named_parameters())
