"""Extracts damaged units anew, and no others: what `loffta verify --repair` does.

In: what `store.verify` found.   Out: the same units, written again from the cache's own source and requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from loffta.config import ExtractConfig
from loffta.errors import DamageFound, LofftaError
from loffta.extraction.extract import run
from loffta.extraction.jobs import backbone_asked
from loffta.extraction.target_repair import is_dense, repair_targets
from loffta.files.durable import remove_folder, replace_file
from loffta.images.geometry import View
from loffta.look import look_of
from loffta.machine.process import StopFlag
from loffta.store.cache import Cache, Store
from loffta.store.ledger import set_aside, stated_layouts
from loffta.store.metadata import read_layout
from loffta.store.paths import TARGETS
from loffta.store.verify import Damage, tidy

_OPTIONS = ("resize", "interpolation", "pool", "precision", "dtype")


def repair(cache: Cache, damages: Sequence[Damage], lost: Sequence[str], stop: StopFlag) -> int:
    """Writes every damaged unit anew, and every array's zarr.json that its done files know.

    The done files are set aside first: from then on nobody trusts the units, and `verify` lists them until they are
    written anew. Stopped, killed or without the source at any point, the same command goes on, and so does the
    `loffta extract` that made them.

    Args:
        damages: what `verify` found.
        lost: arrays without zarr.json, as `purge.lost_metadata` names them.
    Returns:
        Units written.
    Raises:
        LofftaError: the images or weights cannot be had, or are not what they were.
        Stopped: a signal came.
    """
    units = [damage for damage in damages if damage.unit is not None]
    refuse_packed(cache)
    for damage in damages:
        if damage.layout is not None:
            replace_file(damage.path, damage.layout.to_json())
    restore(cache, lost)
    for damage in units:
        assert damage.unit is not None
        set_aside(cache.paths.units(damage.array), damage.unit)
    for folder in dict.fromkeys(damage.scales for damage in units if damage.scales is not None):
        remove_folder(folder)
    targets = [damage for damage in units if is_dense(damage.array)]
    written = write_units(cache, [damage for damage in units if not is_dense(damage.array)], stop)
    written += repair_targets(cache, targets, stop)
    tidy(cache)
    return written


def refuse_packed(cache: Cache) -> None:
    """Raises a LofftaError where an array is packed: extraction writes none."""
    for paths in cache.paths.done_arrays():
        with suppress(DamageFound):
            layout = read_layout(paths.metadata) if paths.metadata.exists() else None
            if layout is not None and layout.codec is not None:
                raise LofftaError(
                    "a packed cache is not repaired: extraction writes no packed units",
                    where=paths.metadata,
                    remedy="delete the done files of what `loffta verify` lists (it prints the line), and run the "
                    "`loffta pack` that made this copy again: it writes what is missing",
                )


def restore(cache: Cache, lost: Sequence[str]) -> None:
    """Writes the zarr.json of arrays that have lost it, where their done files agree on what it said."""
    for name in lost:
        if "/" in name:
            paths = cache.paths.named(name)
            layouts = stated_layouts(paths, len(cache.table))
            if len(layouts) == 1:
                replace_file(paths.metadata, layouts[0].to_json())


def write_units(cache: Cache, damages: Sequence[Damage], stop: StopFlag) -> int:
    """Extracts units, store by store."""
    if not damages:
        return 0
    stores = cache.stores()
    hurt = [s for s in stores if any(d.array.startswith(f"{s.name}/") for d in damages)]
    written = 0
    try:
        for store in hurt or stores[:1]:  # thumbnails alone: any store's extraction writes them
            owners = (store.name, TARGETS)
            units = {d.unit for d in damages if d.unit is not None and d.array.partition("/")[0] in owners}
            view = store.info.request.get("view")
            views = [View(view["seed"], view["index"]) if view else None]
            written += run(request_config(cache, store, damages), stop, only=units, views=views).units
    except LofftaError as error:
        error.add_note(
            "damaged units that are not written yet are set aside: the same command goes on with them, and so does the "
            "`loffta extract` that made the cache, also from another SOURCE if the images have moved"
        )
        raise
    return written


def request_config(cache: Cache, store: Store, damages: Sequence[Damage] = ()) -> ExtractConfig:
    """The extraction of a store's damaged arrays; of all where only thumbnails are hurt, since those are whole."""
    names = {d.array for d in damages}
    arrays = [array for array in store.arrays if array.paths.name in names] or list(store.arrays)
    request = store.info.request
    absent = [name for name in (*_OPTIONS, "backbone", "weights", "image_px") if name not in request]
    if absent:
        raise LofftaError(
            f"the store does not say how it was asked for: its request lacks {', '.join(absent)}",
            where=cache.paths.store_metadata(store.name),
            remedy="run the `loffta extract` that made it: it writes the units anew that are set aside",
        )
    taps = [spec.tap for spec in store.info.taps if any(spec.tap in array.taps for array in arrays)]
    return ExtractConfig.model_validate(
        {
            "source": cache.table.source,
            "cache": cache.paths.root,
            "backbones": (backbone_asked(request, taps),),
            "kinds": tuple(dict.fromkeys(array.kind for array in arrays)),
            **{name: request[name] for name in _OPTIONS},
            **look_of(request)._asdict(),
            "max_bad_frac": 1.0,  # what was accepted when the unit was written is no error now
        }
    )
