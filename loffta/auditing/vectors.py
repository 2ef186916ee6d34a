"""One vector per image, of the taps that were chosen, batch after batch.

In: an open cache and names of features.   Out: float32 vectors of length 1 on the device, in the order of the rows.
What fits memory is kept there by the feed and read once; the rest is read anew in every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import sqrt
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature, choose_features
from loffta.errors import LofftaError
from loffta.feed.batches import Feed
from loffta.store.cache import Cache
from loffta.tokens import Kind

Pooling: TypeAlias = Literal["mean", "class"]
_BATCH = 256  # images that are read at a time: their grids may be large
_HANDED = 4096  # and that are handed out: their vectors are not, and small multiplications cost more than they do


def choose_vectors(cache: Cache, choices: Sequence[str], pooling: Pooling) -> list[Feature]:
    """What the vectors are made of; the last tap of every store where nothing else is said.

    Raises:
        UsageError, LofftaError, DamageFound: as `choose_features`; a backbone without class token.
    """
    kind: Kind = "mean" if pooling == "mean" else "prefix"
    chosen = choose_features(cache, choices, [kind], default_taps="last")
    without = [] if pooling == "mean" else [f.spec.backbone for f in chosen if not f.spec.has_class_token]
    if without:
        raise LofftaError(
            f"{without[0]} has no class token",
            where="--pooling class",
            remedy="use --pooling mean, or other --features",
        )
    return chosen


class Vectors:
    """All images' vectors, as often as they are asked for."""

    def __init__(self, features: Sequence[Feature], rows: NDArray[np.int64], device: torch.device) -> None:
        """Opens the arrays.

        Args:
            features: of kind mean, or prefix for the class token.
            rows: of the table of images.
        """
        self._features, self.rows, self.device = tuple(features), rows, device
        self._feed = Feed(features, rows, batch_size=_BATCH, device=device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_columns(self) -> int:
        """Of a vector: the channels of all taps."""
        return sum(len(feature.spec.taps) * feature.spec.dim for feature in self._features)

    def batches(self) -> Iterator[tuple[slice, Float[Tensor, "B K"]]]:
        """Where in `rows` each batch lies, and its vectors; one pass."""
        waiting: list[Tensor] = []
        first = stop = 0
        for batch in self._feed.in_order():
            waiting.append(join(batch.features))
            stop += len(batch.rows)
            if stop - first >= _HANDED or stop == len(self):
                yield slice(first, stop), torch.cat(waiting)
                waiting, first = [], stop

    def block(self, first: int, stop: int) -> Float[Tensor, "Q K"]:
        """Those of neighbouring places, held together; one pass."""
        held = torch.empty((stop - first, self.n_columns), device=self.device)
        for here, vectors in self.batches():
            low, high = max(first, here.start), min(stop, here.stop)
            if low < high:
                held[low - first : high - first] = vectors[low - here.start : high - here.start]
        return held

    def __enter__(self) -> Vectors:
        return self

    def __exit__(self, *_: object) -> None:
        self._feed.close()


def join(parts: Sequence[Tensor]) -> Float[Tensor, "B K"]:
    """Every tap at length 1, side by side, and the whole at length 1 again: a cosine of it is the mean of the taps'.

    Args:
        parts: [B, L, D] of means, or [B, L, P, D] of prefix tokens, of which the first is taken.
    """
    taps = [part[:, :, 0] if part.ndim == 4 else part for part in parts]
    n_taps = sum(tap.shape[1] for tap in taps)
    return torch.cat([F.normalize(tap.float(), dim=2).flatten(1) for tap in taps], dim=1) / sqrt(n_taps)
