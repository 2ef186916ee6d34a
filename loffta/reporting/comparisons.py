"""Which runs of a report are better than which: paired by test image, over seeds, from their predictions.

In: loaded runs.   Out: Comparisons, which gives the difference of any two; for `facts`, `worth`, `page`, the terminal.
Runs are compared where they were tested on images of the same keys and labels, wherever their caches lie; and only by
predictions that give the score in the results. Where a run kept groups of images together, groups are drawn anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loffta.errors import LofftaError
from loffta.reporting.predictions import read_predicted, read_recorded
from loffta.reporting.tables import LoadedRun
from loffta.targets import MEASURED_BY, DenseSettings
from loffta.tasks import find_task
from loffta.tasks.bootstrap import Weights, group_weights, image_weights
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import smaller_is_better
from loffta.tasks.paired import Difference, Scored, difference

_CLOSE = 1e-4  # between a score counted from predictions and the one in the results
Recount = Callable[[NDArray[Any]], NDArray[Any]]  # weights [R, B] -> the headline metric [R, S]


class Comparisons:
    """Reads the predictions of all runs; those of the same images share one set of resamples."""

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        """Nothing is drawn before a difference is asked for."""
        self._images: dict[Path, str] = {}
        self._recounts: dict[Path, Recount] = {}
        self._groups: dict[Path, Sequence[str] | None] = {}  # whom the images are of, in the order of their keys
        self._unknown: dict[Path, str] = {}  # why a run cannot be compared
        self._scored: dict[Path, Scored] = {}
        self._runs = {run.paths.root: run for run in runs}
        for root, run in self._runs.items():
            try:
                self._images[root], self._recounts[root], self._groups[root] = _open(run)
            except LofftaError as error:
                self._unknown[root] = f"{run.row.name}: {error.what}"

    def same_images(self, runs: Sequence[LoadedRun]) -> bool:
        """Whether all were tested on the same images: by their predictions, or where one has none by their caches."""
        roots = [run.paths.root for run in runs]
        if any(root in self._unknown for root in roots):
            return len({_by_cache(run) for run in runs}) == 1
        return len({self._images[root] for root in roots}) == 1

    def difference(self, one: LoadedRun, other: LoadedRun) -> Difference | str:
        """`one` less `other` in their headline metric, or why it is not known."""
        for run in (one, other):
            if run.paths.root in self._unknown:
                return self._unknown[run.paths.root]
        if one.row.headline != other.row.headline:
            return "they are measured by different metrics"
        if not self.same_images([one, other]):
            return "they were tested on different images, or by different labels"
        return difference(self.scored(one), self.scored(other), one.row.n_images)

    def together(self) -> list[list[LoadedRun]]:
        """Groups of runs that can be compared with each other; a run that cannot with any is in none."""
        groups: dict[tuple[str, str], list[LoadedRun]] = {}
        for root, images in self._images.items():
            run = self._runs[root]
            groups.setdefault((run.row.headline, images), []).append(run)
        return [group for group in groups.values() if len(group) > 1]

    def scored(self, run: LoadedRun) -> Scored:
        """What the seeds of a run that can be compared score in the resamples that are shared."""
        self._score_all(run)
        return self._scored[run.paths.root]

    def _score_all(self, run: LoadedRun) -> None:
        """Scores `run` and all that were tested on its images in one set of resamples."""
        if run.paths.root in self._scored:
            return
        images = self._images[run.paths.root]
        recounts = {root: self._recounts[root] for root, others in self._images.items() if others == images}
        found: dict[Path, list[NDArray[Any]]] = {root: [] for root in recounts}
        for weights in _weights(run.row.n_images, [self._groups[root] for root in recounts]):
            for root, recount in recounts.items():
                found[root].append(recount(weights))
        for root, blocks in found.items():
            main = self._runs[root].row.main
            resampled = np.concatenate(blocks)
            self._scored[root] = Scored(np.array(main.per_seed), resampled, smaller_is_better(main.name))


def _weights(n_images: int, groupings: Sequence[Sequence[str] | None]) -> Iterator[Weights]:
    """Resamples of images; of whole groups where any run knows them: the widest, where several do.

    Images fail together whether or not a run was told whom they are of.
    """
    known = [groups for groups in groupings if groups is not None]
    if not known:
        return image_weights(n_images)
    return group_weights(min(known, key=lambda groups: len({*groups})))


def _open(run: LoadedRun) -> tuple[str, Recount, Sequence[str] | None]:
    """A digest of the images with labels, how the run's headline metric is counted anew, and whom images are of."""
    name = run.results.get("task", "classification")
    images, recount, groups = (_open_dense if name in DENSE_TASKS else _open_labels)(run, name)
    (counted,) = recount(np.ones((1, run.row.n_images), np.float32))
    if not np.allclose(counted, run.row.main.per_seed, atol=_CLOSE):
        raise LofftaError(
            "its predictions give another score than its results",
            where=run.paths.root,
            remedy=f"run `loffta evaluate RUN --split {run.row.split}`",
        )
    return images, recount, None if groups is None else groups.tolist()


def _open_labels(run: LoadedRun, name: str) -> tuple[str, Recount, NDArray[Any] | None]:
    task = find_task(name)
    found = read_predicted(run, scores=task.needs_scores)
    recount = task.recount(found.labels, found.predicted, found.scores)
    if recount is None:
        raise LofftaError(
            "its predictions keep no scores of so many classes",
            where=run.paths.predictions(run.row.split),
            remedy="compare the intervals with care",
        )
    labelled = zip(found.keys, (np.atleast_1d(label).tolist() for label in found.labels), strict=True)
    return _digest(labelled), recount, found.groups


def _open_dense(run: LoadedRun, name: str) -> tuple[str, Recount, NDArray[Any] | None]:
    task, found, told = DENSE_TASKS[name], read_recorded(run), run.results["dense"]
    metric = run.row.headline
    try:
        settings = DenseSettings(**told["settings"])
        counts = [task.recount(of_seed, told["classes"], settings) for of_seed in found.records]
        counts[0](np.ones((1, run.row.n_images), np.float32))
    except (ValueError, TypeError, IndexError) as error:
        raise LofftaError(
            f"its figures of images are damaged ({type(error).__name__})",
            where=run.paths.predictions_dense(run.row.split),
            remedy=f"run `loffta evaluate RUN --split {run.row.split}`",
        ) from error

    def recount(weights: NDArray[Any]) -> NDArray[Any]:
        return np.stack([count(weights)[metric] for count in counts], axis=1)

    measured = [
        told["target"],
        told["targets"],
        told.get("geometry"),
        *(getattr(settings, name) for name in MEASURED_BY),
    ]
    return _digest([*((key, "") for key in found.keys), ("", measured)]), recount, found.groups


def _digest(images: Iterable[tuple[object, object]]) -> str:
    """Of keys and labels; with length, so that no two lists are one text."""
    text = "".join(f"{len(str(key))}:{key}{label}" for key, label in images)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _by_cache(run: LoadedRun) -> tuple[str, str, int]:
    images = run.cache.table.digest if run.cache else str(run.config.cache)
    return images, run.row.split, run.row.n_images
