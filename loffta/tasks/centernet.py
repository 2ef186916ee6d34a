"""Objects as points: boxes drawn as a heat map of centres, and peaks of a heat map read as boxes.

In:  outputs [B, C + 2, Ho, Wo]: logits of centres, of each class or of any object, then width and height as fractions
of the image; boxes in such fractions.   Out: losses, and boxes with scores. Called by `detection`.

Zhou, Wang and Kraehenbuehl, Objects as Points (2019), as the release of DeAP does it:

* A centre is a Gaussian around its pixel; of several that meet the largest counts. Its standard deviation is, in
  fractions of the width, 0.12 sqrt(share of the image's area) 224 / Wo: 26.9 sqrt(share) pixels at any Wo.
* The loss is torchvision's sigmoid focal loss, the mean over the heat map, and the absolute error of width and height
  at the centre's pixel, the mean over the boxes' two sides. What has no area is no box.
* A peak is no lower than its eight neighbours and scores above 0.01. The box that stands there is clipped to the image.
  Of the 1,000 best (the release has no such bound; torchvision's RetinaNet does) those go that overlap a better one of
  their class by more than half; the first 100 stay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from loffta.shapes import Boxes
from loffta.tasks.pixels import Losses, Outputs

SPREAD, SPREAD_PX = 0.12, 224
ALPHA, GAMMA = 0.25, 2.0  # torchvision's
LEAST_SCORE = 0.01
MOST_OVERLAP = 0.5
N_CANDIDATES, N_FOUND = 1000, 100


class Found(NamedTuple):
    """The boxes that are found in one image, the surest first."""

    corners: Float[np.ndarray, "N 4"]  # left, top, right, bottom
    scores: Float[np.ndarray, " N"]
    classes: Int64[np.ndarray, " N"]  # 0 where objects are found whatever their class


def losses(outputs: Outputs, boxes: Boxes, classes: Int64[Tensor, " M"]) -> Losses:
    """Focal loss and the sides' error of each image; their sums over the counts are the sum of the two means."""
    heat, sizes = outputs[:, :-2].float(), outputs[:, -2:].float()
    n_images, n_cells = len(heat), heat[0].numel()
    boxes, of_box = _with_area(boxes, classes)
    row, column = _centre(boxes, *heat.shape[2:])
    sides = boxes.corners[:, 2:] - boxes.corners[:, :2]
    errors = (sizes[boxes.image, :, row, column] - sides).abs().sum(dim=1)
    of_images = torch.zeros(n_images, device=heat.device).index_add(0, boxes.image, errors)
    n_sides = max(1, 2 * len(errors))
    sums = focal_loss(heat, draw_heat(heat, boxes, of_box)).sum(dim=(1, 2, 3))
    return Losses(sums + of_images * (n_images * n_cells / n_sides), torch.full_like(sums, n_cells))


def draw_heat(
    heat: Float[Tensor, "B C Ho Wo"], boxes: Boxes, classes: Int64[Tensor, " M"]
) -> Float[Tensor, "B C Ho Wo"]:
    """The centres of boxes that have an area, on maps like `heat`; 1 at their pixels."""
    height, width = heat.shape[2:]
    row, column = _centre(boxes, height, width)
    share = (boxes.corners[:, 2:] - boxes.corners[:, :2]).prod(dim=1)
    deviation = (SPREAD * SPREAD_PX * share.sqrt())[:, None]  # pixels
    down, along = (
        torch.exp(-0.5 * ((torch.arange(n, device=heat.device) - centre[:, None]) / deviation).square())
        for n, centre in ((height, row), (width, column))
    )
    found = torch.zeros_like(heat)
    for turn in _turns(boxes.image * heat.shape[1] + classes):  # one box of every map at a time
        where = boxes.image[turn], classes[turn]
        found[where] = torch.maximum(found[where], down[turn, :, None] * along[turn, None, :])
    return found


