"""What metrics are called, and the one way in which their values are printed: terminal, reports, summaries.

In: names and values as results.json keeps them.   Out: text. Shares, kappa and areas are printed in percent with one
decimal: of 1,000 test images an interval is some 3 points wide, of 50,000 still 0.4. All digits stand in the results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """How a metric is called and printed."""

    words: str
    percent: bool = True  # of a fraction; else as it is, with three decimals
    smaller_is_better: bool = False


FIGURES = {
    "top1": Figure("top-1"),
    "top5": Figure("top-5"),
    "balanced_accuracy": Figure("balanced accuracy"),
    "macro_recall": Figure("macro recall"),  # of results of before: balanced accuracy under another name
    "f1": Figure("macro F1"),
    "log_loss": Figure("log-loss", percent=False, smaller_is_better=True),
    "kappa": Figure("quadratic kappa"),
    "roc_auc": Figure("ROC AUC"),
    "map": Figure("mean AP"),
    "ece_width15": Figure("ECE, 15 bins of equal width", smaller_is_better=True),
    "ece_mass15": Figure("ECE, 15 bins of equally many", smaller_is_better=True),
    "mce_width15": Figure("maximum calibration error, 15 bins of equal width", smaller_is_better=True),
    "brier_sum": Figure("Brier score, summed over classes", percent=False, smaller_is_better=True),
    "aurc": Figure("area under the risk-coverage curve", smaller_is_better=True),
    "top1_surest_90": Figure("top-1 of the surest 90 %"),
}


def metric_name(name: str, *, first: bool = False) -> str:
    """A metric of results.json in words; `first`: with a capital, to begin a heading."""
    words = _figure(name).words
    return words[:1].upper() + words[1:] if first else words


def metric_head(name: str, *, first: bool = False) -> str:
    """The same with the unit, as a column's head: 'top-1 %'."""
    return metric_name(name, first=first) + unit(name)


def show(name: str, value: float | int) -> str:
    """('top1', 0.9302) -> '93.0', ('log_loss', 0.5) -> '0.500'; without the unit."""
    return f"{100 * value:.1f}" if _figure(name).percent else f"{value:.3f}"


def show_spread(name: str, mean: float | int, std: float | int | None) -> str:
    """'93.0 ± 0.4', over seeds; of one seed the value alone."""
    return show(name, mean) if std is None else f"{show(name, mean)} ± {show(name, std)}"


def show_interval(name: str, bounds: Sequence[float | int]) -> str:
    """(0.91, 0.947) -> '91.0-94.7' with an en dash."""
    return f"{show(name, bounds[0])}\N{EN DASH}{show(name, bounds[1])}"


def show_difference(name: str, value: float | int) -> str:
    """('top1', 0.004) -> '+0.4': points, with their sign."""
    shown = show(name, abs(value))
    sign = "" if not float(shown) else "+" if value > 0 else "\N{MINUS SIGN}"
    return f"{sign}{shown}"


def in_words(name: str, metric: Mapping[str, Any]) -> str:
    """An entry of results.json: 'top-1 93.0 ± 0.4 %'."""
    return f"{metric_name(name)} {show_spread(name, metric['mean'], metric['std'])}{unit(name)}"


def unit(name: str) -> str:
    """' %', or nothing."""
    return " %" if _figure(name).percent else ""


def smaller_is_better(name: str) -> bool:
    """Which way is better."""
    return _figure(name).smaller_is_better


def _figure(name: str) -> Figure:
    return FIGURES.get(name, Figure(name))
