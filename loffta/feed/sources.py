"""Where a feed's tensors come from: arrays on disk, features in host memory, features on the device.

In: features with their placements.   Out: Sources that fill a buffer with some images and, when that is on the device,
turn it into what a head gets. Features of one array share one read.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loffta.dataset.features import Feature
from loffta.feed.modes import Mode, Placement
from loffta.feed.views import StackedReader
from loffta.store.zarr_reader import AnyReader, open_array

_LOAD_BYTES = 64 << 20  # read at once while features are loaded into memory


@runtime_checkable
class Source(Protocol):
    """One read per batch, and the features that come of it."""

    members: tuple[int, ...]  # places of its features among the feed's

    def empty(self, n_images: int) -> NDArray[Any]:
        """A buffer for `n_images`."""

    def fill(self, places: NDArray[np.int64], out: NDArray[Any], pool: Executor, n_parts: int) -> None:
        """Puts the images at `places` into `out`; called by the feed's threads, which `pool` may help."""

    def finish(self, raw: Tensor) -> list[Tensor]:
        """From a filled buffer, moved to the device, to one [B, L, *shape] per member."""


class StreamedArray:
    """Reads one array for each batch: the union of its features' taps, once."""

    def __init__(
        self,
        reader: AnyReader | StackedReader,
        features: Sequence[Feature],
        members: Sequence[int],
        rows: NDArray[Any],
    ) -> None:
        self.members = tuple(members)
        self._reader, self._features, self._rows = reader, tuple(features), rows
        self.taps = union_taps(features)

    def empty(self, n_images: int) -> NDArray[Any]:
        """A buffer for `n_images`, as stored."""
        return self._reader.empty(n_images, self.taps)

    def fill(self, places: NDArray[np.int64], out: NDArray[Any], pool: Executor, n_parts: int) -> None:
        """Reads; neighbours on disk in one call, wherever in `out` they go."""
        self._reader.read(self._rows[places], self.taps, out, pool=pool, n_parts=n_parts)

    def finish(self, raw: Tensor) -> list[Tensor]:
        """Chosen taps, pooled, dequantised."""
        return [feature.finish(pick_taps(raw, self.taps, feature)) for feature in self._features]


class HostFeature:
    """Copies rows of a feature in host memory, [n, L, *shape], to each batch."""

    def __init__(self, feature: Feature, member: int, held: Tensor) -> None:
        self.members: tuple[int, ...] = (member,)
        self._feature, self.held = feature, held.numpy()

    def empty(self, n_images: int) -> NDArray[Any]:
        """A buffer for `n_images`, in the dtype that is held."""
        return np.empty((n_images, *self.held.shape[1:]), self.held.dtype)

    def fill(self, places: NDArray[np.int64], out: NDArray[Any], pool: Executor, n_parts: int) -> None:  # noqa: ARG002
        """One memcpy a row; "clip" spares numpy a second, buffered pass."""
        np.take(self.held, places, axis=0, out=out, mode="clip")

    def finish(self, raw: Tensor) -> list[Tensor]:
        """Dequantised."""
        return [self._feature.decode(raw)]


class DeviceFeature:
    """Gathers rows of a feature that lies on the device; what is copied there per batch are the places alone."""

    def __init__(self, feature: Feature, member: int, held: Tensor) -> None:
        self.members: tuple[int, ...] = (member,)
        self._feature, self.held = feature, held

    def empty(self, n_images: int) -> NDArray[Any]:
        """Room for places."""
        return np.empty(n_images, np.int64)

    def fill(self, places: NDArray[np.int64], out: NDArray[Any], pool: Executor, n_parts: int) -> None:  # noqa: ARG002
        """The places themselves."""
        out[:] = places

    def finish(self, raw: Tensor) -> list[Tensor]:
        """Gathered and dequantised."""
        return [self._feature.decode(self.held.index_select(0, raw))]


class PartOf:
    """Some of the rows of another source, whose memory serves both."""

    def __init__(self, source: Source, places: NDArray[np.int64]) -> None:
        self.members = source.members
        self._source, self._places = source, places

    def empty(self, n_images: int) -> NDArray[Any]:
        """As the source's."""
        return self._source.empty(n_images)

    def fill(self, places: NDArray[np.int64], out: NDArray[Any], pool: Executor, n_parts: int) -> None:
        """Where these rows are in the source."""
        self._source.fill(self._places[places], out, pool, n_parts)

    def finish(self, raw: Tensor) -> list[Tensor]:
        """As the source's."""
        return self._source.finish(raw)


