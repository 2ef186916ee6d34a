"""The few sentences above the figures: what the numbers show, and no more than that.

In: loaded runs and their Comparisons.   Out: facts for `page`. Runs are compared only where they were tested on the
same images; a difference is told with its interval, paired by image, and is open where that holds zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.errors import unknown_name
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.tables import LoadedRun, RunRow
from loffta.reporting.text import count, human_bytes
from loffta.tasks.figures import best_first, end_of_scale, metric_name, points, show, show_difference, unit
from loffta.tasks.paired import Difference

_TOLD = {"better": "more than chance", "worse": "worse, and not by chance", "open": "open: chance may have done it"}


@dataclass(frozen=True)
class Fact:
    """One headline, in plain text; the page escapes it."""

    figure: str  # a few characters, printed large
    title: str
    text: str


def headline_facts(runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Fact]:
    """The facts that these runs support, most important first."""
    one_task = len({run.row.headline for run in runs}) == 1
    if not one_task or not comparisons.same_images(runs):
        why = "The runs were tested on different images" if one_task else "The runs are of different tasks"
        text = "Their scores stand side by side below, but their differences say nothing about the heads."
        return [Fact("Not ranked", why, text)]
    found = [_best(runs, comparisons), *_all_taps(runs, comparisons), *_selection(runs, comparisons), *_controls(runs)]
    return [fact for fact in found if fact is not None]


def rank(run: LoadedRun) -> float | int:
    """Sorts runs of one headline metric, the best first."""
    return best_first(run.row.headline, run.row.main.mean)


def find_run(runs: Sequence[LoadedRun], asked: str | Path) -> LoadedRun:
    """The run of a name, as the tables print it, or of a folder.

    Raises:
        UsageError: it is not among them.
    """
    for run in runs:
        if run.row.name == str(asked) or run.paths.root == Path(asked).resolve():
            return run
    raise unknown_name("run", str(asked), [run.row.name for run in runs], where="--baseline")


def against_baseline(
    runs: Sequence[LoadedRun], comparisons: Comparisons, baseline: LoadedRun
) -> list[tuple[LoadedRun, Difference | str]]:
    """Every other run with what it has gained over `baseline`."""
    return [(run, comparisons.difference(run, baseline)) for run in runs if run is not baseline]


def best_against_others(
    runs: Sequence[LoadedRun], comparisons: Comparisons
) -> list[tuple[LoadedRun, list[tuple[LoadedRun, Difference | str]]]]:
    """Of each headline metric with several runs the best one, and its difference to each other, best first."""
    groups: dict[str, list[LoadedRun]] = {}
    for run in sorted(runs, key=rank):
        groups.setdefault(run.row.headline, []).append(run)
    return [
        (best, [(other, comparisons.difference(best, other)) for other in others])
        for best, *others in groups.values()
        if others
    ]


@dataclass(frozen=True)
class Compared:
    """One run by a metric less another one."""

    metric: str
    run: str
    other: str
    found: Difference | str  # why it is not known

    def as_json(self) -> dict[str, Any]:
        """For programs: fractions with their interval, or why that is not known."""
        found = self.found
        said = ("mean", "ci95", "n_images", "n_seeds", "verdict")
        told = {"unknown": found} if isinstance(found, str) else {name: getattr(found, name) for name in said}
        return {"metric": self.metric, "run": self.run, "other": self.other} | told


def compare_best(runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Compared]:
    """The best run of each metric with every other."""
    return [
        Compared(best.row.headline, best.row.name, other.row.name, found)
        for best, others in best_against_others(runs, comparisons)
        for other, found in others
    ]


def compare_baseline(runs: Sequence[LoadedRun], comparisons: Comparisons, baseline: LoadedRun) -> list[Compared]:
    """Every other run less the one that a user named."""
    return [
        Compared(run.row.headline, run.row.name, baseline.row.name, found)
        for run, found in against_baseline(runs, comparisons, baseline)
    ]


def in_points(metric: str, found: Difference) -> str:
    """'+12.0 [+5.0, +19.5], more than chance'."""
    return f"{show_difference(metric, found.mean)} {bounds(metric, found.ci95)}, {_TOLD[found.verdict]}"


def bounds(metric: str, ci95: tuple[float, float]) -> str:
    """'[+5.0, +19.5]'."""
    low, high = (show_difference(metric, bound) for bound in ci95)
    return f"[{low}, {high}]"


def chosen_score(entries: Sequence[dict[str, object]]) -> str:
    """Which relevance to show: the paper's raw one where all groups have as many inputs, else the size-aware one."""
    return "raw_score" if len({entry["inputs"] for entry in entries}) == 1 else "score"


def is_random(label: str) -> bool:
    """Whether a backbone's label says that its weights are random."""
    return "[random" in label


def _best(runs: Sequence[LoadedRun], comparisons: Comparisons) -> Fact:
    ranked = sorted(runs, key=rank)
    best, *others = (run.row for run in ranked)
    text = (
        f"{_describe(best)}. 95 % interval {best.main.interval}, {best.heads}, "
        f"{count(best.n_images, 'image')} of split {best.split}."
    )
    score = f"{show(best.headline, best.main.mean)}{unit(best.headline)}"
    if not others:
        return Fact(score, metric_name(best.headline, first=True), text)
    text += (
        f" It was chosen from {len(ranked)} runs by its score on these very images, so that its score, and its lead, "
        f"are a little too good. Against the second, {others[0].name}: "
    )
    text += _difference(comparisons, ranked[0], ranked[1])
    extreme = end_of_scale(best.headline).capitalize()
    return Fact(score, f"{extreme} mean {metric_name(best.headline)} of these runs", text)


