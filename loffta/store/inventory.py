"""What a cache holds and what it weighs, for `loffta info`. Lists names and sizes; opens few done files.

What is damaged is named, and all else is told.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from loffta.errors import DamageFound
from loffta.files.durable import find_parts
from loffta.store.activity import find_orphans, find_writers, images_per_s
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.codecs import codec_name
from loffta.store.label_sets import take_sets
from loffta.store.ledger import count_done, done_units
from loffta.store.paths import LABELS, TARGETS, THUMB
from loffta.store.purge import all_missing_shards, lost_metadata, missing_natives
from loffta.store.scales import has_scales, read_facts
from loffta.store.seen import Seen, read_seen
from loffta.store.space import shard_bytes
from loffta.store.target_inventory import describe_targets
from loffta.store.verify import Damage, open_arrays


def take_inventory(cache: Cache) -> dict[str, Any]:
    """Image set, stores and arrays with their finished units, files and bytes; who is writing, and what is orphaned."""
    arrays, damages = open_arrays(cache)
    by_store: dict[str, list[CachedArray]] = {}
    for array in arrays:
        by_store.setdefault(array.paths.name.partition("/")[0], []).append(array)
    dense = {array.paths.name: array for array in by_store.pop(TARGETS, [])}
    thumbs = dense.pop(cache.paths.target(THUMB).name, None) or cache.thumbs()
    parts = find_parts(cache.paths.root)
    told: dict[str, Any] = {"bad": None} | asdict(Seen())
    try:
        told = {"bad": {cache.table.keys[row]: reason for row, reason in thumbs.ledger.bad.items()}}
        told |= asdict(read_seen(thumbs.paths))
    except DamageFound as error:
        damages.append(Damage(thumbs.paths.name, None, error.what, Path(error.where)))
    targets, broken = describe_targets(cache, {name: _weigh(cache, array)[0] for name, array in dense.items()})
    damages += broken
    sets, faults = take_sets(cache)
    damages += [Damage(f"{LABELS}/{path.stem}", None, what, path) for path, what in faults]
    return {
        "cache": str(cache.paths.root),
        "source": cache.table.source,
        "images": len(cache.table),
        **told,
        "not_taken": cache.table.not_taken,
        "look": cache.look._asdict(),
        "splits": cache.table.split_sizes(),
        "classes": len(cache.table.classes),
        "label_kind": cache.table.label_kind,
        "labels": [asdict(facts) for facts in sets],
        "moved": len(cache.table.moved),
        "gone": len(cache.table.gone),
        "unit_images": cache.unit_images,
        "thumbnails": _weigh(cache, thumbs)[0],
        "targets": targets,
        "stores": [
            _describe(cache, Store(name, cache.store_info(name), tuple(by_store.get(name, ()))))
            for name in cache.paths.store_names()
            if name not in {damage.array for damage in damages}
        ],
        "damaged": [{"what": damage.what, "array": damage.array, "path": str(damage.path)} for damage in damages],
        "lost_metadata": lost_metadata(cache),
        "missing_shards": all_missing_shards(arrays) | missing_natives(cache),
        "writers": [asdict(writer) for writer in find_writers(parts)],
        "orphans": [asdict(orphan) for orphan in find_orphans(cache, arrays, parts)],
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
    sizes = array.paths.shard_sizes()
    counts = {unit: _settled_rows(cache, array, unit, sizes) for unit in done_units(array.paths)}
    settled = {unit for unit, n in counts.items() if unit < cache.n_units and n >= len(cache.rows_of_unit(unit))}
    entry = {
        "array": array.paths.name,
        "kind": array.kind,
        "taps": list(array.taps),
        "shape": list(array.layout.shape),
        "dtype": array.layout.dtype.name,
        "codec": codec_name(array.layout),
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
    is_whole = sizes.get(array.paths.shard(unit, array.layout.ndim).name) == whole
    return len(rows) if is_whole else count_done(array.paths, unit)


def _weigh_int8(array: CachedArray) -> dict[str, Any]:
    """Of int8 arrays alone: the error measured when the scales were made, and the values beyond their range so far."""
    if array.layout.dtype != np.int8 or not has_scales(array.paths):
        return {}
    try:
        facts = read_facts(array.paths)
        errors = dict(zip(array.taps, map(float, facts["relative_rms"]), strict=False))
        ledger = array.ledger
    except (FileNotFoundError, DamageFound, ValueError, KeyError, TypeError):  # `verify` names it
        return {}
    held = int(ledger.ready.sum()) * math.prod(array.layout.item_shape)
    return {
        "int8_error": errors,
        "saturated": ledger.saturated / max(held, 1),
        "scale_bytes": sum(path.stat().st_size for path in array.paths.scales.rglob("*") if path.is_file()),
    }
