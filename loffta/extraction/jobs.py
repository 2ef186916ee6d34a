"""From what the user asked for to Jobs: finds or makes each store and its arrays, by request and recipe.

In: backbones, views and options, and an open cache.   Out: a Job whose store and arrays exist. Called by `extract`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from loffta.backbones import Backbone
from loffta.backbones.load import stamp_files
from loffta.config import BackboneConfig, ExtractConfig
from loffta.errors import LofftaError, UsageError
from loffta.extraction.forward import Job
from loffta.files.durable import replace_file
from loffta.images.geometry import VIEW_AREA, VIEW_ASPECT, VIEW_KIND, View
from loffta.look import Look, look_fields, look_of
from loffta.machine import process
from loffta.store.cache import Cache, Store
from loffta.store.ledger import unfinished
from loffta.store.recipe import RecipeDict, StoreInfo, differing_fields
from loffta.taps import merge_specs, resolve_taps
from loffta.tokens import Kind, TokenSpec

Load = Callable[[BackboneConfig], Backbone]  # on the device of who hands it in; called where something is computed


def stagger_s(config: ExtractConfig) -> float:
    """How long this share waits before it loads weights, so that not all read one file in the same second."""
    if config.stagger is None or not isinstance(config.share, tuple):
        return 0.0
    index, count = config.share
    return config.stagger * index / count


def stoppable(load: Load, stop: process.StopFlag, wait_s: float) -> Load:
    """The same loader, given up at once when a signal comes: it may be a download of gigabytes.

    Args:
        wait_s: before it loads for the first time.
    """
    turn = iter([wait_s])

    def load_or_stop(wanted: BackboneConfig) -> Backbone:
        stop.sleep(next(turn, 0.0), "waiting for its turn to load weights")
        with stop.at_once(f"loading {wanted.name}"):
            return load(wanted)

    return load_or_stop


def prepare(
    cache: Cache,
    wanted: BackboneConfig,
    view: View | None,
    config: ExtractConfig,
    load: Load,
    asked: Mapping[int, Sequence[int]],
    others: Collection[int] = (),
) -> Job:
    """Finds or makes the store and its arrays; loads the backbone only if something is missing.

    Args:
        asked: rows by unit.
        others: units of other shares that it may write, too.

    Raises:
        UsageError: a tap that the backbone does not have.
        LofftaError: the store was made with another recipe under the same options.
    """
    request = make_request(wanted, view, config)
    known = next((s for s in cache.stores() if s.info.request == request), None)
    backbone = None
    if known is not None and _needs_no_model(known.info, wanted):
        info = known.info
    else:
        backbone = load(wanted)
        info = describe(backbone, request)
        if known is not None:
            _refuse_other_recipe(cache, known, info)
            info = _learn(cache, known, info)
    specs = choose_specs(wanted, info.taps, config.kinds)
    known = known or cache.create_store(info)  # after the taps: a misspelt one leaves no store behind
    for kind in config.kinds:
        cache.add_arrays(known, kind, specs, config.dtype)
    store = cache.store(known.name)
    extended = [cache.extend(array) for array in store.arrays]
    taps = {spec.tap for spec in specs}
    arrays = [a for a in extended if a.kind in config.kinds and taps & set(a.taps)]
    job = Job(store, arrays, backbone, process.resolve_device(config.device))
    lacks = any(job.missing(unit, rows) for unit, rows in asked.items())
    if backbone is None and (lacks or unfinished([array.paths for array in arrays], others)):
        job.backbone = load(wanted)
        _refuse_other_recipe(cache, store, describe(job.backbone, request))
    return job


def reopen(cache: Cache, store: Store, config: ExtractConfig, load: Load) -> Job:
    """The job of a store that is there, for all its arrays, with its backbone; makes and changes nothing.

    Args:
        config: the store's own request, of one backbone.
    Raises:
        LofftaError: the backbone is not the one that made the store.
    """
    backbone = load(config.backbones[0])
    _refuse_other_recipe(cache, store, describe(backbone, store.info.request))
    return Job(store, list(store.arrays), backbone, process.resolve_device(config.device), batch_size=1)


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


def make_request(wanted: BackboneConfig, view: View | None, config: ExtractConfig) -> dict[str, Any]:
    """The options that decide a recipe, as asked; taps and kinds are listed beside it."""
    area_and_aspect = {"area": list(VIEW_AREA), "aspect": list(VIEW_ASPECT)}
    return {
        "backbone": wanted.name,
        "weights": wanted.weights,
        "image_px": wanted.image_px,
        "resize": config.resize,
        "interpolation": config.interpolation,
        **look_fields(look_asked(config)),
        "pool": list(config.pool) if config.pool else None,
        "view": {"kind": VIEW_KIND, **asdict(view), **area_and_aspect} if view else None,
        "precision": config.precision,
        "dtype": config.dtype,
    }


def backbone_asked(request: Mapping[str, Any], taps: Sequence[str]) -> BackboneConfig:
    """What a store's request says of its backbone, for some of its taps."""
    named = {name: request[name] for name in ("weights", "image_px")}
    return BackboneConfig(name=request["backbone"], taps=",".join(taps), **named)