def _all_taps(runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Fact]:
    """The last tap against more taps of the same one backbone, once per backbone."""
    facts = []
    alone = [run for run in runs if len(run.row.taps) == 1]
    for label in dict.fromkeys(next(iter(run.row.taps)) for run in alone):
        of_label = [run for run in alone if label in run.row.taps]
        many = [run for run in of_label if run.row.n_taps > 1]
        pairs = [
            (one, more)
            for more in many
            for one in of_label
            if one.row.n_taps == 1 and one.row.taps[label][0] == more.row.taps[label][-1]
        ]
        if pairs:  # the same head first, for then only the taps differ; then the better pair
            best = min(pairs, key=lambda p: (p[0].row.head != p[1].row.head, rank(p[1])))
            facts.append(_tap_fact(label, *best, comparisons))
    return facts


def _tap_fact(label: str, one: LoadedRun, more: LoadedRun, comparisons: Comparisons) -> Fact:
    last, every = one.row, more.row
    gain = every.main.mean - last.main.mean
    heads = f"the {last.head} head" if last.head == every.head else f"heads {last.head} and {every.head}"
    text = (
        f"{label}, {heads}: {_score(last)} from the last tap alone, {_score(every)} from "
        f"{every.n_taps} taps ({last.name}, {every.name})."
    )
    if last.head != every.head:
        text += " The heads differ too, so not all of it is the taps' doing."
    if last.epochs != every.epochs:
        text += f" They trained for {last.epochs} and {every.epochs} epochs."
    text += f" The difference: {_difference(comparisons, more, one)}"
    return Fact(signed(every.headline, gain), "More taps than the last one", text)


def _selection(runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Fact]:
    """A run trained on the backbones that its scoring run kept."""
    facts = []
    by_name = {run.row.name: run for run in runs}
    for run in runs:
        row = run.row
        found = by_name.get("scoring" if row.name == "." else f"{row.name}/scoring")
        if found is None or found is run or len(row.taps) >= len(found.row.taps):
            continue
        scoring = found.row
        text = (
            f"{row.name} kept {', '.join(row.taps)} and reached {_score(row)}; the scoring run on all "
            f"{len(scoring.taps)}, which trains with the penalty, {_score(scoring)}."
        )
        if row.bytes_per_image is not None and scoring.bytes_per_image is not None:
            text += (
                f" It reads {human_bytes(row.bytes_per_image)} an image instead of "
                f"{human_bytes(scoring.bytes_per_image)}."
            )
        figure = f"{len(row.taps)} of {len(scoring.taps)}"
        text += f" The difference: {_difference(comparisons, run, found)}"
        facts.append(Fact(figure, "Backbones kept by relevance", text))
    return facts


def _controls(runs: Sequence[LoadedRun]) -> list[Fact]:
    """Where a backbone with random weights came in the ranking by relevance."""
    facts = []
    for run in runs:
        entries = run.results.get("relevance", {}).get("backbones", [])
        labels = [entry["backbone"] for entry in entries]
        if len(entries) < 2 or not any(map(is_random, labels)) or all(map(is_random, labels)):
            continue
        score = chosen_score(entries)
        ranked = sorted(entries, key=lambda entry: -entry[score])
        control = next(entry for entry in ranked if is_random(entry["backbone"]))
        place = ranked.index(control) + 1
        beaten = [entry for entry in ranked[place:] if not is_random(entry["backbone"])]
        trained = next(entry for entry in ranked if not is_random(entry["backbone"]))
        text = (
            f"{run.row.name}: {control['backbone']} scores {control[score]:.2f}, the highest trained backbone, "
            f"{trained['backbone']}, {trained[score]:.2f}."
        )
        if beaten:
            text += f" It stands above {count(len(beaten), 'trained backbone')}: read these scores with caution."
        else:
            text += " No trained backbone scores lower, as it should be."
        facts.append(Fact(f"{place} of {len(labels)}", "Rank of the random control", text))
    return facts


def _difference(comparisons: Comparisons, one: LoadedRun, other: LoadedRun) -> str:
    """`one` less `other` as the end of a sentence."""
    found = comparisons.difference(one, other)
    if isinstance(found, str):
        return f"whether it is more than chance is not known ({found})."
    shown, seeds = in_points(one.row.headline, found), " and seeds" if max(found.n_seeds) > 1 else ""
    counted = points(one.row.headline).strip() or "difference"
    return f"{shown} ({counted} and 95 % interval, paired over the same images{seeds})."


def _score(row: RunRow) -> str:
    return f"{show(row.headline, row.main.mean)}{unit(row.headline)}"


def _describe(row: RunRow) -> str:
    backbones = "one backbone" if len(row.taps) == 1 else f"{len(row.taps)} backbones"
    return f"{row.name}: the {row.head} head on {count(row.n_taps, 'tap')} of {backbones}"


def signed(metric: str, difference: float | int) -> str:
    """0.004 -> '+0.4 pts'; of a metric that is no percentage without the word."""
    return show_difference(metric, difference) + (" pts" if points(metric) else "")
