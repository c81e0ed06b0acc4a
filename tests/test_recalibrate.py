"""Statistics of another domain for a trained model: what changes, and what cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from factories import CLASSES, random_image, small_segmenter, tiny_segmenter, write_pairs
from ssrseg import recalibrate
from ssrseg.cli import app
from ssrseg.errors import UserError
from ssrseg.inference.recalibrate import batches_of_one_size, blend_statistics
from ssrseg.models.description import Description
from ssrseg.models.pyramids import ImageSizes
from ssrseg.models.segmenter import build_segmenter, load_segmenter, save_segmenter


def images(count: int = 8, *, dim: int = 1) -> torch.Tensor:
    return torch.stack([torch.from_numpy(random_image(seed=i)).movedim(-1, 0) // dim for i in range(count)])


def first_norm(segmenter: torch.nn.Module) -> torch.nn.BatchNorm2d:
    return next(module for module in segmenter.modules() if isinstance(module, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("keep", [0.0, 0.5, 1.0])
def test_the_statistics_are_those_of_the_mixture(keep: float) -> None:
    segmenter = tiny_segmenter().eval()
    norm = first_norm(segmenter)
    norm.running_mean, norm.running_var = torch.full((4,), 0.25), torch.full((4,), 4.0)
    pixels = (images().float() / 255 - segmenter.mean) / segmenter.std
    convolution = next(module for module in segmenter.modules() if isinstance(module, torch.nn.Conv2d))
    found = convolution(pixels).detach().transpose(0, 1).flatten(1)
    layers = blend_statistics(segmenter, [images()], keep)
    assert layers == sum(isinstance(module, torch.nn.BatchNorm2d) for module in segmenter.modules()) > 4
    mean = keep * 0.25 + (1 - keep) * found.mean(1)
    second = keep * (4 + 0.25**2) + (1 - keep) * (found.var(1) + found.mean(1) ** 2)
    assert torch.allclose(norm.running_mean, mean, atol=1e-5)
    assert torch.allclose(norm.running_var, second - mean**2, rtol=1e-4)


def test_nothing_but_running_means_and_variances_changes() -> None:
    segmenter = tiny_segmenter().train()
    segmenter.head.eval()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    modes = [module.training for module in segmenter.modules()]
    blend_statistics(segmenter, [images()], 0.5)
    changed = {
        name.rpartition(".")[2] for name, value in segmenter.state_dict().items() if not before[name].equal(value)
    }
    assert changed == {"running_mean", "running_var"}
    assert [module.training for module in segmenter.modules()] == modes
    assert first_norm(segmenter).momentum == 0.1
    blend_statistics(segmenter, [images()], 1.0)
    held = {name: value.clone() for name, value in segmenter.state_dict().items()}
    blend_statistics(segmenter, [images(dim=4)], 1.0)
    assert all(held[name].equal(value) for name, value in segmenter.state_dict().items())


def test_no_padding_counts_and_large_images_are_seen_in_windows() -> None:
    boxes = [(slice(y, y + 48), slice(x, x + 48)) for y in (0, 16) for x in (0, 16)]
    for sizes, pictures, seen in (
        (ImageSizes(multiple=(32, 32)), images()[..., :60, :28], [images()[..., :32, :28]]),
        (ImageSizes(multiple=(48, 48), largest=(48, 48)), images(), [images()[..., y, x] for y, x in boxes]),
    ):
        bounded, free = tiny_segmenter(), tiny_segmenter()
        bounded.backbone.sizes = sizes
        if pictures.shape[-1] < 32:  # inevitable
            free.backbone.sizes = sizes
        blend_statistics(bounded, [pictures], 0.0)
        blend_statistics(free, seen, 0.0)
        assert all(torch.allclose(value, bounded.state_dict()[name]) for name, value in free.state_dict().items())


def test_batches_hold_images_of_one_size_in_order() -> None:
    small, large = torch.zeros(3, 4, 4), torch.zeros(3, 4, 6)
    assert [tuple(batch.shape) for batch in batches_of_one_size([small, small, small, large, small], 2)] == [
        (2, 3, 4, 4),
        (1, 3, 4, 4),
        (1, 3, 4, 6),
        (1, 3, 4, 4),
    ]


def test_a_dim_domain_comes_nearer_to_the_bright_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    segmenter = build_segmenter("timm:resnet18", "segformer", len(CLASSES), head_channels=8)
    segmenter.description = Description("timm:resnet18", "segformer", CLASSES, head_channels=8)
    (tmp_path / "dim" / "images").mkdir(parents=True)
    for number, image in enumerate(images(dim=4)):
        Image.fromarray(image.movedim(0, -1).numpy()).save(tmp_path / "dim" / "images" / f"{number}.png")
    blend_statistics(segmenter, [images()], 0.0)  # a model of the bright images
    segmenter.eval()
    found = recalibrate(segmenter, tmp_path / "dim", tmp_path / "new.safetensors", keep=0.0)
    assert (found.images, found.path) == (8, tmp_path / "new.safetensors")
    bright, dim = images().float() / 255, images(dim=4).float() / 255
    with torch.no_grad():
        wanted = segmenter(bright)
        as_trained = (segmenter(dim) - wanted).norm()
        recalibrated = (load_segmenter(found.path)(dim) - wanted).norm()
    assert recalibrated < 0.75 * as_trained


def test_the_word(tmp_path: Path) -> None:
    save_segmenter(small_segmenter(), tmp_path / "model.safetensors")
    target = write_pairs(tmp_path / "target")
    words = [
        "recalibrate",
        str(tmp_path / "model.safetensors"),
        str(tmp_path / "new.safetensors"),
        "--target",
        str(target),
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "4 images" in done.output
    for wrong, text in ((["--keep", "2"], "between 0"), (["--target", str(tmp_path / "none")], "none")):
        failed = CliRunner().invoke(app, [*words, *wrong])
        assert isinstance(failed.exception, UserError)
        assert text in str(failed.exception)


def test_a_model_without_running_statistics_is_refused(tmp_path: Path) -> None:
    segmenter = small_segmenter()
    for name, module in list(segmenter.named_modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            segmenter.set_submodule(name, torch.nn.Identity())
    with pytest.raises(UserError, match="nothing to recalibrate"):
        recalibrate(segmenter, write_pairs(tmp_path / "target"), tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
