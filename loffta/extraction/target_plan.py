"""What dense targets at their own sizes, and boxes over squares, will take: for `plan`, and for `extract`.

In: targets that are to be written and their source.   Out: FileWork, from a few of them made into what will be
written: how large a PNG or a depth map is cannot be known before. Squares are arrays, whose bytes are known.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa

from loffta.extraction.targets import Dense
from loffta.images.sources import ImageSource
from loffta.images.targets import BadTarget, decode_target
from loffta.store.asked import rows_due
from loffta.store.cache import Cache
from loffta.store.target_codec import encode_target
from loffta.store.target_files import UnitFiles

_SAMPLE = 8  # targets of a kind
_ROW_BYTES = 60  # status, size, hash and counts of one image


class FileWork(NamedTuple):
    """What the files of one form lack; bytes are about so many."""

    name: str
    units: tuple[int, ...]
    images: int
    bytes: int
    whole_bytes: int


def file_work(
    cache: Cache, dense: Sequence[Dense], source: ImageSource, asked: Mapping[int, Sequence[int]]
) -> list[FileWork]:
    """Reads some targets of every kind that lacks any; none otherwise."""
    work = []
    for one in dense:
        forms = [form for form in one.forms if isinstance(form, UnitFiles)]
        lacking = {
            form.paths.name: [unit for unit, rows in asked.items() if not form.has_unit(unit, rows)] for form in forms
        }
        each = _ROW_BYTES + (_target_bytes(cache, one, source, asked) if any(lacking.values()) else 0)
        for form in forms:
            units = lacking[form.paths.name]
            n_images = sum(len(rows_due([form], unit, asked[unit])) for unit in units)
            whole = sum(map(len, asked.values())) * each
            work.append(FileWork(form.paths.name, tuple(units), n_images, n_images * each, whole))
    return work


def files_size(work: Iterable[FileWork]) -> tuple[int, int]:
    """Bytes and number of all files that are lacking."""
    work = [*work]
    return sum(one.bytes for one in work), sum(len(one.units) for one in work)


def _target_bytes(cache: Cache, dense: Dense, source: ImageSource, asked: Mapping[int, Sequence[int]]) -> int:
    """The mean of a few from all over the set, as they will be stored."""
    kind = dense.info.kind
    rows = [row for found in asked.values() for row in found if cache.table.target(kind, row) is not None]
    palette = {(r, g, b): number for r, g, b, number in dense.info.palette or ()} or None
    sizes = []
    for row in rows[:: -(-len(rows) // _SAMPLE) or 1]:
        path = cache.table.target(kind, row)
        assert path is not None
        try:
            data = source.read(path)
            if kind != "boxes":  # which need the size of their image, and are text as the source has them
                data = encode_target(decode_target(kind, data, classes=dense.info.classes, palette=palette))
            sizes.append(len(pa.compress(data, codec="zstd", asbytes=True)))
        except (BadTarget, OSError):  # it will be counted, and takes no bytes
            continue
    return round(statistics.mean(sizes)) if sizes else 0
