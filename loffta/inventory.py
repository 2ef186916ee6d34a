"""What a cache holds and what it weighs, for `loffta info`. Lists names and sizes; opens few done files."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loffta.activity import find_orphans, find_writers, images_per_s
from loffta.errors import DamageFound
from loffta.space import shard_bytes
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.files import find_parts
from loffta.store.ledger import count_done, done_units
from loffta.store.purge import all_missing_shards, lost_metadata
from loffta.store.scales import has_scales, read_facts
from loffta.store.seen import read_seen


def take_inventory(cache: Cache) -> dict[str, Any]:
    """Image set, stores and arrays with their finished units, files and bytes; who is writing, and what is orphaned."""
    thumbs = cache.thumbs()
    bad = thumbs.ledger.bad
    parts = find_parts(cache.paths.root)
    return {
        "cache": str(cache.paths.root),
        "source": cache.table.source,
        "images": len(cache.table),
        "bad": {cache.table.keys[row]: reason for row, reason in bad.items()},
        **asdict(read_seen(thumbs.paths)),
        "not_taken": cache.table.not_taken,
        "look": cache.look._asdict(),
        "splits": cache.table.split_sizes(),
        "classes": len(cache.table.classes),
        "label_kind": cache.table.label_kind,
        "unit_images": cache.unit_images,
        "thumbnails": _weigh(cache, thumbs)[0],
        "stores": [_describe(cache, store) for store in cache.stores()],
        "lost_metadata": lost_metadata(cache),
        "missing_shards": all_missing_shards(cache.arrays()),
        "writers": [asdict(writer) for writer in find_writers(parts)],
        "orphans": [asdict(orphan) for orphan in find_orphans(cache, parts)],
    }


def by_reason(bad: dict[str, str]) -> dict[str, list[str]]:
    """Quarantined images by reason, the most frequent first."""
    reasons: dict[str, list[str]] = {}
    for key, reason in bad.items():
        reasons.setdefault(reason, []).append(key)
    return dict(sorted(reasons.items(), key=lambda item: -len(item[1])))


def _describe(cache: Cache, store: Store) -> dict[str, Any]:
    weighed = [_weigh(cache, array) for array in store.arrays]
    settled = [units for _, units in weighed]
    done = [unit for unit in range(cache.n_units) if settled and all(unit in units for units in settled)]
    left = len(cache.table) - sum(len(cache.rows_of_unit(unit)) for unit in done)
    rate = images_per_s(cache, store.arrays) if left else None
    return {
        "store": store.name,
        "label": store.info.label,
        "recipe": store.info.recipe,
        "units_done": len(done),
        "units": cache.n_units,
        "images_per_s": rate,
        "eta_s": left / rate if rate else None,
        "arrays": [entry for entry, _ in weighed],
    }


def _weigh(cache: Cache, array: CachedArray) -> tuple[dict[str, Any], set[int]]:
    """The array's entry, and its settled units."""
    sizes = {path.name: size for path in array.paths.folder.glob("c.*") if (size := _size(path)) is not None}
    counts = {unit: _settled_rows(cache, array, unit, sizes) for unit in done_units(array.paths)}
    settled = {unit for unit, n in counts.items() if unit < cache.n_units and n >= len(cache.rows_of_unit(unit))}
    entry = {
        "array": array.paths.name,
        "kind": array.kind,
        "taps": list(array.taps),
        "shape": list(array.layout.shape),
        "dtype": array.layout.dtype.name,
        "units_done": len(settled),
        "units": cache.n_units,
        "images_done": sum(counts.values()),
        "old_rows_only": array.layout.shape[0] < len(cache.table),  # the set has grown since
        "files": len(sizes),
        "bytes": sum(sizes.values()),
        **_weigh_int8(array),
    }
    return entry, settled


def _settled_rows(cache: Cache, array: CachedArray, unit: int, sizes: dict[str, int]) -> int:
    """Rows that a done file settles; it is opened only where the shard's size leaves it open."""
    rows = cache.rows_of_unit(unit)
    whole = shard_bytes(array.layout, len(rows))
    return (
        len(rows)
        if sizes.get(array.paths.shard(unit, array.layout.ndim).name) == whole
        else count_done(array.paths, unit)
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # a repair or a drop was faster
        return None


def _weigh_int8(array: CachedArray) -> dict[str, Any]:
    """Of int8 arrays alone: the error measured when the scales were made, and the values beyond their range so far."""
    if array.layout.dtype != np.int8 or not has_scales(array.paths):
        return {}
    try:
        facts = read_facts(array.paths)
        errors = dict(zip(array.taps, map(float, facts["relative_rms"]), strict=False))
    except (FileNotFoundError, DamageFound, ValueError, KeyError, TypeError):  # `verify` names it
        return {}
    held = int(array.ledger.ready.sum()) * math.prod(array.layout.item_shape)
    return {
        "int8_error": errors,
        "saturated": array.ledger.saturated / max(held, 1),
        "scale_bytes": sum(path.stat().st_size for path in array.paths.scales.rglob("*") if path.is_file()),
    }
