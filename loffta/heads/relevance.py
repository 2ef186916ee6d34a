"""Which backbones and taps a ComBo head relies on: the group penalty and its scores (arXiv 2512.01405).

A group is a set of columns of the head's affine map. `combo` and `smp` add `penalty` to the loss, times their weight;
`scores` of the trained weight rank the groups. The bias belongs to no group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loffta.tokens import FeatureSpec

_EPS = 1e-8  # under the root, as in the official code: keeps the gradient of an all-zero group finite


@dataclass(frozen=True)
class ColumnGroup:
    """Columns of the affine map that belong to one backbone, or to one tap of it."""

    backbone: str
    tap: str | None  # None: all taps of the backbone
    ranges: tuple[tuple[int, int], ...]  # start, stop; several where its taps differ in shape

    @property
    def n_columns(self) -> int:
        """Inputs p of the group."""
        return sum(stop - start for start, stop in self.ranges)


def backbone_groups(specs: Sequence[FeatureSpec]) -> tuple[ColumnGroup, ...]:
    """One group per backbone label, with all its taps; in the order of first appearance."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for backbone, _, columns in _walk_columns(specs):
        ranges.setdefault(backbone, []).append(columns)
    return tuple(ColumnGroup(backbone, None, tuple(found)) for backbone, found in ranges.items())


def tap_groups(specs: Sequence[FeatureSpec]) -> tuple[ColumnGroup, ...]:
    """One group per backbone label and tap."""
    ranges: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for backbone, tap, columns in _walk_columns(specs):
        ranges.setdefault((backbone, tap), []).append(columns)
    return tuple(ColumnGroup(backbone, tap, tuple(found)) for (backbone, tap), found in ranges.items())


def raw_scores(weight: Float[Tensor, "M K"], groups: Sequence[ColumnGroup]) -> Float[Tensor, " G"]:
    """The paper's score, sqrt(sum of squared weights + 1e-8) per group.

    `weight` is that of the affine map from K inputs to M channels.
    """
    per_column = weight.square().sum(dim=0)
    sums = [torch.stack([per_column[start:stop].sum() for start, stop in group.ranges]).sum() for group in groups]
    return torch.sqrt(torch.stack(sums) + _EPS)


def penalty(weight: Float[Tensor, "M K"], groups: Sequence[ColumnGroup]) -> Float[Tensor, ""]:
    """Sum of the raw scores, each times its size weight; un-squared norms, so that whole groups can vanish.

    With groups of equal size every size weight is 1 and this is the paper's; other sizes are ours.
    """
    return torch.stack([w * s for w, s in zip(_size_weights(groups), raw_scores(weight, groups), strict=True)]).sum()


def scores(weight: Float[Tensor, "M K"], groups: Sequence[ColumnGroup]) -> Float[Tensor, " G"]:
    """Raw scores over their size weights: comparable between groups of different size."""
    return torch.stack([s / w for w, s in zip(_size_weights(groups), raw_scores(weight, groups), strict=True)])


def _size_weights(groups: Sequence[ColumnGroup]) -> list[float]:
    """sqrt(p / mean p) for groups of p inputs: the group lasso's (Yuan and Lin 2006), scaled to 1 for equal sizes.

    Plain numbers, not a tensor: made anew each step, a tensor would make CUDA wait for its copy.
    """
    mean = sum(group.n_columns for group in groups) / len(groups)
    return [math.sqrt(group.n_columns / mean) for group in groups]


def _walk_columns(specs: Sequence[FeatureSpec]) -> Iterator[tuple[str, str, tuple[int, int]]]:
    """Backbone, tap and columns (start, stop), in the order in which ComBo concatenates: specs, taps, channels."""
    start = 0
    for spec in specs:
        for tap in spec.taps:
            yield spec.backbone, tap, (start, start + spec.dim)
            start += spec.dim
