"""Pictures and their features, moved by hand."""

import torch

from loffta.augment import apply
from loffta.tokens import FeatureSpec

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spec(kind="grid", shape=(8, 8, 3), taps=("a",)):
    return FeatureSpec("net", taps, kind, shape, 32)


def move(grid, parameters):
    return apply([grid], [spec(shape=tuple(grid.shape[2:]), taps=tuple("ab"[: grid.shape[1]]))], parameters)[0]
