"""Gathers what trained heads tell of themselves beside their scores: attention over layers, features that are kept.

In:  the heads of all seeds, and batches as `Head.prepare` gives them.   Out: the parts of results.json that hold it.
Called by `evaluate` and `online`, in the same pass over the images that gives the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from loffta.evaluation.clock import Clock, timing
from loffta.evaluation.measure import summary
from loffta.heads import Head
from loffta.heads.relevance import raw_scores, scores


class Findings:
    """Sums up over batches, seed by seed; `entries`, or `together`, ends it."""

    def __init__(self, heads: Sequence[Head]) -> None:
        self._heads = heads
        self._sums: list[torch.Tensor | None] = [None] * len(heads)
        self._n_images = 0
        self.clock = Clock()

    def add(self, prepared: Any, n_images: int) -> None:
        """Takes a batch that lies on the heads' device; call it where no gradients are kept."""
        for i, head in enumerate(self._heads):
            observed = head.observe(prepared)
            if observed is not None:
                before = self._sums[i]
                self._sums[i] = observed * n_images if before is None else before + observed * n_images
        self._n_images += n_images

    def entries(self) -> dict[str, Any]:
        """By name what all heads found: entries with mean, std and per_seed in place of each head's `value`."""
        return together([self])

    def of_heads(self) -> list[dict[str, list[dict[str, Any]]]]:
        """What each head found."""
        means = [None if total is None else total / self._n_images for total in self._sums]
        return [head.findings(mean) for head, mean in zip(self._heads, means, strict=True)]


def together(parts: Sequence[Findings]) -> dict[str, Any]:
    """The entries of all heads, whose images may be others for some of them; and what a head takes for an image."""
    found = [of_head for part in parts for of_head in part.of_heads()]
    entries = {name: [_over_seeds(same) for same in zip(*(f[name] for f in found), strict=True)] for name in found[0]}
    return entries | timing([part.clock for part in parts])


def relevance(heads: Sequence[Head]) -> dict[str, list[dict[str, Any]]]:
    """Scores per backbone and per tap of a penalised ComBo, mean over seeds, the most relevant backbone first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for level in ("backbones", "taps"):
        groups = heads[0].backbone_groups if level == "backbones" else heads[0].tap_groups  # type: ignore[attr-defined]
        weights = [head.project.weight.detach() for head in heads]  # type: ignore[attr-defined]
        sized = torch.stack([scores(weight, groups) for weight in weights])
        raw = torch.stack([raw_scores(weight, groups) for weight in weights]).mean(dim=0)
        found[level] = [
            {
                "backbone": group.backbone,
                "tap": group.tap,
                "score": float(sized[:, i].mean()),
                "per_seed": sized[:, i].tolist(),
                "raw_score": float(raw[i]),
                "inputs": group.n_columns,
            }
            for i, group in enumerate(groups)
        ]
    found["backbones"].sort(key=lambda entry: -entry["score"])
    return found


def _over_seeds(same: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = {key: value for key, value in same[0].items() if key != "value"}
    return named | summary([entry["value"] for entry in same])
