"""Arrays that belong to the images of a cache: maps of dense targets, by the real writer."""

import numpy as np

from loffta.files.durable import create_file
from loffta.store.cache import CachedArray
from loffta.store.ledger import BAD, OK, ImageStatus
from loffta.store.metadata import image_layout
from loffta.store.writer import Stored, UnitWriter


def write_maps(cache, name, maps, *, bad=(), kind="mask"):
    """A target `name` of every image, [n, S, S]; those in `bad` are not there."""
    paths = cache.paths.target(name)
    layout = image_layout(len(maps), maps.shape[1:], maps.dtype, cache.unit_images, kind=kind)
    create_file(paths.metadata, layout.to_json())
    for unit in range(cache.n_units):
        rows = cache.rows_of_unit(unit)
        good = [row for row in rows if row not in bad]
        writer = UnitWriter(paths, layout, unit)
        stored = Stored(maps[good], np.ones((len(good), 0), bool), np.zeros((len(good), 0), np.float32))
        writer.append(good, stored, [cache.table.keys[row] for row in good])
        writer.commit([ImageStatus(row, BAD if row in bad else OK) for row in rows], {})
    return CachedArray(paths, layout, images=cache.table)