def focal_loss(logits: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Of each cell (Lin et al., ICCV 2017), for targets between 0 and 1 as well."""
    chance = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    right = chance * targets + (1 - chance) * (1 - targets)
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * entropy * (1 - right) ** GAMMA


def find_boxes(outputs: Outputs) -> list[Found]:
    """The boxes of each image, in fractions of it."""
    heat, sizes = outputs[:, :-2].float(), outputs[:, -2:].float().flatten(2)
    height, width = heat.shape[2:]
    peaks = heat.where(heat == F.max_pool2d(heat, 3, stride=1, padding=1), -torch.inf).flatten(1)
    logits, cells = peaks.topk(min(N_CANDIDATES, peaks.shape[1]))
    places = cells % (height * width)
    sides = sizes.gather(2, places[:, None].expand(-1, 2, -1)).transpose(1, 2)
    centres = (torch.stack([places % width, places // width], dim=2) + 0.5) / torch.tensor(
        [width, height], device=heat.device
    )
    corners = torch.cat([centres - sides / 2, centres + sides / 2], dim=2).clamp(0, 1)
    scores, classes = logits.double().sigmoid(), cells // (height * width)
    of_images = (part.cpu().numpy() for part in (corners.double(), scores, classes))
    return [_chosen(*of_image) for of_image in zip(*of_images, strict=True)]


def suppress(
    corners: Float[np.ndarray, "N 4"], classes: Int64[np.ndarray, " N"], most: float = MOST_OVERLAP
) -> Int64[np.ndarray, " kept"]:
    """Which boxes stay, the best first, of those sorted so: none overlaps a better one of its class by more."""
    overlaps = (box_overlaps(corners, corners) > most) & (classes[:, None] == classes)
    gone = np.zeros(len(corners), bool)
    for i, of_box in enumerate(overlaps):
        if not gone[i]:
            gone[i + 1 :] |= of_box[i + 1 :]
    return np.flatnonzero(~gone)


def box_overlaps(ones: Float[np.ndarray, "N 4"], others: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Intersection over union; 0 where there is no area."""
    shared, own, of_others = shared_area(ones, others), box_areas(ones), box_areas(others)
    return np.asarray(shared / np.maximum(own[:, None] + of_others - shared, np.finfo(np.float64).tiny))


def shared_area(ones: Float[np.ndarray, "N 4"], others: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "N M"]:
    """Of every two boxes."""
    first = np.maximum(ones[:, None, :2], others[:, :2])
    last = np.minimum(ones[:, None, 2:], others[:, 2:])
    return np.asarray((last - first).clip(0).prod(axis=2))


def box_areas(corners: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, " N"]:
    """Width times height."""
    return np.asarray((corners[:, 2:] - corners[:, :2]).clip(0).prod(axis=1))


def _chosen(
    corners: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, " N"], classes: Int64[np.ndarray, " N"]
) -> Found:
    kept = (scores > LEAST_SCORE) & (box_areas(corners) > 0)
    corners, scores, classes = corners[kept], scores[kept], classes[kept]
    rows = suppress(corners, classes)[:N_FOUND]
    return Found(corners[rows], scores[rows], classes[rows])


def _with_area(boxes: Boxes, classes: Int64[Tensor, " M"]) -> tuple[Boxes, Int64[Tensor, " kept"]]:
    kept = (boxes.corners[:, 2:] > boxes.corners[:, :2]).all(dim=1)
    return Boxes(boxes.image[kept], boxes.corners[kept].float(), boxes.number[kept]), classes[kept]


def _centre(boxes: Boxes, height: int, width: int) -> tuple[Int64[Tensor, " M"], Int64[Tensor, " M"]]:
    """Row and column of the pixel that the middle lies in."""
    x, y = (boxes.corners[:, :2] + boxes.corners[:, 2:]).unbind(1)
    row, column = ((n * twice / 2).long().clamp(0, n - 1) for n, twice in ((height, y), (width, x)))
    return row, column


def _turns(maps: Int64[Tensor, " M"]) -> list[Tensor]:
    """Rows, shared out so that no part has two of one map."""
    order = maps.argsort(stable=True)
    ordered = maps[order]
    starts = torch.searchsorted(ordered, ordered)
    turn = torch.arange(len(maps), device=maps.device) - starts
    return [order[turn == i] for i in range(int(turn.max()) + 1 if len(turn) else 0)]
