"""The section with test images and what the runs made of them: the best run's open, those of the others folded.

In: runs of one metric, the best first.   Out: HTML for `page`.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.errors import LofftaError
from loffta.reporting.gallery import Picture, read_gallery
from loffta.reporting.tables import LoadedRun
from loffta.reporting.text import count, escape, percent
from loffta.tasks.figures import metric_name

_FOLDED = 8  # pictures of a run that is not the best: 10 runs add 1 MB


def images_section(ranked: Sequence[LoadedRun]) -> str:
    """A gallery for every run."""
    best, *others = ranked
    which = f"The run with the highest mean {metric_name(best.row.headline)} on these images, first seed: "
    folded = "".join(
        f"<details><summary>Test images: {escape(run.row.name)}</summary>{_gallery(run, 'First seed: ', _FOLDED)}"
        "</details>"
        for run in others
    )
    shown = _gallery(best, which if others else "First seed: ", 16)
    return f"<h2>Test images: {escape(best.row.name)}</h2>{shown}{folded}"


def _gallery(run: LoadedRun, which: str, n_pictures: int) -> str:
    try:
        gallery = read_gallery(run, n_pictures)
    except LofftaError as error:  # the report stands without pictures
        return f'<p class="note">No pictures: {escape(error.what)} ({escape(error.where)}).</p>'
    tiles = "".join(_tile(picture) for picture in gallery.pictures)
    return (
        f"<p>{which}{count(gallery.n_wrong, 'mistake')} on {count(gallery.n_images, 'image')} of split "
        f"{escape(run.row.split)}{_what_a_mistake_is(run)}. "
        "Chosen to show both kinds, not at random: the most confident mistakes first (dashed frames), then right ones "
        "at even distances. Percentages are the head's confidence.</p>"
        f'<ul class="tiles">{tiles}</ul>'
    )


def _what_a_mistake_is(run: LoadedRun) -> str:
    return ", where one class too many or too few is a mistake" if run.results.get("task") == "multi-label" else ""


def _tile(picture: Picture) -> str:
    truth = "" if picture.right else f"truth {escape(picture.truth)}<br>"
    state = "right" if picture.right else "wrong"
    return (
        f'<li class="tile {state}"><img src="{picture.uri}" alt="{state}: {escape(picture.key)}">'
        f"<b>{escape(picture.predicted)}</b> · {percent(picture.confidence, 0)}&nbsp;%"
        f"<small>{truth}{escape(picture.key)}</small></li>"
    )
