"""Units: fixed ranges of rows, the grain of resume, of parallel work and of loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Which units one of several processes owns: those with unit % count == index; no locks are needed."""

    index: int = 0
    count: int = 1

    def owns(self, unit: int) -> bool:
        """Whether this process writes `unit`."""
        return unit % self.count == self.index


def count_units(n_rows: int, unit_images: int) -> int:
    """Units that cover `n_rows`; the last may be part-filled."""
    return -(-n_rows // unit_images)


def rows_of(unit: int, n_rows: int, unit_images: int) -> range:
    """The rows of `unit` in a set of `n_rows` images."""
    return range(unit * unit_images, min((unit + 1) * unit_images, n_rows))
