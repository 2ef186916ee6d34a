"""`loffta.load_run`: a finished training, for new images, for cached ones, and for its head."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from loffta.dataset.features import Feature, choose_features
from loffta.door.dense_run import DenseRun
from loffta.door.given import GivenImage, GivenImages
from loffta.door.options import PathLike, refuse_for
from loffta.errors import UsageError
from loffta.evaluation.evaluate import predict, predict_folds
from loffta.extraction.begin import backbone_loader
from loffta.feed.batches import Batch, Feed
from loffta.images.batches import judge_bad
from loffta.machine import process
from loffta.machine.borrowed import borrowed
from loffta.machine.progress import Progress
from loffta.online.opened import OpenedRun, open_for_images
from loffta.online.opened_dense import open_dense
from loffta.online.predict import name_predicted
from loffta.online.stream import BATCH_SIZE, FreshStream
from loffta.runs.holdout import split_rows
from loffta.runs.known_images import open_cache
from loffta.runs.results_text import Results
from loffta.runs.run import open_run, read_results
from loffta.runs.turns import is_of_folds, read_turns
from loffta.store.cache import Cache
from loffta.tasks.dense import DENSE_TASKS
from loffta.tokens import FeatureSpec


@dataclass(frozen=True)
class Predictions:
    """What the heads of a run say of some images; quarantined ones are not among them."""

    keys: list[str]
    places: NDArray[np.int64]  # [n] among the images given, or rows of the cache's table
    probabilities: NDArray[np.float32]  # [n, C], the mean over the seeds; no column where numbers are predicted
    predicted: list[str] | list[list[str]] | list[float]  # the class, those with 0.5 and more of several, or the number
    classes: tuple[str, ...]
    bad: dict[str, str]  # key -> why it could not be used


def load_run(
    run: PathLike, *, device: str = "auto", cache: PathLike | None = None, calibrated: bool = False
) -> Run | DenseRun:
    """Opens the folder that `train` made.

    >>> run = loffta.load_run("runs/linear", device="cpu")
    >>> run.classes[:3], run.task, run.seeds
    (('0', '1', '2'), 'classification', 1)

    Args:
        device: where heads and backbones compute.
        cache: where the cache is now. None: where it was, or lay beside the run. New images need none.
        calibrated: its probabilities are those of `predict --calibrated`.
    Returns:
        A `Run`; of a dense head a `DenseRun`, whose `predict` gives maps or boxes.
    Raises:
        LofftaError: no run, no trained head, or a run that was trained online; no temperature where one is asked for.
    """
    with borrowed():
        target = process.resolve_device(device)
        root = None if cache is None else Path(cache)
        if open_run(Path(run))[1].task in DENSE_TASKS:
            refuse_for({"calibrated": calibrated}, is_dense=True)
            return DenseRun(open_dense(Path(run), target))
        return Run(open_for_images(Path(run), target, root, calibrated=calibrated), target, root)


class Run:
    """A finished training. Backbones are loaded when the first new images come, and kept."""

    def __init__(self, run: OpenedRun, device: torch.device, cache: Path | None) -> None:
        """Of an open run, whose heads are on `device`."""
        self._run, self._device, self._cache_root = run, device, cache
        self._load = functools.cache(backbone_loader(device))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the heads' outputs."""
        return self._run.origins.classes

    @property
    def task(self) -> str:
        """classification, multi-label or regression."""
        return self._run.config.task

    @property
    def seeds(self) -> int:
        """How many heads there are."""
        return len(self._run.heads)

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """What a head is fed, part by part: backbone, taps L, kind and shape; a batch is one [B, L, *shape] of each."""
        return tuple(feature.spec for feature in self._run.origins.features)

    def __repr__(self) -> str:
        fed = "; ".join(f"{spec.backbone} {', '.join(spec.taps)} ({spec.kind})" for spec in self.specs)
        return f"<run {self._run.paths.root}: head {self._run.config.head} on {fed}>"

    def results(self, split: str | None = None) -> Results:
        """What was measured on a split. None: the run's own.

        >>> run.results().n
        50
        """
        return Results.model_validate(read_results(self._run.paths.results(split or self._run.config.test_on)))

    def head(self, seed: int = 0) -> nn.Module:
        """A copy of one seed's head, in evaluation mode: `head(head.prepare(features))` are the logits [B, C].

        Where numbers are learnt it gives [B, 1], and `head.scale.to_values` of that is in their unit.

        >>> head, spec = run.head(seed=0), run.specs[0]
        >>> features = [torch.zeros(4, len(spec.taps), *spec.shape)]
        >>> head(head.prepare(features)).shape
        torch.Size([4, 10])

        Raises:
            UsageError: there is no such seed.
        """
        if not 0 <= seed < self.seeds:
            raise UsageError(
                f"there is no seed {seed}", where=self._run.paths.root, remedy=f"seeds: 0 to {self.seeds - 1}"
            )
        head = copy.deepcopy(self._run.heads[seed])
        assert isinstance(head, nn.Module), "every head is one"
        return head

    def predict(
        self,
        images: GivenImage | Sequence[GivenImage],
        *,
        batch_size: int = BATCH_SIZE,
        max_bad_frac: float | int = 0.01,
        progress: bool = False,
    ) -> Predictions:
        """Predicts the classes, or the values, of images: paths, PIL images, uint8 arrays [H, W, 3] or [H, W].

        >>> found = run.predict([np.zeros((28, 28, 3), np.uint8), "photos/test/3/0013.png"])
        >>> found.probabilities.shape, found.keys
        ((2, 10), ['image 0', 'photos/test/3/0013.png'])

        Args:
            images: one, several, or an array [B, H, W, 3] of several.
            max_bad_frac: a share; more bad images are an error.
        Raises:
            UsageError: something that is no image, or an array of another type or shape.
            TooManyBadImages: over `max_bad_frac`; fewer are left out and told in `bad`.
            LofftaError: a backbone cannot be had, or is not the one of the features.
        """
        one = isinstance(images, str) or not (isinstance(images, Sequence) or getattr(images, "ndim", 0) == 4)
        source = GivenImages([images] if one else list(images))  # type: ignore[arg-type]
        listing = source.listing()
        rows = range(len(listing))
        with borrowed(progress=progress), Progress("predict", len(rows), "images") as bar:
            process.cap_threads()
            stream = FreshStream(
                self._run.origins.features,
                source,
                listing,
                rows,
                load=self._load,
                device=self._device,
                batch_size=batch_size,
            )
            places: list[int] = []
            found: list[Tensor] = []
            for batch in stream:
                if batch.rows:
                    places += batch.rows
                    found.append(self._run.predict(batch.features))
                bar.advance(len(batch.statuses))
            judge_bad(stream.bad, listing.keys, len(rows), float(max_bad_frac), done="images")
            logits = torch.cat(found, dim=1) if found else torch.empty(self.seeds, 0, len(self.classes) or 1)
        keys = [listing.keys[place] for place in places]
        return self._told(keys, np.array(places, np.int64), logits, {listing.keys[r]: w for r, w in stream.bad.items()})

    def predict_cached(self, split: str | None = None) -> Predictions:
        """The same of the images of a split that are in the run's cache, labelled or not. None: the run's own split.

        Of a run with folds that is "out-of-fold": each image by the heads that have not seen it. All other images are
        predicted by the mean of all folds.

        >>> run.predict_cached("test").probabilities.shape
        (50, 10)

        Raises:
            UsageError: no such split.
            LofftaError: the cache is gone, or lacks features.
        """
        split = split or self._run.config.test_on
        cache, features, rows = self._open(split)
        recipe, config = self._run.recipe, self._run.config
        how: dict[str, Any] = {"recipe": recipe, "batch_size": recipe.batch_size, "device": self._device}
        with borrowed():
            process.cap_threads()
            if is_of_folds(config, split):
                turns = read_turns(self._run.paths, cache.table, cache.paths.root)
                logits, _ = predict_folds(self._run.heads, features, rows, turns, **how)
            else:
                logits = predict(self._run.heads, features, rows, **how)
        quarantined = {row: reason for feature in features for row, reason in feature.array.ledger.bad.items()}
        asked = cache.table.rows_of(split).tolist()
        bad = {cache.table.keys[row]: quarantined[row] for row in asked if row in quarantined}
        return self._told([cache.table.keys[row] for row in rows], rows, torch.from_numpy(logits), bad)

    def batches(self, split: str | None = None, batch_size: int = 256) -> Iterator[Batch]:
        """Cached images of a split with what a head is fed of them, in order: `batch.rows`, `batch.features`.

        The tensors are views of buffers: valid until the next batch is asked for.

        >>> head, batch = run.head(), next(run.batches("test", batch_size=8))
        >>> head(head.prepare(batch.features)).shape
        torch.Size([8, 10])
        """
        _, features, rows = self._open(split or self._run.config.test_on)
        return self._feed(features, rows, batch_size)

    def _open(self, split: str) -> tuple[Cache, list[Feature], NDArray[np.int64]]:
        paths, config = self._run.paths, self._run.config
        cache = open_cache(paths, config, self._cache_root)
        features = choose_features(cache, config.features, self._run.recipe.kinds(), default_taps="all")
        return cache, features, split_rows(paths, config, cache, features, split)

    def _feed(self, features: Sequence[Feature], rows: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
        with Feed(features, rows, batch_size=batch_size, device=self._device, mode="stream", order="uniform") as feed:
            yield from feed.in_order()

    def _told(
        self, keys: list[str], places: NDArray[np.int64], logits: Float[Tensor, "S B C"], bad: dict[str, str]
    ) -> Predictions:
        mean, _ = self._run.probabilities(logits)
        probabilities = mean if self.classes else np.empty((len(mean), 0), np.float32)
        return Predictions(keys, places, probabilities, name_predicted(mean, self._run), self.classes, bad)
