"""Writes units of one array: data first, then the done file that says it is there.

In: storage-ready arrays and their audits from `extract`.   Out: one shard and one done file per unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.errors import LofftaError
from loffta.store.ledger import OK, Audit, ImageStatus, settles, write_done
from loffta.store.metadata import ArrayLayout
from loffta.store.paths import ArrayPaths
from loffta.store.quantise import quantise
from loffta.store.scales import Scales, read_scales
from loffta.store.shard import ShardWriter

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

    def fetch(self) -> Stored:
        """Waits for the device."""
        saturated = None if self.saturated is None else self.saturated.cpu().numpy()
        values, finite, abs_max = (tensor.cpu().numpy() for tensor in (self.values, self.finite, self.abs_max))
        return Stored(values, finite, abs_max, saturated)


def cast(taps: Sequence[Float[Tensor, "B ..."]], dtype: str, scales: Scales | None = None) -> Cast:
    """Casts on the tokens' device and audits each image and tap; waits for nothing.

    Float types take each tap straight into its place in the result and find its extremes: 4 ms for a batch of 8 and 12
    taps of a ViT-B, where a stack, its absolute values and their test for infinity took 164 ms on the same two cores.

    Args:
        taps: L tensors of one shape, float32.
        scales: of the array, for int8: `UnitWriter.scales`.
    Returns:
        `finite` is False where the input is NaN or infinite, or does not fit a float `dtype`. What does not fit int8 is
        stored as the end of its range and counted in `saturated`.
    """
    flat = [tap.flatten(1) for tap in taps]
    abs_max = torch.stack([torch.maximum(tap.amax(dim=1), -tap.amin(dim=1)) for tap in flat], dim=1)
    if dtype == "int8":
        assert scales is not None, "int8 needs the array's scales"
        codes = quantise(torch.stack(list(taps), dim=1), scales)
        return Cast(codes.values.contiguous(), abs_max.isfinite(), abs_max, codes.saturated)
    values = taps[0].new_empty((len(taps[0]), len(taps), *taps[0].shape[1:]), dtype=_TORCH_DTYPES[dtype])
    for i, tap in enumerate(taps):
        values[:, i] = tap
    return Cast(
        values, abs_max.to(values.dtype).isfinite(), abs_max
    )  # rounding keeps order: if the largest fits, all do


def to_storage(tokens: Float[Tensor, "B L ..."], dtype: str, scales: Scales | None = None) -> Stored:
    """`cast` of taps that lie in one tensor, and its result in host memory."""
    return cast(tokens.unbind(dim=1), dtype, scales).fetch()


class UnitWriter:
    """Streams one unit of one array; nothing is visible before `commit`."""

    def __init__(self, paths: ArrayPaths, layout: ArrayLayout, unit: int) -> None:
        self._paths, self._layout, self._unit = paths, layout, unit
        self.scales = read_scales(paths, layout) if layout.dtype == np.int8 else None  # for `to_storage`
        self._audits: dict[int, Audit] = {}
        assert layout.crc, "format 1 stores a crc32c with every chunk"
        n_chunks = layout.unit_images * layout.chunks_per_image
        self._shard = ShardWriter(paths.shard(unit, layout.ndim), n_chunks)

    def append(self, rows: Sequence[int], stored: Stored, keys: Sequence[str]) -> None:
        """Adds images.

        Args:
            rows: row numbers inside this unit, each once.
            stored: their data; `values` [B, *item_shape].
            keys: the images' names, for messages.
        Raises:
            LofftaError: a value is NaN, infinite or too large for the storage dtype; the tap and image are named.
        """
        layout = self._layout
        assert stored.values.shape == (len(rows), *layout.item_shape), f"{layout.item_shape} is due"
        assert stored.values.dtype == layout.dtype, f"{layout.dtype} is due"
        refuse_non_finite(stored, layout, keys, where=self._paths.name)
        per_image = layout.chunks_per_image
        first = self._unit * layout.unit_images
        assert all(0 <= row - first < layout.unit_images for row in rows), f"rows outside unit {self._unit}"
        positions = [(row - first) * per_image + c for row in rows for c in range(per_image)]
        crcs = self._shard.append(positions, stored.values)
        for i, row in enumerate(rows):
            chunk_crcs = crcs[i * per_image : (i + 1) * per_image]
            saturated = None if stored.saturated is None else stored.saturated[i].tolist()
            self._audits[row] = Audit(stored.finite[i].tolist(), stored.abs_max[i].tolist(), chunk_crcs, saturated)

    def commit(self, images: Sequence[ImageStatus], run: dict[str, Any]) -> bool:
        """Puts the shard in place, then its done file.

        Args:
            images: the status of every row of the unit, in row order.
            run: how it was made, kept in the done file.
        Returns:
            False where another owner was first; this copy is dropped and theirs stays.
        """
        if settles(self._paths, self._unit, [image.row for image in images], self._layout.unit_images):
            self.abort()
            return False
        written = {image.row for image in images if image.status == OK}
        assert written == set(self._audits), "every good image is written once, and no bad one is"
        self._shard.commit()
        run = {**run, "array": self._layout.facts}
        if self.scales is not None:
            run["scales"] = self.scales.digest
        write_done(self._paths, self._unit, images, [self._audits.get(i.row, Audit()) for i in images], run)
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
