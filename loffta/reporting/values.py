"""The section about images with numbers: predicted by true values, and the images that are furthest off.

In: a loaded run of regression.   Out: HTML for `page`, by the run's first seed; pictures where thumbnails are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loffta.errors import LofftaError
from loffta.reporting.gallery import cached_rows, png_uri
from loffta.reporting.markup import figure
from loffta.reporting.predictions import Predicted, read_predicted
from loffta.reporting.scatter import scatter
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import count, escape
from loffta.store.reader import ArrayReader
from loffta.tasks.figures import show

_DOTS = 2000  # more are a blot, and a megabyte
_SHOWN = 8  # images of either kind


def values_section(run: LoadedRun) -> str:
    """Dots for the images, then the worst of them and those whose error is the middle one."""
    head = f"<h2>Values: {escape(run.row.name)}</h2>"
    try:
        found = read_predicted(run)
    except LofftaError as error:  # the report stands without them
        return f'{head}<p class="note">No values: {escape(error.what)} ({escape(error.where)}).</p>'
    truth, predicted = found.labels.astype(np.float64), found.predicted[0].astype(np.float64)
    shown = np.sort(np.random.default_rng(0).permutation(len(truth))[:_DOTS])
    some = "" if len(shown) == len(truth) else f" Shown are {count(len(shown), 'image')}, drawn by lot."
    chart = scatter(truth[shown].tolist(), predicted[shown].tolist(), title=f"Predicted by true value, {run.row.name}")
    return (
        f"{head}<p>{count(len(truth), 'image')} of split {escape(run.row.split)}, first seed: a dot an image, in the "
        f"unit of the values; on the dashed line predictions are right.{some}</p>"
        f'<div class="charts">{figure("Predicted by true value", chart)}</div>{_images(run, found, predicted - truth)}'
    )


def _images(run: LoadedRun, found: Predicted, errors: NDArray[np.float64]) -> str:
    try:
        cache, rows = cached_rows(run, found.keys)
        thumbs = cache.thumbs()
        known = np.flatnonzero(thumbs.ledger.ready[rows])
        order = known[np.argsort(np.abs(errors[known]), kind="stable")]
        first = max(0, (len(order) - _SHOWN) // 2)
        kinds = {"Furthest off": order[::-1][:_SHOWN], "Of middling error": order[first : first + _SHOWN]}
        reader = ArrayReader(thumbs.paths)
        parts = [
            f'<h3>{name}</h3><ul class="tiles">{_tiles(reader.read(rows[of]), found, of, errors)}</ul>'
            for name, of in kinds.items()
        ]
    except LofftaError as error:
        return f'<p class="note">No pictures: {escape(error.what)} ({escape(error.where)}).</p>'
    return "".join(parts)


def _tiles(pixels: NDArray[np.uint8], found: Predicted, places: NDArray[np.int64], errors: NDArray[np.float64]) -> str:
    tiles: Sequence[str] = [
        f'<li class="tile"><img src="{png_uri(image)}" alt="{escape(found.keys[place])}">'
        f"<b>{show('mae', float(found.predicted[0][place]))}</b> · truth {show('mae', float(found.labels[place]))}"
        f"<small>off by {show('mae', float(errors[place]))}<br>{escape(found.keys[place])}</small></li>"
        for place, image in zip(places.tolist(), pixels, strict=True)
    ]
    return "".join(tiles)