def make_sources(
    features: Sequence[Feature],
    placements: Sequence[Placement],
    rows: NDArray[np.int64],
    device: torch.device,
    pool: Executor,
    n_parts: int,
) -> list[Source]:
    """One source per streamed array, one per feature in memory, which is read here; each array is read once.

    Args:
        rows: in features with views, those of `stacked_rows`.
    """
    sources: list[Source] = []
    for members in group_by_array(features):
        first = features[members[0]]
        readers = [open_array(feature.array.paths, near=feature.near) for feature in (first, *first.views)]
        reader = StackedReader(readers) if first.views else readers[0]
        streamed = [i for i in members if placements[i].mode == "stream"]
        kept = [i for i in members if placements[i].mode != "stream"]
        if streamed:
            sources.append(StreamedArray(reader, [features[i] for i in streamed], streamed, rows))
        modes = [placements[i].mode for i in kept]
        loaded = _load(reader, [features[i] for i in kept], modes, rows, device, pool, n_parts) if kept else []
        for i, held in zip(kept, loaded, strict=True):
            make = DeviceFeature if placements[i].mode == "device" else HostFeature
            sources.append(make(features[i], i, held))
    return sources


def group_by_array(features: Sequence[Feature]) -> list[list[int]]:
    """Places of the features that one read serves, array by array."""
    by_array: dict[Path, list[int]] = {}
    for i, feature in enumerate(features):
        by_array.setdefault(feature.array.paths.folder, []).append(i)
    return list(by_array.values())


def read_bytes(features: Sequence[Feature]) -> int:
    """Bytes that are read of one image for these features; what several of them share counts once."""
    n_bytes = 0
    for members in group_by_array(features):
        layout, taps = features[members[0]].array.layout, union_taps([features[i] for i in members])
        n_bytes += layout.chunk_bytes * (layout.chunks_per_image if taps is None else len(taps))
    return n_bytes


def union_taps(features: Sequence[Feature]) -> list[int] | None:
    """What to ask the reader for so that all of one array's features are in it; None reads whole images."""
    asked = [feature.raw_taps for feature in features]
    return sorted({tap for taps in asked if taps is not None for tap in taps}) if None not in asked else None


def pick_taps(raw: Tensor, taps: list[int] | None, feature: Feature) -> Tensor:
    """Of [B, L', ...], read with `taps`, what the feature would have been given alone; a view where it can be."""
    wanted = feature.raw_taps
    if wanted is None or wanted == taps:
        return raw
    assert taps is not None, "an array that is read whole has no taps to ask for"
    places = [taps.index(tap) for tap in wanted]
    if places == list(range(places[0], places[0] + len(places))):
        return raw[:, places[0] : places[0] + len(places)]
    return raw[:, places]


def _load(
    reader: AnyReader | StackedReader,
    features: Sequence[Feature],
    modes: Sequence[Mode],
    rows: NDArray[np.int64],
    device: torch.device,
    pool: Executor,
    n_parts: int,
) -> list[Tensor]:
    """Some features of one array, all rows, reduced (chosen taps, pooled), [n, L, *shape]; int8 stays int8."""
    taps = union_taps(features)
    held = [
        torch.empty(
            (len(rows), len(feature.spec.taps), *feature.spec.shape),
            dtype=torch.from_numpy(np.empty(0, feature.held_dtype)).dtype,
            device=device if mode == "device" else None,
        )
        for feature, mode in zip(features, modes, strict=True)
    ]
    buffer = reader.empty(min(len(rows), max(1, _LOAD_BYTES // reader.empty(1, taps).nbytes)), taps)
    for first in range(0, len(rows), len(buffer)):
        here = rows[first : first + len(buffer)]
        raw = torch.from_numpy(reader.read(here, taps, buffer[: len(here)], pool=pool, n_parts=n_parts))
        for feature, target in zip(features, held, strict=True):
            part = pick_taps(raw, taps, feature)
            # means are taken where a streamed feature's are: the same bits in every mode
            reduced = feature.reduce(part.to(device) if feature.is_pooled else part)
            target[first : first + len(here)] = reduced
    return held
