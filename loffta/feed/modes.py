"""Decides where each feature waits for its batches: on the device, in host memory, or on disk.

In: features, how many images, the device, what the user asked for.   Out: a Placement per feature, with its reason.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from loffta.dataset.features import Feature
from loffta.errors import UsageError
from loffta.machine import process
from loffta.words import human_size

Mode = Literal["device", "host", "stream"]
ModeChoice = Literal["auto", "device", "host", "stream"]
SMALL_BYTES = 64_000  # an image: less is held in memory beside large features that are streamed
AUTO_SHARE = 0.5  # of the free memory that features take unasked
ASKED_SHARE = 0.9  # that they may take where the user asked for it


@dataclass(frozen=True)
class Placement:
    """Where one feature is kept, and why."""

    mode: Mode
    reason: str


@dataclass
class _Room:
    """Memory that features may take."""

    what: str
    free: int  # bytes
    left: int  # of the share that may be taken

    def take(self, n_bytes: int) -> bool:
        """Whether there is room for it; it is taken then."""
        fits = n_bytes <= self.left
        self.left -= n_bytes if fits else 0
        return fits


def bytes_per_image(features: Sequence[Feature]) -> int:
    """Bytes of one image's features as memory keeps them: chosen taps, pooled, int8 as int8."""
    return sum(len(f.spec.taps) * math.prod(f.spec.shape) * f.held_dtype.itemsize for f in features)


def choose_placements(
    features: Sequence[Feature], n_rows: int, device: torch.device, wanted: ModeChoice = "auto"
) -> list[Placement]:
    """A mode for each feature.

    auto: the smallest first, on the accelerator while half of its free memory has room, then in host memory while half
    of that has room; the others are streamed. Asked to stream, features below 64 kB an image are held all the same
    beside larger ones, where they fit.

    Args:
        n_rows: images to feed.
    Raises:
        UsageError: device mode without CUDA, or what is asked for does not fit.
    """
    if wanted == "device" and device.type != "cuda":
        raise UsageError(
            f"features cannot be kept on device '{device.type}'",
            where="--feed device",
            remedy="use --feed host, which is the same there, or a CUDA device with --device cuda",
        )
    sizes = [bytes_per_image([feature]) for feature in features]
    if wanted in ("device", "host"):
        _check_fits(sum(sizes) * n_rows, wanted, device)
        return [Placement(wanted, "as asked")] * len(features)
    host = _room("host", device)
    if wanted == "stream":
        beside = max(sizes) >= SMALL_BYTES  # else there is nothing to be held beside
        return [
            Placement("host", f"{size / 1000:.0f} kB an image")
            if beside and size < SMALL_BYTES and host.take(size * n_rows)
            else Placement("stream", "as asked")
            for size in sizes
        ]
    found: dict[int, Placement] = {}
    near = _room("device", device) if device.type == "cuda" else None
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        n_bytes = sizes[i] * n_rows
        if near is not None and near.take(n_bytes):
            found[i] = Placement("device", f"fits half of the {human_size(near.free)} of {near.what}")
        elif host.take(n_bytes):
            found[i] = Placement("host", f"fits half of the {human_size(host.free)} of {host.what}")
        else:
            found[i] = Placement("stream", f"more than the {human_size(host.left)} left of half of {host.what}")
    return [found[i] for i in range(len(features))]


def is_cold(n_bytes: int) -> bool:
    """Whether so many bytes will come from the disk in every epoch: the page cache cannot keep them."""
    return n_bytes > process.free_memory_bytes()


def describe_placements(features: Sequence[Feature], placements: Sequence[Placement], n_rows: int) -> str:
    """What was chosen for each array and why; arrays with one fate are named together."""
    groups: dict[Placement, list[Feature]] = {}
    for feature, placement in zip(features, placements, strict=True):
        groups.setdefault(placement, []).append(feature)
    return "; ".join(
        f"{placement.mode}: {', '.join(_names(members))} "
        f"({human_size(bytes_per_image(members) * n_rows)}, {placement.reason})"
        for placement, members in groups.items()
    )


def _names(features: Sequence[Feature]) -> list[str]:
    """STORE/ARRAY; several arrays of a store as STORE/{ARRAY,ARRAY}."""
    arrays: dict[str, dict[str, None]] = {}  # by store, in order, each once
    for feature in features:
        before = "mean of " if feature.is_pooled else ""
        arrays.setdefault(before + feature.store.name, {})[feature.array.paths.folder.name] = None
    listed = {store: ",".join(names) for store, names in arrays.items()}
    return [f"{store}/{{{names}}}" if "," in names else f"{store}/{names}" for store, names in listed.items()]


def free_bytes(device: torch.device) -> int:
    """Memory that tensors on a device may still take; on MPS and the CPU it is the host's."""
    return _free_device_bytes(device) if device.type == "cuda" else process.free_memory_bytes()


def _room(mode: Literal["device", "host"], device: torch.device) -> _Room:
    if mode == "device":
        free, what = _free_device_bytes(device), "free device memory"
    else:
        free, what = process.free_memory_bytes(), "free memory"
    return _Room(what, free, int(AUTO_SHARE * free))


def _check_fits(n_bytes: int, wanted: Literal["device", "host"], device: torch.device) -> None:
    room = _room(wanted, device)
    if n_bytes > ASKED_SHARE * room.free:
        raise UsageError(
            f"the features take {human_size(n_bytes)}, and {human_size(room.free)} of {room.what} are too little",
            where=f"--feed {wanted}",
            remedy="use --feed stream, or fewer taps or stores with --features",
        )


def _free_device_bytes(device: torch.device) -> int:
    """What CUDA has free, and what torch holds of it without using it."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
