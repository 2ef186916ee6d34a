"""Which layers the heads use: ALF's attention over layers (arXiv 2601.09322), and the features that Head2Toe keeps.

In:  loaded runs.   Out: HTML for `page`, with a heat map per backbone and a row per run; nothing where no run tells of
its layers.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.reporting.markup import figure
from loffta.reporting.plots import weight_map
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import escape

_FEATURES = "features"  # the one group of columns where a head does not tell kinds apart
_GROUPS = {"cls": "class token", "mean": "mean", _FEATURES: _FEATURES}  # in the order of the columns
_NARROW = 21  # a map of more columns is wider than other charts

Column = tuple[str, str]  # kind, tap


def layer_sections(runs: Sequence[LoadedRun]) -> str:
    """A section for each thing that heads tell of their layers."""
    attention = _section(
        runs,
        "attention",
        "Attention over layers",
        "How much of its attention the fusion head gives each layer's class token and mean of patches, on average over "
        "test images, attention heads and seeds, in percent. The weights of a run are 100 % together, over all its "
        "backbones",
    )
    kept = _section(
        runs,
        "kept",
        "Features kept",
        "The share of each layer's pooled features that Head2Toe kept after scoring all of them together, on average "
        "over seeds, in percent",
    )
    return attention + kept


def _section(runs: Sequence[LoadedRun], name: str, title: str, text: str) -> str:
    """All panels of what results hold under `name`, in one range of colours."""
    told = [run for run in runs if run.results.get(name)]
    if not told:
        return ""
    high = max(entry["mean"] for run in told for entry in run.results[name])
    backbones = dict.fromkeys(entry["backbone"] for run in told for entry in run.results[name])
    panels = [_panel(backbone, told, name, title, high) for backbone in backbones]
    listed = "".join(f"<li>{escape(run.row.name)}: {escape(_source(run))}</li>" for run in told)
    return (
        f"<h2>{title}</h2><p>{text}; the fullest colour is {100 * high:.1f} % in all panels. A row "
        f'is a run, named by its images:</p><ul>{listed}</ul><div class="charts">{"".join(panels)}</div>'
    )


def _panel(backbone: str, told: Sequence[LoadedRun], name: str, title: str, high: float) -> str:
    weights = [(run, weights) for run in told if (weights := _weights(run, name, backbone))]
    columns = merge_columns([list(found) for _, found in weights])
    sources = [_source(run) for run, _ in weights]
    rows = [
        source if sources.count(source) == 1 else f"{run.row.name}, {source}"
        for (run, _), source in zip(weights, sources, strict=True)
    ]
    chart = weight_map(
        [[found.get(column) for column in columns] for _, found in weights],
        rows,
        [(_GROUPS[kind], tap) for kind, tap in columns],
        title=f"{title}, {backbone}",
        high=high,
    )
    return figure(backbone, chart, wide=len(columns) > _NARROW)


def merge_columns(found: Sequence[Sequence[Column]]) -> list[Column]:
    """The columns of all runs, class tokens first; in the order of depth, as far as the runs tell it.

    Runs may have other taps of the same backbone: a new tap stands behind the one that is ahead of it in its own run.
    """
    merged: list[Column] = []
    for columns in sorted(found, key=len, reverse=True):
        place = 0
        for column in columns:
            if column in merged:
                place = merged.index(column) + 1
            else:
                merged.insert(place, column)
                place += 1
    return [column for kind in _GROUPS for column in merged if column[0] == kind]


def _weights(run: LoadedRun, name: str, backbone: str) -> dict[Column, float]:
    entries = [entry for entry in run.results.get(name, ()) if entry["backbone"] == backbone]
    return {(entry.get("kind", _FEATURES), entry["tap"]): float(entry["mean"]) for entry in entries}


def _source(run: LoadedRun) -> str:
    """Where the images come from that were tested on."""
    if "online" in run.results:
        return str(run.results["online"]["source"])
    return run.cache.table.source if run.cache else str(run.config.cache)
