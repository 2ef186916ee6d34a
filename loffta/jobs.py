"""One backbone's part of an extraction: its store, its arrays, and the backbone where something is to be computed.

In: what the user asked for, and an open cache.   Out: a Job whose store and arrays exist. Called by `extract` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from loffta import machine
from loffta.backbones import Backbone
from loffta.backbones.load import stamp_files
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError, UsageError
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.files import replace_file
from loffta.store.recipe import StoreInfo, differing_fields
from loffta.taps import merge_specs, resolve_taps
from loffta.tokens import Kind, TokenSpec

Load = Callable[[BackboneConfig], Backbone]


@dataclass
class Job:
    """One backbone's part of an extraction."""

    store: Store
    arrays: list[CachedArray]  # that the asked taps and kinds need
    backbone: Backbone | None  # None while nothing has to be computed

    def missing(self, unit: int, rows: range) -> list[CachedArray]:
        """Arrays whose done file does not settle `rows`."""
        return [array for array in self.arrays if not array.has_unit(unit, rows)]


def prepare(cache: Cache, wanted: BackboneConfig, config: ExtractConfig, load: Load, units: Sequence[int]) -> Job:
    """Finds or makes the store and its arrays; loads the backbone only if one of `units` is missing.

    Raises:
        UsageError: a tap that the backbone does not have.
        LofftaError: the store was made with another recipe under the same options.
    """
    request = _request(wanted, config)
    known = next((s for s in cache.stores() if s.info.request == request), None)
    backbone = None
    if known is not None and _needs_no_model(known.info, wanted):
        info = known.info
    else:
        backbone = load(wanted)
        info = _info(backbone, request, config)
        if known is not None:
            _refuse_other_recipe(known, info)
            info = _learn(cache, known, info)
    specs = choose_specs(wanted, info.taps, config.kinds)
    known = known or cache.create_store(info)  # after the taps: a misspelt one leaves no store behind
    for kind in config.kinds:
        cache.add_arrays(known, kind, specs, config.dtype)
    store = cache.store(known.name)
    extended = [cache.extend(array) for array in store.arrays]
    taps = {spec.tap for spec in specs}
    job = Job(store, [a for a in extended if a.kind in config.kinds and taps & set(a.taps)], backbone)
    if backbone is None and any(job.missing(unit, cache.rows_of_unit(unit, config.limit)) for unit in units):
        job.backbone = load(wanted)
        _refuse_other_recipe(store, _info(job.backbone, request, config))
    return job


def choose_specs(wanted: BackboneConfig, specs: Sequence[TokenSpec], kinds: Sequence[Kind]) -> list[TokenSpec]:
    """The taps asked for, of all that the backbone has.

    Raises:
        UsageError: an unknown tap, or none of the kinds exists for this backbone (a CNN has no prefix tokens).
    """
    where = f"--taps {wanted.taps}, backbone {wanted.name}"
    names = resolve_taps(wanted.taps, [spec.tap for spec in specs], where=where)
    chosen = [spec for spec in specs if spec.tap in names]
    if not any(0 not in spec.shape(kind) for spec in chosen for kind in kinds):
        raise UsageError(
            f"{wanted.name} has no {' or '.join(kinds)} tokens", where="--kinds", remedy="use --kinds grid"
        )
    return chosen


def _request(wanted: BackboneConfig, config: ExtractConfig) -> dict[str, Any]:
    """The options that decide a recipe, as asked; taps and kinds are listed beside it."""
    return {
        "backbone": wanted.name,
        "weights": wanted.weights,
        "image_px": wanted.image_px,
        "resize": "squash",
        "interpolation": "model",
        "pool": None,
        "view": None,
        "precision": "fp32",
        "dtype": config.dtype,
    }


def _info(backbone: Backbone, request: dict[str, Any], config: ExtractConfig) -> StoreInfo:
    """The store's description; its recipe holds all that decides the features' bytes, and no more."""
    geometry = asdict(backbone.geometry)
    recipe = {
        "backbone": backbone.name,
        "weights": backbone.weights.digest,
        "input": {**geometry, "mean": list(backbone.mean), "std": list(backbone.std)},
        "pool": None,
        "view": None,
        "precision": "fp32",
        "dtype": config.dtype,
    }
    weights = {name: value for name, value in asdict(backbone.weights).items() if name != "digest"}
    return StoreInfo(recipe, request, weights, backbone.specs, machine.versions())


def _needs_no_model(info: StoreInfo, wanted: BackboneConfig) -> bool:
    """Whether a store answers for itself: its weights' files look as they did, and it knows the taps asked for.

    It may not: an older loffta knew fewer taps, and `module:PATH` is looked for only where it is asked for.
    """
    files = stamp_files(wanted.name, wanted.weights)
    if any(info.weights.get(key) != value for key, value in files.items()):
        return False
    try:
        resolve_taps(wanted.taps, [spec.tap for spec in info.taps], where="--taps")
    except UsageError:
        return False
    return True


def _learn(cache: Cache, store: Store, info: StoreInfo) -> StoreInfo:
    """Adds to a store's attributes what a load of its backbone has shown: new taps, and the stamps of its weights.

    Without the stamps, files that were only touched would be loaded and compared at every run.

    Args:
        info: of the same recipe.
    """
    there = cache.store(store.name).info  # as it is now: another process may have added taps
    learned = replace(there, weights=info.weights, taps=merge_specs(there.taps, info.taps))
    if learned != there:
        replace_file(cache.paths.store_metadata(store.name), learned.to_json())
    return learned


def _refuse_other_recipe(store: Store, info: StoreInfo) -> None:
    lines = differing_fields(store.info.recipe, info.recipe)
    if lines:
        raise LofftaError(
            f"store {store.name} was made with another recipe under the same options:\n    " + "\n    ".join(lines),
            where=store.name,
            remedy="bring the old weights back to continue it, or extract into a new cache (--cache OTHER)",
        )
