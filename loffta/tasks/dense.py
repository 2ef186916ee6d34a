"""Dense tasks: from outputs [B, K, Ho, Wo] and dense targets to a loss, records, metrics, and what `predict` writes.

In:  outputs of a dense head over the square that the backbones saw; targets of that square, as maps of the training
size (`TargetBatch`) or at the label's own size (`NativeTarget`).   Out: see `DenseTask`. One file each.

Evaluation streams: of each image and seed a record is kept, some numbers, and never a map. Every metric is a function
of the records and of how often each image is drawn, so that one formula gives it, its intervals and paired differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from loffta.targets import DenseSettings, Readout, TargetKind
from loffta.tasks import boundaries, depth, detection, instances, matching, segmentation
from loffta.tasks.bootstrap import Weights
from loffta.tasks.pixels import Losses, Recount


class DenseTask(NamedTuple):
    """What `train`, `evaluate` and `predict` use of a dense task. S seeds, B images, R resamples.

    A record is a NamedTuple of arrays and numbers. See `figures` for the metrics' names and units.
    """

    target: TargetKind
    targets: str  # in words: what it needs of every image
    main_metric: str  # what a search chooses by; `figures` knows whether more of it is better
    headline: str  # the metric that reports rank by
    readout: Callable[[int, DenseSettings], Readout]  # classes of the targets -> what the head gives
    record: type[Any]  # what of an image is kept
    loss: Callable[..., Losses]  # outputs, TargetBatch, settings, proxies or None, rng or None
    records: Callable[..., list[Any]]  # outputs, natives [B], settings, n_classes -> one of each image
    recount: Callable[..., Recount]  # records [B] of one seed, classes, settings -> its metrics in any resamples
    notes: Callable[..., dict[str, str]]  # records [B], classes, settings -> what is left out, by metric
    details: Callable[..., dict[str, Any]]  # records [S][B], classes, settings -> what results keep beside metrics
    decode: Callable[..., Any]  # outputs, settings, (height, width) -> of each image what `predict` writes

    def metrics(self, records: Sequence[Any], classes: Sequence[str], settings: DenseSettings) -> dict[str, float]:
        """The metrics of one seed; those that these targets do not define are left out."""
        found = self.recount(records, classes, settings)(np.ones((1, len(records)), np.float32))
        return {name: float(value[0]) for name, value in found.items() if not np.isnan(value[0])}

    def resampled(
        self,
        records: Sequence[Sequence[Any]],
        classes: Sequence[str],
        settings: DenseSettings,
        blocks: Iterable[Weights],
    ) -> dict[str, Float[np.ndarray, " R"]]:
        """Every metric of `metrics`, mean over seeds, in every resample; NaN where one does not define it."""
        counts = [self.recount(of_seed, classes, settings) for of_seed in records]
        found: dict[str, list[Float[np.ndarray, " R"]]] = {
            name: [] for name in self.metrics(records[0], classes, settings)
        }
        for weights in blocks:
            of_seeds = [count(weights) for count in counts]
            for name, of_blocks in found.items():
                of_blocks.append(np.mean([values[name] for values in of_seeds], axis=0))
        return {name: np.concatenate(of_blocks) for name, of_blocks in found.items()}

    def per_image(
        self, records: Sequence[Any], classes: Sequence[str], settings: DenseSettings
    ) -> dict[str, Float[np.ndarray, " B"]]:
        """The metrics of one seed on each image alone; NaN where it does not define one."""
        one = np.ones((1, 1), np.float32)
        of_images = [self.recount([record], classes, settings)(one) for record in records]
        return {name: np.array([of_image[name][0] for of_image in of_images]) for name in of_images[0]}


DENSE_TASKS: dict[str, DenseTask] = {
    "segmentation": DenseTask(
        target="mask",
        targets="a mask of classes per image",
        main_metric="miou",
        headline="miou",
        readout=segmentation.readout,
        record=segmentation.Pixels,
        loss=segmentation.loss,
        records=segmentation.records,
        recount=segmentation.recount,
        notes=segmentation.notes,
        details=segmentation.details,
        decode=segmentation.decode,
    ),
    "depth": DenseTask(
        target="depth",
        targets="a map of metres per image",
        main_metric="rmse_pooled",
        headline="rmse_pooled",
        readout=depth.readout,
        record=depth.Errors,
        loss=depth.loss,
        records=depth.records,
        recount=depth.recount,
        notes=depth.notes,
        details=depth.details,
        decode=depth.decode,
    ),
    "boundaries": DenseTask(
        target="instances",
        targets="a map of numbered objects per image",
        main_metric="boundary_iou",
        headline="boundary_iou",
        readout=boundaries.readout,
        record=boundaries.Borders,
        loss=boundaries.loss,
        records=boundaries.records,
        recount=boundaries.recount,
        notes=boundaries.notes,
        details=boundaries.details,
        decode=boundaries.decode,
    ),
    "detection": DenseTask(
        target="boxes",
        targets="the boxes of objects per image",
        main_metric="ap",
        headline="ap",
        readout=detection.readout,
        record=matching.Matches,
        loss=detection.loss,
        records=detection.records,
        recount=detection.recount,
        notes=detection.notes,
        details=detection.details,
        decode=detection.decode,
    ),
    "instances": DenseTask(
        target="instances",
        targets="a map of numbered objects per image",
        main_metric="ari",
        headline="ari",
        readout=instances.readout,
        record=instances.Grouping,
        loss=instances.loss,
        records=instances.records,
        recount=instances.recount,
        notes=instances.notes,
        details=instances.details,
        decode=instances.decode,
    ),
}
