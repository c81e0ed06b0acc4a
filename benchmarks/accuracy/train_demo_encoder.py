r"""Train the demo's foundation encoder: SAM's task in miniature, on pictures of nothing in particular.

A point in, the mask of the object at that point out. The encoder's last features are all that the decoder sees, as in
SAM, and the decoder is thrown away. `--random` trains the decoder alone, on an encoder that keeps its random weights:
the control. Numbers are in docs/demo-encoder.md.

    python benchmarks/accuracy/train_demo_encoder.py --out first.safetensors
    python benchmarks/accuracy/train_demo_encoder.py --seed 1 --init first.safetensors --out second.safetensors
    python benchmarks/accuracy/train_demo_encoder.py --seed 2 --init second.safetensors --steps 3600 --pool 5000 \
        --out encoder.safetensors
    python benchmarks/accuracy/train_demo_encoder.py --random --steps 1800
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from drawn import draw_anything
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssrseg.demo.encoder import CHANNELS, MEAN, SIZE, STD, untrained_encoder

POINTS = 16
"""Prompts per picture."""
STRIDE = 2
"""Masks are predicted at half resolution."""
SMALLEST = 24
"""Pixels an object needs to be prompted for."""

Pool = tuple[Tensor, Tensor]  # bytes (N, 3, H, W) and object ids (N, H, W)


class PointDecoder(nn.Module):
    """The mask of the object at each prompted point, from the encoder's features.

    A pixel belongs to the mask when its embedding is near the point's; a correction, zero at first, moves the
    point's embedding and prefers places relative to the point.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(CHANNELS, 64, 2, 2), nn.GroupNorm(8, 64), nn.GELU(), nn.ConvTranspose2d(64, width, 2, 2)
        )
        self.correct = nn.Sequential(nn.Linear(CHANNELS + width, 128), nn.GELU(), nn.Linear(128, width + 6))
        for parameter in self.correct[-1].parameters():
            nn.init.zeros_(parameter)
        self.reach = nn.Parameter(torch.tensor(2.0))
        self.width = width

    def forward(self, features: Tensor, points: Tensor) -> Tensor:
        """Logits (B, P, H / 2, W / 2) for points (B, P, 2), x and y in [-1, 1]."""
        dense = self.upscale(features)
        own = _at(dense, points)
        change, places = self.correct(torch.cat([_at(features, points), own], dim=2)).split((self.width, 6), dim=2)
        query = own + change
        likeness = torch.einsum("bpc,bchw->bphw", 2 * query, dense)  # with the next line, minus a squared distance
        distance = query.square().sum(2)[..., None, None] + dense.square().sum(1, keepdim=True) - likeness
        logits: Tensor = (
            self.reach - distance + torch.einsum("bpc,bpchw->bphw", places, _offsets(points, *dense.shape[-2:]))
        )
        return logits


def _at(features: Tensor, points: Tensor) -> Tensor:
    """Features (B, P, C) at points, interpolated."""
    return F.grid_sample(features, points[:, None], align_corners=False)[:, :, 0].transpose(1, 2)


def _offsets(points: Tensor, height: int, width: int) -> Tensor:
    """How far each cell lies from each point: dx, dy, their sizes, squared distance, one; (B, P, 6, H, W)."""
    y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width) * (width / height)
    dy = (y[:, None] - points[..., 1, None, None]).expand(-1, -1, -1, width)
    dx = (x - points[..., 0, None, None] * (width / height)).expand(-1, -1, height, -1)
    return torch.stack([dx, dy, dx.abs(), dy.abs(), dx**2 + dy**2, torch.ones_like(dx)], dim=2)


def draw_pool(count: int, seed: int) -> Pool:
    """`count` pictures with the ids of their objects."""
    images, ids = zip(*(draw_anything(SIZE, np.random.default_rng((seed, i))) for i in range(count)), strict=True)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(ids))


