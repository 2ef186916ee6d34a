"""What backbones and layers of a run are worth and cost: relevance and accuracy against bytes and forward passes.

In:  loaded runs.   Out: Worth, one per backbone or layer, for `relevance` and for the terminal. What a backbone adds to
the accuracy is said only where a run without it is among them; else the command that would tell is given.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loffta.augment import AugmentConfig, resolve
from loffta.config import TrainConfig, parse
from loffta.errors import LofftaError
from loffta.heads import find_head
from loffta.reporting.comparisons import Comparisons
from loffta.reporting.facts import bounds, chosen_score, rank, signed
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, human_bytes, human_macs, percent
from loffta.runs.run import RunPaths
from loffta.tasks.figures import best_first, metric_name, points, show

_ASIDE = ("grid", "relevance_weight")  # of the recipe: it follows from the features; only scoring has the penalty
_SAME = ("head", "task", "train_on", "holdout", "search", "augment", "partial")  # of the configurations


@dataclass(frozen=True)
class Cost:
    """An amount and its part of the sum over all backbones of the run."""

    amount: int
    share: float | int | None  # None: what another backbone takes is not known


@dataclass(frozen=True)
class Gain:
    """The headline metric of a run less that of a run without one backbone."""

    points: float  # as the metric is; of one of which more is better negative where the run without it is better
    ci95: tuple[float, float] | None  # paired by image; None: not known
    verdict: str  # better, worse or open; or why it is not known
    without: str  # the name of the other run
    differing: tuple[str, ...]  # what of the recipe differs, too


@dataclass(frozen=True)
class Worth:
    """One backbone of a run, or one layer of it; None where something is not known."""

    backbone: str
    tap: str | None  # None: the whole backbone
    score: float | int  # its relevance, the one of the two scores that is shown
    gain: Gain | None
    command: str | None  # the training that would tell the gain; None: it is known, or there is no other backbone
    read: Cost | None  # bytes of an image
    stored: Cost | None  # bytes of all images
    macs: Cost | None  # multiply-accumulates of an image


def judge_backbones(run: LoadedRun, runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Worth]:
    """Every backbone of a run with relevance scores, the most relevant first; of another run none.

    Args:
        runs: where to look for trainings without one of the backbones.
    """
    macs, stores = macs_of(run), _stores(run)
    found = []
    for label, _, score in _ranked(run, "backbones"):
        store = stores.get(label)  # none where the results are older than labels
        gain = _find_gain(run, store, None, runs, comparisons)
        found.append(
            Worth(
                backbone=label,
                tap=None,
                score=score,
                gain=gain,
                command=None if gain or store is None or len(stores) == 1 else _command_without(run, store, label),
                read=_cost(run.row.image_bytes, label),
                stored=_cost(run.row.backbone_bytes, label),
                macs=_cost(macs, label),
            )
        )
    return found


def judge_layers(run: LoadedRun, runs: Sequence[LoadedRun], comparisons: Comparisons) -> list[Worth]:
    """The same for every layer; what it takes to compute or store one layer more is not counted."""
    stores = _stores(run)
    return [
        Worth(
            backbone=label,
            tap=tap,
            score=score,
            gain=_find_gain(run, stores.get(label), tap, runs, comparisons),
            command=None,
            read=_cost(run.row.tap_bytes, (label, tap)),
            stored=None,
            macs=None,
        )
        for label, tap, score in _ranked(run, "taps")
    ]


def sentence(worth: Worth, metric: str) -> str | None:
    """What dropping a backbone would do to a metric, in plain text; None without evidence."""
    gain = worth.gain
    if gain is None:
        return None
    amount = f"{show(metric, abs(gain.points))}{points(metric) or f' of {metric_name(metric)}'}"
    if not float(show(metric, gain.points)):
        change = f"neither lose nor gain {'0.1 points' if points(metric) else metric_name(metric)}"
    else:
        change = f"{'lose' if best_first(metric, gain.points) < 0 else 'gain'} {amount}"
    saved = [(worth.read, "the bytes"), (worth.macs, "the forward cost")]
    known = [f"{percent(cost.share, 0)} % of {what}" for cost, what in saved if cost and cost.share is not None]
    unknown = [what for cost, what in saved if cost is None or cost.share is None]
    parts = [f"Drop {worth.backbone}: {change}"]
    if known:
        parts.append(f"save {' and '.join(known)}")
    text = f"{', '.join(parts)} ({gain.without})."
    if unknown:
        text += f" Not known: its share of {' and of '.join(unknown)}."
    text += f" {_how_sure(gain, metric)}"
    if gain.differing:
        text += f" The two differ in {' and '.join(gain.differing)}, too."
    return text


def worth_of_backbones(runs: Sequence[LoadedRun], comparisons: Comparisons) -> dict[str, list[Worth]]:
    """By name of the run; runs without relevance scores are not in it."""
    found = {run.row.name: judge_backbones(run, runs, comparisons) for run in runs}
    return {name: worths for name, worths in found.items() if worths}


def share_of(cost: Cost | None) -> str:
    """' (40 %)', or nothing."""
    return "" if cost is None or cost.share is None else f" ({percent(cost.share, 0)} %)"


def gain_in_words(gain: Gain | None, metric: str) -> str:
    """'+0.4 pts [-0.1, +0.9]', or what is to be known of it."""
    if gain is None:
        return "not known"
    if gain.ci95 is None:
        return f"{signed(metric, gain.points)}, not tested"
    return f"{signed(metric, gain.points)} {bounds(metric, gain.ci95)}"


def in_figures(worth: Worth, metric: str) -> str:
    """Gain and costs in one line."""
    read = human_bytes(worth.read.amount) if worth.read else NONE
    macs = human_macs(worth.macs.amount) if worth.macs else "not known"
    parts = [f"gain {gain_in_words(worth.gain, metric)}", f"read {read}{share_of(worth.read)}"]
    return ", ".join([*parts, f"forward {macs}{share_of(worth.macs)}"])


def _how_sure(gain: Gain, metric: str) -> str:
    if gain.ci95 is None:
        return f"Whether that is more than chance is not known: {gain.verdict}."
    told = f"The 95 % interval of the gain is {bounds(metric, gain.ci95)}{points(metric)}, paired over the same images"
    return f"{told}: chance may have done it." if gain.verdict == "open" else f"{told}."


def _ranked(run: LoadedRun, level: str) -> list[tuple[str, str | None, float]]:
    """Backbone, tap and score of what has a relevance, the highest first."""
    entries = run.results.get("relevance", {}).get(level, [])
    found = [(entry["backbone"], entry["tap"], float(entry[chosen_score(entries)])) for entry in entries]
    return sorted(found, key=lambda entry: -entry[2])


def _stores(run: LoadedRun) -> dict[str, str]:
    """Stores by backbone label."""
    return {feature.get("label", feature["store"]): feature["store"] for feature in run.results["features"]}


def _cost(amounts: Mapping[Any, int | None] | None, key: object) -> Cost | None:
    amount = None if amounts is None else amounts.get(key)
    if amounts is None or amount is None:
        return None
    known = [value for value in amounts.values() if value is not None]
    whole = len(known) == len(amounts) and sum(known) > 0
    return Cost(amount, amount / sum(known) if whole else None)


def macs_of(run: LoadedRun) -> dict[str, int | None] | None:
    """By backbone label; None where the cache is gone."""
    if run.cache is None:
        return None
    macs = {store.name: store.info.macs for store in run.cache.stores()}
    return {label: macs.get(store) for label, store in _stores(run).items()}


def _find_gain(
    run: LoadedRun, store: str | None, tap: str | None, runs: Sequence[LoadedRun], comparisons: Comparisons
) -> Gain | None:
    """By the run that lacks this store, or a tap of it, and differs in least; of several the best."""
    if store is None:
        return None
    wanted = _taps_by_store(run)
    wanted[store] = wanted[store] - {tap} if tap else frozenset()
    wanted = {name: taps for name, taps in wanted.items() if taps}
    others = [other for other in runs if _taps_by_store(other) == wanted and _same_training(run, other, comparisons)]
    if not others:
        return None
    other = min(others, key=lambda other: (len(_differing(run, other)), rank(other)))
    found = comparisons.difference(run, other)
    ci95, verdict = (None, found) if isinstance(found, str) else (found.ci95, found.verdict)
    gained = run.row.main.mean - other.row.main.mean
    return Gain(gained, ci95, verdict, other.row.name, _differing(run, other))


def _same_training(run: LoadedRun, other: LoadedRun, comparisons: Comparisons) -> bool:
    if run.row.headline != other.row.headline or not comparisons.same_images([run, other]):
        return False
    if any(getattr(run.config, name) != getattr(other.config, name) for name in _SAME):
        return False
    mine, its = ({k: v for k, v in r.config.recipe.items() if k not in _ASIDE} for r in (run, other))
    return mine == its


def _differing(run: LoadedRun, other: LoadedRun) -> tuple[str, ...]:
    return tuple(name for name in _ASIDE if run.config.recipe.get(name) != other.config.recipe.get(name))


def _taps_by_store(run: LoadedRun) -> dict[str, frozenset[str]]:
    taps: dict[str, frozenset[str]] = {}
    for feature in run.results["features"]:
        taps[feature["store"]] = taps.get(feature["store"], frozenset()) | {*feature["taps"]}
    return taps


def _command_without(run: LoadedRun, store: str, label: str) -> str | None:
    kept = tuple(choice for choice in run.config.features if choice.partition(":")[0] != store)
    root = run.paths.root  # what scores for --select lies in its run, where no other run belongs
    base = root.parent if RunPaths(root.parent).scoring == root else root
    out = base.with_name(f"{base.name}-without-{re.sub(r'[^A-Za-z0-9._-]+', '-', label).strip('-')}")
    try:
        return train_command(run.config.model_copy(update={"features": kept, "select": None}), out)
    except LofftaError:  # a recipe that this version does not know any more
        return None


def train_command(config: TrainConfig, out: Path) -> str:
    """The `loffta train` that makes a run of a resolved configuration, quoted for a shell."""
    words = ["loffta", "train", str(config.cache), "--head", config.head]
    for features in config.features:
        words += ["--features", features]
    for name, field in TrainConfig.model_fields.items():
        value = getattr(config, name)
        if name in ("cache", "head", "features", "recipe", "augment", "online") or value == field.default:
            continue
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    plain = parse(find_head(config.head).recipe, {}, where="recipe").model_dump(mode="json")
    settings = {name: value for name, value in config.recipe.items() if value != plain.get(name)}
    if config.augment != "none":
        plain = AugmentConfig().model_dump(mode="json")
        asked = resolve(config.augment).model_dump(mode="json")
        settings |= {f"augment.{name}": value for name, value in asked.items() if value != plain[name]}
    for name, value in settings.items():
        words += ["--set", f"{name}={json.dumps(value)}"]
    return shlex.join([*words, "--out", str(out)])
