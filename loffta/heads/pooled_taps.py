"""Head2Toe's features: every tap pooled to about one size and scaled to length 1, all side by side.

In:  patch tokens and class tokens of taps of any kind.   Out: one vector per image, and which columns are whose.
Called by `head2toe` and `smp`; has no weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loffta.heads.recipe import check_features
from loffta.heads.sources import TapSource, pair_taps
from loffta.pooling import pool_map, pool_sequence
from loffta.taps import is_map
from loffta.tokens import FeatureSpec


class _Part(NamedTuple):
    """One of the tensors that are pooled: a tap, mostly."""

    name: str
    source: TapSource
    read_as: Literal["sequence", "map", "class token"]


class PooledTaps:
    """The taps of a head, each as one vector.

    Args:
        head: for errors.
        specs: features of the kinds "grid" and "prefix"; registers are left out.
        target: values that a tap is pooled to, about: never fewer than its D.
        as_in_code: with the tensors that Head2Toe's code has besides, see `_parts`.
    """

    def __init__(self, head: str, specs: Sequence[FeatureSpec], target: int, *, as_in_code: bool = False) -> None:
        self._head, self._fed, self._target = head, tuple(specs), target
        self._tensors = tuple(_parts(pair_taps(head, specs), as_in_code))
        # one spec per tensor, as `relevance` and reports want them; K is the sum of their sizes
        self.specs = tuple(
            FeatureSpec(part.source.backbone, (part.name,), "mean", (self._count_columns(part),), part.source.image_px)
            for part in self._tensors
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
        return torch.cat([F.normalize(self._pool(part, features), dim=1) for part in self._tensors], dim=1)

    def scale(self, pooled: Float[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """The same columns with every tap's part scaled to length 1 again."""
        return torch.cat([F.normalize(part, dim=1) for part in torch.split(pooled, self.sizes, dim=1)], dim=1)

    def _pool(self, part: _Part, features: Sequence[Tensor]) -> Float[Tensor, "B K"]:
        source = part.source
        if part.read_as == "class token":
            return source.read_class_token(features)[:, 0].float()
        if part.read_as == "map":
            return pool_map(source.read_grid(features), self._target)
        tokens = source.read_grid(features).flatten(1, 2)
        if source.has_class_token:  # pooled with the patches, before which it stands
            tokens = torch.cat([source.read_class_token(features), tokens], dim=1)
        return pool_sequence(tokens, self._target)

    def _count_columns(self, part: _Part) -> int:
        """Asks the pooling itself, on a batch of one image without memory."""
        features = [torch.empty(1, len(spec.taps), *spec.shape, device="meta") for spec in self._fed]
        return self._pool(part, features).shape[1]


def _parts(sources: Sequence[TapSource], as_in_code: bool) -> Iterator[_Part]:
    """Every tap, as a map or as a sequence of tokens.

    The code (google-research/head2toe) has 53 tensors of a ViT-B. Beside the taps there is the class token behind the
    final norm, not pooled; and the patches' embeddings are a sequence, which it has twice, under two names.
    """
    transformers = {source.backbone for source in sources if source.has_class_token}
    for source in sources:
        if not is_map(source.tap) or source.has_class_token:
            yield _Part(source.tap, source, "sequence")
        elif as_in_code and source.backbone in transformers:
            yield _Part(source.tap, source, "sequence")
            yield _Part(f"{source.tap}, again", source, "sequence")
        else:
            yield _Part(source.tap, source, "map")
        if as_in_code and source.tap == "norm" and source.has_class_token:
            yield _Part("pre_logits", source, "class token")
