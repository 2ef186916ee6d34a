"""Dense targets: what a pixel, an object or a box of an image is; the words that all wings share. Imports no torch.

`images` decodes them, `store` keeps them, `feed` hands them out as `shapes.TargetBatch`, `tasks` learns and measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

TargetKind: TypeAlias = Literal["mask", "instances", "depth", "boxes"]
TARGET_KINDS: tuple[TargetKind, ...] = get_args(TargetKind)

IGNORE = 255  # class of a pixel that counts nowhere; with more than 255 classes, IGNORE_16
IGNORE_16 = 65_535  # the same of masks of 16 bits, and of pixels that belong to no countable object
NO_INSTANCE = 0  # background of `instances`; objects are 1, 2, ...


@dataclass(frozen=True)
class BoxList:
    """The boxes of one image, in its own pixels, right and bottom excluded."""

    corners: NDArray[np.floating[Any]]  # [M, 4] left, top, right, bottom
    classes: NDArray[np.int64]  # [M] positions in the classes of the set
    crowd: NDArray[np.bool_]  # [M] a group of objects: detections in it count neither for nor against


@dataclass(frozen=True)
class NativeTarget:
    """One target of one image at the annotation's own size, upright as the image is shown."""

    kind: TargetKind
    height: int
    width: int
    map: NDArray[Any] | None = None  # [h, w] mask: uint8 or uint16; instances: uint16; depth: float32, metres
    boxes: BoxList | None = None  # of boxes alone


@dataclass(frozen=True)
class Readout:
    """What a dense head is to give: a network of its own for every entry of `channels`, side by side along K."""

    channels: tuple[int, ...]  # (21,) for 21 classes; (1, 2) for CenterNet's centre and size
    bias: float = 0.0  # added to the last layers' biases at the start; 1 for depth in metres (DeAP)

    @property
    def n_outputs(self) -> int:
        """K."""
        return sum(self.channels)


@dataclass(frozen=True)
class DenseSettings:
    """What a protocol fixes of a dense task beside its targets; part of a dense head's recipe."""

    depth_as: Literal["direct", "bins"] = "direct"  # one number a pixel, or a distribution over depths
    depth_bins: int = 256
    min_depth: float = 1e-3  # metres; truth outside counts nowhere
    max_depth: float = 10.0
    eigen_crop: bool = False  # NYU: rows 45 to 471 and columns 41 to 601 of 480 x 640 are measured alone
    flip_average: bool = False  # evaluation takes the mean over the image and its mirror image (online alone)
    eval_px: int | None = None  # masks and outputs are measured at this size; None: at the label's own
    tolerance: float = 0.0075  # of the F of boundaries, as a share of the diagonal (BSDS)
    boxes_by_class: bool = False  # objects are found by class; False: any object, as DeAP does
    embedding_dim: int = 32  # outputs a pixel where instances are told apart
    instance_pixels: int | None = 256  # drawn of an image's objects in a training step; None: all of them
    sampled_instances: int = 4096  # instances of a training that a step compares pixels with; all, where fewer
    min_instances: int = 2  # an image is measured that has so many,
    min_instance_area: int = 0  # each of so many pixels of the label (9216: COCO's large)


MEASURED_BY = (  # of these; figures by others are figures of other pixels or objects
    *("min_depth", "max_depth", "eigen_crop", "eval_px", "tolerance"),
    *("boxes_by_class", "min_instances", "min_instance_area"),
)
