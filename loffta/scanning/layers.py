"""The vectors of every tap, as columns of a batch: its class token, the mean of its grid, or both side by side.

In:  Features of the cache.   Out: Layers, each of which takes its vectors from a batch; and groups of them that fit
into memory together, for a scan that reads each group's taps once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loffta.config import Pooling
from loffta.dataset.features import Feature
from loffta.errors import UsageError
from loffta.heads.linear import KINDS_OF
from loffta.tokens import FedKind, Kind

Tap = tuple[str, str]  # of a store


@dataclass(frozen=True)
class Layer:
    """One pooling of one tap."""

    store: str
    backbone: str  # the label shown to users
    tap: str
    pooling: Pooling
    places: tuple[tuple[int, int], ...]  # the feature's number, the tap's place along its axis L
    n_columns: int

    def take(self, features: Sequence[Tensor]) -> Tensor:
        """[B, K] of a batch, in its dtype; a view where it can be."""
        vectors = [features[i][:, place] for i, place in self.places]
        vectors = [tokens[:, 0] if tokens.ndim == 3 else tokens for tokens in vectors]
        return vectors[0] if len(vectors) == 1 else torch.cat([part.float() for part in vectors], dim=1)


def kinds_of(poolings: Sequence[Pooling]) -> tuple[Kind, ...]:
    """What is read for them."""
    return tuple(dict.fromkeys(kind for pooling in poolings for kind in KINDS_OF[pooling]))


def list_layers(features: Sequence[Feature], poolings: Sequence[Pooling]) -> list[Layer]:
    """All layers, store after store, in depth order.

    Of a backbone without class token `cls+mean` is its mean alone, as in the linear head; it is listed once.

    Raises:
        UsageError: a store with none of the vectors that are asked for.
    """
    found: list[Layer] = []
    for store in {feature.store.name: feature.store for feature in features}.values():
        own = [(i, feature) for i, feature in enumerate(features) if feature.store.name == store.name]
        before = len(found)
        for tap in (spec.tap for spec in store.info.taps):
            found += _layers_of(own, tap, poolings)
        if len(found) == before:
            raise UsageError(
                f"{own[0][1].spec.backbone} has no class token: its prefix tokens are registers",
                where="--pooling",
                remedy="add --pooling mean, or leave this backbone out with --features",
            )
    return found


def _layers_of(own: Sequence[tuple[int, Feature]], tap: str, poolings: Sequence[Pooling]) -> Iterator[Layer]:
    places: dict[FedKind, tuple[tuple[int, int], Feature]] = {}
    for i, feature in own:
        if tap in feature.spec.taps and (feature.spec.kind == "mean" or feature.spec.has_class_token):
            places[feature.spec.kind] = (i, feature.spec.taps.index(tap)), feature
    listed = set()
    for pooling in poolings:
        parts = [places[kind] for kind in KINDS_OF[pooling] if kind in places]
        where = tuple(place for place, _ in parts)
        if not parts or where in listed:
            continue
        listed.add(where)
        spec = parts[0][1].spec
        n_columns = sum(feature.spec.dim for _, feature in parts)
        yield Layer(parts[0][1].store.name, spec.backbone, tap, pooling, where, n_columns)


def in_groups(layers: Sequence[Layer], n_bytes: Callable[[Layer], int], budget: int) -> list[set[Tap]]:
    """Taps that are scanned together, in order: as many as their layers fit into `budget`, one at least."""
    by_tap: dict[Tap, int] = {}
    for layer in layers:
        tap = layer.store, layer.tap
        by_tap[tap] = by_tap.get(tap, 0) + n_bytes(layer)
    groups: list[set[Tap]] = []
    left = 0
    for tap, size in by_tap.items():
        if not groups or size > left:
            groups.append(set())
            left = budget
        groups[-1].add(tap)
        left -= size
    return groups


def only(features: Sequence[Feature], taps: Collection[Tap]) -> list[Feature]:
    """The features of these taps alone."""
    kept = [(f, tuple(tap for tap in f.spec.taps if (f.store.name, tap) in taps)) for f in features]
    return [replace(f, spec=replace(f.spec, taps=chosen)) for f, chosen in kept if chosen]
