"""Sixty backbones of timm at three crops: trained, evaluated, or refused before the first step. Nothing may crash.

Each trains two steps (DACS with feature distance on one thing class, a narrow head) on drawn pictures, labels one of
97x131, is saved, opened again and labels it once more. A case that is in the results is not run again.

    python benchmarks/backbones.py [NAME ...]
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

from ssrseg import Predictor, resolve, train
from ssrseg.errors import UserError

RESULTS = Path(__file__).parent / "results" / "backbones.json"
CROPS = ((70, 100), (64, 64), (512, 512))
PICTURE = (97, 131)
LIMIT = 400
"""Seconds of a case."""
NAMES: list[str] = """
resnet18 resnet18d resnext50_32x4d seresnet18 res2net50_26w_4s resnest14d resnetv2_18 convnext_atto convnextv2_atto
efficientnet_b0 efficientnet_lite0 tf_efficientnetv2_b0 mobilenetv2_050 mobilenetv3_small_050 mobilenetv4_conv_small
regnetx_002 regnety_002 pvt_v2_b0 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224
swin_s3_tiny_224 maxvit_rmlp_pico_rw_256 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256 coat_lite_tiny coat_tiny
coatnet_nano_rw_224 coatnet_rmlp_nano_rw_224 hiera_tiny_224 sam2_hiera_tiny davit_tiny focalnet_tiny_srf
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 fastvit_t8 mobilevit_xxs mobilevitv2_050 mobileone_s0
repvit_m0_9 hrnet_w18_small dla34 vgg11_bn densenet121 dm_nfnet_f0 nf_resnet26 dpn48b ghostnet_100 tinynet_e
mvitv2_tiny twins_svt_small poolformer_s12 caformer_s18 nextvit_small inception_next_tiny levit_128s
xcit_nano_12_p16_224 vit_tiny_patch16_224 vit_small_patch14_dinov2 efficientvit_b0 tiny_vit_5m_224 nest_tiny
gcvit_xxtiny xception41 cspresnet50 mambaout_femto rexnet_100
""".split()  # noqa: SIM905


class OutOfTime(BaseException):
    """A case has used up its seconds."""


def write_pictures(root: Path) -> None:
    """Two pictures of each domain, one of the odd size for the scores."""
    for name, count, (height, width) in (("game", 2, (140, 150)), ("camera", 2, (140, 150)), ("val", 1, PICTURE)):
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draws = np.random.default_rng(number)
            blocks = draws.integers(0, 3, (-(-height // 40), -(-width // 40)), dtype=np.uint8)
            labels = blocks.repeat(40, 0).repeat(40, 1)[:height, :width]
            image = (labels[..., None] * 80 + draws.integers(0, 40, (height, width, 3))).astype(np.uint8)
            Image.fromarray(labels).save(root / name / "labels" / f"{number}.png")
            Image.fromarray(image).save(root / name / "images" / f"{number}.png")


def settings_of(name: str, crop: tuple[int, int], root: Path) -> Any:
    """DACS with feature distance, two steps."""
    return resolve(
        {
            "classes": ["sky", "car", "person"],
            **{domain: {"root": root / folder} for domain, folder in
               (("source", "game"), ("target", "camera"), ("val", "val"))},
            "loader": {"crop": crop, "workers": 0, "max_class_share": 1.0},
            "model": {"backbone": f"timm:{name}", "head_channels": 16, "pretrained": "none"},
            "method": {"teacher": {}, "mixed": {}, "feature_distance": {"classes": ["car"]}},
            "selection": None,
            "train": {"steps": 2, "evaluate_every": 2, "checkpoint_every": 2, "accelerator": "cpu"},
        }
    )  # fmt: skip


def run_case(name: str, crop: tuple[int, int], root: Path) -> str:
    """Train, evaluate, open again."""
    settings = settings_of(name, crop, root)
    with tempfile.TemporaryDirectory() as out:
        run = train(settings, Path(out) / "run")
        miou = json.loads((run.folder / "scores.json").read_text(encoding="utf-8"))["last"]["student"]["miou"]
        picture = root / "val" / "images" / "0.png"
        before, after = (
            Predictor(model, "cpu")(picture) for model in (run.student, run.folder / "student-last.safetensors")
        )
        assert tuple(after.shape) == PICTURE
        assert miou is not None
        assert torch.equal(before, after), "the saved model is another one"
    sizes = run.student.backbone.sizes
    if sizes.largest:
        return f"trained; larger images in windows of {sizes.largest[0]}x{sizes.largest[1]}"
    return "trained" if sizes.multiple == (1, 1) else f"trained; padded to {sizes.multiple[0]}x{sizes.multiple[1]}"


def outcome(name: str, crop: tuple[int, int], root: Path) -> str:
    """Run a case within its time; say how it ended."""

    def stop(*_: object) -> None:
        raise OutOfTime

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    try:
        return run_case(name, crop, root)
    except UserError as error:
        return f"refused: {error}"
    except OutOfTime:
        return f"not done in {LIMIT} s"
    except Exception as error:
        return f"TRACEBACK: {type(error).__name__}: {error}\n{traceback.format_exc()[-800:]}"
    finally:
        signal.alarm(0)


def table(found: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    heads = [f"{height}x{width}" for height, width in CROPS]
    kinds = Counter(
        case["outcome"].partition(":")[0].partition(";")[0] for row in found.values() for case in row.values()
    )
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    lines = [
        "# Backbones of timm at three crops",
        "",
        f"Made by `benchmarks/backbones.py` with timm {timm.__version__}, torch {torch.__version__}, one thread of a "
        "CPU, random weights: two steps of DACS with feature distance, a picture of 97x131 evaluated, the model saved "
        "and opened again, the same prediction.",
        "",
        f"{len(found)} backbones, {sum(kinds.values())} cases: {counts}.",
        "",
        f"| backbone | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
    ]
    for name, row in found.items():
        cells = [shown(row[head]["outcome"]) if head in row else "not run" for head in heads]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def shown(outcome: str) -> str:
    """An outcome in a cell: of a refusal, what is the matter; the JSON has the advice too."""
    return outcome.replace("\n", " ").replace("|", "/").partition("; this program's heads")[0]


def main() -> None:
    """Run what is missing, and write both files after each case."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        for height, width in CROPS:
            for name in sys.argv[1:] or NAMES:
                row = found.setdefault(name, {})
                if f"{height}x{width}" in row:
                    continue
                began = time.perf_counter()
                said = outcome(name, (height, width), Path(folder))
                row[f"{height}x{width}"] = {"outcome": said, "seconds": round(time.perf_counter() - began, 1)}
                print(f"{name} {height}x{width}: {said}", flush=True)
                RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
                RESULTS.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
