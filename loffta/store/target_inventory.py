"""What a cache holds of dense targets, for `loffta info`: kinds, classes, counts, and the squares made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loffta.errors import DamageFound
from loffta.store.cache import Cache
from loffta.store.ledger import done_units
from loffta.store.paths import FilePaths
from loffta.store.target_files import BAD, MISSING, OK, listed_in
from loffta.store.targets import NativeTargets
from loffta.store.verify import Damage


def describe_targets(cache: Cache, arrays: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Damage]]:
    """An entry a kind, and what of them cannot be read.

    Args:
        arrays: entries of the arrays of squares, by name.
    """
    entries, damages = [], []
    for kind in cache.paths.target_kinds():
        squares = [entry for name, entry in arrays.items() if entry["kind"] == kind]
        for paths in cache.paths.file_targets():
            if kind == "boxes" and paths.name.startswith("targets/boxes-"):
                squares.append({"array": paths.name, "kind": kind, "taps": [], "shape": [len(cache.table)]})
                squares[-1] |= {**_weigh(cache, paths), "old_rows_only": False}
        entry = {"kind": kind, "squares": squares, **_weigh(cache, cache.paths.native(kind))}
        try:
            entry |= _tell(cache, cache.native(kind))
        except DamageFound as error:
            damages.append(Damage(cache.paths.native(kind).name, None, error.what, Path(error.where)))
            entry |= {"class_names": [], "classes": 0, "ok": 0, "missing": 0, "bad": {}, "objects": 0}
        px = {entry["shape"][1] for entry in squares if len(entry["shape"]) > 1}
        entries.append(entry | {"px": min(px, default=None)})
    return entries, damages


def _tell(cache: Cache, native: NativeTargets) -> dict[str, Any]:
    bad = np.flatnonzero(native.status == BAD).tolist()
    return {
        "class_names": list(native.classes),
        "classes": len(native.classes),
        "ok": int((native.status == OK).sum()),
        "missing": int((native.status == MISSING).sum()),
        "bad": {cache.table.keys[row]: native.reasons[row] for row in bad},
        "objects": int(native.n_objects.sum()),
    }


def _weigh(cache: Cache, paths: FilePaths) -> dict[str, Any]:
    units = [unit for unit in done_units(paths) if unit < cache.n_units]
    counts = [len(listed_in(paths, unit)) for unit in units]
    whole = [n for unit, n in zip(units, counts, strict=True) if n >= len(cache.rows_of_unit(unit))]
    sizes = [paths.done(unit).stat().st_size for unit in units]
    found = {"units_done": len(whole), "units": cache.n_units, "images_done": sum(counts)}
    return found | {"files": len(units), "bytes": sum(sizes)}
