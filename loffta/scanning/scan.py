"""The driver of `loffta scan`: every layer of a cache, in as few reads as possible.

In:  a ScanConfig.   Out: a Scan. The tested images are read first and their vectors held; then the training images pass
by, once, and all heads on all layers gather what they need. Only logistic regression passes over them again, in memory
where they fit. Layers whose needs are more than half of the free memory are scanned in turn, group after group: each
group reads its own taps alone, so that no byte of a grid is read twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loffta.config import HeadName, ScanConfig
from loffta.dataset.features import Feature, choose_features, n_bad, usable_rows
from loffta.dataset.parts import groups_of
from loffta.dataset.splits import choose_splits
from loffta.dataset.targets import choose_task, labelled_rows, read_targets
from loffta.errors import UsageError
from loffta.feed.batches import Feed
from loffta.feed.modes import AUTO_SHARE, ModeChoice, free_bytes
from loffta.feed.sources import read_bytes
from loffta.feed.staged import Stage
from loffta.machine import process
from loffta.machine.progress import Progress, say
from loffta.probes.logreg import n_held
from loffta.scanning.layers import Layer, in_groups, kinds_of, list_layers, only
from loffta.scanning.plan import Plan, Rows, make_plan
from loffta.scanning.probing import Found, Goal, Probe
from loffta.scanning.results import Answer, Scan, score_rows
from loffta.store.cache import Cache
from loffta.tasks import Task, find_task

DEFAULT_HEADS: tuple[HeadName, ...] = ("knn", "ncm", "ridge")
FITTING: dict[str, tuple[HeadName, ...]] = {  # heads by the kind of labels
    "single-label": ("knn", "ncm", "ridge", "logreg"),
    "multi-label": ("ridge", "logreg"),
    "regression": ("ridge",),
}
_BATCH, _BATCH_BYTES = 256, 64 << 20  # images that are read at a time, and bytes: the feed holds a few batches
_CHUNK = 1024  # images that are multiplied at a time: a matrix per layer is read and written for each chunk
_LESS_MEMORY = "scan fewer layers at a time with --features STORE:TAPS, or on --device cpu"


@dataclass(frozen=True)
class _Work:
    """What all groups of layers share."""

    config: ScanConfig
    plan: Plan
    goal: Goal
    task: Task
    heads: tuple[HeadName, ...]
    device: torch.device


def scan(config: ScanConfig, stop: process.StopFlag) -> Scan:
    """Measures every layer with every head.

    Raises:
        UsageError: unknown store, tap or split; heads that do not fit the labels; more neighbours than images.
        LofftaError: the cache lacks features, or the memory is not enough.
        Stopped: a signal came.
    """
    start = time.monotonic()
    process.cap_threads()
    device = process.resolve_device(config.device)
    cache = Cache.open(config.cache)
    cache = cache if config.labels is None else cache.with_labels(config.labels)
    name = choose_task(cache.table)
    task, table = find_task(name), cache.table
    heads = _choose_heads(config, task)
    if config.folds is None:
        config = choose_splits(config, table, cache.paths.images)
    features = choose_features(cache, config.features, kinds_of(config.pooling), default_taps="every")
    unlabelled: dict[str, int] = {}

    def usable(split: str) -> Rows:
        found = usable_rows(cache, features, split, partial=config.partial)
        labelled = labelled_rows(table, found, split, name)
        unlabelled[split] = len(found) - len(labelled)
        return labelled

    plan = make_plan(config, table, usable)
    _check_k(config, plan, heads)
    _warn(config, plan)
    work = _Work(config, plan, Goal(read_targets(table, name).to(device), len(table.classes)), task, heads, device)
    answers: list[Answer] = []
    with stop.at_once("scanning; nothing is written"), process.explain_memory(device, config.cache, _LESS_MEMORY):
        stage = Stage(config.stage_dir, stop)
        stage.bring([(features, np.union1d(plan.trained, plan.tested))])
        layers = list_layers(features, config.pooling)
        groups = in_groups(layers, _needs(work), int(AUTO_SHARE * free_bytes(device)))
        n_rows = len(np.union1d(plan.trained, plan.tested))
        with Progress("scan", n_rows * len(groups), "images") as progress:
            for taps in groups:
                answers += _scan_group(work, only(stage.use(features), taps), progress)
        labels = read_targets(table, name)[plan.tested].numpy()
        whose = None if config.group is None else groups_of(table, plan.tested, config.group)
        rows = score_rows(answers, task, _as_recounted(labels), whose)
    splits = dict.fromkeys(part for split in unlabelled for part in split.split("+"))
    return Scan(
        cache=str(config.cache),
        source=table.source,
        task=name,
        metric=task.headline,
        tested_on=plan.test_split,
        n_images=len(plan.tested),
        n_trained=len(plan.trained),
        n_folds=config.folds,
        n_draws=config.draws if config.shots else None,
        chosen_on=plan.chosen_on,
        standardised=config.standardise,
        rows=rows,
        depths={f.store.name: list(f.store.stored_taps()) for f in features},
        left_out={"bad": n_bad(cache, features, "+".join(splits)), "unlabelled": sum(unlabelled.values())},
        bytes_read=n_rows * sum(read_bytes(only(features, taps)) for taps in groups),
        seconds=time.monotonic() - start,
        versions=process.versions(),
        staging=stage.told.get("staging"),
    )


def _scan_group(work: _Work, features: Sequence[Feature], progress: Progress) -> list[Answer]:
    """The layers of some features, all heads."""
    layers, plan = list_layers(features, work.config.pooling), work.plan
    held = _hold(work, features, layers, progress)
    probes = [Probe(work.heads, vectors, plan, work.goal, work.config) for vectors in held]
    again = "logreg" in work.heads
    with _Passes(work, features, layers, held, mode="auto" if again else "stream") as passes:
        for vectors, rows, members in passes.run():
            for probe, own in zip(probes, vectors, strict=True):
                probe.add(own, rows, members)
            progress.advance(len(rows))
        if again:
            _regress(probes, passes)
    return [
        answer
        for layer, probe in zip(layers, probes, strict=True)
        for head in work.heads
        for answer in _answers(work, layer, head, probe.answer(head))
    ]


def _hold(work: _Work, features: Sequence[Feature], layers: Sequence[Layer], progress: Progress) -> list[Tensor]:
    """The vectors of the tested images, [n, K] of each layer."""
    held: list[Tensor] = []
    done = 0
    with _feed(work, features, work.plan.tested, "stream") as feed:
        for batch in feed.in_order():
            found = [layer.take(batch.features) for layer in layers]
            if not held:
                held = [vectors.new_empty((len(work.plan.tested), vectors.shape[1])) for vectors in found]
            for whole, vectors in zip(held, found, strict=True):
                whole[done : done + len(vectors)] = vectors
            done += len(batch.rows)
            progress.advance(0 if work.config.folds else len(batch.rows))
    return held


def _feed(work: _Work, features: Sequence[Feature], rows: Rows, mode: ModeChoice) -> Feed:
    n_images = max(1, min(_BATCH, _BATCH_BYTES // read_bytes(features)))
    return Feed(features, rows, batch_size=n_images, device=work.device, mode=mode, order="uniform")


class _Passes:
    """The training images, batch after batch, as often as is asked: from the cache, or what is held of them."""

    def __init__(
        self,
        work: _Work,
        features: Sequence[Feature],
        layers: Sequence[Layer],
        held: Sequence[Tensor],
        mode: ModeChoice,
    ) -> None:
        plan = work.plan
        self._layers, self._held, self._tested = layers, held, plan.tested
        self._device = work.device
        member = torch.zeros((len(plan.parts), len(work.goal.labels)), dtype=torch.bool)
        for part, rows in zip(member, plan.parts, strict=True):
            part[torch.from_numpy(rows)] = True
        self._member = member.to(work.device)
        read = np.setdiff1d(plan.trained, plan.tested)
        self._again = np.flatnonzero(np.isin(plan.tested, plan.trained))
        self._feed = _feed(work, features, read, mode) if len(read) else None

    def run(self) -> Iterator[tuple[list[Tensor], Tensor, Tensor]]:
        """Vectors of every layer, rows, and which parts they are in; some _CHUNK images at a time."""
        waiting: list[tuple[list[Tensor], Tensor]] = []
        for batch in self._feed.in_order() if self._feed is not None else ():
            waiting.append(([layer.take(batch.features).clone() for layer in self._layers], batch.rows.clone()))
            if sum(len(rows) for _, rows in waiting) >= _CHUNK:
                yield self._joined(waiting)
                waiting = []
        if waiting:
            yield self._joined(waiting)
        for first in range(0, len(self._again), _CHUNK):
            places = self._again[first : first + _CHUNK]
            rows, at = (torch.from_numpy(found).to(self._device) for found in (self._tested[places], places))
            yield [vectors[at] for vectors in self._held], rows, self._member[:, rows]

    def _joined(self, waiting: Sequence[tuple[list[Tensor], Tensor]]) -> tuple[list[Tensor], Tensor, Tensor]:
        rows = torch.cat([rows for _, rows in waiting])
        vectors = [torch.cat(parts) for parts in zip(*(found for found, _ in waiting), strict=True)]
        return vectors, rows, self._member[:, rows]

    def __enter__(self) -> _Passes:
        return self

    def __exit__(self, *_: object) -> None:
        if self._feed is not None:
            self._feed.close()


def _regress(probes: Sequence[Probe], passes: _Passes) -> None:
    """Pass after pass, until logistic regression has its minimum on every layer."""
    for probe in probes:
        probe.begin_logistic()
    while any(not one.is_done for probe in probes for one in probe.logistic):
        for vectors, rows, members in passes.run():
            for probe, own in zip(probes, vectors, strict=True):
                for one in probe.logistic:
                    one.add(own, rows, members)
        for probe in probes:
            for one in probe.logistic:
                one.end_pass()


def _answers(work: _Work, layer: Layer, head: HeadName, found: Found) -> Iterator[Answer]:
    """One answer of all folds together, or one for every number of shots, of all its draws."""
    predicted = []
    for blocks in found.scores:
        parts = [scores.float().cpu().numpy() for scores in blocks]
        predicted.append(np.concatenate([part if work.task.needs_scores else work.task.decide(part) for part in parts]))
    trials = work.plan.trials
    if work.config.folds is not None:
        together = np.concatenate(predicted)[np.argsort(np.concatenate([trial.test for trial in trials]))]
        yield Answer(layer, head, None, together[None], found.chosen)
        return
    for shots in dict.fromkeys(trial.shots for trial in trials):
        mine = [i for i, trial in enumerate(trials) if trial.shots == shots]
        yield Answer(layer, head, shots, np.stack([predicted[i] for i in mine]), [found.chosen[i] for i in mine])


def _as_recounted(labels: np.ndarray) -> np.ndarray:
    """[n] classes as they are; of [n, C] the numbers of each image's classes."""
    if labels.ndim == 1:
        return labels
    found = np.empty(len(labels), object)
    found[:] = [np.flatnonzero(row > 0) for row in labels]
    return found


