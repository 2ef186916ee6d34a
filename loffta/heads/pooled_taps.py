"""Head2Toe's features: every tap pooled to about one size and scaled to length 1, all side by side.

In:  patch tokens and class tokens of taps of any kind.   Out: one vector per image, and which columns are whose.
Called by `head2toe` and `smp`; has no weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loffta.heads.recipe import check_features
from loffta.heads.sources import TapSource, pair_taps
from loffta.pooling import pool_map, pool_sequence
from loffta.taps import is_map
from loffta.tokens import FeatureSpec


class PooledTaps:
    """The taps of a head, each as one vector.

    Args:
        head: for errors.
        specs: features of the kinds "grid" and "prefix"; registers are left out.
        target: values that a tap is pooled to, about: never fewer than its D.
    """

    def __init__(self, head: str, specs: Sequence[FeatureSpec], target: int) -> None:
        self._head, self._fed, self._target = head, tuple(specs), target
        self._sources = pair_taps(head, specs)
        # one spec per tap, as `relevance` and reports want them; K is the sum of their sizes
        self.specs = tuple(
            FeatureSpec(s.backbone, (s.tap,), "mean", (self._count_columns(s),), s.image_px) for s in self._sources
        )
        self.sizes = [spec.dim for spec in self.specs]

    def pool(self, features: Sequence[Tensor]) -> Float[Tensor, "B K"]:
        """Every tap's vector of length 1, side by side; a tap that is all zeros stays so.

        Args:
            features: per spec [B, L, H, W, D] or [B, L, P, D].

        Returns:
            float32.
        """
        check_features(self._head, self._fed, features)
        return torch.cat([F.normalize(self._pool(source, features), dim=1) for source in self._sources], dim=1)

    def scale(self, pooled: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The same columns with every tap's part scaled to length 1 again."""
        return torch.cat([F.normalize(part, dim=1) for part in torch.split(pooled, self.sizes, dim=1)], dim=1)

    def _pool(self, source: TapSource, features: Sequence[Tensor]) -> Float[Tensor, "B K"]:
        cells = source.read_grid(features)
        if is_map(source.tap) and not source.has_class_token:
            return pool_map(cells, self._target)
        tokens = cells.flatten(1, 2)
        if source.has_class_token:  # pooled with the patches, before which it stands
            tokens = torch.cat([source.read_class_token(features), tokens], dim=1)
        return pool_sequence(tokens, self._target)

    def _count_columns(self, source: TapSource) -> int:
        """Asks the pooling itself, on a batch of one image without memory."""
        features = [torch.empty(1, len(spec.taps), *spec.shape, device="meta") for spec in self._fed]
        return self._pool(source, features).shape[1]
