"""One network, as the tools of others spell it: found, said, or refused with words that work."""

from __future__ import annotations

import re
import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from ssrseg.adapt.foundation import build_encoder
from ssrseg.cli import app
from ssrseg.config import assignments, merge, resolve
from ssrseg.config.method import FoundationConfig
from ssrseg.data import resolve_space
from ssrseg.errors import UserError
from ssrseg.models import Description, Segmenter, build_segmenter, load_pretrained, load_published, load_segmenter
from ssrseg.models.weight_names import official_name, timm_name
from ssrseg.training.setup import build_student

NAME = "timm:test_resnet"
State = dict[str, Tensor]


def network(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return build_segmenter(NAME, "daformer", 3, head_channels=8)


def timm_state(model: Segmenter) -> State:
    """The backbone's weights under timm's names."""
    return {timm_name(key): value for key, value in model.state_dict().items() if key.startswith("backbone.")}


def official(model: Segmenter) -> State:
    return {official_name(key, model): value for key, value in model.state_dict().items()}


THEIRS, OTHER = network(1), network(2)
BARE, AVERAGED, WHOLE, BOTH = timm_state(THEIRS), timm_state(OTHER), official(THEIRS), THEIRS.state_dict()
FC = {"fc.weight": torch.zeros(10, 4), "fc.bias": torch.zeros(10)}
MOMENTS = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


SPELLINGS: dict[str, Any] = {
    "bare": BARE,
    "classifier": BARE | FC,
    "state_dict": {"state_dict": BARE, "epoch": 3},
    "model": {"model": BARE, "optimizer": MOMENTS},
    "model_state_dict": {"model_state_dict": BARE, "optimizer_state_dict": MOMENTS, "loss": 0.1},
    "weights": {"weights": BARE},
    "params": {"params": BARE},
    "net": {"net": BARE, "acc": 91.2, "epoch": 7},
    "teacher": {"teacher": BARE},
    "ema": {"ema": BARE},
    "my own word": {"my_model_v2": BARE, "history": {"loss": [1.0, 0.5]}},
    "nested": {"model": {"state_dict": BARE}},
    "nested deep": {"checkpoint": {"model": {"state_dict": under("module.", BARE)}}, "optimizer": MOMENTS},
    "compiled": under("_orig_mod.", BARE),
    "parallel": under("module.", BARE | FC),
    "parallel and compiled": under("module._orig_mod.", BARE),
    "compiled and parallel": {"model": under("_orig_mod.module.", BARE)},
    "a compiled part": {name.replace("layer1.", "layer1._orig_mod."): value for name, value in BARE.items()},
    "sharded": under("_forward_module._fsdp_wrapped_module.", BARE),
    "recomputed": {name.replace("layer2.0.", "layer2.0._checkpoint_wrapped_module."): v for name, v in BARE.items()},
    "model.": under("model.", BARE),
    "net.": under("net.", BARE),
    "encoder.": under("encoder.", BARE) | {"projector.0.weight": torch.zeros(3, 3)},
    "backbone.": under("backbone.", BARE),
    "student.": under("student.", BARE),
    "several deep": {"state_dict": under("model.net.encoder.backbone.", BARE)},
    "lightning": {
        "state_dict": under("model.backbone.", BARE) | under("criterion.", {"weight": torch.ones(3)}),
        "pytorch-lightning_version": "2.5.0",
        "optimizer_states": [MOMENTS],
        "loops": {"fit_loop": {"state_dict": {}}},
        "hyper_parameters": {"lr": 1e-3},
    },
    "detector": under("backbone.", BARE) | {f"neck.{i}.conv.weight": torch.zeros(2) for i in range(30)},
    "segmentor": {"meta": {"iter": 1}, "state_dict": WHOLE},
    "adaptation": {"state_dict": under("model.", WHOLE) | {"sam.pos_embed": torch.zeros(2)}},
    "ours": BOTH,
    "ours, parallel and compiled": {"student": under("module._orig_mod.", BOTH)},
    "ours, compiled apart": {name.replace("backbone.", "backbone._orig_mod."): value for name, value in BOTH.items()},
    "half precision": {"state_dict": {name: value.half() for name, value in BARE.items()}},
    "parameters": {"model": {name: nn.Parameter(v) if v.is_floating_point() else v for name, v in BARE.items()}},
    "student and teacher": {"teacher": under("backbone.", AVERAGED), "student": under("module.backbone.", BARE)},
    "with its average": {"state_dict_ema": AVERAGED, "state_dict": BARE},
    "averaged inside": {"state_dict": under("net.", BARE) | under("ema_net.module.", AVERAGED)},
    "model and average": {"ema": {"state_dict": AVERAGED}, "model": {"state_dict": BARE}},
    "beside a copy": BARE | under("teacher.", AVERAGED),
}


def equal(model: Segmenter, other: Segmenter, *, half: bool = False) -> bool:
    tolerance = 1e-3 if half else 0.0
    pairs = zip(model.backbone.state_dict().values(), other.backbone.state_dict().values(), strict=True)
    return all(torch.allclose(one.float(), two.float(), rtol=tolerance, atol=tolerance) for one, two in pairs)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_network_is_found_in_every_spelling(spelling: str, tmp_path: Path) -> None:
    torch.save(SPELLINGS[spelling], path := tmp_path / "weights.ckpt")
    student = network(3)
    note = load_pretrained(student, str(path), NAME)
    assert equal(student, THEIRS, half=spelling == "half precision"), note
    assert f"{len(BARE)} tensors loaded" in note


def test_safetensors_are_read_the_same_way(tmp_path: Path) -> None:
    save_file(under("model._orig_mod.encoder.", BARE | FC), tmp_path / "weights.safetensors")
    note = load_pretrained(student := network(3), str(tmp_path / "weights.safetensors"), NAME)
    assert equal(student, THEIRS)
    assert note.endswith(
        f"{len(BARE)} tensors loaded (timm names; under `model.encoder`; `_orig_mod` taken out), 2 left out\n"
        "  2 x ImageNet classifier"
    )


def student_of(path: Path, *words: str) -> tuple[Segmenter, str]:
    """The student of a run, with words as on the command line."""
    model = {"backbone": NAME, "head_channels": 8, "pretrained": str(path)}
    settings = resolve(merge({"classes": ["a", "b"], "source": {"root": "x"}, "model": model}, assignments(words)))
    return build_student(settings, resolve_space(settings.classes, settings.source))


def words_in(text: object) -> list[str]:
    return re.findall(r"model\.pretrained_part=[\w.]+", str(text))


@pytest.mark.parametrize(
    "spelling",
    ["student and teacher", "with its average", "averaged inside", "model and average", "beside a copy"],
)
def test_which_of_several_is_taken_is_said_and_the_word_for_the_other_works(spelling: str, tmp_path: Path) -> None:
    torch.save(SPELLINGS[spelling], path := tmp_path / "weights.pth")
    student, note = student_of(path)
    assert equal(student, THEIRS)
    assert f"{len(BARE)} x another network" in note
    (word,) = words_in(note)
    student, note = student_of(path, word)
    assert equal(student, OTHER)


def test_several_of_which_none_is_plain_are_refused_with_words_that_work(tmp_path: Path) -> None:
    state = under("module.encoder_q.", BARE) | under("module.encoder_k.", AVERAGED) | {"queue": torch.zeros(2, 2)}
    torch.save({"state_dict": state}, path := tmp_path / "moco.pth")
    with pytest.raises(UserError, match=r"moco\.pth holds 2 networks that fit\. Choose one:") as refused:
        student_of(path)
    first, second = words_in(refused.value)
    assert equal(student_of(path, first)[0], THEIRS)
    assert equal(student_of(path, second)[0], OTHER)
    with pytest.raises(UserError, match="has no 'encoder'; it holds encoder_q, encoder_k"):
        student_of(path, "model.pretrained_part=encoder")
    assert equal(student_of(path, "model.pretrained_part=encoder_q")[0], THEIRS)


def test_an_optimizer_is_no_network(tmp_path: Path) -> None:
    named = {"state": {name: {"exp_avg": value} for name, value in BARE.items()}}
    flat = {f"optimizer.state.{name}.exp_avg": value for name, value in BARE.items()}
    torch.save(
        {"model": BARE, "optim": named, "lr_scheduler": {"conv1.weight": torch.ones(1)}} | flat, tmp_path / "x.pt"
    )
    student, note = student_of(tmp_path / "x.pt")
    assert equal(student, THEIRS)
    assert not words_in(note)


def test_how_much_is_matched_is_said(tmp_path: Path) -> None:
    state = {name: value for name, value in BARE.items() if name != "bn1.weight"} | {"stray.weight": torch.ones(1)}
    torch.save(under("net.", state), path := tmp_path / "weights.pth")
    note = load_pretrained(network(3), str(path), NAME)
    assert f"1 of {len(BARE)} are not in it and stay random: backbone.bn1.weight" in note
    assert "1 x unknown to this backbone" in note


def test_too_little_is_refused_with_numbers(tmp_path: Path) -> None:
    state = {name: value for name, value in BARE.items() if not name.startswith(("layer3", "layer4"))}
    torch.save({"net": state}, path := tmp_path / "weights.pth")
    student = network(3)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    expected = rf"{len(state)} of {len(BARE)} tensors of the backbone are in .*under `net`.*missing: backbone\.layer3"
    with pytest.raises(UserError, match=rf"(?s){expected}"):
        load_pretrained(student, str(path), NAME)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_other_shapes_are_refused_with_both(tmp_path: Path) -> None:
    shape = tuple(BARE["conv1.0.weight" if "conv1.0.weight" in BARE else "conv1.weight"].shape)
    first = next(name for name, value in BARE.items() if tuple(value.shape) == shape)
    torch.save({"net": BARE | {first: torch.zeros(5, 4, 3, 3)}}, path := tmp_path / "weights.pth")
    named = re.escape(f"1 of another shape: backbone.{first} is (5, 4, 3, 3), expected {shape}")
    with pytest.raises(UserError, match=named):
        load_pretrained(network(3), str(path), NAME)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
        (b"<!doctype html><title>Sign in</title>", "web page, which may say why"),
        (b"", "it begins with b''|It may be cut off: fetch it again"),
        (None, "It may be cut off: fetch it again"),
    ],
)
def test_what_came_in_place_of_weights_is_said(content: bytes | None, said: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(BARE, path) if path.suffix == ".safetensors" else torch.save(BARE, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=rf"is not a weights file: .*({said})"):
        student_of(path)
    if content is None:
        path.write_bytes(whole)  # fetched again
        assert equal(student_of(path)[0], THEIRS)


@pytest.mark.parametrize(("held", "run"), [("mit_b1", "mit_b0"), ("mit_b2", "mit_b1")])
def test_another_size_of_the_backbone_is_named(held: str, run: str, tmp_path: Path) -> None:
    """A deeper one of the same width holds all that is wanted, and is refused all the same."""
    with torch.device("meta"):
        networks = {name: build_segmenter(name, "deeplabv2", 2) for name in {held, run}}
    state = {key: torch.zeros(value.shape) for key, value in official(networks[held]).items()}
    torch.save({"teacher": under("module.", state)}, path := tmp_path / "weights.pth")
    with pytest.raises(UserError, match=f"model.backbone={held}: the network whose weights these look like"):
        load_pretrained(networks[run], str(path), run)
    if held == "mit_b1":
        load_pretrained(networks[held].to_empty(device="cpu"), str(path), held)


def test_the_remedy_for_a_pickle_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments beside the weights, and a network that was saved whole."""
    monkeypatch.chdir(tmp_path)
    module = nn.Module()
    module.backbone = nn.Conv2d(1, 1, 1)
    contents = {
        "args": {"model": under("module.", BARE), "args": Namespace(lr=1)},
        "ema": {"ema": module, "model": BARE},
    }
    for name, content in contents.items():
        torch.save(content, f"{name}.pth")
        with pytest.raises(UserError, match="is a pickle that holds") as refused:
            load_pretrained(network(3), f"{name}.pth", NAME)
        python, option, code = shlex.split(str(refused.value).splitlines()[-1])
        assert (python, option) == ("python", "-c")
        exec(code, {})  # a process of its own would import torch once more
        load_pretrained(student := network(3), "weights.pth", NAME)
        assert equal(student, THEIRS)


def test_convert_reads_the_same_spellings(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        theirs, other = (build_segmenter("mit_b0", "daformer", 3, head_channels=16) for _ in range(2))
    content = {
        "model_state_dict": under("_orig_mod.module.", official(theirs)),
        "model_ema": under("module.", official(other)),
        "optimizer": MOMENTS,
    }
    torch.save(content, tmp_path / "in.pth")
    arguments = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors"), "--classes", "cat, dog, cow"]
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    model = load_segmenter(tmp_path / "out.safetensors")
    assert model.description is not None
    assert model.description.classes == ("cat", "dog", "cow")
    assert equal(model, theirs)
    said = re.search(r"also in the file: (--part \w+)", run.output)
    assert said
    assert CliRunner().invoke(app, [*arguments, *said[1].split()]).exit_code == 0
    assert equal(load_segmenter(tmp_path / "out.safetensors"), other)


def test_our_own_weights_without_a_description_are_converted_by_the_words_of_the_refusal(tmp_path: Path) -> None:
    torch.save({"student": BOTH}, tmp_path / "in.pth")
    arguments = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]
    refused = CliRunner().invoke(app, arguments)
    assert "--backbone NAME --head NAME --classes" in str(refused.exception)
    named = ["--backbone", NAME, "--head", "daformer", "--classes", "cat,dog,cow"]
    assert CliRunner().invoke(app, [*arguments, *named]).exit_code == 0
    model = load_segmenter(tmp_path / "out.safetensors")
    assert model.description == Description(NAME, "daformer", ("cat", "dog", "cow"), head_channels=8)
    assert all(torch.equal(value, BOTH[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (("mit_b0", "daformer"), r"\n  --backbone (\S+): the network whose"),
        (("timm:test_vit", "upscale"), r"name it with --backbone, one of .* or (timm:)<name>\."),
    ],
)
def test_what_is_not_recognised_is_named_as_the_refusal_says(of: tuple[str, str], said: str, tmp_path: Path) -> None:
    torch.save(official(build_segmenter(*of, 3, head_channels=8)), tmp_path / "in.pth")
    words = ["convert", str(tmp_path / "in.pth"), str(tmp_path / "out.safetensors")]
    if of[1] == "upscale":
        refused = CliRunner().invoke(app, words)
        assert re.search(r"name it with --head, one of .*\bupscale\b", str(refused.exception))
        words += ["--head", "upscale"]
    refused = CliRunner().invoke(app, [*words, "--backbone", "mit_b1"] if of[0] == "mit_b0" else words)
    named = re.search(said, str(refused.exception))
    assert named
    assert CliRunner().invoke(app, [*words, "--backbone", of[0]]).exit_code == 0
    assert of[0].startswith(named[1])


def test_a_head_that_does_not_fit_leaves_the_backbone(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        theirs = build_segmenter("mit_b0", "daformer", 3, head_channels=16)
    state = official(theirs) | {"decode_head.attention.weight": torch.zeros(2)}
    torch.save(state, path := tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"decode_head\.attention\.weight(?s:.*)model\.pretrained=.*in\.pth: its"):
        load_published(build_segmenter("mit_b0", "daformer", 3, head_channels=16), path)
    ours = build_segmenter("mit_b0", "segformer", 5, head_channels=16)
    assert "only the backbone is wanted" in load_pretrained(ours, str(path), "mit_b0")
    assert equal(ours, theirs)


@pytest.mark.parametrize("wrapped", ["module.", "_orig_mod.model.", "visual.trunk."])
def test_the_foundation_encoder_is_found_too(wrapped: str, tmp_path: Path) -> None:
    random = FoundationConfig(encoder="timm:test_vit", weights="none", input_size="native")
    one, two = (build_encoder(random, (64, 64)).module for _ in range(2))
    content = {"ema": under(wrapped, two.state_dict()), "model": under(wrapped, one.state_dict()), "opt": 1}
    torch.save(content, path := tmp_path / "encoder.pth")
    config = random.model_copy(update={"weights": str(path)})
    found = build_encoder(config, (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(found.module.parameters(), one.parameters(), strict=True))
    said = re.search(r"also in the file: method\.regularizer\.foundation\.part=(\w+)", found.note)
    assert said
    other = build_encoder(config.model_copy(update={"part": said[1]}), (64, 64)).module
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), two.parameters(), strict=True))
