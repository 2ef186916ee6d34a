"""Images that are there more than once, and images that are far from all others.

In: vectors, and hashes of the images' bytes.   Out: every image's nearest others; groups of copies; distances.

Two thresholds come from the data. *Near* is what cleanlab's Datalab calls so: nearer than a fraction, 0.13, of the
median distance to the nearest image. *Far* is Tukey's fence (Exploratory Data Analysis, 1977), 1.5 interquartile
ranges above the upper quartile, of the logarithm of the mean distance to the 10 nearest (Angiulli and Pizzuti, PKDD
2002, who rank by its sum). A distance is 1 - cosine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.auditing.vectors import Vectors
from loffta.probes.knn import Nearest, Neighbours

NEAR = 0.13  # Datalab's
N_FAR = 10  # neighbours; Datalab's, too
_FENCE = 1.5  # Tukey's
_SAME = 1e-6  # what rounding to float16 makes of one image: not counted in the median
_HELD_BYTES = 512 << 20  # of images that are compared with all others in one pass


class Copies(NamedTuple):
    """Who is a copy of whom; images by their places."""

    threshold: float  # the similarity from which two images are copies by their features
    first: NDArray[np.int64]  # [n] the first image of its group: itself where it is alone
    similarity: NDArray[np.float64]  # [n] at place `first`: the lowest similarity by which the group holds together


def find_nearest(vectors: Vectors, k: int) -> Nearest:
    """The k nearest others of every image, on the CPU: [n, k], places and cosines.

    n^2 K multiplications. Images are held in blocks of 512 MB; each block takes two passes over all.
    """
    n_held = max(1, _HELD_BYTES // (4 * vectors.n_columns))
    found = []
    for first in range(0, len(vectors), n_held):
        stop = min(first + n_held, len(vectors))
        itself = torch.arange(first, stop, device=vectors.device)  # is no neighbour
        sets = Neighbours(vectors.block(first, stop), k, groups=itself)
        for here, batch in vectors.batches():
            sets.add(batch, torch.arange(here.start, here.stop, device=vectors.device))
        found.append(sets.nearest(k))
    return Nearest(*(torch.cat(part).cpu() for part in zip(*found, strict=True)))


def find_copies(nearest: Nearest, hashes: Sequence[str], near: float = NEAR) -> Copies:
    """Groups of images that are linked by equal bytes or near features, directly or through others.

    Args:
        hashes: of every image's bytes; empty where it is not known.
        near: a fraction of the median distance.
    """
    similarity, row = nearest.similarity.double().numpy(), nearest.row.numpy()
    bound = near_distance(1 - similarity[:, 0], near)
    places, ranks = np.nonzero(1 - similarity <= bound)
    links = [*_same_bytes(hashes), *zip(places.tolist(), row[places, ranks].tolist(), strict=True)]
    first = _grouped(len(similarity), links)
    lowest = np.ones(len(similarity))
    np.minimum.at(lowest, first[places], similarity[places, ranks].clip(max=1.0))
    return Copies(1 - bound, first, lowest)


def near_distance(distances: NDArray[np.float64], near: float) -> float:
    """The greatest distance of copies, from the distance of every image to its nearest."""
    apart = distances[distances > _SAME]
    return max(_SAME, near * float(np.median(apart))) if len(apart) else _SAME


def mean_distances(nearest: Nearest) -> NDArray[np.float64]:
    """[n] from every image to its 10 nearest others, on average."""
    found: NDArray[np.float64] = 1 - nearest.similarity[:, :N_FAR].double().mean(dim=1).numpy()
    return found


def far_distance(distances: NDArray[np.float64]) -> float:
    """The distance beyond which an image is an outlier."""
    low, high = np.quantile(np.log(distances.clip(min=_SAME)), [0.25, 0.75])
    return float(np.exp(high + _FENCE * (high - low)))


def _same_bytes(hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Each image with the first that has its bytes."""
    first: dict[str, int] = {}
    pairs = [(first.setdefault(found, place), place) for place, found in enumerate(hashes) if found]
    return [(a, b) for a, b in pairs if a != b]


def _grouped(n: int, links: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """[n] the lowest place that each can be reached from."""
    parent = list(range(n))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(place) for place in range(n)], dtype=np.int64)
