"""One store's part of an extraction: pixels in, storage-ready tokens out, in batches that fit the memory.

`jobs` makes a Job, `extract` runs it. Nothing here reads images or writes files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from loffta.backbones import Backbone, TapTokens
from loffta.errors import LofftaError
from loffta.images.geometry import PixelGeometry, View
from loffta.machine.progress import say
from loffta.pooling import pool_grid, pool_mean
from loffta.store.cache import CachedArray, Store
from loffta.store.handover import Batch, hand_over
from loffta.store.writer import Cast, cast

Result = TypeVar("Result")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Job:
    """One store's part of an extraction."""

    store: Store
    arrays: list[CachedArray]  # that the asked taps and kinds need
    backbone: Backbone | None  # None while nothing has to be computed
    device: torch.device
    batch_size: int = 0  # images per forward pass; `extract` sets it, and halves it when memory runs out

    @property
    def geometry(self) -> PixelGeometry:
        """How this store's images become pixels."""
        recipe = self.store.info.recipe
        view = recipe["view"]
        fields = {name: value for name, value in recipe["input"].items() if name not in ("mean", "std")}
        return PixelGeometry(**fields, view=View(view["seed"], view["index"]) if view else None)

    def missing(self, unit: int, rows: Sequence[int]) -> list[CachedArray]:
        """Arrays whose done file does not settle `rows`."""
        return [array for array in self.arrays if not array.has_unit(unit, rows)]

    def forward(self, pixels: UInt8[Tensor, "B 3 S S"], taps: Sequence[str]) -> dict[str, TapTokens]:
        """Runs the backbone in the recipe's precision.

        Returns:
            Per tap its tokens, float32 on the backbone's device; grids not pooled yet.
        """
        assert self.backbone is not None, "a job with missing units has its backbone"
        with _autocast(self.store.info.recipe["precision"], self.device):
            tokens = self.backbone(pixels, taps)
        return {tap: TapTokens(out.grid.float(), out.prefix.float()) for tap, out in tokens.items()}

    def run(
        self, pixels: NDArray[np.uint8], arrays: Sequence[CachedArray], keys: Sequence[str]
    ) -> Iterator[tuple[slice, list[Cast]]]:
        """Computes what `arrays` hold, in parts of the job's batch size, which is halved when memory runs out.

        Args:
            pixels: [B, S, S, 3].
            keys: the B images' names, for messages.
        Yields:
            Which of the images, and per array their values; the device may still be at work on them.
        Raises:
            LofftaError: not even one image fits.
        """
        return self._in_parts(pixels, arrays, keys, lambda a, t: cast(t, a.layout.dtype.name, a.scales))

    def hand_over(
        self, pixels: NDArray[np.uint8], arrays: Sequence[CachedArray], keys: Sequence[str]
    ) -> Iterator[tuple[slice, list[Batch]]]:
        """As `run`, for who writes it: the values are in host memory when they are fetched."""
        return self._in_parts(pixels, arrays, keys, lambda a, t: hand_over(t, a.layout.dtype.name, a.scales))

    def tokens(
        self, pixels: NDArray[np.uint8], arrays: Sequence[CachedArray], keys: Sequence[str]
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """As `run`, before anything is cast: per array [B, L, ...] float32 on the job's device."""
        return self._in_parts(pixels, arrays, keys, lambda _, taps: torch.stack(taps, dim=1))

    def _in_parts(
        self,
        pixels: NDArray[np.uint8],
        arrays: Sequence[CachedArray],
        keys: Sequence[str],
        finish: Callable[[CachedArray, list[Tensor]], Result],
    ) -> Iterator[tuple[slice, list[Result]]]:
        taps = self.taps_of(arrays)
        start = 0
        while start < len(pixels):
            part = slice(start, min(start + self.batch_size, len(pixels)))
            try:
                tokens = self.forward(torch.from_numpy(pixels[part]).permute(0, 3, 1, 2), taps)
                found = [finish(array, self._gather(array, tokens)) for array in arrays]
            except torch.OutOfMemoryError as error:
                self._halve(part.stop - start, keys[start], error)
                continue
            yield part, found
            start = part.stop

    def taps_of(self, arrays: Sequence[CachedArray]) -> list[str]:
        """The taps of all `arrays`, each once, in depth order."""
        taps = {tap for array in arrays for tap in array.taps}
        return [spec.tap for spec in self.store.info.taps if spec.tap in taps]

    def _gather(self, array: CachedArray, tokens: dict[str, TapTokens]) -> list[Tensor]:
        """[B, ...] of the array's kind, per tap in the array's order."""
        taps = [tokens[tap] for tap in array.taps]
        if array.kind == "prefix":
            return [tap.prefix for tap in taps]
        if array.kind == "mean":
            return [pool_mean(tap.grid) for tap in taps]
        pool = self.store.info.recipe["pool"]
        return [pool_grid(tap.grid, *pool) if pool else tap.grid for tap in taps]

    def _halve(self, n_images: int, key: str, error: torch.OutOfMemoryError) -> None:
        """After an out-of-memory error with `n_images` at once."""
        if n_images == 1:
            raise LofftaError(
                f"one image is too much for the memory of {self.device} ({str(error).splitlines()[0]})",
                where=f"{self.store.name}, image {key}",
                remedy="use fewer --taps, a smaller --image-px, or --device cpu",
            ) from error
        self.batch_size = n_images // 2
        free_memory(self.device)
        say(f"{self.store.name}: memory ran out; {self.batch_size} images at once from here on")


def free_memory(device: torch.device) -> None:
    """Gives cached blocks back, so that a smaller batch finds room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, _AUTOCAST[precision])
