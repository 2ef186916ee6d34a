"""Arrays that feeds are tested with, what a feed should give of them, and what it read."""

import numpy as np
import torch

from loffta.feed.order import Window

N = 43  # units of 8, the last one of 3
ROWS = np.array([40, 3, 4, 5, 21, 9, 42, 0, 17, 30, 12, 11, 8])
SHAPES = {"s.0": (4, 4, 3), "s.1": (2, 3, 5), "s.2": (2, 3, 5), "s.3": (2, 3, 5)}


def arrays(dtype="float16"):
    rng = np.random.default_rng(1)
    return {tap: rng.normal(size=(N, *shape)).astype(dtype) for tap, shape in SHAPES.items()}


def copies(batches):
    return [(b.rows.clone(), [t.clone() for t in b.features]) for b in batches]


WINDOW_OF_2 = Window(4, 3)  # of two batches of 2


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) and all(torch.equal(x, y) for x, y in zip(s, t, strict=True))
        for (a, s), (b, t) in zip(one, other, strict=True)
    )
