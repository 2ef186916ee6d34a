"""The driver of an audit: features in, all that looks wrong out. Nothing is written.

Memory: a block of vectors of 512 MB at most, 20 neighbours of every image, a chance for every image and class, and
`logreg`'s for every fold (K x (K + 20 C), in float64). The features themselves are held where the feed finds room.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.auditing.copies import (
    NEAR,
    Copies,
    far_distance,
    find_copies,
    find_nearest,
    mean_distances,
)
from loffta.auditing.found import Audit, CopyGroup, LabelError, Outlier
from loffta.auditing.judges import N_VOTES, UNUSED, judge
from loffta.auditing.vectors import Pooling, Vectors, choose_vectors
from loffta.dataset.features import resolved_choices, usable_rows
from loffta.dataset.folds import draw_folds
from loffta.errors import LofftaError, UsageError
from loffta.machine import process
from loffta.machine.progress import say
from loffta.probes.knn import Nearest
from loffta.probes.ncm import ClassMeans
from loffta.store.cache import Cache
from loffta.store.hashes import recorded_hashes
from loffta.store.table import ImageTable
from loffta.tasks.confident import find_suspects
from loffta.words import plural

# of the labels: a judge below is more often wrong than labels may be where confident learning holds, for the most
# frequent label of a class has to be its own (Northcutt et al. 2021, section 4)
LEAST_AGREEMENT = 0.5
MAX_FOLDS = 100  # each is a training


def audit(
    cache: Cache,
    features: Sequence[str] = (),
    *,
    pooling: Pooling = "mean",
    near: float = NEAR,
    folds: int = 5,
    seed: int = 0,
    partial: bool = False,
    device: str = "auto",
) -> Audit:
    """Looks for copies, leaks, wrong labels and outliers in all splits of a cache; what does not apply is told.

    Args:
        features: as `choose_features` takes them; the last tap of all stores where there are none.
        near: copies are nearer than this fraction of the median distance to the nearest image.
        folds: for logistic regression, which judges labels.
        seed: of the folds.
        partial: take what is there, though units are missing.
    Raises:
        UsageError: an option, name or value that cannot be used.
        LofftaError: features are not in the cache, or of fewer than two images.
    """
    if not 0 <= near < 1:
        raise UsageError(f"--near {near} is no fraction", where="--near", remedy="use 0 or more and less than 1: 0.13")
    if not 2 <= folds <= MAX_FOLDS:
        fault = "leave nothing to learn from" if folds < 2 else "are more trainings than anybody waits for"
        raise UsageError(f"{folds} folds {fault}", where="--folds", remedy=f"use 2 to {MAX_FOLDS}: 5")
    process.cap_threads()
    table, chosen = cache.table, choose_vectors(cache, features, pooling)
    rows = usable_rows(cache, chosen, "+".join(table.split_sizes()), partial=partial)
    if len(rows) < 2:
        raise LofftaError(
            "there is one image with features, and nothing to compare it with",
            where=cache.paths.root,
            remedy="extract more images",
        )
    with Vectors(chosen, rows, process.resolve_device(device)) as vectors:
        say(f"comparing {len(rows)} images with each other, {vectors.n_columns} columns on {vectors.device}")
        nearest = find_nearest(vectors, min(N_VOTES, len(rows) - 1))
        copies = find_copies(nearest, _hashes(cache, rows), near)
        distances = mean_distances(nearest)
        far = far_distance(distances)
        outliers = np.flatnonzero(distances > far)
        outliers = outliers[np.argsort(-distances[outliers], kind="stable")]
        audited = Audit(
            table=table,
            features=resolved_choices(chosen),
            rows=rows,
            similar_from=copies.threshold,
            far_from=far,
            median_distance=float(np.median(distances)),
            copies=_groups(table, rows, copies),
            outliers=tuple(Outlier(int(rows[i]), float(distances[i])) for i in outliers),
            typical=_typical(vectors, table),
        )
        return _with_label_errors(audited, vectors, nearest, copies, folds, seed)


def _hashes(cache: Cache, rows: NDArray[np.int64]) -> list[str]:
    """Of the images' bytes, by the first array that knows them; empty where none does."""
    known = recorded_hashes(cache)
    return [next(iter(known.get(row, {}).values()), "") for row in rows.tolist()]


def _groups(table: ImageTable, rows: NDArray[np.int64], copies: Copies) -> tuple[CopyGroup, ...]:
    """Groups of two and more: leaks first, then labels that contradict each other, then the most alike."""
    members: dict[int, list[int]] = {}
    for place, first in enumerate(copies.first.tolist()):
        members.setdefault(first, []).append(int(rows[place]))
    groups = [
        CopyGroup(
            tuple(found),
            float(copies.similarity[first]),
            splits=tuple(dict.fromkeys(table.splits[row] for row in found if table.splits[row])),
            labels_differ=len({label for row in found if (label := _label_of(table, row)) is not None}) > 1,
        )
        for first, found in members.items()
        if len(found) > 1
    ]
    return tuple(sorted(groups, key=lambda g: (not g.leaks, not g.labels_differ, -g.similarity)))