def with_look(config: ExtractConfig, look: Look) -> ExtractConfig:
    """The configuration with the look that it does not name itself."""
    return config.model_copy(update={n: v for n, v in look._asdict().items() if getattr(config, n) is None})


def look_asked(config: ExtractConfig) -> Look:
    """What a configuration names; as of old where it names nothing."""
    return look_of({name: value for name in Look._fields if (value := getattr(config, name)) is not None})


def recipe_of(backbone: Backbone, request: dict[str, Any]) -> RecipeDict:
    """All that decides the features' bytes, and no more.

    Raises:
        UsageError: the request cannot be met by this backbone.
    """
    return {
        "backbone": backbone.name,
        "weights": backbone.weights.digest,
        "input": {**_input(backbone, request), "mean": list(backbone.mean), "std": list(backbone.std)},
        "pool": request["pool"],
        "view": request["view"],
        "precision": request["precision"],
        "dtype": request["dtype"],
    }


def describe(backbone: Backbone, request: dict[str, Any]) -> StoreInfo:
    """The store's description; counting its multiply-accumulates takes a forward pass. Raises as `recipe_of`."""
    weights = {name: value for name, value in asdict(backbone.weights).items() if name != "digest"}
    rows, columns = request["pool"] or (1, 1)
    specs = tuple(replace(s, height=-(-s.height // rows), width=-(-s.width // columns)) for s in backbone.specs)
    macs = getattr(backbone, "macs", None)
    return StoreInfo(recipe_of(backbone, request), request, weights, specs, process.versions(), macs)


def _input(backbone: Backbone, request: dict[str, Any]) -> dict[str, Any]:
    """The geometry as recorded: with the crop's fields only where the image is cropped."""
    geometry = backbone.geometry
    asked = request["interpolation"]
    found = {
        "image_px": geometry.image_px,
        "resize": "squash",
        "interpolation": geometry.interpolation if asked == "model" else asked,
        **look_fields(look_of(request)),
    }
    if request["resize"] == "squash" or request["view"]:  # a view makes its own crop
        return found
    if geometry.crop_mode == "border":
        raise UsageError(
            "timm's evaluation transform of this model pads images with a border, which --resize crop does not do",
            where=f"backbone {backbone.name}",
            remedy="use --resize squash",
        )
    return {**found, "resize": "crop", "crop_pct": geometry.crop_pct, "crop_mode": geometry.crop_mode}


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


def _refuse_other_recipe(cache: Cache, store: Store, info: StoreInfo) -> None:
    lines = differing_fields(store.info.recipe, info.recipe)
    if lines:
        root = cache.paths.root
        path = store.info.weights["path"]
        old = f"bring the old weights back ({path})" if path else "bring back what made the store"
        raise LofftaError(
            f"store {store.name} was made with another recipe under the same options:\n    " + "\n    ".join(lines),
            where=store.name,
            remedy=f"{old} and run the same command again: it continues;\n"
            "    or keep both: the same command with another --cache;\n"
            f"    or give the old features up: {shlex.join(['loffta', 'drop', str(root), store.name, '--yes'])}",
        )
