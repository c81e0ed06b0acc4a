"""Settings: what a user gets wrong is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssrseg.config import assignments, compose, dump, merge, preset_names, read_preset, resolve
from ssrseg.errors import UserError
from ssrseg.planning import scaled

PUBLISHED = [
    "dacs",
    "daformer",
    "daformer-ssr",
    "mic",
    "mic-ssr",
    "source-only",
]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_survives_yaml(name: str, tmp_path: Path) -> None:
    data = {"source": {"root": "game"}, "target": {"root": "camera"}}  # those that are for no data set need some
    settings = resolve(scaled(merge({**data, **read_preset(name)}, {"loader": {"crop": [64, 64]}})))
    path = tmp_path / "config.yaml"
    path.write_text(dump(settings))
    assert resolve(compose(None, path, {}, [])) == settings


def test_the_papers_methods_have_presets_for_both_tasks() -> None:
    names = preset_names()
    for name in PUBLISHED:
        assert name in names
        assert f"{name}-synthia" in names


def test_ssr_presets_differ_from_their_base_by_the_regularizer_alone() -> None:
    for name in ("daformer", "mic"):
        plain, ssr = read_preset(name), read_preset(f"{name}-ssr")
        assert ssr["method"].pop("regularizer")["stages"] == [0, 1, 2, 3]
        assert ssr == plain


def test_a_misspelt_key_names_its_neighbour() -> None:
    with pytest.raises(UserError, match=r"source\.splt: no such setting\. Did you mean 'split'\?"):
        resolve({"source": {"root": "x", "splt": "train"}})


def test_a_misspelt_key_deep_inside_names_its_neighbour() -> None:
    tree = {"source": {"root": "x"}, "method": {"regularizer": {"foundation": {"encodr": "sam-vit-b"}}}}
    with pytest.raises(UserError, match=r"method\.regularizer\.foundation\.encodr.*'encoder'"):
        resolve(tree)


def test_a_wrong_value_is_shown() -> None:
    with pytest.raises(UserError, match=r"train\.steps: .*greater than 0 \(found -3\)"):
        resolve({"source": {"root": "x"}, "train": {"steps": -3}})


def test_adapting_needs_a_target() -> None:
    with pytest.raises(UserError, match=r"target\.root"):
        resolve({"source": {"root": "x"}, "method": {"teacher": {}, "mixed": {}}})


def test_pseudo_labels_need_a_teacher() -> None:
    with pytest.raises(UserError, match=r"mixed needs pseudo-labels: set method\.teacher"):
        resolve({"source": {"root": "x"}, "target": {"root": "y"}, "method": {"mixed": {}}})


def test_own_data_replace_the_presets_task() -> None:
    tree = compose("daformer", None, {"source": {"root": "game"}, "target": {"root": "camera"}}, ["classes=[a, b]"])
    settings = resolve(tree)
    assert settings.source.spec == "folders"
    assert settings.source.resize is None
    assert settings.target is not None
    assert settings.target.margins == (0, 0)
    assert settings.val is None
    assert settings.method.feature_distance is not None


def test_words_change_only_what_they_name() -> None:
    settings = resolve(compose("daformer", None, {}, ["source.root=/elsewhere", "train.steps=7"]))
    assert settings.source.root == Path("/elsewhere")
    assert settings.source.spec == "gta5"
    assert settings.train.steps == 7


def test_an_unknown_preset_names_its_neighbour() -> None:
    with pytest.raises(UserError, match=r"Did you mean 'daformer'\? `ssrseg presets` lists them") as raised:
        read_preset("dafomer")
    assert read_preset(str(raised.value).split("'")[3])


def test_merge_changes_neither_side() -> None:
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert merge(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}
    assert over == {"a": {"b": 3}}


def test_assignments_are_yaml() -> None:
    words = ["a.b=1", "a.c=[1, 2]", "d=null"]
    assert assignments(words) == {"a": {"b": 1, "c": [1, 2]}, "d": None}
    with pytest.raises(UserError, match=r"Expected `key\.path=value`, found 'a\.b'"):
        assignments(["a.b"])


def test_a_setting_of_another_choice_names_the_choice_that_has_it() -> None:
    with pytest.raises(UserError, match=r"  optim\.momentum: only with kind: sgd\."):
        resolve({"source": {"root": "x"}, "optim": {"momentum": 0.5}})
    stages = [{"name": "priors", "does": "priors", "settings": {}}, {"name": "labels", "does": "label", "priors": "x"}]
    with pytest.raises(UserError) as raised:
        resolve({"source": {"root": "x"}, "stages": stages})
    assert "  stages.0.settings: only with does: train." in str(raised.value)
    assert "  stages.1.priors: only with does: adjust." in str(raised.value)


def test_an_unknown_choice_and_a_misspelt_key_in_one_name_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"  optim\.kind: choose adamw or sgd \(found 'adam'\)"):
        resolve({"source": {"root": "x"}, "optim": {"kind": "adam"}})
    with pytest.raises(UserError, match=r"  optim\.momentm: no such setting\. Did you mean 'momentum'\?"):
        resolve({"source": {"root": "x"}, "optim": {"kind": "sgd", "momentm": 0.5}})
    with pytest.raises(UserError, match=r"  optim\.momentum: .*less than or equal to 1 \(found 2\.0\)"):
        resolve({"source": {"root": "x"}, "optim": {"kind": "sgd", "momentum": 2.0}})
    with pytest.raises(UserError, match=r"  optim: .*"):
        resolve({"source": {"root": "x"}, "optim": "sgd"})
    with pytest.raises(UserError, match=r"  stages\.0\.modell: no such setting\. Did you mean 'model'\?"):
        resolve({"source": {"root": "x"}, "stages": [{"name": "a", "does": "label", "modell": "x"}]})


def test_the_kind_of_an_optimiser_may_be_left_out() -> None:
    settings = resolve({"source": {"root": "x"}, "optim": {"lr": 0.1}})
    assert (settings.optim.kind, settings.optim.lr) == ("adamw", 0.1)
    assert settings.model_dump()["optim"]["kind"] == "adamw"
    sgd = resolve(merge(read_preset("undoing"), {"optim": {"kind": "adamw"}}))
    assert sgd.optim.kind == "adamw"


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"source": {"root": "x", "resize": [1, 2, 3]}}, "source.resize: List should have at most 2 items"),
        ({"source": {"root": "x", "resize": 5}}, "source.resize: Input should be a valid list (found 5)"),
        (
            {"source": {"root": "x", "resize": {"exakt": [1, 2], "exact": [1, 2]}}},
            "source.resize.exakt: no such setting.",
        ),
        (
            {"source": {"root": "x", "resize": {"exact": [0, 2]}}},
            "source.resize.exact.0: Input should be greater than 0",
        ),
        ({"source": {"root": "x", "id_map": {"a": 1}}}, "source.id_map.a: Input should be a valid integer"),
        ({"classes": 5}, "classes: Input should be a valid list (found 5)"),
        ({"classes": ["a", {"nam": "b", "name": "c"}]}, "classes.1.nam: no such setting. Did you mean 'name'?"),
        (
            {"classes": ["a", True]},
            'classes.1: True is no name: put such words in quotes, as in \'classes=["yes", "no"]\'',
        ),
        ({"method": {"regularizer": {"foundation": {"input_size": 0}}}}, "input_size: Input should be greater than 0"),
        ({"method": {"regularizer": {"foundation": {"input_size": "big"}}}}, "input_size: Input should be 'native'"),
        ({"optim": "sgd"}, "optim: Input should be a valid group of `key: value` (found 'sgd')"),
        (
            {"stages": [{"name": "a", "does": "fly"}]},
            "does: choose train or priors or adjust or recalibrate or choose or label",
        ),
    ],
)
def test_a_mistake_is_one_line_without_the_validators_own_words(group: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        resolve({"source": {"root": "x"}, **group})
    _heading, *lines = str(raised.value).splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not re.search(r"tuple|constrained|ClassConfig|ExactSize|<", lines[0])


def test_what_a_union_holds_survives_yaml() -> None:
    tree = {"source": {"root": "x", "resize": {"exact": [8, 4]}}, "val": {"root": "y", "resize": [8, 4]}}
    foundation = {"input_size": "native"}
    settings = resolve(
        {**tree, "classes": ["yes", {"name": "b"}], "method": {"regularizer": {"foundation": foundation}}}
    )
    assert resolve(yaml.safe_load(dump(settings))) == settings


TASK = ["source.root=x", "target.root=y", "classes=[a, b]"]


@pytest.mark.parametrize(
    ("wrong", "ways"),
    [
        (["loader={rare_class: {}, class_balanced: {}}"], ["loader.rare_class=null", "loader.class_balanced=null"]),
        (["loader={jitter: {}, cache: kept}"], ["loader.jitter=null", "loader.cache=null"]),
        (["loader.jitter={}", "model.in_channels=4"], ["loader.jitter=null"]),
        (["method.mixed={}"], ["method.teacher={}"]),
        (["method.labelled={}"], ["target.labelled.count=10", "method.labelled=null"]),
        (["target=null", "method={teacher: {}, mixed: {}}"], ["target.root=y"]),
        (["target=null", "deploy.statistics=blend"], ["target.root=y"]),
        (["target.masks=m/*"], ["target.masks=null", "method.teacher.regions.of=masks"]),
        (["method.teacher.regions.of=masks"], ["target.masks=m/*", "method.teacher.regions=null"]),
        (["loader.target_crop=[9, 9]", "method={teacher: {}, mixed: {}}"], ["loader.target_crop=null"]),
        (["loader.target_crop=[9, 9]", "method={teacher: {}, masked: {images_of: both}}"], ["loader.target_crop=null"]),
        (["method.segmentation.detail_weight=0.1"], ["model.detail={}", "method.segmentation.detail_weight=null"]),
        (["model={detail: {}, align_corners: true}"], ["model.align_corners=false"]),
        (["model={value_range: [0, 9], percentiles: [1, 99]}"], ["model.value_range=null", "model.percentiles=null"]),
        (["model.value_range=[9, 0]"], ["model.value_range=[0, 9]"]),
        (["model.mean=[0.4, 0.5]"], ["model.mean=[0.4, 0.5, 0.6]"]),
        (["optim.length=4", "train.steps=6"], ["optim.length=6", "optim.length=7", "optim.length=null"]),
        (["train.early_stop=3", "selection=null"], ["selection={}", "train.early_stop=null"]),
        (["train.early_stop.by=agreement"], ["method.teacher={}", "train.early_stop.by=im"]),
        (["val={root: z, share: 2}"], ["val.share=null"]),
        (["source=[{root: a, share: 1}, {root: b}]"], ["source.1.share=2", "source.share=null"]),
        (["source=[{root: a/x}, {root: b/x}]"], ["source.1.name=other"]),
        (["classes=[on, off]"], ['classes=["on", "off"]']),
        (["train.step=3"], ["train.steps=3"]),
        (["optim={kind: adam}"], ["optim.kind=adamw", "optim.kind=sgd"]),
        (["optim.momentum=0.9"], ["optim.kind=sgd"]),
    ],
)
def test_what_a_mistake_advises_is_taken(wrong: list[str], ways: list[str]) -> None:
    tree = assignments([*TASK, *wrong])
    with pytest.raises(UserError) as raised:
        resolve(tree)
    for way in ways:
        key, _, value = way.partition("=")
        said = str(raised.value)
        assert key.rpartition(".")[2] in said
        assert value != "null" or re.search("null|leave|neither|none", said)
        tree.get("train", {}).pop("step", None)  # the misspelt one
        resolve(merge(tree, assignments([way])))
