"""Dense targets of units whose features are there: no image is decoded, no model loaded, no feature touched.

In: units, and the done files that tell which images were good and how large they are.   Out: units of targets. Called
by `extract`, behind the units whose features were lacking, and by `repair`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from loffta.extraction.target_writer import TargetWriter
from loffta.machine.process import StopFlag
from loffta.machine.progress import Progress
from loffta.store.cache import Cache, CachedArray
from loffta.store.ledger import ImageStatus, done_units, read_done
from loffta.targets import TARGET_KINDS

_CHUNK_ROWS = 32  # between two looks at the stop flag
_COLUMNS = ("row", "status", "width", "height")


def write_alone(
    cache: Cache,
    arrays: Iterable[CachedArray],
    asked: Mapping[int, Sequence[int]],
    targets: TargetWriter,
    stop: StopFlag,
) -> None:
    """Writes the targets of units that `asked` has rows of.

    Args:
        arrays: of features or thumbnails, whose done files tell of the images; what none of them knows is as it was.
    """
    arrays = list(arrays)
    with Progress("targets", sum(map(len, asked.values())), "images") as progress:
        for unit, rows in asked.items():
            doing = f"writing the targets of unit {unit}; finished units are kept"
            due = targets.due(unit, rows)
            known = seen_images(arrays, unit, due)
            images = [known[row] for row in due if row in known and row not in cache.table.gone]
            targets.begin(unit, due, rows)
            for n in range(0, len(images), _CHUNK_ROWS):
                stop.check(doing)
                targets.feed(images[: n + _CHUNK_ROWS])
            targets.commit()
            progress.advance(len(rows))


def seen_images(arrays: Sequence[CachedArray], unit: int, rows: Sequence[int]) -> dict[int, ImageStatus]:
    """What was told of the images of a unit when they were decoded, by the first done files that know them."""
    found: dict[int, ImageStatus] = {}
    for array in (array for array in arrays if array.kind not in TARGET_KINDS):
        if found.keys() >= {*rows}:
            break
        if unit in done_units(array.paths):
            for cells in read_done(array.paths.done(unit), _COLUMNS).to_pylist():
                status = ImageStatus(cells["row"], cells["status"], "", cells["width"] or 0, cells["height"] or 0)
                found.setdefault(status.row, status)
    return found
