"""What the dense tasks share: outputs and labels brought to one size, and how losses are averaged.

Labels keep their own size and outputs are brought there, bilinearly: so mmsegmentation, DINOv2 and the release of DeAP
measure. In training the size is that of the targets beside the features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from loffta.shapes import TargetBatch
from loffta.targets import NativeTarget
from loffta.tasks.bootstrap import Weights

Outputs: TypeAlias = Float[Tensor, "B K Ho Wo"]
Recount: TypeAlias = Callable[[Weights], dict[str, Float[np.ndarray, " R"]]]  # every metric in any resamples


class Losses(NamedTuple):
    """Of each image of a batch: the sum of what its pixels (or objects) lose, and how many count."""

    sums: Float[Tensor, " B"]
    counts: Float[Tensor, " B"]

    def mean(self, total: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, ""]:
        """Over what counts in the batch, as the official codes do; 0 where nothing does.

        Args:
            total: sums over all processes that share the batch; what comes out is this one's part of the mean.
        """
        over = self.counts.sum()
        return self.sums.sum() / (over if total is None else total(over)).clamp(min=1)


def at_size(outputs: Outputs, size: Sequence[int]) -> Float[Tensor, "B K h w"]:
    """Bilinear, pixel centres aligned, in float32; `size` is height and width."""
    outputs = outputs.float()
    if tuple(outputs.shape[2:]) == tuple(size):
        return outputs
    return F.interpolate(outputs, size=tuple(size), mode="bilinear", align_corners=False)


def maps_of(targets: TargetBatch) -> Shaped[Tensor, "B S S"]:
    """The maps of a batch whose task has maps."""
    assert targets.maps is not None
    return targets.maps


def label_map(native: NativeTarget, px: int | None) -> Shaped[np.ndarray, "h w"]:
    """What outputs are measured against: the label as it is, or its nearest pixels on a square of that side."""
    assert native.map is not None
    if px is None:
        return native.map
    rows, columns = (nearest_centres(n, px) for n in native.map.shape)
    return np.asarray(native.map[rows[:, None], columns])


def nearest_centres(n: int, n_new: int) -> Int64[np.ndarray, " n_new"]:
    """Which of n pixels the centre of each of n_new lies in (torch's `nearest-exact`)."""
    return (2 * np.arange(n_new) + 1) * n // (2 * n_new)
