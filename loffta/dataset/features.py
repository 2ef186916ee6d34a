"""Turns `--features STORE[:TAPS]` into tensors that can be read: which arrays, which taps, pooled or not.

In: an open cache and what the user asked for.   Out: Features for `feed`, FeatureSpecs for `heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.command_lines import extract_command
from loffta.dataset.missing import await_units, refuse_lost, refuse_missing_shards, settled_rows
from loffta.errors import LofftaError, UsageError, unknown_name
from loffta.pooling import pool_mean
from loffta.store.cache import Cache, CachedArray, Store
from loffta.store.near import Near
from loffta.store.purge import still_lost
from loffta.store.quantise import dequantise
from loffta.store.scales import Scales
from loffta.taps import SETS, resolve_taps
from loffta.tokens import KINDS, FeatureSpec, Kind


@dataclass(frozen=True)
class Feature:
    """Taps of one array of one store, as one tensor of a batch."""

    store: Store
    array: CachedArray
    spec: FeatureSpec
    views: tuple[Feature, ...] = ()  # the same of other views of the images, of which training shows one at a time
    near: Near | None = field(default=None, compare=False, repr=False)  # copies of its shards, which are read first

    @property
    def positions(self) -> list[int]:
        """The taps' places along the array's axis 1."""
        return [self.array.taps.index(tap) for tap in self.spec.taps]

    @property
    def raw_taps(self) -> list[int] | None:
        """What to ask the reader for; None, whole images, where the array keeps all taps in one chunk."""
        return self.positions if self.array.layout.chunks_per_image == len(self.array.taps) else None

    @property
    def is_pooled(self) -> bool:
        """Whether it is the mean of a stored grid."""
        return self.spec.kind == "mean" and self.array.kind == "grid"

    @property
    def held_dtype(self) -> np.dtype[Any]:
        """What `reduce` gives: the stored dtype, but float32 for means of int8 grids, int16 for the bits of uint16."""
        stored = self.array.layout.dtype
        if stored == np.uint16:  # which torch can hold, and not index
            return np.dtype(np.int16)
        return np.dtype(np.float32) if self.is_pooled and stored == np.int8 else stored

    def reduce(self, raw: Tensor) -> Tensor:
        """From what the reader gives, [B, L', ...], to [B, L, *spec.shape] of `held_dtype`: what is worth keeping."""
        if not self.array.taps:  # of the images themselves: thumbnails, maps of targets
            return (raw.view(torch.int16) if raw.dtype == torch.uint16 else raw)[:, None]
        if self.raw_taps is None and len(self.spec.taps) != len(self.array.taps):
            raw = raw[:, self.positions]
        return pool_mean(self.decode(raw)) if self.is_pooled else raw

    def decode(self, tokens: Tensor) -> Tensor:
        """[B, L, ...] in the stored dtype, int8 as the float32 that it stands for; on the device of `tokens`.

        Maps of 16 bits come as int32.
        """
        if self.array.layout.dtype == np.uint16:
            return tokens.to(torch.int32) & 0xFFFF
        return tokens if self._scales is None or tokens.dtype != torch.int8 else dequantise(tokens, self._scales)

    def finish(self, raw: Tensor) -> Tensor:
        """From what the reader gives, [B, L', ...], to [B, L, *spec.shape] as a head gets it."""
        return self.decode(self.reduce(raw))

    @cached_property
    def _scales(self) -> Scales | None:
        return None if self.array.scales is None else self.array.scales.take(self.positions)


def choose_features(cache: Cache, choices: Sequence[str], kinds: Sequence[Kind], *, default_taps: str) -> list[Feature]:
    """Resolves what a head is fed: store after store, kind after kind, taps in depth order.

    Args:
        choices: STORE[:TAPS], STORE being a store's or a backbone's name; empty: all stores. Views are taken only by
            their store's name.
        kinds: what the head needs of every tap that has it: there is no `prefix` of a tap without prefix tokens, and
            `mean` is computed from `grid` where it is not stored.
        default_taps: for choices without TAPS.
    Raises:
        UsageError: no such store or tap; near names are given.
        LofftaError: a tap or kind that is not stored; the `extract` command that adds it is given.
        DamageFound: a purge took the zarr.json of what a choice might mean; all such are listed.
    """
    stores = cache.stores()
    lost = still_lost(cache)
    if not choices:
        refuse_lost(cache, lost)
    if not stores:
        raise LofftaError("the cache has no features yet", where=cache.paths.root, remedy="run `loffta extract` first")
    requests: dict[str, list[str]] = {}
    for choice in choices or [store.name for store in stores if not store.info.is_view]:
        name, _, taps = choice.partition(":")
        store = _find_store(stores, name, cache)
        if not {part.strip() for part in taps.split(",")} <= {spec.tap for spec in store.info.taps}:
            refuse_lost(cache, [array for array in lost if array.startswith(f"{store.name}/")])
        requests.setdefault(store.name, []).append(taps or default_taps)
    by_name = {store.name: store for store in stores}
    chosen = [_features_of(cache, by_name[name], ",".join(parts), kinds) for name, parts in requests.items()]
    return _with_unique_labels([feature for found in chosen for feature in found])


def resolved_choices(features: Sequence[Feature]) -> tuple[str, ...]:
    """What `choose_features` is asked for to get the same again: a store each, its taps by name."""
    taps: dict[str, list[str]] = {}
    for feature in features:
        known = taps.setdefault(feature.store.name, [])
        known += [tap for tap in feature.spec.taps if tap not in known]
    return tuple(f"{store}:{','.join(names)}" for store, names in taps.items())


def usable_rows(cache: Cache, features: Sequence[Feature], split: str, *, partial: bool = False) -> NDArray[np.int64]:
    """Rows of a split that have all features; quarantined images are left out.

    Args:
        split: one split or several joined by '+'.
        partial: take what is there, though units are missing.
    Raises:
        UsageError: no such split.
        LofftaError: units are missing; the counts and the command that adds them are given.
        DamageFound: shards of finished units are gone; all of them are listed.
    """
    cache.table.check_split(split, where=cache.paths.images)
    arrays = list({feature.array.paths.name: feature.array for feature in features}.values())
    refuse_missing_shards(cache, arrays)
    rows = cache.table.rows_of(split)
    if not partial:
        await_units(cache, arrays, rows)
    ready = np.ones(len(cache.table), dtype=bool)
    for feature in features:
        here, settled = settled_rows(feature.array, len(cache.table))
        missing = int((~settled[rows]).sum())
        if missing and not partial:
            command = extract_command(cache, feature.store, _taps_of(features, feature.store))
            raise LofftaError(
                f"store {feature.store.name} is not finished: {missing} of the {len(rows)} images of split "
                f"'{split}' have no features yet",
                where=cache.paths.root,
                remedy=f"finish it with\n      {command}\n    or train on what is there with --partial",
            )
        ready &= here
    if not ready[rows].any():
        if all(settled_rows(feature.array, len(cache.table))[1][rows].all() for feature in features):
            raise LofftaError(
                f"all {len(rows)} images of split '{split}' are quarantined: none could be decoded",
                where=cache.paths.root,
                remedy=f"see why with `loffta info {cache.paths.root}`, mend the images, or choose another split",
            )
        raise LofftaError(
            f"no image of split '{split}' has features, {_there(cache, ready)}",
            where=cache.paths.root,
            remedy="run the `loffta extract` that made the cache again: --limit and --splits choose its images",
        )
    return rows[ready[rows]]


def _there(cache: Cache, ready: NDArray[np.bool_]) -> str:
    """What has features instead: older versions took the first images for --limit, which may be of one split."""
    counts = {split: int(ready[cache.table.rows_of(split)].sum()) for split in cache.table.split_sizes()}
    found = [f"{n} of {split} have" for split, n in counts.items() if n]
    return f"but {', '.join(found)}" if found else "nor has any other"


def n_bad(cache: Cache, features: Sequence[Feature], split: str) -> int:
    """Images of a split that are quarantined in any of the features."""
    bad = {row for feature in features for row in feature.array.ledger.bad}
    return len(bad.intersection(cache.table.rows_of(split).tolist()))


def _taps_of(features: Sequence[Feature], store: Store) -> list[str]:
    """Each once, though it be there as two kinds."""
    return list(dict.fromkeys(tap for f in features if f.store.name == store.name for tap in f.spec.taps))


def _find_store(stores: Sequence[Store], name: str, cache: Cache) -> Store:
    found = [s for s in stores if name == s.name or (name == s.info.recipe["backbone"] and not s.info.is_view)]
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


def _features_of(cache: Cache, store: Store, request: str, kinds: Sequence[Kind]) -> list[Feature]:
    """One Feature per kind and run of taps that lie in one array; in depth order, whatever arrays are added later.

    A head's columns are in this order: a mean stored after the training must not move them.
    """
    where = f"--features {store.name}:{request}"
    stored = {kind: _stored_taps(store, kind) for kind in kinds}
    held = set().union(*stored.values()) or {tap for kind in KINDS for tap in store.stored_taps(kind)}
    either = tuple(spec.tap for spec in store.info.taps if spec.tap in held)  # else the error says which kind to add
    available = [spec.tap for spec in store.info.taps]
    for part in (part.strip() for part in request.split(",")):
        if needed := [tap for tap in _indispensable(part, available, either) if tap not in either]:
            raise _not_stored(cache, store, needed, kinds[0], where)
    taps = resolve_taps(request, either, where=where)
    features = []
    for kind in kinds:
        have = [spec.tap for spec in store.info.taps if spec.tap in taps and (kind != "prefix" or spec.n_prefix)]
        missing = [tap for tap in have if tap not in stored[kind]]
        if missing:
            raise _not_stored(cache, store, missing, kind, where)
        placed = [(_array_of(store, kind, tap), tap) for tap in have]
        for _, run in groupby(placed, key=lambda place: place[0].paths.name):
            found = list(run)
            features.append(_feature(store, found[0][0], [tap for _, tap in found], kind))
    if not features:
        raise LofftaError(
            f"{store.name} has no {' or '.join(kinds)}: its backbone has no prefix tokens",
            where=where,
            remedy="use another pooling, or the features of a backbone with a class token",
        )
    return features


def _indispensable(part: str, available: Sequence[str], stored: Sequence[str]) -> Sequence[str]:
    """Taps of a backbone without which a part of a request would mean something else: the one that it names.

    Sets are of the stored taps, but without its last layer, or with that alone, `alf` would not be ALF.
    """
    if part == "final":
        return SETS["final"](available)  # not `norm` where `head` is not stored
    if part != "alf":
        return [part] if part in available else []
    alf = SETS["alf"](available)
    return alf[-1:] if any(tap in stored for tap in alf[:-1]) else alf


def _array_of(store: Store, kind: Kind, tap: str) -> CachedArray:
    array = store.find(kind, tap) or store.find("grid", tap)
    assert array is not None, "what is missing has been refused"
    return array


def _stored_taps(store: Store, kind: Kind) -> set[str]:
    """Taps that there are as this kind; a mean also where there is its grid."""
    return {*store.stored_taps(kind), *(store.stored_taps("grid") if kind == "mean" else ())}


def _not_stored(cache: Cache, store: Store, taps: Sequence[str], kind: Kind, where: str) -> LofftaError:
    named = f"tap {taps[0]} of {store.name} is" if len(taps) == 1 else f"taps {', '.join(taps)} of {store.name} are"
    return LofftaError(
        f"{named} not in the cache as '{kind}'",
        where=where,
        remedy=f"add it with\n      {extract_command(cache, store, taps, kind)}",
    )


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
    shape, size = spec.shape(kind), store.info.image_px
    found = FeatureSpec(store.info.label, tuple(taps), kind, shape, size, spec.registers_only)
    return Feature(store, array, found)