def _label_of(table: ImageTable, row: int) -> object:
    """Class, classes or number; None where it is not known."""
    if table.label_sets is not None:
        return table.label_sets[row]
    return table.value(row) if table.values is not None else table.class_name(row)


def _with_label_errors(
    found: Audit, vectors: Vectors, nearest: Nearest, copies: Copies, n_folds: int, seed: int
) -> Audit:
    """Adds wrong labels, or why none were looked for."""
    table, rows = found.table, found.rows
    if table.label_kind != "single-label":
        return found.without_labels(f"the labels are {table.label_kind}: confident learning is for one class an image")
    labels, known = table.labels[rows], table.is_labelled()[rows]
    if not known.any():
        return found.without_labels("no image has a label")
    if (most := int(np.bincount(labels[known]).max())) < n_folds:
        return found.without_labels(
            f"no class has more than {most} {plural(most, 'label')}, and a judge of each of the {n_folds} folds needs "
            "some in the others: label more images"
        )
    folds = np.full(len(rows), UNUSED, dtype=np.int64)
    folds[known] = draw_folds(labels[known], None, n_folds, seed)
    folds = np.where(known, _with_copies(folds, copies.first), UNUSED)
    judged = _learnable(labels, folds)
    if len(np.unique(labels[judged])) < 2:
        n_classes = len(np.unique(labels[known]))
        return found.without_labels(
            f"{int(known.sum())} labels of {n_classes} {plural(n_classes, 'class', 'classes')}: fewer than two classes "
            f"have images in two of the {n_folds} folds"
        )
    folds = np.where(judged, folds, UNUSED)
    places = np.flatnonzero(judged)
    say(f"judging {len(places)} labels by {n_folds} folds")
    chances = judge(vectors, nearest, labels, folds, copies.first, len(table.classes))[places]
    agreement = float((chances.argmax(axis=1) == labels[places]).mean())
    if agreement < LEAST_AGREEMENT:
        return found.without_labels(
            f"judges that have not learnt them agree with {agreement:.1%} of {len(places)} labels, so they know too "
            "little to doubt any: label more images, or compare by other features (--features)"
        )
    suspects = find_suspects(chances, labels[places])
    errors = tuple(
        LabelError(
            int(rows[places[i]]),
            int(suggested),
            chance_given=float(chances[i, labels[places[i]]]),
            chance=float(chances[i, suggested]),
        )
        for i, suggested in zip(suspects.place.tolist(), suspects.suggested.tolist(), strict=True)
    )
    return found.with_labels(errors, agreement, len(places))


def _with_copies(folds: NDArray[np.int64], first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Copies all in one fold: a judge that has learnt one would only repeat its label for the other."""
    of_group = np.full(len(folds), UNUSED, dtype=np.int64)
    np.maximum.at(of_group, first, folds)
    return of_group[first]


def _learnable(labels: NDArray[np.int64], folds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the other folds have images of an image's class."""
    used = folds != UNUSED
    in_folds: dict[int, set[int]] = {}
    for label, fold in zip(labels[used].tolist(), folds[used].tolist(), strict=True):
        in_folds.setdefault(label, set()).add(fold)
    several = [label for label, found in in_folds.items() if len(found) > 1]
    known: NDArray[np.bool_] = used & np.isin(labels, several)
    return known


def _typical(vectors: Vectors, table: ImageTable, n_shown: int = 8) -> dict[int, tuple[int, ...]]:
    """Of every class the rows of images whose direction is nearest to its mean's, the nearest first."""
    classes = _classes_of_places(table, vectors.rows)
    if not classes:
        return {}
    means = ClassMeans(len(table.classes), vectors.n_columns, "cosine", vectors.device)
    for here, batch in vectors.batches():
        places, labels = _pairs(classes, here)
        means.add(batch[places.to(batch.device)], labels)
    fitted, scored = means.fit(), dict[int, list[tuple[float, int]]]()
    weight = fitted.weight.to(vectors.device, torch.float32)
    for here, batch in vectors.batches():
        places, labels = _pairs(classes, here)
        cosines = (batch @ weight)[places.to(batch.device), labels.to(batch.device)].tolist()
        for place, label, cosine in zip(places.tolist(), labels.tolist(), cosines, strict=True):
            scored.setdefault(label, []).append((-cosine, int(vectors.rows[here.start + place])))
            if len(scored[label]) > 2 * n_shown:
                scored[label] = sorted(scored[label])[:n_shown]
    return {label: tuple(row for _, row in sorted(scored[label])[:n_shown]) for label in sorted(scored)}


def _classes_of_places(table: ImageTable, rows: NDArray[np.int64]) -> list[tuple[int, ...]]:
    """The classes of every image, none of some; empty where no image can have any."""
    if table.values is not None or not table.classes:
        return []
    if table.label_sets is not None:
        return [table.label_sets[row] or () for row in rows]
    return [(label,) if label >= 0 else () for label in table.labels[rows].tolist()]


def _pairs(classes: Sequence[tuple[int, ...]], here: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Places in a batch and classes: an image as often as it has classes."""
    pairs = [(i, label) for i, found in enumerate(classes[here]) for label in found]
    both = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
