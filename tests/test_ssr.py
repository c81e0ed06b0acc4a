"""SSR: what the regularisation branch does to the step, and what it must not do."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from factories import CLASSES, tiny_frozen, tiny_segmenter
from ssrseg.adapt import Batch, Learner, Method, Regularizer, View, adapt, build_method, learner
from ssrseg.config import assignments, merge, resolve
from ssrseg.config.method import (
    FeatureDistanceConfig,
    MaskedConfig,
    MethodConfig,
    MixedConfig,
    RegularizerConfig,
    TeacherConfig,
)
from ssrseg.errors import UserError

PLAIN = MethodConfig(
    teacher=TeacherConfig(threshold=0.3),
    mixed=MixedConfig(),
    masked=MaskedConfig(block=8),
    feature_distance=FeatureDistanceConfig(),
)


@dataclass(eq=False)
class Saved:
    """A tensor that autograd saves."""

    tensor: Tensor


def with_ssr(**options: object) -> MethodConfig:
    return PLAIN.model_copy(update={"regularizer": RegularizerConfig(**options)})


def method(config: MethodConfig, *, dropout: float = 0.1) -> Method:
    torch.manual_seed(1)  # the regularizer's weights
    return build_method(
        config, tiny_segmenter(dropout=dropout), classes=CLASSES, crop=(64, 96), foundation=tiny_frozen()
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    labels = torch.randint(0, len(CLASSES), (2, 8, 12), generator=generator)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :8, :8] = 255
    valid = torch.ones(2, 64, 96, dtype=torch.bool)
    valid[:, :6] = False
    source, target = torch.rand(2, 2, 3, 64, 96, generator=generator)
    return Batch(source, labels, target, valid)


def step(made: Method) -> dict[str, Tensor]:
    torch.manual_seed(3)  # dropout
    made.teacher.update(made.learner.student, 0)
    return adapt(made.learner, made.teacher, made.makers, batch(), lambda loss: loss.backward())


def gradients(made: Method) -> dict[str, Tensor]:
    return {name: p.grad for name, p in made.learner.student.named_parameters() if p.grad is not None}


def running_statistics(made: Method) -> dict[str, Tensor]:
    return {name: b for name, b in made.learner.student.named_buffers() if "running" in name}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], *, exactly: bool = True) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(value, theirs[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_without_stages_it_is_the_plain_method_bit_for_bit():
    plain, empty = method(PLAIN), method(with_ssr(stages=()))
    assert_equal(step(plain), step(empty))
    assert_equal(gradients(plain), gradients(empty))
    assert_equal(dict(plain.learner.named_buffers()), dict(empty.learner.named_buffers()))
    assert_equal(plain.learner.state_dict(), empty.learner.state_dict())
    assert any("no stage" in note for note in empty.notes)


def test_every_regularised_stage_changes_the_step():
    plain = step(method(PLAIN))
    for stages in ((3,), (2, 3), (0, 1, 2, 3)):
        made = method(with_ssr(stages=stages))
        losses = step(made)
        assert losses.keys() - plain.keys() == {"source/regularizer", "mixed/regularizer"}
        assert {name.split(".")[3] for name, _ in made.learner.named_parameters() if "regularizer" in name} == {
            str(stage) for stage in stages
        }
        assert all(p.grad is not None and p.grad.any() for p in made.learner.terms["regularizer"].parameters())


def test_the_default_heads_are_the_authors():
    regularizer = Regularizer(tiny_frozen(), 8, (64, 128, 320, 512))  # MiT-B1 to B5
    assert [stage.attend.heads for stage in regularizer.stages.values()] == [1, 2, 5, 8]


@pytest.mark.parametrize("heads", [(1, 2), (1, 2, 3, 4)])
def test_heads_that_do_not_suit_are_refused_with_some_that_do(heads: tuple[int, ...]):
    with pytest.raises(UserError, match="does not suit stages of 64, 128, 320, 512 channels") as refused:
        Regularizer(tiny_frozen(), 8, (64, 128, 320, 512), heads=heads)
    (word,) = re.findall(r"such as '(.*)'\.", str(refused.value))
    domains = {"source": {"root": "x"}, "target": {"root": "y"}, "method": {"teacher": {}}}
    suitable = resolve(merge(domains, assignments([word]))).method.regularizer
    assert suitable is not None
    Regularizer(tiny_frozen(), 8, (64, 128, 320, 512), heads=suitable.heads)


def test_the_frozen_encoder_is_nobodys_and_stays_as_it_is():
    made = method(with_ssr())
    (encoder,) = {id(f): f for f in made.frozen if f.channels == 8}.values()
    before = {name: value.clone() for name, value in encoder.module.state_dict().items()}
    step(made)
    torch.optim.AdamW(made.learner.parameters()).step()
    theirs = {value.data_ptr() for value in encoder.module.state_dict().values()}
    for module in (made.learner, made.teacher):
        assert not theirs & {value.data_ptr() for value in (*module.parameters(), *module.buffers())}
        assert not theirs & {value.data_ptr() for value in module.state_dict().values()}
    assert_equal(before, encoder.module.state_dict())
    assert all(p.grad is None and not p.requires_grad for p in encoder.module.parameters())


def losses_with_their_graph(learner: Learner, view: View) -> Tensor:
    """All of a view's terms on one graph: what the step does term by term."""
    features = learner.student.encode(view.images)
    asked = [term for term in learner.terms.values() if view.name in term.views]
    return torch.stack([term.weight * term(view, features, learner.student) for term in asked]).sum()


