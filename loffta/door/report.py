"""`loffta.report`: one self-contained HTML page about one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loffta.door.options import PathLike, many
from loffta.machine.borrowed import borrowed
from loffta.machine.progress import say
from loffta.reporting import (
    Compared,
    Comparisons,
    LoadedRun,
    OnFront,
    RankedTogether,
    Worth,
    compare_baseline,
    compare_best,
    find_fronts,
    find_places,
    find_run,
    format_baseline,
    format_comparison,
    format_table,
    format_worth,
    ranked_together,
    read_good_runs,
    worth_of_backbones,
    write_report,
)


@dataclass(frozen=True)
class Written:
    """A page, and what it says; `str` of it is the table that the command prints."""

    report: Path
    runs: int
    left_out: list[Path]  # runs that have no results yet, or cannot be read
    ranks: list[RankedTogether]  # intervals of places, of runs that were tested on the same images
    comparisons: list[Compared]  # the best of each metric less the others
    gains: list[Compared]  # the others less `baseline`, where one was named
    worth: dict[str, list[Worth]]  # of every backbone, by name of the run
    fronts: list[OnFront]  # the runs that no other beats in both quality and cost
    found: list[LoadedRun] = field(repr=False, compare=False)
    compared: Comparisons = field(repr=False, compare=False)
    baseline: LoadedRun | None = field(default=None, repr=False, compare=False)

    def text(self, width: int = 120) -> str:
        """The tables, as wide as `width`."""
        tables = (
            format_table([run.row for run in self.found], width, find_places(self.compared)),
            format_baseline(self.found, self.compared, self.baseline, width) if self.baseline else "",
            format_comparison(self.found, self.compared, width),
            format_worth(self.found, self.compared, width),
        )
        grown = [f"{run.row.name}: {run.grown}" for run in self.found if run.grown]
        return "\n".join(["\n\n".join(filter(None, tables)).rstrip("\n"), *grown])

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "report": str(self.report),
            "runs": self.runs,
            "left_out": [str(root) for root in self.left_out],
            "ranks": [asdict(group) for group in self.ranks],
            "comparisons": [one.as_json() for one in self.comparisons],
            "gains": [one.as_json() for one in self.gains],
            "worth": {name: [asdict(worth) for worth in found] for name, found in self.worth.items()},
            "fronts": [asdict(one) for one in self.fronts],
        }

    def __str__(self) -> str:
        return self.text()


def report(
    runs: PathLike | Sequence[PathLike],
    *,
    out: PathLike = "report.html",
    cache: PathLike | Sequence[PathLike] = (),
    baseline: PathLike | None = None,
    progress: bool = True,
) -> Written:
    """Writes one self-contained HTML page about `runs`.

    >>> written = loffta.report("runs/linear", out="report.html")
    >>> written.runs, written.left_out, written.report.exists()
    (1, [], True)

    Args:
        runs: the folder of a run, or several.
        cache: where a cache is that was moved, or several; it is known by its images.
        baseline: one of the runs, by its folder or by its name in the table: what the others have gained over it.
        progress: tell on stderr which runs are left out.
    Returns:
        What the page says: differences as fractions with their intervals, bytes and multiply-accumulates of an image.
    Raises:
        UsageError: no runs at all, or a baseline that is not among them.
        LofftaError: none of them can be read.
    """
    with borrowed(progress=progress):
        found, left_out = read_good_runs([Path(run) for run in many(runs)], elsewhere=[Path(c) for c in many(cache)])
        for bad in left_out:
            say(f"left out: {bad.why}")
        reference = None if baseline is None else find_run(found, Path(baseline))
        comparisons = Comparisons(found)
        write_report(found, Path(out), comparisons, baseline=reference)
        return Written(
            Path(out),
            len(found),
            [bad.root for bad in left_out],
            ranked_together(comparisons),
            compare_best(found, comparisons),
            compare_baseline(found, comparisons, reference) if reference else [],
            worth_of_backbones(found, comparisons),
            find_fronts(found, comparisons),
            found,
            comparisons,
            reference,
        )
