"""What dense_accuracy.py prints: metrics of dense heads with their spread and interval, and paired differences.

In: a trained run.   Out: a Score, kept as a small file, so that a second call measures nothing again. Of every seed the
metric is known on the test images as they are and in the same 1,000 resamples of them; an image is drawn with all of
its pixels. Intervals and verdicts are `loffta.tasks.paired`'s: over images and seeds, of a gain over the same images.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from loffta.dataset.dense import DenseTargets, open_targets, rows_with_targets
from loffta.dataset.features import choose_features, usable_rows
from loffta.evaluation.dense import Stream, load_dense_heads, with_output_px
from loffta.evaluation.trained import trained_recipe
from loffta.heads.dense import DenseRecipe
from loffta.images.scene_plan import size_group
from loffta.runs.run import RunPaths, open_run
from loffta.store.cache import Cache
from loffta.store.targets import NativeTargets
from loffta.targets import IGNORE, NO_INSTANCE, NativeTarget
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import possible, smaller_is_better
from loffta.tasks.paired import Scored, difference, interval_of

BATCH = 16
FIGURE = {
    "miou": "mIoU %",
    "pixel_accuracy": "pixels right %",
    "rmse_pooled": "RMSE (m)",
    "boundary_iou": "border IoU %",
}
GROUND = "ground"  # what is no object, beside the sizes of objects


@dataclass(frozen=True)
class Score:
    """One run on the test images."""

    metric: str
    keys: tuple[str, ...]  # of the images
    scored: Scored
    n_parameters: int
    loss: float  # of the last epoch of the training, mean over seeds

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(self.scored.values.mean())

    @property
    def brief(self) -> str:
        """Mean over seeds [95 % interval over images and seeds]."""
        low, high = (_shown(self.metric, bound) for bound in possible(self.metric, interval_of(self.scored)))
        return f"{_shown(self.metric, self.mean)} [{low}, {high}]"

    @property
    def text(self) -> str:
        """The same, with the standard deviation over seeds."""
        mean, _, bounds = self.brief.partition(" ")
        spread = float(self.scored.values.std(ddof=1)) if len(self.scored.values) > 1 else 0.0
        return f"{mean} ± {_shown(self.metric, spread)} {bounds}"

    @property
    def figure(self) -> str:
        """What it is of: 'mIoU %'."""
        return FIGURE[self.metric]


def gain(new: Score, old: Score, *, same_heads: bool = False) -> str:
    """How far `new` is above `old`, with the interval, and what that says.

    Args:
        same_heads: both are of the same trained heads, so that seeds are paired, too.
    """
    assert (new.keys, new.metric) == (old.keys, old.metric), "both sides saw the same images"
    one, other = new.scored, old.scored
    if same_heads:
        one = replace(one, values=one.values - other.values, resampled=one.resampled - other.resampled)
        other = replace(other, values=np.zeros(1), resampled=np.zeros((len(other.resampled), 1)))
    found = difference(one, other, len(new.keys))
    mean, low, high = (_signed(new, value) for value in (found.mean, *found.ci95))
    verdict = "undecided" if found.verdict == "open" else found.verdict
    return f"{mean} [{low}, {high}] {verdict}"


def _signed(of: Score, value: float) -> str:
    return f"{'-' if value < 0 else '+'}{_shown(of.metric, abs(value))}"


def _shown(metric: str, value: float) -> str:
    """Percent with one decimal, metres with three."""
    return f"{value:.3f}" if metric == "rmse_pooled" else f"{100 * value:.1f}"


def score_of(run: Path, kept: Path, *, output_px: int | None = None, size: str | None = None) -> Score:
    """Of a finished training on split test; measured once.

    Args:
        kept: the file that keeps what was measured: one for each `output_px` and `size`.
        output_px: side of the heads' outputs; None: as in training.
        size: pixels of objects of this size alone count, or of GROUND; None: all.
    """
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part.npz")
        np.savez(part, **_measure(run, output_px, size))
        part.replace(kept)
    found = np.load(kept)
    metric = str(found["metric"])
    scored = Scored(found["values"], found["resampled"], smaller_is_better(metric))
    return Score(metric, tuple(found["keys"].tolist()), scored, int(found["n_parameters"]), float(found["loss"]))


def _measure(run: Path, output_px: int | None, size: str | None) -> dict[str, Any]:
    """What a kept file holds: `values` [S], `resampled` [R, S], and what they are of."""
    paths, config = open_run(run)
    cache = Cache.open(config.cache)
    recipe = trained_recipe(paths, config)
    assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
    recipe = with_output_px(recipe, output_px)
    features = choose_features(cache, config.features, recipe.kinds(), default_taps="all")
    targets = open_targets(cache, config.task, config.head, features, training=False)
    rows = rows_with_targets(targets, cache, usable_rows(cache, features, "test"), "test")
    heads = load_dense_heads(paths, config, recipe, [f.spec for f in targets.inputs], len(targets.classes))
    if size is not None:
        known = {field.name: getattr(targets, field.name) for field in fields(targets)}
        targets = OfSize(**known, instances=cache.native("instances"), size=size)
    records = Stream(targets, recipe, BATCH, torch.device("cpu"), cache.table.keys).records(heads, rows)
    task = DENSE_TASKS[config.task]
    metric = task.headline if size is None or config.task != "segmentation" else "pixel_accuracy"
    counts = [task.recount(of_seed, targets.classes, recipe.settings()) for of_seed in records]
    weights = np.concatenate(list(image_weights(len(rows), seed=0)))
    whole = np.ones((1, len(rows)), np.float32)
    return {
        "metric": metric,
        "keys": [cache.table.keys[row] for row in rows],
        "values": np.array([count(whole)[metric][0] for count in counts]),
        "resampled": np.stack([count(weights)[metric] for count in counts], axis=1),
        "n_parameters": heads[0].n_adapter_parameters(),  # type: ignore[attr-defined]
        "loss": np.mean([_last_loss(paths, seed) for seed in range(len(heads))]),
    }


def _last_loss(paths: RunPaths, seed: int) -> float:
    return float(json.loads(paths.metrics(seed).read_text().splitlines()[-1])["loss"])


@dataclass(frozen=True)
class OfSize(DenseTargets):
    """Masks or depths of which the pixels of objects of one size count alone; sizes are those of `scene_plan`."""

    instances: NativeTargets | None = None  # which pixel is of which object
    size: str = GROUND

    def shown(self, rows: NDArray[np.int64]) -> list[NativeTarget]:
        """As before; what does not count is ignored."""
        assert self.instances is not None
        found = zip(super().shown(rows), self.instances.read(rows), strict=True)
        return [keep_size(target, instances.map, self.size) for target, instances in found]


def keep_size(target: NativeTarget, instances: NDArray[np.integer], size: str) -> NativeTarget:
    """A mask or depths of one image, without the pixels of other objects.

    Args:
        instances: [H, W] numbers of objects, NO_INSTANCE where there is none.
    """
    kept = np.zeros(instances.shape, bool)
    for number in np.unique(instances):
        here = instances == number
        y, x = np.nonzero(here)
        box = [int(edge) for edge in (x.min(), y.min(), x.max() + 1, y.max() + 1)]
        group = GROUND if number == NO_INSTANCE else size_group(*box, len(instances))
        kept |= here if group == size else False
    nothing = IGNORE if target.kind == "mask" else 0  # metres that count nowhere
    assert target.map is not None
    return replace(target, map=np.where(kept, target.map, target.map.dtype.type(nothing)))
