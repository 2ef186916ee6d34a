"""k nearest neighbours by cosine, as DINO evaluates with them (Caron et al., ICCV 2021; `eval_knn.py`).

In:  test features, held; training features, streamed.   Out: each test image's neighbours, and the votes of their
classes for any number of label sets, k and temperatures.

    sets = Neighbours(test, k=200)
    for features in train: sets.add(features)
    votes(sets.nearest(20), labels, n_classes)

Where the test images are many and the training images few, the test images are cut into blocks and each is held in
turn, the training images streamed from memory.

Order is total, so nothing depends on blocks or device but the last bits of float32: similarities are counted in steps
of 2^-24; of equals the training image that came first is the nearer; of classes with equal votes the first wins. A
vote is exp(similarity / temperature), DINO's; DINOv2's softmax over the k neighbours is the same but for a factor.
Votes are added up as whole numbers, in steps of 2^-44 of the nearest one's, so the order of adding is of no matter.
Multi-label and regression forms are left out, for neither source has them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loffta.errors import UsageError
from loffta.probes.maps import Features, doubles

KS = (10, 20, 100, 200)  # DINO's; "20 is usually working the best"
TEMPERATURE = 0.07  # DINO's

_STEPS = 2.0**24  # of similarity; a float64 has room for them
_ROWS = 2.0**28  # and for so many training images
_VOTE_STEPS = 2.0**44  # 256 votes of the nearest fit an int64 by far
_HELD_ROWS = 4096  # training rows that are compared at a time
_CELLS = 2 << 20  # similarities at a time: 8 MB, and twice that as keys


class Nearest(NamedTuple):
    """Of Q test images, the nearest first. A test image that may use fewer than k has row -1 and similarity -inf."""

    similarity: Float[Tensor, "Q k"]
    row: Int[Tensor, "Q k"]  # training images, numbered as they came


class Neighbours:
    """The nearest training images of Q test images, found while the training images pass by."""

    def __init__(self, queries: Float[Tensor, "Q K"], k: int, groups: Int[Tensor, " Q"] | None = None) -> None:
        """Holds the test images, in float32.

        Args:
            groups: with those of `add`: an image of the same group is no neighbour. Folds are groups, so that one pass
                gives all folds; rows are groups where every image is sought among all the others.
        """
        self._steps = F.normalize(queries.float(), dim=1) * _STEPS  # a power of two: no digit changes
        self._groups, self.k = groups, k
        self._keys = doubles(self._steps[:, :0])
        self._waiting: list[tuple[Tensor, Tensor | None]] = []
        self._nearest: Nearest | None = None  # what the keys say, for every k that is asked for
        self.n_rows = self._n_compared = 0

    def add(self, features: Features, groups: Int[Tensor, " B"] | None = None) -> None:
        """Training images; compared when enough have come for a multiplication to be worth it."""
        self._waiting.append((F.normalize(features.float(), dim=1), groups))
        self.n_rows += len(features)
        if self.n_rows - self._n_compared >= _HELD_ROWS:
            self._compare()

    def nearest(self, k: int) -> Nearest:
        """The k nearest of all that were added.

        Raises:
            UsageError: there are fewer than k training images, or k is more than was asked for at first.
        """
        if k > min(self.n_rows, self.k):
            raise UsageError(
                f"{k} neighbours of {self.n_rows} training images",
                where=f"k = {k}",
                remedy=f"choose k of at most {min(self.n_rows, self.k)}",
            )
        if self._waiting:
            self._compare()
        if self._nearest is None:
            self._nearest = _decode(self._keys)
        return Nearest(*(part[:, :k] for part in self._nearest))

    def _compare(self) -> None:
        """Merges what waits into the nearest so far."""
        features = torch.cat([features for features, _ in self._waiting])
        groups = None if self._groups is None else torch.cat([g for _, g in self._waiting if g is not None])
        self._waiting = []
        rows = torch.arange(self._n_compared, self.n_rows, device=self._keys.device)
        found, n_queries = [], max(1, _CELLS // len(features))
        for first in range(0, len(self._steps), n_queries):
            part = slice(first, first + n_queries)
            keys = doubles((self._steps[part] @ features.T).round_()).mul_(_ROWS).sub_(rows)
            if groups is not None and self._groups is not None:
                keys.masked_fill_((self._groups[part, None] == groups).to(keys.device), -torch.inf)
            keys = torch.cat([self._keys[part], keys], dim=1) if self._keys.shape[1] else keys
            found.append(_largest(keys, min(self.k, keys.shape[1])))
        self._keys, self._n_compared, self._nearest = torch.cat(found), self.n_rows, None


def _decode(keys: Float[Tensor, "Q k"]) -> Nearest:
    """Similarities and rows of keys."""
    steps = (keys / _ROWS).ceil_()
    row = (steps * _ROWS).sub_(keys).masked_fill_(keys.isinf(), -1)
    return Nearest(steps.div_(_STEPS).float(), row.long())


def _largest(keys: Float[Tensor, "Q n"], k: int) -> Float[Tensor, "Q k"]:
    """The largest of each row, falling; `keys` lose their order.

    NumPy partitions with the processor's vector instructions: of 200 among 1,000 in half of topk's time.
    """
    if keys.device.type != "cpu":
        return keys.topk(k, dim=1).values
    negated = keys.neg_().numpy()
    if k < negated.shape[1]:
        negated.partition(k - 1, axis=1)
    nearest = negated[:, :k].copy()
    nearest.sort(axis=1)
    return torch.from_numpy(nearest).neg_()


def votes(
    nearest: Nearest, labels: Int[Tensor, " n"], n_classes: int, temperature: float | None = TEMPERATURE
) -> Float[Tensor, "Q C"]:
    """The share of the votes that each class has; 0 for all where an image has no neighbour.

    Args:
        labels: of all training images, in the order in which they came.
        temperature: None: every neighbour has one vote.
    """
    there = nearest.row >= 0
    if temperature is None:
        weights = there.double()
    else:
        similarity = nearest.similarity.double()
        weights = (similarity - similarity[:, :1]).div_(temperature).exp_().masked_fill_(~there, 0.0)
    counted = weights.mul_(_VOTE_STEPS).round_().long()
    classes = labels.to(nearest.row.device).index_select(0, nearest.row.clamp(min=0).flatten()).view(counted.shape)
    sums = counted.new_zeros((len(counted), n_classes)).scatter_add_(1, classes, counted)
    return sums.double() / sums.sum(dim=1, keepdim=True).clamp(min=1)
