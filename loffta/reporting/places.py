"""Which place each run of a report may have, among those that were tested on the same images.

In: runs and their Comparisons.   Out: Places by run, for the tables and the page; RankedTogether for programs. A run
whose predictions cannot be recounted, or that nobody can be compared with, has no place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import rank
from loffta.reporting.tables import LoadedRun
from loffta.tasks.ranks import rank_runs

HOW_RANKED = (
    "A rank is an interval of places; all of them hold together in 95 of 100 such tables, over images, paired, and "
    "over seeds. Runs on other images are ranked apart."
)
TIED = "*"  # behind a rank on the terminal


@dataclass(frozen=True)
class Place:
    """The places that one run may have, 1 the best."""

    low: int
    high: int
    tied_with_best: bool

    def __str__(self) -> str:
        """'1' or '2-4', with an en dash."""
        return f"{self.low}" if self.low == self.high else f"{self.low}\N{EN DASH}{self.high}"


Places: TypeAlias = Mapping[str, Place]  # by the name of the run


@dataclass(frozen=True)
class RankedRun:
    """A run among others."""

    run: str
    rank: tuple[int, int]  # the best place it may have, and the worst
    tied_with_best: bool


@dataclass(frozen=True)
class RankedTogether:
    """Runs that were tested on the same images, the best score first."""

    metric: str
    n_images: int
    runs: list[RankedRun]


def find_places(comparisons: Comparisons) -> dict[str, Place]:
    """Of every run that can be compared with another."""
    found: dict[str, Place] = {}
    for group in comparisons.together():
        ranks = rank_runs([comparisons.scored(run) for run in group])
        for run, low, high, tied in zip(group, ranks.low, ranks.high, ranks.tied_with_best, strict=True):
            found[run.row.name] = Place(int(low), int(high), bool(tied))
    return found


def ranked_together(comparisons: Comparisons) -> list[RankedTogether]:
    """The same by groups, for programs."""
    places = find_places(comparisons)
    return [
        RankedTogether(
            group[0].row.headline,
            group[0].row.n_images,
            [_ranked(run, places[run.row.name]) for run in sorted(group, key=rank)],
        )
        for group in comparisons.together()
    ]


def _ranked(run: LoadedRun, place: Place) -> RankedRun:
    return RankedRun(run.row.name, (place.low, place.high), place.tied_with_best)
