"""What a cache holds and what it weighs, for `loffta info`. Reads names, sizes and done files, no features."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from loffta.store.cache import Cache, CachedArray
from loffta.store.scales import has_scales, read_facts


def take_inventory(cache: Cache) -> dict[str, Any]:
    """Image set, stores and arrays with their finished units, files and bytes."""
    thumbs = cache.thumbs()
    return {
        "cache": str(cache.paths.root),
        "source": cache.table.source,
        "images": len(cache.table),
        "bad": {cache.table.keys[row]: reason for row, reason in thumbs.ledger.bad.items()},
        "splits": cache.table.split_sizes(),
        "classes": len(cache.table.classes),
        "unit_images": cache.unit_images,
        "thumbnails": _weigh(cache, thumbs),
        "stores": [
            {
                "store": store.name,
                "label": store.info.label,
                "recipe": store.info.recipe,
                "arrays": [_weigh(cache, array) for array in store.arrays],
            }
            for store in cache.stores()
        ],
    }


def _weigh(cache: Cache, array: CachedArray) -> dict[str, Any]:
    shards = [path.stat().st_size for path in array.paths.folder.glob("c.*")]
    units = [array.has_unit(unit, cache.rows_of_unit(unit)) for unit in range(cache.n_units)]
    return {
        "array": array.paths.name,
        "kind": array.kind,
        "taps": list(array.taps),
        "shape": list(array.layout.shape),
        "dtype": array.layout.dtype.name,
        "units_done": sum(units),
        "units": cache.n_units,
        "images_done": array.ledger.listed,
        "old_rows_only": array.layout.shape[0] < len(cache.table),  # the set has grown since
        "files": len(shards),
        "bytes": sum(shards),
        **_weigh_int8(array),
    }


def _weigh_int8(array: CachedArray) -> dict[str, Any]:
    """Of int8 arrays alone: the error measured when the scales were made, and the values beyond their range so far."""
    if array.layout.dtype != np.int8 or not has_scales(array.paths):
        return {}
    try:
        facts = read_facts(array.paths)
    except (OSError, ValueError, KeyError):  # `verify` names it
        return {}
    held = int(array.ledger.ready.sum()) * math.prod(array.layout.item_shape)
    return {
        "int8_error": dict(zip(array.taps, facts["relative_rms"], strict=False)),
        "saturated": array.ledger.saturated / max(held, 1),
        "scale_bytes": sum(path.stat().st_size for path in array.paths.scales.rglob("*") if path.is_file()),
    }
