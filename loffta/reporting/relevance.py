"""The section about one run's relevance scores, per backbone and per layer, beside what each backbone costs.

In: a loaded run with scores, and the runs that may tell what its backbones add.   Out: HTML for `page`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import chosen_score, is_random
from loffta.reporting.markup import figure, table, text_lines
from loffta.reporting.plots import Bar, bar_chart, grouped_chart
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import escape, human_bytes, human_macs, percent
from loffta.reporting.worth import Cost, Worth, gain_in_words, judge_backbones, judge_layers, sentence
from loffta.tasks.figures import metric_name

_COMBOS_PENALTY = "ComBo's group penalty (arXiv 2512.01405)"
_PENALTIES = {"smp": "a group lasso over layers"}  # of the heads that have another one


def relevance_section(run: LoadedRun, runs: Sequence[LoadedRun], comparisons: Comparisons) -> str:
    """Scores as charts and tables, and what dropping a backbone would lose and save."""
    found = run.results["relevance"]
    score = chosen_score(found["backbones"])
    bars = [_relevance_bar(entry, entry["backbone"], score) for entry in found["backbones"]]
    bars.sort(key=lambda bar: -bar.value)
    layer_score = chosen_score(found["taps"])
    groups = [
        (bar.label, [_relevance_bar(t, t["tap"], layer_score) for t in found["taps"] if t["backbone"] == bar.label])
        for bar in bars
    ]
    name = run.row.name
    worths = judge_backbones(run, runs, comparisons)
    per_layer = ""
    if any(len(bars_of) > 1 for _, bars_of in groups):  # of one layer each, they would be the same bars again
        per_layer = figure("Per layer", grouped_chart(groups, title=f"Relevance per layer, {name}"))
    control = any(bar.control for bar in bars)
    return (
        f"<h2>Relevance: {escape(name)}</h2><p>How much the trained head relies on each backbone and layer: the norm "
        f"of the weights on its features, under {_PENALTIES.get(run.results['head'], _COMBOS_PENALTY)}. "
        f"{_score_note(found)}"
        + (" Hatched bars are a random control: a backbone with untrained weights." if control else "")
        + '</p><div class="charts">'
        + figure(
            "Per backbone",
            bar_chart(
                bars,
                title=f"Relevance per backbone, {name}",
            ),
        )
        + f"{per_layer}</div>{_backbones_table(run, worths)}"
        + _layers_table(run, judge_layers(run, runs, comparisons))
    )


def _backbones_table(run: LoadedRun, worths: Sequence[Worth]) -> str:
    entries = {entry["backbone"]: entry for entry in run.results["relevance"]["backbones"]}
    lines = [
        [
            escape(worth.backbone),
            *_scores(entries[worth.backbone]),
            _gain(worth, run.row.headline),
            _cost(worth.read, human_bytes),
            _cost(worth.stored, human_bytes),
            _cost(worth.macs, human_macs),
        ]
        for worth in worths
    ]
    heads = ("Size-aware", "Raw", "Inputs", "Gain", "Read per image", "Stored", "Forward pass")
    sentences = [sentence(worth, run.row.headline) for worth in worths]
    said = "".join(f"<li>{escape(text)}</li>" for text in sentences if text)
    name = metric_name(run.row.headline)
    return (
        table([("Backbone", False)] + [(head, True) for head in heads], lines)
        + (f"<ul>{said}</ul>" if said else "")
        + f'<p class="note">Gain: {name} of this run less that of a run of this report with the same head, recipe and '
        "images, but without the backbone; in brackets its 95 % interval, paired by image. Read, stored and forward "
        "pass: below each its share of all backbones "
        "here; the forward pass is what extraction takes per image, whichever layers are kept.</p>"
        + _what_would_tell(worths)
    )


def _layers_table(run: LoadedRun, worths: Sequence[Worth]) -> str:
    entries = {(entry["backbone"], entry["tap"]): entry for entry in run.results["relevance"]["taps"]}
    lines = [
        [
            escape(worth.tap),
            escape(worth.backbone),
            *_scores(entries[worth.backbone, worth.tap]),
            _gain(worth, run.row.headline),
            _cost(worth.read, human_bytes),
        ]
        for worth in worths
    ]
    heads = ("Size-aware", "Raw", "Inputs", "Gain", "Read per image")
    columns = [("Layer", False), ("Backbone", False)] + [(head, True) for head in heads]
    return f"<details><summary>All layers, ranked</summary>{table(columns, lines)}</details>"


def _scores(entry: dict[str, Any]) -> list[str]:
    return [f"{entry['score']:.2f}", f"{entry['raw_score']:.2f}", f"{entry['inputs']:,}"]


def _gain(worth: Worth, metric: str) -> str:
    without = f"<small>without it: {escape(worth.gain.without)}</small>" if worth.gain else ""
    return escape(gain_in_words(worth.gain, metric)) + without


def _cost(cost: Cost | None, in_words: Callable[[int], str]) -> str:
    if cost is None:
        return "not known"
    return in_words(cost.amount) + ("" if cost.share is None else f"<small>{percent(cost.share, 0)} %</small>")


def _what_would_tell(worths: Sequence[Worth]) -> str:
    commands = [worth.command for worth in worths if worth.command]
    if not commands:
        return ""
    return (
        "<details><summary>Trainings that would tell what is not known</summary>"
        f"<pre>{text_lines(chr(10).join(commands))}</pre></details>"
    )


def _score_note(found: dict[str, list[dict[str, Any]]]) -> str:
    notes = {
        "raw_score": "{} have equally many inputs, so the paper's raw score is shown.",
        "score": "{} differ in their number of inputs, so the size-aware score is shown.",
    }
    backbones, layers = chosen_score(found["backbones"]), chosen_score(found["taps"])
    if backbones == layers:
        return notes[backbones].format("Backbones, and layers,")
    return f"{notes[backbones].format('Backbones')} {notes[layers].format('Layers')}"


def _relevance_bar(entry: dict[str, Any], label: str, score: str) -> Bar:
    control = is_random(entry["backbone"])
    dots = tuple(entry["per_seed"]) if len(entry["per_seed"]) > 1 else ()
    value = float(entry[score])
    detail = f"{entry['inputs']:,} inputs" + (", random control" if control else "")
    return Bar(label, value, f"{value:.2f}", "" if entry["tap"] else detail, dots, control=control)
