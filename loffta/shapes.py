"""The shaped tensors that signatures share, in the axis alphabet of `tokens`; C classes, S a square's side in pixels.

Nothing here computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from jaxtyping import Float, Int64, Shaped
from torch import Tensor

Grid: TypeAlias = Float[Tensor, "B H W D"]  # patch tokens of one tap, on their grid
Prefix: TypeAlias = Float[Tensor, "B P D"]  # class token first, if there is one, then registers
Tokens: TypeAlias = Float[Tensor, "B N D"]  # patch tokens in row-major order
Logits: TypeAlias = Float[Tensor, "B C"]
Maps: TypeAlias = Float[Tensor, "B C S S"]  # outputs of a dense head for each pixel


@dataclass(frozen=True)
class Boxes:
    """The boxes of all images of a batch, M in all."""

    image: Int64[Tensor, " M"]  # which image of the batch
    corners: Float[Tensor, "M 4"]  # left, top, right, bottom; fractions of the image's width and height
    number: Int64[Tensor, " M"]  # of the box among all before any was dropped: finds its class or its mask


@dataclass(frozen=True)
class TargetBatch:
    """Dense targets of one batch, on its device, over the square that the backbones saw; one of the two is there."""

    maps: Shaped[Tensor, "B S S"] | None = None  # classes, numbers of instances or metres: see `targets`
    boxes: Boxes | None = None
    box_classes: Int64[Tensor, " N"] | None = None  # by `Boxes.number`; needed where boxes are found by class
    first_instance: Int64[Tensor, " B"] | None = None  # of each image among all instances of the training, from 0
