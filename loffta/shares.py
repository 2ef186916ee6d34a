"""Batches that several processes share: which images of one are whose, and draws that are those of one process.

In: a batch's size, which of how many processes this is.   Out: a Share; random numbers for its images. Heads and tasks
draw what is random by `of_share`, so that a training by several processes drops and jitters what one process would.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Share(NamedTuple):
    """The images of a batch that this process has."""

    first: int  # their place in the batch
    n_images: int
    of: int  # images of the whole batch

    @property
    def is_all(self) -> bool:
        """Whether it is the whole batch, which every process then has."""
        return self.n_images == self.of


def share_of(n_images: int, index: int, count: int) -> Share:
    """Neighbours in the batch, as many for each process as can be; all of it where there is not one for each."""
    if n_images < count:
        return Share(0, n_images, n_images)
    first = n_images * index // count
    return Share(first, n_images * (index + 1) // count - first, n_images)


class SharedGenerator(torch.Generator):
    """A generator that draws for whole batches, of which this process has a share."""

    share: Share | None = None

    def of(self, seed: int, share: Share | None = None) -> SharedGenerator:
        """Itself, seeded."""
        self.manual_seed(seed)
        self.share = share
        return self


def of_share(draw: Callable[[int], Tensor], n_images: int, rng: torch.Generator) -> Tensor:
    """Random numbers for the images that this process has, [n_images, ...].

    Args:
        draw: gives those of so many images, from `rng`.
    """
    share = rng.share if isinstance(rng, SharedGenerator) else None
    if share is None or share.is_all:
        return draw(n_images)
    assert n_images == share.n_images, f"{n_images} images, a share of {share.n_images}"
    return draw(share.of)[share.first : share.first + n_images]
