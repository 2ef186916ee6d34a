"""What a cache holds and what it weighs, for `loffta info`. Reads names, sizes and done files, no features."""

from __future__ import annotations

from typing import Any

from loffta.store.cache import Cache, CachedArray
from loffta.store.purge import all_missing_shards, lost_metadata


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
        "lost_metadata": lost_metadata(cache),
        "missing_shards": all_missing_shards(cache.arrays()),
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
    }