def _choose_heads(config: ScanConfig, task: Task) -> tuple[HeadName, ...]:
    """Those that were asked for, or the quick ones that fit the labels."""
    fitting = FITTING[task.label_kind]
    if config.heads is None:
        return tuple(head for head in DEFAULT_HEADS if head in fitting)
    for head in config.heads:
        if head not in fitting:
            raise UsageError(
                f"head '{head}' needs {find_task('classification').targets}, and the labels are {task.label_kind}",
                where="--heads",
                remedy=f"use --heads {','.join(fitting)}",
            )
    return tuple(dict.fromkeys(config.heads))


def _check_k(config: ScanConfig, plan: Plan, heads: Sequence[HeadName]) -> None:
    if config.k is None or "knn" not in heads:
        return
    fewest = min(len(plan.rows(trial.refit)) for trial in plan.trials)
    if config.k > fewest:
        raise UsageError(
            f"there are no {config.k} neighbours among {fewest} training images",
            where="--k",
            remedy=f"choose --k of at most {fewest}, or train on more images",
        )


def _warn(config: ScanConfig, plan: Plan) -> None:
    if config.folds is None and len(both := np.intersect1d(plan.trained, plan.tested)):
        say(f"{len(both)} images of split '{plan.test_split}' are trained on, too: scores say nothing about new images")


def _needs(work: _Work) -> Callable[[Layer], int]:
    """Bytes of memory that a layer takes while it is scanned, about."""
    n_tested = sum(len(trial.test) for trial in work.plan.trials) if "knn" in work.heads else 0
    n_matrices = len(work.plan.parts) + 4
    n_paths = len(work.plan.trials) if "logreg" in work.heads else 0
    n_points = 10 * work.goal.n_classes * n_paths

    def of_layer(layer: Layer) -> int:
        k = layer.n_columns
        square = k * (k + work.goal.n_classes)
        n_rows = len(work.plan.tested) + n_tested + 2 * n_held(k) * n_paths  # twice: while they are put together
        return 4 * k * n_rows + 8 * (square * (n_matrices + 2 * n_paths) + k * n_points)

    return of_layer
