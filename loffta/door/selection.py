"""Features of some images of a cache, as numpy, torch and pyarrow: whole, in batches, or as a Dataset.

In: an open cache, Features and rows.   Out: arrays whose axis 0 goes with `rows`, `keys` and `labels()`. All reading
goes through the feed, so that what comes out is what a head is fed: int8 decoded, means as `train` takes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature
from loffta.dataset.targets import choose_task, read_targets
from loffta.door.dataset import TokenDataset
from loffta.errors import LofftaError, UsageError
from loffta.feed.batches import Feed
from loffta.store.cache import Cache
from loffta.store.table import ImageTable
from loffta.tokens import FeatureSpec

TokenKind: TypeAlias = Literal["mean", "class", "grid", "prefix"]
VECTORS = ("mean", "class")
_BATCH = 256  # images that are read at once


@dataclass(frozen=True)
class Selection:
    """Features of some images. Those that are quarantined or missing are not among them, and are counted.

    An array has [n, K] for vectors (mean, class), K the channels of all taps side by side, store after store in depth
    order; [n, L, H, W, D] for grids and [n, L, P, D] for prefix tokens, L taps of one shape.
    """

    cache: Cache
    features: tuple[Feature, ...]
    kind: TokenKind
    rows: NDArray[np.int64]  # of the table of images
    left_out: Mapping[str, int]  # images of the split by why they are not here: bad, missing; unlabelled

    def __post_init__(self) -> None:
        shapes = {spec.shape for spec in self.specs}
        if self.kind not in VECTORS and len(shapes) > 1:
            raise UsageError(
                f"these taps have {self.kind} tokens of {len(shapes)} shapes: {', '.join(map(str, sorted(shapes)))}",
                where="features",
                remedy=f"ask for those of one shape at a time, {_one_each(self.specs)}; or for kind='mean'",
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        of = "; ".join(f"{spec.backbone} {', '.join(spec.taps)}" for spec in self.specs)
        return f"<{self.kind} {self.shape} of {of}, left out {dict(self.left_out)}>"

    @property
    def specs(self) -> tuple[FeatureSpec, ...]:
        """Backbone, taps and shape of every part, in the order of the columns."""
        return tuple(feature.spec for feature in self.features)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole array."""
        n_taps = [len(spec.taps) for spec in self.specs]
        if self.kind in VECTORS:
            return len(self), sum(n * spec.dim for n, spec in zip(n_taps, self.specs, strict=True))
        return len(self), sum(n_taps), *self.specs[0].shape

    @property
    def keys(self) -> list[str]:
        """Names of the images."""
        return [self.cache.table.keys[row] for row in self.rows]

    def labels(self) -> NDArray[Any]:
        """The images' labels: [n] int64, positions in the cache's `classes`; see `OpenCache.labels` for other kinds.

        Raises:
            LofftaError: some have no label; `labelled()` leaves those out.
        """
        return read_labels(self.cache.table, self.rows)

    def labelled(self) -> Selection:
        """Without the images that have no label, which are counted."""
        known = self.cache.table.is_labelled()[self.rows]
        return replace(
            self, rows=self.rows[known], left_out={**self.left_out, "unlabelled": len(known) - int(known.sum())}
        )

    def take(self, places: Sequence[int] | NDArray[Any]) -> Selection:
        """Some of the images, by their places here, or by a mask: a fold, a sample, another order."""
        chosen = np.asarray(places)
        return replace(self, rows=self.rows[chosen if chosen.size else np.empty(0, np.int64)])

    def batches(self, batch_size: int = _BATCH) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Rows and features of up to `batch_size` images at a time, in order, read ahead; memory does not grow.

        >>> [features.shape for rows, features in train.batches(64)]
        [(64, 64), (36, 64)]

        Raises:
            DamageFound: bytes on disk are not those that were written.
        """
        for rows, features in self._read(batch_size):
            yield rows, features.to(torch.float32, copy=True).numpy()

    def numpy(self) -> NDArray[np.float32]:
        """The whole array; see the class for its axes. Raises as `batches`."""
        return self.torch().numpy()

    def torch(self) -> Tensor:
        """The same as a float32 tensor on the CPU. Raises as `batches`."""
        whole, done = torch.empty(self.shape), 0
        for rows, features in self._read(_BATCH):
            whole[done : done + len(rows)] = features
            done += len(rows)
        return whole

    def table(self) -> pa.Table:
        """The same beside row, key, split and label: a list of numbers, or a tensor, per image. Raises as `batches`.

        >>> train.table().schema.names
        ['row', 'key', 'split', 'label', 'features']
        """
        return self.record_batches().read_all()

    def record_batches(self, batch_size: int = _BATCH) -> pa.RecordBatchReader:
        """The same batch by batch, for whatever writes or queries Arrow's streams."""
        table, shape = self.cache.table, self.shape[1:]
        size = int(np.prod(shape))
        tensor = pa.fixed_shape_tensor(pa.float32(), shape)
        empty = describe_rows(table, self.rows[:0])
        fields = [pa.field(name, column.type) for name, column in empty.items()]
        schema = pa.schema([*fields, pa.field("features", pa.list_(pa.float32(), size) if len(shape) == 1 else tensor)])

        def read() -> Iterator[pa.RecordBatch]:
            for rows, features in self.batches(batch_size):
                flat: Any = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), size)
                column = flat if len(shape) == 1 else pa.ExtensionArray.from_storage(tensor, flat)
                yield pa.record_batch([*describe_rows(table, rows).values(), column], schema=schema)

        return pa.RecordBatchReader.from_batches(schema, read())

    def dataset(self) -> TokenDataset:
        """A torch Dataset of (features, label), which a DataLoader takes, with workers or without.

        >>> features, label = train.dataset()[0]
        >>> features.shape, label
        (torch.Size([64]), tensor(0))

        Raises:
            LofftaError: some images have no label; `labelled()` leaves those out.
        """
        return TokenDataset(self.features, self.rows, torch.from_numpy(self.labels()), self.join)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor of the parts of a batch, one [B, L, *shape] per Feature."""
        if self.kind == "class":
            parts = [part[:, :, 0] for part in parts]
        if self.kind in VECTORS:
            parts = [part.flatten(1) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat([part.float() for part in parts], dim=1)

    def _read(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        """Rows, and features in buffers that the next batch overwrites."""
        if not len(self):
            return
        with Feed(self.features, self.rows, batch_size=batch_size, mode="stream", order="uniform") as feed:
            for batch in feed.in_order():
                yield batch.rows.numpy(), self.join(batch.features)


def read_labels(table: ImageTable, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Labels of some rows; LofftaError where one has none."""
    n_without = len(rows) - int(table.is_labelled()[rows].sum())
    if n_without:
        raise LofftaError(
            f"{n_without} of the {len(rows)} images have no label",
            where=table.source,
            remedy="leave them out: `features(...).labelled()`",
        )
    return read_targets(table, choose_task(table))[rows].numpy()


def describe_rows(table: ImageTable, rows: NDArray[np.int64]) -> dict[str, pa.Array[Any]]:
    """Columns row, key, split and label of some rows; group, and where a file is now, where the cache knows such."""
    places = rows.tolist()
    if table.values is not None:
        labels: pa.Array[Any] = pa.array([table.value(row) for row in places], pa.float64())
    elif table.label_sets is not None:
        labels = pa.array([table.class_names(row) for row in places], pa.list_(pa.string()))
    else:
        labels = pa.array([table.class_name(row) for row in places], pa.string())
    more = {"group": pa.array([table.groups[row] for row in places], pa.string())} if table.groups is not None else {}
    if table.moved:
        more["moved_to"] = pa.array([table.moved.get(row) for row in places], pa.string())
    return {
        "row": pa.array(rows, pa.int64()),
        "key": pa.array([table.keys[row] for row in places], pa.string()),
        "split": pa.array([table.splits[row] or None for row in places], pa.string()),
        "label": labels,
        **more,
    }


def _one_each(specs: Sequence[FeatureSpec]) -> str:
    return " or ".join({spec.shape: f"{spec.backbone}:{','.join(spec.taps)}" for spec in specs}.values())