def sample(pool: Pool, batch: int, square: bool, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images, points and masks of whole pictures or twice as many squares, flipped and recoloured."""
    index = torch.from_numpy(rng.integers(len(pool[0]), size=batch * (2 if square else 1)))
    images, ids = pool[0][index].float() / 255, pool[1][index]
    if square:
        left = int(rng.integers(SIZE[1] - SIZE[0] + 1))
        images, ids = images[..., left : left + SIZE[0]], ids[..., left : left + SIZE[0]]
    axes = [axis for axis in (-1, -2) if rng.random() < 0.5]
    images, ids = images.flip(axes), ids.flip(axes)
    images = images[:, torch.from_numpy(rng.permutation(3))]
    images = 1 - images if rng.random() < 0.5 else images
    return normalised(images), *prompts(ids, rng)


def normalised(images: Tensor) -> Tensor:
    """What the encoder takes."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def prompts(ids: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Points (B, P, 2) of objects drawn evenly, and their masks (B, P, H / 2, W / 2)."""
    height, width = ids.shape[-2:]
    points, masks = [], []
    for picture in ids.numpy():
        objects, areas = np.unique(picture, return_counts=True)
        chosen = rng.choice(objects[areas >= SMALLEST], POINTS)
        for thing in chosen:
            pixel = int(rng.choice(np.flatnonzero(picture == thing)))
            points.append(((pixel % width + 0.5) / width * 2 - 1, (pixel // width + 0.5) / height * 2 - 1))
        masks.append(picture[None, ::STRIDE, ::STRIDE] == chosen[:, None, None])
    return torch.tensor(points).view(len(ids), POINTS, 2), torch.from_numpy(np.stack(masks)).float()


def mask_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy and dice, as SAM's (whose cross-entropy is focal)."""
    chance = logits.sigmoid()
    overlap = 2 * (chance * masks).sum((2, 3)) + 1
    dice = 1 - overlap / ((chance + masks).sum((2, 3)) + 1)
    return 2 * F.binary_cross_entropy_with_logits(logits, masks) + dice.mean()


@torch.no_grad()
def score(encoder: Any, decoder: PointDecoder, pool: Pool) -> float:
    """Mean IoU of the masks at fixed points of held-out pictures, at half resolution."""
    rng, found = np.random.default_rng(5), []
    for images, ids in zip(torch.split(pool[0], 10), torch.split(pool[1], 10), strict=True):
        points, masks = prompts(ids, rng)
        guess = decoder(encoder.forward_features(normalised(images.float() / 255)), points) > 0
        seen = masks.bool()
        found.append((guess & seen).sum((2, 3)) / (guess | seen).sum((2, 3)).clamp(min=1))
    return float(torch.cat(found).mean())


def train(options: argparse.Namespace) -> None:
    """Train the decoder, and the encoder unless it is the control; save the encoder when told where."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng, pool = np.random.default_rng(options.seed), draw_pool(options.pool, 2 * options.seed + 1)
    held_out = draw_pool(100, 2)  # no seed trains on an even number's pictures
    encoder: Any = untrained_encoder()
    if options.init:
        encoder.load_state_dict({name: tensor.float() for name, tensor in load_file(options.init).items()})
    decoder = PointDecoder()
    encoder.requires_grad_(not options.random)
    trained = [p for p in (*encoder.parameters(), *decoder.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, options.lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, options.steps, pct_start=0.08)
    start, recent = time.monotonic(), 0.0
    for step in range(1, options.steps + 1):
        images, points, masks = sample(pool, options.batch, step % 3 > 0, rng)
        loss = mask_loss(decoder(encoder.forward_features(images), points), masks)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        recent += (loss.item() - recent) / min(step, 25)
        if step % 25 == 0:
            print(f"step {step}: loss {recent:.3f}, {time.monotonic() - start:.0f} s", flush=True)
        if step % 200 == 0 or step == options.steps:
            print(f"step {step}: held-out IoU {score(encoder, decoder, held_out):.3f}", flush=True)
            if options.out:
                save(encoder, options.out)


def save(encoder: nn.Module, path: Path) -> None:
    """The encoder's weights in half precision."""
    save_file({name: tensor.half().contiguous() for name, tensor in encoder.state_dict().items()}, path)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the weights go; nothing is written when absent")
    parser.add_argument("--init", type=Path, help="weights to go on from, with a new decoder")
    parser.add_argument("--random", action="store_true", help="keep the encoder's random weights")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=4, help="whole pictures per step; twice as many squares")
    parser.add_argument("--pool", type=int, default=1800, help="pictures drawn")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
