"""Units: fixed ranges of rows, the grain of resume, of parallel work and of loss."""

from __future__ import annotations


def count_units(n_rows: int, unit_images: int) -> int:
    """Units that cover `n_rows`; the last may be part-filled."""
    return -(-n_rows // unit_images)


def rows_of(unit: int, n_rows: int, unit_images: int) -> range:
    """The rows of `unit` in a set of `n_rows` images."""
    return range(unit * unit_images, min((unit + 1) * unit_images, n_rows))
