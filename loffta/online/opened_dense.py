"""A finished run of a dense task made ready for images: its heads, the features they are fed, what their maps cover.

In: a run's directory.   Out: OpenedDense, which turns a FreshBatch into maps or boxes at each image's own size. Called
by `dense_predict` and `dense_evaluate`; `opened` is the same for heads of whole images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from loffta.config import TrainConfig
from loffta.crop import Windows
from loffta.errors import LofftaError, UsageError
from loffta.evaluation.clock import Clock
from loffta.evaluation.dense import head_outputs, images_at_once, load_dense_heads, refuse_infinite, with_output_px
from loffta.evaluation.findings import Findings
from loffta.evaluation.trained import trained_recipe
from loffta.extraction.targets import pixel_geometry
from loffta.heads import Head, find_head
from loffta.heads.dense import DenseRecipe
from loffta.heads.precision import matmul_precision
from loffta.images.geometry import Window, shown_window
from loffta.online.windows import check_windows, put_together
from loffta.runs.origins import Origins, read_origins
from loffta.runs.run import RunPaths, open_run
from loffta.store.ledger import ImageStatus
from loffta.store.targets import geometry_of
from loffta.targets import IGNORE, IGNORE_16, DenseSettings
from loffta.tasks.centernet import Found
from loffta.tasks.dense import DENSE_TASKS, DenseTask
from loffta.tasks.depth import metres_of

MOST_BYTES = 1 << 30  # of outputs at an image's own size: 21 classes of 12.7 megapixels


@dataclass(frozen=True)
class OpenedDense:
    """A run whose heads can give maps."""

    paths: RunPaths
    config: TrainConfig
    recipe: DenseRecipe
    origins: Origins
    heads: list[Head]  # one per seed and fold or draw, in evaluation mode, on the device
    device: torch.device
    windows: Windows | None = None  # that slide over each image; None: it is seen as the features were made

    @property
    def task(self) -> DenseTask:
        """What it was trained for."""
        return DENSE_TASKS[self.config.task]

    @property
    def classes(self) -> tuple[str, ...]:
        """Of masks and boxes."""
        return self.origins.classes

    @property
    def mirrors(self) -> bool:
        """Whether what it says of an image is the mean of that and of what it says of the mirror image."""
        return self.recipe.flip_average

    @property
    def settings(self) -> DenseSettings:
        """What its protocol fixes, as the outputs are read: those of an average over images or windows are metres."""
        found = self.recipe.settings()
        return replace(found, depth_as="direct") if self.mirrors or self.windows else found

    def window(self, key: str, height: int, width: int) -> Window:
        """What of an image the features, and so the maps, cover."""
        if self.windows is not None:
            return Window(0.0, 0.0, float(width), float(height), False)
        recipe = self.origins.features[0].store.info.recipe
        geometry = pixel_geometry(geometry_of(recipe), self.origins.features[0].spec.image_px)
        return shown_window(geometry, key, width, height)

    def each_output(
        self,
        features: Sequence[Tensor],
        keys: Sequence[str],
        told: Findings | None = None,
        mirrored: Sequence[Tensor] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """(seed, images, [B, K, S, S]) of every head for some of the images at a time; with windows [1, K, h, w].

        Args:
            features: one [B, L, *shape] per Feature; with windows those of one image.
            told: gets what was prepared, too.
            mirrored: features of the mirror images, where the run `mirrors`.
            sizes: (height, width) of the images, where there are windows.
        """
        clock = Clock() if told is None else told.clock
        if self.windows is not None and keys:
            yield from self._each_slid(self.windows, features, keys, told, mirrored, sizes, clock)
            return
        n_outputs = self.task.readout(len(self.classes), self.recipe.settings()).n_outputs
        size = max(1, images_at_once(n_outputs, self.recipe.output_px))
        for start in range(0, len(keys), size):
            part = slice(start, min(start + size, len(keys)))
            here = len(keys[part])
            with torch.no_grad():
                parts = [[feature[part].to(self.device) for feature in of] for of in (features, mirrored)]
                with clock.shared(self.device, here):
                    prepared, turned = (self.heads[0].prepare(of) if of else None for of in parts)
                if told is not None:
                    told.add(prepared, here)
            for seed, head in enumerate(self.heads):
                with torch.no_grad(), matmul_precision(self.recipe, self.device), clock.own(self.device, here):
                    outputs = head_outputs(head, prepared, self.recipe, self.device)
                    if turned is not None:
                        other = head_outputs(head, turned, self.recipe, self.device).flip(3)
                        outputs = self._averaged(outputs, other)
                refuse_infinite(outputs, seed, keys[part])
                yield seed, part, outputs

    def _each_slid(
        self,
        windows: Windows,
        features: Sequence[Tensor],
        keys: Sequence[str],
        told: Findings | None,
        mirrored: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        clock: Clock,
    ) -> Iterator[tuple[int, slice, Tensor]]:
        """The same of one image, by its windows; one head's map of it is held at a time."""
        ((height, width),) = sizes
        resized = windows.resized(width, height)
        if told is not None:
            of_all = [feature[0].to(self.device) for feature in features]
            with torch.no_grad():
                told.add(self.heads[0].prepare(of_all), len(of_all[0]))
        for seed, head in enumerate(self.heads):
            with clock.own(self.device, 1):
                outputs = put_together(windows, resized, self._of_windows(head, features))
                if mirrored:
                    other = put_together(windows, resized, self._of_windows(head, mirrored)).flip(3)
                    outputs = self._averaged(outputs, other)
            refuse_infinite(outputs, seed, keys)
            yield seed, slice(0, 1), outputs

    def _of_windows(self, head: Head, features: Sequence[Tensor]) -> Iterator[Tensor]:
        """[n, K, S, S] of some windows at a time; of depth metres above the least, as DINOv2 averages."""
        asked = self.recipe.settings()
        n_outputs = self.task.readout(len(self.classes), asked).n_outputs
        size = max(1, images_at_once(n_outputs, self.recipe.output_px))
        for start in range(0, len(features[0][0]), size):
            with torch.no_grad(), matmul_precision(self.recipe, self.device):
                prepared = head.prepare([feature[0, start : start + size].to(self.device) for feature in features])
                outputs = head_outputs(head, prepared, self.recipe, self.device)
            yield metres_of(outputs, asked) - asked.min_depth if self.config.task == "depth" else outputs

    def _averaged(self, one: Tensor, other: Tensor) -> Tensor:
        """Probabilities of classes, as mmsegmentation has it, metres of depth, as DINOv2; else the outputs."""
        if self.config.task == "segmentation":
            return ((one.softmax(1) + other.softmax(1)) / 2).log()
        if self.config.task == "depth":
            asked = self.settings if self.windows else self.recipe.settings()
            return (metres_of(one, asked) + metres_of(other, asked)) / 2 - asked.min_depth
        return (one + other) / 2

    def mean_outputs(
        self,
        features: Sequence[Tensor],
        keys: Sequence[str],
        mirrored: Sequence[Tensor] = (),
        sizes: Sequence[tuple[int, int]] = (),
    ) -> Iterator[tuple[slice, Float[Tensor, "B K h w"]]]:
        """What the heads give, on the average, of some images at a time.

        Of embeddings it is the first head's: each head has axes of its own.
        """
        heads = 1 if self.config.task == "instances" else len(self.heads)
        total: Tensor | None = None
        for seed, part, outputs in self.each_output(features, keys, mirrored=mirrored, sizes=sizes):
            if seed < heads:
                total = outputs if total is None else total + outputs
            if seed == len(self.heads) - 1:
                assert total is not None
                yield part, total / heads
                total = None

    def read(self, outputs: Float[Tensor, "K h w"], key: str, height: int, width: int) -> Any:
        """Of one image what `predict` gives: a map [height, width], embeddings [D, S, S], or boxes in its pixels.

        Where the features show a part of the image alone, the rest is unknown: no class, no depth, no border. Outputs
        that would take over MOST_BYTES are read at a smaller size, and their pixels repeated.
        """
        if self.config.task == "instances":
            return self.task.decode(outputs[None], self.settings, outputs.shape[1:])[0]
        window = self.window(key, height, width)
        left, top, right, bottom = (math.ceil(place - 0.5) for place in window[:4])  # as `cut_target`
        size = (max(1, bottom - top), max(1, right - left))
        shrunk = _within(size, len(outputs))
        found = self.task.decode(outputs[None], self.settings, shrunk)[0]
        if self.config.task == "detection":
            return _shifted(found, (size[0] / shrunk[0], size[1] / shrunk[1]), (left, top), (height, width))
        if shrunk != size:
            rows, columns = (((2 * np.arange(n) + 1) * m) // (2 * n) for n, m in zip(size, shrunk, strict=True))
            found = found[rows[:, None], columns]
        return found if size == (height, width) else _placed(found, (top, left), (height, width))


def open_dense(
    root: Path, device: torch.device, output_px: int | None = None, windows: Windows | None = None
) -> OpenedDense:
    """Opens a finished run of a dense task.

    Args:
        output_px: side of the heads' outputs; None: as in training.
        windows: slide them over each image; outputs have their side then.
    Raises:
        LofftaError: no run, no trained head, or heads that cannot do without a cache.
        UsageError: windows and a side of outputs, or windows where outputs are not of pixels.
    """
    paths, config = open_run(root)
    recipe = trained_recipe(paths, config)
    assert isinstance(recipe, DenseRecipe), "dense tasks are for dense heads"
    if windows is not None:
        check_windows(windows, config.task, output_px)
    recipe = with_output_px(recipe, output_px if windows is None else windows.side)
    origins = read_origins(paths.stores)
    if getattr(find_head(config.head).head, "needs_thumb", False):
        _check_guided(config.head, origins, windows, paths)
    if origins.features[0].store.info.recipe["view"]:
        raise LofftaError(
            "this run was trained on one random view of each image alone, which is no place in a new image",
            where=paths.config,
            remedy="train on the features of whole images: --features STORE, and --views for the views beside them",
        )
    specs = [feature.spec for feature in origins.inputs]
    heads = load_dense_heads(paths, config, recipe, specs, len(origins.classes), shown=True)
    return OpenedDense(paths, config, recipe, origins, [head.to(device) for head in heads], device, windows)


def _check_guided(head: str, origins: Origins, windows: Windows | None, paths: RunPaths) -> None:
    """Refuses what a head that is guided by thumbnails of whole images cannot do."""
    if windows is not None:
        raise UsageError(
            f"head '{head}' is guided by thumbnails of whole images, and there are none of windows",
            where=f"--windows {windows}",
            remedy="leave it out, or train another head",
        )
    if origins.thumbs is None:
        raise LofftaError(
            f"head '{head}' is guided by thumbnails, and this run of an older loffta does not say of what size",
            where=paths.stores,
            remedy="extract the images, and use `loffta evaluate RUN --cache CACHE`; or train again",
        )


def true_size(status: ImageStatus) -> tuple[int, int]:
    """(height, width) of an upright image that was decoded."""
    return int(status.height), int(status.width)


def _within(size: tuple[int, int], n_outputs: int) -> tuple[int, int]:
    """The same shape, as large as MOST_BYTES allow."""
    share = math.sqrt(MOST_BYTES / (4 * n_outputs * size[0] * size[1]))
    return size if share >= 1 else (max(1, int(size[0] * share)), max(1, int(size[1] * share)))


def _placed(found: NDArray[Any], corner: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
    """A map in the image that it shows a part of; it may stand out of it. What it does not show is unknown."""
    fill = {np.dtype(np.uint8): IGNORE, np.dtype(np.uint16): IGNORE_16}.get(found.dtype, 0)
    whole = np.full(size, fill, found.dtype)
    (top, left), (n_rows, n_columns) = corner, found.shape
    rows, columns = slice(max(0, top), top + n_rows), slice(max(0, left), left + n_columns)
    whole[rows, columns] = found[max(0, -top) :, max(0, -left) :][: size[0] - rows.start, : size[1] - columns.start]
    return whole


def _shifted(found: Found, scale: tuple[float, float], origin: tuple[int, int], size: tuple[int, int]) -> Found:
    """Boxes from the pixels of a part of the image to those of the image, clipped; those outside are dropped."""
    corners = found.corners * np.array([scale[1], scale[0]] * 2) + np.array(origin * 2)
    corners = corners.clip(0, np.array([size[1], size[0]] * 2))
    kept = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return Found(corners[kept], found.scores[kept], found.classes[kept])
