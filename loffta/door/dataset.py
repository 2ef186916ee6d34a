"""A torch Dataset over cached features, for a training loop of one's own.

In: Features, rows, labels.   Out: (features, label) per image; a DataLoader that asks for a batch gets it in one read.
Every worker process opens the files for itself, whether it was forked or spawned.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from loffta.dataset.features import Feature
from loffta.feed.sources import group_by_array, pick_taps, union_taps
from loffta.store.zarr_reader import open_array


class TokenDataset(Dataset[tuple[Tensor, Tensor]]):
    """Features [K], [L, H, W, D] or [L, P, D] in float32 with their label, image after image."""

    def __init__(
        self,
        features: Sequence[Feature],
        rows: NDArray[np.int64],
        labels: Tensor,
        join: Callable[[Sequence[Tensor]], Tensor],
    ) -> None:
        """`join` makes one tensor of a batch's parts, one [B, L, *shape] per Feature."""
        self._features, self._rows, self.labels, self._join = tuple(features), rows, labels, join
        self._readers: tuple[int, list[Any]] | None = None  # of a process

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The images of a batch, in one read; a DataLoader calls it."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        parts: dict[int, Tensor] = {}
        for reader, members in self._open():
            chosen = [self._features[i] for i in members]
            taps = union_taps(chosen)
            raw = torch.from_numpy(reader.read(rows, taps))
            parts |= {
                i: feature.finish(pick_taps(raw, taps, feature)) for i, feature in zip(members, chosen, strict=True)
            }
        features = self._join([parts[i] for i in range(len(parts))]).float()
        return list(zip(features, self.labels[list(indices)], strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": None}

    def _open(self) -> list[tuple[Any, list[int]]]:
        """Readers of this process: another one's lock may be held for ever."""
        if self._readers is None or self._readers[0] != os.getpid():
            groups = group_by_array(self._features)
            opened = [(open_array(self._features[group[0]].array.paths), group) for group in groups]
            self._readers = os.getpid(), opened
        return self._readers[1]
