"""The few sentences above the figures: what the numbers show, and no more than that.

In: loaded runs.   Out: facts for `page`. Runs are compared only where they were tested on the same images; a difference
whose 95 % intervals overlap is said to be open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loffta.report.tables import LoadedRun, RunRow
from loffta.report.text import count, human_bytes, interval, metric_name, percent


@dataclass(frozen=True)
class Fact:
    """One headline, in plain text; the page escapes it."""

    figure: str  # a few characters, printed large
    title: str
    text: str


def headline_facts(runs: Sequence[LoadedRun]) -> list[Fact]:
    """The facts that these runs support, most important first."""
    if not comparable(runs):
        return [
            Fact(
                "Not ranked",
                "The runs were tested on different images",
                "Their scores stand side by side below, but their differences say nothing about the heads.",
            )
        ]
    rows = [run.row for run in runs]
    found = [_best(rows), *_all_taps(rows), *_selection(rows), *_controls(runs)]
    return [fact for fact in found if fact is not None]


def comparable(runs: Sequence[LoadedRun]) -> bool:
    """Whether all runs were tested on the same images."""
    return len({_test_images(run) for run in runs}) == 1


def chosen_score(entries: Sequence[dict[str, object]]) -> str:
    """Which relevance to show: the paper's raw one where all groups have as many inputs, else the size-aware one."""
    return "raw_score" if len({entry["inputs"] for entry in entries}) == 1 else "score"


def is_random(label: str) -> bool:
    """Whether a backbone's label says that its weights are random."""
    return "[random" in label


def _best(rows: Sequence[RunRow]) -> Fact:
    ranked = sorted(rows, key=lambda row: -row.main.mean)
    best = ranked[0]
    text = (
        f"{_describe(best)}. 95 % interval {interval(best.main.ci95)}, {count(best.n_seeds, 'seed')}, "
        f"{count(best.n_images, 'image')} of split {best.split}."
    )
    if len(ranked) == 1:
        return Fact(f"{percent(best.main.mean)} %", metric_name(best.headline, first=True), text)
    second = ranked[1]
    gap = f"{percent(best.main.mean - second.main.mean)} points ahead of {second.name}"
    if best.main.overlaps(second.main):
        text += f" It is {gap}, but their intervals overlap: which of the two is better stays open."
    else:
        text += f" It is {gap}, and their intervals do not overlap."
    return Fact(f"{percent(best.main.mean)} %", f"Highest mean {metric_name(best.headline)} of these runs", text)


def _all_taps(rows: Sequence[RunRow]) -> list[Fact]:
    """The last tap against more taps of the same one backbone, once per backbone."""
    facts = []
    alone = [row for row in rows if len(row.taps) == 1]
    for label in dict.fromkeys(next(iter(row.taps)) for row in alone):
        of_label = [row for row in alone if label in row.taps]
        many = [row for row in of_label if row.n_taps > 1]
        pairs = [
            (one, more)
            for more in many
            for one in of_label
            if one.n_taps == 1 and one.taps[label][0] == more.taps[label][-1]
        ]
        if pairs:  # the same head first, for then only the taps differ; then the better pair
            facts.append(_tap_fact(label, *max(pairs, key=lambda p: (p[0].head == p[1].head, p[1].main.mean))))
    return facts


def _tap_fact(label: str, one: RunRow, more: RunRow) -> Fact:
    gain = more.main.mean - one.main.mean
    heads = f"the {one.head} head" if one.head == more.head else f"heads {one.head} and {more.head}"
    text = (
        f"{label}, {heads}: {percent(one.main.mean)} % from the last tap alone, {percent(more.main.mean)} % from "
        f"{more.n_taps} taps ({one.name}, {more.name})."
    )
    if one.head != more.head:
        text += " The heads differ too, so not all of it is the taps' doing."
    if one.epochs != more.epochs:
        text += f" They trained for {one.epochs} and {more.epochs} epochs."
    text += _verdict(one, more)
    return Fact(signed(gain), "More taps than the last one", text)


def _selection(rows: Sequence[RunRow]) -> list[Fact]:
    """A run trained on the backbones that its scoring run kept."""
    facts = []
    by_name = {row.name: row for row in rows}
    for row in rows:
        prefix = "" if row.name == "." else f"{row.name}/"
        scoring = by_name.get(f"{prefix}scoring")
        if scoring is None or scoring is row or len(row.taps) >= len(scoring.taps):
            continue
        text = (
            f"{row.name} kept {', '.join(row.taps)} and reached {percent(row.main.mean)} %; the scoring run on all "
            f"{len(scoring.taps)}, which trains with the penalty, {percent(scoring.main.mean)} %."
        )
        if row.bytes_per_image is not None and scoring.bytes_per_image is not None:
            text += (
                f" It reads {human_bytes(row.bytes_per_image)} an image instead of "
                f"{human_bytes(scoring.bytes_per_image)}."
            )
        figure = f"{len(row.taps)} of {len(scoring.taps)}"
        facts.append(Fact(figure, "Backbones kept by relevance", text + _verdict(scoring, row)))
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


def _verdict(one: RunRow, other: RunRow) -> str:
    if one.main.overlaps(other.main):
        return " The 95 % intervals overlap, so the difference stays open."
    return " The 95 % intervals do not overlap."


def _describe(row: RunRow) -> str:
    backbones = "one backbone" if len(row.taps) == 1 else f"{len(row.taps)} backbones"
    return f"{row.name}: the {row.head} head on {count(row.n_taps, 'tap')} of {backbones}"


def signed(difference: float) -> str:
    """0.004 -> '+0.4 pts'."""
    sign = "+" if difference >= 0 else "\N{MINUS SIGN}"
    return f"{sign}{percent(abs(difference))} pts"


def _test_images(run: LoadedRun) -> tuple[str, str, int]:
    images = run.cache.table.digest if run.cache else str(run.config.cache)
    return images, run.row.split, run.row.n_images
