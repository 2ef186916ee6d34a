"""The sections about a dense run: classes, objects, borders, how far heads look, and images with what was made of them.

In: loaded runs of one dense metric, the best first.   Out: HTML for `page`; what results do not have is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loffta.errors import LofftaError
from loffta.reporting.dense_pictures import DensePicture, dense_pictures
from loffta.reporting.dense_plots import look_circles, precision_recall
from loffta.reporting.gallery import jpeg_uri, png_uri
from loffta.reporting.markup import figure, table
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import NONE, count, escape, percent
from loffta.tasks.figures import metric_name, show, unit

_SHOWN = 60  # classes; of more the lowest are listed
_GROUPS = {"worst": "Worst", "middling": "Middling", "best": "Best"}
_PREDICTED = {
    "segmentation": "Colours are classes, those of Pascal VOC in their order; the palest are ignored.",
    "depth": "Dark is near, light is far, in one range for both; black is not known.",
    "boundaries": "White is a border; of the prediction, how likely one is.",
    "detection": "Of the prediction as many boxes are drawn as the image has, one at least: the surest ones.",
    "instances": "Of the target a colour is an object. Of the prediction like colours are like embeddings.",
}


def dense_sections(ranked: Sequence[LoadedRun]) -> str:
    """The best run's in full; of all of them how far their heads look."""
    best = ranked[0]
    name = f": {escape(best.row.name)}"
    parts = [_classes(best), _objects(best), _borders(best)]
    body = "".join(part for part in parts if part)
    told = f"<h2>{escape(best.row.headline_name)}{name}</h2>{body}" if body else ""
    return told + _looks(ranked) + _images(best)


def _classes(run: LoadedRun) -> str:
    found = run.results["dense"].get("per_class")
    if not found:
        return ""
    metric = "iou" if run.row.headline == "miou" else "ap"
    ordered = sorted(found, key=lambda one: (one[metric] is None, one[metric] or 0.0))
    lines = [
        [
            escape(one["class"]),
            *([f"{one['pixels']:,}", _share(one["iou"]), _share(one["accuracy"])] if metric == "iou" else []),
            *([_share(one["ap"])] if metric == "ap" else []),
        ]
        for one in ordered[:_SHOWN]
    ]
    columns = [("Class", False)]
    columns += [("Pixels", True), ("IoU %", True), ("Accuracy %", True)] if metric == "iou" else [("AP %", True)]
    which = "lowest first" if len(found) <= _SHOWN else f"the {_SHOWN} lowest of {len(found):,} classes"
    absent = " A dash: no pixel has the class, and none was given it." if metric == "iou" else ""
    return f"<p>Of each class, mean over seeds; {which}.{absent}</p>{table(columns, lines)}"


def _objects(run: LoadedRun) -> str:
    found = run.results["dense"].get("precision")
    if not found:
        return ""
    title = f"Precision by recall, {run.row.name}"
    chart = precision_recall(found["recall"], found["by_overlap"], title=title)
    objects = run.results["dense"]["objects"]
    sizes = ", ".join(f"{n:,} {size}" for size, n in objects.items() if size != "all")
    return (
        f"<p>{count(objects['all'], 'object')} ({escape(sizes)}); {run.results['dense']['boxes_per_image']:.1f} boxes "
        "found per image. Lines: precision at each recall, mean over seeds and classes, where a box counts that "
        "overlaps an object by 0.5, and by 0.75.</p>"
        f'<div class="charts">{figure("Precision by recall", chart)}</div>'
    )


def _borders(run: LoadedRun) -> str:
    found = run.results["dense"].get("borders")
    if not found:
        return ""
    return (
        f"<p>{percent(found['border_pixels'] / max(1, found['pixels']))} % of all pixels are borders. Within the "
        f"tolerance of a true border are {_share(found['precision'])} % of the predicted ones, and of a predicted one "
        f"{_share(found['recall'])} % of the true ones.</p>"
    )


def _looks(ranked: Sequence[LoadedRun]) -> str:
    """Sigma of every head as circles on the grid of cells."""
    told = [run for run in ranked if run.results.get("sigma")]
    if not told:
        return ""
    charts = "".join(_look(run) for run in told)
    return (
        "<h2>How far heads look</h2><p>Each head of the masked attention has a sigma. A query in the middle of the "
        "grid is drawn, and around it a circle for each head: there the mask has fallen to half of its height. Dashed "
        "circles are of negative sigmas: such a head looks elsewhere. Mean over seeds.</p>"
        f'<div class="charts">{charts}</div>'
    )


def _look(run: LoadedRun) -> str:
    networks: dict[int, list[float]] = {}
    for entry in run.results["sigma"]:
        networks.setdefault(entry["network"], []).append(entry["mean"])
    cells = _cells(run)
    charts = []
    for number, sigmas in networks.items():
        which = f"{run.row.name}, network {number + 1}" if len(networks) > 1 else run.row.name
        chart = look_circles(sigmas, cells, title=f"Sigma per head, {which}")
        values = ", ".join(f"{sigma:.3f}" for sigma in sigmas)
        charts.append(f"{figure(which, chart)}".replace("</figure>", f"<figcaption>{values}</figcaption></figure>"))
    return "".join(charts)


def _cells(run: LoadedRun) -> tuple[int, int]:
    """Rows and columns of the finest grid that the run is fed; of a cache that is gone 14 each are drawn."""
    stores = {store.name: store for store in run.cache.stores()} if run.cache else {}
    used: list[Any] = [(stores[one["store"]], one["taps"]) for one in run.results["features"] if one["store"] in stores]
    grids = [(s.height, s.width) for store, taps in used for s in store.info.taps if s.tap in taps]
    return max(grids, default=(14, 14))


def _images(run: LoadedRun) -> str:
    head = f"<h2>Test images: {escape(run.row.name)}</h2>"
    try:
        pictures = dense_pictures(run)
    except LofftaError as error:  # the report stands without pictures
        return f'{head}<p class="note">No pictures: {escape(error.what)} ({escape(error.where)}).</p>'
    parts = []
    for group, words in _GROUPS.items():
        strips = "".join(_strip(picture, run) for picture in pictures if picture.group == group)
        parts.append(f"<h3>{words}</h3>{strips}" if strips else "")
    return (
        f"{head}<p>By the {escape(metric_name(run.row.headline))} of each image alone, first seed: the image, its "
        f"target and the prediction. {_PREDICTED[run.config.task]}</p>{''.join(parts)}"
    )


def _strip(picture: DensePicture, run: LoadedRun) -> str:
    key = escape(picture.key)
    pictures = [
        ("image", jpeg_uri(picture.image)),
        ("target", png_uri(picture.target)),
        ("prediction", png_uri(picture.prediction)),
    ]
    images = "".join(f'<img src="{uri}" alt="{what}: {key}">' for what, uri in pictures)
    told = f"{show(run.row.headline, picture.figure)}{unit(run.row.headline)}"
    return f'<figure class="strip trio"><div>{images}</div><figcaption>{told} · {key}</figcaption></figure>'


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)
