"""The section about one run's relevance scores, per backbone and per layer.

In: a loaded run with scores.   Out: HTML for `page`.
"""

from __future__ import annotations

from typing import Any

from loffta.report.facts import chosen_score, is_random
from loffta.report.markup import figure, table
from loffta.report.plots import Bar, bar_chart, grouped_chart
from loffta.report.tables import LoadedRun
from loffta.report.text import escape, human_bytes

_COMBOS_PENALTY = "ComBo's group penalty (arXiv 2512.01405)"
_PENALTIES = {"smp": "a group lasso over layers"}  # of the heads that have another one


def relevance_section(run: LoadedRun) -> str:
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
    bytes_of = run.row.image_bytes or {}
    lines = [
        [
            escape(e["backbone"]),
            f"{e['score']:.2f}",
            f"{e['raw_score']:.2f}",
            f"{e['inputs']:,}",
            human_bytes(bytes_of.get(e["backbone"])),
        ]
        for e in sorted(found["backbones"], key=lambda e: -e[score])
    ]
    columns = [("Backbone", False)] + [(h, True) for h in ("Size-aware", "Raw", "Inputs", "Read per image")]
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
        + figure("Per layer", grouped_chart(groups, title=f"Relevance per layer, {name}"))
        + f"</div>{table(columns, lines)}"
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
