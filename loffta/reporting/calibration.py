"""The section about probabilities: how far they can be believed, and what refusing the least sure images gains.

In: runs of one headline metric whose results have it, the best first.   Out: HTML for `page`; nothing for results of
before, nor of tasks without a confidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loffta.reporting.diagrams import reliability_diagram, risk_coverage
from loffta.reporting.markup import figure, table
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, count, escape
from loffta.tasks.figures import metric_head, show_spread

_SHOWN = ("ece_width15", "mce_width15", "log_loss", "brier_sum", "aurc", "top1_surest_90")
_ABOUT = (
    "A head that is 80 % sure should be right in 80 of 100 images. The expected calibration error (ECE) is how far the "
    "two are apart on average, in 15 bins of confidence of equal width, the MCE how far in the worst of them. The area "
    "under the risk-coverage curve (AURC) is the mean share of errors while more and more images are answered, the "
    "surest first."
)


def calibration_section(ranked: Sequence[LoadedRun]) -> str:
    told = [run for run in ranked if run.results.get("calibration")]
    if not told:
        return ""
    lines = [
        [
            f"<b>{escape(run.row.name)}</b>",
            *(_cell(run.results["calibration"], name) for name in _SHOWN),
            _temperature(run),
        ]
        for run in told
    ]
    columns = [("Run", False), *((metric_head(name, first=True), True) for name in _SHOWN), ("Temperature", True)]
    return (
        f"<h2>Calibration</h2><p>{_ABOUT}</p>{_charts(told[0])}{table(columns, lines)}"
        '<p class="note">Means over seeds; below them the same with the temperature, which divides all logits and '
        "changes no prediction. It is fitted on images that were held out of the training; where none were, there is "
        "none.</p>"
    )


def _charts(run: LoadedRun) -> str:
    """Of one run, with the temperature where there is one."""
    found = run.results["calibration"]
    parts = [
        (name, found[key])
        for name, key in (("as trained", "as_trained"), ("calibrated", "calibrated"))
        if found.get(key)
    ]
    charts = [
        figure(
            f"{run.row.name}, {name}: accuracy by confidence",
            reliability_diagram(part["bins"], title=f"Reliability of {run.row.name}, {name}"),
        )
        for name, part in parts
    ]
    curve = risk_coverage(parts[-1][1]["risks"], title=f"Risk and coverage of {run.row.name}")
    charts.append(figure(f"{run.row.name}: errors among the images that are answered", curve))
    return f'<div class="charts">{"".join(charts)}</div>'


def _cell(found: Mapping[str, Any], name: str) -> str:
    values = [_shown(found[part], name) for part in ("as_trained", "calibrated") if found.get(part)]
    return values[0] + "".join(f"<small>calibrated {value}</small>" for value in values[1:])


def _shown(part: Mapping[str, Any], name: str) -> str:
    measured = part["figures"].get(name)
    return NONE if measured is None else escape(show_spread(name, measured["mean"], measured["std"]))


def _temperature(run: LoadedRun) -> str:
    found = run.results["calibration"].get("temperature")
    if found is None:
        return NONE
    values = ", ".join(f"{t:.2f}" for t in found["per_seed"])
    seen = ", the very images measured here" if found["split"] == run.row.split else ""
    return f"{values}<small>{count(found['images'], 'image')} of {escape(found['split'])}{seen}</small>"
