"""Some test images of a dense run: the image, its target and what the first seed's head makes of it, side by side.

In: a loaded run whose cache and figures are there.   Out: DensePictures, the worst, the middling and the best images,
for `dense`. The head runs again on these few images: maps are never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from loffta.crop import Centre
from loffta.dataset.dense import DenseTargets, open_targets
from loffta.dataset.features import choose_features
from loffta.dataset.shown import centre_of
from loffta.drawing import (
    Pixels,
    colour_classes,
    colour_depth,
    colour_embedding,
    colour_instances,
    colour_shares,
    draw_boxes,
)
from loffta.errors import LofftaError
from loffta.evaluation.dense import head_outputs, load_dense_heads
from loffta.evaluation.trained import trained_recipe
from loffta.feed.batches import Feed
from loffta.heads import Head
from loffta.heads.dense import DenseRecipe
from loffta.reporting.gallery import cached_rows
from loffta.reporting.tables import LoadedRun
from loffta.runs.run import read_predictions
from loffta.store.cache import Cache
from loffta.store.reader import ArrayReader
from loffta.targets import DenseSettings, NativeTarget
from loffta.tasks.boundaries import find_borders
from loffta.tasks.dense import DENSE_TASKS
from loffta.tasks.figures import best_first
from loffta.tasks.pixels import nearest_centres

SIDE = 160  # pixels of a picture's longer side
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class DensePicture:
    """One test image."""

    key: str
    figure: float  # the headline metric of this image alone, of the first seed
    group: str  # worst, middling or best
    image: Pixels
    target: Pixels
    prediction: Pixels


def dense_pictures(run: LoadedRun, n_each: int = 3) -> list[DensePicture]:
    """`n_each` of the worst images, of those in the middle and of the best; fewer where there are few.

    Raises:
        LofftaError: the cache, its features, targets or thumbnails, the figures or the head are gone; or a run of
            folds or draws, in which an image is not every head's to predict.
    """
    if run.config.folds or run.config.shots:
        raise LofftaError(
            "each image belongs to some of its heads alone", where=run.paths.root, remedy="`loffta predict` draws any"
        )
    found = read_predictions(run.paths.predictions_dense(run.row.split), ["key", "seed", run.row.headline])
    first = found["seed"] == 0
    keys, figures = found["key"][first], found[run.row.headline][first].astype(np.float64)
    cache, rows = cached_rows(run, keys)
    chosen = choose_three(figures, run.row.headline, n_each)
    places = np.array([place for _, place in chosen], np.int64)
    drawn = _draw(run, cache, rows[places])
    return [
        DensePicture(str(keys[place]), float(figures[place]), group, *drawn[int(rows[place])])
        for group, place in chosen
    ]


def choose_three(figures: NDArray[np.float64], metric: str, n_each: int) -> list[tuple[str, int]]:
    """(group, place) of the images to show; none is shown twice, and what defines no figure is not shown."""
    known = np.flatnonzero(~np.isnan(figures))
    order = known[np.argsort([best_first(metric, float(figures[i])) for i in known], kind="stable")].tolist()
    n = min(n_each, -(-len(order) // 3))
    best, worst = order[:n], order[n:][::-1][:n]
    between = order[len(best) : len(order) - len(worst)]
    start = (len(between) - n) // 2 if len(between) > n else 0
    groups = {"worst": worst, "middling": between[start : start + n], "best": best}
    return [(group, place) for group, places in groups.items() for place in places]


def _draw(run: LoadedRun, cache: Cache, rows: NDArray[np.int64]) -> dict[int, tuple[Pixels, Pixels, Pixels]]:
    """Image, target and prediction by row."""
    recipe = trained_recipe(run.paths, run.config)
    assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
    recipe = recipe.model_copy(update={"output_px": run.results["dense"]["output_px"]})
    features = choose_features(cache, run.config.features, recipe.kinds(), default_taps="all")
    targets = open_targets(cache, run.config.task, run.config.head, features, training=False)
    specs = [feature.spec for feature in targets.inputs]
    head = load_dense_heads(run.paths, run.config, recipe, specs, len(targets.classes))[0]
    thumbs = cache.thumbs()
    images = dict(zip(rows.tolist(), ArrayReader(thumbs.paths).read(rows), strict=True))
    natives = dict(zip(rows.tolist(), targets.shown(rows), strict=True))
    outputs = _outputs(head, targets, recipe, np.sort(rows))
    found: dict[int, tuple[Pixels, Pixels, Pixels]] = {}
    for row, native in natives.items():
        image = _shown(images[row], centre_of(features[0].store), *targets.native.sizes[row].tolist())
        found[row] = draw_three(run.config.task, image, native, outputs[row], recipe.settings())
    return found


def _shown(thumb: Pixels, centre: Centre | None, height: int, width: int) -> Pixels:
    """What of a thumbnail of a whole image the features show."""
    if centre is None:
        return thumb
    left, top, right, bottom = centre.window(width, height)
    n = len(thumb)
    rows = slice(max(0, round(top / height * n)), max(1, round(bottom / height * n)))
    return thumb[rows, max(0, round(left / width * n)) : max(1, round(right / width * n))]


@torch.no_grad()
def _outputs(head: Head, targets: DenseTargets, recipe: DenseRecipe, rows: NDArray[np.int64]) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    with Feed(targets.inputs, rows, batch_size=1, device=_CPU, mode="stream") as feed:
        for batch in feed.in_order():
            outputs = head_outputs(head, head.prepare(batch.features), recipe, _CPU)
            found[int(batch.rows[0])] = outputs[0].clone()
    return found


def draw_three(
    task: str, thumb: Pixels, native: NativeTarget, outputs: Tensor, settings: DenseSettings
) -> tuple[Pixels, Pixels, Pixels]:
    """Of one image, at the label's shape and SIDE pixels at most; target and prediction in the same colours."""
    scale = min(1.0, SIDE / max(native.height, native.width))
    size = (max(1, round(native.height * scale)), max(1, round(native.width * scale)))
    image = np.asarray(Image.fromarray(thumb).resize(size[::-1], Image.Resampling.BILINEAR))
    found = DENSE_TASKS[task].decode(outputs[None], settings, size)[0]
    if native.boxes is not None:
        true = native.boxes.corners[~native.boxes.crowd] * scale
        return image, draw_boxes(image, true), draw_boxes(image, found.corners[: max(1, len(true))])
    assert native.map is not None
    rows, columns = (nearest_centres(n, m) for n, m in zip(native.map.shape, size, strict=True))
    truth = native.map[rows[:, None], columns]
    return image, *_colours(task, native.map, truth, found)


def _colours(task: str, whole: NDArray[Any], truth: NDArray[Any], found: NDArray[Any]) -> tuple[Pixels, Pixels]:
    """Target and prediction; `whole` is the label at its own size, whose borders are thicker than a pixel."""
    if task == "depth":
        known = truth[truth > 0]
        near, far = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        return colour_depth(truth, near, far), colour_depth(found, near, far)
    if task == "boundaries":
        borders = find_borders(torch.from_numpy(whole.astype(np.int64))[None])[0][0].numpy()
        rows, columns = (nearest_centres(n, m) for n, m in zip(whole.shape, truth.shape, strict=True))
        return colour_shares(borders[rows[:, None], columns].astype(np.float64)), colour_shares(found)
    if task == "instances":
        return colour_instances(truth), colour_embedding(found)
    return colour_classes(truth), colour_classes(found)
