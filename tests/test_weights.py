"""Published checkpoints onto our names. Files here are synthetic: real names and shapes, random values."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from conftest import REFERENCE
from factories import CLASSES, small_segmenter
from ssrseg.data import SPACES
from ssrseg.errors import UserError
from ssrseg.models import (
    BACKBONES,
    Segmenter,
    build_segmenter,
    convert,
    load_pretrained,
    load_published,
    load_segmenter,
    save_segmenter,
    weights,
)
from ssrseg.models.convert import CITYSCAPES
from ssrseg.models.weight_names import official_name

NAMES = REFERENCE / "fixtures" / "names_daformer_b5.json"
SPACE = SPACES["cityscapes19"]
META = {
    "CLASSES": SPACE.names,
    "PALETTE": [list(color) for color in SPACE.colors],
    "iter": 40000,
}


def segmenter(head: str = "daformer", *, width: int | None = 16) -> Segmenter:
    return build_segmenter("mit_b0", head, len(CLASSES), head_channels=width)


def randomised(model: Segmenter, seed: int = 1) -> Segmenter:
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    model.load_state_dict({key: _random(value, generator) for key, value in state.items()})
    return model


def _random(value: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.full_like(value, 7)


def official(model: Segmenter, prefix: str = "") -> dict[str, Tensor]:
    return {prefix + official_name(key, model): value.clone() for key, value in model.state_dict().items()}


def assert_equal(one: Segmenter, other: Segmenter) -> None:
    for (key, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=key)


@pytest.mark.slow
@pytest.mark.skipif(not NAMES.is_file(), reason="no list of official names")
def test_an_official_checkpoint_loads_converts_and_predicts(tmp_path: Path) -> None:
    table = json.loads(NAMES.read_text())
    generator = torch.Generator().manual_seed(0)
    student = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in table["state"].items()}
    for name in student:
        if name.endswith("running_var"):
            student[name] = torch.ones(table["state"][name])
        elif name.endswith("num_batches_tracked"):
            student[name] = torch.tensor(40000)
    state = {prefix + name: value for prefix in table["prefixes"] for name, value in student.items()}
    optimizer = {"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 6e-5, "params": [0]}]}
    torch.save({"meta": META, "state_dict": state, "optimizer": optimizer}, tmp_path / "iter_40000.pth")

    report = convert(tmp_path / "iter_40000.pth", tmp_path / "student.safetensors")
    (tmp_path / "iter_40000.pth").unlink()  # 340 MB
    assert report.loaded == len(student)
    assert len(report.dropped) == table["num_entries"] - len(student)
    assert set(report.dropped.values()) == {"another network: ema_model", "another network: imnet_model"}

    model = load_segmenter(tmp_path / "student.safetensors")
    assert model.description is not None
    assert (model.description.backbone, model.description.head) == ("mit_b5", "daformer")
    assert model.description.classes == SPACE.names
    assert model.description.colors == SPACE.colors
    for name, value in official(model).items():
        assert torch.equal(value, student[name]), name
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 96)).isfinite().all()


@pytest.mark.parametrize("part", ["model", "ema_model", "imnet_model", "mic.teacher.ema_model"])
def test_a_part_of_an_adaptation_checkpoint_is_chosen(part: str) -> None:
    prefixes = {name: f"{name}." for name in ("model", "ema_model", "imnet_model", "mic.teacher.ema_model")}
    networks = {name: randomised(segmenter(), seed) for seed, name in enumerate(prefixes)}
    state = {key: value for name, model in networks.items() for key, value in official(model, prefixes[name]).items()}
    state |= {"embedding_layer.0.proj.weight": torch.zeros(2), "sam.image_encoder.pos_embed": torch.zeros(2)}
    model = segmenter()
    report = load_published(model, {"module." + key: value for key, value in state.items()}, part=part)
    assert_equal(model, networks[part])
    assert report.loaded + len(report.dropped) == len(state)
    assert "2 x SSR's regularisation branch" in str(report)


def test_a_part_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="no 'imnet_model'; it holds model, ema_model"):
        load_published(segmenter(), official(segmenter(), "model.") | official(segmenter(), "ema_model."),
                       part="imnet_model")  # fmt: skip
    with pytest.raises(UserError, match="holds a single network"):
        load_published(segmenter(), official(segmenter()), part="ema_model")


@pytest.mark.parametrize("head", ["daformer", "segformer", "deeplabv2"])
def test_official_names_load(head: str) -> None:
    theirs, ours = randomised(segmenter(head)), segmenter(head)
    assert load_published(ours, {"state_dict": official(theirs)}).dialect == "official"
    assert_equal(ours, theirs)


def test_the_dead_layer_of_the_segformer_head_is_dropped() -> None:
    state = official(segmenter("segformer")) | {"decode_head.conv_seg.weight": torch.zeros(4, 128, 1, 1)}
    report = load_published(segmenter("segformer"), state)
    assert report.dropped == {"decode_head.conv_seg.weight": "unused layer of the SegFormer head"}


def test_bare_imagenet_weights_fill_the_backbone_alone() -> None:
    theirs, ours = randomised(segmenter()), segmenter()
    before = ours.head.state_dict()["classify.weight"].clone()
    state = {key.removeprefix("backbone."): value for key, value in official(theirs).items() if "backbone." in key}
    report = load_published(ours, {"model": state | {"head.weight": torch.zeros(1000, 256)}})
    assert report.dialect == "bare"
    assert report.dropped == {"backbone.head.weight": "ImageNet classifier"}
    assert torch.equal(ours.head.state_dict()["classify.weight"], before)
    for mine, other in zip(ours.backbone.parameters(), theirs.backbone.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_bare_resnet_weights_of_mmcv_load() -> None:
    theirs, ours = (build_segmenter("resnet101v1c", "deeplabv2", 2) for _ in range(2))
    state = {key.removeprefix("backbone."): value for key, value in official(theirs).items() if "backbone." in key}
    assert {"stem.0.weight", "stem.7.running_var", "layer3.22.bn3.bias", "layer4.0.downsample.0.weight"} <= set(state)
    report = load_published(ours, state | {"fc.weight": torch.zeros(1000, 2048)})
    assert (report.dialect, len(report.dropped)) == ("bare", 1)
    assert torch.equal(ours.backbone.pyramid.conv1[0].weight, theirs.backbone.pyramid.conv1[0].weight)


HUGGING_FACE = (
    (r"^backbone\.patch_embed(\d)\.norm\.", r"segformer.encoder.patch_embeddings.\1.layer_norm."),
    (r"^backbone\.patch_embed(\d)\.", r"segformer.encoder.patch_embeddings.\1."),
    (r"^backbone\.norm(\d)\.", r"segformer.encoder.layer_norm.\1."),
    (r"^backbone\.block(\d)\.", r"segformer.encoder.block.\1."),
    (r"\.attn\.q\.", ".attention.self.query."),
    (r"\.attn\.sr\.", ".attention.self.sr."),
    (r"\.attn\.norm\.", ".attention.self.layer_norm."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm([12])\.", r".layer_norm_\1."),
    (r"\.mlp\.fc([12])\.", r".mlp.dense\1."),
    (r"^decode_head\.linear_fuse\.conv\.", "decode_head.linear_fuse."),
    (r"^decode_head\.linear_fuse\.bn\.", "decode_head.batch_norm."),
    (r"^decode_head\.linear_pred\.", "decode_head.classifier."),
)
"""Written down from a file that transformers 5.23 saved."""


def hugging_face(model: Segmenter) -> dict[str, Tensor]:
    state = {}
    for key, value in official(model).items():
        if key == "decode_head.linear_fuse.conv.weight":  # there, the deepest level comes first
            value = torch.cat(value.chunk(4, dim=1)[::-1], dim=1)
        for pattern, replacement in HUGGING_FACE:
            key = re.sub(pattern, replacement, key)
        key = re.sub(r"(patch_embeddings|block|encoder\.layer_norm)\.(\d)", lambda m: f"{m[1]}.{int(m[2]) - 1}", key)
        if ".attn.kv." in key:
            for part, half in zip(("key", "value"), value.chunk(2), strict=True):
                state[key.replace(".attn.kv.", f".attention.self.{part}.")] = half
        else:
            state[key] = value
    return state


def test_hugging_face_names_load() -> None:
    theirs, ours = randomised(segmenter("segformer")), segmenter("segformer")
    state = hugging_face(theirs)
    assert "segformer.encoder.block.0.0.attention.self.key.weight" in state
    report = load_published(ours, state)
    assert (report.dialect, report.dropped) == ("huggingface", {})
    assert_equal(ours, theirs)


def test_smp_names_load() -> None:
    theirs, ours = randomised(segmenter("segformer")), segmenter("segformer")
    state = {}
    for key, value in official(theirs).items():
        if key == "decode_head.linear_fuse.conv.weight":
            value = torch.cat(value.chunk(4, dim=1)[::-1], dim=1)
        key = re.sub(
            r"^decode_head\.linear_c\.(\d)\.proj\.", lambda m: f"decoder.mlp_stage.{3 - int(m[1])}.linear.", key
        )
        key = key.replace("decode_head.linear_fuse.conv.", "decoder.fuse_stage.0.")
        key = key.replace("decode_head.linear_fuse.bn.", "decoder.fuse_stage.1.")
        key = key.replace("decode_head.linear_pred.", "segmentation_head.0.").replace("backbone.", "encoder.")
        state[key] = value
    assert load_published(ours, state).dialect == "smp"
    assert_equal(ours, theirs)


def test_segformers_own_names_load() -> None:
    theirs, ours = randomised(segmenter("segformer")), segmenter("segformer")
    state = {}
    for key, value in official(theirs).items():
        if key == "decode_head.linear_fuse.conv.weight":
            value = torch.cat(value.chunk(4, dim=1)[::-1], dim=1)
        state[re.sub(r"linear_c\.(\d)", lambda m: f"linear_c{int(m[1]) + 1}", key)] = value
    assert load_published(ours, state).dialect == "segformer"
    assert_equal(ours, theirs)


def test_our_own_names_load(tmp_path: Path) -> None:
    theirs, ours = randomised(small_segmenter()), segmenter()
    save_segmenter(theirs, tmp_path / "model.safetensors")
    assert load_published(ours, tmp_path / "model.safetensors").dialect == "ssrseg"
    assert_equal(ours, theirs)


@pytest.mark.parametrize("backbone", ["mit_b0", "timm:tf_efficientnet_lite0", "resnet101v1c", "timm:convnext_atto"])
def test_timms_classification_weights_load(backbone: str, tmp_path: Path) -> None:
    ours = build_segmenter(backbone, "deeplabv2", 2)
    name = ours.backbone.pyramid.default_cfg["architecture"]
    options = BACKBONES[backbone].options if backbone in BACKBONES else {}
    theirs = timm.create_model(name, **options)
    torch.save(theirs.state_dict(), tmp_path / "imagenet.pth")
    assert "imagenet.pth" in load_pretrained(ours, str(tmp_path / "imagenet.pth"), backbone)
    report = load_published(ours, theirs.state_dict())
    assert report.dialect == "timm"
    assert report.loaded + len(report.dropped) == len(theirs.state_dict())
    assert all(re.match(r"backbone\.(classifier|head|fc|conv_head|bn2)\.", name) for name in report.dropped)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = theirs.eval().forward_intermediates((images - ours.mean) / ours.std, indices=1, intermediates_only=True)
        torch.testing.assert_close(ours.eval().encode(images)[-1], whole[-1])


def test_a_backbone_may_be_taken_from_a_whole_checkpoint(tmp_path: Path) -> None:
    theirs = randomised(build_segmenter("mit_b0", "daformer", 7))
    save_file(official(theirs), tmp_path / "model.safetensors")
    ours = segmenter()
    load_pretrained(ours, str(tmp_path / "model.safetensors"), "mit_b0")
    assert torch.equal(ours.backbone.pyramid.patch_embed.proj.weight, theirs.backbone.pyramid.patch_embed.proj.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("backbone.norm1.bias"), "1 missing: backbone.norm1.bias"),
        (lambda state: state.update({"backbone.extra": torch.zeros(1)}), "1 unknown to the model: backbone.extra"),
        (
            lambda state: state.update({"backbone.norm1.bias": torch.zeros(3)}),
            r"1 of another shape: backbone.norm1.bias is \(3,\), expected \(32,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(change, message: str) -> None:
    state, ours = official(randomised(segmenter())), segmenter()
    before = {key: value.clone() for key, value in ours.state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=message):
        load_published(ours, state)
    assert all(torch.equal(value, before[key]) for key, value in ours.state_dict().items())


def test_missing_counters_do_not_matter() -> None:
    state = {key: value for key, value in official(segmenter()).items() if "num_batches_tracked" not in key}
    load_published(segmenter(), state)


class Bomb:
    """What a pickle can do."""

    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    ("extra", "named"), [(Bomb(), r"(posix|nt)\.mkdir"), (argparse.Namespace(lr=1), r"argparse\.Namespace")]
)
def test_a_pickle_of_more_than_tensors_is_refused_by_name(extra, named: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": official(segmenter()), "args": extra}, "model.pth")
    with pytest.raises(UserError, match=rf"(?s)model\.pth is a pickle that holds .*{named}.*If you trust it"):
        load_published(segmenter(), "model.pth")
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02K\x01."])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_files_that_are_no_weights_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="broken"):
        load_published(segmenter(), tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file"):
        load_published(segmenter(), tmp_path / "absent.pth")


@pytest.mark.parametrize("head", ["daformer", "segformer", "deeplabv2"])
def test_convert_recognises_backbone_head_and_classes(head: str, tmp_path: Path) -> None:
    theirs = randomised(segmenter(head, width=32))
    torch.save({"state_dict": official(theirs), "meta": {"CLASSES": CLASSES}}, tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors", resize=(1024, 512))
    model = load_segmenter(tmp_path / "out.safetensors")
    assert_equal(model, theirs)
    assert model.description is not None
    assert (model.description.head, model.description.classes) == (head, CLASSES)
    assert model.description.resize == (1024, 512)


def test_classes_without_names_are_those_of_cityscapes_or_numbers(tmp_path: Path) -> None:
    assert SPACE.names == CITYSCAPES
    for count, names in ((19, CITYSCAPES), (3, ("class-0", "class-1", "class-2"))):
        torch.save(official(build_segmenter("mit_b0", "deeplabv2", count)), tmp_path / "in.pth")
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
        description = load_segmenter(tmp_path / "out.safetensors").description
        assert description is not None
        assert description.classes == names


def test_a_backbone_alone_cannot_be_converted(tmp_path: Path) -> None:
    state = {key: value for key, value in official(segmenter()).items() if key.startswith("backbone.")}
    torch.save(state, tmp_path / "mit_b0.pth")
    with pytest.raises(UserError, match=r"it is a backbone\. Use it as model\.pretrained"):
        convert(tmp_path / "mit_b0.pth", tmp_path / "out.safetensors")
    load_pretrained(segmenter(), str(tmp_path / "mit_b0.pth"), "mit_b0")


def test_random_weights_are_said_aloud() -> None:
    assert "random weights" in load_pretrained(segmenter(), "none", "mit_b0")


def test_hub_weights_come_with_their_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, *, revision: str | None) -> str:
        asked.append((repository, name, revision))
        if name == "model.safetensors":
            raise weights.EntryNotFoundError("404")
        torch.save(hugging_face(segmenter("segformer")), tmp_path / name)
        return str(tmp_path / name)

    monkeypatch.setattr(weights, "hf_hub_download", download)
    assert "non-commercial" in load_pretrained(segmenter(), "hub", "mit_b0")
    assert asked[0] == ("nvidia/mit-b0", "model.safetensors", None)
    assert "non-commercial" not in load_pretrained(segmenter(), "someone/mit@main", "mit_b0")
    assert asked[-1] == ("someone/mit", "pytorch_model.bin", "main")


def test_being_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"no route to host\n.*by hand.*model\.pretrained to its path; .*: none"):
        load_pretrained(segmenter(), "hub", "mit_b0")
    save_file(hugging_face(segmenter("segformer")), tmp_path / "model.safetensors")
    for spec in ("none", str(tmp_path / "model.safetensors")):
        load_pretrained(segmenter(), spec, "mit_b0")


@pytest.mark.parametrize("spec", ["weights/absent.pth", "absent.safetensors", "hubb"])
def test_a_pretrained_that_is_nothing_is_refused(spec: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_pretrained(segmenter(), spec, "mit_b0")
