"""SSR's regularisation branch: decode features that attend to a frozen foundation encoder's (arXiv 2401.14686, II-A).

Training only: it shares backbone and head with the shadow branch, and nothing here is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn

from ssrseg.adapt.batch import View
from ssrseg.adapt.norms import still_statistics
from ssrseg.adapt.terms import Term, segmentation_loss
from ssrseg.errors import UserError
from ssrseg.models.segmenter import Segmenter


class CrossAttention(nn.Module):
    """Attend from backbone tokens (queries) to foundation tokens: no norm, no dropout, no spatial reduction."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=False)
        self.kv = nn.Linear(channels, 2 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Map queries (B, N, C) and context (B, M, C) to (B, N, C)."""
        keys, values = self.kv(context).chunk(2, dim=-1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (self.q(queries), keys, values))
        attended = F.scaled_dot_product_attention(q, k, v)  # scale 1 / sqrt(C / heads)
        mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return mixed


class Stage(nn.Module):
    """Regularise one backbone stage: F + CrossAttention(F, Embed(S))."""

    def __init__(self, foundation_channels: int, channels: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(foundation_channels, channels)
        self.attend = CrossAttention(channels, heads)

    def forward(self, level: Tensor, foundation: Tensor) -> Tensor:
        """Map features (B, C, h, w) and foundation tokens (B, M, D) to regularised features (B, C, h, w)."""
        queries = level.flatten(2).transpose(1, 2)
        attended: Tensor = self.attend(queries, self.embed(foundation))
        return level + attended.transpose(1, 2).reshape(level.shape)


class Regularizer(Term):
    """Train the regularisation branch: the segmentation loss of features that attended to the foundation encoder's.

    Args:
        encoder: images in [0, 1] -> foundation features (B, D, h, w), frozen.
        encoder_channels: D.
        channels: C_i of the backbone's stages.
        stages: indices of the regularised stages; the others pass unchanged.
        heads: attention heads per stage; `default_heads` when absent (1, 2, 5, 8 for MiT).
        own_statistics: let the regularised pass move the head's BatchNorm statistics, as the authors do.

    Raises:
        UserError: `heads` do not suit the stages.
    """

    def __init__(
        self,
        encoder: Callable[[Tensor], Tensor],
        encoder_channels: int,
        channels: Sequence[int],
        *,
        stages: Sequence[int] = (0, 1, 2, 3),
        heads: Sequence[int] | None = None,
        own_statistics: bool = True,
        views: Iterable[str] = ("source", "mixed"),
        weight: float = 1.0,
    ) -> None:
        super().__init__(views, weight)
        self.encoder, self.levels = encoder, len(channels)
        suitable = [default_heads(width) for width in channels]
        heads = heads or suitable
        if len(heads) != len(channels) or any(channels[i] % heads[i] for i in stages):
            raise UserError(
                f"method.regularizer.heads={[*heads]} does not suit stages of {', '.join(map(str, channels))} "
                f"channels: give each a number that divides them, such as 'method.regularizer.heads={suitable}'."
            )
        self.stages = nn.ModuleDict({str(i): Stage(encoder_channels, channels[i], heads[i]) for i in sorted(stages)})
        self._statistics = nullcontext if own_statistics else still_statistics

    def enhance(self, features: Sequence[Tensor], foundation: Tensor) -> list[Tensor]:
        """Map features F_i (B, C_i, h_i, w_i) and the foundation map (B, D, h, w) to regularised features R_i.

        Of eight maps, of detail and context, those of the context, which are the last, attend to it.
        """
        tokens = foundation.flatten(2).transpose(1, 2)
        enhanced, first = list(features), len(features) - self.levels
        for i, stage in self.stages.items():
            enhanced[first + int(i)] = stage(features[first + int(i)], tokens)
        return enhanced

    def forward(self, view: View, features: list[Tensor], student: Segmenter) -> Tensor:
        enhanced = self.enhance(features, self.encoder(view.images))
        with self._statistics(student):
            logits = student.decode(enhanced, view.labels.shape[-2:], view.window)
        return segmentation_loss(logits, view.labels, view.trust)


def default_heads(channels: int) -> int:
    """Return the most heads of at least 64 channels each that divide the channels evenly; at least one."""
    return next(heads for heads in range(max(1, channels // 64), 0, -1) if channels % heads == 0)