def test_gradients_term_by_term_and_view_by_view_are_the_joint_gradient():
    in_parts, jointly = method(with_ssr(), dropout=0.0), method(with_ssr(), dropout=0.0)
    step(in_parts)
    jointly.teacher.update(jointly.learner.student, 0)
    pseudo = jointly.teacher(batch().target, batch().valid)
    views = [make(batch(), pseudo) for make in jointly.makers]
    torch.stack([losses_with_their_graph(jointly.learner, view) for view in views]).sum().backward()
    assert_equal(gradients(in_parts), gradients(jointly), exactly=False)


def test_under_autocast_gradients_are_those_of_a_backward_pass_outside_of_it():
    left, right = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            product = left @ right
        (found,) = learner.gradients(product.sum(), [left])
    assert found is not None
    assert torch.equal(found, torch.ones(16, 16) @ right.T)


def test_what_a_branch_saves_for_its_backward_pass_is_gone_before_the_next_branch():
    made, saved = method(with_ssr()), WeakSet[Saved]()
    student, regularizer = made.learner.student, made.learner.terms["regularizer"]
    alive: dict[str, int] = {}

    def pack(tensor: Tensor) -> Saved:
        kept = Saved(tensor.detach())
        saved.add(kept)
        return kept

    def note(moment: str, result: Any) -> Any:
        alive[moment] = sum(kept.tensor.nbytes for kept in saved)
        return result

    encode, enhance = student.encode, regularizer.enhance
    student.encode = lambda images, window: note("encoded", encode(images, window))
    regularizer.enhance = lambda *args: enhance(*note("decoded", args))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        made.learner(View("source", batch().source, batch().labels))
    gradients = (*student.head.parameters(), *encode(batch().source))
    assert 0 < alive["decoded"] - alive["encoded"] <= sum(tensor.nbytes for tensor in gradients)


def test_every_view_is_encoded_once_and_seen_by_the_foundation_model_where_it_is_regularised():
    made = method(with_ssr())
    encoded, seen = [], []
    made.learner.student.backbone.register_forward_hook(lambda module, args, output: encoded.append(args[0]))
    regularizer = made.learner.terms["regularizer"]
    original = regularizer.encoder
    regularizer.encoder = lambda images: (seen.append(images), original(images))[1]
    step(made)
    assert len(encoded) == 3  # source, mixed, masked
    assert len(seen) == 2  # source, mixed
    student = made.learner.student
    for images, normalised in zip(seen, encoded[:2], strict=True):  # the very images that the student sees
        torch.testing.assert_close((images - student.mean) / student.std, normalised)


def test_with_a_zero_output_projection_both_branches_are_one():
    made = method(with_ssr(), dropout=0.0)
    student, regularizer = made.learner.student, made.learner.terms["regularizer"]
    for stage in regularizer.stages.values():
        nn.init.zeros_(stage.attend.proj.weight)
        nn.init.zeros_(stage.attend.proj.bias)
    images = batch().source
    features = student.encode(images)
    enhanced = regularizer.enhance(features, regularizer.encoder(images))
    assert torch.equal(student.decode(enhanced, (64, 96)), student.decode(features, (64, 96)))


def test_shadow_statistics_are_those_of_the_plain_method():
    plain, shadow, shared = method(PLAIN), method(with_ssr(bn_stats="shadow")), method(with_ssr(bn_stats="shared"))
    for made in (plain, shadow, shared):
        # The first draw of each dropout would differ between the methods; statistics do not see it here.
        made.learner.student.head.dropout.p = 0.0
        step(made)
    assert_equal(running_statistics(plain), running_statistics(shadow))
    assert any(
        not torch.equal(value, running_statistics(plain)[name]) for name, value in running_statistics(shared).items()
    )
    assert_equal(gradients(shadow), gradients(shared))


def test_statistics_are_those_of_the_views_that_are_named():
    config = with_ssr().model_copy(update={"statistics_of": ("mixed",)})
    named, all_views, alone = method(config, dropout=0.0), method(with_ssr(), dropout=0.0), method(config, dropout=0.0)
    for made in (named, all_views, replace(alone, makers=alone.makers[1:2])):
        step(made)
    assert_equal(running_statistics(named), running_statistics(alone))
    assert_equal(gradients(named), gradients(all_views))
    assert any(
        not torch.equal(value, running_statistics(named)[k]) for k, value in running_statistics(all_views).items()
    )
    with pytest.raises(UserError, match="statistics_of names masked, but this method's views are source, mixed"):
        resolve({"method": {"teacher": {}, "mixed": {}, "statistics_of": ["masked"]}})


def test_what_is_deployed_does_not_depend_on_the_regularizer():
    made = method(with_ssr())
    student = made.learner.student.eval()
    before = student(batch().target)
    for parameter in made.learner.terms["regularizer"].parameters():
        nn.init.normal_(parameter)
    assert torch.equal(student(batch().target), before)
    assert student.state_dict().keys() == tiny_segmenter().state_dict().keys()


def test_hidden_blocks_have_the_mean_colour_which_is_zero_to_the_network():
    made = method(PLAIN)
    made.teacher.update(made.learner.student, 0)
    view = made.makers[-1](batch(), made.teacher(batch().target, batch().valid))
    student = made.learner.student
    normalised = (view.images - student.mean) / student.std
    hidden = (normalised == 0).all(dim=1)
    assert 0.4 < hidden.float().mean() < 0.95  # of ratio 0.7
    assert not (normalised == 0).any(dim=1)[~hidden].any()
