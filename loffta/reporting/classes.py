"""The section about single classes: what is confused with what, or how well each class is found.

In: a loaded run whose results have it.   Out: HTML for `page`; nothing for results of before.
"""

from __future__ import annotations

from typing import Any

from loffta.reporting.markup import figure, table
from loffta.reporting.plots import heat_map
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, escape, percent

_SHOWN = 50  # of more classes with a precision each, only the lowest are listed
_NARROW = 21  # of more classes a heat map is wider than other charts
_SHORT = 17  # characters of a class; with longer ones it is wider, too


def classes_section(run: LoadedRun) -> str:
    for name, section in (("confusion", _matrix), ("confused_pairs", _pairs), ("per_class", _precisions)):
        if run.results.get(name):
            return section(run, run.results[name])
    return ""


def _matrix(run: LoadedRun, found: dict[str, Any]) -> str:
    names = found["classes"]
    chart = heat_map(found["counts"], names, title=f"Confusion matrix, {run.row.name}")
    return (
        f"<h2>Confusions: {escape(run.row.name)}</h2><p>Of all images of a true class (rows), the share that was "
        f"given each class (columns), in percent; {_over_seeds(run)}. Off the diagonal are the mistakes.</p>"
        + figure("True class by predicted class", chart, wide=len(names) > _NARROW or max(map(len, names)) > _SHORT)
    )


def _pairs(run: LoadedRun, found: list[dict[str, Any]]) -> str:
    lines = [
        [
            escape(pair["label"]),
            escape(pair["predicted"]),
            f"{pair['count']:,}",
            f"{percent(pair['count'] / pair['of'])}",
        ]
        for pair in found
    ]
    columns = [("True class", False), ("Predicted class", False), ("Images", True), ("% of the true class", True)]
    return (
        f"<h2>Confusions: {escape(run.row.name)}</h2><p>The most frequent of all classes; {_over_seeds(run)}.</p>"
        + table(columns, lines)
    )


def _precisions(run: LoadedRun, found: list[dict[str, Any]]) -> str:
    ordered = sorted(found, key=lambda row: (row["ap"] is None, row["ap"]))
    lines = [
        [escape(row["class"]), f"{row['images']:,}", NONE if row["ap"] is None else percent(row["ap"])]
        for row in ordered[:_SHOWN]
    ]
    lowest = f"the {_SHOWN} lowest of {len(found):,} classes"
    which = "lowest first" if len(found) <= _SHOWN else lowest
    return (
        f"<h2>Classes: {escape(run.row.name)}</h2><p>Average precision of each class, mean over seeds; {which}.</p>"
        + table([("Class", False), ("Test images", True), ("Average precision %", True)], lines)
    )


def _over_seeds(run: LoadedRun) -> str:
    n = run.row.n_seeds
    return "one seed" if n == 1 else f"counts of {n} seeds together"
