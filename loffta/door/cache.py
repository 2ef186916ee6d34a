"""`loffta.open_cache`: what a cache holds, and its features for whoever trains on them without loffta."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from loffta.dataset.features import Feature, choose_features, n_bad, usable_rows
from loffta.door.dataset import TokenDataset
from loffta.door.options import PathLike
from loffta.door.selection import Selection, TokenKind, describe_rows, read_labels
from loffta.errors import LofftaError, UsageError
from loffta.store.cache import Cache
from loffta.store.labels import SOURCE
from loffta.tokens import KINDS, Kind
from loffta.zoo.names import ZOO


def open_cache(cache: PathLike, labels: PathLike | None = None) -> OpenCache:
    """Opens the folder that `extract` made; one that is read-only, or being written, too.

    >>> cache = loffta.open_cache("cache")
    >>> cache.splits, len(cache.stores)
    ({'test': 50, 'train': 100}, 1)

    Args:
        labels: a set of annotations of the cache, or a file: splits, classes and labels are those that it gives. None:
            what the image set says.
    Raises:
        UsageError: there is no such set, or the file cannot be used.
        LofftaError: there is none, or it is of a newer format.
        DamageFound: its table of images is not as it was written.
    """
    opened = Cache.open(Path(os.fspath(cache)))
    return OpenCache(opened if labels is None else opened.with_labels(os.fspath(labels)))


class OpenCache:
    """One image set with its stores of features. Every call of `features` sees what was written until then."""

    def __init__(self, cache: Cache) -> None:
        """Of an open cache."""
        self._cache = cache

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._cache.paths.root

    @property
    def source(self) -> str:
        """The image set, as its user named it."""
        return self._cache.table.source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of the labels' numbers."""
        return self._cache.table.classes

    @property
    def splits(self) -> dict[str, int]:
        """How many images each split has."""
        return self._cache.table.split_sizes()

    @property
    def stores(self) -> dict[str, tuple[str, ...]]:
        """The taps that there are of each store, in depth order; read anew at each call."""
        return {store.name: store.stored_taps() for store in self._cache.stores()}

    def __len__(self) -> int:
        return len(self._cache.table)

    def __repr__(self) -> str:
        return f"<cache {self.path}: {len(self)} images of {self.source}, stores {', '.join(self.stores) or 'none'}>"

    def features(
        self, *features: str, kind: TokenKind = "mean", split: str | None = None, partial: bool = False
    ) -> Selection:
        """Features of the images of a split; nothing is read before it is asked for.

        >>> train = cache.features("test_vit:last", kind="mean", split="train")
        >>> train.numpy().shape, train.labels().shape, train.left_out
        ((100, 64), (100,), {'bad': 0, 'missing': 0})
        >>> cache.features("test_vit:blocks.0,blocks.1", kind="grid", split="test").shape
        (50, 2, 4, 4, 64)

        Args:
            features: STORE[:TAPS] as `loffta train` takes them, STORE a store's or a backbone's name; TAPS: last where
                they are left out. None: all stores.
            kind: mean (of the grid's tokens) and class (the class token) give vectors, all taps side by side; grid and
                prefix give tokens.
            split: one, or several joined by +. None: all images.
            partial: take what is there, though units are missing.
        Raises:
            UsageError: no such store, tap, kind or split; near names are given.
            LofftaError: features are not in the cache, or not of all images; the command that adds them is given.
            DamageFound: finished units are gone.
        """
        choices = [_with_timm_id(choice) for choice in features]
        chosen = choose_features(self._cache, choices, [stored_kind(kind)], default_taps="last")
        if kind == "class":
            _check_class_tokens(chosen)
        split = split or "+".join(self.splits)
        rows = usable_rows(self._cache, chosen, split, partial=partial)
        bad = n_bad(self._cache, chosen, split)
        left_out = {"bad": bad, "missing": len(self._cache.table.rows_of(split)) - len(rows) - bad}
        return Selection(self._cache, tuple(chosen), kind, rows, left_out)

    def dataset(self, *features: str, **options: Any) -> TokenDataset:
        """The same for a DataLoader: `features(...).dataset()`."""
        return self.features(*features, **options).dataset()

    @property
    def label_sets(self) -> list[str]:
        """The sets of annotations that there are, but `source`, which is what the image set says."""
        return [name for name in self._cache.paths.label_names() if name != SOURCE]

    def labels(self, split: str | None = None, *, name: str | None = None) -> NDArray[Any]:
        """The labels of all images of a split, whether they have features or not; `Selection.labels` has its own.

        >>> cache.labels("test").shape
        (50,)

        Args:
            name: a set of annotations, or a file; None: what this cache was opened with.
        Returns:
            [n] int64, positions in `classes`; [n, C] int8 where images have several classes; [n] float64 of numbers.
        Raises:
            LofftaError: some have no label.
        """
        if name is not None:
            return OpenCache(self._cache.with_labels(name)).labels(split)
        return read_labels(self._cache.table, self._rows(split))

    def table(self, split: str | None = None) -> pa.Table:
        """The images: row, key, split, label (a name, a list of names, or a number; null where there is none).

        >>> cache.table("test").slice(0, 1).to_pylist()
        [{'row': 0, 'key': 'test/0/0000.png', 'split': 'test', 'label': '0'}]
        """
        return pa.table(describe_rows(self._cache.table, self._rows(split)))

    def _rows(self, split: str | None) -> NDArray[np.int64]:
        table = self._cache.table
        if split is None:
            return np.arange(len(table))
        table.check_split(split, where=self._cache.paths.images)
        return table.rows_of(split)


def stored_kind(kind: str) -> Kind:
    """What is read for a kind that `features` takes; UsageError where it takes no such."""
    kinds: dict[str, Kind] = {**{name: name for name in KINDS}, "class": "prefix"}
    if kind not in kinds:
        raise UsageError(f"there is no kind '{kind}'", where="kind", remedy=f"use {', '.join(kinds)}")
    return kinds[kind]


def _with_timm_id(choice: str) -> str:
    name, colon, taps = choice.partition(":")
    return ZOO.get(name, name) + colon + taps


def _check_class_tokens(chosen: list[Feature]) -> None:
    without = [feature.spec.backbone for feature in chosen if not feature.spec.has_class_token]
    if without:
        raise LofftaError(
            f"{without[0]} has no class token: its prefix tokens are registers",
            where="kind='class'",
            remedy="use kind='mean', or the features of a backbone with a class token",
        )
