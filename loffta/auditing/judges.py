"""What classifiers say of images that they were not trained on: the mean of two unlike ones.

In: vectors, labels, folds and groups of copies.   Out: chances [n, C] for confident learning.

    neighbours   the votes of the 20 nearest others, weighted as DINO weighs them; copies of an image have none. They
                 are known already, so no image is read
    logreg       logistic regression, standardised, trained on the other folds, C chosen by the loss out of fold; few
                 passes for all folds and all C together

On planted errors the mean is never behind the better of the two by more than chance, and which is better depends on
the features (docs/audit.md has the figures).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from loffta.auditing.vectors import Vectors
from loffta.probes.knn import Nearest, votes
from loffta.probes.logreg import LogisticPath
from loffta.probes.maps import LinearMap
from loffta.probes.moments import Moments

N_VOTES = 20  # DINO's; "20 is usually working the best"
CS = tuple(10.0**power for power in range(-4, 2))  # ascending, until the loss rises
_GAP = 1e-3  # of the objective: chances that are nearer the minimum suspect the same labels, in a third of the passes
UNUSED = -1  # the fold of an image that is neither trained on nor judged


def judge(
    vectors: Vectors,
    nearest: Nearest,
    labels: NDArray[np.int64],
    folds: NDArray[np.int64],
    first_copy: NDArray[np.int64],
    n_classes: int,
) -> NDArray[np.float32]:
    """[n, C] the mean of both judges; logreg's alone where an image has no neighbour with a vote.

    Args:
        labels: [n] from 0; any where the fold is UNUSED, and what such an image gets means nothing.
        folds: [n] of every image, copies in the same.
        first_copy: [n] as in Copies.
    """
    near = by_neighbours(nearest, np.where(folds != UNUSED, labels, -1), first_copy, n_classes)
    fitted = by_logreg(vectors, labels, folds, n_classes)
    return np.where(near.any(axis=1, keepdims=True), (near + fitted) / 2, fitted)


def by_neighbours(
    nearest: Nearest, labels: NDArray[np.int64], first_copy: NDArray[np.int64], n_classes: int
) -> NDArray[np.float32]:
    """Shares of the votes; neighbours without label, and copies, do not vote.

    Args:
        labels: [n], -1 for none.
    """
    known, first = torch.tensor(labels), torch.tensor(first_copy)
    row = nearest.row[:, :N_VOTES]
    mute = (known[row] < 0) | (first[row] == first[:, None])
    voting = Nearest(nearest.similarity[:, :N_VOTES], row.masked_fill(mute, -1))
    shares: NDArray[np.float32] = votes(voting, known.clamp(min=0), n_classes).float().numpy()
    return shares


def by_logreg(
    vectors: Vectors, labels: NDArray[np.int64], folds: NDArray[np.int64], n_classes: int
) -> NDArray[np.float32]:
    """Softmax of the maps that the other folds gave; of C after C until the loss over all folds rises."""
    n_folds = int(folds.max()) + 1
    on = torch.device("cpu") if vectors.device.type == "mps" else vectors.device
    targets, of_fold = torch.tensor(labels).clamp(min=0), torch.tensor(folds)
    paths = [
        LogisticPath(moments, "softmax", n_classes, cs=CS, standardise=True, gap=_GAP)
        for moments in _moments_of_others(vectors, of_fold, n_folds)
    ]
    best, lowest = torch.zeros((len(vectors), n_classes)), float("inf")
    for place in range(len(CS)):
        while any(len(path.maps) <= place for path in paths):
            for here, batch in vectors.batches():
                goal = F.one_hot(targets[here], n_classes).to(on)
                for fold, path in enumerate(paths):
                    learnt = ((of_fold[here] != fold) & (of_fold[here] != UNUSED)).to(on)
                    path.add(batch.to(on)[learnt], goal[learnt].double())
            for path in paths:
                path.step()
        logits = _out_of_fold(vectors, [path.maps[place] for path in paths], of_fold, n_classes)
        used = of_fold != UNUSED
        loss = float(F.cross_entropy(logits[used], targets[used]))
        if loss >= lowest:
            break
        best, lowest = logits, loss
    chances: NDArray[np.float32] = best.softmax(dim=1).numpy()
    return chances


def _out_of_fold(vectors: Vectors, maps: Sequence[LinearMap], of_fold: Tensor, n_classes: int) -> Tensor:
    """Logits [n, C] of every image by the map of its fold, which has not learnt it."""
    maps = [LinearMap(*(part.to(vectors.device, torch.float32) for part in fitted)) for fitted in maps]
    logits = torch.zeros((len(vectors), n_classes))
    for here, batch in vectors.batches():
        for fold, fitted in enumerate(maps):
            asked = of_fold[here] == fold
            logits[here][asked] = fitted(batch[asked.to(batch.device)]).cpu()
    return logits


def _moments_of_others(vectors: Vectors, of_fold: Tensor, n_folds: int) -> list[Moments]:
    """For every fold the moments of the others' images."""
    parts = [Moments.empty(vectors.n_columns) for _ in range(n_folds)]
    for here, batch in vectors.batches():
        for fold, part in enumerate(parts):
            part.add(batch[(of_fold[here] == fold).to(batch.device)])
    others = []
    for fold in range(n_folds):
        whole = Moments.empty(vectors.n_columns)
        for other, part in enumerate(parts):
            whole = whole.plus(part) if other != fold else whole
        others.append(whole)
    return others
