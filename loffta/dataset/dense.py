"""What a dense head is trained on and measured by: a task that fits, targets beside the features, rows that have them.

In: an open cache, its Features, the name of a head.   Out: DenseTargets. `targets` is for labels of whole images.
Called by `train` and `evaluate`; nothing here reads pixels.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loffta.dataset.features import Feature
from loffta.dataset.shown import centre_of, cut_target
from loffta.dataset.targets import choose_task
from loffta.errors import LofftaError, UsageError
from loffta.heads import HEADS, find_head
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.targets import BoxTargets, NativeTargets
from loffta.targets import NativeTarget, TargetKind
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import FIGURES, metric_name
from loffta.tokens import FeatureSpec


@dataclass(frozen=True)
class DenseTargets:
    """The targets of one kind of an image set, at their own size and in the form that heads learn; and what is fed."""

    task: str
    inputs: tuple[Feature, ...]  # of the head: its features, and the thumbnails where it wants them
    native: NativeTargets
    maps: Feature | None = None  # what heads learn, in the features' geometry: a feed reads it beside them
    boxes: tuple[BoxTargets, ...] = ()  # the same of boxes, by view, whole images first; they lie in memory

    @property
    def kind(self) -> TargetKind:
        return DENSE_TASKS[self.task].target

    @property
    def classes(self) -> tuple[str, ...]:
        """What masks and boxes say; none of depth and instances."""
        return self.native.classes

    @cached_property
    def has(self) -> NDArray[np.bool_]:
        """Per row of the table, whether it has a target that can be read."""
        return np.asarray(self.native.status == "ok", bool)

    @cached_property
    def settled(self) -> NDArray[np.bool_]:
        """Per row of the table, whether its target is there in all forms, or is known to be missing or bad."""
        settled = np.asarray(self.native.status != "", bool)
        maps = () if self.maps is None else (self.maps, *self.maps.views)
        for ready in [*(boxes.ready for boxes in self.boxes), *(_ready(one, len(settled)) for one in maps)]:
            settled = settled & (ready | ~self.has)
        return settled

    def shown(self, rows: NDArray[np.int64]) -> list[NativeTarget]:
        """At their own size, of the part of each image that the features show: what outputs are measured on."""
        centre, found = centre_of(self.inputs[0].store), self.native.read(rows)
        assert None not in found, "rows have targets"
        return [one if centre is None else cut_target(one, centre) for one in found if one is not None]

    def digest(self, rows: NDArray[np.int64]) -> str:
        """Of the targets' bytes at their sources: a training goes on with the same ones alone."""
        hashes = self.native.hashes(rows.tolist())
        return digest_of(self.task, self.classes, [hashes[row] for row in rows.tolist()])


