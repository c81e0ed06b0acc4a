"""The Hub without a network: folders as it holds them, ids as it is asked for them, and cards that are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ssrseg.models.weights
from factories import CLASSES, small_segmenter
from ssrseg.errors import UserError
from ssrseg.models import Segmenter, load, load_segmenter, save_segmenter
from ssrseg.reporting import model_card
from test_reporting import PARTS, SSR, write_run


def same(one: Segmenter, other: Segmenter) -> bool:
    """Whether both are one model."""
    mine, theirs = one.state_dict(), other.state_dict()
    return one.description == other.description and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_folder_of_the_hub_holds_the_model_and_is_one_again(tmp_path: Path) -> None:
    model = small_segmenter(resize=(96, 64)).eval()
    model.save_pretrained(tmp_path / "model", model_card_kwargs={"card": "---\nlicense: other\n---\n\n# Mine\n"})
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["backbone"], config["classes"], config["resize"]) == ("mit_b0", list(CLASSES), [96, 64])
    assert "# Mine" in (tmp_path / "model" / "README.md").read_text()
    for again in (Segmenter.from_pretrained(tmp_path / "model"), load(tmp_path / "model")):
        assert same(again, model)
        assert not again.training
    assert same(load_segmenter(tmp_path / "model" / "model.safetensors"), model)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model")(images), model(images))


def test_a_card_that_nobody_wrote_says_no_more_than_the_model_knows(tmp_path: Path) -> None:
    small_segmenter().save_pretrained(tmp_path / "model")
    front, text = (tmp_path / "model" / "README.md").read_text().split("---\n")[1:]
    assert yaml.safe_load(front)["library_name"] == "ssrseg"
    assert "license" not in yaml.safe_load(front)
    assert "mit_b0" in text


def test_an_id_asks_the_hub_for_one_file_of_one_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_segmenter(small_segmenter(), tmp_path / "model.safetensors")
    asked: list[tuple[str, str, str | None]] = []

    def download(name: str, file: str, revision: str | None) -> str:
        asked.append((name, file, revision))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(ssrseg.models.weights, "hf_hub_download", download)
    monkeypatch.chdir(tmp_path)
    assert same(load("user/model"), small_segmenter())
    load("user/model@v1.0")
    assert asked == [("user/model", "model.safetensors", None), ("user/model", "model.safetensors", "v1.0")]
    load("model.safetensors")
    with pytest.raises(UserError, match="There is no model file"):
        load("runs/model.safetensors")
    with pytest.raises(UserError, match="There is no model file"):
        load("a/b/c")
    assert len(asked) == 2


def test_a_folder_instead_of_a_model_names_the_models_in_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"without a \*\.safetensors"):
        load(tmp_path)
    (tmp_path / "student-last.safetensors").touch()
    with pytest.raises(UserError, match=r"give one of .*student-last"):
        load(tmp_path)
    with pytest.raises(UserError, match="no model file"):
        load(tmp_path / "missing.safetensors")


def test_what_the_hub_does_not_have_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("404 Client Error\nRepository Not Found")

    monkeypatch.setattr(ssrseg.models.weights, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"neither a model file user/model nor such a model on the Hub: 404 Client"):
        load("user/model")


def test_the_mixin_adds_nothing_to_the_weights() -> None:
    model = small_segmenter()
    assert {name.partition(".")[0] for name in model.state_dict()} == {"backbone", "head"}
    assert dict(model.named_buffers()).keys() - model.state_dict().keys() == {"mean", "std"}


def front_of(card: str) -> dict[str, Any]:
    """The metadata of a card."""
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_a_card_says_what_was_run(tmp_path: Path) -> None:
    text = model_card(write_run(tmp_path / "run", PARTS["DAFormer"] | SSR, miou=0.5))
    for fact in ("DAFormer + SSR", "mit_b5", "gta5", "cityscapes", "500", "50.0", "road", "## Not for"):
        assert fact in text
    assert "sam-vit-b | Apache-2.0" in text
    assert "one seed each" in text
    assert "data/gta5" not in text


def test_a_card_of_non_commercial_ingredients_claims_no_free_licence(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", miou=0.5)
    assert front_of(model_card(run))["license"] == "other"
    assert "nvidia/mit-b5 | NVIDIA Source Code License for SegFormer: non-commercial" in model_card(run)
    with pytest.raises(UserError, match="permits commercial use, but nvidia/mit-b5"):
        model_card(run, license="apache-2.0")
    assert front_of(model_card(run, license="cc-by-nc-4.0"))["license"] == "cc-by-nc-4.0"


def test_a_card_of_ones_own_data_leaves_the_licence_to_the_author(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", miou=None)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["pretrained"] = "none"
    config |= {"source": {"root": "/home/me/game"}, "target": {"root": "/home/me/camera"}, "val": None}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    text = model_card(run)
    assert "license" not in front_of(text)
    assert "has not been measured" in text
    assert "/home/me" not in text
    assert "a data set of the authors' | see its own terms" in text
    assert front_of(model_card(run, license="mit"))["license"] == "mit"


def test_the_card_of_a_group_has_the_seeds(tmp_path: Path) -> None:
    for seed, miou in ((0, 0.40), (1, 0.44)):
        write_run(tmp_path / "group" / f"seed-{seed}", seed=seed, miou=miou)
    (tmp_path / "group" / "group.yaml").write_text("{}\n")
    text = model_card(tmp_path / "group")
    assert "- seeds: 0, 1" in text
    assert "42.0 ± 2.8" in text
    assert "mIoU by seed: 0: 40.0, 1: 44.0." in text
