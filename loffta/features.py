"""Turns `--features STORE[:TAPS]` into tensors that can be read: which arrays, which taps, pooled or not.

In: an open cache and what the user asked for.   Out: Features for `batches`, FeatureSpecs for `heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.pooling import pool_mean
from loffta.store.cache import Cache, CachedArray, Store
from loffta.taps import resolve_taps
from loffta.tokens import FeatureSpec, Kind


@dataclass(frozen=True)
class Feature:
    """Taps of one array of one store, as one tensor of a batch."""

    store: Store
    array: CachedArray
    spec: FeatureSpec

    @property
    def positions(self) -> list[int]:
        """The taps' places along the array's axis 1."""
        return [self.array.taps.index(tap) for tap in self.spec.taps]

    @property
    def raw_taps(self) -> list[int] | None:
        """What to ask the reader for; None, whole images, where the array keeps all taps in one chunk."""
        return self.positions if self.array.layout.chunks_per_image == len(self.array.taps) else None

    def finish(self, raw: Tensor) -> Tensor:
        """From what the reader gives, [B, L', ...], to [B, L, *spec.shape]; runs on the device of `raw`."""
        if self.raw_taps is None and len(self.spec.taps) != len(self.array.taps):
            raw = raw[:, self.positions]
        return pool_mean(raw) if self.spec.kind == "mean" and self.array.kind == "grid" else raw

    def __str__(self) -> str:
        return f"{self.store.name}:{','.join(self.spec.taps)}"


def choose_features(cache: Cache, choices: Sequence[str], kind: Kind, *, default_taps: str) -> list[Feature]:
    """Resolves what a head is fed.

    Args:
        choices: STORE[:TAPS], STORE being a store's or a backbone's name; empty: all stores.
        kind: what the head needs; `mean` is computed from `grid` where it is not stored.
        default_taps: for choices without TAPS.
    Raises:
        UsageError: no such store or tap; near names are given.
        LofftaError: a tap that is not stored; the `extract` command that adds it is given.
    """
    stores = cache.stores()
    if not stores:
        raise LofftaError("the cache has no features yet", where=cache.paths.root, remedy="run `loffta extract` first")
    features = []
    for choice in choices or [store.name for store in stores]:
        name, _, taps = choice.partition(":")
        features += _features_of(cache, _find_store(stores, name, cache), taps or default_taps, kind)
    return _with_unique_labels(features)


def usable_rows(cache: Cache, features: Sequence[Feature], split: str, *, partial: bool = False) -> NDArray[np.int64]:
    """Rows of a split that have all features; quarantined images are left out.

    Args:
        split: one split or several joined by '+'.
        partial: take what is there, though units are missing.
    Raises:
        UsageError: no such split.
        LofftaError: units are missing; the counts and the command that adds them are given.
    """
    for part in split.split("+"):
        if part not in cache.table.split_sizes():
            raise unknown_name("split", part, cache.table.split_sizes(), where=cache.paths.images)
    rows = cache.table.rows_of(split)
    ready = np.ones(len(cache.table), dtype=bool)
    for feature in features:
        here, settled = _settled(feature, len(cache.table))
        missing = int((~settled[rows]).sum())
        if missing and not partial:
            raise LofftaError(
                f"store {feature.store.name} is not finished: {missing} of the {len(rows)} images of split "
                f"'{split}' have no features yet",
                where=cache.paths.root,
                remedy=f"finish it with\n      {extract_command(cache, feature.store, _taps_of(features, feature.store))}\n"
                "    or train on what is there with --partial",
            )
        ready &= here
    if not ready[rows].any():
        raise LofftaError(
            f"no image of split '{split}' has features", where=cache.paths.root, remedy="run `loffta extract` first"
        )
    return rows[ready[rows]]


def extract_command(cache: Cache, store: Store, taps: Sequence[str]) -> str:
    """The command that adds taps to a store or finishes it."""
    request = store.info.request
    size = f" --image-px {request['image_px']}" if request["image_px"] else ""
    return (
        f"loffta extract {cache.table.source} --cache {cache.paths.root} --backbone {request['backbone']} "
        f"--weights {request['weights']} --taps {','.join(taps)}{size} --dtype {request['dtype']}"
    )


def _taps_of(features: Sequence[Feature], store: Store) -> list[str]:
    return [tap for feature in features if feature.store.name == store.name for tap in feature.spec.taps]


def _settled(feature: Feature, n_rows: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Per row of the table: has data, and has data or is quarantined; a store not yet grown has only old rows."""
    ledger = feature.array.ledger
    ready = np.zeros(n_rows, dtype=bool)
    ready[: len(ledger.ready)] = ledger.ready
    settled = ready.copy()
    settled[list(ledger.bad)] = True
    return ready, settled


def _find_store(stores: Sequence[Store], name: str, cache: Cache) -> Store:
    found = [s for s in stores if name in (s.name, s.info.recipe["backbone"])]
    if len(found) == 1:
        return found[0]
    if not found:
        known = [n for s in stores for n in (s.info.recipe["backbone"], s.name)]
        raise unknown_name("store", name, known, where=f"--features {name}, cache {cache.paths.root}")
    raise UsageError(
        f"{len(found)} stores hold features of {name}",
        where=f"--features {name}",
        remedy=f"name one of {', '.join(s.name for s in found)}",
    )


def _features_of(cache: Cache, store: Store, request: str, kind: Kind) -> list[Feature]:
    """One Feature per array that holds some of the taps, in depth order of each array's first tap."""
    stored = tuple(dict.fromkeys([*store.stored_taps(kind), *(store.stored_taps("grid") if kind == "mean" else ())]))
    stored = tuple(spec.tap for spec in store.info.taps if spec.tap in stored)
    available = [spec.tap for spec in store.info.taps]
    for name in (part.strip() for part in request.split(",")):
        if name in available and name not in stored:
            raise LofftaError(
                f"tap {name} of {store.name} is not in the cache as '{kind}'",
                where=f"--features {store.name}:{request}",
                remedy=f"add it with\n      {extract_command(cache, store, [name])}",
            )
    groups: dict[str, tuple[CachedArray, list[str]]] = {}
    for tap in resolve_taps(request, stored, where=f"--features {store.name}:{request}"):
        array = store.find(kind, tap) or store.find("grid", tap)
        assert array is not None, "resolve_taps only gives stored taps"
        groups.setdefault(array.paths.name, (array, []))[1].append(tap)
    return [_feature(store, array, taps, kind) for array, taps in groups.values()]


def _with_unique_labels(features: Sequence[Feature]) -> list[Feature]:
    """Two stores of one backbone (two sizes, two weights) are two backbones to a head; their hash tells them apart."""
    stores_of: dict[str, set[str]] = {}
    for feature in features:
        stores_of.setdefault(feature.spec.backbone, set()).add(feature.store.name)
    return [
        feature
        if len(stores_of[feature.spec.backbone]) == 1
        else replace(feature, spec=replace(feature.spec, backbone=f"{feature.spec.backbone} ({feature.store.hash})"))
        for feature in features
    ]


def _feature(store: Store, array: CachedArray, taps: Sequence[str], kind: Kind) -> Feature:
    spec = next(spec for spec in store.info.taps if spec.tap == taps[0])
    image_px = int(store.info.recipe["input"]["image_px"])
    return Feature(store, array, FeatureSpec(store.info.label, tuple(taps), kind, spec.shape(kind), image_px))
