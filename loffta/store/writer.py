"""Writes units of one array: data first, then the done file that says it is there.

In: storage-ready arrays and their audits from `extract`.   Out: one shard and one done file per unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import LofftaError
from loffta.files.durable import replace_part
from loffta.store.ledger import OK, Audit, ImageStatus, encode_done, is_done_by, settles, write_done
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths
from loffta.store.quantise import quantise
from loffta.store.scales import Scales, read_scales
from loffta.store.shard import ShardWriter

Take = Callable[[Sequence[int], torch.dtype], Tensor]  # gives memory of a shape on the host
_TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32}


class Stored(NamedTuple):
    """Tokens in their storage dtype, with what the cast saw."""

    values: NDArray[Any]  # [B, L, ...]
    finite: NDArray[np.bool_]  # [B, L]
    abs_max: NDArray[np.float32]  # [B, L]
    saturated: NDArray[np.int64] | None = None  # [B, L], of int8 arrays


class Cast(NamedTuple):
    """The same, still on the device that computed it."""

    values: Tensor
    finite: Tensor
    abs_max: Tensor
    saturated: Tensor | None = None

    def part(self, images: slice) -> Cast:
        """Some of its images."""
        saturated = None if self.saturated is None else self.saturated[images]
        return Cast(self.values[images], self.finite[images], self.abs_max[images], saturated)

    def fetch(self, take: Take | None = None) -> Stored:
        """Waits for the device, whose current stream makes the copies.

        Args:
            take: memory for values that are not on the host; None: fresh memory.
        """
        values = self.values
        if take is not None and values.device.type != "cpu":
            values = take(values.shape, values.dtype).copy_(values, non_blocking=values.is_cuda)
        saturated = None if self.saturated is None else self.saturated.cpu().numpy()
        finite, abs_max = self.finite.cpu().numpy(), self.abs_max.cpu().numpy()  # these wait, and for `values` too
        return Stored(values.cpu().numpy(), finite, abs_max, saturated)


def cast(
    taps: Sequence[Float[Tensor, "B ..."]], dtype: str, scales: Scales | None = None, *, take: Take | None = None
) -> Cast:
    """Casts on the tokens' device and audits each image and tap; waits for nothing.

    Float types find each tap's extremes and take it straight into its place in the result: 4 ms for a batch of 8 and 12
    taps of a ViT-B, where a stack, its absolute values and their test for infinity took 164 ms on the same two cores.

    Args:
        taps: L tensors of one shape, float32.
        scales: of the array, for int8: `UnitWriter.scales`.
        take: memory for the result of float types, of tokens on the host; None: fresh memory on their device.
    Returns:
        `finite` is False where the input is NaN or infinite, or does not fit a float `dtype`. What does not fit int8 is
        stored as the end of its range and counted in `saturated`.
    """
    if dtype == "int8":
        assert scales is not None, "int8 needs the array's scales"
        abs_max = torch.stack([_largest(tap) for tap in taps], dim=1)
        codes = quantise(torch.stack(list(taps), dim=1), scales)
        return Cast(codes.values.contiguous(), abs_max.isfinite(), abs_max, codes.saturated)
    shape, kept = (len(taps[0]), len(taps), *taps[0].shape[1:]), _TORCH_DTYPES[dtype]
    values = taps[0].new_empty(shape, dtype=kept) if take is None else take(shape, kept)
    largest = []
    for i, tap in enumerate(taps):
        largest.append(_largest(tap))
        values[:, i] = tap  # which is in the processor's cache now
    abs_max = torch.stack(largest, dim=1)
    return Cast(values, abs_max.to(kept).isfinite(), abs_max)  # rounding keeps order: if the largest fits, all do


def _largest(tap: Float[Tensor, "B ..."]) -> Float[Tensor, " B"]:
    """The largest absolute value of each image, NaN where there is one."""
    flat = tap.flatten(1)
    return torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))


def to_storage(tokens: Float[Tensor, "B L ..."], dtype: str, scales: Scales | None = None) -> Stored:
    """`cast` of taps that lie in one tensor, and its result in host memory."""
    return cast(tokens.unbind(dim=1), dtype, scales).fetch()


class UnitWriter:
    """Writes one unit of one array; nothing is visible before `commit`."""

    def __init__(self, paths: ArrayPaths, layout: ArrayLayout, unit: int) -> None:
        self._paths, self._layout, self.unit = paths, layout, unit
        self.scales = read_scales(paths, layout) if layout.dtype == np.int8 else None  # for `to_storage`
        self._audits: dict[int, Audit] = {}
        layout.refuse_packed(paths.metadata)
        assert layout.crc, "format 1 stores a crc32c with every chunk"
        n_chunks = layout.unit_images * layout.chunks_per_image
        self._shard = ShardWriter(paths.shard(unit, layout.ndim), n_chunks)

    @property
    def image_bytes(self) -> int:
        """Of one image's data."""
        return self._layout.chunks_per_image * self._layout.chunk_bytes

    def reserve(self, rows: Sequence[int]) -> list[int]:
        """Gives images their places in the shard, one behind the other; called in the order in which they are to lie.

        Args:
            rows: row numbers inside this unit, each once.
        Returns:
            Where each image goes, for `write`.
        """
        layout, per_image = self._layout, self._layout.chunks_per_image
        first = self.unit * layout.unit_images
        assert all(0 <= row - first < layout.unit_images for row in rows), f"rows outside unit {self.unit}"
        positions = [(row - first) * per_image + c for row in rows for c in range(per_image)]
        return self._shard.reserve(positions, layout.chunk_bytes)[::per_image]

    def write(self, rows: Sequence[int], places: Sequence[int], stored: Stored, keys: Sequence[str]) -> None:
        """Writes images that have their places; any thread may, several at once.

        Args:
            places: of these images, which lie one behind the other.
            stored: their data; `values` [B, *item_shape].
            keys: the images' names, for messages.
        Raises:
            LofftaError: a value is NaN, infinite or too large for the storage dtype; the tap and image are named.
        """
        layout = self._layout
        assert stored.values.shape == (len(rows), *layout.item_shape), f"{layout.item_shape} is due"
        assert stored.values.dtype == layout.dtype, f"{layout.dtype} is due"
        refuse_non_finite(stored, layout, keys, where=self._paths.name)
        if not rows:
            return
        per_image = layout.chunks_per_image
        crcs = self._shard.write(places[0], stored.values.reshape(len(rows) * per_image, -1))
        for i, row in enumerate(rows):
            chunk_crcs = crcs[i * per_image : (i + 1) * per_image]
            saturated = None if stored.saturated is None else stored.saturated[i].tolist()
            self._audits[row] = Audit(stored.finite[i].tolist(), stored.abs_max[i].tolist(), chunk_crcs, saturated)

    def append(self, rows: Sequence[int], stored: Stored, keys: Sequence[str]) -> None:
        """`reserve` and `write` in one, for who has one thread."""
        self.write(rows, self.reserve(rows), stored, keys)

    def commit(self, images: Sequence[ImageStatus], run: dict[str, Any]) -> bool:
        """Puts the shard in place, then its done file.

        Args:
            images: the status of every row of the unit, in row order.
            run: how it was made, kept in the done file.
        Returns:
            False where another process was first; this copy is dropped and theirs stays.
        """
        written = {image.row for image in images if image.status == OK}
        assert written == set(self._audits), "every good image is written once, and no bad one is"
        rows = [image.row for image in images]

        def unless_settled(part: Path, final: Path) -> bool:
            """The last look is right before the rename: what takes long, making the bytes durable, lies behind."""
            is_first = not settles(self._paths, self.unit, rows, self._layout.unit_images)
            return is_first and replace_part(part, final)

        if not self._shard.place(unless_settled):
            self._shard.close()
            return False
        run = {**run, "array": self._layout.facts}
        if self.scales is not None:
            run["scales"] = self.scales.digest
        audits = [self._audits.get(row, Audit()) for row in rows]
        write_done(self._paths, self.unit, images, audits, run)
        if not self._shard.is_in_place() and is_done_by(self._paths, self.unit, encode_done(images, audits, run)):
            self._shard.place_again()  # another process was between the same two lines: its shard, with our checksums
        self._shard.close()
        return True

    def abort(self) -> None:
        """Forgets the unit and deletes its temporary file."""
        self._shard.abort()


def refuse_non_finite(stored: Stored, layout: ArrayLayout, keys: Sequence[str], *, where: str) -> None:
    """Raises a LofftaError that names the tap and image where a value is NaN, infinite or too large for the dtype."""
    if stored.finite.all():
        return
    image, tap = np.argwhere(~stored.finite)[0].tolist()
    name, dtype = layout.taps[tap], layout.dtype
    largest = float(stored.abs_max[image, tap])
    if not np.isfinite(largest):
        raise not_finite(name, keys[image], where=where)
    raise LofftaError(
        f"tap {name} reaches {largest:.4g}, over {dtype}'s {np.finfo(dtype).max:.5g} for image {keys[image]}",
        where=where,
        remedy="store it as float32: --dtype float32",
    )


def not_finite(tap: str, key: str, *, where: str) -> LofftaError:
    """The error for features that are NaN or infinite."""
    return LofftaError(
        f"tap {tap} is NaN or infinite for image {key}",
        where=where,
        remedy="look at this image and at the weights: a frozen network should not give NaN",
    )
