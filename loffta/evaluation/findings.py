"""Gathers what trained heads tell of themselves beside their scores: attention over layers, features that are kept.

In:  the heads of all seeds, and batches as `Head.prepare` gives them.   Out: the parts of results.json that hold it.
Called by `evaluate` and `online`, in the same pass over the images that gives the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loffta.evaluation.measure import summary
from loffta.heads import Head


class Findings:
    """Sums up over batches, seed by seed; `entries` ends it."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = heads
        self._sums: list[torch.Tensor | None] = [None] * len(heads)
        self._n_images = 0

    def add(self, prepared: Any, n_images: int) -> None:
        """Takes a batch that lies on the heads' device; call it where no gradients are kept."""
        for i, head in enumerate(self._heads):
            observed = head.observe(prepared)
            if observed is not None:
                before = self._sums[i]
                self._sums[i] = observed * n_images if before is None else before + observed * n_images
        self._n_images += n_images

    def entries(self) -> dict[str, list[dict[str, Any]]]:
        """By name what all heads found: entries with mean, std and per_seed in place of each head's `value`."""
        means = [None if total is None else total / self._n_images for total in self._sums]
        found = [head.findings(mean) for head, mean in zip(self._heads, means, strict=True)]
        return {name: [_over_seeds(same) for same in zip(*(f[name] for f in found), strict=True)] for name in found[0]}


def _over_seeds(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = {key: value for key, value in same[0].items() if key != "value"}
    return named | summary([entry["value"] for entry in same])
