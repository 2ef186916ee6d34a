"""What metrics are called, and the one way in which their values are printed: terminal, reports, summaries.

In: names and values as results.json keeps them.   Out: text. Shares, kappa and areas are printed in percent with one
decimal: of 1,000 test images an interval is some 3 points wide, of 50,000 still 0.4. Errors in the unit of the values
that were learnt have four digits that count. All digits stand in the results. Whether more of a metric is better is
said here, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """How a metric is called and printed, and which way is better."""

    words: str
    percent: bool = True  # of a fraction; else as it is, with three decimals
    in_unit: bool = False  # of the values that are learnt: of any size
    smaller_is_better: bool = False
    lowest: float = 0.0  # that it can be
    highest: float | None = None  # None: 1 of what is told in percent, else without end


FIGURES = {
    "top1": Figure("top-1"),
    "top5": Figure("top-5"),
    "balanced_accuracy": Figure("balanced accuracy"),
    "macro_recall": Figure("macro recall"),  # of results of before: balanced accuracy under another name
    "f1": Figure("macro F1"),
    "log_loss": Figure("log-loss", percent=False, smaller_is_better=True),
    "kappa": Figure("quadratic kappa", lowest=-1.0),
    "roc_auc": Figure("ROC AUC"),
    "map": Figure("mean AP"),
    "ece_width15": Figure("ECE (15 bins of equal width)", smaller_is_better=True),
    "ece_mass15": Figure("ECE (15 bins of equally many)", smaller_is_better=True),
    "mce_width15": Figure("MCE (15 bins of equal width)", smaller_is_better=True),
    "brier_sum": Figure("Brier score (summed over classes)", percent=False, smaller_is_better=True),
    "aurc": Figure("AURC", smaller_is_better=True),
    "top1_surest_90": Figure("top-1 with a tenth refused"),
    "mae": Figure("MAE", percent=False, in_unit=True, smaller_is_better=True),
    "rmse": Figure("RMSE", percent=False, in_unit=True, smaller_is_better=True),
    "r2": Figure("R\N{SUPERSCRIPT TWO}", percent=False, lowest=-math.inf, highest=1.0),
    "spearman": Figure("Spearman", percent=False, lowest=-1.0, highest=1.0),
    "miou": Figure("mean IoU"),
    "mean_accuracy": Figure("mean accuracy of classes"),
    "pixel_accuracy": Figure("pixel accuracy"),
    "rmse_pooled": Figure("RMSE of pooled pixels (m)", percent=False, in_unit=True, smaller_is_better=True),
    "rmse_image": Figure("RMSE, mean of images (m)", percent=False, in_unit=True, smaller_is_better=True),
    "abs_rel": Figure("absolute relative error", percent=False, smaller_is_better=True),
    "log10": Figure("log10 error", percent=False, smaller_is_better=True),
    "delta1": Figure("depth within 1.25 times"),
    "delta2": Figure("depth within 1.25\N{SUPERSCRIPT TWO} times"),
    "delta3": Figure("depth within 1.25\N{SUPERSCRIPT THREE} times"),
    "boundary_iou": Figure("IoU of boundaries"),
    "boundary_f": Figure("F of boundaries"),
    "boundary_bce": Figure("cross-entropy of boundaries", percent=False, smaller_is_better=True),
    "ap": Figure("AP"),
    "ap50": Figure("AP at IoU 0.5"),
    "ap75": Figure("AP at IoU 0.75"),
    "ap_small": Figure("AP of small objects"),
    "ap_medium": Figure("AP of medium objects"),
    "ap_large": Figure("AP of large objects"),
    "ari": Figure("ARI of foreground", lowest=-0.5),  # scikit-learn's `adjusted_rand_score`
}
_DIGITS = 4  # that count


def smaller_is_better(name: str) -> bool:
    """Whether less of a metric is better: an error."""
    return _figure(name).smaller_is_better


def possible(name: str, interval: Sequence[float]) -> list[float]:
    """An interval within what the metric can be: one that is widened by what draws differ by may stand out of it."""
    figure = _figure(name)
    highest = (1.0 if figure.percent else math.inf) if figure.highest is None else figure.highest
    return [min(max(bound, figure.lowest), highest) for bound in interval]


def best_first(name: str, value: float | int) -> float | int:
    """What sorts values of a metric from the best to the worst; its minimum is the best."""
    return value if smaller_is_better(name) else -value


def end_of_scale(name: str) -> str:
    """'highest' or 'lowest', whichever is the best."""
    return "lowest" if smaller_is_better(name) else "highest"


def metric_name(name: str, *, first: bool = False) -> str:
    """A metric of results.json in words; `first`: with a capital, to begin a heading."""
    words = _figure(name).words
    return words[:1].upper() + words[1:] if first else words


def metric_head(name: str, *, first: bool = False) -> str:
    """The same with the unit, as a column's head: 'top-1 %'."""
    return metric_name(name, first=first) + unit(name)


def show(name: str, value: float | int, *, beside: float | int | None = None) -> str:
    """('top1', 0.9302) -> '93.0', ('log_loss', 0.5) -> '0.500', ('mae', 31.415) -> '31.42'; without the unit.

    Args:
        beside: the value whose digits decide how many there are, where the two stand together.
    """
    figure = _figure(name)
    if figure.in_unit:
        return _digits(value, value if beside is None else beside)
    return f"{100 * value:.1f}" if figure.percent else f"{value:.3f}"


def show_spread(name: str, mean: float | int, std: float | int | None) -> str:
    """'93.0 ± 0.4', over seeds; of one seed the value alone."""
    return show(name, mean) if std is None else f"{show(name, mean)} ± {show(name, std, beside=mean)}"


def show_interval(name: str, bounds: Sequence[float | int]) -> str:
    """(0.91, 0.947) -> '91.0-94.7' with an en dash; with 'to' where a bound is negative."""
    low, high = (show(name, bound, beside=bounds[1]) for bound in bounds)
    return f"{low} to {high}" if bounds[0] < 0 and not _figure(name).percent else f"{low}\N{EN DASH}{high}"


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


def points(name: str) -> str:
    """What differences of it are counted in: ' points', or nothing."""
    return " points" if _figure(name).percent else ""


def _digits(value: float | int, beside: float | int) -> str:
    size = math.floor(math.log10(abs(beside))) if beside else 0
    if not -5 <= size < 7:
        return f"{value:.{_DIGITS - 1}e}"
    return f"{value:.{max(0, _DIGITS - 1 - size)}f}"


def _figure(name: str) -> Figure:
    return FIGURES.get(name, Figure(name))
