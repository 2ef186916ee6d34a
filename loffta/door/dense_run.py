"""`loffta.load_run` of a dense run: maps or boxes of new images, and its heads."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from loffta.door.given import GivenImage, GivenImages
from loffta.errors import UsageError
from loffta.extraction.begin import backbone_loader
from loffta.images.batches import judge_bad
from loffta.machine import process
from loffta.machine.borrowed import borrowed
from loffta.machine.progress import Progress
from loffta.online.dense_predict import each_image
from loffta.online.opened_dense import OpenedDense, open_dense
from loffta.online.stream import BATCH_SIZE, FreshStream
from loffta.online.windows import parse_windows
from loffta.runs.results_text import Results
from loffta.runs.run import read_results
from loffta.tokens import FeatureSpec


@dataclass(frozen=True)
class DensePredictions:
    """What the heads of a dense run say of some images; quarantined ones are not among them.

    `found` has for each image, at its own size: of segmentation the classes [h, w]; of depth metres [h, w]; of
    boundaries how likely one is [h, w]; of detection a tuple of corners [N, 4] (left, top, right, bottom in pixels),
    scores [N] and classes [N]; of instances embeddings [D, S, S] over the square that the features are of.
    """

    keys: list[str]
    places: NDArray[np.int64]  # [n] among the images given
    found: list[Any]
    classes: tuple[str, ...]
    bad: dict[str, str]  # key -> why it could not be used


class DenseRun:
    """A finished training of a dense head. Backbones are loaded when the first images come, and kept."""

    def __init__(self, run: OpenedDense) -> None:
        """Of an open run, whose heads are on its device."""
        self._run = run
        self._load = functools.cache(backbone_loader(run.device))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, by the numbers in masks and of boxes; none of depth, boundaries and instances."""
        return self._run.classes

    @property
    def task(self) -> str:
        """segmentation, depth, boundaries, detection or instances."""
        return self._run.config.task

    @property
    def seeds(self) -> int:
        """How many heads there are."""
        return len(self._run.heads)

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """What a head is fed, part by part, as those of a `Run`."""
        return tuple(feature.spec for feature in self._run.origins.inputs)

    def __repr__(self) -> str:
        return f"<run {self._run.paths.root}: head {self._run.config.head} for {self.task}>"

    def results(self, split: str | None = None) -> Results:
        """What was measured on a split. None: the run's own."""
        return Results.model_validate(read_results(self._run.paths.results(split or self._run.config.test_on)))

    def head(self, seed: int = 0) -> nn.Module:
        """A copy of one seed's head, in evaluation mode: `head(head.prepare(features))` are outputs [B, K, S, S]."""
        if not 0 <= seed < self.seeds:
            raise UsageError(
                f"there is no seed {seed}", where=self._run.paths.root, remedy=f"seeds: 0 to {self.seeds - 1}"
            )
        found = copy.deepcopy(self._run.heads[seed])
        assert isinstance(found, nn.Module), "every head is one"
        return found

    def predict(
        self,
        images: GivenImage | Sequence[GivenImage],
        *,
        windows: str | None = None,
        batch_size: int = BATCH_SIZE,
        max_bad_frac: float | int = 0.01,
        progress: bool = False,
    ) -> DensePredictions:
        """Maps or boxes of one image or several: paths, PIL images, or uint8 arrays as `Run.predict` takes them.

        Maps are kept in memory: `loffta.predict` writes them to files, one by one.

        Args:
            windows: slide windows of SIDE/STRIDE px over each image, "512/341". None: see it as the features were made.
            batch_size: images, or windows, per pass.
            max_bad_frac: a share; more images that cannot be used are an error.
        Raises:
            UsageError: something that is no image; windows of a task or head that has none.
            LofftaError: a backbone cannot be had, or is not the one of the features.
        """
        one = isinstance(images, str) or not (isinstance(images, Sequence) or getattr(images, "ndim", 0) == 4)
        source = GivenImages([images] if one else list(images))  # type: ignore[arg-type]
        run, listing = self._run, source.listing()
        if windows is not None:  # its heads give outputs of another side
            run = open_dense(run.paths.root, run.device, windows=parse_windows(windows))
        rows = range(len(listing))
        how: dict[str, Any] = {"load": self._load, "device": run.device, "batch_size": batch_size}
        how |= {"mirrored": run.mirrors, "windows": run.windows}
        places: list[int] = []
        found: list[Any] = []
        with borrowed(progress=progress), Progress("predict", len(rows), "images") as bar, torch.no_grad():
            process.cap_threads()
            stream = FreshStream(run.origins.inputs, source, listing, rows, **how)
            for batch in stream:
                for row, _, of_image in each_image(run, batch, listing.keys):
                    places.append(row)
                    found.append(of_image)
                bar.advance(len(batch.statuses))
            judge_bad(stream.bad, listing.keys, len(rows), float(max_bad_frac), done="images")
        bad = {listing.keys[row]: why for row, why in stream.bad.items()}
        keys = [listing.keys[row] for row in places]
        return DensePredictions(keys, np.array(places, np.int64), found, self.classes, bad)
