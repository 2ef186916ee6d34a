"""`--views`: the same features of every random crop and flip of the images that the cache has, for a training.

In: the Features of whole images.   Out: the same Features, each with those of all views, which a feed takes turns in.
`extract --views K` makes a store of each; a view of one backbone shows what the same view of another does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loffta.dataset.features import Feature, choose_features, resolved_choices
from loffta.errors import LofftaError, UsageError
from loffta.store.cache import Cache, Store
from loffta.tokens import Kind

_OF_GEOMETRY = ("resize", "crop_pct", "crop_mode")  # of an input; a view makes its own crop


def with_views(cache: Cache, features: Sequence[Feature], kinds: Sequence[Kind]) -> list[Feature]:
    """The features with those of every view that all of their stores have.

    Args:
        kinds: as the features were chosen by.
    Raises:
        UsageError: there is no such view, or of int8 features, whose scales are a store's own.
        LofftaError: a view lacks taps that the whole images have.
    """
    if any(feature.array.layout.dtype == np.int8 for feature in features):
        raise UsageError(
            "views of int8 features cannot be mixed: every store has scales of its own",
            where="--views",
            remedy="extract them in float16: `loffta extract ... --views K --dtype float16`",
        )
    chosen = {choice.partition(":")[0]: choice for choice in resolved_choices(features)}
    by_view = {name: _views_of(cache, name) for name in chosen}
    common = sorted(set.intersection(*(set(found) for found in by_view.values())))
    if not common:
        lacking = next((name for name, found in by_view.items() if not found), None)
        raise UsageError(
            f"store {lacking} has no views" if lacking else "the stores have no view in common",
            where="--views",
            remedy="extract them: `loffta extract ... --views K`, for all backbones with the same --view-seed",
        )
    found: list[list[Feature]] = [[] for _ in features]
    for view in common:
        names = [by_view[name][view].name + chosen[name].removeprefix(name) for name in chosen]
        same = choose_features(cache, names, kinds, default_taps="all")
        if [feature.spec.shape for feature in same] != [feature.spec.shape for feature in features] or any(
            one.positions != other.positions for one, other in zip(same, features, strict=True)
        ):
            raise LofftaError(
                f"{', '.join(by_view[name][view].name for name in chosen)} do not hold the same arrays as the stores "
                "of whole images",
                where=cache.paths.root,
                remedy="extract all of them with the same --taps into a new cache",
            )
        for of_feature, feature in zip(found, same, strict=True):
            of_feature.append(feature)
    return [replace(feature, views=tuple(views)) for feature, views in zip(features, found, strict=True)]


def _views_of(cache: Cache, name: str) -> dict[str, Store]:
    """The stores that differ from this one in their view alone, by it."""
    stores = cache.stores()
    whole = _without_view(next(store for store in stores if store.name == name).info.recipe)
    return {
        json.dumps(store.info.recipe["view"], sort_keys=True): store
        for store in stores
        if store.info.is_view and _without_view(store.info.recipe) == whole
    }


def _without_view(recipe: Mapping[str, Any]) -> dict[str, Any]:
    seen = {key: value for key, value in recipe["input"].items() if key not in _OF_GEOMETRY}
    return {**recipe, "view": None, "input": seen}