def digest_of(task: str, classes: Sequence[str], hashes: Sequence[str]) -> str:
    """Of targets by the hashes of their bytes."""
    said = json.dumps([task, list(classes), list(hashes)])
    return hashlib.blake2b(said.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def choose_any_task(cache: Cache, head: str, name: str) -> str:
    """The task that a head is trained for: a dense one by the targets that there are, another by the labels.

    Raises:
        UsageError: a task that the head cannot learn, none that there are targets for, or several.
        LofftaError: as `choose_task`.
    """
    if not find_head(head).dense:
        if name in DENSE_TASKS:
            able = " or ".join(known for known, entry in HEADS.items() if entry.dense)
            raise UsageError(
                f"head '{head}' sees an image as a whole, and {name} is of its pixels or objects",
                where=f"--head {head} --task {name}",
                remedy=f"use --head {able}",
            )
        return choose_task(cache.table, name)

    def remedy(kind: str) -> str:
        return f"add them to the features that are there: {_extract(cache, kind)}"

    return choose_dense_task(head, name, cache.target_kinds(), "cache", cache.paths.root, remedy)


def choose_dense_task(
    head: str, name: str, kinds: Collection[str], holder: str, where: str | Path, missing: Callable[[str], str]
) -> str:
    """The task that a head of maps is trained for, by the kinds of targets that there are.

    Args:
        holder: of the targets: "cache".
        missing: the remedy where there are none of a kind.
    Raises:
        UsageError: a task that the head cannot learn, none that there are targets for, or several.
    """
    if name != "auto" and name not in DENSE_TASKS:
        raise UsageError(
            f"head '{head}' gives maps, and {name} is of whole images",
            where=f"--head {head} --task {name}",
            remedy=f"use --task {' or '.join(DENSE_TASKS)}, or another --head",
        )
    able_to = find_head(head).tasks or tuple(DENSE_TASKS)
    if name not in ("auto", *able_to):
        raise UsageError(
            f"head '{head}' is for {' or '.join(able_to)}",
            where=f"--head {head} --task {name}",
            remedy=f"use --task {able_to[0]}, or another --head",
        )
    name = able_to[0] if len(able_to) == 1 else name
    fitting = [known for known in able_to if DENSE_TASKS[known].target in kinds and name in ("auto", known)]
    if not fitting:
        wanted = "mask" if name == "auto" else DENSE_TASKS[name].target
        what = "any targets of pixels or objects" if name == "auto" else f"the targets of {name}, '{wanted}'"
        raise UsageError(
            f"the {holder} does not have {what}",
            where=where,
            remedy=missing(wanted),
        )
    if len(fitting) > 1:
        raise UsageError(
            f"the {holder} has targets for {', '.join(fitting)}",
            where=f"--head {head}",
            remedy=f"say which one: --task {fitting[0]}",
        )
    return fitting[0]


def refuse_shots(task: str) -> None:
    """Refuses a learning curve of a figure that is no share: its law is one of errors from 0 to 1."""
    headline = DENSE_TASKS[task].headline
    if not FIGURES[headline].percent:
        raise UsageError(
            f"{metric_name(headline)}, by which {task} is told, is no share: no learning curve can be fitted to it",
            where="--shots",
            remedy="leave it out; --holdout and --folds measure this task, too",
        )


def learnable(cache: Cache, task: str) -> NDArray[np.bool_] | None:
    """Per row of the table, whether it has the target that a dense task learns; None: the task learns labels."""
    if task not in DENSE_TASKS:
        return None
    return np.asarray(cache.native(DENSE_TASKS[task].target).status == "ok", bool)


def open_targets(cache: Cache, task: str, head: str, features: Sequence[Feature], *, training: bool) -> DenseTargets:
    """The targets of a dense task.

    Args:
        features: whose geometry the training form has to share.
        training: whether there has to be one.
    Raises:
        LofftaError: there are none, or none in this geometry; the command that adds them is given.
        UsageError: stores of several geometries.
    """
    kind = DENSE_TASKS[task].target
    if kind not in cache.target_kinds():
        raise LofftaError(
            f"the cache has no targets '{kind}'", where=cache.paths.root, remedy=f"add them: {_extract(cache, kind)}"
        )
    inputs = tuple(features)
    if getattr(find_head(head).head, "needs_thumb", False):
        if features[0].views:
            raise UsageError(
                f"head '{head}' is guided by thumbnails, and there are none of views",
                where="--views",
                remedy="leave it out, or use another head",
            )
        if centre_of(features[0].store) is not None:
            raise UsageError(
                f"head '{head}' is guided by thumbnails of whole images, and these features show the centre of each",
                where=f"store {features[0].store.name}",
                remedy="extract with --resize squash, or use another head",
            )
        inputs += (image_feature(cache.thumbs(), features[0].store),)
    found = DenseTargets(task, inputs, cache.native(kind))
    if not training:
        return found
    forms = [_form(cache, kind, shown) for shown in zip(*((f, *f.views) for f in features), strict=True)]
    maps = [form for form in forms if isinstance(form, Feature)]
    boxes = tuple(form for form in forms if not isinstance(form, Feature))
    return replace(found, maps=replace(maps[0], views=tuple(maps[1:])) if maps else None, boxes=boxes)


def _form(cache: Cache, kind: TargetKind, features: Sequence[Feature]) -> Feature | BoxTargets:
    """Targets over the square that some features are of."""
    stores = {feature.store.name: feature.store for feature in features}
    forms = {name: cache.training_target(kind, store) for name, store in stores.items()}
    first, *others = forms
    for other in others:
        if forms[other].paths.name != forms[first].paths.name:
            raise UsageError(
                f"stores {first} and {other} show other parts of an image: no target fits both",
                where="--features",
                remedy="name stores that were extracted with the same --resize and the same view",
            )
    form = forms[first]
    return image_feature(form, stores[first]) if isinstance(form, CachedArray) else form


def rows_with_targets(
    targets: DenseTargets, cache: Cache, rows: NDArray[np.int64], split: str, *, partial: bool = False
) -> NDArray[np.int64]:
    """Those of `rows` that have a target: the others are left out of training and of results.

    Args:
        partial: take what is there, though units are missing.
    Raises:
        LofftaError: units are missing, or nothing is left.
    """
    waiting = rows[~targets.settled[rows]]
    if len(waiting) and not partial:
        raise LofftaError(
            f"the targets '{targets.kind}' are not finished: {len(waiting)} of the {len(rows)} images of split "
            f"'{split}' have none yet",
            where=cache.paths.root,
            remedy=f"finish them with\n      {_extract(cache, targets.kind)}\n    or take what is there: --partial",
        )
    found = rows[(targets.has & targets.settled)[rows]]
    if len(found):
        return found
    bad = [targets.native.reasons[row] for row in rows.tolist() if targets.native.reasons.get(row)]
    raise LofftaError(
        f"no image of split '{split}' has a target '{targets.kind}' ({len(rows)} have none)",
        where=f"{cache.paths.root}: {bad[0]}" if bad else cache.paths.root,
        remedy=f"choose a split whose images have them, or look at `loffta info {shlex.quote(str(cache.paths.root))}`",
    )


def image_feature(array: CachedArray, store: Store) -> Feature:
    """An array that belongs to the images, as a feed reads it: thumbnails, or maps of a target.

    Args:
        store: any, whose name is that of `targets` then, for what is told of the feed.
    """
    shape = array.layout.item_shape
    spec = FeatureSpec("images", (array.kind,), "thumb", shape, shape[0])
    return Feature(replace(store, name="targets", arrays=()), array, spec)


def refuse_dense(task: str, doing: str, where: str | Path) -> None:
    """Refuses a run whose heads give maps where answers about whole images are needed.

    Args:
        doing: what they are needed for: "predict".
    """
    if task in DENSE_TASKS:
        raise UsageError(
            f"this run is of {task}: its heads give maps, which `loffta {doing}` cannot use yet",
            where=where,
            remedy="`loffta evaluate RUN` measures it; results.json has all figures",
        )


def _ready(maps: Feature, n_rows: int) -> NDArray[np.bool_]:
    """Per row of the table, whether there is a map of it; arrays not yet grown have fewer rows."""
    found = np.zeros(n_rows, bool)
    here = maps.array.ledger.ready[:n_rows]
    found[: len(here)] = here
    return found


def _extract(cache: Cache, kind: str) -> str:
    words = ["loffta", "extract", cache.table.source, "--cache", str(cache.paths.root), "--targets", kind]
    return shlex.join(words)
