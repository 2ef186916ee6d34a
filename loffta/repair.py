"""Extracts damaged units anew, and no others: what `loffta verify --repair` does.

In: what `store.verify` found.   Out: the same units, written again from the cache's own source and requests.
"""

from __future__ import annotations

from collections.abc import Sequence

from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError
from loffta.extract import run
from loffta.images.geometry import View
from loffta.machine import StopFlag
from loffta.os_words import guard
from loffta.store.cache import Cache, Store
from loffta.store.files import remove_folder
from loffta.store.verify import Damage


def repair(cache: Cache, damages: Sequence[Damage], stop: StopFlag) -> int:
    """Writes every damaged unit anew.

    The done files go first: should the source or the weights be out of reach, the units are honestly missing, and the
    same `loffta extract` fills them in later.

    Returns:
        Units written.
    Raises:
        LofftaError: the images or weights cannot be had, or are not what they were.
        Stopped: a signal came.
    """
    for damage in damages:
        with guard(damage.done):
            damage.done.unlink(missing_ok=True)
            if damage.scales is not None:
                remove_folder(damage.scales)
    stores = cache.stores()
    hurt = [s for s in stores if any(d.array.startswith(f"{s.name}/") for d in damages)]
    written = 0
    try:
        for store in hurt or stores[:1]:  # thumbnails alone: any store's extraction writes them
            units = {d.unit for d in damages if d.array.partition("/")[0] in (store.name, "targets")}
            view = store.info.request["view"]
            views = [View(view["seed"], view["index"]) if view else None]
            written += run(request_config(cache, store, damages), stop, only=units, views=views).units
    except LofftaError as error:
        error.add_note(
            "damaged units that are not written yet count as missing now; the `loffta extract` that made the cache "
            "writes them, also from another SOURCE if the images have moved"
        )
        raise
    return written


def request_config(cache: Cache, store: Store, damages: Sequence[Damage] = ()) -> ExtractConfig:
    """The extraction of a store's damaged arrays; of all where only thumbnails are hurt, since those are whole."""
    names = {d.array for d in damages}
    arrays = [array for array in store.arrays if array.paths.name in names] or list(store.arrays)
    request = store.info.request
    taps = [spec.tap for spec in store.info.taps if any(spec.tap in array.taps for array in arrays)]
    backbone = BackboneConfig(
        name=request["backbone"], weights=request["weights"], taps=",".join(taps), image_px=request["image_px"]
    )
    kinds = tuple(dict.fromkeys(array.kind for array in arrays))
    return ExtractConfig.model_validate(
        {
            "source": cache.table.source,
            "cache": cache.paths.root,
            "backbones": (backbone,),
            "kinds": kinds,
            **{name: request[name] for name in ("resize", "interpolation", "pool", "precision", "dtype")},
            "max_bad_frac": 1.0,  # what was accepted when the unit was written is no error now
        }
    )
